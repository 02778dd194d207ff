//! Registering a tenant's endpoint and rotating its secret: what an operator, and later the console, asks for.
//!
//! The URL is judged here as it will be at each delivery; a name that leads to a private address only later is refused
//! then.
use reeve_jobs::{
    audit,
    seal::Keyring,
    tenant::{Rows, Scope, ScopeError},
};
use uuid::Uuid;

use super::{
    secrets::{self, SecretError},
    sign::SigningSecret,
};
use crate::clients::http::{EndpointUrl, UrlPolicy, UrlRefused};

/// The longest time that two secrets may sign side by side.
pub const OVERLAP_HOURS_MAX: u16 = 7 * 24;

#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    #[error("the endpoint's URL is refused: {0}")]
    Url(#[from] UrlRefused),
    #[error("an overlap of {0} hours is too long; at most {OVERLAP_HOURS_MAX}")]
    Overlap(u16),
    #[error("this tenant has no endpoint {0}")]
    Unknown(Uuid),
    #[error(transparent)]
    Secret(#[from] SecretError),
    #[error(transparent)]
    Scope(#[from] ScopeError),
}

/// A new endpoint.
#[derive(Debug)]
pub struct NewEndpoint<'a> {
    pub url: &'a str,
    /// Empty: every type.
    pub event_types: &'a [String],
    pub secret: &'a SigningSecret,
}

/// Adds the endpoint with its first secret. The caller commits.
pub async fn register(
    scope: &mut Scope,
    keyring: &Keyring,
    policy: &UrlPolicy,
    endpoint: &NewEndpoint<'_>,
    actor: &str,
) -> Result<Uuid, EndpointError> {
    let url = EndpointUrl::parse(endpoint.url, policy)?;
    let id = Uuid::now_v7();
    let insert = sqlx::query_scalar(
        "-- webhook_endpoints.insert
        INSERT INTO reeve.webhook_endpoints (tenant_id, id, url, event_types) VALUES ($1, $2, $3, $4)
        RETURNING tenant_id",
    )
    .bind(scope.tenant().as_str().to_owned())
    .bind(id)
    .bind(url.as_str().to_owned())
    .bind(endpoint.event_types.to_vec());
    scope.write(insert, Rows::Exactly(1)).await?;
    secrets::add(scope, keyring, id, endpoint.secret, 0).await?;
    let target = format!("endpoint:{id}");
    scope.audit(&audit::Entry::new(actor, "endpoint.registered", &target)).await?;
    Ok(id)
}

/// Gives the endpoint a new secret; the old one signs beside it for `overlap_hours`. Returns the new version.
pub async fn rotate(
    scope: &mut Scope,
    keyring: &Keyring,
    id: Uuid,
    secret: &SigningSecret,
    overlap_hours: u16,
    actor: &str,
) -> Result<i32, EndpointError> {
    if overlap_hours > OVERLAP_HOURS_MAX {
        return Err(EndpointError::Overlap(overlap_hours));
    }
    let version = secrets::add(scope, keyring, id, secret, i64::from(overlap_hours) * 3_600).await;
    let version = match version {
        Err(SecretError::Scope(ScopeError::Database(sqlx::Error::RowNotFound))) => {
            return Err(EndpointError::Unknown(id));
        }
        other => other?,
    };
    let target = format!("endpoint:{id}");
    scope.audit(&audit::Entry::new(actor, "endpoint.secret_rotated", &target)).await?;
    Ok(version)
}

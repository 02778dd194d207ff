//! Signing secrets: one per endpoint and version, sealed at rest, several in force while one replaces another.
use reeve_jobs::{
    seal::{Keyring, KeyringError, Place, Purpose, SealError},
    tenant::{Rows, Scope, ScopeError, TenantId, TenantRow},
};
use uuid::Uuid;

use super::sign::{SecretInvalid, SigningSecret};

#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("secret version {version} of endpoint {endpoint}: {source}")]
    Unreadable { endpoint: Uuid, version: i32, source: KeyringError },
    #[error("secret version {version} of endpoint {endpoint}: {source}")]
    Invalid { endpoint: Uuid, version: i32, source: SecretInvalid },
    #[error(transparent)]
    Scope(#[from] ScopeError),
}

/// The secrets that sign now, newest first.
#[derive(Debug)]
pub struct InForce {
    pub secrets: Vec<SigningSecret>,
    /// Of the newest; recorded on each attempt.
    pub version: i32,
}

#[derive(sqlx::FromRow)]
struct Row {
    tenant_id: String,
    version: i32,
    sealed: Vec<u8>,
}

impl TenantRow for Row {
    fn tenant_id(&self) -> &str {
        &self.tenant_id
    }
}

fn row_key(endpoint: Uuid, version: i32) -> String {
    format!("{endpoint}/{version}")
}

fn place<'a>(tenant: &'a TenantId, row: &'a str) -> Place<'a> {
    Place { tenant, table: "webhook_secrets", column: "sealed", row }
}

/// Reads and opens them. `None` when the endpoint has none.
pub async fn in_force(scope: &mut Scope, keyring: &Keyring, endpoint: Uuid) -> Result<Option<InForce>, SecretError> {
    let rows: Vec<Row> = scope
        .fetch_all(
            sqlx::query_as(
                "-- webhook_secrets.in_force
                SELECT tenant_id, version, sealed FROM reeve.webhook_secrets
                WHERE endpoint_id = $1 AND (expires_at IS NULL OR expires_at > now()) ORDER BY version DESC",
            )
            .bind(endpoint),
        )
        .await?;
    let Some(version) = rows.first().map(|row| row.version) else { return Ok(None) };
    let mut secrets = Vec::with_capacity(rows.len());
    for row in rows {
        let (version, row_key) = (row.version, row_key(endpoint, row.version));
        let plain = keyring
            .open(Purpose::Webhook, &place(scope.tenant(), &row_key), &row.sealed)
            .await
            .map_err(|source| SecretError::Unreadable { endpoint, version, source })?;
        let text = std::str::from_utf8(&plain).map_err(|_| SecretError::Unreadable {
            endpoint,
            version,
            source: SealError::Form("not text").into(),
        })?;
        secrets.push(SigningSecret::parse(text).map_err(|source| SecretError::Invalid {
            endpoint,
            version,
            source,
        })?);
    }
    Ok(Some(InForce { secrets, version }))
}

/// Adds a secret as the next version. Earlier ones go on signing beside it for `overlap_secs`.
pub async fn add(
    scope: &mut Scope,
    keyring: &Keyring,
    endpoint: Uuid,
    secret: &SigningSecret,
    overlap_secs: i64,
) -> Result<i32, SecretError> {
    // The endpoint's row is the lock: two rotations at a time would take the same version.
    let version: i32 = scope
        .fetch_value(
            sqlx::query_scalar(
                "-- webhook_secrets.next_version
                SELECT 1 + coalesce((SELECT max(version) FROM reeve.webhook_secrets WHERE endpoint_id = e.id), 0)
                FROM reeve.webhook_endpoints e WHERE e.id = $1 FOR UPDATE",
            )
            .bind(endpoint),
        )
        .await?;
    let row_key = row_key(endpoint, version);
    let sealed = keyring
        .seal(Purpose::Webhook, &place(scope.tenant(), &row_key), secret.reveal().as_bytes())
        .await
        .map_err(|source| SecretError::Unreadable { endpoint, version, source })?;
    let tenant = scope.tenant().as_str().to_owned();
    let expire = sqlx::query_scalar(
        "-- webhook_secrets.expire
        UPDATE reeve.webhook_secrets SET expires_at = now() + make_interval(secs => $3)
        WHERE tenant_id = $1 AND endpoint_id = $2 AND expires_at IS NULL RETURNING tenant_id",
    );
    #[allow(clippy::cast_precision_loss, reason = "an overlap of days, in seconds")]
    let overlap = overlap_secs as f64;
    scope.write(expire.bind(tenant.clone()).bind(endpoint).bind(overlap), Rows::AtMost(1)).await?;
    let insert = sqlx::query_scalar(
        "-- webhook_secrets.insert
        INSERT INTO reeve.webhook_secrets (tenant_id, endpoint_id, version, sealed) VALUES ($1, $2, $3, $4)
        RETURNING tenant_id",
    )
    .bind(tenant)
    .bind(endpoint)
    .bind(version)
    .bind(sealed);
    scope.write(insert, Rows::Exactly(1)).await?;
    Ok(version)
}

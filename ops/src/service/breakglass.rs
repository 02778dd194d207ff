//! Break-glass: ask, approve, take the login, close, list. All SQL is in `reeve_jobs::tenant::breakglass`.
//!
//! The one secret, the login's password, is made and handed out here and kept nowhere.
use chrono::{DateTime, Utc};
use reeve_jobs::{
    TenantId,
    queue::operate::Act,
    tenant::breakglass::{self, Approval, Login, Opening},
};
use serde::Serialize;
use sqlx::PgPool;
use uuid::Uuid;

use super::{ServiceError, require_tenant};

/// What `reeve breakglass login` gives, once. Serialized with its password, which is what it is for; no `Debug`.
#[allow(missing_debug_implementations, reason = "it holds a password to be shown")]
#[derive(Serialize)]
pub struct Given {
    pub id: Uuid,
    pub user: String,
    pub password: String,
    pub database: String,
    pub valid_until: DateTime<Utc>,
}

/// Asks for an opening.
pub async fn request(pool: &PgPool, tenant: &TenantId, minutes: i32, act: Act<'_>) -> Result<Opening, ServiceError> {
    let id = breakglass::request(pool, tenant, minutes, act).await?;
    show(pool, id).await
}

/// Approves, as another operator than the one that asked.
pub async fn approve(pool: &PgPool, id: Uuid, act: Act<'_>) -> Result<Opening, ServiceError> {
    match breakglass::approve(pool, id, act).await? {
        Approval::Approved => show(pool, id).await,
        Approval::NoOpening => Err(ServiceError::NoOpening(id)),
        Approval::Refused { code, message, hint } => Err(ServiceError::refused(code, &message, hint)),
    }
}

/// Makes the login and gives it out.
pub async fn login(pool: &PgPool, id: Uuid, actor: &str) -> Result<Given, ServiceError> {
    let Login { user, password, valid_until } =
        breakglass::login(pool, id, actor).await?.ok_or(ServiceError::NoOpening(id))?;
    let database = pool.connect_options().get_database().unwrap_or_default().to_owned();
    Ok(Given { id, user, password: password.reveal().to_owned(), database, valid_until })
}

/// Ends an opening. `false`: it was over already. It counts as ended from the first statement on; where the second fails,
/// the scheduler finishes it.
pub async fn close(pool: &PgPool, id: Uuid, act: Act<'_>) -> Result<(Opening, bool), ServiceError> {
    let was = breakglass::close(pool, id, act).await?.ok_or(ServiceError::NoOpening(id))?;
    breakglass::finish(pool).await?;
    Ok((show(pool, id).await?, was != "closed"))
}

/// The newest first.
pub async fn list(pool: &PgPool, tenant: Option<&TenantId>, limit: i64) -> Result<Vec<Opening>, ServiceError> {
    if let Some(tenant) = tenant {
        require_tenant(pool, tenant).await?;
    }
    Ok(breakglass::list(pool, tenant, None, limit).await?)
}

async fn show(pool: &PgPool, id: Uuid) -> Result<Opening, ServiceError> {
    breakglass::list(pool, None, Some(id), 1).await?.pop().ok_or(ServiceError::NoOpening(id))
}

//! Tenants as operators see them.
use reeve_jobs::{
    TenantId,
    queue::{
        inspect::{self, JobCount},
        operate::Act,
    },
    tenant::{
        inspect::{self as tenant_inspect, TenantSummary},
        operate,
    },
};
use serde::Serialize;
use serde_json::{Map, Value};
use sqlx::PgPool;

use super::ServiceError;

#[derive(Debug, Serialize)]
pub struct TenantDetail {
    #[serde(flatten)]
    pub tenant: TenantSummary,
    /// Live and parked jobs; history is not counted.
    pub jobs: Vec<JobCount>,
}

pub async fn list(pool: &PgPool) -> Result<Vec<TenantSummary>, ServiceError> {
    Ok(tenant_inspect::list(pool).await?)
}

pub async fn show(pool: &PgPool, id: &TenantId) -> Result<TenantDetail, ServiceError> {
    let tenant = tenant_inspect::find(pool, id).await?.ok_or_else(|| ServiceError::NoTenant(id.clone()))?;
    Ok(TenantDetail { tenant, jobs: inspect::counts(pool, id).await? })
}

/// What an act did to a tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Changed {
    pub tenant: TenantId,
    /// Names of the fields that are different now, and never their values: one of them is personal data.
    pub changed: Vec<String>,
}

/// Sets these fields, by the names of their columns.
pub async fn set(
    pool: &PgPool,
    tenant: &TenantId,
    changes: &Map<String, Value>,
    act: Act<'_>,
) -> Result<Changed, ServiceError> {
    Ok(Changed { tenant: tenant.clone(), changed: operate::change(pool, tenant, changes, act).await? })
}

/// Lets a tenant's jobs wait, or be claimed again.
pub async fn pause(pool: &PgPool, tenant: &TenantId, paused: bool, act: Act<'_>) -> Result<Changed, ServiceError> {
    let changed = operate::pause(pool, tenant, paused, act).await?;
    Ok(Changed { tenant: tenant.clone(), changed: changed.then(|| "paused".to_owned()).into_iter().collect() })
}

/// Whether the tenant is new. One that is registered stays as it is.
pub async fn register(
    pool: &PgPool,
    tenant: &TenantId,
    name: &str,
    region: Option<&str>,
    actor: &str,
    reason: Option<&str>,
) -> Result<bool, ServiceError> {
    Ok(operate::register(pool, tenant, name, region, actor, reason).await?)
}

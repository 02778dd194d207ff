//! Tenants as operators see them.
use reeve_jobs::{
    TenantId,
    queue::inspect::{self, JobCount},
    tenant::inspect::{self as tenant_inspect, TenantSummary},
};
use serde::Serialize;
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

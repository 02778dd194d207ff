//! Placements and regions as operators handle them. Logic and audit are in the SQL functions that these call.
use std::time::Duration;

use reeve_jobs::{TenantId, program::migrate::VERSION, queue::operate::Act, tenant::placements};
use serde::Serialize;
use sqlx::{PgConnection, PgPool};

use super::{ServiceError, migrate};

pub use placements::{Placed, Region};

/// How long [`end_move`] waits for workers to forget the old place, and for transactions from before the move.
const SETTLED_WITHIN: Duration = Duration::from_secs(60);

/// A database that was made a tenant's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Prepared {
    pub tenant: TenantId,
    pub database: String,
    pub schema: i64,
    pub region: String,
    pub epoch: i32,
}

pub async fn show(pool: &PgPool, tenant: &TenantId) -> Result<Placed, ServiceError> {
    placements::find(pool, tenant).await?.ok_or_else(|| ServiceError::NoTenant(tenant.clone()))
}

pub async fn begin_move(pool: &PgPool, tenant: &TenantId, act: Act<'_>) -> Result<Placed, ServiceError> {
    placements::begin_move(pool, tenant, act).await?;
    show(pool, tenant).await
}

/// Makes a database the tenant's own: schema, identity, key.
pub async fn prepare(
    pool: &PgPool,
    admin: &mut PgConnection,
    tenant: &TenantId,
    region: &str,
    act: Act<'_>,
) -> Result<Prepared, ServiceError> {
    let epoch = match placements::prepare(pool, admin, tenant, region, act).await {
        Ok(epoch) => epoch,
        Err(error) => return Err(migrate::explain(admin, "REEVE_PLACEMENT_ADMIN_URL", error).await),
    };
    let database =
        sqlx::query_scalar("-- placements.database\nSELECT current_database()::text").fetch_one(admin).await?;
    Ok(Prepared { tenant: tenant.clone(), database, schema: VERSION, region: region.to_owned(), epoch })
}

pub async fn place_shared(
    pool: &PgPool,
    tenant: &TenantId,
    region: &str,
    act: Act<'_>,
) -> Result<Placed, ServiceError> {
    placements::place_shared(pool, tenant, region, act).await?;
    show(pool, tenant).await
}

/// Ends the move as soon as it may be ended.
pub async fn end_move(pool: &PgPool, tenant: &TenantId, act: Act<'_>) -> Result<Placed, ServiceError> {
    let ended = tokio::time::timeout(SETTLED_WITHIN, async {
        loop {
            match placements::end_move(pool, tenant, act).await.map_err(ServiceError::from) {
                Err(ServiceError::Refused { code, .. }) if code == "RV032" => {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                other => return other,
            }
        }
    });
    match ended.await {
        Ok(ended) => ended?,
        // Once more, for its own words.
        Err(_) => placements::end_move(pool, tenant, act).await?,
    }
    show(pool, tenant).await
}

pub async fn cancel_move(pool: &PgPool, tenant: &TenantId, act: Act<'_>) -> Result<Placed, ServiceError> {
    placements::cancel_move(pool, tenant, act).await?;
    show(pool, tenant).await
}

pub async fn regions(pool: &PgPool) -> Result<Vec<Region>, ServiceError> {
    Ok(placements::regions(pool).await?)
}

/// Returns whether it is new.
pub async fn declare_region(
    pool: &PgPool,
    name: &str,
    holds_shared_rows: bool,
    act: Act<'_>,
) -> Result<bool, ServiceError> {
    Ok(placements::declare_region(pool, name, holds_shared_rows, act).await?)
}

/// Returns whether it is new.
pub async fn declare_bucket(pool: &PgPool, name: &str, region: &str, act: Act<'_>) -> Result<bool, ServiceError> {
    Ok(placements::declare_bucket(pool, name, region, act).await?)
}

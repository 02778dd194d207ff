//! Where a tenant's data may be, beyond its rows: the region that a worker claims to be in, and the buckets it may write to.
//!
//! Both are asked of the control database, where regions and buckets are declared. The guard of a bucket is called before
//! the first byte goes out; nothing here writes to one.
use sqlx::{PgPool, Row};

use super::{ScopeError, TenantContext, identity::Facts};

#[derive(Debug, thiserror::Error)]
pub enum RegionError {
    #[error(
        "this worker's region \"{region}\" is not declared; set [worker] region to one of {declared}, or declare it with `reeve regions declare {region}`"
    )]
    Undeclared { region: String, declared: String },
    #[error(
        "the database of [worker] database_url is no control database: it is a tenant's own; is the address right?"
    )]
    Dedicated,
    #[error("the worker's region could not be proven: {0}")]
    Database(#[from] sqlx::Error),
}

/// Asked once, at start: is this the control database, and is the region one of its own?
pub async fn prove(pool: &PgPool, region: &str) -> Result<(), RegionError> {
    let row = sqlx::query(
        "-- region.prove
        SELECT EXISTS (SELECT FROM reeve.regions r WHERE r.name = $1) AS declared,
               (SELECT string_agg(r.name, ', ' ORDER BY r.name) FROM reeve.regions r) AS names,
               f.identity_tenant, f.identity_region, f.identity_epoch, f.holds_region, f.placement
        FROM reeve.database_facts(NULL, $1) f",
    )
    .bind(region)
    .fetch_one(pool)
    .await?;
    if Facts::of(&row)?.must_be_control().is_err() {
        return Err(RegionError::Dedicated);
    }
    if row.try_get("declared")? {
        return Ok(());
    }
    let declared = row.try_get::<Option<String>, _>("names")?.unwrap_or_else(|| "none".to_owned());
    Err(RegionError::Undeclared { region: region.to_owned(), declared })
}

/// Refuses a bucket that is not declared for the region of this context, before anything is written to it. `control` is a
/// pool of the control database. A job that is refused here is quarantined, which is audited.
pub async fn require_bucket(control: &PgPool, context: &TenantContext, bucket: &str) -> Result<(), ScopeError> {
    let found: Option<String> =
        sqlx::query_scalar("-- region.bucket\nSELECT region FROM reeve.buckets WHERE name = $1")
            .bind(bucket)
            .fetch_optional(control)
            .await?;
    match found {
        Some(region) if region == *context.region => Ok(()),
        Some(region) => Err(ScopeError::Mismatch(format!(
            "bucket \"{bucket}\" is in region {region}, tenant \"{}\" is pinned to {}",
            context.tenant, context.region
        ))),
        None => Err(ScopeError::Mismatch(format!("bucket \"{bucket}\" is declared for no region"))),
    }
}

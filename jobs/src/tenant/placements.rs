//! What operators do to a tenant's place: calls of the audited functions in `migrations/0014_placements.sql`, which hold all
//! logic, and the preparing of a database that is to become a tenant's own. Runs as `reeve_ops`.
//!
//! A worker does not come here: what it must know of a place is in [`super::Directory`].
use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{Connection, PgConnection, PgPool, Row};

use super::TenantId;
use crate::queue::operate::Act;

/// A tenant's place, and how far its move is. Without the URL, which only a worker can open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Placed {
    pub tenant: TenantId,
    pub placement: String,
    pub region: String,
    /// Its jobs wait.
    pub moving: bool,
    /// Of the last placing; 0 when it was never placed by anybody.
    pub epoch: i32,
    /// Whether the move, if there is one, has placed it already.
    pub placed: bool,
    /// Jobs of it that run now, in any queue.
    pub running: i64,
    pub updated_at: Option<DateTime<Utc>>,
}

/// `None` when the tenant is not registered.
pub async fn find(pool: &PgPool, tenant: &TenantId) -> sqlx::Result<Option<Placed>> {
    let row = sqlx::query(
        "-- placements.find
        SELECT placement, region, moving, epoch, settled, running, updated_at FROM reeve.placement($1)",
    )
    .bind(tenant.as_str())
    .fetch_optional(pool)
    .await?;
    row.map(|row| {
        Ok(Placed {
            tenant: tenant.clone(),
            placement: row.try_get("placement")?,
            region: row.try_get("region")?,
            moving: row.try_get("moving")?,
            epoch: row.try_get("epoch")?,
            placed: !row.try_get::<bool, _>("settled")?,
            running: row.try_get("running")?,
            updated_at: row.try_get("updated_at")?,
        })
    })
    .transpose()
}

/// Lets the tenant's jobs wait. Returns how many still run.
pub async fn begin_move(pool: &PgPool, tenant: &TenantId, act: Act<'_>) -> sqlx::Result<i64> {
    sqlx::query_scalar("-- placements.begin_move\nSELECT reeve.begin_move($1, $2, $3)")
        .bind(tenant.as_str())
        .bind(act.actor)
        .bind(act.reason)
        .fetch_one(pool)
        .await
}

/// Places the tenant in the database of this URL, sealed to `epoch`.
pub async fn place(
    pool: &PgPool,
    tenant: &TenantId,
    url_sealed: &[u8],
    region: &str,
    epoch: i32,
    act: Act<'_>,
) -> sqlx::Result<()> {
    sqlx::query("-- placements.place\nSELECT reeve.place_tenant($1, $2, $3, $4, $5, $6)")
        .bind(tenant.as_str())
        .bind(url_sealed)
        .bind(region)
        .bind(epoch)
        .bind(act.actor)
        .bind(act.reason)
        .execute(pool)
        .await
        .map(drop)
}

/// Places the tenant in the shared database. Returns the epoch.
pub async fn place_shared(pool: &PgPool, tenant: &TenantId, region: &str, act: Act<'_>) -> sqlx::Result<i32> {
    sqlx::query_scalar("-- placements.place_shared\nSELECT reeve.place_shared($1, $2, $3, $4)")
        .bind(tenant.as_str())
        .bind(region)
        .bind(act.actor)
        .bind(act.reason)
        .fetch_one(pool)
        .await
}

/// Lets its jobs run again, at the new place.
pub async fn end_move(pool: &PgPool, tenant: &TenantId, act: Act<'_>) -> sqlx::Result<()> {
    sqlx::query("-- placements.end_move\nSELECT reeve.end_move($1, $2, $3)")
        .bind(tenant.as_str())
        .bind(act.actor)
        .bind(act.reason)
        .execute(pool)
        .await
        .map(drop)
}

/// Lets its jobs run again where they ran before.
pub async fn cancel_move(pool: &PgPool, tenant: &TenantId, act: Act<'_>) -> sqlx::Result<()> {
    sqlx::query("-- placements.cancel_move\nSELECT reeve.cancel_move($1, $2, $3)")
        .bind(tenant.as_str())
        .bind(act.actor)
        .bind(act.reason)
        .execute(pool)
        .await
        .map(drop)
}

/// Records that a command was about to cross a tenant's border.
pub async fn audit_mismatch(pool: &PgPool, tenant: &TenantId, actor: &str, why: &str) -> sqlx::Result<()> {
    sqlx::query("-- placements.audit_mismatch\nSELECT reeve.audit_mismatch($1, $2, $3)")
        .bind(tenant.as_str())
        .bind(actor)
        .bind(why)
        .execute(pool)
        .await
        .map(drop)
}

/// The epoch that a database prepared now is to carry; audited, and changes nothing.
pub async fn next_epoch(pool: &PgPool, tenant: &TenantId, region: &str, act: Act<'_>) -> sqlx::Result<i32> {
    sqlx::query_scalar("-- placements.prepare\nSELECT reeve.prepare_placement($1, $2, $3, $4)")
        .bind(tenant.as_str())
        .bind(region)
        .bind(act.actor)
        .bind(act.reason)
        .fetch_one(pool)
        .await
}

/// In the new database, migrated, as its administrator: says whose it is.
pub async fn set_identity(admin: &mut PgConnection, tenant: &TenantId, region: &str, epoch: i32) -> sqlx::Result<()> {
    let mut tx = admin.begin().await?;
    sqlx::query("-- placements.become_dispatch\nSET LOCAL ROLE reeve_dispatch").execute(&mut *tx).await?;
    sqlx::query("-- placements.set_identity\nSELECT reeve.set_identity($1, $2, $3)")
        .bind(tenant.as_str())
        .bind(region)
        .bind(epoch)
        .execute(&mut *tx)
        .await?;
    tx.commit().await
}

/// A declared region.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Region {
    pub name: String,
    /// Whether the shared database may hold its tenants' rows.
    pub holds_shared_rows: bool,
    pub buckets: Vec<String>,
}

pub async fn regions(pool: &PgPool) -> sqlx::Result<Vec<Region>> {
    let rows = sqlx::query(
        "-- placements.regions
        SELECT r.name, r.holds_shared_rows,
               ARRAY(SELECT b.name FROM reeve.buckets b WHERE b.region = r.name ORDER BY b.name) AS buckets
        FROM reeve.regions r ORDER BY r.name",
    )
    .fetch_all(pool)
    .await?;
    rows.iter()
        .map(|row| {
            Ok(Region {
                name: row.try_get("name")?,
                holds_shared_rows: row.try_get("holds_shared_rows")?,
                buckets: row.try_get("buckets")?,
            })
        })
        .collect()
}

/// Returns whether it is new.
pub async fn declare_region(pool: &PgPool, name: &str, holds_shared_rows: bool, act: Act<'_>) -> sqlx::Result<bool> {
    sqlx::query_scalar("-- placements.declare_region\nSELECT reeve.declare_region($1, $2, $3, $4)")
        .bind(name)
        .bind(holds_shared_rows)
        .bind(act.actor)
        .bind(act.reason)
        .fetch_one(pool)
        .await
}

/// Returns whether it is new.
pub async fn declare_bucket(pool: &PgPool, name: &str, region: &str, act: Act<'_>) -> sqlx::Result<bool> {
    sqlx::query_scalar("-- placements.declare_bucket\nSELECT reeve.declare_bucket($1, $2, $3, $4)")
        .bind(name)
        .bind(region)
        .bind(act.actor)
        .bind(act.reason)
        .fetch_one(pool)
        .await
}

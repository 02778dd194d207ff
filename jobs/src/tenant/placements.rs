//! What operators do to a tenant's place: calls of the audited functions in `migrations/0014_placements.sql`, which hold all
//! logic, and the preparing of a database that is to become a tenant's own. Runs as `reeve_ops`.
//!
//! A worker does not come here: what it must know of a place is in [`super::Directory`].
use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{Connection, PgConnection, PgPool, Row};

use super::TenantId;
use crate::{
    program::migrate::{self, MigrateError},
    queue::operate::Act,
};

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

/// Makes a database this tenant's own, for the next placing: it gets this build's schema, its identity and a key. `admin` is
/// a connection of that database's administrator. Returns the epoch. A database that is in use otherwise is refused before
/// anything is changed in it.
pub async fn prepare(
    pool: &PgPool,
    admin: &mut PgConnection,
    tenant: &TenantId,
    region: &str,
    act: Act<'_>,
) -> Result<i32, MigrateError> {
    let (epoch, may_renew): (i32, bool) =
        sqlx::query_as("-- placements.prepare\nSELECT epoch, may_renew FROM reeve.prepare_placement($1, $2, $3, $4)")
            .bind(tenant.as_str())
            .bind(region)
            .bind(act.actor)
            .bind(act.reason)
            .fetch_one(pool)
            .await?;
    require_own_database(admin, tenant).await?;
    migrate::run(admin).await?;
    let (inner_pad, outer_pad) = set_identity(admin, tenant, region, epoch, may_renew).await?;
    sqlx::query("-- placements.keep_prepared_key\nSELECT reeve.keep_prepared_key($1, $2, $3, $4)")
        .bind(tenant.as_str())
        .bind(epoch)
        .bind(inner_pad)
        .bind(outer_pad)
        .execute(pool)
        .await?;
    Ok(epoch)
}

/// An older Reeve schema, one without the question, is in use as something else: dedicated databases came with it.
async fn require_own_database(admin: &mut PgConnection, tenant: &TenantId) -> sqlx::Result<()> {
    let mut tx = admin.begin().await?;
    let (ours, asks): (bool, bool) = sqlx::query_as(
        "-- placements.ours
        SELECT to_regclass('reeve.tenants') IS NOT NULL, to_regproc('reeve.require_own_database') IS NOT NULL",
    )
    .fetch_one(&mut *tx)
    .await?;
    if !ours {
        return Ok(());
    }
    become_dispatch(&mut tx).await?;
    if asks {
        sqlx::query("-- placements.require_own_database\nSELECT reeve.require_own_database($1)")
            .bind(tenant.as_str())
            .execute(&mut *tx)
            .await
            .map(drop)
    } else {
        sqlx::query(
            "-- placements.refuse_old
            DO $$ BEGIN
              IF EXISTS (SELECT FROM reeve.tenants) THEN
                RAISE EXCEPTION 'reeve: this database is in use as a shared or control database' USING ERRCODE = 'RV031',
                  HINT = 'A dedicated database starts without tenants; is the address right?';
              END IF;
            END $$",
        )
        .execute(&mut *tx)
        .await
        .map(drop)
    }
}

async fn become_dispatch(tx: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::query("-- placements.become_dispatch\nSET LOCAL ROLE reeve_dispatch").execute(tx).await.map(drop)
}

/// Returns the key's two padded forms.
async fn set_identity(
    admin: &mut PgConnection,
    tenant: &TenantId,
    region: &str,
    epoch: i32,
    may_renew: bool,
) -> sqlx::Result<(Vec<u8>, Vec<u8>)> {
    let mut tx = admin.begin().await?;
    become_dispatch(&mut tx).await?;
    let pads = sqlx::query_as(
        "-- placements.set_identity\nSELECT inner_pad, outer_pad FROM reeve.set_identity($1, $2, $3, $4)",
    )
    .bind(tenant.as_str())
    .bind(region)
    .bind(epoch)
    .bind(may_renew)
    .fetch_one(&mut *tx)
    .await?;
    tx.commit().await?;
    Ok(pads)
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

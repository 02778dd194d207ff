//! What operators do to a tenant: calls of the audited functions in `migrations/0016_tenant_commands.sql`, which check and
//! decide. Runs as `reeve_ops`.
//!
//! Not here: the closing of a workspace, and moves of region and placement.
use serde_json::{Map, Value};
use sqlx::PgPool;

use super::TenantId;
use crate::queue::operate::Act;

/// Sets these fields, by the names of their columns; null takes away what may be absent. Returns the names of those that
/// were different before; where there is none, nothing was written.
pub async fn change(
    pool: &PgPool,
    tenant: &TenantId,
    changes: &Map<String, Value>,
    act: Act<'_>,
) -> sqlx::Result<Vec<String>> {
    sqlx::query_scalar("-- tenant.change\nSELECT reeve.change_tenant($1, $2, $3, $4)")
        .bind(tenant.as_str())
        .bind(sqlx::types::Json(changes))
        .bind(act.actor)
        .bind(act.reason)
        .fetch_one(pool)
        .await
}

/// Lets its jobs wait, or be claimed again. Whether it was otherwise before.
pub async fn pause(pool: &PgPool, tenant: &TenantId, paused: bool, act: Act<'_>) -> sqlx::Result<bool> {
    sqlx::query_scalar("-- tenant.pause\nSELECT reeve.pause_tenant($1, $2, $3, $4)")
        .bind(tenant.as_str())
        .bind(paused)
        .bind(act.actor)
        .bind(act.reason)
        .fetch_one(pool)
        .await
}

/// Registers a tenant, in the installation's own region when none is given. Whether it is new: one that is registered
/// stays as it is.
pub async fn register(
    pool: &PgPool,
    tenant: &TenantId,
    name: &str,
    region: Option<&str>,
    actor: &str,
    reason: Option<&str>,
) -> sqlx::Result<bool> {
    sqlx::query_scalar("-- tenant.register\nSELECT reeve.ops_register_tenant($1, $2, $3, $4, $5)")
        .bind(tenant.as_str())
        .bind(name)
        .bind(region)
        .bind(actor)
        .bind(reason)
        .fetch_one(pool)
        .await
}

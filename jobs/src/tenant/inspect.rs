//! Reading the tenants as operators see them. Runs as `reeve_ops`, whose policy lets it read every row.
//!
//! A worker does not come here: what it must know of a tenant is in [`super::Directory`], and no more.
use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{PgPool, Row, postgres::PgRow};

use super::TenantId;

/// A tenant's row. The security contact is personal data and stays out.
#[derive(Debug, Clone, Serialize)]
pub struct TenantSummary {
    pub id: TenantId,
    pub name: String,
    pub state: String,
    pub region: String,
    pub placement: String,
    /// Its share of each claim, against the others'.
    pub weight: i32,
    /// Jobs that may run at one time in one queue; `None` is no cap.
    pub running_max: Option<i32>,
    pub paused: bool,
    pub plan: Option<String>,
    /// Kinds whose flag is off for this tenant: their jobs wait. `None` when all are on.
    pub kinds_off: Option<Vec<String>>,
    pub locale: String,
    pub time_zone: String,
    pub created_at: DateTime<Utc>,
}

fn summary(row: &PgRow) -> sqlx::Result<TenantSummary> {
    Ok(TenantSummary {
        id: row.try_get::<&str, _>("id")?.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))?,
        name: row.try_get("name")?,
        state: row.try_get("state")?,
        region: row.try_get("region")?,
        placement: row.try_get("placement")?,
        weight: row.try_get("weight")?,
        running_max: row.try_get("running_max")?,
        paused: row.try_get("paused")?,
        plan: row.try_get("plan")?,
        kinds_off: row.try_get("kinds_off")?,
        locale: row.try_get("locale")?,
        time_zone: row.try_get("time_zone")?,
        created_at: row.try_get("created_at")?,
    })
}

/// All tenants, by id.
pub async fn list(pool: &PgPool) -> sqlx::Result<Vec<TenantSummary>> {
    let rows = sqlx::query(
        "-- tenant_inspect.list
        SELECT id, name, state, region, placement, weight, running_max, paused, plan, kinds_off, locale, time_zone,
          created_at
        FROM reeve.tenants ORDER BY id",
    )
    .fetch_all(pool)
    .await?;
    rows.iter().map(summary).collect()
}

pub async fn find(pool: &PgPool, tenant: &TenantId) -> sqlx::Result<Option<TenantSummary>> {
    let row = sqlx::query(
        "-- tenant_inspect.find
        SELECT id, name, state, region, placement, weight, running_max, paused, plan, kinds_off, locale, time_zone,
          created_at
        FROM reeve.tenants WHERE id = $1",
    )
    .bind(tenant.as_str())
    .fetch_optional(pool)
    .await?;
    row.as_ref().map(summary).transpose()
}

//! Schedules as operators see and change them. Changes are calls of the audited functions in
//! `migrations/0021_schedule_commands.sql`. Runs as `reeve_ops`.
//!
//! Not here: whether a cadence can be followed, which [`super::slots`] tells; and the firing, which is the scheduler's.
use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::{Map, Value};
use sqlx::PgPool;

use super::operate::Act;
use crate::tenant::TenantId;

/// One schedule, with what the operator changed of it.
#[derive(Debug, Clone, Serialize, sqlx::FromRow)]
pub struct ScheduleRow {
    pub kind: String,
    /// The kind's own cadence.
    pub cron: String,
    pub cron_override: Option<String>,
    pub time_zone: String,
    pub window_secs: i32,
    pub window_override: Option<i32>,
    pub catch_up: String,
    pub paused: bool,
    /// `None` until a scheduler has computed it.
    pub next_at: Option<DateTime<Utc>>,
    pub last_slot_at: Option<DateTime<Utc>>,
    /// The database's clock, by which all schedulers go.
    pub now_at: DateTime<Utc>,
}

impl ScheduleRow {
    /// The expression in force.
    pub fn cron_in_force(&self) -> &str {
        self.cron_override.as_deref().unwrap_or(&self.cron)
    }

    /// The window in force.
    pub fn window_in_force(&self) -> i32 {
        self.window_override.unwrap_or(self.window_secs)
    }
}

pub async fn list(pool: &PgPool) -> sqlx::Result<Vec<ScheduleRow>> {
    sqlx::query_as(
        "-- schedules.list
        SELECT kind, cron, cron_override, time_zone, window_secs, window_override, catch_up, paused, next_at, last_slot_at,
               now() AS now_at
        FROM reeve.schedules ORDER BY kind",
    )
    .fetch_all(pool)
    .await
}

/// Sets these fields, by the names of their columns; null gives the kind's own back. Returns the names of those that were
/// different before. Whoever calls has checked that the cadence can be followed.
pub async fn change(
    pool: &PgPool,
    kind: &str,
    changes: &Map<String, Value>,
    act: Act<'_>,
) -> sqlx::Result<Vec<String>> {
    sqlx::query_scalar("-- schedules.change\nSELECT reeve.change_schedule($1, $2, $3, $4)")
        .bind(kind)
        .bind(sqlx::types::Json(changes))
        .bind(act.actor)
        .bind(act.reason)
        .fetch_one(pool)
        .await
}

/// Whether it was otherwise before.
pub async fn pause(pool: &PgPool, kind: &str, pause: bool, act: Act<'_>) -> sqlx::Result<bool> {
    sqlx::query_scalar("-- schedules.pause\nSELECT reeve.pause_schedule($1, $2, $3, $4)")
        .bind(kind)
        .bind(pause)
        .bind(act.actor)
        .bind(act.reason)
        .fetch_one(pool)
        .await
}

/// Makes jobs now, outside the cadence: of one tenant, or of all that may work. Returns how many.
pub async fn run(pool: &PgPool, kind: &str, tenant: Option<&TenantId>, act: Act<'_>) -> sqlx::Result<i64> {
    sqlx::query_scalar("-- schedules.run\nSELECT reeve.run_schedule($1, $2, $3, $4)")
        .bind(kind)
        .bind(tenant.map(TenantId::as_str))
        .bind(act.actor)
        .bind(act.reason)
        .fetch_one(pool)
        .await
}

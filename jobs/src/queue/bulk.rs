//! Bulk operations: retry, cancel or move all jobs that match a filter. All logic is in `migrations/0023_bulk.sql`.
//!
//! Operators preview, start, watch and stop; the scheduler calls [`step`] until nothing is left. An operation is durable, and
//! goes on from its cursor after a crash of either.
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::{PgPool, Row, postgres::PgRow};
use uuid::Uuid;

use super::operate::Act;
use crate::{job::State, tenant::TenantId};

/// What is done to each job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bulk {
    /// A fresh set of attempts, now.
    Retry,
    /// Cancelled; running ones are asked to stop.
    Cancel,
    /// Another place in the order: jobs that wait get this priority, this time, or both.
    Move(Target),
}

/// Where to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<i16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_at: Option<DateTime<Utc>>,
}

impl Bulk {
    fn word(&self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Cancel => "cancel",
            Self::Move(_) => "move",
        }
    }

    fn target(&self) -> serde_json::Result<serde_json::Value> {
        match self {
            Self::Move(target) => serde_json::to_value(target),
            Self::Retry | Self::Cancel => Ok(serde_json::json!({})),
        }
    }
}

/// Which jobs: all that is given must hold. At least one must be given; the database refuses an empty one.
#[derive(Debug, Clone, Default, Serialize)]
pub struct BulkFilter {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<TenantId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<State>,
    /// Made before this time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<DateTime<Utc>>,
}

/// So many jobs of one tenant, kind and state would be changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Matched {
    pub tenant: String,
    pub kind: String,
    pub state: String,
    pub jobs: i64,
}

/// An operation, and how far it has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Operation {
    pub id: Uuid,
    pub act: String,
    pub filter: serde_json::Value,
    pub target: serde_json::Value,
    pub actor: String,
    pub reason: String,
    /// `running`, `done` or `stopped`.
    pub state: String,
    /// Jobs that matched when it began.
    pub matched: i64,
    pub changed: i64,
    pub started_at: DateTime<Utc>,
    pub ended_at: Option<DateTime<Utc>>,
}

/// What a step did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    pub operation: Uuid,
    pub changed: i64,
    /// Nothing is left of this operation.
    pub ended: bool,
}

fn json<T: Serialize>(value: &T) -> sqlx::Result<serde_json::Value> {
    serde_json::to_value(value).map_err(|error| sqlx::Error::Encode(Box::new(error)))
}

fn target(bulk: &Bulk) -> sqlx::Result<serde_json::Value> {
    bulk.target().map_err(|error| sqlx::Error::Encode(Box::new(error)))
}

/// Counts what would be changed, and changes nothing.
pub async fn preview(pool: &PgPool, bulk: &Bulk, filter: &BulkFilter) -> sqlx::Result<Vec<Matched>> {
    let rows = sqlx::query("-- bulk.preview\nSELECT tenant_id, kind, state, jobs FROM reeve.bulk_preview($1, $2, $3)")
        .bind(bulk.word())
        .bind(json(filter)?)
        .bind(target(bulk)?)
        .fetch_all(pool)
        .await?;
    let one = |row: &PgRow| {
        Ok(Matched { tenant: row.try_get(0)?, kind: row.try_get(1)?, state: row.try_get(2)?, jobs: row.try_get(3)? })
    };
    rows.iter().map(one).collect()
}

/// Makes the operation. The scheduler does it.
pub async fn start(pool: &PgPool, bulk: &Bulk, filter: &BulkFilter, act: Act<'_>) -> sqlx::Result<Uuid> {
    sqlx::query_scalar("-- bulk.start\nSELECT reeve.bulk_start($1, $2, $3, $4, $5)")
        .bind(bulk.word())
        .bind(json(filter)?)
        .bind(target(bulk)?)
        .bind(act.actor)
        .bind(act.reason)
        .fetch_one(pool)
        .await
}

/// Ends it before its time. Its former state, or `None` when there is no such operation.
pub async fn stop(pool: &PgPool, operation: Uuid, act: Act<'_>) -> sqlx::Result<Option<String>> {
    sqlx::query_scalar("-- bulk.stop\nSELECT reeve.bulk_stop($1, $2, $3)")
        .bind(operation)
        .bind(act.actor)
        .bind(act.reason)
        .fetch_one(pool)
        .await
}

/// The newest operations first, or the one asked for.
pub async fn list(pool: &PgPool, operation: Option<Uuid>, limit: i64) -> sqlx::Result<Vec<Operation>> {
    let rows = sqlx::query(
        "-- bulk.list
        SELECT o.id, o.act, o.filter, o.target, o.actor, o.reason, o.state, o.matched, o.changed, o.started_at, o.ended_at
        FROM reeve.bulk_operations o WHERE $1::uuid IS NULL OR o.id = $1 ORDER BY o.id DESC LIMIT $2",
    )
    .bind(operation)
    .bind(limit)
    .fetch_all(pool)
    .await?;
    let one = |row: &PgRow| {
        Ok(Operation {
            id: row.try_get("id")?,
            act: row.try_get("act")?,
            filter: row.try_get("filter")?,
            target: row.try_get("target")?,
            actor: row.try_get("actor")?,
            reason: row.try_get("reason")?,
            state: row.try_get("state")?,
            matched: row.try_get("matched")?,
            changed: row.try_get("changed")?,
            started_at: row.try_get("started_at")?,
            ended_at: row.try_get("ended_at")?,
        })
    };
    rows.iter().map(one).collect()
}

/// The next step of the oldest operation that no other scheduler is at, looking at up to `window` jobs. `None`: nothing to do.
pub async fn step(pool: &PgPool, window: i32) -> sqlx::Result<Option<Step>> {
    let row = sqlx::query("-- bulk.step\nSELECT operation, changed, ended FROM reeve.bulk_step($1)")
        .bind(window)
        .fetch_optional(pool)
        .await?;
    row.map(|row| Ok(Step { operation: row.try_get(0)?, changed: row.try_get(1)?, ended: row.try_get(2)? })).transpose()
}

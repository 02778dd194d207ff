//! How long history is kept, and the erasure of a person from jobs. All logic is in `migrations/0024_history.sql`; this runs as
//! `reeve_ops`.
//!
//! A subject is personal data: it goes to the database as a parameter and is neither answered nor part of an error. Not here:
//! enqueueing about a subject, which is the app's ([`crate::client::enqueue_about`]), and the pruning, which is the
//! scheduler's.
use serde::Serialize;
use sqlx::{PgPool, Row};

use super::operate::Act;
use crate::{redact::Redacted, tenant::TenantId};

/// What an erasure came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Erased {
    /// Jobs that waited, and never run now.
    pub cancelled: i64,
    /// Parked and finished jobs that lost payload, error, dedupe key and trace.
    pub redacted: i64,
    /// Jobs that were asked to stop and have their payload until they have: to be erased again when they are over.
    pub running: i64,
}

/// History that is kept shorter than the scheduler's own time; of several rules the shortest holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Rule {
    /// `*` is every tenant.
    pub tenant: String,
    /// `*` is every kind.
    pub kind: String,
    pub keep_days: i32,
}

const ALL: &str = "*";

/// Takes a person out of a tenant's jobs. Safe to repeat, and to be repeated while [`Erased::running`] is not 0.
pub async fn erase_subject(
    pool: &PgPool,
    tenant: &TenantId,
    subject: &Redacted<String>,
    act: Act<'_>,
) -> sqlx::Result<Erased> {
    let row = sqlx::query(
        "-- history.erase_subject
        SELECT cancelled, redacted, running FROM reeve.erase_subject($1, $2, $3, $4)",
    )
    .bind(tenant.as_str())
    .bind(subject.reveal())
    .bind(act.actor)
    .bind(act.reason)
    .fetch_one(pool)
    .await?;
    Ok(Erased { cancelled: row.try_get(0)?, redacted: row.try_get(1)?, running: row.try_get(2)? })
}

/// Sets a rule, or with `None` days takes it away; `None` is every tenant, or every kind.
pub async fn keep(
    pool: &PgPool,
    tenant: Option<&TenantId>,
    kind: Option<&str>,
    days: Option<i32>,
    act: Act<'_>,
) -> sqlx::Result<()> {
    sqlx::query("-- history.keep\nSELECT reeve.keep_history($1, $2, $3, $4, $5)")
        .bind(tenant.map_or(ALL, TenantId::as_str))
        .bind(kind.unwrap_or(ALL))
        .bind(days)
        .bind(act.actor)
        .bind(act.reason)
        .execute(pool)
        .await
        .map(drop)
}

pub async fn rules(pool: &PgPool) -> sqlx::Result<Vec<Rule>> {
    let rows = sqlx::query(
        "-- history.rules\nSELECT tenant_id, kind, keep_days FROM reeve.history_rules ORDER BY tenant_id, kind",
    )
    .fetch_all(pool)
    .await?;
    rows.iter()
        .map(|row| Ok(Rule { tenant: row.try_get(0)?, kind: row.try_get(1)?, keep_days: row.try_get(2)? }))
        .collect()
}

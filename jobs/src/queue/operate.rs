//! What operators do to jobs: calls of the audited functions in `migrations/0010_queue_upkeep.sql`, which hold all logic.
//!
//! Each act and its audit entry commit together. A refusal is a database error with a code `RV…`; see
//! [`crate::client::EnqueueError`].
use sqlx::PgPool;

use crate::{
    job::{JobId, State},
    kinds::Kind,
    tenant::TenantId,
};

/// Who acts, and why. Both go to the audit log.
#[derive(Debug, Clone, Copy)]
pub struct Act<'a> {
    pub actor: &'a str,
    pub reason: &'a str,
}

/// Enqueues one job for a tenant, without any of its transactions.
pub async fn enqueue(
    pool: &PgPool,
    tenant: &TenantId,
    kind: Kind,
    payload: &serde_json::Value,
    act: Act<'_>,
) -> sqlx::Result<JobId> {
    sqlx::query_scalar("-- operate.enqueue\nSELECT reeve.ops_enqueue($1, $2, $3, $4, $5)")
        .bind(tenant.as_str())
        .bind(kind.name())
        .bind(payload)
        .bind(act.actor)
        .bind(act.reason)
        .fetch_one(pool)
        .await
}

/// Gives a parked or waiting job a fresh set of attempts, now. Its former state, or `None` when no live job has this id.
pub async fn retry(pool: &PgPool, job: JobId, act: Act<'_>) -> sqlx::Result<Option<State>> {
    former(
        sqlx::query_scalar("-- operate.retry\nSELECT reeve.retry_job($1, $2, $3)")
            .bind(job)
            .bind(act.actor)
            .bind(act.reason)
            .fetch_one(pool)
            .await?,
    )
}

/// Cancels a job; a running one is asked to stop. Its former state, or `None` when no live job has this id.
pub async fn cancel(pool: &PgPool, job: JobId, act: Act<'_>) -> sqlx::Result<Option<State>> {
    former(
        sqlx::query_scalar("-- operate.cancel\nSELECT reeve.cancel_job($1, $2, $3)")
            .bind(job)
            .bind(act.actor)
            .bind(act.reason)
            .fetch_one(pool)
            .await?,
    )
}

fn former(state: Option<String>) -> sqlx::Result<Option<State>> {
    state.map(|word| word.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))).transpose()
}

//! Enqueueing from Rust, inside the caller's own transaction: the job exists if and only if the caller commits.
//!
//! This is a thin typed form of the SQL functions `reeve.enqueue`, `reeve.enqueue_about`, `reeve.enqueue_many` and `reeve.emit`, which apps in
//! other languages call directly. The tenant is the transaction's context (`reeve.tenant_id`, or the app's own setting);
//! nothing here can name another.
use chrono::{DateTime, Utc};
use sqlx::{PgConnection, Row};

use crate::{job::JobId, kinds::Payload, tenant::TenantId};

/// Why an enqueue was refused. The transaction is aborted by PostgreSQL, so nothing of it was done.
#[derive(Debug, thiserror::Error)]
pub enum EnqueueError {
    /// `reeve.enqueue` refused: no context, another tenant, unknown kind, bad argument (codes RV001 to RV008).
    #[error("{message}{}", hint.as_deref().map(|h| format!(" ({h})")).unwrap_or_default())]
    Refused { code: String, message: String, hint: Option<String> },
    #[error("the payload of {kind} could not be written as JSON: {source}")]
    Payload { kind: &'static str, source: serde_json::Error },
    #[error(transparent)]
    Database(sqlx::Error),
}

impl From<sqlx::Error> for EnqueueError {
    fn from(error: sqlx::Error) -> Self {
        if let Some(db) = error.as_database_error()
            && let Some(code) = db.code().filter(|code| code.starts_with("RV"))
        {
            let hint =
                db.try_downcast_ref::<sqlx::postgres::PgDatabaseError>().and_then(|pg| pg.hint()).map(str::to_owned);
            return Self::Refused { code: code.into_owned(), message: db.message().to_owned(), hint };
        }
        Self::Database(error)
    }
}

/// How a job is to be enqueued; `Enqueue::default()` is "now, as its kind says".
#[derive(Debug, Clone, Default)]
pub struct Enqueue {
    /// At most one live job of this tenant and kind has this key; enqueueing again returns that job's id.
    pub dedupe_key: Option<String>,
    pub run_at: Option<DateTime<Utc>>,
    /// 1 (first) to 4 (last).
    pub priority: Option<i16>,
    /// W3C trace context of the caller.
    pub traceparent: Option<String>,
}

/// Makes a transaction speak for a tenant: what an app does first in each of its transactions.
pub async fn set_tenant(tx: &mut PgConnection, tenant: &TenantId) -> sqlx::Result<()> {
    sqlx::query("-- client.set_tenant\nSELECT set_config('reeve.tenant_id', $1, true)")
        .bind(tenant.as_str())
        .execute(tx)
        .await
        .map(drop)
}

/// Enqueues one job for the transaction's tenant.
pub async fn enqueue<P: Payload>(tx: &mut PgConnection, payload: &P, how: &Enqueue) -> Result<JobId, EnqueueError> {
    let kind = P::KIND.name();
    let payload = serde_json::to_value(payload).map_err(|source| EnqueueError::Payload { kind, source })?;
    let id = sqlx::query_scalar(
        "-- client.enqueue\nSELECT reeve.enqueue($1, $2, dedupe_key => $3, run_at => $4, priority => $5, traceparent => $6)",
    )
    .bind(kind)
    .bind(payload)
    .bind(how.dedupe_key.as_deref())
    .bind(how.run_at)
    .bind(how.priority.map(i32::from))
    .bind(how.traceparent.as_deref())
    .fetch_one(tx)
    .await?;
    Ok(JobId(id))
}

/// [`enqueue`], of a job about a subject: the app's own id of a person, say. Whoever erases the subject later
/// (`reeve jobs erase-subject`) reaches this job by it, whatever has become of it; what is stored is a keyed hash. On a live
/// job with the same dedupe key, that job is about the subject as well from then on.
pub async fn enqueue_about<P: Payload>(
    tx: &mut PgConnection,
    subject: &str,
    payload: &P,
    how: &Enqueue,
) -> Result<JobId, EnqueueError> {
    let kind = P::KIND.name();
    let payload = serde_json::to_value(payload).map_err(|source| EnqueueError::Payload { kind, source })?;
    let id = sqlx::query_scalar(
        "-- client.enqueue_about
        SELECT reeve.enqueue_about($1, $2, $3, dedupe_key => $4, run_at => $5, priority => $6, traceparent => $7)",
    )
    .bind(subject)
    .bind(kind)
    .bind(payload)
    .bind(how.dedupe_key.as_deref())
    .bind(how.run_at)
    .bind(how.priority.map(i32::from))
    .bind(how.traceparent.as_deref())
    .fetch_one(tx)
    .await?;
    Ok(JobId(id))
}

/// Enqueues one job in a transaction of its own, in one round trip: for callers that have nothing else to commit.
pub async fn enqueue_alone<P: Payload>(
    pool: &sqlx::PgPool,
    tenant: &TenantId,
    payload: &P,
) -> Result<JobId, EnqueueError> {
    let kind = P::KIND.name();
    let payload = serde_json::to_value(payload).map_err(|source| EnqueueError::Payload { kind, source })?;
    // MATERIALIZED: the context is set before the function that needs it is called.
    let id = sqlx::query_scalar(
        "-- client.enqueue_alone
        WITH context AS MATERIALIZED (SELECT set_config('reeve.tenant_id', $1, true) AS tenant)
        SELECT reeve.enqueue($2, $3, tenant_id => context.tenant) FROM context",
    )
    .bind(tenant.as_str())
    .bind(kind)
    .bind(payload)
    .fetch_one(pool)
    .await?;
    Ok(JobId(id))
}

/// Enqueues many jobs of one kind in one statement. Returns an id for each, in order.
pub async fn enqueue_many<P: Payload>(tx: &mut PgConnection, payloads: &[P]) -> Result<Vec<JobId>, EnqueueError> {
    let kind = P::KIND.name();
    let jobs: Vec<_> = payloads.iter().map(|payload| serde_json::json!({"kind": kind, "payload": payload})).collect();
    let rows = sqlx::query("-- client.enqueue_many\nSELECT id FROM reeve.enqueue_many($1) AS e (id)")
        .bind(serde_json::Value::Array(jobs))
        .fetch_all(tx)
        .await?;
    rows.iter().map(|row| Ok(JobId(row.try_get(0)?))).collect()
}

/// Emits a webhook event for the transaction's tenant: one delivery per endpoint that wants it. Returns the `webhook-id`.
pub async fn emit(
    tx: &mut PgConnection,
    event_type: &str,
    payload: &serde_json::Value,
) -> Result<String, EnqueueError> {
    Ok(sqlx::query_scalar("-- client.emit\nSELECT reeve.emit($1, $2)")
        .bind(event_type)
        .bind(payload)
        .fetch_one(tx)
        .await?)
}

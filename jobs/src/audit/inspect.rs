//! Reading the audit log as operators do: search, and the rows that [`super::verify`] judges.
//!
//! Runs as `reeve_ops`, whose policy lets it read every tenant's entries. Nothing here writes but
//! [`store_checkpoint`], [`erase_body`] and [`prune`], each through its function in `migrations/0011_audit_chain.sql`.
use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{PgConnection, PgPool, Row};
use uuid::Uuid;

use super::{
    chain::Hash,
    keyed::{AuditKey, Checkpoint},
};
use crate::queue::operate::Act;

/// Which entries are meant; an empty filter means all. All of it must hold.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// `-` is the platform itself.
    pub tenant: Option<String>,
    pub actor: Option<String>,
    /// A whole action, or with a dot at its end all that begin so (`endpoint.`).
    pub action: Option<String>,
    pub target: Option<String>,
    pub since: Option<DateTime<Utc>>,
    /// Not included.
    pub until: Option<DateTime<Utc>>,
    pub trace_id: Option<String>,
}

/// One entry.
#[derive(Debug, Clone, Serialize, sqlx::FromRow)]
pub struct Found {
    #[sqlx(rename = "tenant_id")]
    pub tenant: String,
    pub seq: i64,
    pub at: DateTime<Utc>,
    pub class: String,
    pub actor: String,
    pub action: String,
    pub target: String,
    /// `None` also when it was erased; then `erased` is set.
    pub reason: Option<String>,
    pub fields: Vec<String>,
    pub erased: bool,
    pub job_id: Option<Uuid>,
    pub attempt: Option<i32>,
    pub trace_id: Option<String>,
    /// In hexadecimal.
    pub source_ip_hash: Option<String>,
}

const SEARCH: &str = r"-- audit.search
SELECT l.tenant_id, l.seq, l.at, l.class, l.actor, l.action, l.target, b.reason, coalesce(b.fields, '{}') AS fields,
       b.seq IS NULL AND l.body_hash IS NOT NULL AS erased, l.job_id, l.attempt, l.trace_id,
       encode(l.source_ip_hash, 'hex') AS source_ip_hash
FROM reeve.audit_log l LEFT JOIN reeve.audit_bodies b ON b.tenant_id = l.tenant_id AND b.seq = l.seq
WHERE ($1::text IS NULL OR l.tenant_id = $1) AND ($2::text IS NULL OR l.actor = $2)
  AND ($3::text IS NULL OR l.action = $3 OR ($3 LIKE '%.' AND starts_with(l.action, $3)))
  AND ($4::text IS NULL OR l.target = $4) AND ($5::timestamptz IS NULL OR l.at >= $5)
  AND ($6::timestamptz IS NULL OR l.at < $6) AND ($7::text IS NULL OR l.trace_id = $7)
ORDER BY l.at DESC, l.tenant_id, l.seq DESC LIMIT $8";

/// The newest first.
pub async fn search(pool: &PgPool, filter: &Filter, limit: i64) -> sqlx::Result<Vec<Found>> {
    sqlx::query_as(SEARCH)
        .bind(filter.tenant.as_deref())
        .bind(filter.actor.as_deref())
        .bind(filter.action.as_deref())
        .bind(filter.target.as_deref())
        .bind(filter.since)
        .bind(filter.until)
        .bind(filter.trace_id.as_deref())
        .bind(limit)
        // Planned anew each time: a generic plan could not leave out the parts of the filter that are not set.
        .persistent(false)
        .fetch_all(pool)
        .await
}

/// One look at all of the log, however long it takes: readers see neither half a pruning nor an entry without its head.
pub async fn snapshot(pool: &PgPool) -> sqlx::Result<sqlx::Transaction<'static, sqlx::Postgres>> {
    pool.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await
}

/// All who have anything of a chain.
pub async fn tenants(connection: &mut PgConnection) -> sqlx::Result<Vec<String>> {
    sqlx::query_scalar(
        "-- audit.tenants
        SELECT h.tenant_id FROM reeve.audit_heads h UNION SELECT l.tenant_id FROM reeve.audit_log l
        UNION SELECT s.tenant_id FROM reeve.audit_stubs s UNION SELECT c.tenant_id FROM reeve.audit_checkpoints c ORDER BY 1",
    )
    .fetch_all(connection)
    .await
}

/// An entry or a stub, as it is stored.
#[derive(Debug, Clone, sqlx::FromRow)]
pub(super) struct Stored {
    pub seq: i64,
    pub at: DateTime<Utc>,
    pub class: String,
    pub hash: Vec<u8>,
    /// Set on stubs only; what follows, on entries only.
    pub content: Option<Vec<u8>>,
    pub actor: Option<String>,
    pub action: Option<String>,
    pub target: Option<String>,
    pub job_id: Option<Uuid>,
    pub attempt: Option<i32>,
    pub trace_id: Option<String>,
    pub source_ip_hash: Option<Vec<u8>>,
    pub body_hash: Option<Vec<u8>>,
    pub salt: Option<Vec<u8>>,
    pub reason: Option<String>,
    pub fields: Option<Vec<String>>,
}

const CHAIN: &str = "-- audit.chain
SELECT * FROM (
  (SELECT l.seq, l.at, l.class, l.hash, NULL::bytea AS content, l.actor, l.action, l.target, l.job_id, l.attempt, l.trace_id,
          l.source_ip_hash, l.body_hash, b.salt, b.reason, b.fields
   FROM reeve.audit_log l LEFT JOIN reeve.audit_bodies b ON b.tenant_id = l.tenant_id AND b.seq = l.seq
   WHERE l.tenant_id = $1 AND l.seq > $2 ORDER BY l.seq LIMIT $3)
  UNION ALL
  (SELECT s.seq, s.at, s.class, s.hash, s.content, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL
   FROM reeve.audit_stubs s WHERE s.tenant_id = $1 AND s.seq > $2 ORDER BY s.seq LIMIT $3)) x
ORDER BY x.seq, x.content NULLS FIRST LIMIT $3";

/// Up to `limit` entries and stubs after `seq`, in order.
pub(super) async fn chain(
    connection: &mut PgConnection,
    tenant: &str,
    seq: i64,
    limit: i64,
) -> sqlx::Result<Vec<Stored>> {
    sqlx::query_as(CHAIN).bind(tenant).bind(seq).bind(limit).fetch_all(connection).await
}

/// A checkpoint with its signature, unjudged.
#[derive(Debug, Clone)]
pub(super) struct Signed {
    pub checkpoint: Checkpoint,
    pub signature: Vec<u8>,
}

pub(super) async fn checkpoints(connection: &mut PgConnection, tenant: &str) -> sqlx::Result<Vec<Signed>> {
    let rows = sqlx::query(
        "-- audit.checkpoints
        SELECT c.from_seq, c.seq, c.hash, c.keeps_until, c.at, c.signature FROM reeve.audit_checkpoints c
        WHERE c.tenant_id = $1 ORDER BY c.seq",
    )
    .bind(tenant)
    .fetch_all(connection)
    .await?;
    rows.iter()
        .map(|row| {
            let hash: Vec<u8> = row.try_get("hash")?;
            Ok(Signed {
                checkpoint: Checkpoint {
                    from_seq: row.try_get("from_seq")?,
                    seq: row.try_get("seq")?,
                    // Of another length it equals no entry's hash, and its signature fails.
                    hash: Hash::try_from(hash).unwrap_or_default(),
                    keeps_until: row.try_get("keeps_until")?,
                    at: row.try_get("at")?,
                },
                signature: row.try_get("signature")?,
            })
        })
        .collect()
}

/// Number and hash of the last entry, as the head has them, and the database's time.
pub(super) async fn head(
    connection: &mut PgConnection,
    tenant: &str,
) -> sqlx::Result<(Option<(i64, Vec<u8>)>, DateTime<Utc>)> {
    let row = sqlx::query(
        "-- audit.head
        SELECT now() AS now, h.seq, h.hash FROM (SELECT) one LEFT JOIN reeve.audit_heads h ON h.tenant_id = $1",
    )
    .bind(tenant)
    .fetch_one(connection)
    .await?;
    let seq: Option<i64> = row.try_get("seq")?;
    let hash: Option<Vec<u8>> = row.try_get("hash")?;
    Ok((seq.zip(hash), row.try_get("now")?))
}

/// Signs and stores. Refused with code `RV013` when another signer was faster, or the entry has another hash.
pub async fn store_checkpoint(
    pool: &PgPool,
    tenant: &str,
    checkpoint: &Checkpoint,
    key: &AuditKey,
) -> sqlx::Result<()> {
    sqlx::query("-- audit.checkpoint\nSELECT reeve.audit_checkpoint($1, $2, $3, $4, $5, $6, $7)")
        .bind(tenant)
        .bind(checkpoint.from_seq)
        .bind(checkpoint.seq)
        .bind(checkpoint.hash.as_slice())
        .bind(checkpoint.keeps_until)
        .bind(checkpoint.at)
        .bind(key.sign(tenant, checkpoint).as_slice())
        .execute(pool)
        .await?;
    Ok(())
}

/// Erases reason and fields of one entry, which is audited. `false` when it has none.
pub async fn erase_body(pool: &PgPool, tenant: &str, seq: i64, act: Act<'_>) -> sqlx::Result<bool> {
    sqlx::query_scalar("-- audit.erase_body\nSELECT reeve.audit_erase_body($1, $2, $3, $4)")
        .bind(tenant)
        .bind(seq)
        .bind(act.actor)
        .bind(act.reason)
        .fetch_one(pool)
        .await
}

/// One batch of pruning: entries that became stubs, and stubs that went.
pub async fn prune(pool: &PgPool, batch: i32) -> sqlx::Result<(i64, i64)> {
    sqlx::query_as("-- audit.prune\nSELECT pruned, stubs_dropped FROM reeve.audit_prune($1)")
        .bind(batch)
        .fetch_one(pool)
        .await
}

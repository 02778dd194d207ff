//! Signing the ends of chains that have grown, with as little read as that takes: what came after the last checkpoint.
//!
//! Runs as `reeve_scheduler`, through the functions of `migrations/0019_audit_signing.sql`, which show hashes and no text.
//! From the last checkpoint, whose own signature must verify, each link is hashed anew up to the head. A chain that does
//! not hold is not signed: that would vouch for it. What lies before the last checkpoint is not read again; that is
//! [`super::verify`], which judges all of it, bodies included.
use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool, Row, postgres::PgRow};

use super::{
    chain::{Hash, START, kept, link},
    inspect,
    keyed::{AuditKey, Checkpoint},
    verify::Broken,
};

/// Links a look.
const PAGE: i32 = 5_000;

/// A few tenants whose chains have grown, judged.
#[derive(Debug, Default)]
pub struct Moved {
    /// To be signed.
    pub next: Vec<(String, Checkpoint)>,
    /// Not to be signed.
    pub broken: Vec<(String, Broken)>,
    /// Where to go on; `None` when there is no more.
    pub after: Option<String>,
}

/// Judges up to `n` tenants after `after` ('' is before all) whose log has grown since their last checkpoint.
pub async fn moved(pool: &PgPool, key: &AuditKey, after: &str, n: i32) -> sqlx::Result<Moved> {
    // One look: an entry that another signer covers and a pruner removes meanwhile is not missed here.
    let mut look = inspect::snapshot(pool).await?;
    let rows = sqlx::query("-- audit.moved\nSELECT now() AS now, m.* FROM reeve.audit_moved($1, $2) m")
        .bind(after)
        .bind(n)
        .fetch_all(&mut *look)
        .await?;
    let mut moved = Moved::default();
    for row in &rows {
        let tenant: String = row.try_get("tenant")?;
        match judge(&mut look, &tenant, row, key).await? {
            Ok(next) => moved.next.push((tenant.clone(), next)),
            Err(broken) => moved.broken.push((tenant.clone(), broken)),
        }
        moved.after = Some(tenant);
    }
    if rows.len() < usize::try_from(n).unwrap_or(0) {
        moved.after = None;
    }
    look.rollback().await?;
    Ok(moved)
}

fn broken(seq: i64, why: impl Into<String>) -> Broken {
    Broken { seq, why: why.into() }
}

/// The last checkpoint: its number and hash, or the start; refused when it is not this key's.
fn start(tenant: &str, row: &PgRow, key: &AuditKey) -> sqlx::Result<Result<(i64, Hash), Broken>> {
    let Some(seq) = row.try_get::<Option<i64>, _>("last_seq")? else { return Ok(Ok((0, START))) };
    let (hash, signature): (Vec<u8>, Vec<u8>) = (row.try_get("last_hash")?, row.try_get("last_signature")?);
    let hash = Hash::try_from(hash).unwrap_or_default();
    let last = Checkpoint {
        from_seq: row.try_get("last_from_seq")?,
        seq,
        hash,
        keeps_until: row.try_get("last_keeps_until")?,
        at: row.try_get("last_at")?,
    };
    if key.signed(tenant, &last, &signature) {
        return Ok(Ok((seq, hash)));
    }
    Ok(Err(broken(seq, "the last checkpoint's signature does not verify: it was changed, or signed with another key")))
}

async fn judge(
    look: &mut PgConnection,
    tenant: &str,
    row: &PgRow,
    key: &AuditKey,
) -> sqlx::Result<Result<Checkpoint, Broken>> {
    let (head_seq, head_hash): (i64, Vec<u8>) = (row.try_get("head_seq")?, row.try_get("head_hash")?);
    let (from_seq, mut hash) = match start(tenant, row, key)? {
        Ok(start) => start,
        Err(broken) => return Ok(Err(broken)),
    };
    let (mut seq, mut keeps_until) = (from_seq, Some(DateTime::UNIX_EPOCH));
    if head_seq < from_seq {
        let why = format!("the end was cut off: a checkpoint has entry {from_seq}, the head is at {head_seq}");
        return Ok(Err(broken(head_seq + 1, why)));
    }
    while seq < head_seq {
        let rows = sqlx::query("-- audit.links\nSELECT * FROM reeve.audit_links($1, $2, $3)")
            .bind(tenant)
            .bind(seq)
            .bind(PAGE)
            .fetch_all(&mut *look)
            .await?;
        if rows.is_empty() {
            return Ok(Err(broken(seq + 1, format!("the end was cut off: the head is at {head_seq}"))));
        }
        for row in &rows {
            let (found, at, class): (i64, DateTime<Utc>, String) =
                (row.try_get("seq")?, row.try_get("at")?, row.try_get("class")?);
            if found != seq + 1 {
                return Ok(Err(broken(seq + 1, "the entry is missing")));
            }
            let content: Vec<u8> = row.try_get("content")?;
            hash = link(&hash, tenant, found, at, &class, &content);
            if row.try_get::<Vec<u8>, _>("hash")? != hash {
                return Ok(Err(broken(found, "its hash does not follow from what it says and the entry before it")));
            }
            seq = found;
            keeps_until = keeps_until.zip(kept(&class).map(|keep| at + keep)).map(|(a, b)| a.max(b));
        }
    }
    if head_seq != seq || head_hash != hash {
        return Ok(Err(broken(seq, format!("the head is at {head_seq} with another hash than the log's end"))));
    }
    Ok(Ok(Checkpoint { from_seq, seq, hash, keeps_until, at: row.try_get("now")? }))
}

/// Stores a checkpoint. `false`: another signer was faster, and nothing is lost.
pub async fn store(pool: &PgPool, tenant: &str, checkpoint: &Checkpoint, key: &AuditKey) -> sqlx::Result<bool> {
    match inspect::store_checkpoint(pool, tenant, checkpoint, key).await {
        Ok(()) => Ok(true),
        // RV013: it is not the next any more. An entry that has another hash now is found by the next run.
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("RV013") => Ok(false),
        Err(error) => Err(error),
    }
}

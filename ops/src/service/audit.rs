//! The audit log as operators see it: judged, searched, signed. All SQL and hashing is in `reeve_jobs::audit`.
use reeve_jobs::audit::{
    AuditKey,
    inspect::{self, Filter, Found},
    verify::{Report, verify_all},
};
use serde::Serialize;
use sqlx::PgPool;

use super::ServiceError;

/// What was signed, or why nothing was.
#[derive(Debug, Serialize)]
pub struct Signed {
    pub tenant: String,
    /// The last entry that is signed now; 0 for none.
    pub seq: i64,
    /// Of that entry, in hexadecimal; `None` when this run signed nothing of the tenant.
    pub hash: Option<String>,
    /// In hexadecimal.
    pub signature: Option<String>,
    /// A broken chain is not signed.
    pub broken: Option<String>,
}

/// Judges all chains, or one. Without a key no signature is checked.
pub async fn verify(pool: &PgPool, tenant: Option<&str>, key: Option<&AuditKey>) -> Result<Vec<Report>, ServiceError> {
    let mut look = inspect::snapshot(pool).await?;
    let judged = verify_all(&mut look, tenant, key).await?;
    Ok(judged.into_values().map(|(report, _)| report).collect())
}

/// Judges all chains, or one, and signs the ends of those that hold and have grown.
pub async fn checkpoint(pool: &PgPool, tenant: Option<&str>, key: &AuditKey) -> Result<Vec<Signed>, ServiceError> {
    let mut look = inspect::snapshot(pool).await?;
    let judged = verify_all(&mut look, tenant, Some(key)).await?;
    look.rollback().await?;
    let mut all = Vec::new();
    for (tenant, (report, next)) in judged {
        let mut signed = Signed { tenant, seq: report.signed_to, hash: None, signature: None, broken: None };
        if let Some(broken) = report.broken {
            signed.broken = Some(format!("entry {}: {}", broken.seq, broken.why));
        } else if let Some(next) = next {
            inspect::store_checkpoint(pool, &signed.tenant, &next, key).await?;
            signed.seq = next.seq;
            signed.hash = Some(hex(&next.hash));
            signed.signature = Some(hex(&key.sign(&signed.tenant, &next)));
        }
        all.push(signed);
    }
    Ok(all)
}

pub async fn search(pool: &PgPool, filter: &Filter, limit: i64) -> Result<Vec<Found>, ServiceError> {
    Ok(inspect::search(pool, filter, limit).await?)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

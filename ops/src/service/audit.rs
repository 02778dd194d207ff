//! The audit log as operators see it: judged, searched, signed. All SQL and hashing is in `reeve_jobs::audit`.
use std::path::Path;

use reeve_jobs::audit::{
    AuditKey,
    inspect::{self, Filter, Found},
    shipped::{self, Shipped, Witness},
    verify::{Report, verify_all, verify_all_against},
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

/// Judges all chains, or one, against checkpoints that were kept outside as well. Without a key no signature is checked.
pub async fn verify(
    pool: &PgPool,
    tenant: Option<&str>,
    key: Option<&AuditKey>,
    witness: &Witness,
) -> Result<Vec<Report>, ServiceError> {
    let mut look = inspect::snapshot(pool).await?;
    let judged = verify_all_against(&mut look, tenant, key, witness).await?;
    Ok(judged.into_values().map(|(report, _)| report).collect())
}

/// Judges all chains, or one, and signs the ends of those that hold and have grown. What is signed goes to the file first:
/// what is stored is then always there too.
pub async fn checkpoint(
    pool: &PgPool,
    tenant: Option<&str>,
    key: &AuditKey,
    file: Option<&Path>,
) -> Result<Vec<Signed>, ServiceError> {
    let mut look = inspect::snapshot(pool).await?;
    let judged = verify_all(&mut look, tenant, Some(key)).await?;
    look.rollback().await?;
    if let Some(file) = file {
        let sign = |(tenant, (_, next)): (&String, &(Report, _))| {
            Option::as_ref(next).map(|next| Shipped::sign(tenant, next, key))
        };
        let signed: Vec<_> = judged.iter().filter_map(sign).collect();
        shipped::append(file, &signed)
            .map_err(|source| ServiceError::Append { file: file.display().to_string(), source })?;
    }
    let mut all = Vec::new();
    for (tenant, (report, next)) in judged {
        let mut signed = Signed { tenant, seq: report.signed_to, hash: None, signature: None, broken: None };
        if let Some(broken) = report.broken {
            signed.broken = Some(format!("entry {}: {}", broken.seq, broken.why));
        } else if let Some(next) = next {
            inspect::store_checkpoint(pool, &signed.tenant, &next, key).await?;
            let Shipped { seq, hash, signature, .. } = Shipped::sign(&signed.tenant, &next, key);
            (signed.seq, signed.hash, signed.signature) = (seq, Some(hash), Some(signature));
        }
        all.push(signed);
    }
    Ok(all)
}

pub async fn search(pool: &PgPool, filter: &Filter, limit: i64) -> Result<Vec<Found>, ServiceError> {
    Ok(inspect::search(pool, filter, limit).await?)
}

//! Signs the ends of the audit chains that have grown, so that what was written before can no longer be rewritten unseen.
//!
//! Only where the audit key is configured: whoever has it can make a checkpoint of anything. What is signed is appended to a
//! file first, if one is configured, and then stored: so whatever the database has was out of its reach before, and a log
//! that is cut together with its checkpoints is found (`reeve audit verify --checkpoints`). A chain that does not hold is
//! told in the log, each run anew, and left unsigned. Two schedulers may sign at a time: the database takes the first, and
//! what the other appended is as true. What each entry says is not seen here, only its hash.
use std::path::{Path, PathBuf};

use reeve_jobs::audit::{
    AuditKey,
    shipped::{self, Shipped},
    sign,
};
use sqlx::PgPool;

use crate::service::{Service, ServiceError};

/// Tenants a look, and lines a write to the file.
pub const BATCH: i32 = 200;

/// What one run did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Signed {
    pub stored: u64,
    /// Another scheduler was faster.
    pub outrun: u64,
    /// Tenants whose chain does not hold.
    pub broken: Vec<String>,
}

/// Signs all that has grown since its last checkpoint.
pub async fn run_once(pool: &PgPool, key: &AuditKey, file: Option<&Path>) -> Result<Signed, ServiceError> {
    run_batches(pool, key, file, BATCH).await
}

/// [`run_once`] with `batch` tenants a look.
pub(crate) async fn run_batches(
    pool: &PgPool,
    key: &AuditKey,
    file: Option<&Path>,
    batch: i32,
) -> Result<Signed, ServiceError> {
    let mut signed = Signed::default();
    let mut after = Some(String::new());
    while let Some(from) = after {
        let moved = sign::moved(pool, key, &from, batch).await?;
        for (tenant, broken) in moved.broken {
            tracing::error!(
                tenant,
                seq = broken.seq,
                why = broken.why,
                "audit chain does not hold and was not signed; see `reeve audit verify`"
            );
            signed.broken.push(tenant);
        }
        if let Some(file) = file.filter(|_| !moved.next.is_empty()) {
            let lines: Vec<_> = moved.next.iter().map(|(tenant, next)| Shipped::sign(tenant, next, key)).collect();
            append(file, lines).await?;
        }
        for (tenant, next) in &moved.next {
            let is_stored = sign::store(pool, tenant, next, key).await?;
            *(if is_stored { &mut signed.stored } else { &mut signed.outrun }) += 1;
        }
        after = moved.after;
    }
    Ok(signed)
}

/// Waits for the disk on a thread of its own.
async fn append(file: &Path, lines: Vec<Shipped>) -> Result<(), ServiceError> {
    let path = file.to_owned();
    let appended = tokio::task::spawn_blocking(move || shipped::append(&path, &lines)).await;
    // The other error is a panic or the end of the runtime.
    appended
        .map_err(std::io::Error::other)
        .flatten()
        .map_err(|source| ServiceError::Append { file: file.display().to_string(), source })
}

/// The loop's form of [`run_once`].
#[derive(Debug, Clone)]
pub struct Signer {
    pub key: AuditKey,
    pub file: Option<PathBuf>,
}

impl Service for Signer {
    const NAME: &'static str = "signer";

    async fn run(&mut self, pool: &PgPool) -> Result<(), ServiceError> {
        let signed = run_once(pool, &self.key, self.file.as_deref()).await?;
        if signed != Signed::default() {
            let broken = signed.broken.len();
            tracing::info!(stored = signed.stored, outrun = signed.outrun, broken, "audit chains signed");
        }
        Ok(())
    }
}

//! Keeps the queue's tables small: makes and drops the day partitions of history, moves parked jobs that nobody looked at
//! to history, drops old attempt records; and the audit log's, by its own classes and never past a checkpoint.
//!
//! Partitions come first, so that parked jobs fall into today's and not into the default one. Rows that did fall there
//! (nobody made partitions for days) are deleted by the same rule by which a day is dropped. All of it is safe to repeat
//! and to run in many schedulers at a time. Data of duties is not touched here: their own jobs prune it.
use reeve_jobs::audit;
use sqlx::{PgPool, Row};

use crate::{
    config::Config,
    service::{Service, ServiceError},
};

/// Rows a statement, of each table: locks and dead rows in small portions.
pub const BATCH: i32 = 1000;

/// What is kept, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    pub history_days: i32,
    pub history_days_ahead: i32,
    pub parked_days: i32,
    pub attempt_days: i32,
}

impl From<&Config> for Keep {
    fn from(config: &Config) -> Self {
        Self {
            history_days: config.history_keep_days,
            history_days_ahead: config.history_days_ahead,
            parked_days: config.parked_keep_days,
            attempt_days: config.attempt_keep_days,
        }
    }
}

/// What one run did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pruned {
    pub partitions_made: u64,
    pub partitions_dropped: u64,
    /// Rows of the default partition past their time.
    pub stray_history: u64,
    /// Dead and quarantined jobs that became history.
    pub parked: u64,
    pub attempts: u64,
    /// Rows of history past a shorter time of their tenant or kind.
    pub history: u64,
    /// Subjects of jobs that are gone.
    pub subjects: u64,
    /// Reports of progress whose lease is over.
    pub progress: u64,
    /// Audit entries of which only their hashes are kept, and hashes that went with their checkpoint.
    pub audit_entries: u64,
    pub audit_stubs: u64,
}

/// Does the upkeep and prunes all that is past its time.
pub async fn run_once(pool: &PgPool, keep: &Keep) -> sqlx::Result<Pruned> {
    run_batches(pool, keep, BATCH).await
}

/// [`run_once`] with `batch` rows a statement: each is its own transaction, until one comes back not full.
pub(crate) async fn run_batches(pool: &PgPool, keep: &Keep, batch: i32) -> sqlx::Result<Pruned> {
    let row = sqlx::query("-- pruner.upkeep\nSELECT made, dropped FROM reeve.history_upkeep($1, $2)")
        .bind(keep.history_days_ahead)
        .bind(keep.history_days)
        .fetch_one(pool)
        .await?;
    let (made, dropped): (i32, i32) = (row.try_get(0)?, row.try_get(1)?);
    let mut pruned = Pruned {
        partitions_made: u64::from(made.unsigned_abs()),
        partitions_dropped: u64::from(dropped.unsigned_abs()),
        ..Pruned::default()
    };
    let full = u64::from(batch.unsigned_abs());
    loop {
        let row = sqlx::query("-- pruner.prune\nSELECT parked, attempts FROM reeve.prune($1, $2, $3)")
            .bind(keep.parked_days)
            .bind(keep.attempt_days)
            .bind(batch)
            .fetch_one(pool)
            .await?;
        let (parked, attempts) = (count(&row, 0)?, count(&row, 1)?);
        pruned.parked += parked;
        pruned.attempts += attempts;
        if parked < full && attempts < full {
            break;
        }
    }
    loop {
        let row = sqlx::query("-- pruner.stray_history\nSELECT reeve.prune_stray_history($1, $2)")
            .bind(keep.history_days)
            .bind(batch)
            .fetch_one(pool)
            .await?;
        let strays = count(&row, 0)?;
        pruned.stray_history += strays;
        if strays < full {
            break;
        }
    }
    over(pool, batch, &mut pruned).await?;
    loop {
        let (entries, stubs) = audit::inspect::prune(pool, batch).await?;
        pruned.audit_entries += entries.unsigned_abs();
        pruned.audit_stubs += stubs.unsigned_abs();
        if (entries, stubs) == (0, 0) {
            return Ok(pruned);
        }
    }
}

/// History past a shorter time of its own, subjects of jobs that are gone, reports of leases that are over.
async fn over(pool: &PgPool, batch: i32, pruned: &mut Pruned) -> sqlx::Result<()> {
    let full = u64::from(batch.unsigned_abs());
    loop {
        let row = sqlx::query("-- pruner.history\nSELECT reeve.prune_history($1), reeve.prune_subjects($1)")
            .bind(batch)
            .fetch_one(pool)
            .await?;
        let (rows, subjects) = (count(&row, 0)?, count(&row, 1)?);
        pruned.history += rows;
        pruned.subjects += subjects;
        if rows < full && subjects < full {
            break;
        }
    }
    loop {
        let row =
            sqlx::query("-- pruner.progress\nSELECT reeve.prune_progress($1)").bind(batch).fetch_one(pool).await?;
        let reports = count(&row, 0)?;
        pruned.progress += reports;
        if reports < full {
            return Ok(());
        }
    }
}

fn count(row: &sqlx::postgres::PgRow, column: usize) -> sqlx::Result<u64> {
    row.try_get(column).map(i64::unsigned_abs)
}

/// The loop's form of [`run_once`].
#[derive(Debug, Clone, Copy)]
pub struct Pruner {
    pub keep: Keep,
}

impl Service for Pruner {
    const NAME: &'static str = "pruner";

    async fn run(&mut self, pool: &PgPool) -> Result<(), ServiceError> {
        let pruned = run_once(pool, &self.keep).await?;
        if pruned != Pruned::default() {
            tracing::info!(
                partitions_made = pruned.partitions_made,
                partitions_dropped = pruned.partitions_dropped,
                stray_history = pruned.stray_history,
                parked = pruned.parked,
                attempts = pruned.attempts,
                history = pruned.history,
                subjects = pruned.subjects,
                progress = pruned.progress,
                audit_entries = pruned.audit_entries,
                audit_stubs = pruned.audit_stubs,
                "upkeep done"
            );
        }
        Ok(())
    }
}

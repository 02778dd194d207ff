//! Makes waiting jobs available when their time has come: those with a `run_at`, those that retry, those of a slot.
//!
//! `reeve.promote` takes due rows `FOR UPDATE SKIP LOCKED`, moves them, and rings for workers that sleep. Any number of
//! schedulers may do so at a time; each row is moved by one of them. Whether a tenant is paused or closed is not asked
//! here: the claim decides that, when a worker has a place.
use sqlx::PgPool;

use crate::service::{Service, ServiceError};

/// Jobs a statement: some milliseconds of locks, and few enough round trips after a long downtime.
pub const BATCH: i32 = 1000;

/// Promotes all that is due. Returns how many jobs became available.
pub async fn run_once(pool: &PgPool) -> sqlx::Result<u64> {
    run_batches(pool, BATCH).await
}

/// [`run_once`] with `batch` jobs a statement: each is its own transaction, until one comes back not full.
pub(crate) async fn run_batches(pool: &PgPool, batch: i32) -> sqlx::Result<u64> {
    let mut total = 0;
    loop {
        let moved: i32 =
            sqlx::query_scalar("-- promoter.promote\nSELECT reeve.promote($1)").bind(batch).fetch_one(pool).await?;
        total += u64::from(moved.unsigned_abs());
        if moved < batch {
            return Ok(total);
        }
    }
}

/// The loop's form of [`run_once`].
#[derive(Debug, Clone, Copy, Default)]
pub struct Promoter;

impl Service for Promoter {
    const NAME: &'static str = "promoter";

    async fn run(&mut self, pool: &PgPool) -> Result<(), ServiceError> {
        let moved = run_once(pool).await?;
        if moved > 0 {
            tracing::debug!(moved, "jobs made available");
        }
        Ok(())
    }
}

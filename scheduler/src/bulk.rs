//! Works through bulk operations: retries, cancels or moves all jobs that match an operator's filter.
//!
//! Each step is one transaction over a bounded window of jobs (`migrations/0023_bulk.sql`), so a scheduler that is killed
//! loses at most the step it was in, and any other goes on. It knows neither kinds nor tenants: the operation's row says all.
use reeve_jobs::queue::bulk;
use sqlx::PgPool;

use crate::service::{Service, ServiceError};

/// Jobs that a step looks at: some tens of milliseconds of locks.
pub const WINDOW: i32 = 1000;

/// Does all there is to do. Returns how many jobs it changed.
pub async fn run_once(pool: &PgPool) -> sqlx::Result<u64> {
    let mut changed = 0;
    while let Some(step) = bulk::step(pool, WINDOW).await? {
        changed += step.changed.unsigned_abs();
        if step.ended {
            tracing::info!(operation = %step.operation, "bulk operation done");
        }
    }
    Ok(changed)
}

/// The loop's form of [`run_once`].
#[derive(Debug, Clone, Copy, Default)]
pub struct BulkRunner;

impl Service for BulkRunner {
    const NAME: &'static str = "bulk runner";

    async fn run(&mut self, pool: &PgPool) -> Result<(), ServiceError> {
        Ok(run_once(pool).await.map(drop)?)
    }
}

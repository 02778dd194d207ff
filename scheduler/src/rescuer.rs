//! Takes back jobs whose lease ran out: their worker crashed, hung, or lost the database.
//!
//! `reeve.rescue` records the lost attempt and makes the job available again. Three leases lost without one settlement
//! put it in quarantine, with the workers' names as evidence and an audit entry, so that a job that kills its worker does
//! not kill the fleet one by one. One whose attempts are used up is dead; one that was to be cancelled is cancelled. A
//! worker that comes back late finds its lease token gone, and its settlement changes nothing.
//!
//! Whether a lease has run out is decided on the database's clock, so a scheduler's own cannot steal work.
use sqlx::{PgPool, Row};

use crate::service::{Service, ServiceError};

/// Jobs a statement; each costs some row writes of its own.
pub const BATCH: i32 = 500;

/// What became of the jobs of one run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rescued {
    pub available: u64,
    pub dead: u64,
    pub quarantined: u64,
    pub cancelled: u64,
}

/// Rescues all whose lease has run out.
pub async fn run_once(pool: &PgPool) -> sqlx::Result<Rescued> {
    run_batches(pool, BATCH).await
}

/// [`run_once`] with `batch` jobs a statement: each is its own transaction, until one comes back not full.
pub(crate) async fn run_batches(pool: &PgPool, batch: i32) -> sqlx::Result<Rescued> {
    let mut rescued = Rescued::default();
    loop {
        let rows =
            sqlx::query("-- rescuer.rescue\nSELECT id::text, tenant_id, kind, state, worker FROM reeve.rescue($1)")
                .bind(batch)
                .fetch_all(pool)
                .await?;
        for row in &rows {
            let (id, tenant, kind): (&str, &str, &str) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
            let (state, worker): (&str, Option<&str>) = (row.try_get(3)?, row.try_get(4)?);
            let count = match state {
                "available" => &mut rescued.available,
                "dead" => &mut rescued.dead,
                "quarantined" => &mut rescued.quarantined,
                _ => &mut rescued.cancelled,
            };
            *count += 1;
            if state == "quarantined" {
                tracing::error!(job = id, tenant, kind, worker, "job quarantined: its lease expired three times");
            } else {
                tracing::warn!(job = id, tenant, kind, worker, state, "lease expired without a settlement");
            }
        }
        if rows.len() < usize::try_from(batch).unwrap_or(usize::MAX) {
            return Ok(rescued);
        }
    }
}

/// The loop's form of [`run_once`].
#[derive(Debug, Clone, Copy, Default)]
pub struct Rescuer;

impl Service for Rescuer {
    const NAME: &'static str = "rescuer";

    async fn run(&mut self, pool: &PgPool) -> Result<(), ServiceError> {
        Ok(run_once(pool).await.map(drop)?)
    }
}

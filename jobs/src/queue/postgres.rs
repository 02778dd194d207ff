//! The queue on PostgreSQL: calls of the functions in `migrations/0006_queue.sql`, which hold all logic.
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use sqlx::{PgPool, Row, postgres::PgRow, types::Json};
use tokio::time::Instant;

use super::{
    Claim, Lane, Queue, QueueError, Renewed, Report, Settlement,
    marks::{Marks, Served},
};
use crate::{
    job::{ClaimedJob, JobId, LeaseToken},
    tenant::{Proof, TenantId},
};

/// See the module's head. Clones share the pool and the marks.
#[derive(Debug, Clone)]
pub struct PostgresQueue {
    pool: PgPool,
    marks: Arc<Mutex<HashMap<Lane, Marks>>>,
}

impl PostgresQueue {
    pub fn new(pool: PgPool) -> Self {
        Self { pool, marks: Arc::default() }
    }

    pub fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// Whether the lane's next claim will go by its marks, if it comes soon.
    #[cfg(feature = "testing")]
    pub fn is_marked(&self, lane: &Lane) -> bool {
        self.marks().get(lane).is_some_and(|marks| marks.hint("", Instant::now(), 1).is_some())
    }

    fn marks(&self) -> MutexGuard<'_, HashMap<Lane, Marks>> {
        // Half a mark is a hint as good as another.
        self.marks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn claimed(row: &PgRow, id: JobId, lease_token: LeaseToken) -> sqlx::Result<ClaimedJob> {
    let tenant: &str = row.try_get(1)?;
    Ok(ClaimedJob {
        id,
        tenant: tenant.parse::<TenantId>().map_err(|e| sqlx::Error::Decode(Box::new(e)))?,
        kind: row.try_get(2)?,
        payload: row.try_get(3)?,
        attempt: row.try_get(4)?,
        attempts_max: row.try_get(5)?,
        rescues: row.try_get(6)?,
        traceparent: row.try_get(7)?,
        lease_token,
        proof: Proof::new(row.try_get(9)?),
        urgent: row.try_get(10)?,
    })
}

impl PostgresQueue {
    /// Claims those of these jobs that are ready in this lane and may start, at most `limit`, under the rules of a claim.
    /// What an id says of itself counts for nothing.
    pub async fn take_up(
        &self,
        lane: &Lane,
        ids: &[JobId],
        limit: usize,
        worker: &str,
        lease: Duration,
    ) -> Result<Claim, QueueError> {
        let rows = sqlx::query("-- queue.take_up\nSELECT * FROM reeve.take_up($1, $2, $3, $4, $5, $6)")
            .bind(&lane.queue)
            .bind(&lane.region)
            .bind(ids.iter().map(|id| id.0).collect::<Vec<_>>())
            .bind(i32::try_from(limit).unwrap_or(i32::MAX))
            .bind(worker)
            .bind(lease.as_secs_f64())
            .fetch_all(&self.pool)
            .await?;
        read(&rows)
    }
}

/// A claim's rows, and its last one, if it has one.
fn read(rows: &[PgRow]) -> Result<Claim, QueueError> {
    let mut claim = Claim { jobs: Vec::with_capacity(rows.len()), ..Claim::default() };
    for row in rows {
        let Some(id) = row.try_get::<Option<JobId>, _>(0)? else {
            claim.cursor = row.try_get(1)?;
            claim.more = row.try_get::<i32, _>(4)? == 1;
            continue;
        };
        let token = row.try_get(8)?;
        // One job that cannot be read must not take the rest of its batch with it: they are claimed already.
        match claimed(row, id, token) {
            Ok(job) => claim.jobs.push(job),
            Err(error) => claim.broken.push(Settlement {
                job: id,
                token,
                outcome: "dead",
                delay: Duration::ZERO,
                error: Some(format!("the job cannot be read: {error}")),
            }),
        }
    }
    Ok(claim)
}

/// What a claim spent on looking for jobs and, where it passed by much, whom it served; by its last row.
fn looking(rows: &[PgRow]) -> (Duration, Option<Served>) {
    let micros = rows.last().and_then(|row| row.try_get::<Option<i32>, _>(6).ok()?);
    let served = rows.last().and_then(|row| row.try_get::<Option<Json<Served>>, _>(3).ok()?);
    let micros = micros.and_then(|micros| u64::try_from(micros).ok()).unwrap_or(0);
    (Duration::from_micros(micros), served.map(|Json(served)| served))
}

impl PostgresQueue {
    /// One claim, by the lane's marks where it has any that hold. `None`: by marks, and in vain.
    async fn claim_once(
        &self,
        lane: &Lane,
        limit: usize,
        worker: &str,
        cursor: &str,
        lease: Duration,
    ) -> Result<Option<Claim>, QueueError> {
        let hint = self.marks().entry(lane.clone()).or_default().hint(cursor, Instant::now(), limit);
        let by_hint = hint.is_some();
        let (known, since) = hint.unzip();
        let rows = sqlx::query("-- queue.claim\nSELECT * FROM reeve.claim($1, $2, $3, $4, $5, $6, $7, $8)")
            .bind(&lane.queue)
            .bind(&lane.region)
            .bind(i32::try_from(limit).unwrap_or(i32::MAX))
            .bind(worker)
            .bind(cursor)
            .bind(lease.as_secs_f64())
            .bind(known)
            .bind(since)
            .fetch_all(&self.pool)
            .await?;
        let mut claim = read(&rows)?;
        let got = claim.jobs.len() + claim.broken.len();
        let (looking, served) = looking(&rows);
        if let Some(marks) = self.marks().get_mut(lane) {
            if by_hint {
                marks.went_on(served, got, limit);
                // Others were not looked at.
                claim.more = true;
            } else {
                marks.looked(served, got >= limit, looking, Instant::now());
            }
        }
        Ok((got > 0 || !by_hint).then_some(claim))
    }
}

impl Queue for PostgresQueue {
    async fn claim(
        &self,
        lane: &Lane,
        limit: usize,
        worker: &str,
        cursor: &str,
        lease: Duration,
    ) -> Result<Claim, QueueError> {
        if let Some(claim) = self.claim_once(lane, limit, worker, cursor, lease).await? {
            return Ok(claim);
        }
        // The marks are ended by that: this one looks at everything.
        let claim = self.claim_once(lane, limit, worker, cursor, lease).await?;
        // Marked anew meanwhile, by another claimer of the lane: worth another claim at once.
        Ok(claim.unwrap_or_else(|| Claim { cursor: cursor.to_owned(), more: true, ..Claim::default() }))
    }

    async fn mark_started(&self, job: JobId, token: LeaseToken) -> Result<bool, QueueError> {
        Ok(sqlx::query_scalar("-- queue.mark_started\nSELECT reeve.mark_started($1, $2)")
            .bind(job)
            .bind(token)
            .fetch_one(&self.pool)
            .await?)
    }

    async fn renew(&self, held: &[(JobId, LeaseToken)], lease: Duration) -> Result<Vec<Renewed>, QueueError> {
        let (ids, tokens): (Vec<_>, Vec<_>) = held.iter().map(|(id, token)| (id.0, token.0)).unzip();
        let rows = sqlx::query("-- queue.renew\nSELECT id, cancel_reason FROM reeve.renew($1, $2, $3)")
            .bind(ids)
            .bind(tokens)
            .bind(lease.as_secs_f64())
            .fetch_all(&self.pool)
            .await?;
        rows.iter().map(|row| Ok(Renewed { job: row.try_get(0)?, cancel_reason: row.try_get(1)? })).collect()
    }

    async fn settle(&self, batch: &[Settlement]) -> Result<Vec<JobId>, QueueError> {
        let rows = sqlx::query("-- queue.settle\nSELECT settled FROM reeve.settle($1, $2, $3, $4, $5)")
            .bind(batch.iter().map(|s| s.job.0).collect::<Vec<_>>())
            .bind(batch.iter().map(|s| s.token.0).collect::<Vec<_>>())
            .bind(batch.iter().map(|s| s.outcome).collect::<Vec<_>>())
            .bind(batch.iter().map(|s| s.delay.as_secs_f64()).collect::<Vec<_>>())
            .bind(batch.iter().map(|s| s.error.as_deref()).collect::<Vec<_>>())
            .fetch_all(&self.pool)
            .await?;
        rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
    }

    async fn report(&self, reports: &[Report], over: &[(JobId, LeaseToken)]) -> Result<(), QueueError> {
        let count = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        sqlx::query("-- queue.report\nSELECT reeve.report_progress($1, $2, $3, $4, $5, $6, $7)")
            .bind(reports.iter().map(|r| r.job.0).collect::<Vec<_>>())
            .bind(reports.iter().map(|r| r.token.0).collect::<Vec<_>>())
            .bind(reports.iter().map(|r| r.step).collect::<Vec<_>>())
            .bind(reports.iter().map(|r| count(r.done)).collect::<Vec<_>>())
            .bind(reports.iter().map(|r| r.total.map(count)).collect::<Vec<_>>())
            .bind(over.iter().map(|(job, _)| job.0).collect::<Vec<_>>())
            .bind(over.iter().map(|(_, token)| token.0).collect::<Vec<_>>())
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    async fn wait_for_jobs(&self, lane: &Lane, secs: f64) -> Result<(), QueueError> {
        sqlx::query("-- queue.wait_for_jobs\nSELECT reeve.wait_for_jobs($1, $2, $3)")
            .bind(&lane.queue)
            .bind(&lane.region)
            .bind(secs)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    async fn stop_waiting(&self, lane: &Lane) -> Result<(), QueueError> {
        sqlx::query("-- queue.stop_waiting\nSELECT reeve.stop_waiting($1, $2)")
            .bind(&lane.queue)
            .bind(&lane.region)
            .execute(&self.pool)
            .await?;
        Ok(())
    }
}

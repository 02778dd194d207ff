//! Drain with a simulated clock: runs every job of the test's database until none is left that could run.
//!
//! Jobs go through the real `reeve.claim`, `reeve.promote` and `reeve.settle`, one at a time, so pauses, caps, priorities and
//! attempts count as they would. Where only jobs that are not due are left, time does not pass: every waiting job's
//! `run_at` is moved nearer by what is missing, and that is added to the simulated clock. Leases do not run out here, no
//! schedule fires, and rate limits stay those of the real clock.
use std::{collections::BTreeMap, future::Future, time::Duration};

use sqlx::{PgPool, Row};

use super::TestDatabase;
use crate::{
    job::{ClaimedJob, Outcome},
    queue::{Lane, PostgresQueue, Queue, Settlement},
    tenant::TenantContext,
};

const LEASE: Duration = Duration::from_secs(3_600);

/// How far a drain goes. `Drain::default()` will do for most tests.
#[derive(Debug, Clone)]
pub struct Drain {
    /// Attempts, at most: a job that always makes another ends here. One more is a panic.
    pub attempts_max: usize,
    /// Jobs that are due later than this, on the simulated clock, are left.
    pub span: Duration,
    /// The wait before a retry whose outcome names none.
    pub retry_after: Duration,
}

impl Default for Drain {
    fn default() -> Self {
        Self { attempts_max: 1_000, span: Duration::from_secs(7 * 86_400), retry_after: Duration::from_secs(10) }
    }
}

/// What a drain did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Drained {
    /// Attempts by how they ended, in the words of [`Outcome::as_str`].
    pub outcomes: BTreeMap<&'static str, usize>,
    /// What the simulated clock went on by.
    pub passed: Duration,
    /// Live jobs that were left: due after the span, paused, or capped to nothing.
    pub left: usize,
}

impl Drain {
    /// Runs all jobs with `handler` until none is left.
    ///
    /// ```
    /// use reeve_jobs::{Outcome, Payload, client, kinds::ProbeFleet, testing::{self, Drain, TestDatabase}};
    /// # testing::block_on(async {
    /// let db = TestDatabase::new().await;
    /// let acme = db.tenant("acme").await;
    /// client::enqueue_alone(&db.pool("reeve_app").await, &acme, &ProbeFleet::default()).await.unwrap();
    /// let drained = Drain::default()
    ///     .run(&db, async |job, _context| match job.attempt {
    ///         1 => Outcome::retry("not yet"),
    ///         _ => Outcome::Done,
    ///     })
    ///     .await;
    /// assert_eq!((drained.outcomes["retry"], drained.outcomes["completed"], drained.left), (1, 1, 0));
    /// assert!(drained.passed.as_secs() >= 9, "the retry was due ten seconds later, and nobody waited for it");
    /// # db.drop_now().await;
    /// # });
    /// ```
    ///
    /// # Panics
    /// When the database fails, or more than `attempts_max` attempts are made.
    pub async fn run<F: Future<Output = Outcome>>(
        &self,
        db: &TestDatabase,
        mut handler: impl FnMut(ClaimedJob, TenantContext) -> F,
    ) -> Drained {
        let queue = PostgresQueue::new(db.pool("reeve_worker").await);
        let mut drained = Drained::default();
        let mut attempts = 0;
        loop {
            promote(&db.admin).await;
            let mut ran = false;
            for lane in lanes(&db.admin).await {
                while let Some(job) = claim_one(&queue, &lane).await {
                    ran = true;
                    attempts += 1;
                    assert!(
                        attempts <= self.attempts_max,
                        "the drain made {} attempts and is not done",
                        self.attempts_max
                    );
                    let context = TenantContext {
                        tenant: job.tenant.clone(),
                        region: lane.region.as_str().into(),
                        job: Some(job.id),
                        proof: job.proof.clone(),
                    };
                    let outcome = handler(job.clone(), context).await;
                    *drained.outcomes.entry(outcome.as_str()).or_default() += 1;
                    self.settle(&queue, &job, &outcome).await;
                }
            }
            if !ran && !skip(&db.admin, self.span, &mut drained.passed).await {
                break;
            }
        }
        drained.left = live(&db.admin).await;
        drained
    }

    async fn settle(&self, queue: &PostgresQueue, job: &ClaimedJob, outcome: &Outcome) {
        let delay = match outcome {
            Outcome::Retry { after: Some(after), .. } | Outcome::Snooze { after, .. } => *after,
            Outcome::Retry { after: None, .. } => self.retry_after,
            _ => Duration::ZERO,
        };
        let settlement = Settlement {
            job: job.id,
            token: job.lease_token,
            outcome: outcome.as_str(),
            delay,
            error: outcome.why().map(str::to_owned),
        };
        let settled = queue.settle(&[settlement]).await.expect("the settlement is stored");
        assert_eq!(settled, [job.id], "the job's lease was taken away while it ran");
    }
}

async fn claim_one(queue: &PostgresQueue, lane: &Lane) -> Option<ClaimedJob> {
    let mut cursor = String::new();
    // Each claim that finds nothing and has not looked at everybody goes on behind those it looked at.
    for _ in 0..10_000 {
        let claim = queue.claim(lane, 1, "drain", &cursor, LEASE).await.expect("a claim");
        if !claim.broken.is_empty() {
            queue.settle(&claim.broken).await.expect("the settlement is stored");
        } else if let Some(job) = claim.jobs.into_iter().next() {
            return Some(job);
        } else if !claim.more {
            return None;
        }
        cursor = claim.cursor;
    }
    None
}

async fn promote(admin: &PgPool) {
    loop {
        let moved: i32 = sqlx::query_scalar("-- testing.promote\nSELECT reeve.promote(1000)")
            .fetch_one(admin)
            .await
            .expect("due jobs are promoted");
        if moved < 1000 {
            return;
        }
    }
}

async fn lanes(admin: &PgPool) -> Vec<Lane> {
    let rows = sqlx::query(
        "-- testing.lanes\nSELECT DISTINCT queue, region FROM reeve.jobs WHERE state = 'available' ORDER BY 1, 2",
    )
    .fetch_all(admin)
    .await
    .expect("lanes");
    rows.iter().map(|row| Lane { queue: row.get(0), region: row.get(1) }).collect()
}

/// Moves all waiting jobs nearer, so that the first is due. False when none waits, or only beyond the span.
async fn skip(admin: &PgPool, span: Duration, passed: &mut Duration) -> bool {
    let left = span.saturating_sub(*passed).as_secs_f64();
    let gap: Option<f64> = sqlx::query_scalar(
        "-- testing.skip
        WITH first AS (
          SELECT extract(epoch FROM min(j.run_at) - now())::double precision AS gap FROM reeve.jobs j
          WHERE j.state IN ('scheduled', 'retryable')),
        moved AS (
          UPDATE reeve.jobs j SET run_at = j.run_at - make_interval(secs => f.gap) FROM first f
          WHERE j.state IN ('scheduled', 'retryable') AND f.gap <= $1 RETURNING 1)
        SELECT f.gap FROM first f WHERE f.gap <= $1 AND (SELECT count(*) FROM moved) > 0",
    )
    .bind(left)
    .fetch_optional(admin)
    .await
    .expect("waiting jobs are moved")
    .flatten();
    if let Some(gap) = gap {
        *passed += Duration::from_secs_f64(gap.max(0.0));
    }
    gap.is_some()
}

async fn live(admin: &PgPool) -> usize {
    let live: i64 = sqlx::query_scalar(
        "-- testing.live\nSELECT count(*) FROM reeve.jobs WHERE state IN ('scheduled', 'available', 'running', 'retryable')",
    )
    .fetch_one(admin)
    .await
    .expect("a count");
    usize::try_from(live).unwrap_or_default()
}

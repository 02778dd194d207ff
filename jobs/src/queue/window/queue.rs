//! The queue on PostgreSQL, with a window in Redis before its claims.
//!
//! A claim pops ids and takes them up ([`PostgresQueue::take_up`]), and again where most of them were stale. Where that
//! brings less than half of what was wanted, the rest is claimed in PostgreSQL; and [`DIRECT_EVERY`] so often a lane is claimed past its window, so that whoever is not in
//! there waits no longer, whatever the relay does or whoever wrote into Redis. All else is PostgreSQL's alone.
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use super::Link;
use crate::{
    job::{JobId, LeaseToken},
    queue::{Claim, Lane, PostgresQueue, Queue, QueueError, Renewed, Report, Settlement},
};

/// A lane's claims look past the window this often.
pub const DIRECT_EVERY: Duration = Duration::from_secs(1);

/// A claim asks its window so often, at most.
const POPS_MAX: usize = 4;

/// See the module's head. Without a link it is [`PostgresQueue`] and nothing else.
#[derive(Debug, Clone)]
pub struct WindowedQueue {
    postgres: PostgresQueue,
    link: Option<Link>,
    /// When each lane was last claimed past its window.
    direct: Arc<Mutex<HashMap<Lane, Instant>>>,
    direct_every: Duration,
    taken_up: Arc<AtomicU64>,
}

impl WindowedQueue {
    pub fn new(postgres: PostgresQueue, link: Option<Link>) -> Self {
        Self { postgres, link, direct: Arc::default(), direct_every: DIRECT_EVERY, taken_up: Arc::default() }
    }

    /// In place of [`DIRECT_EVERY`].
    pub fn direct_every(self, direct_every: Duration) -> Self {
        Self { direct_every, ..self }
    }

    /// How many jobs came by the window so far, of all clones together.
    pub fn taken_up(&self) -> u64 {
        self.taken_up.load(Ordering::Relaxed)
    }

    /// Whether this lane's turn past the window has come; then it is taken to be used.
    fn is_direct(&self, lane: &Lane) -> bool {
        let mut direct = self.direct.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        match direct.get_mut(lane) {
            Some(last) if now.duration_since(*last) < self.direct_every => false,
            Some(last) => {
                *last = now;
                true
            }
            None => {
                direct.insert(lane.clone(), now);
                false
            }
        }
    }

    /// What the window brings: at most `limit` jobs. Ids that were claimed past it are found stale here, and are gone then;
    /// so it is asked again before the rest is claimed past it, which would make the next ones stale.
    async fn take_up(&self, lane: &Lane, limit: usize, worker: &str, lease: Duration) -> Result<Claim, QueueError> {
        let mut claim = Claim::default();
        let Some(link) = self.link.as_ref().filter(|_| !self.is_direct(lane)) else { return Ok(claim) };
        for _ in 0..POPS_MAX {
            let missing = limit - claim.jobs.len() - claim.broken.len();
            let ids = link.pop(lane, missing).await;
            if ids.is_empty() {
                break;
            }
            match self.postgres.take_up(lane, &ids, missing, worker, lease).await {
                Ok(more) => {
                    self.taken_up.fetch_add((more.jobs.len() + more.broken.len()) as u64, Ordering::Relaxed);
                    claim.append(more);
                }
                Err(error) if claim.is_empty() => return Err(error),
                // What was taken up before is held already, and is to be run.
                Err(error) => {
                    tracing::debug!(%error, "the rest of a claim failed");
                    break;
                }
            }
            if is_enough(&claim, limit) {
                break;
            }
        }
        Ok(claim)
    }
}

/// Half of it: for less than that another step would cost as much as it brings.
fn is_enough(claim: &Claim, limit: usize) -> bool {
    (claim.jobs.len() + claim.broken.len()) * 2 >= limit
}

impl Queue for WindowedQueue {
    async fn claim(
        &self,
        lane: &Lane,
        limit: usize,
        worker: &str,
        cursor: &str,
        lease: Duration,
    ) -> Result<Claim, QueueError> {
        let mut claim = self.take_up(lane, limit, worker, lease).await?;
        claim.cursor = cursor.to_owned();
        if is_enough(&claim, limit) {
            return Ok(claim);
        }
        let missing = limit - claim.jobs.len() - claim.broken.len();
        match self.postgres.claim(lane, missing, worker, cursor, lease).await {
            Ok(rest) => claim.append(rest),
            Err(error) if claim.is_empty() => return Err(error),
            Err(error) => tracing::debug!(%error, "the rest of a claim failed"),
        }
        Ok(claim)
    }

    async fn mark_started(&self, job: JobId, token: LeaseToken) -> Result<bool, QueueError> {
        self.postgres.mark_started(job, token).await
    }

    async fn renew(&self, held: &[(JobId, LeaseToken)], lease: Duration) -> Result<Vec<Renewed>, QueueError> {
        self.postgres.renew(held, lease).await
    }

    async fn settle(&self, batch: &[Settlement]) -> Result<Vec<JobId>, QueueError> {
        self.postgres.settle(batch).await
    }

    async fn report(&self, reports: &[Report], over: &[(JobId, LeaseToken)]) -> Result<(), QueueError> {
        self.postgres.report(reports, over).await
    }

    async fn wait_for_jobs(&self, lane: &Lane, secs: f64) -> Result<(), QueueError> {
        self.postgres.wait_for_jobs(lane, secs).await
    }

    async fn stop_waiting(&self, lane: &Lane) -> Result<(), QueueError> {
        self.postgres.stop_waiting(lane).await
    }
}

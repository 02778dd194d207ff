//! What this process holds: one entry per claimed job, renewed together by one statement, apart from the jobs' own work.
//!
//! A lease is short (30 s) and renewed every quarter of it; how long a job may run is its kind's budget and another
//! matter. When a renewal shows that a lease was taken away, or none succeeded in time, the job is told to stop before
//! anybody else may start it. Whatever it still does, its settlement is refused: the token is stale.
use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use reeve_jobs::{
    job::{ClaimedJob, JobId, LeaseToken},
    queue::{Queue, Report},
};
use tokio_util::sync::CancellationToken;

use super::progress::Progress;

/// Why a running job was told to stop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// The lease was taken away or could not be renewed: nothing may be recorded.
    LeaseLost,
    /// An operator asked for it.
    Cancelled(String),
    /// The process shuts down and waits no longer: the job goes back.
    Shutdown,
}

/// The running job's end of its lease.
#[derive(Debug, Clone)]
pub struct Lease {
    pub token: LeaseToken,
    /// What the handler says of how far it has come.
    pub progress: Progress,
    stop: CancellationToken,
    reason: Arc<OnceLock<Stop>>,
}

impl Lease {
    pub(super) fn new(token: LeaseToken) -> Self {
        Self { token, progress: Progress::default(), stop: CancellationToken::new(), reason: Arc::default() }
    }

    /// Resolves when the job must stop, with the first reason given.
    pub async fn stopped(&self) -> Stop {
        self.stop.cancelled().await;
        // Set before the token is cancelled, always.
        self.reason.get().cloned().unwrap_or(Stop::LeaseLost)
    }

    /// The reason, when the job was told to stop already.
    pub fn stop_reason(&self) -> Option<Stop> {
        self.reason.get().cloned()
    }

    fn stop(&self, why: Stop) {
        // A second reason does not replace the first.
        let _ = self.reason.set(why);
        self.stop.cancel();
    }
}

#[derive(Debug)]
struct Held {
    lease: Lease,
    until: Instant,
}

/// All leases of this process. Clones share them.
#[derive(Debug, Clone)]
pub struct Leases {
    held: Arc<Mutex<HashMap<JobId, Held>>>,
    /// Settled jobs of which a report may still be in the database.
    over: Arc<Mutex<Vec<(JobId, LeaseToken)>>>,
    pub duration: Duration,
}

impl Leases {
    pub fn new(duration: Duration) -> Self {
        Self { held: Arc::default(), over: Arc::default(), duration }
    }

    /// Takes up what a claim that began at `begun` brought.
    pub fn hold(&self, jobs: &[ClaimedJob], begun: Instant) -> Vec<Lease> {
        let mut held = self.lock();
        jobs.iter()
            .map(|job| {
                let lease = Lease::new(job.lease_token);
                let before = held.insert(job.id, Held { lease: lease.clone(), until: begun + self.duration });
                // Lost, and claimed again by this very process before a renewal could show it.
                if let Some(before) = before.filter(|before| before.lease.token != job.lease_token) {
                    before.lease.stop(Stop::LeaseLost);
                }
                lease
            })
            .collect()
    }

    /// Lets go of a settled job, unless it was claimed anew in the meantime.
    pub fn release(&self, settled: impl IntoIterator<Item = (JobId, LeaseToken)>) {
        let mut held = self.lock();
        for (job, token) in settled {
            if held.get(&job).is_some_and(|h| h.lease.token == token)
                && let Some(h) = held.remove(&job)
                && h.lease.progress.is_stored()
            {
                self.over.lock().unwrap_or_else(PoisonError::into_inner).push((job, token));
            }
        }
    }

    /// What handlers have said and nobody has stored, and whose reports are to go; both in the order of ids.
    pub(super) fn unreported(&self) -> (Vec<Report>, Vec<(JobId, LeaseToken)>) {
        let report = |(job, h): (&JobId, &Held)| {
            let said = h.lease.progress.news()?;
            Some(Report { job: *job, token: h.lease.token, step: said.step, done: said.done, total: said.total })
        };
        let mut reports: Vec<_> = self.lock().iter().filter_map(report).collect();
        let mut over = self.over.lock().unwrap_or_else(PoisonError::into_inner).clone();
        reports.sort_unstable_by_key(|report| report.job);
        over.sort_unstable_by_key(|(job, _)| *job);
        (reports, over)
    }

    pub(super) fn note_reported(&self, reports: &[Report], over: &[(JobId, LeaseToken)]) {
        let mut still = self.over.lock().unwrap_or_else(PoisonError::into_inner);
        still.retain(|one| !over.contains(one));
        drop(still);
        let held = self.lock();
        let mut settled = Vec::new();
        for Report { job, token, step, done, total } in reports.iter().copied() {
            match held.get(&job).filter(|h| h.lease.token == token) {
                Some(h) => h.lease.progress.note_stored(super::progress::Said { step, done, total }),
                // It settled while its report was under way.
                None => settled.push((job, token)),
            }
        }
        drop(held);
        self.over.lock().unwrap_or_else(PoisonError::into_inner).extend(settled);
    }

    pub fn len(&self) -> usize {
        self.lock().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tells every running job to stop, and why.
    pub fn stop_all(&self, why: &Stop) {
        self.lock().values().for_each(|held| held.lease.stop(why.clone()));
    }

    /// Renews until `done`; a fault of the database is tried again at the next beat.
    pub async fn renew_until(self, queue: impl Queue, done: CancellationToken) {
        let beat = self.duration / 4;
        while done.run_until_cancelled(tokio::time::sleep(beat)).await.is_some() {
            self.renew_once(&queue, beat).await;
        }
    }

    pub async fn renew_once(&self, queue: &impl Queue, patience: Duration) {
        let mut held: Vec<_> = self.lock().iter().map(|(id, h)| (*id, h.lease.token)).collect();
        // In the order in which settlements lock their rows, so that the two do not wait for each other.
        held.sort_unstable_by_key(|(id, _)| *id);
        if held.is_empty() {
            return;
        }
        let begun = Instant::now();
        match tokio::time::timeout(patience, queue.renew(&held, self.duration)).await {
            Ok(Ok(renewed)) => self.note(&held, &renewed, begun),
            Ok(Err(error)) => tracing::warn!(%error, jobs = held.len(), "leases could not be renewed"),
            Err(_) => tracing::warn!(jobs = held.len(), "renewing leases took too long"),
        }
        // A lease that may run out before the next beat is as good as lost: stop before another worker may start.
        let next_beat = Instant::now() + patience;
        for held in self.lock().values().filter(|h| h.until < next_beat) {
            held.lease.stop(Stop::LeaseLost);
        }
    }

    fn note(&self, asked: &[(JobId, LeaseToken)], renewed: &[reeve_jobs::queue::Renewed], begun: Instant) {
        let kept: HashSet<JobId> = renewed.iter().map(|r| r.job).collect();
        let mut held = self.lock();
        for (job, token) in asked {
            let Some(h) = held.get_mut(job).filter(|h| h.lease.token == *token) else { continue };
            if kept.contains(job) {
                h.until = begun + self.duration;
            } else {
                h.lease.stop(Stop::LeaseLost);
            }
        }
        for r in renewed {
            if let (Some(why), Some(h)) = (&r.cancel_reason, held.get(&r.job)) {
                h.lease.stop(Stop::Cancelled(why.clone()));
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<JobId, Held>> {
        // Nothing between lock and unlock can panic half-way through a change.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

//! One attempt, from claim to settle. Read this first.
//!
//! A claimed job runs through these layers, outermost first; each is a function below, and [`layers`] stacks them:
//!
//! 1. `SettleLayer` (in `backend`) stores whatever outcome comes out, fenced by the lease token.
//! 2. [`traced`]: a span around all of it, and the one log line a failure gets.
//! 3. [`while_leased`]: stops the job when its lease is lost, an operator cancels it, or the process must go.
//! 4. [`within_budget`]: stops it when its kind's time is up.
//! 5. [`panic_captured`]: a panic is this job's failure, not the worker's end.
//! 6. [`tenant_asserted`]: the tenant that the job claims exists, lives, and belongs in this region; else it never starts.
//! 7. [`start_marked`]: a job that lost a lease before leaves word that it starts now.
//! 8. [`run`]: decodes the payload and calls the duty, which opens the tenant's `Scope` itself.
//!
//! A handler may run twice for one job (a lease can be lost after the effect and before the settlement), so handlers are
//! idempotent.
use std::{future::Future, panic::AssertUnwindSafe, sync::Arc};

use futures::FutureExt;
use reeve_jobs::{
    job::{ClaimedJob, Outcome},
    kinds::{Kind, Work},
    queue::Queue,
    tenant::{Directory, DirectoryError, FAULT_PAUSE, ScopeError, TenantContext, TenantState},
};
use tracing::Instrument;

use super::{
    lease::{Lease, Stop},
    progress::Progress,
};

/// A claimed job with the lease that lets it run.
#[derive(Debug, Clone)]
pub struct Job {
    pub claimed: Arc<ClaimedJob>,
    pub lease: Lease,
}

impl Job {
    pub fn new(claimed: ClaimedJob, lease: Lease) -> Self {
        Self { claimed: Arc::new(claimed), lease }
    }
}

/// What does the jobs: the worker's duties, or a test's stand-in.
pub trait Handler: Clone + Send + Sync + 'static {
    /// What it says to `progress` is for people to see, and decides nothing.
    fn handle(
        &self,
        job: &ClaimedJob,
        context: TenantContext,
        work: Work,
        progress: &Progress,
    ) -> impl Future<Output = Outcome> + Send;
}

pub async fn traced(job: Job, inner: impl Future<Output = Outcome>) -> Outcome {
    let j = &job.claimed;
    let span =
        tracing::info_span!("attempt", job.id = %j.id, job.kind = j.kind, tenant.id = %j.tenant, attempt = j.attempt);
    async {
        let outcome = inner.await;
        match &outcome {
            Outcome::Done
            | Outcome::Settled
            | Outcome::Release
            | Outcome::Interrupted
            | Outcome::Snooze { .. }
            | Outcome::Cancel { .. } => {
                tracing::debug!(outcome = outcome.as_str(), why = outcome.why());
            }
            Outcome::Retry { why, .. } => tracing::warn!(why, attempts_max = j.attempts_max, "attempt failed"),
            Outcome::Dead { why } | Outcome::Quarantine { why } => {
                tracing::error!(why, outcome = outcome.as_str(), "job parked; an operator should look");
            }
        }
        outcome
    }
    .instrument(span)
    .await
}

pub async fn while_leased(job: Job, inner: impl Future<Output = Outcome>) -> Outcome {
    // Should the lease still be ours after all, either gives the job back; else the fence refuses it.
    let (stop, given_back) = match job.lease.stop_reason() {
        // Told to stop while it stood in the buffer: it never starts.
        Some(stop) => (stop, Outcome::Release),
        None => tokio::select! {
            biased;
            outcome = inner => return outcome,
            stop = job.lease.stopped() => (stop, Outcome::Interrupted),
        },
    };
    match stop {
        Stop::Cancelled(why) => Outcome::Cancel { why },
        Stop::LeaseLost | Stop::Shutdown => given_back,
    }
}

/// A job that lost a lease before may be one that kills its worker, or one that merely stood beside such a one. It says
/// that it starts, so that the rescuer can tell the two apart; jobs in good standing cost no such statement.
pub async fn start_marked(job: Job, inner: impl Future<Output = Outcome>, queue: impl Queue) -> Outcome {
    if job.claimed.rescues > 0 {
        match queue.mark_started(job.claimed.id, job.lease.token).await {
            Ok(true) => {}
            Ok(false) => return Outcome::Release,
            Err(error) => return Outcome::Snooze { why: error.to_string(), after: FAULT_PAUSE },
        }
    }
    inner.await
}

pub async fn within_budget(job: Job, inner: impl Future<Output = Outcome>) -> Outcome {
    // An unknown kind ends in `run` at once; the shortest budget will do.
    let budget =
        job.claimed.kind.parse::<Kind>().map_or(std::time::Duration::from_secs(1), |kind| kind.spec().budget());
    tokio::time::timeout(budget, inner)
        .await
        .unwrap_or_else(|_| Outcome::retry(format!("ran over its budget of {} s", budget.as_secs())))
}

pub async fn panic_captured(_: Job, inner: impl Future<Output = Outcome>) -> Outcome {
    // The message is not kept: it may hold a tenant's data. The panic hook logs the place.
    AssertUnwindSafe(inner).catch_unwind().await.unwrap_or_else(|_| Outcome::retry("the handler panicked"))
}

pub async fn tenant_asserted(
    job: Job,
    inner: impl Future<Output = Outcome>,
    directory: Directory,
    region: Arc<str>,
) -> Outcome {
    let tenant = &job.claimed.tenant;
    match directory.entry(tenant).await {
        Ok(entry) if entry.region != region => Outcome::quarantine(format!(
            "tenant \"{tenant}\" is pinned to region {}, this worker is in {region}",
            entry.region
        )),
        Ok(entry) if entry.state == TenantState::Closed => Outcome::cancel(format!("tenant \"{tenant}\" is closed")),
        Ok(_) => inner.await,
        Err(error @ (DirectoryError::Unknown(_) | DirectoryError::Unreadable { .. } | DirectoryError::NoWay(_))) => {
            Outcome::quarantine(error.to_string())
        }
        // It opens no database.
        Err(error @ DirectoryError::Dedicated(_)) => ScopeError::from(error).into_outcome(),
        // The directory could not be read: no fault of the job's, so it costs no attempt.
        Err(DirectoryError::Database(error)) => {
            Outcome::Snooze { why: format!("tenant directory: {error}"), after: FAULT_PAUSE }
        }
    }
}

/// Undecodable jobs are retried before they die: a newer program may be on its way that knows them.
pub async fn run(handler: impl Handler, job: Job, region: Arc<str>) -> Outcome {
    let j = &*job.claimed;
    let kind: Kind = match j.kind.parse() {
        Ok(kind) => kind,
        Err(unknown) => return Outcome::retry(format!("{unknown}; is this worker older than who enqueued the job?")),
    };
    let work = match kind.decode(j.payload.clone()) {
        Ok(work) => work,
        Err(error) => return Outcome::retry(format!("the payload is not one of {kind}: {error}")),
    };
    let context = TenantContext { tenant: j.tenant.clone(), region, job: Some(j.id), proof: j.proof.clone() };
    handler.handle(j, context, work, &job.lease.progress).await
}

//! Our queue behind apalis' `Backend`: hands buffered jobs to the worker, and settles what comes back.
//!
//! It never reports an error: apalis would end the worker and drop its running jobs. Faults are dealt with in the tasks
//! that meet them (see `claimer`, `settler`, `lease`).
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use apalis_core::{
    backend::{Backend, BackendConfig, finalize::Ephemeral},
    error::BoxDynError,
    task::{Task, builder::TaskBuilder},
    worker::context::WorkerContext,
};
use futures::future::BoxFuture;
use reeve_jobs::{job::Outcome, queue::Queue};
use tokio::{sync::OwnedSemaphorePermit, task::JoinHandle};
use tokio_util::sync::PollSemaphore;
use tower::{Layer, Service};

use super::{attempt::Job, buffer::Buffer, claimer::Claimer, outcome::settlement, settler::Settler};

/// Never constructed: see the module's head.
#[derive(Debug, thiserror::Error)]
pub enum Never {}

enum Phase<Q> {
    Fresh(Box<Claimer<Q>>),
    Running { claimer: JoinHandle<()> },
    Closed,
}

/// One lane of the queue.
pub struct LaneBackend<Q> {
    phase: Phase<Q>,
    buffer: Arc<Buffer>,
    settler: Settler,
    stop: tokio_util::sync::CancellationToken,
}

impl<Q> std::fmt::Debug for LaneBackend<Q> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LaneBackend").finish_non_exhaustive()
    }
}

impl<Q: Queue> LaneBackend<Q> {
    pub fn new(claimer: Claimer<Q>) -> Self {
        let (settler, stop) = (claimer.settler.clone(), claimer.stop.clone());
        Self { phase: Phase::Fresh(Box::new(claimer)), buffer: Arc::default(), settler, stop }
    }

    fn start(&mut self) {
        if let Phase::Fresh(_) = &self.phase
            && let Phase::Fresh(claimer) = std::mem::replace(&mut self.phase, Phase::Closed)
        {
            self.phase = Phase::Running { claimer: tokio::spawn(keep_claiming(*claimer, self.buffer.clone())) };
        }
    }
}

impl<Q> LaneBackend<Q> {
    /// Claims no more, and gives back what never started.
    fn close(&self) {
        self.stop.cancel();
        give_back(self.buffer.close(), &self.settler);
    }
}

fn give_back(jobs: Vec<Job>, settler: &Settler) {
    for job in jobs {
        settler.settle(settlement(&job.claimed, job.lease.token, &Outcome::Release, 0.0), None);
    }
}

/// Runs the claimer until it is told to stop, and then gives back at once what never started, however long running jobs
/// take. A claimer that panics is started again: else its lane would fall silent in a process that looks alive.
async fn keep_claiming<Q: Queue>(claimer: Claimer<Q>, buffer: Arc<Buffer>) {
    let (stop, settler) = (claimer.stop.clone(), claimer.settler.clone());
    while let Err(panic) = tokio::spawn(claimer.clone().run(buffer.clone())).await {
        tracing::error!(%panic, "the claimer ended; starting it again");
        if stop.run_until_cancelled(tokio::time::sleep(std::time::Duration::from_secs(1))).await.is_none() {
            break;
        }
    }
    give_back(buffer.close(), &settler);
}

impl<Q: Queue> Backend for LaneBackend<Q> {
    type Task = Task<Job>;
    type Error = Never;

    fn poll_ready(&mut self, _: &mut Context<'_>, _: &WorkerContext) -> Poll<Result<(), Never>> {
        self.start();
        Poll::Ready(Ok(()))
    }

    fn poll_next(&mut self, cx: &mut Context<'_>, _: &WorkerContext) -> Poll<Option<Result<Self::Task, Never>>> {
        self.buffer.poll_pop(cx).map(|job| Some(Ok(TaskBuilder::new(job).build())))
    }

    /// Nothing runs any more: give back what never started, and let the claimer finish the claim it is in (it gives
    /// back what that brings, for the buffer is closed).
    fn poll_close(&mut self, cx: &mut Context<'_>, _: &WorkerContext) -> Poll<Result<(), Never>> {
        self.close();
        if let Phase::Running { claimer } = &mut self.phase {
            // A panic of the claimer ends it as well; its jobs run again when their leases expire.
            let _ = ready!(Pin::new(claimer).poll(cx));
        }
        self.phase = Phase::Closed;
        Poll::Ready(Ok(()))
    }
}

/// Dropped without a close (the worker's future panicked): free what never started, without waiting for leases.
impl<Q> Drop for LaneBackend<Q> {
    fn drop(&mut self) {
        self.close();
    }
}

impl<Q: Queue> BackendConfig for LaneBackend<Q> {
    type Args = Job;
    type Id = uuid::Uuid;
    /// Tasks pass as they are: no codec of apalis' own.
    type Kind = Ephemeral;
    type Config = ();
    type Layer = SettleLayer;

    fn config(&self) -> &() {
        &()
    }

    /// apalis puts this outside all other layers, so it sees one outcome a job.
    fn middleware(&mut self, _: &mut WorkerContext) -> SettleLayer {
        SettleLayer { settler: self.settler.clone() }
    }
}

/// Sends each outcome to the settler, without keeping the job's slot until it is stored.
#[derive(Debug, Clone)]
pub struct SettleLayer {
    settler: Settler,
}

impl<S> Layer<S> for SettleLayer {
    type Service = SettleService<S>;
    fn layer(&self, inner: S) -> Self::Service {
        let permits = PollSemaphore::new(self.settler.permits.clone());
        SettleService { inner, settler: self.settler.clone(), permits, permit: None }
    }
}

#[derive(Debug)]
pub struct SettleService<S> {
    inner: S,
    settler: Settler,
    permits: PollSemaphore,
    permit: Option<OwnedSemaphorePermit>,
}

/// Settles whatever happens: a job whose future is dropped half-way is given back.
struct Unsettled {
    job: Job,
    settler: Settler,
    permit: Option<OwnedSemaphorePermit>,
}

impl Unsettled {
    fn settle(&mut self, outcome: &Outcome) {
        let settlement = settlement(&self.job.claimed, self.job.lease.token, outcome, rand::random());
        self.settler.settle(settlement, self.permit.take());
    }
}

impl Drop for Unsettled {
    fn drop(&mut self) {
        if self.permit.is_some() {
            self.settle(&Outcome::Interrupted);
        }
    }
}

impl<S> Service<Task<Job>> for SettleService<S>
where
    S: Service<Task<Job>, Response = Outcome>,
    S::Error: Into<BoxDynError>,
    S::Future: Send + 'static,
{
    type Response = ();
    type Error = BoxDynError;
    type Future = BoxFuture<'static, Result<(), BoxDynError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxDynError>> {
        if self.permit.is_none() {
            // The semaphore is never closed; were it, no further job would start, which is the safe side.
            self.permit = ready!(self.permits.poll_acquire(cx));
        }
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, task: Task<Job>) -> Self::Future {
        let mut unsettled =
            Unsettled { job: task.args.clone(), settler: self.settler.clone(), permit: self.permit.take() };
        let run = self.inner.call(task);
        Box::pin(async move {
            let outcome = run.await.unwrap_or_else(|error| Outcome::retry(error.into().to_string()));
            unsettled.settle(&outcome);
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicU32, Ordering},
        time::Duration,
    };

    use reeve_jobs::{
        JobId,
        job::{ClaimedJob, LeaseToken},
        queue::{Claim, Lane, QueueError, Renewed, Settlement},
        tenant::Directory,
    };
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::runtime::lease::Leases;

    /// Panics at its first claim, and has one job at its second.
    #[derive(Clone, Default)]
    struct Shaky(Arc<AtomicU32>);

    impl Queue for Shaky {
        async fn claim(&self, _: &Lane, _: usize, _: &str, _: &str, _: Duration) -> Result<Claim, QueueError> {
            let job = ClaimedJob {
                id: JobId(uuid::Uuid::now_v7()),
                tenant: "a".parse().expect("an id"),
                kind: "fleet.probe".to_owned(),
                payload: serde_json::Value::Null,
                attempt: 1,
                attempts_max: 1,
                rescues: 0,
                traceparent: None,
                lease_token: LeaseToken(uuid::Uuid::new_v4()),
                proof: reeve_jobs::tenant::Proof::none(),
                urgent: false,
            };
            match self.0.fetch_add(1, Ordering::Relaxed) {
                0 => panic!("planted"),
                1 => Ok(Claim { jobs: vec![job], ..Claim::default() }),
                _ => Ok(Claim::default()),
            }
        }
        async fn mark_started(&self, _: JobId, _: LeaseToken) -> Result<bool, QueueError> {
            Ok(true)
        }
        async fn renew(&self, _: &[(JobId, LeaseToken)], _: Duration) -> Result<Vec<Renewed>, QueueError> {
            Ok(Vec::new())
        }
        async fn settle(&self, batch: &[Settlement]) -> Result<Vec<JobId>, QueueError> {
            Ok(batch.iter().map(|s| s.job).collect())
        }
        async fn wait_for_jobs(&self, _: &Lane, _: f64) -> Result<(), QueueError> {
            Ok(())
        }
        async fn stop_waiting(&self, _: &Lane) -> Result<(), QueueError> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_claimer_that_panics_is_started_again() {
        let queue = Shaky::default();
        let leases = Leases::new(Duration::from_secs(30));
        let (settler, _settling) = Settler::start(queue.clone(), leases.clone());
        let stop = CancellationToken::new();
        let claimer = Claimer {
            queue,
            lane: Lane { queue: "probes".to_owned(), region: "default".to_owned() },
            // Never asked: a lone job's tenant is the attempt's to look up.
            directory: Directory::new(sqlx::PgPool::connect_lazy("postgres://nobody@127.0.0.1:1/none").expect("a URL")),
            worker: "test".into(),
            slots: 1,
            poll: Duration::from_millis(10),
            leases,
            settler,
            bell: Arc::default(),
            stop: stop.clone(),
        };
        let buffer: Arc<Buffer> = Arc::default();
        let claiming = tokio::spawn(keep_claiming(claimer, buffer.clone()));
        let job = std::future::poll_fn(|cx| buffer.poll_pop(cx)).await;
        assert_eq!(job.claimed.tenant.as_str(), "a");
        stop.cancel();
        claiming.await.expect("it ends when it is told to");
    }
}

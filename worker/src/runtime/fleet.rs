//! One process' workers: a lane per queue, wired to apalis, and its orderly end.
//!
//! Stopping: no more claims; what was claimed and not started is given back at once; what runs may finish within the grace
//! time, then is told to stop and given back; the last settlements are stored; then leases stop being renewed.
use std::{sync::Arc, time::Duration};

use apalis::prelude::{Monitor, ParallelizeExt, WorkerBuilder, WorkerBuilderExt};
use apalis_core::{error::BoxDynError, task::Task};
use futures::future::BoxFuture;
use reeve_jobs::{
    job::Outcome,
    queue::{Lane, Queue},
    tenant::Directory,
};
use sqlx::PgPool;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tower::{Layer, Service};

use super::{
    attempt::{self, Handler, Job},
    backend::LaneBackend,
    claimer::Claimer,
    doorbell::{self, Bells},
    lease::{Leases, Stop},
    progress,
    settler::Settler,
};

/// A queue and how many of its jobs run at one time here.
#[derive(Debug, Clone)]
pub struct Slots {
    pub queue: String,
    pub slots: usize,
}

#[derive(Debug, Clone)]
pub struct FleetConfig {
    /// Unique among running processes; shown to operators, never trusted for fencing.
    pub name: String,
    pub region: Arc<str>,
    pub queues: Vec<Slots>,
    pub lease: Duration,
    /// The longest wait between two looks into an idle queue.
    pub poll: Duration,
    /// How long running jobs may go on after the signal to stop.
    pub grace: Duration,
}

#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    #[error("the worker runtime failed: {0}")]
    Runtime(String),
    #[error("the settler ended early; jobs of this process run again elsewhere")]
    Settler,
}

/// What a process does jobs with.
#[derive(Debug)]
pub struct Fleet<Q, H> {
    pub config: FleetConfig,
    pub queue: Q,
    /// For LISTEN.
    pub pool: PgPool,
    pub directory: Directory,
    pub handler: H,
}

impl<Q: Queue, H: Handler> Fleet<Q, H> {
    /// Runs until `shutdown` resolves and all is settled or given back.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send + 'static) -> Result<(), FleetError> {
        let leases = Leases::new(self.config.lease);
        let (settler, settling) = Settler::start(self.queue.clone(), leases.clone());
        let (stop, settled) = (CancellationToken::new(), CancellationToken::new());
        let renewing = tokio::spawn(leases.clone().renew_until(self.queue.clone(), settled.clone()));
        let reporting = tokio::spawn(progress::report_until(leases.clone(), self.queue.clone(), settled.clone()));
        let lanes: Vec<_> = self
            .config
            .queues
            .iter()
            .map(|q| Lane { queue: q.queue.clone(), region: self.config.region.to_string() })
            .collect();
        let bells = doorbell::bells(&lanes);
        let listening = tokio::spawn(doorbell::listen_until(self.pool.clone(), bells.clone(), stop.clone()));

        let grace = self.config.grace;
        let monitor = self.monitor(&leases, &settler, &bells, &stop);
        drop(settler);
        let signal = {
            let (stop, leases) = (stop.clone(), leases.clone());
            async move {
                shutdown.await;
                stop.cancel();
                tokio::spawn(async move {
                    tokio::time::sleep(grace).await;
                    leases.stop_all(&Stop::Shutdown);
                });
                Ok(())
            }
        };
        let ran = monitor.run_with_signal(signal).await;
        // The monitor and its workers, and with them all senders, are gone: the settler stores the rest and ends.
        let stored = settling.await;
        settled.cancel();
        // They only wait on tokens that are cancelled now, and the reporter for one statement, with a limit.
        let _ = tokio::join!(renewing, reporting, listening);
        stored.map_err(|_| FleetError::Settler)?;
        ran.map_err(|error| FleetError::Runtime(error.to_string()))
    }

    fn monitor(self, leases: &Leases, settler: &Settler, bells: &Bells, stop: &CancellationToken) -> Monitor {
        let mut monitor = Monitor::new();
        for Slots { queue, slots } in self.config.queues.clone() {
            let lane = Lane { queue, region: self.config.region.to_string() };
            let name: Arc<str> = self.config.name.as_str().into();
            let claimer = {
                let (queue, leases, settler, stop) =
                    (self.queue.clone(), leases.clone(), settler.clone(), stop.clone());
                let directory = self.directory.clone();
                let bell = bells[&lane.channel_payload()].clone();
                let poll = self.config.poll;
                move || Claimer {
                    queue: queue.clone(),
                    lane: lane.clone(),
                    directory: directory.clone(),
                    worker: name.clone(),
                    slots,
                    poll,
                    leases: leases.clone(),
                    settler: settler.clone(),
                    bell: bell.clone(),
                    stop: stop.child_token(),
                }
            };
            let (handler, directory, region) =
                (self.handler.clone(), self.directory.clone(), self.config.region.clone());
            monitor = monitor.register(move |restarts| {
                let claimer = claimer();
                let name = format!("{}/{}/{restarts}", claimer.worker, claimer.lane.queue);
                let (handler, directory, region) = (handler.clone(), directory.clone(), region.clone());
                let (asserted_region, marks) = (region.clone(), claimer.queue.clone());
                WorkerBuilder::new(name)
                    .backend(LaneBackend::new(claimer))
                    .concurrency(slots)
                    .parallelize(|attempt| AbortOnDropHandle::new(tokio::spawn(attempt)))
                    .layer(around(attempt::traced))
                    .layer(around(attempt::while_leased))
                    .layer(around(attempt::within_budget))
                    .layer(around(attempt::panic_captured))
                    .layer(around(move |job, inner| {
                        attempt::tenant_asserted(job, inner, directory.clone(), asserted_region.clone())
                    }))
                    .layer(around(move |job, inner| attempt::start_marked(job, inner, marks.clone())))
                    .build(move |job: Job| {
                        let attempt = attempt::run(handler.clone(), job, region.clone());
                        async move { Ok::<_, BoxDynError>(attempt.await) }
                    })
            });
        }
        // Our backend reports no error; a panic inside apalis still must not leave a process without workers.
        monitor.should_restart(|worker, error| {
            tracing::error!(worker = worker.name(), %error, "worker ended; starting it again");
            true
        })
    }
}

type Inner =
    futures::future::Map<BoxFuture<'static, Result<Outcome, BoxDynError>>, fn(Result<Outcome, BoxDynError>) -> Outcome>;

/// A layer from a function that is given the job and the future of everything inside.
fn around<F>(f: F) -> Around<F> {
    Around(f)
}

#[derive(Debug, Clone)]
struct Around<F>(F);

impl<S, F: Clone> Layer<S> for Around<F> {
    type Service = AroundService<S, F>;
    fn layer(&self, inner: S) -> Self::Service {
        AroundService { inner, f: self.0.clone() }
    }
}

#[derive(Debug, Clone)]
struct AroundService<S, F> {
    inner: S,
    f: F,
}

impl<S, F, Fut> Service<Task<Job>> for AroundService<S, F>
where
    S: Service<Task<Job>, Response = Outcome>,
    S::Error: Into<BoxDynError>,
    S::Future: Send + 'static,
    F: Fn(Job, Inner) -> Fut,
    Fut: Future<Output = Outcome> + Send + 'static,
{
    type Response = Outcome;
    type Error = BoxDynError;
    type Future = BoxFuture<'static, Result<Outcome, BoxDynError>>;

    fn poll_ready(&mut self, cx: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), BoxDynError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, task: Task<Job>) -> Self::Future {
        use futures::FutureExt;
        let job = task.args.clone();
        let call = self.inner.call(task);
        let inner: BoxFuture<'static, _> = Box::pin(async move { call.await.map_err(Into::into) });
        let inner: Inner = inner.map(|result| result.unwrap_or_else(|error| Outcome::retry(error.to_string())));
        let outer = (self.f)(job, inner);
        Box::pin(async move { Ok(outer.await) })
    }
}

//! Keeps the services running: each in a task of its own, at its interval, through faults of the database, until it is
//! told to stop.
//!
//! A run starts at once and then at the interval, give or take a tenth, so that several schedulers do not knock at the
//! same instants for ever. A failed run is tried again after 100 ms, then twice as long each time, up to 10 s. The log gets
//! one line when a service starts to fail and one when it works again, not one a try.
//!
//! Stopping drops the run that is under way. That loses nothing: each step of a service is one transaction, and PostgreSQL
//! undoes what has not committed. Only a panic, a defect of the program, ends the whole: whatever supervises it starts it
//! afresh, and sees that it ended.
use std::{collections::HashMap, future::Future, time::Duration};

use reeve_jobs::queue::window::WindowError;
use sqlx::PgPool;
use tokio::{
    task::{Id, JoinSet},
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use crate::{
    bulk::BulkRunner, closer::Closer, config::Config, enqueuer::Enqueuer, promoter::Promoter, pruner::Pruner,
    rescuer::Rescuer,
};

const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(10);

/// Why a run failed. It is tried again whatever it was.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    #[error("{0}")]
    Database(#[from] sqlx::Error),
    #[error("the window: {0}")]
    Window(#[from] WindowError),
    #[error("{file}: signed checkpoints could not be appended, so none was stored: {source}")]
    Append { file: String, source: std::io::Error },
}

/// A service panicked. The others have been stopped.
#[derive(Debug, thiserror::Error)]
#[error("the {service} broke off: {why}; this is a defect of the scheduler, please report it")]
pub struct Broken {
    pub service: &'static str,
    pub why: String,
}

/// Something done again and again. A run must be safe to repeat, to drop half-way, and to do in many processes at a time.
pub trait Service: Send + 'static {
    const NAME: &'static str;

    fn run(&mut self, pool: &PgPool) -> impl Future<Output = Result<(), ServiceError>> + Send;
}

/// Runs all services of this program until `stop` is cancelled.
pub async fn run(pool: &PgPool, config: &Config, stop: &CancellationToken) -> Result<(), Broken> {
    let mut fleet = Fleet::new(pool, stop);
    fleet.start(Enqueuer::new(), config.slots());
    fleet.start(Promoter, config.tick());
    fleet.start(Rescuer, config.rescue());
    fleet.start(BulkRunner, config.rescue());
    fleet.start(Closer, config.rescue());
    fleet.start(Pruner { keep: config.into() }, config.upkeep());
    if let Some(relay) = config.relay() {
        fleet.start(relay, config.relay_every());
    }
    if let Some(signer) = config.signer() {
        fleet.start(signer, config.audit_checkpoint());
    }
    fleet.join().await
}

/// The running tasks.
struct Fleet<'a> {
    pool: &'a PgPool,
    stop: &'a CancellationToken,
    tasks: JoinSet<()>,
    names: HashMap<Id, &'static str>,
}

impl<'a> Fleet<'a> {
    fn new(pool: &'a PgPool, stop: &'a CancellationToken) -> Self {
        Self { pool, stop, tasks: JoinSet::new(), names: HashMap::new() }
    }

    fn start<S: Service>(&mut self, service: S, interval: Duration) {
        let task = self.tasks.spawn(keep_running(service, self.pool.clone(), interval, self.stop.clone()));
        self.names.insert(task.id(), S::NAME);
    }

    async fn join(mut self) -> Result<(), Broken> {
        let mut first = Ok(());
        while let Some(ended) = self.tasks.join_next().await {
            if let Err(error) = ended {
                self.stop.cancel();
                let service = self.names.get(&error.id()).copied().unwrap_or("service");
                first = first.and(Err(Broken { service, why: error.to_string() }));
            }
        }
        first
    }
}

async fn keep_running<S: Service>(mut service: S, pool: PgPool, interval: Duration, stop: CancellationToken) {
    let mut failures = 0;
    loop {
        let outcome = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            outcome = service.run(&pool) => outcome,
        };
        let wait = match outcome {
            Ok(()) => {
                if failures > 0 {
                    tracing::info!(service = S::NAME, failures, "working again");
                }
                failures = 0;
                jittered(interval)
            }
            Err(error) => {
                if failures == 0 {
                    tracing::warn!(service = S::NAME, %error, "failing; trying again until it works");
                }
                failures += 1;
                jittered(backoff(failures))
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(wait) => {}
        }
    }
}

/// The wait after so many failures in a row, the first being 1.
fn backoff(failures: u32) -> Duration {
    BACKOFF_MIN.saturating_mul(1 << (failures - 1).min(16)).min(BACKOFF_MAX)
}

fn jittered(wait: Duration) -> Duration {
    wait.mul_f64(rand::random_range(0.9..=1.1))
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    };

    use super::*;

    /// Fails the first `failing` runs; tells `stop` after the third good one.
    struct Fake {
        failing: u32,
        good: Arc<AtomicU32>,
        stop: CancellationToken,
    }

    impl Service for Fake {
        const NAME: &'static str = "fake";
        async fn run(&mut self, _: &PgPool) -> Result<(), ServiceError> {
            if self.failing > 0 {
                self.failing -= 1;
                return Err(sqlx::Error::PoolTimedOut.into());
            }
            if self.good.fetch_add(1, Ordering::SeqCst) == 2 {
                self.stop.cancel();
            }
            Ok(())
        }
    }

    struct Hanging;
    impl Service for Hanging {
        const NAME: &'static str = "hanging";
        async fn run(&mut self, _: &PgPool) -> Result<(), ServiceError> {
            std::future::pending().await
        }
    }

    struct Panicking;
    impl Service for Panicking {
        const NAME: &'static str = "panicking";
        async fn run(&mut self, _: &PgPool) -> Result<(), ServiceError> {
            panic!("a defect")
        }
    }

    /// No connection is ever opened by it.
    fn unused_pool() -> PgPool {
        PgPool::connect_lazy("postgres://nobody@127.0.0.1:1/none").expect("a URL")
    }

    #[tokio::test]
    async fn a_service_outlives_its_faults_and_stops_when_told() {
        let (pool, stop, good) = (unused_pool(), CancellationToken::new(), Arc::default());
        let fake = Fake { failing: 2, good: Arc::clone(&good), stop: stop.clone() };
        let mut fleet = Fleet::new(&pool, &stop);
        fleet.start(fake, Duration::from_millis(1));
        fleet.start(Hanging, Duration::from_millis(1));
        fleet.join().await.expect("stopped in order");
        assert_eq!(good.load(Ordering::SeqCst), 3);
    }

    #[tokio::test]
    async fn a_panic_ends_all_and_names_the_service() {
        let (pool, stop) = (unused_pool(), CancellationToken::new());
        let mut fleet = Fleet::new(&pool, &stop);
        fleet.start(Hanging, Duration::from_millis(1));
        fleet.start(Panicking, Duration::from_millis(1));
        assert_eq!(fleet.join().await.unwrap_err().service, "panicking");
    }

    #[test]
    fn waits_double_up_to_ten_seconds() {
        assert_eq!(backoff(1), Duration::from_millis(100));
        assert_eq!(backoff(3), Duration::from_millis(400));
        assert_eq!(backoff(8), Duration::from_secs(10));
        assert_eq!(backoff(u32::MAX), Duration::from_secs(10));
    }

    #[test]
    fn jitter_stays_within_a_tenth() {
        for _ in 0..1000 {
            let wait = jittered(Duration::from_secs(10));
            assert!((Duration::from_secs(9)..=Duration::from_secs(11)).contains(&wait), "{wait:?}");
        }
    }
}

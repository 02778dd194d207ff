//! The claims of `jobs::testing::queue_suite`, over each store of jobs.
use std::{sync::Arc, time::Duration};

use reeve_jobs::{
    JobId, Kind, State, TenantId,
    job::LeaseToken,
    queue::{
        Claim, Lane, PostgresQueue, Queue, QueueError, Renewed, Settlement, WindowedQueue,
        redis::{self as redis_queue, Connection, QueueKey, RedisQueue},
    },
    testing::queue_suite::{self, Driver, NewJob, Rules},
};
use reeve_scheduler::relay::Relay;
use sqlx::PgPool;

use crate::{
    redis_places::Cluster,
    support::{ROOT_KEY, Town},
};

macro_rules! over_postgres {
    ($($claim:ident),+ $(,)?) => { mod postgres { $(
        #[tokio::test]
        async fn $claim() {
            super::queue_suite::$claim(&super::Postgres::new().await).await;
        }
    )+ } };
}
reeve_jobs::each_queue_claim!(over_postgres);

macro_rules! over_redis {
    ($($claim:ident),+ $(,)?) => { mod redis { $(
        #[tokio::test]
        async fn $claim() {
            super::queue_suite::$claim(&super::Redis::new().await).await;
        }
    )+ } };
}
reeve_jobs::each_queue_claim!(over_redis);

macro_rules! over_a_cluster {
    ($($claim:ident),+ $(,)?) => {
        #[tokio::test]
        async fn every_claim_holds_over_a_cluster() {
            let cluster = Cluster::start().await;
            let connection = cluster.connect().await;
            $(queue_suite::$claim(&Redis::over(connection.clone())).await;)+
            cluster.stop().await;
        }
    };
}
reeve_jobs::each_queue_claim!(over_a_cluster);

macro_rules! over_the_window {
    ($($claim:ident),+ $(,)?) => { mod windowed { $(
        #[tokio::test]
        async fn $claim() {
            let store = super::Windowed::new().await;
            super::queue_suite::$claim(&store).await;
            // The one claim of the suite that hands out nothing.
            let by_window = store.queue.queue.taken_up() > 0;
            assert_eq!(by_window, stringify!($claim) != "a_cancelled_job_that_waits_is_never_claimed");
        }
    )+ } };
}
reeve_jobs::each_queue_claim!(over_the_window);

pub struct Postgres {
    pub town: Town,
    queue: PostgresQueue,
    scheduler: PgPool,
}

impl Postgres {
    pub async fn new() -> Self {
        let town = Town::new().await;
        // So that the suite's limit is this kind's too.
        sqlx::query("UPDATE reeve.kinds SET payload_bytes_max = 65536 WHERE name = 'fleet.probe'")
            .execute(&town.db.admin)
            .await
            .expect("changed");
        Self { queue: PostgresQueue::new(town.worker.clone()), scheduler: town.db.pool("reeve_scheduler").await, town }
    }

    async fn on_job(&self, sql: &'static str, job: JobId) {
        sqlx::query(sql).bind(job).execute(&self.town.db.admin).await.expect(sql);
    }
}

impl Driver for Postgres {
    type Queue = PostgresQueue;

    fn queue(&self) -> &PostgresQueue {
        &self.queue
    }

    fn lane(&self) -> Lane {
        Lane { queue: "probes".to_owned(), region: "default".to_owned() }
    }

    async fn tenant(&self, id: &str, rules: Rules) -> TenantId {
        let tenant = self.town.db.tenant(id).await;
        sqlx::query("UPDATE reeve.tenants SET weight = $2, running_max = $3, paused = $4 WHERE id = $1")
            .bind(id)
            .bind(rules.weight)
            .bind(rules.running_max)
            .bind(rules.paused)
            .execute(&self.town.db.admin)
            .await
            .expect("rules");
        tenant
    }

    async fn enqueue(&self, tenant: &TenantId, job: &NewJob) -> Result<JobId, String> {
        let mut tx = self.town.app.begin().await.expect("begin");
        reeve_jobs::client::set_tenant(&mut tx, tenant).await.expect("context");
        let id = sqlx::query_scalar(
            "SELECT reeve.enqueue('fleet.probe', $1, dedupe_key => $2, run_at => now() + make_interval(secs => $3),
                                  priority => nullif($4, 0))",
        )
        .bind(serde_json::json!({"note": job.note}))
        .bind(&job.unique_key)
        .bind(f64::from(job.delay_secs))
        .bind(i32::from(job.priority))
        .fetch_one(&mut *tx)
        .await
        .map_err(|error| error.to_string())?;
        tx.commit().await.expect("commit");
        Ok(id)
    }

    async fn pause_queue(&self, pause: bool) {
        sqlx::query("SELECT reeve.pause_queue('probes', $1, 'test', 'to see')")
            .bind(pause)
            .execute(&self.town.db.admin)
            .await
            .expect("paused");
    }

    async fn pass(&self, secs: i64) {
        sqlx::query(
            "UPDATE reeve.jobs SET run_at = run_at - make_interval(secs => $1),
                                   lease_expires_at = lease_expires_at - make_interval(secs => $1)",
        )
        .bind(secs as f64)
        .execute(&self.town.db.admin)
        .await
        .expect("time passes");
    }

    async fn upkeep(&self) {
        sqlx::query("SELECT reeve.promote(100)").execute(&self.scheduler).await.expect("promoted");
        sqlx::query("SELECT count(*) FROM reeve.rescue(100)").execute(&self.scheduler).await.expect("rescued");
    }

    async fn cancel(&self, job: JobId) {
        self.on_job("SELECT reeve.cancel_job($1, 'test', 'to see')", job).await;
    }

    async fn redrive(&self, job: JobId) {
        self.on_job("SELECT reeve.retry_job($1, 'test', 'to see')", job).await;
    }

    async fn state(&self, job: JobId) -> State {
        self.town.state(job).await.parse().expect("a state")
    }

    async fn spoil(&self, job: JobId) {
        // Deeper than a reader follows, but fit for jsonb.
        self.on_job(
            "UPDATE reeve.jobs SET payload = ('{\"a\":' || repeat('[', 500) || repeat(']', 500) || '}')::jsonb
             WHERE id = $1",
            job,
        )
        .await;
    }

    async fn lease_left(&self, job: JobId) -> f64 {
        sqlx::query_scalar(
            "SELECT extract(epoch FROM lease_expires_at - clock_timestamp())::float8 FROM reeve.jobs WHERE id = $1",
        )
        .bind(job)
        .fetch_one(&self.town.db.admin)
        .await
        .expect("a lease")
    }
}

/// The queue on PostgreSQL with its window, which a relay fills before each claim.
#[derive(Clone)]
struct Relayed {
    queue: WindowedQueue,
    relay: Arc<tokio::sync::Mutex<Relay>>,
    scheduler: PgPool,
}

impl Queue for Relayed {
    async fn claim(&self, lane: &Lane, n: usize, w: &str, cursor: &str, lease: Duration) -> Result<Claim, QueueError> {
        self.relay.lock().await.run_once(&self.scheduler).await.expect("relayed");
        self.queue.claim(lane, n, w, cursor, lease).await
    }

    async fn mark_started(&self, job: JobId, token: LeaseToken) -> Result<bool, QueueError> {
        self.queue.mark_started(job, token).await
    }

    async fn renew(&self, held: &[(JobId, LeaseToken)], lease: Duration) -> Result<Vec<Renewed>, QueueError> {
        self.queue.renew(held, lease).await
    }

    async fn settle(&self, batch: &[Settlement]) -> Result<Vec<JobId>, QueueError> {
        self.queue.settle(batch).await
    }

    async fn wait_for_jobs(&self, lane: &Lane, secs: f64) -> Result<(), QueueError> {
        self.queue.wait_for_jobs(lane, secs).await
    }

    async fn stop_waiting(&self, lane: &Lane) -> Result<(), QueueError> {
        self.queue.stop_waiting(lane).await
    }
}

struct Windowed {
    postgres: Postgres,
    queue: Relayed,
    _server: crate::window_places::Place,
}

impl Windowed {
    async fn new() -> Self {
        let (postgres, server) = (Postgres::new().await, crate::window_places::Place::start().await);
        let link = server.link().await;
        let queue = Relayed {
            queue: WindowedQueue::new(postgres.queue.clone(), Some(link)).direct_every(Duration::from_secs(3_600)),
            relay: Arc::new(tokio::sync::Mutex::new(server.relay())),
            scheduler: postgres.scheduler.clone(),
        };
        Self { postgres, queue, _server: server }
    }
}

impl Driver for Windowed {
    type Queue = Relayed;

    fn queue(&self) -> &Relayed {
        &self.queue
    }

    fn lane(&self) -> Lane {
        self.postgres.lane()
    }

    async fn tenant(&self, id: &str, rules: Rules) -> TenantId {
        self.postgres.tenant(id, rules).await
    }

    async fn enqueue(&self, tenant: &TenantId, job: &NewJob) -> Result<JobId, String> {
        self.postgres.enqueue(tenant, job).await
    }

    async fn pause_queue(&self, pause: bool) {
        self.postgres.pause_queue(pause).await;
    }

    async fn pass(&self, secs: i64) {
        self.postgres.pass(secs).await;
    }

    async fn upkeep(&self) {
        self.postgres.upkeep().await;
    }

    async fn cancel(&self, job: JobId) {
        self.postgres.cancel(job).await;
    }

    async fn redrive(&self, job: JobId) {
        self.postgres.redrive(job).await;
    }

    async fn state(&self, job: JobId) -> State {
        self.postgres.state(job).await
    }

    async fn spoil(&self, job: JobId) {
        self.postgres.spoil(job).await;
    }

    async fn lease_left(&self, job: JobId) -> f64 {
        self.postgres.lease_left(job).await
    }
}

/// A lane of its own on the tests' server.
pub struct Redis {
    pub queue: RedisQueue,
    lane: Lane,
    connection: Connection,
}

impl Redis {
    pub async fn new() -> Self {
        let url = std::env::var("REEVE_TEST_REDIS_URL").expect("REEVE_TEST_REDIS_URL: run `./ops/test`");
        Self::over(redis_queue::open(&url).await.expect("the test server answers"))
    }

    fn over(connection: Connection) -> Self {
        let (queue, lane) = Self::lane_of_its_own(&connection);
        Self { queue, lane, connection }
    }

    fn lane_of_its_own(connection: &Connection) -> (RedisQueue, Lane) {
        let lane = Lane { queue: format!("q{}", uuid::Uuid::new_v4().simple()), region: "default".to_owned() };
        let key = QueueKey::from_root(ROOT_KEY).expect("32 bytes");
        (RedisQueue::new(connection.clone(), key, lane.clone()).expect("a lane"), lane)
    }

    /// What was there stays behind.
    pub fn move_to_a_lane_of_its_own(&mut self) {
        (self.queue, self.lane) = Self::lane_of_its_own(&self.connection);
    }

    pub async fn raw<T: ::redis::FromRedisValue>(&self, name: &str, key: &str, arguments: &[&str]) -> T {
        let mut cmd = ::redis::cmd(name);
        cmd.arg(format!("{}:{key}", self.queue.prefix()));
        for argument in arguments {
            cmd.arg(argument);
        }
        cmd.query_async(&mut self.connection.clone()).await.expect(name)
    }
}

impl Driver for Redis {
    type Queue = RedisQueue;

    fn queue(&self) -> &RedisQueue {
        &self.queue
    }

    fn lane(&self) -> Lane {
        self.lane.clone()
    }

    async fn tenant(&self, id: &str, rules: Rules) -> TenantId {
        let tenant: TenantId = id.parse().expect("an id");
        let rules = redis_queue::Rules {
            weight: u32::try_from(rules.weight).expect("a weight"),
            running_max: rules.running_max.map(|max| u32::try_from(max).expect("a cap")),
            paused: rules.paused,
        };
        self.queue.set_rules(&tenant, rules).await.expect("rules");
        tenant
    }

    async fn enqueue(&self, tenant: &TenantId, job: &NewJob) -> Result<JobId, String> {
        let new = redis_queue::NewJob {
            id: JobId(uuid::Uuid::now_v7()),
            tenant,
            kind: Kind::FleetProbe,
            payload: serde_json::json!({"note": job.note}),
            unique_key: job.unique_key.as_deref(),
            delay: std::time::Duration::from_secs(job.delay_secs.into()),
            priority: Some(job.priority).filter(|priority| *priority > 0),
            traceparent: None,
        };
        self.queue.enqueue(&new).await.map_err(|error| error.to_string())
    }

    async fn pause_queue(&self, pause: bool) {
        self.queue.pause(pause).await.expect("paused");
    }

    async fn pass(&self, secs: i64) {
        for key in ["delayed", "leases"] {
            let ids: Vec<String> = self.raw("ZRANGE", key, &["0", "-1"]).await;
            for id in ids {
                self.raw::<f64>("ZINCRBY", key, &[&(-1000 * secs).to_string(), &id]).await;
            }
        }
    }

    async fn upkeep(&self) {
        self.queue.upkeep(100).await.expect("kept up");
    }

    async fn cancel(&self, job: JobId) {
        self.queue.cancel(job, "to see").await.expect("cancelled");
    }

    async fn redrive(&self, job: JobId) {
        self.queue.retry(job, 3).await.expect("redriven");
    }

    async fn state(&self, job: JobId) -> State {
        self.queue.state(job).await.expect("an answer").expect("the job is known")
    }

    async fn spoil(&self, job: JobId) {
        self.raw::<i64>("HSET", &format!("j:{job}"), &["env", "RQ1 but nothing that opens"]).await;
    }

    async fn lease_left(&self, job: JobId) -> f64 {
        let until: f64 = self.raw("ZSCORE", "leases", &[&job.to_string()]).await;
        let now: (f64, f64) = ::redis::cmd("TIME").query_async(&mut self.connection.clone()).await.expect("TIME");
        until / 1e3 - now.0 - now.1 / 1e6
    }
}

//! All that breaks, at random and over one another, while twenty thousand deliveries pass through the real programs.
//!
//! A storm has servers of its own, so that they may be killed: PostgreSQL behind a proxy that can swallow what passes,
//! Redis behind another, two workers, two schedulers, and a receiver that notes each delivery. Every second or so something
//! happens to one of them ([`Blow`]). When most has arrived it calms down, an operator sees to what was parked, and the
//! books are compared ([`Storm::account`]): nothing lost, nothing settled twice, and an effect repeated only where an attempt is
//! on record as interrupted.
//!
//! Stale holders are here too: this process claims jobs, lets the leases run out, waits until somebody else holds them,
//! and tries to settle. Were one let through, its job would run a third time, with no attempt that explains it.
//!
//! `REEVE_TEST_CHAOS_JOBS=200000` makes it longer; `REEVE_TEST_CHAOS_SEED` repeats the order of blows, though not their moments.
use std::{
    collections::HashMap,
    path::PathBuf,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use reeve_dev::postgres::{Flavour, Postgres, PostgresOptions};
use reeve_jobs::{
    TenantId, client,
    queue::{Lane, PostgresQueue, Queue, Settlement},
    testing::TestDatabase,
};
use tokio::process::Child;
use tokio_util::task::AbortOnDropHandle;

use super::send_signal;
use crate::{
    support::{Receiver, Town, program},
    window_places::{Place, Proxy},
};

const JOBS: usize = 20_000;
const TENANTS: usize = 20;
const BATCH: usize = 100;
const LEASE_SECS: u64 = 4;
const WORKERS: usize = 2;
const SCHEDULERS: usize = 2;

/// What happens to somebody.
#[derive(Debug, Clone, Copy)]
enum Blow {
    WorkerKilled,
    SchedulerKilled,
    /// Worker or scheduler, for longer than a lease: what it held goes to others meanwhile.
    ProgramStopped,
    /// Its clock goes ten minutes ahead, or back, while it runs.
    ClockJumped,
    PostgresKilled,
    PostgresUnreachable,
    RedisKilled,
    RedisFlushed,
    RedisUnreachable,
}

const BLOWS: [Blow; 9] = [
    Blow::WorkerKilled,
    Blow::SchedulerKilled,
    Blow::ProgramStopped,
    Blow::ClockJumped,
    Blow::PostgresKilled,
    Blow::PostgresUnreachable,
    Blow::RedisKilled,
    Blow::RedisFlushed,
    Blow::RedisUnreachable,
];

/// A program that is started again whenever it has been killed.
struct Kept {
    program: &'static str,
    settings: Vec<(String, String)>,
    child: Child,
}

impl Kept {
    fn start(program: &'static str, settings: Vec<(String, String)>) -> Self {
        let child = spawn(program, &settings);
        Self { program, settings, child }
    }

    async fn kill(&mut self) {
        self.child.kill().await.expect("kill -9");
        self.child = spawn(self.program, &self.settings);
    }

    /// Whoever ended by itself: a program must outlive whatever happens to others. Only at its start may it refuse.
    fn revive(&mut self) {
        if self.child.try_wait().expect("its state").is_some() {
            self.child = spawn(self.program, &self.settings);
        }
    }
}

/// With `REEVE_TEST_CHAOS_LOG` set, what it says is shown.
fn spawn(name: &str, settings: &[(String, String)]) -> Child {
    let said = if std::env::var_os("REEVE_TEST_CHAOS_LOG").is_some() { Stdio::inherit() } else { Stdio::null() };
    tokio::process::Command::new(program(name))
        .envs(settings.iter().map(|(key, value)| (key, value)))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(said)
        .kill_on_drop(true)
        .spawn()
        .expect("it starts")
}

struct Storm {
    town: Town,
    postgres: Postgres,
    proxy: Proxy,
    redis: Place,
    receiver: Receiver,
    tenants: Vec<TenantId>,
    programs: Vec<Kept>,
    /// The file that each worker's clock is read from.
    clocks: tempfile::TempDir,
    _files: tempfile::TempDir,
}

impl Storm {
    async fn begin() -> Self {
        let files = tempfile::tempdir().expect("a directory");
        let options = PostgresOptions {
            dir: files.path().join("postgres"),
            log: files.path().join("log"),
            flavour: Flavour::Dev,
            admin_password: "storm".to_owned(),
        };
        let postgres = Postgres::start(options).await.expect("a server");
        let town = Town::in_database(TestDatabase::on(postgres.admin_options("postgres")).await).await;
        let (proxy, redis) = (Proxy::start(postgres.port()).await, Place::start().await);
        let receiver = Receiver::start().await;
        let mut tenants = Vec::new();
        for i in 0..TENANTS {
            let tenant = town.db.tenant(&format!("t{i:02}")).await;
            town.endpoint(&tenant, &receiver.url("/hook")).await;
            tenants.push(tenant);
        }
        let clocks = tempfile::tempdir().expect("a directory");
        let mut storm =
            Self { town, postgres, proxy, redis, receiver, tenants, programs: Vec::new(), clocks, _files: files };
        for i in 0..WORKERS {
            let settings = storm.worker_settings(i);
            storm.programs.push(Kept::start("reeve-worker", settings));
        }
        for _ in 0..SCHEDULERS {
            let settings = storm.scheduler_settings();
            storm.programs.push(Kept::start("reeve-scheduler", settings));
        }
        storm
    }

    fn clock(&self, worker: usize) -> PathBuf {
        self.clocks.path().join(format!("worker-{worker}"))
    }

    fn database_url(&self, role: &str) -> String {
        let port = self.proxy.port;
        format!("postgres://{role}:test@127.0.0.1:{port}/{}", self.town.db.name)
    }

    fn worker_settings(&self, i: usize) -> Vec<(String, String)> {
        self.set_clock(i, 0);
        let clock = self.clock(i);
        let mut settings = pairs(&[
            ("REEVE_WORKER__NAME", &format!("worker-{i}")),
            ("REEVE_WORKER__DATABASE_URL", &self.database_url("reeve_worker")),
            ("REEVE_WORKER__REDIS_URL", &self.redis.url()),
            ("REEVE_WORKER__LEASE_SECS", &LEASE_SECS.to_string()),
            ("REEVE_WORKER__SLOTS__WEBHOOKS", "50"),
            ("REEVE_WORKER__WEBHOOKS__HTTP_ALLOWED", "true"),
            ("REEVE_WORKER__WEBHOOKS__LOOPBACK_ALLOWED", "true"),
        ]);
        settings.extend(self.town.keystore.env());
        settings.extend(pairs(&[
            ("LD_PRELOAD", &faketime().display().to_string()),
            ("FAKETIME_TIMESTAMP_FILE", &clock.display().to_string()),
            ("FAKETIME_CACHE_DURATION", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ]));
        settings
    }

    fn scheduler_settings(&self) -> Vec<(String, String)> {
        pairs(&[
            ("REEVE_SCHEDULER__DATABASE_URL", &self.database_url("reeve_scheduler")),
            ("REEVE_SCHEDULER__REDIS_URL", &self.redis.url()),
        ])
    }

    fn set_clock(&self, worker: usize, secs: i64) {
        // In one step: a half-written file is no time.
        let draft = self.clocks.path().join(format!("draft-{worker}"));
        std::fs::write(&draft, format!("{secs:+}s")).expect("written");
        std::fs::rename(&draft, self.clock(worker)).expect("renamed");
    }

    async fn strike(&mut self, blow: Blow, rng: &mut StdRng) {
        let worker = rng.random_range(0..WORKERS);
        match blow {
            Blow::WorkerKilled => self.programs[worker].kill().await,
            Blow::SchedulerKilled => self.programs[WORKERS + rng.random_range(0..SCHEDULERS)].kill().await,
            Blow::ProgramStopped => {
                let program = &self.programs[rng.random_range(0..self.programs.len())].child;
                send_signal(program, libc::SIGSTOP);
                tokio::time::sleep(Duration::from_secs(LEASE_SECS * 2)).await;
                send_signal(program, libc::SIGCONT);
            }
            Blow::ClockJumped => self.set_clock(worker, if rng.random() { 600 } else { -600 }),
            Blow::PostgresKilled => {
                signal(self.postgres.pid().expect("it runs"), libc::SIGQUIT);
                self.postgres.restart().await.expect("it starts again");
            }
            Blow::PostgresUnreachable => {
                self.proxy.cut(true);
                tokio::time::sleep(Duration::from_millis(rng.random_range(500..6_000))).await;
                self.proxy.cut(false);
            }
            Blow::RedisKilled => {
                self.redis.signal("KILL");
                self.redis.begin().await;
            }
            Blow::RedisFlushed => self.redis.raw::<()>(&["FLUSHALL"]).await.expect("flushed"),
            Blow::RedisUnreachable => {
                self.redis.proxy.cut(true);
                tokio::time::sleep(Duration::from_millis(rng.random_range(500..6_000))).await;
                self.redis.proxy.cut(false);
            }
        }
        self.programs.iter_mut().for_each(Kept::revive);
    }

    /// A number that the database says, as soon as it answers.
    async fn count(&self, sql: &'static str) -> i64 {
        for _ in 0..600 {
            if let Ok(n) = sqlx::query_scalar(sql).fetch_one(&self.town.db.admin).await {
                return n;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("no answer within a minute: {sql}");
    }

    /// Until every job has settled: retries are made due, and an operator takes up what was parked.
    async fn calm(&mut self) {
        for _ in 0..3_000 {
            self.programs.iter_mut().for_each(Kept::revive);
            if self.count("SELECT count(*) FROM reeve.jobs").await == 0 {
                return;
            }
            for sql in [
                "UPDATE reeve.jobs SET run_at = now() WHERE state IN ('scheduled', 'retryable') AND run_at > now()",
                "SELECT count(reeve.retry_job(id, 'ops:storm', 'the storm is over')) FROM reeve.jobs
                 WHERE state IN ('dead', 'quarantined')",
            ] {
                sqlx::query(sql).execute(&self.town.db.admin).await.expect("answered");
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("{} jobs never settled", self.count("SELECT count(*) FROM reeve.jobs").await);
    }

    /// Compares what was enqueued, what was stored, and what arrived. Returns how many effects were repeated.
    async fn account(&self, sure: usize) -> usize {
        let events = self.count("SELECT count(*) FROM reeve.webhook_events").await;
        assert!(events >= i64::try_from(sure).expect("small"), "of {sure} committed events {events} are there");
        assert_eq!(
            self.count("SELECT count(*) FROM reeve.job_history WHERE state = 'completed'").await,
            events,
            "one job of each event ended well"
        );
        assert_eq!(
            self.count("SELECT count(*) - count(DISTINCT id) FROM reeve.job_history").await,
            0,
            "none was settled twice"
        );
        let rows: Vec<(String, i64)> = sqlx::query_as(
            // The ghost's excuse nothing: it has no effect.
            "SELECT d.event_id, (SELECT count(*) FROM reeve.job_attempts t
                                 WHERE t.tenant_id = h.tenant_id AND t.job_id = h.id AND t.worker <> 'ghost')
             FROM reeve.job_history h
             JOIN reeve.webhook_deliveries d ON d.tenant_id = h.tenant_id AND d.id::text = h.payload ->> 'delivery_id'",
        )
        .fetch_all(&self.town.db.admin)
        .await
        .expect("deliveries");
        let mut arrived: HashMap<String, i64> = HashMap::new();
        for seen in self.receiver.seen() {
            *arrived.entry(seen.header("webhook-id")).or_default() += 1;
        }
        let mut repeated = 0;
        for (event, interrupted) in rows {
            let times = arrived.get(&event).copied().unwrap_or_default();
            assert!(times >= 1, "{event} never arrived");
            assert!(times <= 1 + interrupted, "{event} arrived {times} times, with {interrupted} attempts interrupted");
            repeated += usize::try_from(times - 1).expect("small");
        }
        repeated
    }
}

fn pairs(settings: &[(&str, &str)]) -> Vec<(String, String)> {
    settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn signal(pid: u32, signal: i32) {
    // SAFETY: kill(2) of a child that has not been waited for: its pid cannot be another process'.
    #[allow(unsafe_code, reason = "there is no safe kill in the standard library")]
    let sent = unsafe { libc::kill(i32::try_from(pid).expect("a pid"), signal) };
    assert_eq!(sent, 0);
}

/// The library that gives a program a clock of its own (`ops/test` installs the package faketime).
fn faketime() -> PathBuf {
    let places = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib"];
    places
        .iter()
        .map(|place| PathBuf::from(place).join("faketime/libfaketimeMT.so.1"))
        .find(|library| library.exists())
        .expect("libfaketimeMT.so.1; install the package faketime")
}

/// Enqueues events, some of each tenant at a time, through whatever happens. Returns how many it knows to be committed: of
/// a commit whose answer was lost nobody knows.
async fn feed(app: sqlx::PgPool, tenants: Vec<TenantId>, jobs: usize, fed: Arc<AtomicUsize>) -> usize {
    let mut sure = 0;
    let mut turn = 0;
    while fed.load(Ordering::SeqCst) < jobs {
        turn += 1;
        let tenant = &tenants[turn % tenants.len()];
        let attempt: Result<(), sqlx::Error> = async {
            let mut tx = app.begin().await?;
            client::set_tenant(&mut tx, tenant).await.map_err(|_| sqlx::Error::WorkerCrashed)?;
            for i in 0..BATCH {
                let payload = serde_json::json!({ "id": i });
                client::emit(&mut tx, "message.received", &payload).await.map_err(|_| sqlx::Error::WorkerCrashed)?;
            }
            tx.commit().await
        }
        .await;
        match attempt {
            Ok(()) => {
                sure += BATCH;
                fed.fetch_add(BATCH, Ordering::SeqCst);
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
        // At the pace of the workers, so that blows fall on enqueueing, claiming and settling alike.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    sure
}

/// Claims, loses, and tries to settle all the same. Counts the tries; a try that is let through fails the test.
async fn haunt(town: (PostgresQueue, sqlx::PgPool), tries: Arc<AtomicUsize>, over: Arc<AtomicBool>) {
    let (queue, admin) = town;
    let lane = Lane { queue: "webhooks".to_owned(), region: "default".to_owned() };
    while !over.load(Ordering::SeqCst) {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let Ok(claim) = queue.claim(&lane, 3, "ghost", "m", Duration::from_millis(500)).await else { continue };
        for job in claim.jobs {
            let taken = async || {
                let held = "SELECT lease_token FROM reeve.jobs WHERE id = $1 AND lease_token IS NOT NULL";
                let token = sqlx::query_scalar::<_, uuid::Uuid>(held).bind(job.id).fetch_optional(&admin).await;
                matches!(token, Ok(Some(token)) if token != job.lease_token.0)
            };
            for _ in 0..1_000 {
                if over.load(Ordering::SeqCst) || taken().await {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            for outcome in ["release", "retry", "completed"] {
                let (delay, error) = (Duration::ZERO, None);
                let stale = Settlement { job: job.id, token: job.lease_token, outcome, delay, error };
                if taken().await
                    && let Ok(settled) = queue.settle(&[stale]).await
                {
                    assert!(settled.is_empty(), "{outcome}: a lease that was lost settled {}", job.id);
                    tries.fetch_add(1, Ordering::SeqCst);
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_loses_no_job_settles_none_twice_and_repeats_only_what_was_interrupted() {
    let set = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let jobs = set("REEVE_TEST_CHAOS_JOBS").map_or(JOBS, |n| usize::try_from(n).expect("a number of jobs"));
    let seed = set("REEVE_TEST_CHAOS_SEED").unwrap_or_else(rand::random);
    eprintln!("REEVE_TEST_CHAOS_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut storm = Storm::begin().await;
    let (fed, tries, over) =
        (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
    let feeding = AbortOnDropHandle::new(tokio::spawn(feed(
        storm.town.app.clone(),
        storm.tenants.clone(),
        jobs,
        Arc::clone(&fed),
    )));
    let ghost = (PostgresQueue::new(storm.town.worker.clone()), storm.town.db.admin.clone());
    let haunting = AbortOnDropHandle::new(tokio::spawn(haunt(ghost, Arc::clone(&tries), Arc::clone(&over))));

    // Far above what it takes; it only ends a storm in which nothing moves any more.
    let (begun, patience) =
        (std::time::Instant::now(), Duration::from_secs(300) + Duration::from_millis(30) * jobs as u32);
    let mut blows = 0;
    // Each blow at least once, in an order of chance; then by chance.
    let mut first: Vec<Blow> = BLOWS.to_vec();
    while !first.is_empty() || storm.receiver.seen_count() < jobs / 10 * 9 {
        let blow = match first.len() {
            0 => BLOWS[rng.random_range(0..BLOWS.len())],
            n => first.swap_remove(rng.random_range(0..n)),
        };
        storm.strike(blow, &mut rng).await;
        blows += 1;
        eprintln!("{blow:?}: {} enqueued, {} delivered", fed.load(Ordering::SeqCst), storm.receiver.seen_count());
        assert!(!haunting.is_finished(), "a stale holder was let through");
        assert!(begun.elapsed() < patience, "{} of {jobs} delivered", storm.receiver.seen_count());
        tokio::time::sleep(Duration::from_millis(rng.random_range(300..2_000))).await;
    }
    let sure = feeding.await.expect("fed");
    over.store(true, Ordering::SeqCst);
    haunting.await.expect("no stale holder was let through");
    storm.calm().await;

    let repeated = storm.account(sure).await;
    let interrupted = storm.count("SELECT count(*) FROM reeve.job_attempts WHERE outcome IN ('lease_expired', 'interrupted') AND worker <> 'ghost'").await;
    let tries = tries.load(Ordering::SeqCst);
    assert!(tries > 0, "no stale holder ever tried: the storm proved nothing about them");
    assert!(interrupted > 0, "no attempt was interrupted: the storm was none");
    eprintln!(
        "{blows} blows; {sure} events; {interrupted} attempts interrupted; {repeated} deliveries repeated; {tries} stale settlements refused"
    );
}

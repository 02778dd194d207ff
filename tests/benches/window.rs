//! CPU per job drained, with and without the window, in one run: the two take turns, on one database and one Redis.
//!
//! `CMD JOBS TURNS`, with `REEVE_TEST_ADMIN_URL` and `REEVE_TEST_REDIS_URL` in the environment (`reeve-dev test-cluster`), on
//! the servers' machine, since it reads their CPU time from /proc. A line for each turn: what this process (worker and
//! relay), PostgreSQL and Redis used, in µs a job; then the medians and their ratio.
#![allow(clippy::disallowed_methods, reason = "the bench stands for a web app")]
use std::{
    collections::HashMap,
    io::Write,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use reeve_jobs::{
    TenantContext, TenantId, client,
    job::{ClaimedJob, Outcome},
    kinds::{ProbeFleet, Work},
    queue::{Lane, PostgresQueue, WindowedQueue, window::Link, window::Window},
    redact::Redacted,
    tenant::Directory,
    testing::TestDatabase,
};
use reeve_scheduler::relay::Relay;
use reeve_worker::runtime::{Fleet, FleetConfig, Handler, Progress, fleet::Slots};
use sqlx::PgPool;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

const TENANTS: usize = 20;

/// Ends the fleet when it has done its jobs.
#[derive(Clone)]
struct Probe {
    left: Arc<AtomicUsize>,
    done: CancellationToken,
}

impl Handler for Probe {
    async fn handle(&self, _: &ClaimedJob, _: TenantContext, _: Work, _: &Progress) -> Outcome {
        if self.left.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.done.cancel();
        }
        Outcome::Done
    }
}

/// CPU seconds of a process and of all its children, also those that it has waited for.
fn cpu_of_tree(root: u32) -> Result<f64> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    let mut used: HashMap<u32, (f64, f64)> = HashMap::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        // Behind the name, which may hold anything.
        let Some((_, rest)) = stat.rsplit_once(") ") else { continue };
        let fields: Vec<&str> = rest.split(' ').collect();
        let ticks = |n: usize| fields.get(n).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0) / 100.0;
        children.entry(fields.get(1).and_then(|ppid| ppid.parse().ok()).unwrap_or(0)).or_default().push(pid);
        used.insert(pid, (ticks(11) + ticks(12), ticks(13) + ticks(14)));
    }
    let mut total = used.get(&root).map_or(0.0, |(own, waited)| own + waited);
    for child in children.get(&root).into_iter().flatten() {
        total += used.get(child).map_or(0.0, |(own, waited)| own + waited);
    }
    Ok(total)
}

struct Bench {
    db: TestDatabase,
    app: PgPool,
    worker: PgPool,
    scheduler: PgPool,
    tenants: Vec<TenantId>,
    redis_url: String,
    postmaster: u32,
    redis: u32,
}

impl Bench {
    async fn prepare() -> Result<Self> {
        let db = TestDatabase::new().await;
        let mut tenants = Vec::new();
        for n in 0..TENANTS {
            tenants.push(db.tenant(&format!("t{n:02}")).await);
        }
        let redis_url = std::env::var("REEVE_TEST_REDIS_URL").context("REEVE_TEST_REDIS_URL")?;
        let mut redis = redis::Client::open(redis_url.as_str())?.get_multiplexed_async_connection().await?;
        let info: String = redis::cmd("INFO").arg("server").query_async(&mut redis).await?;
        let pid = info.lines().find_map(|line| line.strip_prefix("process_id:")).context("no process_id")?;
        let file: String = sqlx::query_scalar("SELECT pg_read_file('postmaster.pid')").fetch_one(&db.admin).await?;
        Ok(Self {
            app: db.pool("reeve_app").await,
            worker: db.pool("reeve_worker").await,
            scheduler: db.pool("reeve_scheduler").await,
            tenants,
            redis_url,
            postmaster: file.lines().next().context("an empty file")?.trim().parse()?,
            redis: pid.trim().parse()?,
            db,
        })
    }

    fn cpu(&self) -> Result<[f64; 3]> {
        Ok([cpu_of_tree(std::process::id())?, cpu_of_tree(self.postmaster)?, cpu_of_tree(self.redis)?])
    }

    async fn fill(&self, jobs: usize) -> Result<()> {
        for tenant in &self.tenants {
            let mut tx = self.app.begin().await?;
            client::set_tenant(&mut tx, tenant).await?;
            client::enqueue_many(&mut tx, &vec![ProbeFleet::default(); jobs / TENANTS]).await?;
            tx.commit().await?;
        }
        sqlx::query("VACUUM ANALYZE reeve.jobs").execute(&self.db.admin).await?;
        Ok(())
    }

    /// µs a job of this process, PostgreSQL and Redis; jobs a second; and which share came by the window.
    async fn drain(&self, jobs: usize, windowed: bool) -> Result<([f64; 3], f64, f64)> {
        self.fill(jobs).await?;
        let link = windowed.then(|| Link::new(Redacted::new(self.redis_url.clone())));
        let queue = WindowedQueue::new(PostgresQueue::new(self.worker.clone()), link.clone());
        let probe = Probe { left: Arc::new(AtomicUsize::new(jobs)), done: CancellationToken::new() };
        let fleet = Fleet {
            config: FleetConfig {
                name: "bench".to_owned(),
                region: "default".into(),
                queues: vec![Slots { queue: "probes".to_owned(), slots: 50 }],
                lease: Duration::from_secs(30),
                poll: Duration::from_secs(1),
                grace: Duration::from_secs(10),
            },
            queue: queue.clone(),
            pool: self.worker.clone(),
            directory: Directory::new(self.worker.clone()),
            handler: probe.clone(),
        };
        if let Some(link) = &link {
            let lane = Lane { queue: "probes".to_owned(), region: "default".to_owned() };
            while !link.is_open() {
                link.pop(&lane, 0).await;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        let (before, begun) = (self.cpu()?, Instant::now());
        let relaying = windowed.then(|| {
            let (mut relay, pool) =
                (Relay::new(Redacted::new(self.redis_url.clone()), Vec::new()), self.scheduler.clone());
            AbortOnDropHandle::new(tokio::spawn(async move {
                loop {
                    relay.run_once(&pool).await.expect("relayed");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }))
        });
        let stop = probe.done.clone();
        fleet.run(async move { stop.cancelled().await }).await?;
        drop(relaying);
        let (after, spent) = (self.cpu()?, begun.elapsed());
        let left: i64 = sqlx::query_scalar("SELECT count(*) FROM reeve.jobs").fetch_one(&self.db.admin).await?;
        if left != 0 {
            bail!("{left} jobs are left");
        }
        let each = [0, 1, 2].map(|n| (after[n] - before[n]) * 1e6 / jobs as f64);
        Ok((each, jobs as f64 / spent.as_secs_f64(), queue.taken_up() as f64 / jobs as f64))
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

#[tokio::main]
async fn main() -> Result<()> {
    reeve_jobs::program::install_tls_provider();
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [jobs, turns] = args.as_slice() else { bail!("usage: CMD JOBS TURNS") };
    let (jobs, turns): (usize, usize) = (jobs.parse().context("JOBS")?, turns.parse().context("TURNS")?);
    if jobs == 0 || jobs % TENANTS != 0 {
        bail!("JOBS must be a multiple of {TENANTS}");
    }
    let bench = Bench::prepare().await?;
    Window::open(&bench.redis_url).await?;
    let mut out = std::io::stdout();
    let mut sums = [Vec::new(), Vec::new()];
    // The first of each warms up.
    for turn in 0..=turns {
        for windowed in [false, true] {
            let ([own, postgres, redis], rate, share) = bench.drain(jobs, windowed).await?;
            let sum = own + postgres + redis;
            writeln!(
                out,
                "window={windowed} own={own:.0} postgres={postgres:.0} redis={redis:.0} sum={sum:.0} us/job \
                 {rate:.0} jobs/s by_window={share:.2}"
            )?;
            if turn > 0 {
                sums[usize::from(windowed)].push(sum);
            }
        }
    }
    let [without, with] = sums.map(median);
    Ok(writeln!(out, "median sum: without {without:.0}, with {with:.0}: ratio {:.2}", with / without)?)
}

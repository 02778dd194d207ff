//! Bench `queue`: what the whole queue does, through the real runtime, with row-level security, fence and fairness on.
//!
//! `CMD MODE N CONCURRENCY`, with `DATABASE_URL` (a superuser's, of an empty database) in the environment, and the process
//! id of the server's parent in `POSTMASTER_PID` where its CPU time is to be counted. Modes:
//!
//! - `throughput`: a quarter of N, at most 4,000, enqueued one by one, CONCURRENCY at a time, the rest in bulk; then all
//!   drained by no-op handlers. The drain clock runs from the first handler call until every settlement is stored.
//!   `cpu_us_per_job` is this process' and PostgreSQL's together, from before the fleet starts until it has stopped.
//! - `latency`: N single enqueues into an idle queue, from just before the call to the handler's first line.
//! - `listen`: N times NOTIFY in a transaction that has to be written down, from just before it to the listener's answer: what no
//!   queue on PostgreSQL that is woken by it can beat.
//! - `spread`: N jobs over as many tenants as CONCURRENCY says, put there by SQL, drained by 16 at a time.
//! - `held`: keeps some thousand jobs ready for N seconds, drained by CONCURRENCY at a time. After a quarter of them a
//!   snapshot is opened and held; `kept` is the pace of the last tenth against that of the first quarter. `elsewhere` is
//!   the same with the snapshot in the database `postgres`.
//! - `noisy`: one tenant floods N jobs of 5 ms; from 0.3 s later on 20 other tenants send one each, by turns, a hundred in
//!   all, spread over as many moments: one alone would tell where in a claim's round it fell.
#![allow(clippy::disallowed_methods, reason = "the bench stands for web apps and for their administrator")]
use std::{
    collections::HashMap,
    io::Write,
    str::FromStr,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use futures::{StreamExt, stream};
use reeve_jobs::{
    TenantContext, TenantId, client,
    job::{ClaimedJob, JobId, Outcome},
    kinds::{ProbeFleet, Work},
    program::{db, migrate},
    queue::PostgresQueue,
    tenant::Directory,
};
use reeve_worker::runtime::{Fleet, FleetConfig, Handler, Progress, fleet::Slots};
use sqlx::{
    Connection, PgConnection, PgPool,
    postgres::{PgConnectOptions, PgListener},
};
use tokio_util::sync::CancellationToken;

const TENANTS: usize = 20;
const BULK: usize = 1_000;
const SPREAD_SLOTS: usize = 16;
/// Linux reports CPU time to programs in these, whatever its kernel counts in.
const TICKS_PER_SEC: f64 = 100.0;
/// Jobs of quiet tenants beside a flood.
const VICTIMS: usize = 100;

/// Counts and times calls; sleeps as long as the job says.
#[derive(Clone, Default)]
struct Probe {
    calls: Arc<AtomicUsize>,
    first: Arc<OnceLock<Instant>>,
    /// Where started jobs are noted, when somebody wants to know.
    starts: Option<Arc<Mutex<HashMap<JobId, Instant>>>>,
    goal: usize,
    reached: CancellationToken,
}

impl Handler for Probe {
    async fn handle(&self, job: &ClaimedJob, _: TenantContext, work: Work, _: &Progress) -> Outcome {
        let now = Instant::now();
        self.first.get_or_init(|| now);
        if let Some(starts) = &self.starts {
            starts.lock().expect("no panic under this lock").insert(job.id, now);
        }
        if let Work::FleetProbe(ProbeFleet { sleep_ms: 1.., .. }) = &work {
            let Work::FleetProbe(probe) = work else { unreachable!("matched above") };
            tokio::time::sleep(Duration::from_millis(probe.sleep_ms)).await;
        }
        if self.calls.fetch_add(1, Ordering::Relaxed) + 1 == self.goal {
            self.reached.cancel();
        }
        Outcome::Done
    }
}

/// The database, prepared, seen as the app and as the worker.
struct Bench {
    admin: PgPool,
    app: PgPool,
    worker: PgPool,
    tenants: Vec<TenantId>,
    concurrency: usize,
}

impl Bench {
    async fn prepare(concurrency: usize) -> Result<Self> {
        let url = std::env::var("DATABASE_URL").context("DATABASE_URL is not set")?;
        let options = PgConnectOptions::from_str(&url).context("DATABASE_URL")?;
        let mut admin = PgConnection::connect_with(&options).await.context("DATABASE_URL")?;
        migrate::run(&mut admin).await?;
        let mut tenants = Vec::new();
        for i in 0..=TENANTS {
            let id: String = sqlx::query_scalar("SELECT reeve.register_tenant('tenant-' || $1, 'Tenant ' || $1)")
                .bind(format!("{i:02}"))
                .fetch_one(&mut admin)
                .await?;
            tenants.push(id.parse()?);
        }
        // As the roles that programs log in with: no ownership, no BYPASSRLS.
        let admin = db::pool(options.clone(), 2).await?;
        let app = db::pool(options.clone().options([("role", "reeve_app")]), concurrency as u32 + 2).await?;
        let worker = db::pool(options.options([("role", "reeve_worker")]), 8).await?;
        Ok(Self { admin, app, worker, tenants, concurrency })
    }

    fn fleet(&self, probe: &Probe) -> tokio::task::JoinHandle<Result<(), reeve_worker::runtime::fleet::FleetError>> {
        let fleet = Fleet {
            config: FleetConfig {
                name: format!("bench-{}", std::process::id()),
                region: "default".into(),
                queues: vec![Slots { queue: "probes".into(), slots: self.concurrency }],
                lease: Duration::from_secs(30),
                poll: Duration::from_secs(1),
                grace: Duration::from_secs(10),
            },
            queue: PostgresQueue::new(self.worker.clone()),
            pool: self.worker.clone(),
            directory: Directory::new(self.worker.clone()),
            handler: probe.clone(),
        };
        let stop = probe.reached.clone();
        tokio::spawn(fleet.run(async move { stop.cancelled().await }))
    }

    async fn bulk(&self, tenant: &TenantId, jobs: usize, sleep_ms: u64) -> Result<()> {
        let mut left = jobs;
        while left > 0 {
            let n = left.min(BULK);
            let payloads = vec![ProbeFleet { note: None, sleep_ms }; n];
            let mut tx = self.app.begin().await?;
            client::set_tenant(&mut tx, tenant).await?;
            client::enqueue_many(&mut tx, &payloads).await?;
            tx.commit().await?;
            left -= n;
        }
        Ok(())
    }

    async fn throughput(&self, n: usize) -> Result<String> {
        let single = (n / 4).min(4_000);
        let begun = Instant::now();
        let mut sent = stream::iter(0..single)
            .map(|i| client_alone(&self.app, &self.tenants[i % TENANTS]))
            .buffer_unordered(self.concurrency);
        while let Some(result) = sent.next().await {
            result?;
        }
        let enqueue1 = rate(single, begun.elapsed());
        let begun = Instant::now();
        let bulk = n - single;
        for (i, tenant) in self.tenants[..TENANTS].iter().enumerate() {
            self.bulk(tenant, bulk / TENANTS + usize::from(i < bulk % TENANTS), 0).await?;
        }
        let enqueue = rate(bulk, begun.elapsed());
        let probe = Probe { goal: n, ..Probe::default() };
        let cpu = cpu_ticks();
        self.fleet(&probe).await??;
        let drained = probe.first.get().context("no job ran")?.elapsed();
        let cpu_us = (cpu_ticks() - cpu) as f64 * 1e6 / TICKS_PER_SEC / n as f64;
        let left: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM reeve.claim('probes', 'default', 1, 'check', '', 1) WHERE id IS NOT NULL",
        )
        .fetch_one(&self.worker)
        .await?;
        if left != 0 || probe.calls.load(Ordering::Relaxed) != n {
            bail!("{} handler calls for {n} jobs, {left} left", probe.calls.load(Ordering::Relaxed));
        }
        let drain = rate(n, drained);
        Ok(format!(
            "enqueue1_per_s={enqueue1:.0}\nenqueue_per_s={enqueue:.0}\ndrain_per_s={drain:.0}\ncpu_us_per_job={cpu_us:.1}\n"
        ))
    }

    async fn latency(&self, n: usize) -> Result<String> {
        let starts: Arc<Mutex<HashMap<JobId, Instant>>> = Arc::default();
        let probe = Probe { goal: n, starts: Some(starts.clone()), ..Probe::default() };
        let fleet = self.fleet(&probe);
        tokio::time::sleep(Duration::from_millis(500)).await;
        let mut waits = Vec::with_capacity(n);
        for i in 0..n {
            let begun = Instant::now();
            let id = client_alone(&self.app, &self.tenants[i % TENANTS]).await?;
            let started = wait_for(&starts, id).await?;
            waits.push(started.duration_since(begun));
            tokio::time::sleep(out_of_step(i)).await;
        }
        fleet.await??;
        waits.sort_unstable();
        Ok(format!("p50_ms={:.2}\np99_ms={:.2}\n", at(&waits, 0.5), at(&waits, 0.99)))
    }

    async fn listen(&self, n: usize) -> Result<String> {
        let mut ears = PgListener::connect_with(&self.worker).await?;
        ears.listen("bench").await?;
        let mut waits = Vec::with_capacity(n);
        for i in 0..n {
            let begun = Instant::now();
            let mut tx = self.app.begin().await?;
            sqlx::query("-- bench.listen\nSELECT txid_current(), pg_notify('bench', '')").execute(&mut *tx).await?;
            tx.commit().await?;
            ears.recv().await?;
            waits.push(begun.elapsed());
            tokio::time::sleep(out_of_step(i)).await;
        }
        waits.sort_unstable();
        Ok(format!("p50_ms={:.2}\np99_ms={:.2}\n", at(&waits, 0.5), at(&waits, 0.99)))
    }

    /// Ready jobs straight into the table, evenly over the tenants `tenant-00`…, at once.
    async fn put(&self, jobs: usize, tenants: usize) -> Result<()> {
        sqlx::query(
            "-- bench.put
            INSERT INTO reeve.jobs (id, tenant_id, kind, queue, region, state, priority, attempts_max, run_at, payload)
            SELECT reeve.new_id(), 'tenant-' || CASE WHEN g % $2 < 10 THEN '0' ELSE '' END || g % $2, 'fleet.probe', 'probes',
                   'default', 'available', 3, 3, now(), '{}' FROM generate_series(1, $1) g",
        )
        .bind(jobs as i64)
        .bind(tenants as i64)
        .execute(&self.admin)
        .await?;
        Ok(())
    }

    async fn spread(&self, n: usize, tenants: usize) -> Result<String> {
        let ids = "tenant-' || CASE WHEN g < 10 THEN '0' ELSE '' END || g";
        sqlx::query(sqlx::AssertSqlSafe(format!(
            "-- bench.tenants
            INSERT INTO reeve.tenants (id, name, region) SELECT '{ids}, 'Tenant', 'default'
            FROM generate_series(0, $1 - 1) g ON CONFLICT DO NOTHING"
        )))
        .bind(tenants as i64)
        .execute(&self.admin)
        .await?;
        self.put(n, tenants).await?;
        sqlx::query("VACUUM ANALYZE").execute(&self.admin).await?;
        let probe = Probe { goal: n, ..Probe::default() };
        let cpu = cpu_ticks();
        self.fleet(&probe).await??;
        let drained = probe.first.get().context("no job ran")?.elapsed();
        let cpu_us = (cpu_ticks() - cpu) as f64 * 1e6 / TICKS_PER_SEC / n as f64;
        Ok(format!("drain_per_s={:.0}\ncpu_us_per_job={cpu_us:.1}\n", rate(n, drained)))
    }

    async fn held(&self, secs: usize, holder: &PgPool) -> Result<String> {
        let probe = Probe { goal: usize::MAX, ..Probe::default() };
        let fleet = self.fleet(&probe);
        let begun = Instant::now();
        let whole = Duration::from_secs(secs as u64);
        let (mut put, mut snapshot, mut marks) = (0, None, Vec::new());
        while begun.elapsed() < whole {
            let done = probe.calls.load(Ordering::Relaxed);
            marks.push((begun.elapsed(), done));
            if put - done.min(put) < 3_000 {
                self.put(3_000, TENANTS).await?;
                put += 3_000;
            }
            if snapshot.is_none() && begun.elapsed() > whole / 4 {
                let mut tx = holder.begin().await?;
                sqlx::query("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ").execute(&mut *tx).await?;
                sqlx::query("-- bench.held\nSELECT count(*) FROM pg_class").execute(&mut *tx).await?;
                snapshot = Some(tx);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        probe.reached.cancel();
        fleet.await??;
        let pace = |from: Duration, to: Duration| {
            let within: Vec<_> = marks.iter().filter(|(at, _)| (from..=to).contains(at)).collect();
            let (Some(first), Some(last)) = (within.first(), within.last()) else { return f64::NAN };
            (last.1 - first.1) as f64 / (last.0 - first.0).as_secs_f64()
        };
        // The first tenth warms up.
        let (before, after) = (pace(whole / 10, whole / 4), pace(whole / 10 * 9, whole));
        drop(snapshot);
        Ok(format!("before_per_s={before:.0}\nafter_per_s={after:.0}\nkept={:.2}\n", after / before))
    }

    async fn noisy(&self, n: usize) -> Result<String> {
        self.bulk(&self.tenants[TENANTS], n, 5).await?;
        let starts: Arc<Mutex<HashMap<JobId, Instant>>> = Arc::default();
        let probe = Probe { goal: n + VICTIMS, starts: Some(starts.clone()), ..Probe::default() };
        let fleet = self.fleet(&probe);
        tokio::time::sleep(Duration::from_millis(300)).await;
        let mut waits = Vec::new();
        for i in 0..VICTIMS {
            let begun = Instant::now();
            let id = client_alone(&self.app, &self.tenants[i % TENANTS]).await?;
            waits.push(wait_for(&starts, id).await?.duration_since(begun));
            tokio::time::sleep(out_of_step(i)).await;
        }
        let flooding = probe.calls.load(Ordering::Relaxed) < n;
        probe.reached.cancel();
        fleet.await??;
        if !flooding {
            bail!("the flood of {n} jobs was over before the others had been served; take a larger N");
        }
        waits.sort_unstable();
        Ok(format!("victim_p50_ms={:.2}\nvictim_max_ms={:.2}\n", at(&waits, 0.5), at(&waits, 1.0)))
    }
}

async fn client_alone(app: &PgPool, tenant: &TenantId) -> Result<JobId, client::EnqueueError> {
    client::enqueue_alone(app, tenant, &ProbeFleet::default()).await
}

async fn wait_for(starts: &Mutex<HashMap<JobId, Instant>>, id: JobId) -> Result<Instant> {
    let begun = Instant::now();
    loop {
        if let Some(started) = starts.lock().expect("no panic under this lock").get(&id) {
            return Ok(*started);
        }
        if begun.elapsed() > Duration::from_secs(120) {
            bail!("job {id} did not start within two minutes");
        }
        tokio::time::sleep(Duration::from_micros(500)).await;
    }
}

/// 0 to 20 ms, spread by the golden ratio: in step with no polling and no round of claims.
fn out_of_step(i: usize) -> Duration {
    Duration::from_micros((i as u64).wrapping_mul(12_361) % 20_000)
}

/// CPU time so far: of this process, of the server's parent, of its children that ended, and of those that run. 0 where
/// there is no /proc.
fn cpu_ticks() -> u64 {
    let postmaster = std::env::var("POSTMASTER_PID").unwrap_or_default();
    let own = std::process::id().to_string();
    let Ok(processes) = std::fs::read_dir("/proc") else { return 0 };
    let mut ticks = 0;
    for process in processes.flatten() {
        let name = process.file_name().to_string_lossy().into_owned();
        // Gone since, or no process.
        let Ok(stat) = std::fs::read_to_string(process.path().join("stat")) else { continue };
        let Some((_, after_name)) = stat.rsplit_once(") ") else { continue };
        let fields: Vec<_> = after_name.split(' ').collect();
        let sum =
            |range: std::ops::Range<usize>| -> u64 { fields[range].iter().filter_map(|f| f.parse::<u64>().ok()).sum() };
        // State, parent, …; user and system time are the 12th and 13th here, those of ended children follow.
        if name == postmaster {
            ticks += sum(11..15);
        } else if name == own || fields[1] == postmaster {
            ticks += sum(11..13);
        }
    }
    ticks
}

fn rate(jobs: usize, spent: Duration) -> f64 {
    jobs as f64 / spent.as_secs_f64()
}

fn at(sorted: &[Duration], share: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * share).round() as usize).map_or(f64::NAN, |wait| wait.as_secs_f64() * 1e3)
}

#[tokio::main]
async fn main() -> Result<()> {
    reeve_jobs::program::install_tls_provider();
    reeve_jobs::program::telemetry::start()?;
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [mode, n, concurrency] = args.as_slice() else {
        bail!("usage: CMD throughput|latency|listen|spread|held|elsewhere|noisy N CONCURRENCY")
    };
    let (n, concurrency): (usize, usize) = (n.parse().context("N")?, concurrency.parse().context("CONCURRENCY")?);
    let bench = Bench::prepare(if mode == "spread" { SPREAD_SLOTS } else { concurrency }).await?;
    let report = match mode.as_str() {
        "throughput" => bench.throughput(n).await?,
        "latency" => bench.latency(n).await?,
        "listen" => bench.listen(n).await?,
        "spread" => bench.spread(n, concurrency).await?,
        "held" => bench.held(n, &bench.admin).await?,
        "elsewhere" => {
            let options = bench.admin.connect_options().as_ref().clone().database("postgres");
            bench.held(n, &db::pool(options, 1).await?).await?
        }
        "noisy" => bench.noisy(n).await?,
        other => bail!("unknown mode {other:?}; modes are throughput, latency, listen, spread, held, elsewhere, noisy"),
    };
    Ok(std::io::stdout().lock().write_all(report.as_bytes())?)
}

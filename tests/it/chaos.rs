//! What happens when things break: workers killed, leases lost, connections cut, handlers that panic or hang.
mod storm;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use reeve_jobs::{
    TenantContext, TenantId, client,
    job::{ClaimedJob, JobId, LeaseToken, Outcome},
    kinds::{ProbeFleet, Work},
    queue::{Lane, PostgresQueue, Queue, Settlement},
};
use reeve_scheduler::rescuer;
use reeve_worker::runtime::{Handler, Progress};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::support::{Receiver, Town, until};

/// A handler made of a function of the job and its probe payload.
#[derive(Clone)]
struct Does<F>(F);

impl<F, Fut> Handler for Does<F>
where
    F: Fn(ClaimedJob, ProbeFleet) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Outcome> + Send,
{
    async fn handle(&self, job: &ClaimedJob, _: TenantContext, work: Work, _: &Progress) -> Outcome {
        match work {
            Work::FleetProbe(probe) => (self.0)(job.clone(), probe).await,
            other => panic!("only probes here, not {other:?}"),
        }
    }
}

fn sleeping(ms: u64) -> ProbeFleet {
    ProbeFleet { note: None, sleep_ms: ms }
}

async fn enqueue(town: &Town, tenant: &TenantId, probe: &ProbeFleet) -> JobId {
    client::enqueue_alone(&town.app, tenant, probe).await.expect("enqueued")
}

async fn flood(town: &Town, tenant: &TenantId, jobs: usize) {
    let mut tx = town.app.begin().await.expect("begin");
    client::set_tenant(&mut tx, tenant).await.expect("context");
    client::enqueue_many(&mut tx, &vec![ProbeFleet::default(); jobs]).await.expect("enqueued");
    tx.commit().await.expect("commit");
}

/// What the scheduler does all the time: takes back what dead workers held, and promotes what is due.
fn rescue_for_ever(town: &Town) -> AbortOnDropHandle<()> {
    let pool = town.db.admin.clone();
    AbortOnDropHandle::new(tokio::spawn(async move {
        loop {
            rescuer::run_once(&pool).await.expect("rescue");
            sqlx::query("SELECT reeve.promote(1000)").execute(&pool).await.expect("promote");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }))
}

async fn running(town: &Town) -> i64 {
    town.count("SELECT count(*) FROM reeve.jobs WHERE state = 'running'").await
}

fn send_signal(child: &tokio::process::Child, signal: i32) {
    let pid = i32::try_from(child.id().expect("it runs")).expect("a pid");
    // SAFETY: kill(2) of a child that has not been waited for: its pid cannot be another process'.
    #[allow(unsafe_code, reason = "there is no safe kill in the standard library")]
    let sent = unsafe { libc::kill(pid, signal) };
    assert_eq!(sent, 0);
}

#[tokio::test]
async fn a_killed_workers_jobs_all_end_settled_and_every_duplicate_is_explained() {
    let town = Town::new().await;
    let receiver = Receiver::start().await;
    *receiver.delay.lock().expect("lock") = Duration::from_millis(400);
    town.endpoint(&town.a, &receiver.url("/a")).await;
    let events = 300;
    let mut tx = town.app.begin().await.expect("begin");
    client::set_tenant(&mut tx, &town.a).await.expect("context");
    for i in 0..events {
        client::emit(&mut tx, "message.received", &serde_json::json!({"id": i})).await.expect("emit");
    }
    tx.commit().await.expect("commit");

    let settings = [("REEVE_WORKER__LEASE_SECS", "4"), ("REEVE_WORKER__SLOTS__WEBHOOKS", "50")];
    let mut victim = town.worker_program_with(&settings);
    until("the victim holds 50 jobs or more, mid-work", async || {
        running(&town).await >= 50 && receiver.seen().len() >= 60
    })
    .await;
    victim.kill().await.expect("kill -9");
    // What it had sent may still be carried out; then nothing of it is left.
    until("the server has noticed", async || {
        let sql = "SELECT count(*) FROM pg_stat_activity
                   WHERE datname = current_database() AND application_name = 'reeve-worker'";
        town.count(sql).await == 0
    })
    .await;
    let held = running(&town).await;
    assert!(held >= 50, "the victim held {held} jobs when it was killed");

    let _rescuer = rescue_for_ever(&town);
    let mut heir = town.worker_program_with(&settings);
    until("every job has settled", async || town.count("SELECT count(*) FROM reeve.jobs").await == 0).await;
    heir.kill().await.expect("killed");

    assert_eq!(town.count("SELECT count(*) FROM reeve.job_history WHERE state = 'completed'").await, events);
    assert_eq!(town.count("SELECT count(*) FROM reeve.webhook_deliveries WHERE state = 'delivered'").await, events);
    let mut times: HashMap<String, usize> = HashMap::new();
    for seen in receiver.seen() {
        *times.entry(seen.header("webhook-id")).or_default() += 1;
    }
    assert_eq!(i64::try_from(times.len()).expect("small"), events, "an event never arrived");
    // An effect happened again only where an attempt was cut short, which its attempt row says: once for each.
    let interrupted: Vec<String> = sqlx::query_scalar(
        "SELECT d.event_id FROM reeve.job_attempts t
         JOIN reeve.job_history h ON h.id = t.job_id AND h.tenant_id = t.tenant_id
         JOIN reeve.webhook_deliveries d ON d.tenant_id = h.tenant_id AND d.id::text = h.payload ->> 'delivery_id'
         WHERE t.outcome = 'lease_expired'",
    )
    .fetch_all(&town.db.admin)
    .await
    .expect("attempts");
    for (id, n) in &times {
        let explained = interrupted.iter().filter(|event| *event == id).count();
        assert!(*n <= 1 + explained, "{id} arrived {n} times, and {explained} attempts were cut short");
    }
    assert!(i64::try_from(interrupted.len()).expect("small") >= held, "a job that the victim held has no attempt row");
    let again: usize = times.values().map(|n| n - 1).sum();
    eprintln!(
        "{held} jobs were held at the kill; {} attempts were cut short; {again} events arrived again",
        interrupted.len()
    );
}

fn lane() -> Lane {
    Lane { queue: "probes".to_owned(), region: "default".to_owned() }
}

fn done(job: &ClaimedJob) -> Settlement {
    Settlement { job: job.id, token: job.lease_token, outcome: "completed", delay: Duration::ZERO, error: None }
}

#[tokio::test]
async fn a_stale_worker_cannot_settle_nor_renew() {
    let town = Town::new().await;
    let job = enqueue(&town, &town.a, &ProbeFleet::default()).await;
    let queue = PostgresQueue::new(town.worker.clone());
    let claim = async |worker| {
        let claim = queue.claim(&lane(), 1, worker, "", Duration::from_secs(30)).await.expect("a claim");
        claim.jobs.into_iter().next().expect("the job")
    };
    let stale = claim("first").await;
    sqlx::query("UPDATE reeve.jobs SET lease_expires_at = now() - interval '1 s'")
        .execute(&town.db.admin)
        .await
        .expect("time passes");
    rescuer::run_once(&town.db.admin).await.expect("rescue");
    let current = claim("second").await;
    assert_eq!((current.id, current.attempt, current.rescues), (job, 2, 1));

    let renewed = queue.renew(&[(stale.id, stale.lease_token)], Duration::from_secs(30)).await.expect("answered");
    assert_eq!(renewed, vec![]);
    for outcome in ["completed", "retry", "dead", "release", "quarantine", "cancelled"] {
        let settled = queue.settle(&[Settlement { outcome, ..done(&stale) }]).await.expect("answered");
        assert_eq!(settled, vec![], "{outcome}");
    }
    assert_eq!(town.state(job).await, "running");
    assert_eq!(queue.settle(&[done(&current)]).await.expect("answered"), vec![job]);
    assert_eq!(town.state(job).await, "completed");
    // Nor twice, by whom it was.
    assert_eq!(queue.settle(&[done(&current)]).await.expect("answered"), vec![]);
}

#[tokio::test]
async fn a_job_that_kills_its_worker_three_times_is_quarantined_with_evidence() {
    let town = Town::new().await;
    let job = enqueue(&town, &town.a, &sleeping(25_000)).await;
    let _rescuer = rescue_for_ever(&town);
    for n in 1..=3 {
        let name = format!("victim-{n}");
        let mut victim =
            town.worker_program_with(&[("REEVE_WORKER__LEASE_SECS", "4"), ("REEVE_WORKER__NAME", name.as_str())]);
        until("the job has started", async || {
            town.count("SELECT count(*) FROM reeve.jobs WHERE state = 'running' AND attempted_at IS NOT NULL").await
                == 1
        })
        .await;
        victim.kill().await.expect("kill -9");
        until("the job was taken back", async || running(&town).await == 0).await;
    }
    assert_eq!(town.state(job).await, "quarantined");
    let evidence: String = sqlx::query_scalar("SELECT reason FROM reeve.audit_log JOIN reeve.audit_bodies USING (tenant_id, seq) WHERE action = 'job.quarantined'")
        .fetch_one(&town.db.admin)
        .await
        .expect("one entry");
    for n in 1..=3 {
        assert!(evidence.contains(&format!("victim-{n} (attempt {n})")), "{evidence}");
    }
    // Nobody takes it up again.
    let queue = PostgresQueue::new(town.worker.clone());
    assert!(queue.claim(&lane(), 10, "w", "", Duration::from_secs(30)).await.expect("a claim").jobs.is_empty());
}

/// Jobs that merely stood beside a killer are no killers: its quarantine must not take them along.
#[tokio::test]
async fn neighbours_of_a_job_that_kills_its_worker_are_done_all_the_same() {
    let town = Town::new().await;
    let killer = enqueue(&town, &town.a, &sleeping(25_000)).await;
    let _rescuer = rescue_for_ever(&town);
    let mut first_blood = 0;
    for n in 1..=3 {
        // One slot: the killer runs, or waits behind what was rescued with it; the others only stand in the buffer.
        let mut victim =
            town.worker_program_with(&[("REEVE_WORKER__LEASE_SECS", "4"), ("REEVE_WORKER__SLOTS__PROBES", "1")]);
        if n == 1 {
            until("the killer runs", async || running(&town).await == 1).await;
            flood(&town, &town.b, 30).await;
        }
        until("the killer has started", async || {
            town.count(
                "SELECT count(*) FROM reeve.jobs WHERE state = 'running' AND attempted_at IS NOT NULL
                        AND payload ->> 'sleep_ms' = '25000'",
            )
            .await
                == 1
        })
        .await;
        if n == 1 {
            until("others stand behind it", async || running(&town).await > 1).await;
            first_blood = running(&town).await - 1;
        }
        victim.kill().await.expect("kill -9");
        until("all were taken back", async || running(&town).await == 0).await;
    }
    assert_eq!(town.state(killer).await, "quarantined");
    assert!(first_blood >= 1);
    let mut heir = town.worker_program();
    until("the neighbours are done", async || {
        town.count("SELECT count(*) FROM reeve.job_history WHERE state = 'completed'").await == 30
    })
    .await;
    heir.kill().await.expect("killed");
    assert_eq!(town.count("SELECT count(*) FROM reeve.jobs WHERE state = 'quarantined'").await, 1);
}

#[tokio::test]
async fn a_settled_attempt_clears_the_record_of_lost_leases() {
    let town = Town::new().await;
    let job = enqueue(&town, &town.a, &ProbeFleet::default()).await;
    let queue = PostgresQueue::new(town.worker.clone());
    let claim = async || {
        let claim = queue.claim(&lane(), 1, "w", "", Duration::from_secs(30)).await.expect("a claim");
        claim.jobs.into_iter().next().expect("the job")
    };
    claim().await;
    sqlx::query("UPDATE reeve.jobs SET lease_expires_at = now() - interval '1 s'")
        .execute(&town.db.admin)
        .await
        .expect("lost");
    rescuer::run_once(&town.db.admin).await.expect("rescue");
    let second = claim().await;
    assert_eq!(second.rescues, 1);
    assert!(queue.mark_started(second.id, second.lease_token).await.expect("answered"));
    assert!(!queue.mark_started(second.id, LeaseToken(uuid::Uuid::nil())).await.expect("answered"));
    let retry = Settlement { outcome: "retry", ..done(&second) };
    assert_eq!(queue.settle(&[retry]).await.expect("answered"), vec![job]);
    assert_eq!(claim().await.rescues, 0);
}

/// A payload that PostgreSQL holds and this program cannot read: it dies alone.
#[tokio::test]
async fn a_job_that_cannot_be_read_takes_no_neighbour_with_it() {
    let town = Town::new().await;
    flood(&town, &town.a, 5).await;
    let mut tx = town.app.begin().await.expect("begin");
    client::set_tenant(&mut tx, &town.b).await.expect("context");
    for bad in [r#"{"sleep_ms": 1e400}"#.to_owned(), format!("{{\"note\": {}1{}}}", "[".repeat(200), "]".repeat(200))] {
        sqlx::query("SELECT reeve.enqueue('fleet.probe', $1::jsonb)")
            .bind(bad)
            .execute(&mut *tx)
            .await
            .expect("enqueued");
    }
    tx.commit().await.expect("commit");
    let fleet = town.fleet(Does(|_, _| async { Outcome::Done }), 4);
    until("all have settled", async || {
        town.count("SELECT count(*) FROM reeve.jobs WHERE state IN ('available', 'running', 'retryable')").await == 0
    })
    .await;
    fleet.stop().await;
    assert_eq!(town.count("SELECT count(*) FROM reeve.job_history WHERE state = 'completed'").await, 5);
    let dead = "SELECT count(*) FROM reeve.jobs WHERE state = 'dead' AND last_error LIKE 'the job cannot be read%'";
    assert_eq!(town.count(dead).await, 2);
}

#[tokio::test]
async fn a_stopped_worker_settles_what_ends_in_time_and_gives_back_the_rest() {
    let town = Town::new().await;
    for _ in 0..3 {
        enqueue(&town, &town.a, &sleeping(300)).await;
        enqueue(&town, &town.a, &sleeping(25_000)).await;
    }
    let mut worker =
        town.worker_program_with(&[("REEVE_WORKER__GRACE_SECS", "1"), ("REEVE_WORKER__SLOTS__PROBES", "6")]);
    until("all six run", async || running(&town).await == 6).await;
    flood(&town, &town.a, 50).await;
    until("some stand in the buffer", async || running(&town).await > 6).await;
    send_signal(&worker, libc::SIGTERM);
    until("what never started is given back at once", async || running(&town).await <= 6).await;
    let ended = worker.wait().await.expect("it ends");
    assert!(ended.success(), "{ended}");
    assert_eq!(running(&town).await, 0, "held by a process that is gone");
    assert_eq!(
        town.count("SELECT count(*) FROM reeve.job_history WHERE payload ->> 'sleep_ms' = '300'").await,
        3,
        "short jobs were to be finished"
    );
    assert_eq!(
        town.count(
            "SELECT count(*) FROM reeve.jobs WHERE state = 'available' AND attempt = 0 AND lease_token IS NULL
             AND payload ->> 'sleep_ms' = '25000'"
        )
        .await,
        3,
        "long jobs were to be given back, uncounted"
    );
}

#[tokio::test]
async fn a_job_longer_than_its_lease_keeps_it_and_runs_once() {
    let town = Town::new().await;
    let starts = Arc::new(AtomicUsize::new(0));
    let counted = starts.clone();
    let job = enqueue(&town, &town.a, &sleeping(3_500)).await;
    let _rescuer = rescue_for_ever(&town);
    let handler = Does(move |_, probe: ProbeFleet| {
        counted.fetch_add(1, Ordering::Relaxed);
        async move {
            tokio::time::sleep(Duration::from_millis(probe.sleep_ms)).await;
            Outcome::Done
        }
    });
    let fleet = town.fleet_with(handler, |config| config.lease = Duration::from_secs(1));
    until("it is done", async || town.state(job).await == "completed").await;
    fleet.stop().await;
    assert_eq!(starts.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_job_whose_lease_was_taken_is_told_to_stop() {
    let town = Town::new().await;
    let stopped = CancellationToken::new();
    let (started, guard) = (CancellationToken::new(), stopped.clone());
    let seen = started.clone();
    let job = enqueue(&town, &town.a, &ProbeFleet::default()).await;
    let handler = Does(move |job: ClaimedJob, _| {
        let (guard, seen) = (guard.clone(), seen.clone());
        async move {
            if job.attempt > 1 {
                return Outcome::Done;
            }
            // Dropped with the attempt's future.
            let _told = guard.drop_guard();
            seen.cancel();
            std::future::pending().await
        }
    });
    let fleet = town.fleet_with(handler, |config| config.lease = Duration::from_secs(1));
    started.cancelled().await;
    sqlx::query("UPDATE reeve.jobs SET state = 'available', lease_token = NULL WHERE id = $1")
        .bind(job)
        .execute(&town.db.admin)
        .await
        .expect("taken away");
    // Its budget would end it too, after 30 s: this is to be the lease's doing.
    tokio::time::timeout(Duration::from_secs(20), stopped.cancelled()).await.expect("told to stop");
    until("the next attempt does it", async || town.state(job).await == "completed").await;
    fleet.stop().await;
}

/// What it had done may be done again, and whoever sees it twice must find out why.
#[tokio::test]
async fn a_broken_off_attempt_is_given_back_uncounted_and_on_record() {
    let town = Town::new().await;
    let job = enqueue(&town, &town.a, &ProbeFleet::default()).await;
    let started = CancellationToken::new();
    let seen = started.clone();
    let handler = Does(move |_, _| {
        seen.cancel();
        std::future::pending()
    });
    let fleet = town.fleet_with(handler, |config| config.grace = Duration::ZERO);
    started.cancelled().await;
    fleet.stop().await;
    assert_eq!(town.state(job).await, "available");
    assert_eq!(town.count("SELECT attempt::bigint FROM reeve.jobs").await, 0);
    let record = "SELECT count(*) FROM reeve.job_attempts WHERE outcome = 'interrupted' AND attempt = 1 AND started_at IS NOT NULL";
    assert_eq!(town.count(record).await, 1);
}

#[tokio::test]
async fn a_running_job_is_cancelled_by_an_operator() {
    let town = Town::new().await;
    let job = enqueue(&town, &town.a, &sleeping(25_000)).await;
    let fleet = town.fleet_with(town.duties(), |config| config.lease = Duration::from_secs(1));
    until("it runs", async || running(&town).await == 1).await;
    sqlx::query("SELECT reeve.cancel_job($1, 'test', 'changed our mind')")
        .bind(job)
        .execute(&town.db.pool("reeve_ops").await)
        .await
        .expect("asked");
    until("it is cancelled", async || town.state(job).await == "cancelled").await;
    fleet.stop().await;
    let why: String = sqlx::query_scalar("SELECT last_error FROM reeve.job_history WHERE id = $1")
        .bind(job)
        .fetch_one(&town.db.admin)
        .await
        .expect("history");
    assert_eq!(why, "changed our mind");
    assert_eq!(town.count("SELECT count(*) FROM reeve.audit_log WHERE action = 'job.cancelled'").await, 1);
}

#[tokio::test]
async fn cut_connections_cost_no_job_and_end_no_worker() {
    let town = Town::new().await;
    let jobs = 3_000;
    flood(&town, &town.a, jobs / 2).await;
    flood(&town, &town.b, jobs / 2).await;
    let handler = Does(|_, _| async {
        tokio::time::sleep(Duration::from_millis(2)).await;
        Outcome::Done
    });
    let _rescuer = rescue_for_ever(&town);
    let fleet = town.fleet_with(handler, |config| config.lease = Duration::from_secs(3));
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(150)).await;
        sqlx::query(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
             WHERE datname = current_database() AND usename = 'reeve_worker'",
        )
        .execute(&town.db.admin)
        .await
        .expect("cut");
    }
    until("all are done", async || town.count("SELECT count(*) FROM reeve.jobs").await == 0).await;
    fleet.stop().await;
    let done = town.count("SELECT count(*) FROM reeve.job_history WHERE state = 'completed'").await;
    assert_eq!(done, i64::try_from(jobs).expect("small"));
}

#[tokio::test]
async fn a_panic_is_the_jobs_failure_and_its_message_is_not_kept() {
    let town = Town::new().await;
    let job = enqueue(&town, &town.a, &ProbeFleet::default()).await;
    let fleet = town.fleet(
        Does(|job: ClaimedJob, _| async move {
            assert!(job.attempt > 1, "ada@example.org has the balance 42");
            Outcome::Done
        }),
        2,
    );
    until("it failed", async || town.state(job).await == "retryable").await;
    sqlx::query("UPDATE reeve.jobs SET run_at = now()").execute(&town.db.admin).await.expect("time passes");
    sqlx::query("SELECT reeve.promote(10)").execute(&town.db.admin).await.expect("promoted");
    until("it is done", async || town.state(job).await == "completed").await;
    fleet.stop().await;
    let error: String = sqlx::query_scalar("SELECT error FROM reeve.job_attempts WHERE job_id = $1")
        .bind(job)
        .fetch_one(&town.db.admin)
        .await
        .expect("one failed attempt");
    assert_eq!(error, "the handler panicked");
}

#[tokio::test]
async fn an_unknown_kind_and_an_undecodable_payload_are_retried_and_then_die() {
    let town = Town::new().await;
    let mut jobs = Vec::new();
    for (kind, payload) in [("fleet.dance", "{}"), ("fleet.probe", r#"{"sleep_ms": "long"}"#)] {
        let id: JobId = sqlx::query_scalar(
            "INSERT INTO reeve.jobs (id, tenant_id, kind, queue, region, state, priority, attempts_max, run_at, payload)
             VALUES (reeve.new_id(), 'a', $1, 'probes', 'default', 'available', 2, 2, now(), $2::jsonb) RETURNING id",
        )
        .bind(kind)
        .bind(payload)
        .fetch_one(&town.db.admin)
        .await
        .expect("inserted");
        jobs.push(id);
    }
    let fleet = town.fleet(Does(|_, _| async { panic!("reached a handler") }), 2);
    until("both failed once", async || {
        town.count("SELECT count(*) FROM reeve.jobs WHERE state = 'retryable'").await == 2
    })
    .await;
    sqlx::query("UPDATE reeve.jobs SET run_at = now()").execute(&town.db.admin).await.expect("time passes");
    sqlx::query("SELECT reeve.promote(10)").execute(&town.db.admin).await.expect("promoted");
    until("both are dead", async || town.count("SELECT count(*) FROM reeve.jobs WHERE state = 'dead'").await == 2)
        .await;
    fleet.stop().await;
    let errors: Vec<String> = sqlx::query_scalar("SELECT last_error FROM reeve.jobs ORDER BY kind")
        .fetch_all(&town.db.admin)
        .await
        .expect("errors");
    assert!(errors[0].contains("fleet.dance") && errors[0].contains("fleet.probe"), "{errors:?}");
    assert!(errors[1].contains("not one of fleet.probe") && errors[1].contains("u64"), "{errors:?}");
}

#[tokio::test]
async fn a_flood_of_one_tenant_does_not_hold_up_another() {
    let town = Town::new().await;
    let order = Arc::new(Mutex::new(Vec::new()));
    let noted = order.clone();
    let handler = Does(move |job: ClaimedJob, _| {
        noted.lock().expect("lock").push(job.tenant);
        async { Outcome::Done }
    });
    let fleet = town.fleet(handler, 4);
    let all_done = async || town.count("SELECT count(*) FROM reeve.jobs").await == 0;
    // One job each first: what a worker does once for a tenant (a connection, the directory's entry) is no flood's doing.
    flood(&town, &town.a, 1).await;
    flood(&town, &town.b, 1).await;
    until("the worker knows both", all_done).await;
    let pause = async |paused| {
        sqlx::query("UPDATE reeve.tenants SET paused = $1").bind(paused).execute(&town.db.admin).await.expect("set");
    };
    pause(true).await;
    flood(&town, &town.a, 4_000).await;
    flood(&town, &town.b, 20).await;
    pause(false).await;
    until("all are done", all_done).await;
    fleet.stop().await;
    let order = order.lock().expect("lock");
    let last_of_b = order.iter().rposition(|tenant| *tenant == town.b).expect("b had jobs");
    assert!(last_of_b < 200, "b's last of 20 jobs started as number {last_of_b} of {}", order.len());
}

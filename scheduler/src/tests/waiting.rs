//! Waiting jobs become available, lost ones are taken back, and the services live through faults.
use std::time::Duration;

use reeve_jobs::redact::Redacted;
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{ask, database, run};
use crate::{
    config::Config,
    promoter,
    rescuer::{self, Rescued},
    service,
};

/// Inserts a job of `t1`; `columns` and `values` beyond the usual.
async fn job(db: &PgPool, state: &str, columns: &str, values: &str) -> Uuid {
    let id = Uuid::now_v7();
    run(
        db,
        &format!(
            "INSERT INTO reeve.jobs (id, tenant_id, kind, queue, region, state, priority, attempts_max, payload, {columns})
             VALUES ('{id}', 't1', 'test.tick', 'tests', 'default', '{state}', 3, 5, '{{}}', {values})"
        ),
    )
    .await;
    id
}

/// A running job whose lease ended a minute ago.
async fn lost(db: &PgPool, attempt: i32, rescues: i32) -> Uuid {
    job(
        db,
        "running",
        "attempt, rescues, run_at, attempted_at, worker, lease_token, lease_expires_at",
        &format!("{attempt}, {rescues}, now(), now(), 'w{attempt}', gen_random_uuid(), now() - interval '1 minute'"),
    )
    .await
}

/// What a worker does that claims the job and vanishes.
async fn claim_and_vanish(db: &PgPool, id: Uuid) {
    run(
        db,
        &format!(
            "UPDATE reeve.jobs SET state = 'running', attempt = attempt + 1, worker = 'w' || attempt + 1,
             attempted_at = now(), lease_token = gen_random_uuid(), lease_expires_at = now() - interval '1 minute'
             WHERE id = '{id}'"
        ),
    )
    .await;
}

async fn state(db: &PgPool, id: Uuid) -> String {
    ask(db, &format!("SELECT state || ' ' || attempt || ' ' || rescues FROM reeve.jobs WHERE id = '{id}'")).await
}

#[tokio::test]
async fn only_due_jobs_are_promoted() {
    let (database, pool) = database().await;
    let db = &database.admin;
    let due = job(db, "scheduled", "run_at", "now() - interval '1 second'").await;
    let again = job(db, "retryable", "run_at, attempt", "now() - interval '1 second', 1").await;
    let later = job(db, "scheduled", "run_at", "now() + interval '1 hour'").await;
    let dead = job(db, "dead", "run_at", "now() - interval '1 hour'").await;
    assert_eq!(promoter::run_once(&pool).await.expect("a run"), 2);
    assert_eq!(state(db, due).await, "available 0 0");
    assert_eq!(state(db, again).await, "available 1 0");
    assert_eq!(state(db, later).await, "scheduled 0 0");
    assert_eq!(state(db, dead).await, "dead 0 0");
    database.drop_now().await;
}

#[tokio::test]
async fn promotion_and_rescue_go_on_until_a_batch_is_not_full() {
    let (database, pool) = database().await;
    let db = &database.admin;
    for _ in 0..6 {
        job(db, "scheduled", "run_at", "now() - interval '1 second'").await;
        lost(db, 1, 0).await;
    }
    assert_eq!(promoter::run_batches(&pool, 2).await.expect("a run"), 6);
    assert_eq!(rescuer::run_batches(&pool, 2).await.expect("a run").available, 6);
    assert_eq!(ask(db, "SELECT count(*) FROM reeve.jobs WHERE state = 'available'").await, "12");
    database.drop_now().await;
}

#[tokio::test]
async fn a_lost_job_is_available_again_and_its_attempt_on_record() {
    let (database, pool) = database().await;
    let db = &database.admin;
    let id = lost(db, 1, 0).await;
    let held = job(
        db,
        "running",
        "attempt, run_at, worker, lease_token, lease_expires_at",
        "1, now(), 'alive', gen_random_uuid(), now() + interval '20 seconds'",
    )
    .await;
    let rescued = rescuer::run_once(&pool).await.expect("a run");
    assert_eq!(rescued, Rescued { available: 1, ..Rescued::default() });
    assert_eq!(state(db, id).await, "available 1 1");
    assert_eq!(state(db, held).await, "running 1 0");
    let attempts =
        "SELECT string_agg(job_id || ' ' || attempt || ' ' || outcome || ' ' || worker, ';') FROM reeve.job_attempts";
    assert_eq!(ask(db, attempts).await, format!("{id} 1 lease_expired w1"));
    assert_eq!(rescuer::run_once(&pool).await.expect("a run"), Rescued::default());
    database.drop_now().await;
}

#[tokio::test]
async fn the_third_lost_lease_quarantines_with_evidence() {
    let (database, pool) = database().await;
    let db = &database.admin;
    let id = lost(db, 1, 0).await;
    for _ in 0..2 {
        assert_eq!(rescuer::run_once(&pool).await.expect("a run").available, 1);
        claim_and_vanish(db, id).await;
    }
    let rescued = rescuer::run_once(&pool).await.expect("a run");
    assert_eq!(rescued, Rescued { quarantined: 1, ..Rescued::default() });
    assert_eq!(state(db, id).await, "quarantined 3 3");
    let evidence = ask(db, "SELECT last_error FROM reeve.jobs").await;
    for worker in ["w1 (attempt 1)", "w2 (attempt 2)", "w3 (attempt 3)"] {
        assert!(evidence.contains(worker), "{evidence}");
    }
    let audit = "SELECT tenant_id || ' ' || action || ' ' || job_id || ' ' || reason
        FROM reeve.audit_log JOIN reeve.audit_bodies USING (tenant_id, seq)";
    let audit = ask(db, audit).await;
    assert_eq!(audit, format!("t1 job.quarantined {id} {evidence}"));
    database.drop_now().await;
}

#[tokio::test]
async fn a_lost_job_without_attempts_left_is_dead() {
    let (database, pool) = database().await;
    let id = lost(&database.admin, 5, 1).await;
    assert_eq!(rescuer::run_once(&pool).await.expect("a run"), Rescued { dead: 1, ..Rescued::default() });
    assert_eq!(state(&database.admin, id).await, "dead 5 2");
    database.drop_now().await;
}

#[tokio::test]
async fn a_lost_job_that_was_to_be_cancelled_does_not_run_again() {
    let (database, pool) = database().await;
    let db = &database.admin;
    let id = lost(db, 1, 0).await;
    let ops = database.pool("reeve_ops").await;
    run(&ops, &format!("SELECT reeve.cancel_job('{id}', 'ops:ann', 'wrong tenant')")).await;
    assert_eq!(rescuer::run_once(&pool).await.expect("a run"), Rescued { cancelled: 1, ..Rescued::default() });
    assert_eq!(ask(db, "SELECT count(*) FROM reeve.jobs").await, "0");
    let history = ask(db, "SELECT id || ' ' || state || ' ' || last_error FROM reeve.job_history").await;
    assert_eq!(history, format!("{id} cancelled wrong tenant"));
    assert_eq!(ask(db, "SELECT outcome FROM reeve.job_attempts").await, "lease_expired");
    ops.close().await;
    database.drop_now().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_schedulers_rescue_a_lost_job_once() {
    let (database, pool) = database().await;
    let db = &database.admin;
    for _ in 0..50 {
        lost(db, 1, 0).await;
    }
    let mut schedulers = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let pool = pool.clone();
        schedulers.spawn(async move { rescuer::run_batches(&pool, 7).await.expect("a run").available });
    }
    assert_eq!(schedulers.join_all().await.into_iter().sum::<u64>(), 50);
    assert_eq!(ask(db, "SELECT count(*) FROM reeve.job_attempts").await, "50");
    database.drop_now().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_services_live_through_lost_connections() {
    let (database, pool) = database().await;
    let db = &database.admin;
    let toml = Config {
        database_url: Redacted::new(database.url("reeve_scheduler")),
        tick_ms: 10,
        rescue_secs: 1,
        slots_secs: 1,
        upkeep_secs: 10,
        history_keep_days: 30,
        history_days_ahead: 3,
        parked_keep_days: 90,
        attempt_keep_days: 30,
        // Where nobody listens: that is the relay's trouble alone.
        redis_url: Some(Redacted::new("redis://127.0.0.1:1".to_owned())),
        window_queues: Vec::new(),
        relay_ms: 10,
        audit_key: None,
        audit_checkpoint_file: None,
        audit_checkpoint_secs: 3600,
    };
    let stop = CancellationToken::new();
    let running = tokio::spawn({
        let (pool, stop) = (pool.clone(), stop.clone());
        async move { service::run(&pool, &toml, &stop).await }
    });
    for _ in 0..3 {
        let id = job(db, "scheduled", "run_at", "now() - interval '1 second'").await;
        let mut tries = 0;
        while state(db, id).await != "available 0 0" {
            tries += 1;
            assert!(tries < 500, "nobody promotes any more");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        run(db, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'reeve_scheduler' AND datname = current_database()").await;
    }
    stop.cancel();
    running.await.expect("no panic").expect("stopped in order");
    database.drop_now().await;
}

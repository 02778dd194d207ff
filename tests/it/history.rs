//! Shorter history for a tenant or a kind, and the erasure of a person from all of a tenant's jobs.
use std::time::Duration;

use reeve_jobs::{
    JobId, TenantId,
    client::{self, Enqueue},
    kinds::ProbeFleet,
    queue::{Lane, PostgresQueue, Queue, Settlement},
};
use reeve_scheduler::pruner::{self, Keep};

use crate::support::Town;

const ANN: &str = "ann@example.org";

/// A job of this tenant about a subject.
async fn about(town: &Town, tenant: &TenantId, subject: &str, note: &str) -> JobId {
    let mut tx = town.app.begin().await.expect("begin");
    client::set_tenant(&mut tx, tenant).await.expect("context");
    let probe = ProbeFleet { note: Some(note.to_owned()), sleep_ms: 0 };
    let id = client::enqueue_about(&mut tx, subject, &probe, &Enqueue::default()).await.expect("enqueued");
    tx.commit().await.expect("commit");
    id
}

async fn become_(town: &Town, job: JobId, state: &str) {
    sqlx::query("UPDATE reeve.jobs SET state = $2, last_error = 'ann failed', unique_key = 'ann' WHERE id = $1")
        .bind(job)
        .bind(state)
        .execute(&town.db.admin)
        .await
        .expect("changed");
}

/// Claims the one ready job and settles it as done.
async fn run_one(town: &Town) {
    let queue = PostgresQueue::new(town.worker.clone());
    let lane = Lane { queue: "probes".to_owned(), region: "default".to_owned() };
    let job = queue.claim(&lane, 1, "w", "", Duration::from_secs(30)).await.expect("a claim").jobs.remove(0);
    let (job, token) = (job.id, job.lease_token);
    let done = Settlement { job, token, outcome: "completed", delay: Duration::ZERO, error: None };
    assert_eq!(queue.settle(&[done]).await.expect("settled"), [job]);
}

async fn erase(town: &Town, tenant: &str, subject: &str) -> (i64, i64, i64) {
    sqlx::query_as("SELECT * FROM reeve.erase_subject($1, $2, 'cli:kim', 'she asked')")
        .bind(tenant)
        .bind(subject)
        .fetch_one(&town.db.pool("reeve_ops").await)
        .await
        .expect("erased")
}

#[tokio::test]
async fn an_erasure_reaches_pending_dead_and_finished_jobs_of_this_subject_and_tenant_alone() {
    let town = Town::new().await;
    let (a, b) = (town.a.clone(), town.b.clone());
    about(&town, &a, ANN, "finished").await;
    run_one(&town).await;
    let dead = about(&town, &a, ANN, "dead").await;
    become_(&town, dead, "dead").await;
    let pending = about(&town, &a, ANN, "pending").await;
    about(&town, &a, "bob", "of another person").await;
    about(&town, &b, ANN, "of another tenant").await;

    assert_eq!(erase(&town, "a", ANN).await, (1, 2, 0));
    assert_eq!(town.state(pending).await, "cancelled");
    let left = "SELECT count(*) FROM (SELECT payload, last_error, unique_key FROM reeve.jobs
                UNION ALL SELECT payload, last_error, unique_key FROM reeve.job_history) x";
    assert_eq!(town.count(left).await, 5);
    let kept: Vec<String> = sqlx::query_scalar(
        "SELECT payload ->> 'note' FROM reeve.jobs WHERE payload <> '{}' UNION ALL
         SELECT payload ->> 'note' FROM reeve.job_history WHERE payload <> '{}' ORDER BY 1",
    )
    .fetch_all(&town.db.admin)
    .await
    .expect("read");
    assert_eq!(kept, ["of another person", "of another tenant"]);
    let said = "SELECT count(*) FROM reeve.jobs WHERE last_error IS NOT NULL OR unique_key IS NOT NULL";
    assert_eq!(town.count(said).await, 0);
    assert_eq!(erase(&town, "a", ANN).await, (0, 0, 0), "nothing is left to erase");
    let entries: Vec<String> = sqlx::query_scalar(
        "SELECT l.target || ' ' || b.reason FROM reeve.audit_log l JOIN reeve.audit_bodies b USING (tenant_id, seq)
         WHERE l.action = 'subject.erased' AND l.tenant_id = 'a' ORDER BY seq",
    )
    .fetch_all(&town.db.admin)
    .await
    .expect("audited");
    assert_eq!(entries.len(), 2);
    assert!(entries[0].contains("1 jobs cancelled, 2 redacted") && !entries[0].contains("ann"), "{}", entries[0]);
}

#[tokio::test]
async fn a_running_job_is_asked_to_stop_and_erased_when_it_has() {
    let town = Town::new().await;
    about(&town, &town.a, ANN, "running").await;
    let (id, token): (uuid::Uuid, uuid::Uuid) = sqlx::query_as(
        "SELECT id, lease_token FROM reeve.claim('probes', 'default', 1, 'w', '', 30) WHERE id IS NOT NULL",
    )
    .fetch_one(&town.worker)
    .await
    .expect("claimed");
    assert_eq!(erase(&town, "a", ANN).await, (0, 0, 1));
    sqlx::query("SELECT reeve.settle(ARRAY[$1], ARRAY[$2], ARRAY['release'], ARRAY[0], ARRAY[NULL])")
        .bind(id)
        .bind(token)
        .execute(&town.worker)
        .await
        .expect("settled");
    assert_eq!(town.state(JobId(id)).await, "cancelled");
    assert_eq!(erase(&town, "a", ANN).await, (0, 1, 0));
}

#[tokio::test]
async fn no_login_reads_a_subject_or_the_key_it_is_hashed_with() {
    let town = Town::new().await;
    about(&town, &town.a, ANN, "x").await;
    about(&town, &town.b, ANN, "x").await;
    for role in ["reeve_app", "reeve_worker", "reeve_scheduler", "reeve_ops"] {
        let pool = town.db.pool(role).await;
        for sql in [
            "SELECT outer_pad FROM reeve.subject_keys",
            "SELECT subject_hash FROM reeve.job_subjects",
            "SELECT reeve.subject_hash('a', 'ann@example.org')",
        ] {
            let said = sqlx::query(sql).execute(&pool).await.expect_err("refused").to_string();
            assert!(said.contains("permission denied"), "{role}: {said}");
        }
    }
    assert_eq!(town.count("SELECT count(DISTINCT subject_hash) FROM reeve.job_subjects").await, 2, "tenants differ");
    let plain = "SELECT count(*) FROM reeve.job_subjects WHERE subject_hash = sha256('ann@example.org')";
    assert_eq!(town.count(plain).await, 0);
}

#[tokio::test]
async fn history_past_the_shorter_time_of_its_tenant_or_kind_goes_and_its_subject_with_it() {
    let town = Town::new().await;
    for tenant in [&town.a, &town.b] {
        about(&town, tenant, ANN, "x").await;
        run_one(&town).await;
    }
    let old = |sql: &'static str| sqlx::query(sql).execute(&town.db.admin);
    old("UPDATE reeve.job_history SET finished_at = now() - interval '5 days', id = '01900000-0000-7000-8000-000000000000'")
        .await
        .expect("aged");
    old("UPDATE reeve.job_subjects SET job_id = '01900000-0000-7000-8000-000000000000'").await.expect("aged");
    let keep = Keep { history_days: 30, history_days_ahead: 1, parked_days: 30, attempt_days: 30 };
    let scheduler = town.db.pool("reeve_scheduler").await;
    let prune = async || {
        let pruned = pruner::run_once(&scheduler, &keep).await.expect("pruned");
        (pruned.history, pruned.subjects)
    };
    let rule = async |tenant: &str, kind: &str, days: i32| {
        sqlx::query("SELECT reeve.keep_history($1, $2, $3, 'cli:kim', 'the contract')")
            .bind(tenant)
            .bind(kind)
            .bind(days)
            .execute(&town.db.pool("reeve_ops").await)
            .await
            .expect("a rule");
    };
    assert_eq!(prune().await, (0, 0));
    rule("a", "*", 4).await;
    rule("b", "*", 6).await;
    rule("*", "webhook.prune", 0).await;
    assert_eq!(prune().await, (1, 1), "only a's is past its time");
    rule("*", "fleet.probe", 4).await;
    assert_eq!(prune().await, (1, 1), "the shortest rule holds");
}

#[tokio::test]
async fn a_job_about_a_subject_is_enqueued_as_any_other_and_one_job_may_be_about_several() {
    let town = Town::new().await;
    let mut tx = town.app.begin().await.expect("begin");
    client::set_tenant(&mut tx, &town.a).await.expect("context");
    let how = Enqueue {
        dedupe_key: Some("once".to_owned()),
        run_at: chrono::DateTime::from_timestamp(1_900_000_000, 0),
        priority: Some(1),
        traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned()),
    };
    let first = client::enqueue_about(&mut tx, ANN, &ProbeFleet::default(), &how).await.expect("enqueued");
    let again = client::enqueue_about(&mut tx, "bob", &ProbeFleet::default(), &how).await.expect("the same");
    assert_eq!(again, first);
    tx.commit().await.expect("commit");
    let as_asked = "SELECT count(*) FROM reeve.jobs WHERE unique_key = 'once' AND run_at = to_timestamp(1900000000)
                    AND priority = 1 AND traceparent LIKE '00-0af7%' AND tenant_id = 'a'";
    assert_eq!(town.count(as_asked).await, 1);
    assert_eq!(erase(&town, "a", "bob").await, (1, 0, 0));
    assert_eq!(erase(&town, "a", ANN).await, (0, 0, 0), "it is gone for both");
    // Refused without its subject, and so without a word about it.
    let mut tx = town.app.begin().await.expect("begin");
    client::set_tenant(&mut tx, &town.a).await.expect("context");
    let long = "ann".repeat(200);
    let refused = client::enqueue_about(&mut tx, &long, &ProbeFleet::default(), &Enqueue::default()).await;
    let said = format!("{:?}", refused.expect_err("refused"));
    assert!(said.contains("RV005") && !said.contains("ann"), "{said}");
}

//! Bulk operations: what the filter means and nothing else is changed, in steps that survive a crash, audited.
use reeve_jobs::{
    JobId, State, TenantId, client,
    kinds::ProbeFleet,
    queue::{
        Lane, PostgresQueue, Queue,
        bulk::{self, Bulk, BulkFilter, Target},
        operate::Act,
    },
};
use sqlx::PgPool;

use crate::support::Town;

const WHO: Act<'static> = Act { actor: "cli:kim", reason: "the receiver was down" };

struct Yard {
    town: Town,
    ops: PgPool,
    scheduler: PgPool,
}

impl Yard {
    async fn new() -> Self {
        let town = Town::new().await;
        let (ops, scheduler) = (town.db.pool("reeve_ops").await, town.db.pool("reeve_scheduler").await);
        Self { town, ops, scheduler }
    }

    async fn probes(&self, tenant: &TenantId, n: usize) -> Vec<JobId> {
        let mut tx = self.town.app.begin().await.expect("begin");
        client::set_tenant(&mut tx, tenant).await.expect("context");
        let ids = client::enqueue_many(&mut tx, &vec![ProbeFleet::default(); n]).await.expect("enqueued");
        tx.commit().await.expect("commit");
        ids
    }

    async fn change(&self, sql: &'static str) {
        sqlx::query(sql).execute(&self.town.db.admin).await.expect(sql);
    }

    async fn audited(&self, action: &str) -> Vec<(String, String)> {
        sqlx::query_as(
            "SELECT l.tenant_id, b.reason FROM reeve.audit_log l JOIN reeve.audit_bodies b USING (tenant_id, seq)
             WHERE l.action = $1 AND l.actor = 'cli:kim' ORDER BY 1, 2",
        )
        .bind(action)
        .fetch_all(&self.town.db.admin)
        .await
        .expect("audited")
    }
}

fn of(tenant: &TenantId, state: State) -> BulkFilter {
    BulkFilter { tenant: Some(tenant.clone()), state: Some(state), ..BulkFilter::default() }
}

#[tokio::test]
async fn a_bulk_retry_changes_what_matches_and_says_so_to_each_tenant() {
    let yard = Yard::new().await;
    let (a, b) = (yard.town.a.clone(), yard.town.b.clone());
    yard.probes(&a, 5).await;
    yard.probes(&b, 2).await;
    yard.change("UPDATE reeve.jobs SET state = 'dead'").await;
    yard.change("UPDATE reeve.kinds SET paused = false").await;
    let filter = BulkFilter { kind: Some("fleet.probe".to_owned()), state: Some(State::Dead), ..BulkFilter::default() };
    let counted = bulk::preview(&yard.ops, &Bulk::Retry, &filter).await.expect("counted");
    assert_eq!(counted.iter().map(|row| (&*row.tenant, row.jobs)).collect::<Vec<_>>(), [("a", 5), ("b", 2)]);
    assert_eq!(yard.town.count("SELECT count(*) FROM reeve.jobs WHERE state = 'dead'").await, 7, "only counted");

    let id = bulk::start(&yard.ops, &Bulk::Retry, &filter, WHO).await.expect("started");
    // Younger than the operation, so not meant, although it matches.
    let young = yard.probes(&a, 1).await[0];
    yard.change("UPDATE reeve.jobs SET state = 'dead' WHERE id = (SELECT id FROM reeve.jobs ORDER BY id DESC LIMIT 1)")
        .await;
    assert_eq!(reeve_scheduler::bulk::run_once(&yard.scheduler).await.expect("done"), 7);
    assert_eq!(yard.town.state(young).await, "dead");
    assert_eq!(yard.town.count("SELECT count(*) FROM reeve.jobs WHERE state = 'available'").await, 7);
    let done = bulk::list(&yard.ops, Some(id), 1).await.expect("found").remove(0);
    assert_eq!((&*done.state, done.matched, done.changed), ("done", 7, 7));
    let said = |tenant: &str, jobs: i64| (tenant.to_owned(), format!("{jobs} jobs: the receiver was down"));
    assert_eq!(yard.audited("job.bulk_retried").await, [said("a", 5), said("b", 2)]);
    let started = yard.audited("bulk.started").await;
    assert!(started.len() == 1 && started[0].1.contains("retry of 7 jobs") && started[0].1.contains("fleet.probe"));
    assert_eq!(yard.audited("bulk.finished").await, [("-".to_owned(), "7 of 7 jobs were changed".to_owned())]);
}

#[tokio::test]
async fn an_operation_goes_on_where_a_scheduler_stopped_and_can_be_stopped() {
    let yard = Yard::new().await;
    let a = yard.town.a.clone();
    yard.probes(&a, 9).await;
    let id = bulk::start(&yard.ops, &Bulk::Cancel, &of(&a, State::Available), WHO).await.expect("started");
    let step = bulk::step(&yard.scheduler, 4).await.expect("a step").expect("something to do");
    assert_eq!((step.operation, step.changed, step.ended), (id, 4, false));
    // A scheduler that dies half-way: its step never was.
    let mut dying = yard.scheduler.begin().await.expect("begin");
    sqlx::query("SELECT reeve.bulk_step(4)").execute(&mut *dying).await.expect("a step");
    // Meanwhile no other scheduler does the same.
    assert_eq!(bulk::step(&yard.scheduler, 4).await.expect("a step"), None);
    dying.rollback().await.expect("gone");
    let found = bulk::list(&yard.ops, Some(id), 1).await.expect("found").remove(0);
    assert_eq!((&*found.state, found.changed), ("running", 4));
    assert_eq!(bulk::step(&yard.scheduler, 4).await.expect("a step").expect("more").changed, 4);
    assert_eq!(bulk::stop(&yard.ops, id, WHO).await.expect("stopped").as_deref(), Some("running"));
    assert_eq!(bulk::step(&yard.scheduler, 4).await.expect("a step"), None);
    assert_eq!(yard.town.count("SELECT count(*) FROM reeve.jobs").await, 1);
    assert_eq!(yard.town.count("SELECT count(*) FROM reeve.job_history WHERE state = 'cancelled'").await, 8);
    assert_eq!(yard.audited("bulk.stopped").await.len(), 1);
}

#[tokio::test]
async fn a_job_that_left_the_filter_meanwhile_is_left_alone() {
    let yard = Yard::new().await;
    let a = yard.town.a.clone();
    yard.probes(&a, 2).await;
    bulk::start(&yard.ops, &Bulk::Cancel, &of(&a, State::Available), WHO).await.expect("started");
    // A worker claims one, and has not committed when the step comes to it.
    let mut claiming = yard.town.worker.begin().await.expect("begin");
    sqlx::query("SELECT reeve.claim('probes', 'default', 1, 'w', '', 30)")
        .execute(&mut *claiming)
        .await
        .expect("claimed");
    let (step, ()) = tokio::join!(bulk::step(&yard.scheduler, 10), async {
        let waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
                     AND wait_event_type = 'Lock' AND query LIKE '%bulk_step%'";
        crate::support::until("the step waits for the row", async || yard.town.count(waits).await == 1).await;
        claiming.commit().await.expect("commit");
    });
    assert_eq!(step.expect("a step").expect("something to do").changed, 1);
    assert_eq!(
        yard.town.count("SELECT count(*) FROM reeve.jobs WHERE cancel_reason IS NULL AND state = 'running'").await,
        1
    );
}

/// A step, while a worker has claimed the first of its jobs and not committed yet; the job's id.
async fn step_beside_a_claim(yard: &Yard) -> (JobId, i64) {
    let mut claiming = yard.town.worker.begin().await.expect("begin");
    let claimed =
        sqlx::query_scalar("SELECT id FROM reeve.claim('probes', 'default', 1, 'w', '', 30) WHERE id IS NOT NULL")
            .fetch_one(&mut *claiming)
            .await
            .expect("claimed");
    let (step, ()) = tokio::join!(bulk::step(&yard.scheduler, 10), async {
        let waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
                     AND wait_event_type = 'Lock' AND query LIKE '%bulk_step%'";
        crate::support::until("the step waits for the row", async || yard.town.count(waits).await == 1).await;
        claiming.commit().await.expect("commit");
    });
    (claimed, step.expect("a step").expect("something to do").changed)
}

#[tokio::test]
async fn a_step_takes_a_job_that_is_claimed_just_then_as_the_claim_leaves_it() {
    let yard = Yard::new().await;
    let a = yard.town.a.clone();
    yard.probes(&a, 2).await;
    let all = BulkFilter { queue: Some("probes".to_owned()), ..BulkFilter::default() };
    // It runs now, and what runs is not moved.
    let later = chrono::DateTime::from_timestamp(2_000_000_000, 0).expect("a time");
    let to = Bulk::Move(Target { priority: Some(1), run_at: Some(later) });
    bulk::start(&yard.ops, &to, &all, WHO).await.expect("started");
    let (claimed, changed) = step_beside_a_claim(&yard).await;
    assert_eq!((yard.town.state(claimed).await.as_str(), changed), ("running", 1));
    let untouched = "SELECT count(*) FROM reeve.jobs WHERE state = 'running' AND priority = 3";
    assert_eq!(yard.town.count(untouched).await, 1);
    // It runs now, and what runs is asked to stop.
    yard.change("DELETE FROM reeve.jobs").await;
    yard.probes(&a, 2).await;
    bulk::start(&yard.ops, &Bulk::Cancel, &all, WHO).await.expect("started");
    let (claimed, changed) = step_beside_a_claim(&yard).await;
    assert_eq!((yard.town.state(claimed).await.as_str(), changed), ("running", 2));
    let asked = "SELECT count(*) FROM reeve.jobs WHERE cancel_reason IS NOT NULL";
    assert_eq!(yard.town.count(asked).await, 1);
}

#[tokio::test]
async fn a_bulk_retry_leaves_closed_tenants_and_taken_dedupe_keys_alone() {
    let yard = Yard::new().await;
    let (a, b) = (yard.town.a.clone(), yard.town.b.clone());
    yard.probes(&a, 4).await;
    yard.probes(&b, 1).await;
    // Two parked ones share a key, a third has that of a live job.
    yard.change(
        "UPDATE reeve.jobs j SET state = CASE n WHEN 4 THEN 'available' ELSE 'dead' END,
           unique_key = CASE n WHEN 1 THEN 'k' WHEN 2 THEN 'k' WHEN 3 THEN 'live' WHEN 4 THEN 'live' END
         FROM (SELECT id, row_number() OVER (ORDER BY tenant_id, id) AS n FROM reeve.jobs) x WHERE x.id = j.id",
    )
    .await;
    yard.change("UPDATE reeve.tenants SET state = 'closed' WHERE id = 'b'").await;
    let filter = BulkFilter { state: Some(State::Dead), ..BulkFilter::default() };
    bulk::start(&yard.ops, &Bulk::Retry, &filter, WHO).await.expect("started");
    assert_eq!(reeve_scheduler::bulk::run_once(&yard.scheduler).await.expect("done"), 1);
    assert_eq!(yard.town.count("SELECT count(*) FROM reeve.jobs WHERE state = 'dead'").await, 3);
}

#[tokio::test]
async fn a_move_changes_priority_and_time_of_what_waits_and_a_cancel_asks_what_runs() {
    let yard = Yard::new().await;
    let a = yard.town.a.clone();
    yard.probes(&a, 3).await;
    let queue = PostgresQueue::new(yard.town.worker.clone());
    let lane = Lane { queue: "probes".to_owned(), region: "default".to_owned() };
    let held =
        queue.claim(&lane, 1, "w", "", std::time::Duration::from_secs(30)).await.expect("a claim").jobs.remove(0);
    let all = BulkFilter { queue: Some("probes".to_owned()), ..BulkFilter::default() };
    let later = chrono::DateTime::from_timestamp(2_000_000_000, 0).expect("a time");
    let to = Bulk::Move(Target { priority: Some(1), run_at: Some(later) });
    bulk::start(&yard.ops, &to, &all, WHO).await.expect("started");
    assert_eq!(reeve_scheduler::bulk::run_once(&yard.scheduler).await.expect("done"), 2);
    let moved = "SELECT count(*) FROM reeve.jobs WHERE state = 'scheduled' AND priority = 1 AND run_at = to_timestamp(2000000000)";
    assert_eq!(yard.town.count(moved).await, 2);
    bulk::start(&yard.ops, &Bulk::Cancel, &all, WHO).await.expect("started");
    assert_eq!(reeve_scheduler::bulk::run_once(&yard.scheduler).await.expect("done"), 3);
    let told = queue.renew(&[(held.id, held.lease_token)], std::time::Duration::from_secs(30)).await.expect("renewed");
    assert_eq!(told[0].cancel_reason.as_deref(), Some("the receiver was down"));
    // What nobody means is refused.
    let none = bulk::start(&yard.ops, &Bulk::Cancel, &BulkFilter::default(), WHO).await.expect_err("refused");
    assert!(none.to_string().contains("needs a filter"), "{none}");
    let nowhere = bulk::preview(&yard.ops, &Bulk::Move(Target::default()), &all).await.expect_err("refused");
    assert!(nowhere.to_string().contains("a priority or a time"), "{nowhere}");
}

//! A handler may settle its job in its own transaction: the effect and the settlement stand or fall together.
//!
//! Shown with a process that is killed (SIGKILL) after its handler's last commit and before it can say anything more: this
//! test binary itself, run again as a child that works as a fleet on the test's database.
use std::{process::Stdio, str::FromStr, time::Duration};

use reeve_jobs::{
    TenantContext, client,
    job::{ClaimedJob, Outcome},
    kinds::{ProbeFleet, Work},
    queue::{Lane, PostgresQueue, Queue, Settlement},
    tenant::{Directory, Rows, Scope, ScopeError},
};
use reeve_worker::runtime::{Fleet, FleetConfig, Handler, Progress, fleet::Slots};
use sqlx::postgres::PgConnectOptions;

use crate::support::{Town, until};

const EFFECTS: &str = "SELECT count(*) FROM reeve.webhook_events WHERE event_type = 'effect.done'";
const EFFECT: &str = "INSERT INTO reeve.webhook_events (tenant_id, id, event_type, body)
                      VALUES ('a', 'msg_' || replace(gen_random_uuid()::text, '-', ''), 'effect.done', '{}') RETURNING tenant_id";

/// Records an effect, ends as it is told, and then stays: its process dies before it can say so.
#[derive(Clone)]
struct Stays {
    directory: Directory,
    together: bool,
}

impl Handler for Stays {
    async fn handle(&self, job: &ClaimedJob, context: TenantContext, _: Work, _: &Progress) -> Outcome {
        let mut scope = Scope::open_control(&self.directory, &context).await.expect("a scope");
        scope.write(sqlx::query_scalar(EFFECT), Rows::Exactly(1)).await.expect("an effect");
        if self.together {
            scope.commit_and_settle(job).await.expect("committed and settled");
        } else {
            scope.commit().await.expect("committed");
        }
        std::future::pending().await
    }
}

const CHILD: &str = "REEVE_TEST_CHILD_URL";
const TOGETHER: &str = "REEVE_TEST_CHILD_TOGETHER";

/// The child's whole work; started by the test below. By itself there is nothing for it to do.
#[tokio::test]
async fn as_a_child() {
    let Ok(url) = std::env::var(CHILD) else { return };
    let options = PgConnectOptions::from_str(&url).expect("a URL");
    let pool = reeve_jobs::program::db::pool(options, 8).await.expect("a pool");
    let directory = Directory::new(pool.clone());
    let handler = Stays { directory: directory.clone(), together: std::env::var_os(TOGETHER).is_some() };
    let config = FleetConfig {
        name: "child".to_owned(),
        region: "default".into(),
        queues: vec![Slots { queue: "probes".to_owned(), slots: 1 }],
        lease: Duration::from_secs(30),
        poll: Duration::from_millis(200),
        grace: Duration::from_secs(10),
    };
    let fleet = Fleet { config, queue: PostgresQueue::new(pool.clone()), pool, directory, handler };
    fleet.run(std::future::pending()).await.expect("it is killed before");
}

async fn killed_after_its_effect(town: &Town, together: bool, effects: i64) {
    let mut command = tokio::process::Command::new(std::env::current_exe().expect("this test"));
    command.args(["--exact", "settling::as_a_child", "--nocapture"]).env(CHILD, town.db.url("reeve_worker"));
    if together {
        command.env(TOGETHER, "1");
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let mut child = command.spawn().expect("the child starts");
    until("the effect is committed", async || town.count(EFFECTS).await == effects).await;
    child.kill().await.expect("killed");
    // What it still held runs out; the rescuer passes by a row that a statement of the killed process still has.
    until("what it held was taken back", async || {
        sqlx::query("UPDATE reeve.jobs SET lease_expires_at = now() - interval '1 s' WHERE state = 'running'")
            .execute(&town.db.admin)
            .await
            .expect("time passes");
        sqlx::query("SELECT reeve.rescue(10)").execute(&town.db.admin).await.expect("rescued");
        town.count("SELECT count(*) FROM reeve.jobs WHERE state = 'running'").await == 0
    })
    .await;
}

#[tokio::test]
async fn an_effect_that_settles_in_its_own_transaction_is_not_repeated_when_its_worker_is_killed_after_it() {
    let town = Town::new().await;
    let job = client::enqueue_alone(&town.app, &town.a, &ProbeFleet::default()).await.expect("enqueued");
    // In two commits: the effect is there, the job is not settled, and another worker does it again.
    killed_after_its_effect(&town, false, 1).await;
    assert_eq!(town.state(job).await, "available");
    // In one.
    killed_after_its_effect(&town, true, 2).await;
    assert_eq!(town.state(job).await, "completed");
    assert_eq!(town.count(EFFECTS).await, 2);
    assert_eq!(town.count("SELECT count(*) FROM reeve.jobs").await, 0, "nobody will do it a third time");
}

#[tokio::test]
async fn who_lost_the_lease_cannot_settle_in_its_own_transaction_and_keeps_nothing_of_it() {
    let town = Town::new().await;
    client::enqueue_alone(&town.app, &town.a, &ProbeFleet::default()).await.expect("enqueued");
    let lane = Lane { queue: "probes".to_owned(), region: "default".to_owned() };
    let queue = PostgresQueue::new(town.worker.clone());
    let job = queue.claim(&lane, 1, "w", "", Duration::from_secs(30)).await.expect("a claim").jobs.remove(0);
    // With a session's proof, so that it is the settlement's own fence that is tried.
    let mut scope = Scope::open_control(&town.directory(), &town.context(&town.a).await).await.expect("a scope");
    scope.write(sqlx::query_scalar(EFFECT), Rows::Exactly(1)).await.expect("an effect");
    sqlx::query("UPDATE reeve.jobs SET lease_expires_at = now() - interval '1 s'")
        .execute(&town.db.admin)
        .await
        .expect("time passes");
    sqlx::query("SELECT reeve.rescue(10)").execute(&town.db.admin).await.expect("rescued");
    let refused = scope.commit_and_settle(&job).await.expect_err("the lease is lost");
    assert!(matches!(refused, ScopeError::LeaseLost), "{refused:?}");
    assert_eq!(refused.into_outcome(), Outcome::Interrupted);
    let open = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in%'";
    until("the transaction has ended", async || town.count(open).await == 0).await;
    assert_eq!(town.count(EFFECTS).await, 0);
    assert_eq!(town.state(job.id).await, "available");
}

/// Found by the suite `model`: whoever gave a job back just then was told that its lease was lost, which it was not.
#[tokio::test]
async fn a_settlement_that_waits_for_a_cancellation_is_stored_as_one_that_comes_after_it() {
    let town = Town::new().await;
    let lane = Lane { queue: "probes".to_owned(), region: "default".to_owned() };
    let queue = PostgresQueue::new(town.worker.clone());
    for outcome in ["retry", "snooze", "release", "interrupted", "completed"] {
        client::enqueue_alone(&town.app, &town.a, &ProbeFleet::default()).await.expect("enqueued");
        let job = queue.claim(&lane, 1, "w", "", Duration::from_secs(30)).await.expect("a claim").jobs.remove(0);
        let mut cancelling = town.db.admin.begin().await.expect("begin");
        sqlx::query("SELECT reeve.cancel_job($1, 'test', 'to see')")
            .bind(job.id)
            .execute(&mut *cancelling)
            .await
            .expect("cancelled");
        let (id, token) = (job.id, job.lease_token);
        let end = [Settlement { job: id, token, outcome, delay: Duration::ZERO, error: None }];
        let (settled, ()) = tokio::join!(queue.settle(&end), async {
            let waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
                         AND wait_event_type = 'Lock' AND query LIKE '%reeve.settle%'";
            until("the settlement waits for the row", async || town.count(waits).await == 1).await;
            cancelling.commit().await.expect("commit");
        });
        assert_eq!(settled.expect("settled"), [id], "{outcome}");
        assert_eq!(town.state(id).await, if outcome == "completed" { outcome } else { "cancelled" });
    }
}

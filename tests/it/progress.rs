//! Progress: what a handler says is stored while its job runs, under its lease and no other, and is gone afterwards.
use std::{sync::Arc, time::Duration};

use reeve_jobs::{
    TenantContext, Work, client,
    job::{ClaimedJob, Outcome},
    kinds::ProbeFleet,
    queue::{
        Lane, PostgresQueue, Queue, Report, Settlement,
        inspect::{self, Filter},
    },
};
use reeve_worker::runtime::{Handler, Progress};
use tokio::sync::Semaphore;

use crate::support::{Town, until};

const LEASE: Duration = Duration::from_secs(30);

/// Copies three rows, the last two when it is let.
#[derive(Clone)]
struct Copier(Arc<Semaphore>);

impl Handler for Copier {
    async fn handle(&self, _: &ClaimedJob, _: TenantContext, _: Work, progress: &Progress) -> Outcome {
        progress.step("copy", Some(3));
        for _ in 0..3 {
            progress.advance();
            self.0.acquire().await.expect("never closed").forget();
        }
        Outcome::Done
    }
}

#[tokio::test]
async fn what_a_handler_reports_is_shown_while_it_runs_and_is_gone_when_it_has_settled() {
    let town = Town::new().await;
    let ops = town.db.pool("reeve_ops").await;
    let go = Arc::new(Semaphore::new(0));
    let fleet = town.fleet(Copier(go.clone()), 2);
    let job = client::enqueue_alone(&town.app, &town.a, &ProbeFleet::default()).await.expect("enqueued");
    let seen = async || {
        let shown = inspect::find(&ops, job).await.expect("found").expect("there").progress;
        shown.map(|progress| (progress.step, progress.done, progress.total))
    };
    until("the first row is told", async || seen().await == Some(("copy".to_owned(), 1, Some(3)))).await;
    go.add_permits(1);
    until("the second row is told", async || seen().await == Some(("copy".to_owned(), 2, Some(3)))).await;
    go.add_permits(2);
    until("it is done", async || town.state(job).await == "completed").await;
    assert_eq!(seen().await, None, "a lease that is over is shown no more");
    fleet.stop().await;
    assert_eq!(town.count("SELECT count(*) FROM reeve.job_progress").await, 0, "the fleet takes its rows away");
}

#[tokio::test]
async fn a_report_under_a_lost_lease_is_neither_stored_nor_shown() {
    let town = Town::new().await;
    let ops = town.db.pool("reeve_ops").await;
    let queue = PostgresQueue::new(town.worker.clone());
    let lane = Lane { queue: "probes".to_owned(), region: "default".to_owned() };
    let job = client::enqueue_alone(&town.app, &town.a, &ProbeFleet::default()).await.expect("enqueued");
    let claim = async || queue.claim(&lane, 1, "w", "", LEASE).await.expect("a claim").jobs.remove(0).lease_token;
    let report = |token, done| Report { job, token, step: "copy", done, total: None };
    let shown = async || inspect::progress(&ops, &Filter::default(), None).await.expect("read");

    let old = claim().await;
    queue.report(&[report(old, 1)], &[]).await.expect("stored");
    assert_eq!(shown().await.len(), 1);
    let given_back = Settlement { job, token: old, outcome: "release", delay: Duration::ZERO, error: None };
    queue.settle(&[given_back]).await.expect("given back");
    let new = claim().await;
    assert_eq!(shown().await, [], "the old lease's report is not the new one's");
    queue.report(&[report(new, 5)], &[]).await.expect("stored");
    queue.report(&[report(old, 9)], &[(job, old)]).await.expect("refused in silence");
    assert_eq!(shown().await[0].progress.done, 5);

    // The worker vanishes; the scheduler's upkeep takes the row away, and only then.
    let prune = async || {
        let scheduler = town.db.pool("reeve_scheduler").await;
        let pruned: i64 =
            sqlx::query_scalar("SELECT reeve.prune_progress(10)").fetch_one(&scheduler).await.expect("pruned");
        pruned
    };
    assert_eq!(prune().await, 0);
    queue
        .settle(&[Settlement { job, token: new, outcome: "completed", delay: Duration::ZERO, error: None }])
        .await
        .expect("settled");
    assert_eq!((prune().await, prune().await), (1, 0));
}

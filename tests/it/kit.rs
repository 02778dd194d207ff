//! The testing kit that users get, against the real queue. Its examples are doc tests in `jobs/src/testing`.
use std::time::Duration;

use reeve_jobs::{
    Kind, Outcome, assert_enqueued, assert_not_enqueued, client,
    clock::{Clock, SystemClock},
    kinds::ProbeFleet,
    tenant::Scope,
    testing::{self, Drain},
};

use crate::support::Town;

fn probe(note: &str) -> ProbeFleet {
    ProbeFleet { note: Some(note.to_owned()), sleep_ms: 0 }
}

#[tokio::test]
async fn inline_opens_the_tenants_own_scope() {
    let town = Town::new().await;
    let outcome = testing::inline(&town.db, &town.a, &probe("x"), async |context, probe| {
        let scope = Scope::open(&town.directory(), &context).await.expect("a scope");
        assert_eq!((scope.tenant().as_str(), probe.note.as_deref()), ("a", Some("x")));
        Outcome::Done
    })
    .await;
    assert_eq!(outcome, Outcome::Done);
}

#[tokio::test]
#[should_panic(expected = "more than its limit of 1024")]
async fn inline_refuses_a_payload_that_the_queue_would_refuse() {
    let town = Town::new().await;
    testing::inline(&town.db, &town.a, &probe(&"x".repeat(2_000)), async |_, _| Outcome::Done).await;
}

#[tokio::test]
async fn a_drain_runs_what_is_due_later_and_what_jobs_make_until_attempts_are_used_up() {
    let town = Town::new().await;
    let how =
        client::Enqueue { run_at: Some(SystemClock.now() + chrono::TimeDelta::days(3)), ..client::Enqueue::default() };
    let mut tx = town.app.begin().await.expect("begin");
    client::set_tenant(&mut tx, &town.a).await.expect("context");
    client::enqueue(&mut tx, &probe("in three days"), &how).await.expect("enqueued");
    client::enqueue(&mut tx, &probe("never works"), &client::Enqueue::default()).await.expect("enqueued");
    tx.commit().await.expect("commit");

    let near = Drain { span: Duration::from_secs(3_600), ..Drain::default() };
    let (app, b) = (town.app.clone(), town.b.clone());
    let handler = move |job: reeve_jobs::job::ClaimedJob, _| {
        let (app, b) = (app.clone(), b.clone());
        async move {
            if job.payload["note"] == "in three days" {
                client::enqueue_alone(&app, &b, &probe("made by a job")).await.expect("enqueued");
            }
            if job.payload["note"] == "never works" { Outcome::retry("no") } else { Outcome::Done }
        }
    };
    let drained = near.run(&town.db, handler.clone()).await;
    assert_eq!((drained.outcomes["retry"], drained.outcomes.get("completed"), drained.left), (3, None, 1));
    assert!(drained.passed >= Duration::from_secs(19) && drained.passed < Duration::from_secs(3_600));
    assert_enqueued!(&town.db, &town.a, Kind::FleetProbe, { "note": "in three days" });
    assert_not_enqueued!(&town.db, &town.a, Kind::FleetProbe, { "note": "never works" });

    let drained = Drain::default().run(&town.db, handler).await;
    assert_eq!((drained.outcomes["completed"], drained.left), (2, 0));
    assert!(drained.passed > Duration::from_secs(2 * 86_400));
    assert_eq!(town.count("SELECT count(*) FROM reeve.jobs WHERE state = 'dead'").await, 1);
}

#[tokio::test]
#[should_panic(expected = "made 5 attempts and is not done")]
async fn a_drain_of_jobs_that_never_end_is_bounded() {
    let town = Town::new().await;
    client::enqueue_alone(&town.app, &town.a, &probe("again")).await.expect("enqueued");
    let drain = Drain { attempts_max: 5, ..Drain::default() };
    drain.run(&town.db, async |_, _| Outcome::Snooze { why: "again".to_owned(), after: Duration::from_secs(60) }).await;
}

#[tokio::test]
#[should_panic(expected = "no live fleet.probe with {\"note\":\"y\"}")]
async fn assert_enqueued_fails_on_another_payload_and_says_what_is_there() {
    let town = Town::new().await;
    client::enqueue_alone(&town.app, &town.a, &probe("x")).await.expect("enqueued");
    assert_enqueued!(&town.db, &town.a, Kind::FleetProbe, { "note": "y" });
}

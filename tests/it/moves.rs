//! Moving a tenant: a state in which its jobs wait, with a step for everything that could go wrong between two places.
use std::{process::Stdio, sync::Arc, time::Duration};

use reeve_jobs::{
    TenantContext, TenantId, client,
    client::EnqueueError,
    job::{ClaimedJob, Outcome},
    kinds::Work,
    queue::{Lane, PostgresQueue, Queue},
    tenant::{Scope, ScopeError, placements},
};
use reeve_worker::runtime::{Handler, Progress};
use sqlx::{Connection, PgConnection};
use tokio::sync::{Notify, Semaphore};

use crate::{
    placements::{Estate, WHO, marked, marks},
    support::{program, until},
};

fn refused<T: std::fmt::Debug>(result: sqlx::Result<T>) -> (String, String) {
    match EnqueueError::from(result.expect_err("refused")) {
        EnqueueError::Refused { code, message, .. } => (code, message),
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_moving_tenants_jobs_wait_and_run_afterwards_at_the_new_place() {
    let estate = Estate::new().await;
    let (a, b) = (&estate.town.a, &estate.town.b);
    marks(&estate.town.db).await;
    let own = estate.prepared(a, "default").await;
    marks(&own).await;
    assert_eq!(placements::begin_move(&estate.ops, a, WHO).await.expect("moving"), 0);
    let marker = estate.marker();
    let fleet = estate.town.fleet(marker.clone(), 4);
    let waits = estate.probe(a).await;
    for _ in 0..3 {
        // Each of b's is claimed in a round in which a's was passed over.
        let job = estate.probe(b).await;
        until("b's is done", async || estate.job(job).await.0 == "completed").await;
    }
    assert_eq!(estate.job(waits).await.0, "available");
    let url = &reeve_jobs::redact::Redacted::new(own.url("reeve_worker"));
    let new = reeve_worker::placement::NewPlacement { tenant: a, region: "default", url };
    reeve_worker::placement::set(&estate.ops, &estate.town.keystore.keyring(), &new, WHO).await.expect("placed");
    let job = estate.probe(b).await;
    until("b's is done", async || estate.job(job).await.0 == "completed").await;
    assert_eq!(estate.job(waits).await.0, "available", "placed, and still moving");
    estate.end_move(a).await;
    until("a's is done", async || estate.job(waits).await.0 == "completed").await;
    fleet.stop().await;
    assert_eq!(marker.databases_of(a), [own.name.as_str()]);
    assert_eq!(marked(&own).await, 1);
    for action in ["placement.move_begun", "placement.prepared", "placement.dedicated", "placement.move_ended"] {
        assert_eq!(estate.audited(a, action).await, 1, "{action}");
    }
}

/// Holds each job until it is let go.
#[derive(Clone)]
struct Held {
    begun: Arc<Notify>,
    go: Arc<Semaphore>,
}

impl Handler for Held {
    async fn handle(&self, _: &ClaimedJob, _: TenantContext, _: Work, _: &Progress) -> Outcome {
        self.begun.notify_one();
        self.go.acquire().await.expect("never closed").forget();
        Outcome::Done
    }
}

#[tokio::test]
async fn a_job_that_runs_when_the_move_begins_ends_before_its_tenant_is_placed() {
    let estate = Estate::new().await;
    let a = &estate.town.a;
    estate.prepared(a, "default").await;
    let held = Held { begun: Arc::default(), go: Arc::new(Semaphore::new(0)) };
    let fleet = estate.town.fleet(held.clone(), 2);
    let job = estate.probe(a).await;
    held.begun.notified().await;
    assert_eq!(placements::begin_move(&estate.ops, a, WHO).await.expect("moving"), 1);
    let place = async || placements::place(&estate.ops, a, b"sealed", "default", 1, WHO).await;
    let (code, message) = refused(place().await);
    assert!(code == "RV030" && message.contains("1 jobs of tenant \"a\" still run"), "{message}");
    assert_eq!(placements::find(&estate.ops, a).await.expect("found").expect("registered").running, 1);
    held.go.add_permits(1);
    until("it ends as it would", async || estate.job(job).await.0 == "completed").await;
    place().await.expect("nothing runs");
    fleet.stop().await;
}

/// A claim that looked before the move began, and commits after it.
#[tokio::test]
async fn a_claim_under_way_when_the_move_begins_is_waited_for() {
    let estate = Estate::new().await;
    let a = &estate.town.a;
    estate.prepared(a, "default").await;
    estate.probe(a).await;
    let mut claiming = estate.town.worker.begin().await.expect("begin");
    let claimed = "SELECT count(id) FROM reeve.claim('probes', 'default', 5, 'w', '', 30)";
    let jobs: i64 = sqlx::query_scalar(claimed).fetch_one(&mut *claiming).await.expect("claimed");
    assert_eq!(jobs, 1);
    placements::begin_move(&estate.ops, a, WHO).await.expect("moving");
    let placing = placements::place(&estate.ops, a, b"sealed", "default", 1, WHO);
    let committing = async {
        until("the placing waits for the claim", async || {
            let waiting = "SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database
                           WHERE d.datname = current_database() AND l.locktype = 'advisory' AND NOT l.granted";
            estate.town.count(waiting).await == 1
        })
        .await;
        claiming.commit().await.expect("the claim");
    };
    let (placed, ()) = tokio::join!(placing, committing);
    assert!(refused(placed).1.contains("1 jobs of tenant \"a\" still run"));
}

#[tokio::test]
async fn a_move_goes_by_its_steps_and_each_wrong_one_is_refused_with_the_right_one() {
    let estate = Estate::new().await;
    let (ops, a) = (&estate.ops, &estate.town.a);
    let nobody: TenantId = "nobody".parse().expect("an id");
    let place = async |epoch| placements::place(ops, a, b"sealed", "default", epoch, WHO).await;
    assert_eq!(refused(placements::begin_move(ops, &nobody, WHO).await).0, "RV003");
    for result in [place(1).await, placements::end_move(ops, a, WHO).await, placements::cancel_move(ops, a, WHO).await]
    {
        assert!(refused(result).1.contains("is not moving"));
    }
    placements::begin_move(ops, a, WHO).await.expect("moving");
    assert!(refused(placements::begin_move(ops, a, WHO).await).1.contains("is moving already"));
    assert!(refused(placements::end_move(ops, a, WHO).await).1.contains("placed nowhere"));
    assert!(refused(place(1).await).1.contains("no database was prepared"));
    estate.prepared(a, "default").await;
    assert!(refused(place(2).await).1.contains("the next is 1 and not 2"));
    assert!(refused(placements::place(ops, a, b"sealed", "mars", 1, WHO).await).1.contains("\"mars\" is not declared"));
    placements::cancel_move(ops, a, WHO).await.expect("it stays");
    placements::begin_move(ops, a, WHO).await.expect("moving");
    place(1).await.expect("placed");
    assert!(refused(placements::cancel_move(ops, a, WHO).await).1.contains("placed already"));
    let (code, message) = refused(placements::end_move(ops, a, WHO).await);
    assert!(code == "RV032" && message.contains("may still know the old place"), "{message}");
    // Placed again within the same move: back where it was.
    assert_eq!(placements::place_shared(ops, a, "default", WHO).await.expect("placed"), 2);
    estate.end_move(a).await;
    let found = placements::find(ops, a).await.expect("found").expect("registered");
    assert_eq!((found.placement.as_str(), found.epoch, found.moving, found.placed), ("shared", 2, false, false));
    // A worker or an app may do none of it.
    for pool in [&estate.town.worker, &estate.town.app] {
        let denied = placements::begin_move(pool, a, WHO).await.expect_err("refused").to_string();
        assert!(denied.contains("permission denied"), "{denied}");
    }
}

#[tokio::test]
async fn a_worker_whose_directory_is_behind_a_move_does_not_write_to_the_old_place() {
    let estate = Estate::new().await;
    let a = &estate.town.a;
    marks(&estate.town.db).await;
    let context = estate.context(a).await;
    let stale = estate.directory.clone();
    Scope::open(&stale, &context).await.expect("it knows the shared place now");
    estate.dedicated(a).await;
    let refused = Scope::open(&stale, &context).await.expect_err("behind");
    assert!(matches!(refused, ScopeError::Moving(_)), "{refused}");
    assert!(matches!(refused.into_outcome(), Outcome::Snooze { .. }));
    // And it has asked anew.
    Scope::open(&stale, &estate.context(a).await).await.expect("the new place");
}

#[tokio::test]
async fn an_operators_session_does_not_write_while_rows_are_on_their_way() {
    let estate = Estate::new().await;
    let context = estate.context(&estate.town.a).await;
    placements::begin_move(&estate.ops, &estate.town.a, WHO).await.expect("moving");
    let refused = Scope::open(&estate.directory, &context).await.expect_err("moving");
    assert!(matches!(refused, ScopeError::Moving(_)), "{refused}");
    Scope::open_control(&estate.directory, &context).await.expect("Reeve's own rows stay");
}

#[tokio::test]
async fn waiting_jobs_go_with_their_tenant_to_another_region() {
    let estate = Estate::new().await;
    let a = &estate.town.a;
    placements::declare_region(&estate.ops, "eu", false, WHO).await.expect("declared");
    estate.prepared(a, "eu").await;
    let job = estate.probe(a).await;
    placements::begin_move(&estate.ops, a, WHO).await.expect("moving");
    // An app's transaction from before the placing, still open: it may hold a job for the old region.
    let mut late = estate.town.app.begin().await.expect("begin");
    client::set_tenant(&mut late, a).await.expect("context");
    client::enqueue(&mut late, &reeve_jobs::kinds::ProbeFleet::default(), &client::Enqueue::default())
        .await
        .expect("enqueued");
    placements::place(&estate.ops, a, b"sealed", "eu", 1, WHO).await.expect("placed");
    estate.time_passes().await;
    let (code, message) = refused(placements::end_move(&estate.ops, a, WHO).await);
    assert!(code == "RV032" && message.contains("still open"), "{message}");
    late.commit().await.expect("committed");
    until("the move ends", async || placements::end_move(&estate.ops, a, WHO).await.is_ok()).await;
    let regions = "SELECT count(*) FROM reeve.jobs WHERE region = 'eu' AND state = 'available'";
    assert_eq!(estate.town.count(regions).await, 2, "{job}");
    let queue = PostgresQueue::new(estate.town.worker.clone());
    let claim = async |region: &str| {
        let lane = Lane { queue: "probes".to_owned(), region: region.to_owned() };
        queue.claim(&lane, 5, "w", "", Duration::from_secs(30)).await.expect("a claim").jobs.len()
    };
    assert_eq!((claim("default").await, claim("eu").await), (0, 2));
}

#[tokio::test]
async fn a_database_in_use_is_not_made_a_tenants_own() {
    let estate = Estate::new().await;
    let (a, b) = (&estate.town.a, &estate.town.b);
    let of_b = estate.dedicated(b).await;
    let of_a = estate.dedicated(a).await;
    let prepare = async |db: &reeve_jobs::testing::TestDatabase| {
        let mut admin = PgConnection::connect_with(db.admin_options()).await.expect("its administrator");
        placements::prepare(&estate.ops, &mut admin, a, "default", WHO).await
    };
    for (db, says) in [
        (&estate.town.db, "in use as a shared or control database"),
        (&of_b, "this database is tenant \"b\"'s"),
        (&of_a, "its jobs may run in it"),
    ] {
        let said = prepare(db).await.expect_err(says).to_string();
        assert!(said.contains(says), "{said}");
    }
    Scope::open(&estate.directory, &estate.context(a).await).await.expect("a's database is as it was");
    Scope::open(&estate.directory, &estate.context(b).await).await.expect("b's too");
    // Its own, again, is right once nothing runs there: a new password, say.
    placements::begin_move(&estate.ops, a, WHO).await.expect("moving");
    assert_eq!(prepare(&of_a).await.expect("renewed"), 2);
}

/// Runs a program to its end; returns its code, and all that it said.
async fn run(name: &str, estate: &Estate, env: &[(&str, &str)], args: &[&str]) -> (i32, String) {
    let output = tokio::process::Command::new(program(name))
        .args(args)
        .env_remove("REEVE_CONFIG")
        .env("REEVE_ACTOR", "ann")
        .env("REEVE_OPS__DATABASE_URL", estate.town.db.url("reeve_ops"))
        .env("REEVE_WORKER__DATABASE_URL", estate.town.db.url("reeve_worker"))
        .env("REEVE_WORKER__OPS_DATABASE_URL", estate.town.db.url("reeve_ops"))
        .envs(estate.town.keystore.env())
        .envs(env.iter().copied())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .expect("it runs");
    let said = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&said).into_owned())
}

#[tokio::test]
async fn a_tenant_is_moved_by_the_commands_alone() {
    let estate = Estate::new().await;
    let new = reeve_jobs::testing::TestDatabase::empty().await;
    let (admin, worker) = (new.admin_url(), new.url("reeve_worker"));
    let env = [("REEVE_PLACEMENT_ADMIN_URL", admin.as_str()), ("REEVE_PLACEMENT_URL", worker.as_str())];
    let reeve = async |args: &[&str]| run("reeve", &estate, &env, args).await;
    let because = ["--reason", "its own house"];
    let (code, said) = reeve(&[&["placement", "prepare", "a", "--region", "eu"], &because[..]].concat()).await;
    assert!(code == 4 && said.contains("reeve regions declare eu"), "{said}");
    for args in [
        &["regions", "declare", "eu"][..],
        &["regions", "bucket", "exports-eu", "--region", "eu"],
        &["placement", "move", "a"],
        &["placement", "prepare", "a", "--region", "eu"],
    ] {
        let (code, said) = reeve(&[args, &because[..]].concat()).await;
        assert_eq!(code, 0, "{args:?}: {said}");
    }
    let set = [&["placement", "set", "--tenant", "a", "--region", "eu"], &because[..]].concat();
    let (code, said) = run("reeve-worker", &estate, &env[..1], &set).await;
    assert!(code == 1 && said.contains("REEVE_PLACEMENT_URL is not set"), "{said}");
    let (code, said) = run("reeve-worker", &estate, &env, &set).await;
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("\"epoch\":1") && !said.contains("postgres://"), "{said}");
    estate.time_passes().await;
    // It waits for whoever is still in a transaction from before, anywhere in the cluster.
    let (code, said) = reeve(&[&["placement", "done", "a"], &because[..]].concat()).await;
    assert_eq!(code, 0, "{said}");
    let (code, said) = reeve(&["placement", "show", "a"]).await;
    assert!(code == 0 && said.contains("dedicated") && said.contains("eu") && !said.contains("postgres://"), "{said}");
    let (code, said) = run("reeve-worker", &estate, &env, &["placement", "check", "--tenant", "a"]).await;
    assert!(code == 0 && said.contains("\"ok\":true"), "{said}");
    let (code, said) = reeve(&["regions", "list"]).await;
    assert!(code == 0 && said.contains("exports-eu"), "{said}");
    // The database is restored from before: found, and audited.
    sqlx::query("UPDATE reeve.identity SET epoch = 9").execute(&new.admin).await.expect("a copy");
    let (code, said) = run("reeve-worker", &estate, &env, &["placement", "check", "--tenant", "a"]).await;
    assert!(code == 1 && said.contains("refused, and audited") && said.contains("epoch 9 and not at 1"), "{said}");
    assert_eq!(estate.audited(&estate.town.a, "placement.refused").await, 1);
}

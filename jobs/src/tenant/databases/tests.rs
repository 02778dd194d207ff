//! The bounds, against real databases. What a scope adds to a connection is tried in `tests/it/placements.rs`.
use std::{collections::BTreeSet, future::poll_fn, pin::pin, task::Poll};

use sqlx::Executor;
use tokio::net::TcpListener;

use super::*;
use crate::testing::TestDatabase;

/// Takes the sealed bytes for the URL itself.
#[derive(Debug)]
struct Unsealed;

impl OpenUrl for Unsealed {
    fn open_url<'a>(&'a self, placement: &'a Dedicated) -> Opening<'a> {
        let url = String::from_utf8(placement.url_sealed.to_vec()).map(Redacted::new);
        Box::pin(async move { url.map_err(|_| NotOpened::Sealed) })
    }
}

impl Databases {
    async fn enter(&self, placement: &Dedicated) -> Result<Checkout, DatabasesError> {
        match self.checkout(placement, "BEGIN; SELECT 1").await {
            Ok((checkout, _)) => Ok(checkout),
            Err(CheckoutError::Databases(error)) => Err(error),
            Err(CheckoutError::Refused(error)) => panic!("{error}"),
        }
    }
}

async fn commit(mut checkout: Checkout) {
    checkout.connection().execute("COMMIT").await.expect("committed");
    checkout.committed();
}

fn databases(limits: Limits) -> Databases {
    Databases::new(limits, Arc::new(Unsealed))
}

fn at(tenant: &str, url: &str) -> Dedicated {
    Dedicated { tenant: tenant.parse().expect("an id"), epoch: 1, url_sealed: url.as_bytes().into() }
}

async fn several(n: usize) -> (Vec<TestDatabase>, Vec<Dedicated>) {
    let mut made = Vec::new();
    for _ in 0..n {
        made.push(TestDatabase::empty().await);
    }
    let placed = made.iter().enumerate().map(|(n, db)| at(&format!("t{n}"), &db.admin_url())).collect();
    (made, placed)
}

async fn drop_all(made: Vec<TestDatabase>) {
    for db in made {
        db.drop_now().await;
    }
}

/// The server's own view: backends of dedicated connections to these databases.
async fn backends(made: &[TestDatabase]) -> BTreeSet<i32> {
    let names: Vec<String> = made.iter().map(|db| db.name.clone()).collect();
    sqlx::query_scalar(
        "SELECT pid FROM pg_stat_activity WHERE application_name = 'reeve-dedicated' AND datname = ANY ($1)",
    )
    .bind(names)
    .fetch_all(&made[0].admin)
    .await
    .expect("pg_stat_activity")
    .into_iter()
    .collect()
}

/// Waits until the server has just so many; the limit only ends a test that has failed already.
async fn until_backends(made: &[TestDatabase], wanted: usize) {
    for _ in 0..3_000 {
        if backends(made).await.len() == wanted {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{} backends, never {wanted}", backends(made).await.len());
}

async fn answers(checkout: &mut Checkout) -> String {
    sqlx::query_scalar("SELECT current_database()::text").fetch_one(checkout.connection()).await.expect("it answers")
}

const LONG: Duration = Duration::from_secs(600);

#[tokio::test(flavor = "multi_thread")]
async fn open_connections_stay_within_the_total_idle_ones_included() {
    let (made, placed) = several(20).await;
    let limits = Limits { connections: 10, idle: LONG, wait: LONG, ..Limits::default() };
    let databases = databases(limits);
    // Held: ten are in use, and whoever comes then waits, opening nothing.
    let mut held = Vec::new();
    for placement in &placed[..10] {
        held.push(databases.enter(placement).await.expect("a connection"));
    }
    let late: Vec<_> = placed[10..]
        .iter()
        .map(|placement| {
            let (databases, placement) = (databases.clone(), placement.clone());
            tokio::spawn(async move { answers(&mut databases.enter(&placement).await.expect("in turn")).await })
        })
        .collect();
    until_backends(&made, 10).await;
    assert!(late.iter().all(|task| !task.is_finished()));
    assert_eq!(databases.open_connections(), 10);
    drop(held);
    for (task, db) in late.into_iter().zip(&made[10..]) {
        assert_eq!(task.await.expect("no panic"), db.name);
    }
    // A storm over all of them. What is open at two looks was open all the time between: a backend that is still saying
    // goodbye is not counted for more than it is.
    let storm: Vec<_> = (0..24)
        .map(|n: usize| {
            let (databases, placed) = (databases.clone(), placed.clone());
            let names: Vec<_> = made.iter().map(|db| db.name.clone()).collect();
            tokio::spawn(async move {
                for round in 0..8 {
                    let which = (n * 7 + round * 5) % placed.len();
                    let mut checkout = databases.enter(&placed[which]).await.expect("in turn");
                    assert_eq!(answers(&mut checkout).await, names[which]);
                }
            })
        })
        .collect();
    let mut before = BTreeSet::new();
    while storm.iter().any(|task| !task.is_finished()) {
        let now = backends(&made).await;
        let both = now.intersection(&before).count();
        assert!(both <= 10, "{both} connections at a time");
        assert!(databases.open_connections() <= 10);
        before = now;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for task in storm {
        task.await.expect("no panic");
    }
    // Nobody uses any now, and those that are kept are within the bound as well.
    let kept = databases.open_connections();
    assert!((1..=10).contains(&kept), "{kept}");
    until_backends(&made, kept).await;
    drop_all(made).await;
}

#[tokio::test]
async fn one_database_never_gets_more_than_its_places() {
    let (made, placed) = several(1).await;
    let databases = databases(Limits { idle: LONG, wait: LONG, ..Limits::default() });
    for _ in 0..3 {
        let all: Vec<_> = (0..8)
            .map(|_| {
                let (databases, placement) = (databases.clone(), placed[0].clone());
                tokio::spawn(async move {
                    for _ in 0..5 {
                        answers(&mut databases.enter(&placement).await.expect("in turn")).await;
                    }
                })
            })
            .collect();
        for task in all {
            task.await.expect("no panic");
        }
        assert!(databases.open_connections() <= 2, "{}", databases.open_connections());
    }
    let (one, two) = (databases.enter(&placed[0]).await, databases.enter(&placed[0]).await);
    assert!(one.is_ok() && two.is_ok());
    until_backends(&made, 2).await;
    drop((one, two));
    drop_all(made).await;
}

#[tokio::test]
async fn when_all_are_in_use_waiting_ends_with_a_fault_that_passes() {
    let (made, placed) = several(2).await;
    let wait = Duration::from_millis(50);
    let databases = databases(Limits { connections: 1, wait, ..Limits::default() });
    let held = databases.enter(&placed[0]).await.expect("a connection");
    assert_eq!(databases.enter(&placed[1]).await.err(), Some(DatabasesError::Busy { waited: wait }));
    assert_eq!(databases.enter(&placed[0]).await.err(), Some(DatabasesError::Busy { waited: wait }));
    drop(held);
    let waited = loop {
        // Its way back takes a round trip.
        match databases.enter(&placed[1]).await {
            Ok(checkout) => break checkout,
            Err(error) => assert_eq!(error, DatabasesError::Busy { waited: wait }),
        }
    };
    drop(waited);
    drop_all(made).await;
}

#[tokio::test]
async fn an_idle_connection_is_used_again_and_closed_when_its_time_is_up() {
    let (made, placed) = several(3).await;
    let databases = databases(Limits { idle: Duration::from_millis(400), ..Limits::default() });
    drop(databases.enter(&placed[0]).await.expect("a connection"));
    let mut pids = Vec::new();
    for _ in 0..3 {
        let mut checkout = databases.enter(&placed[0]).await.expect("a connection");
        let pid: i32 =
            sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(checkout.connection()).await.expect("a pid");
        pids.push(pid);
        commit(checkout).await;
        until_idle(&databases).await;
    }
    assert!(pids.windows(2).all(|pair| pair[0] == pair[1]), "{pids:?}");
    for placement in &placed {
        drop(databases.enter(placement).await.expect("a connection"));
    }
    until_backends(&made, 0).await;
    assert_eq!((databases.open_connections(), databases.known_databases()), (0, 0), "nothing is kept of them");
    // And it starts again.
    drop(databases.enter(&placed[1]).await.expect("a connection"));
    until_backends(&made, 0).await;
    drop_all(made).await;
}

/// Until nothing is on its way back.
async fn until_idle(databases: &Databases) {
    for _ in 0..3_000 {
        if databases.idle_connections() == databases.open_connections() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("a connection never came back");
}

/// The port of a server that takes connections and says nothing.
async fn silent() -> (TcpListener, String) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let url = format!("postgres://w:canary@{}/x", listener.local_addr().expect("an address"));
    (listener, url)
}

/// A port that nobody listens on: one that was just let go.
async fn nobody() -> String {
    silent().await.1
}

#[tokio::test]
async fn a_database_that_is_down_is_left_alone_and_others_are_not() {
    let (made, placed) = several(1).await;
    let (_listener, hangs) = silent().await;
    let limits = Limits { connect: Duration::from_millis(200), ..Limits::default() };
    let databases = databases(limits);
    for (tenant, url, says) in [("gone", nobody().await, "refused"), ("mute", hangs, "no answer")] {
        let down = at(tenant, &url);
        for n in 1..=breaker::FAILURES {
            let error = databases.enter(&down).await.expect_err("down");
            let DatabasesError::Unreachable { why, .. } = &error else { panic!("{n}: {error}") };
            assert!(why.contains(says), "{why}");
            let said = error.to_string();
            assert!(!said.contains("canary") && !said.contains("127.0.0.1"), "{said}");
        }
        // From now on it is not even asked.
        for _ in 0..20 {
            let error = databases.enter(&down).await.expect_err("down");
            assert!(matches!(error, DatabasesError::Down { after, .. } if after <= breaker::DELAY_FIRST), "{error}");
        }
        assert_eq!(answers(&mut databases.enter(&placed[0]).await.expect("healthy")).await, made[0].name);
    }
    // Until its delay is over and it is back: closed, at once and for all.
    let back = at("gone", &made[0].admin_url());
    loop {
        match databases.enter(&back).await {
            Ok(_) => break,
            Err(DatabasesError::Down { after, .. }) => tokio::time::sleep(after).await,
            Err(other) => panic!("{other}"),
        }
    }
    assert!(databases.enter(&back).await.is_ok());
    drop_all(made).await;
}

#[tokio::test]
async fn a_server_that_was_restarted_under_idle_connections_costs_no_job_a_failure() {
    let (made, placed) = several(1).await;
    let databases = databases(Limits { idle: LONG, ..Limits::default() });
    let both = (databases.enter(&placed[0]).await, databases.enter(&placed[0]).await);
    drop(both);
    until_idle(&databases).await;
    sqlx::query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'reeve-dedicated' AND datname = current_database()")
        .execute(&made[0].admin)
        .await
        .expect("terminated");
    until_backends(&made, 0).await;
    assert_eq!(answers(&mut databases.enter(&placed[0]).await.expect("a new one")).await, made[0].name);
    assert_eq!(databases.open_connections(), 1, "its dead peer went with it");
    drop_all(made).await;
}

/// Polls `work` until its n-th wait, and drops it there.
async fn dropped_at_wait(n: usize, work: impl Future<Output = ()>) {
    let mut work = pin!(work);
    let mut waits = 0;
    poll_fn(|cx| {
        waits += 1;
        if work.as_mut().poll(cx).is_ready() || waits == n { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

/// Whatever a dropped future leaves on the connection, the next user starts from nothing.
#[tokio::test]
async fn a_checkout_that_is_dropped_half_way_leaves_no_transaction_and_no_context() {
    let (made, placed) = several(1).await;
    made[0].admin.execute("CREATE TABLE marks (n int)").await.expect("a table");
    let databases = databases(Limits { connections: 1, per_database: 1, idle: LONG, ..Limits::default() });
    for n in 1..40 {
        dropped_at_wait(n, async {
            let mut checkout = databases.enter(&placed[0]).await.expect("a connection");
            checkout.connection().execute("SELECT set_config('reeve.tenant_id', 'a', true)").await.expect("set");
            checkout.connection().execute("INSERT INTO marks VALUES (1)").await.expect("written");
            checkout.connection().execute("SELECT pg_sleep(0.001)").await.expect("slept");
        })
        .await;
        let mut next = databases.enter(&placed[0]).await.expect("a connection");
        let (marks, context): (i64, Option<String>) =
            sqlx::query_as("SELECT (SELECT count(*) FROM marks), nullif(current_setting('reeve.tenant_id', true), '')")
                .fetch_one(next.connection())
                .await
                .expect("the next user's query works");
        assert_eq!((marks, context), (0, None), "dropped at wait {n}");
    }
    drop_all(made).await;
}

/// A session-wide context is not what a scope sets, but whoever left one does not pass it on.
#[tokio::test]
async fn a_connection_with_a_context_that_outlived_its_transaction_is_closed() {
    let (made, placed) = several(1).await;
    // One place, and permits to spare: the next user waits for this connection, and would get it.
    let databases = databases(Limits { per_database: 1, idle: LONG, ..Limits::default() });
    let mut checkout = databases.enter(&placed[0]).await.expect("a connection");
    checkout.connection().execute("SELECT set_config('reeve.tenant_id', 'a', false)").await.expect("set");
    commit(checkout).await;
    let mut next = databases.enter(&placed[0]).await.expect("a connection");
    let context: Option<String> = sqlx::query_scalar("SELECT nullif(current_setting('reeve.tenant_id', true), '')")
        .fetch_one(next.connection())
        .await
        .expect("an answer");
    assert_eq!(context, None);
    drop(next);
    drop_all(made).await;
}

#[tokio::test]
async fn a_placement_that_does_not_open_or_holds_no_url_connects_nowhere() {
    let databases = databases(Limits::default());
    let sealed = Dedicated { url_sealed: [0xff].as_slice().into(), ..at("a", "") };
    assert!(matches!(databases.enter(&sealed).await, Err(DatabasesError::Sealed(_))));
    let error = databases.enter(&at("a", "mysql://w:canary@h/x")).await.expect_err("no URL");
    assert!(matches!(error, DatabasesError::Url(_)) && !error.to_string().contains("canary"), "{error}");
    assert_eq!(databases.open_connections(), 0);
}

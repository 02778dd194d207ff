//! Each check is shown a sound database, then the fault it is there for.
mod faults;
mod privileges;

use reeve_jobs::{
    Kind,
    clock::{Clock, SystemClock},
    queue::operate::{self, Act},
    testing::{ManualClock, TestDatabase},
};
use sqlx::{Connection, Executor};

use super::{
    server::{clock_verdict, server_verdict, transaction_verdict},
    *,
};

/// A connection inside a transaction that is never committed: roles belong to the whole cluster, which other tests use.
async fn connection(db: &TestDatabase) -> PgConnection {
    let mut connection = PgConnection::connect_with(&db.admin.connect_options()).await.expect("the administrator");
    connection.execute("BEGIN").await.expect("a transaction");
    connection
}

/// Applies a fault as the administrator, then asks as `reeve_ops` would, and returns the check of this name.
async fn after(db: &TestDatabase, fault: &'static str, name: &str) -> Check {
    let mut connection = connection(db).await;
    connection.execute(fault).await.unwrap_or_else(|error| panic!("{fault}: {error}"));
    connection.execute("SET LOCAL SESSION AUTHORIZATION reeve_ops").await.expect("the role");
    let checks = checks(&mut connection, &SystemClock).await.expect("checks");
    connection.execute("ROLLBACK").await.expect("nothing is kept");
    checks.into_iter().find(|check| check.name == name).unwrap_or_else(|| panic!("no check {name}"))
}

#[tokio::test]
async fn a_fresh_installation_has_no_failure() {
    let db = TestDatabase::new().await;
    let report = run(&db.pool("reeve_ops").await, &SystemClock).await.expect("a report");
    // The tests' cluster may run without fsync, which is a warning.
    for check in report.checks.iter().filter(|check| check.name != "durability") {
        assert_eq!(check.status, Status::Ok, "{check:?}");
        assert!(check.fix.is_none(), "{check:?}");
    }
    assert!(report.status() <= Status::Warn);
    db.drop_now().await;
}

#[tokio::test]
async fn a_connection_above_row_level_security_is_a_failure() {
    let db = TestDatabase::new().await;
    let checks = checks(&mut connection(&db).await, &SystemClock).await.expect("checks");
    let roles = checks.iter().find(|check| check.name == "roles").expect("the roles");
    assert_eq!(roles.status, Status::Fail, "{roles:?}");
    assert!(roles.fix.as_deref().is_some_and(|fix| fix.contains("log in as reeve_ops")), "{roles:?}");
    db.drop_now().await;
}

#[tokio::test]
async fn parked_jobs_warn_and_forgotten_leases_fail() {
    let db = TestDatabase::new().await;
    let acme = db.tenant("acme").await;
    let who = Act { actor: "test", reason: "arranging" };
    operate::enqueue(&db.admin, &acme, Kind::FleetProbe, &serde_json::json!({}), who).await.expect("a job");
    for (fault, name, status, found) in [
        ("UPDATE reeve.jobs SET state = 'dead'", "dead", Status::Warn, "1 waiting"),
        ("UPDATE reeve.jobs SET state = 'quarantined'", "quarantined", Status::Warn, "1 waiting"),
        (
            "UPDATE reeve.jobs SET state = 'running', lease_token = id, lease_expires_at = now() - interval '121 s'",
            "leases",
            Status::Fail,
            "1 ran out",
        ),
        (
            "UPDATE reeve.jobs SET state = 'running', lease_token = id, lease_expires_at = now() - interval '60 s'",
            "leases",
            Status::Ok,
            "none",
        ),
    ] {
        let check = after(&db, fault, name).await;
        assert_eq!(check.status, status, "{fault}: {check:?}");
        assert!(check.found.contains(found), "{fault}: {check:?}");
        assert_eq!(check.fix.is_some(), status > Status::Ok, "{fault}: {check:?}");
    }
    db.drop_now().await;
}

#[tokio::test]
async fn another_roles_open_transaction_is_seen_with_its_holder_but_not_its_query() {
    let db = TestDatabase::new().await;
    let mut app = PgConnection::connect_with(&db.options("reeve_app").application_name("crm")).await.expect("the app");
    app.execute("BEGIN").await.expect("a transaction");
    app.execute("SELECT 'hunter2'").await.expect("a query");
    let (holder, _): (String, f64) = sqlx::query_as("SELECT holder, age_secs FROM reeve.oldest_transaction()")
        .fetch_one(&db.pool("reeve_ops").await)
        .await
        .expect("the app's transaction");
    assert!(holder.contains("reeve_app") && holder.contains("crm") && !holder.contains("hunter2"), "{holder}");
    drop(app);
    db.drop_now().await;
}

#[tokio::test]
async fn sessions_that_cannot_be_seen_are_a_warning_and_no_silence() {
    let db = TestDatabase::new().await;
    let app = PgConnection::connect_with(&db.options("reeve_app")).await.expect("the app");
    // As after a migration by an administrator who is no superuser.
    let check =
        after(&db, "ALTER FUNCTION reeve.oldest_transaction() OWNER TO reeve_owner", "oldest transaction").await;
    assert_eq!(check.status, Status::Warn, "{check:?}");
    assert_eq!(check.fix.as_deref(), Some("GRANT pg_read_all_stats TO reeve_owner;"));
    drop(app);
    db.drop_now().await;
}

#[test]
fn a_transaction_of_more_than_five_minutes_is_a_warning() {
    let held = |secs| transaction_verdict(Some(("pid 7".to_owned(), secs)), 0, "admin");
    assert_eq!(held(300.0).status, Status::Ok);
    let old = held(660.0);
    assert_eq!((old.status, old.found.as_str()), (Status::Warn, "11 min: pid 7"));
    assert_eq!(transaction_verdict(None, 0, "admin").status, Status::Ok);
}

#[test]
fn a_server_before_fifteen_is_a_failure() {
    assert_eq!(server_verdict(150_000, "15.0").status, Status::Ok);
    let old = server_verdict(140_012, "14.12");
    assert_eq!((old.status, old.found.as_str()), (Status::Fail, "PostgreSQL 14.12"));
}

#[test]
fn a_clock_is_judged_by_what_no_round_trip_explains() {
    let at = |ms: i64| chrono::DateTime::from_timestamp_millis(1_700_000_000_000 + ms).expect("a time");
    for (before, there, after, status, found) in [
        (0, 5_000, 9_000, Status::Ok, "agrees"),
        (0, 2_000, 0, Status::Ok, "2.0 s ahead of"),
        (0, -2_001, 0, Status::Warn, "2.0 s behind"),
        (0, 70_000, 10_000, Status::Warn, "60.0 s ahead of"),
        (0, 70_001, 10_000, Status::Fail, "60.0 s ahead of"),
        (0, -3_600_000, 10_000, Status::Fail, "3600.0 s behind"),
    ] {
        let check = clock_verdict(at(before), at(there), at(after));
        assert!(check.status == status && check.found.contains(found), "{there}: {check:?}");
        assert_eq!(check.fix.is_some(), status > Status::Ok, "{there}");
    }
}

#[tokio::test]
async fn this_machines_clock_is_held_against_the_databases() {
    let db = TestDatabase::new().await;
    let clock = ManualClock::at(SystemClock.now() + chrono::Duration::minutes(10));
    let report = run(&db.pool("reeve_ops").await, &*clock).await.expect("a report");
    let check = report.checks.iter().find(|check| check.name == "clock").expect("the clock");
    assert!(check.status == Status::Fail && check.found.contains("behind"), "{check:?}");
    db.drop_now().await;
}

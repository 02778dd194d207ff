//! Each check is shown a sound database, then the fault it is there for.
use reeve_jobs::{
    queue::operate::{self, Act},
    testing::TestDatabase,
};
use sqlx::{Connection, Executor};

use super::*;

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
    connection.execute("SET LOCAL ROLE reeve_ops").await.expect("the role");
    let checks = checks(&mut connection).await.expect("checks");
    connection.execute("ROLLBACK").await.expect("nothing is kept");
    checks.into_iter().find(|check| check.name == name).unwrap_or_else(|| panic!("no check {name}"))
}

#[tokio::test]
async fn a_fresh_installation_has_no_failure() {
    let db = TestDatabase::new().await;
    let report = run(&db.pool("reeve_ops").await).await.expect("a report");
    // The tests' cluster may run without fsync, which is a warning.
    for check in report.checks.iter().filter(|check| check.name != "durability") {
        assert_eq!(check.status, Status::Ok, "{check:?}");
        assert!(check.fix.is_none(), "{check:?}");
    }
    assert!(report.status() <= Status::Warn);
    db.drop_now().await;
}

/// A fault, the check that must find it, and a part of what it must say and advise.
const FAULTS: [(&str, &str, &str, &str); 18] = [
    ("ALTER ROLE reeve_worker BYPASSRLS", "roles", "reeve_worker bypasses", "ALTER ROLE reeve_worker NOBYPASSRLS;"),
    ("ALTER ROLE reeve_dispatch SUPERUSER", "roles", "reeve_dispatch is a superuser", "NOSUPERUSER"),
    (
        "ALTER TABLE reeve.doorbells OWNER TO reeve_worker",
        "ownership",
        "reeve_worker owns table doorbells",
        "reeve_owner",
    ),
    ("ALTER FUNCTION reeve.tenant() OWNER TO reeve_app", "ownership", "reeve_app owns function tenant", "reeve_owner"),
    ("ALTER SCHEMA reeve OWNER TO reeve_ops", "ownership", "reeve_ops owns schema reeve", "reeve_owner"),
    (
        "GRANT reeve_owner TO reeve_worker",
        "ownership",
        "member of reeve_owner",
        "REVOKE reeve_owner FROM reeve_worker;",
    ),
    ("ALTER TABLE reeve.jobs DISABLE ROW LEVEL SECURITY", "tenant tables", "jobs has no row-level", "jobs ENABLE"),
    (
        "ALTER TABLE reeve.tenants NO FORCE ROW LEVEL SECURITY",
        "tenant tables",
        "tenants does not force",
        "tenants FORCE",
    ),
    (
        "ALTER TABLE reeve.job_attempts ALTER tenant_id DROP NOT NULL",
        "tenant tables",
        "job_attempts allows",
        "SET NOT NULL",
    ),
    (
        "ALTER TABLE reeve.audit_stubs DROP CONSTRAINT audit_stubs_pkey",
        "tenant tables",
        "audit_stubs has no index",
        "ON reeve.audit_stubs (tenant_id)",
    ),
    ("CREATE TABLE reeve.extra (tenant_id text)", "tenant tables", "extra has no row-level", "extra ENABLE"),
    (
        "ALTER FUNCTION reeve.renew(uuid[], uuid[], double precision) RESET search_path",
        "functions",
        "no pinned",
        "ALTER FUNCTION reeve.renew",
    ),
    (
        "ALTER FUNCTION reeve.promote(integer) SET search_path = public, pg_temp",
        "functions",
        "no pinned",
        "reeve.promote",
    ),
    ("GRANT EXECUTE ON FUNCTION reeve.rescue(integer) TO PUBLIC", "functions", "called by everybody", "REVOKE EXECUTE"),
    (
        "UPDATE reeve.kinds SET attempts_max = 99 WHERE name = 'fleet.probe'",
        "kinds",
        "fleet.probe differs in attempts_max",
        "reeve migrate",
    ),
    ("DELETE FROM reeve.kinds WHERE name = 'fleet.probe'", "kinds", "fleet.probe is missing", "reeve migrate"),
    ("UPDATE reeve.schedules SET cron = '0 0 * * *'", "kinds", "webhook.prune differs in cadence", "reeve migrate"),
    ("UPDATE public._reeve_migrations SET success = version < 9", "schema", "at migration 8", "reeve migrate"),
];

#[tokio::test]
async fn each_fault_is_found_and_comes_with_its_fix() {
    let db = TestDatabase::new().await;
    for (fault, name, found, fix) in FAULTS {
        let check = after(&db, fault, name).await;
        assert_eq!(check.status, Status::Fail, "{fault}: {check:?}");
        assert!(check.found.contains(found), "{fault}: {check:?}");
        assert!(check.fix.as_ref().is_some_and(|text| text.contains(fix)), "{fault}: {check:?}");
    }
    db.drop_now().await;
}

#[tokio::test]
async fn what_needs_an_eye_is_a_warning() {
    let db = TestDatabase::new().await;
    for (fault, name, found) in [
        ("SET LOCAL synchronous_commit = off", "durability", "synchronous_commit = off"),
        ("ALTER ROLE reeve_worker SET synchronous_commit = off", "durability", "for reeve_worker"),
        ("INSERT INTO reeve.kinds VALUES ('later.kind', 'q', 1, 1, 64, true, true)", "kinds", "later.kind"),
    ] {
        let check = after(&db, fault, name).await;
        assert_eq!(check.status, Status::Warn, "{fault}: {check:?}");
        assert!(check.found.contains(found) && check.fix.is_some(), "{fault}: {check:?}");
    }
    db.drop_now().await;
}

#[tokio::test]
async fn a_connection_above_row_level_security_is_a_failure() {
    let db = TestDatabase::new().await;
    let checks = checks(&mut connection(&db).await).await.expect("checks");
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
fn only_a_path_that_no_caller_can_write_to_is_pinned() {
    for good in ["pg_catalog, pg_temp", "pg_catalog, reeve, pg_temp", "\"pg_catalog\", \"pg_temp\""] {
        assert!(is_pinned(good), "{good}");
    }
    for bad in ["", "\"\"", "public, pg_temp", "\"$user\", pg_temp", "pg_catalog", "pg_temp, pg_catalog"] {
        assert!(!is_pinned(bad), "{bad}");
    }
}

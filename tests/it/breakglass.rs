//! Break-glass: two persons, one tenant, read-only, for a time, and never without a trace.
//!
//! Each test makes its own operators' logins and drops them, with the login of break-glass, at its end: roles belong to the
//! cluster. Time is moved by setting an opening's own times back, as the cluster's superuser.
use reeve_jobs::{
    audit::{inspect, verify},
    client,
    kinds::ProbeFleet,
    queue::operate::Act,
    tenant::breakglass::{self, Approval, Login, Opening},
};
use reeve_scheduler::closer;
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool};
use uuid::Uuid;

use crate::support::Town;

mod attacks;
mod command;

const WHO: Act<'static> = Act { actor: "cli:somebody", reason: "a customer called" };
const BEGIN: &str = "SELECT reeve.breakglass_begin('the stuck invoice')";
const JOBS: &str = "SELECT count(*) FROM reeve.jobs";

/// What an opening shows.
const TABLES: [&str; 10] = [
    "tenants",
    "jobs",
    "job_attempts",
    "job_history",
    "webhook_endpoints",
    "webhook_events",
    "webhook_deliveries",
    "webhook_attempts",
    "audit_log",
    "audit_bodies",
];

/// A town with two operators, `ann` and `bob`, each with a login of their own, and rows of both tenants in each table.
struct House {
    town: Town,
    ann: PgPool,
    bob: PgPool,
    scheduler: PgPool,
}

impl House {
    async fn new() -> Self {
        let town = Town::new().await;
        for name in ["ann", "bob"] {
            let login = login_of(&town, name);
            town_run(&town, &format!("CREATE ROLE {login} LOGIN PASSWORD 'test' IN ROLE reeve_ops")).await;
            // What waits for a lock of some session's fails, where the test would else hang.
            town_run(&town, &format!("ALTER ROLE {login} SET lock_timeout = '10s'")).await;
        }
        let (ann, bob) = (town.db.pool(&login_of(&town, "ann")).await, town.db.pool(&login_of(&town, "bob")).await);
        let scheduler = town.db.pool("reeve_scheduler").await;
        let house = Self { town, ann, bob, scheduler };
        house.fill().await;
        house
    }

    async fn fill(&self) {
        for tenant in [&self.town.a, &self.town.b] {
            self.town.endpoint(tenant, "http://127.0.0.1:9/").await;
            client::enqueue_alone(&self.town.app, tenant, &ProbeFleet::default()).await.expect("a job");
            let mut tx = self.town.app.begin().await.expect("begin");
            client::set_tenant(&mut tx, tenant).await.expect("context");
            client::emit(&mut tx, "thing.done", &serde_json::json!({})).await.expect("an event");
            tx.commit().await.expect("committed");
        }
        self.run(
            "INSERT INTO reeve.job_attempts (tenant_id, job_id, attempt, outcome) SELECT tenant_id, id, 1, 'retry' FROM reeve.jobs;
             INSERT INTO reeve.job_history (id, tenant_id, kind, queue, region, state, priority, attempt, attempts_max, rescues,
               run_at, created_at, payload)
             SELECT gen_random_uuid(), id, 'k', 'q', 'default', 'completed', 3, 1, 1, 0, now(), now(), '{}' FROM reeve.tenants;
             INSERT INTO reeve.webhook_attempts (tenant_id, delivery_id, job_id, attempt, at, duration_ms, result)
             SELECT tenant_id, id, gen_random_uuid(), 1, now(), 1, 'unreachable' FROM reeve.webhook_deliveries",
        )
        .await;
    }

    /// As the superuser. Statements are the tests' own words.
    async fn run(&self, sql: &str) {
        town_run(&self.town, sql).await;
    }

    async fn ask(&self, sql: &str) -> String {
        let sql = format!("SELECT coalesce((({sql}))::text, 'NULL')");
        sqlx::query_scalar(AssertSqlSafe(sql.clone())).fetch_one(&self.town.db.admin).await.expect(&sql)
    }

    async fn request(&self) -> Uuid {
        breakglass::request(&self.ann, &self.town.a, 30, WHO).await.expect("asked")
    }

    async fn approved(&self) -> Uuid {
        let id = self.request().await;
        assert_eq!(breakglass::approve(&self.bob, id, WHO).await.expect("answered"), Approval::Approved);
        id
    }

    async fn open(&self) -> (Uuid, Login) {
        let id = self.approved().await;
        (id, breakglass::login(&self.ann, id, "cli:ann").await.expect("made").expect("an opening"))
    }

    async fn connect(&self, login: &Login) -> sqlx::Result<PgConnection> {
        let options = self.town.db.options(&login.user).password(login.password.reveal());
        PgConnection::connect_with(&options).await
    }

    /// A session that has begun.
    async fn begun(&self, login: &Login) -> PgConnection {
        let mut session = self.connect(login).await.expect("the login works");
        do_in(&mut session, BEGIN).await.expect("begun");
        session
    }

    async fn find(&self, id: Uuid) -> Opening {
        breakglass::list(&self.ann, None, Some(id), 1).await.expect("a list").remove(0)
    }

    async fn actions(&self) -> Vec<String> {
        sqlx::query_scalar(
            "SELECT action FROM reeve.audit_log WHERE action LIKE 'breakglass.%' ORDER BY tenant_id, seq",
        )
        .fetch_all(&self.town.db.admin)
        .await
        .expect("the log")
    }

    async fn end(self) {
        let logins: Vec<String> = sqlx::query_scalar(
            "SELECT login FROM reeve.breakglass_openings WHERE login IS NOT NULL AND state <> 'closed'",
        )
        .fetch_all(&self.town.db.admin)
        .await
        .expect("logins");
        let operators = ["ann", "bob"].map(|name| login_of(&self.town, name));
        self.town.db.drop_now().await;
        let other = reeve_jobs::testing::TestDatabase::empty().await;
        for login in logins.iter().chain(&operators) {
            sqlx::raw_sql(AssertSqlSafe(format!("DROP ROLE IF EXISTS {login}")))
                .execute(&other.admin)
                .await
                .expect(login);
        }
        other.drop_now().await;
    }
}

fn login_of(town: &Town, name: &str) -> String {
    town.db.name.replace("reeve_test", name)
}

async fn town_run(town: &Town, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&town.db.admin).await.unwrap_or_else(|e| panic!("{sql}: {e}"));
}

async fn do_in(session: &mut PgConnection, sql: &str) -> sqlx::Result<()> {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(session).await.map(drop)
}

async fn count(session: &mut PgConnection, sql: &str) -> i64 {
    sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_one(session).await.unwrap_or_else(|e| panic!("{sql}: {e}"))
}

fn code(error: sqlx::Error) -> String {
    error.as_database_error().and_then(|error| error.code()).expect("the database's own").into_owned()
}

fn refusal(approval: Approval) -> (String, String) {
    match approval {
        Approval::Refused { code, hint, .. } => (code, hint.unwrap_or_default()),
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test]
async fn the_login_that_asked_cannot_approve_nor_can_a_shared_one() {
    let house = House::new().await;
    let shared = house.town.db.pool("reeve_ops").await;
    for nobody in [&shared, &house.town.db.admin] {
        let asked = breakglass::request(nobody, &house.town.a, 30, WHO).await.unwrap_err();
        assert_eq!(code(asked), "RV040");
    }
    let id = house.request().await;
    // Another name in the command line does not make another person.
    let pretending = Act { actor: "cli:bob", reason: "looks fine to me" };
    let refused = refusal(breakglass::approve(&house.ann, id, pretending).await.expect("answered"));
    assert_eq!(refused.0, "RV041");
    assert!(refused.1.contains("CREATE ROLE ann LOGIN"), "{}", refused.1);
    for nobody in [&shared, &house.town.db.admin] {
        let refused = refusal(breakglass::approve(nobody, id, WHO).await.expect("answered"));
        assert_eq!(refused.0, "RV040");
    }
    let asker = login_of(&house.town, "ann");
    let found = house.find(id).await;
    assert_eq!(
        (found.state.as_str(), found.requested_by.as_str(), found.approved_by),
        ("requested", asker.as_str(), None)
    );
    assert_eq!(code(breakglass::login(&house.ann, id, "cli:ann").await.unwrap_err()), "RV042");
    assert_eq!(
        house.actions().await,
        [
            "breakglass.requested",
            "breakglass.approval_refused",
            "breakglass.approval_refused",
            "breakglass.approval_refused"
        ]
    );
    assert_eq!(breakglass::approve(&house.bob, id, WHO).await.expect("answered"), Approval::Approved);
    let found = house.find(id).await;
    assert_eq!((found.state.as_str(), found.approved_by), ("approved", Some(login_of(&house.town, "bob"))));
    house.end().await;
}

#[tokio::test]
async fn a_session_sees_one_tenant_read_only_and_nothing_before_it_has_said_why() {
    let house = House::new().await;
    let (_, login) = house.open().await;
    let mut session = house.connect(&login).await.expect("the login works");
    for table in TABLES {
        assert_eq!(count(&mut session, &format!("SELECT count(*) FROM reeve.{table}")).await, 0, "{table} before");
    }
    for blank in ["''", "E' \\t '", "NULL"] {
        let refused = do_in(&mut session, &format!("SELECT reeve.breakglass_begin({blank})")).await.unwrap_err();
        assert_eq!(code(refused), "RV005", "{blank}");
    }
    assert_eq!(count(&mut session, JOBS).await, 0);
    do_in(&mut session, BEGIN).await.expect("begun");
    for table in TABLES {
        let column = if table == "tenants" { "id" } else { "tenant_id" };
        let (all, own) = (
            count(&mut session, &format!("SELECT count(*) FROM reeve.{table}")).await,
            count(&mut session, &format!("SELECT count(*) FROM reeve.{table} WHERE {column} = 'a'")).await,
        );
        let there = house.ask(&format!("SELECT count(*) FROM reeve.{table} WHERE {column} = 'a'")).await;
        assert!(all > 0 && all == own && all.to_string() == there, "{table}: {all}, own {own}, there {there}");
    }
    // The context that the programs set is none here.
    do_in(&mut session, "SELECT set_config('reeve.tenant_id', 'b', false)").await.expect("set");
    assert_eq!(count(&mut session, "SELECT count(*) FROM reeve.jobs WHERE tenant_id = 'b'").await, 0);
    for forbidden in [
        "SELECT FROM reeve.webhook_secrets",
        "SELECT FROM reeve.breakglass_openings",
        "SELECT FROM reeve.breakglass_sessions",
        "SELECT FROM reeve.job_history_default",
        "SELECT FROM reeve.audit_heads",
        "UPDATE reeve.jobs SET state = 'dead'",
        "DELETE FROM reeve.jobs",
        "INSERT INTO reeve.webhook_events (tenant_id, id, event_type, body) VALUES ('a', 'msg_1', 'x', '')",
        "INSERT INTO reeve.breakglass_sessions (tenant_id, opening_id) VALUES ('a', gen_random_uuid())",
        "SELECT reeve.breakglass_make_login('reeve_bg_000000000000', 'x', now())",
        "SELECT reeve.audit('a', 'b.c', '')",
        "SET ROLE reeve_ops",
        "SET ROLE reeve_breakglass_keeper",
        "SET SESSION AUTHORIZATION reeve_ops",
    ] {
        let refused = do_in(&mut session, forbidden).await.unwrap_err();
        assert_eq!(code(refused), "42501", "{forbidden}");
    }
    // Nor does it live longer, hide from who is to end it, or let others in.
    for forbidden in
        ["ALTER ROLE {} VALID UNTIL 'infinity'", "REVOKE {} FROM reeve_breakglass_keeper", "GRANT {} TO reeve_app"]
    {
        let forbidden = forbidden.replace("{}", &login.user);
        assert_eq!(code(do_in(&mut session, &forbidden).await.unwrap_err()), "42501", "{forbidden}");
    }
    let mut second = house.connect(&login).await.expect("a second session");
    assert_eq!(count(&mut second, JOBS).await, 0, "another session says so itself");
    house.end().await;
}

#[tokio::test]
async fn when_the_time_is_over_nothing_is_seen_the_session_is_cut_and_no_new_one_comes() {
    let house = House::new().await;
    let (id, login) = house.open().await;
    let mut session = house.begun(&login).await;
    assert!(count(&mut session, JOBS).await > 0);
    assert_eq!(closer::run_once(&house.scheduler).await.expect("a run"), closer::Closed::default(), "too early");
    house.run("UPDATE reeve.breakglass_openings SET valid_until = clock_timestamp()").await;
    house.run(&format!("ALTER ROLE {} VALID UNTIL '2001-01-01'", login.user)).await;
    assert_eq!(count(&mut session, JOBS).await, 0, "the clock alone is enough");
    assert_eq!(code(do_in(&mut session, BEGIN).await.unwrap_err()), "RV043");
    assert_eq!(code(house.connect(&login).await.unwrap_err()), "28P01", "the server's own end of it");
    let closed = closer::run_once(&house.scheduler).await.expect("a run");
    assert_eq!(closed, closer::Closed { expired: 1, finished: 1, left: 0 });
    assert!(do_in(&mut session, "SELECT 1").await.is_err(), "the session was cut");
    assert_eq!(house.ask(&format!("SELECT count(*) FROM pg_roles WHERE rolname = '{}'", login.user)).await, "0");
    let found = house.find(id).await;
    assert_eq!((found.state.as_str(), found.close_reason.as_deref()), ("closed", Some("its time is over")));
    assert_eq!(found.closed_as.as_deref(), Some("scheduler"));
    assert_eq!(closer::run_once(&house.scheduler).await.expect("again"), closer::Closed::default());
    assert_eq!(house.actions().await.last().map(String::as_str), Some("breakglass.closed"));
    house.end().await;
}

#[tokio::test]
async fn requests_that_nobody_answers_lapse() {
    let house = House::new().await;
    let (asked, approved) = (house.request().await, house.approved().await);
    house.run("UPDATE reeve.breakglass_openings SET lapses_at = clock_timestamp()").await;
    assert_eq!(code(breakglass::approve(&house.bob, asked, WHO).await.unwrap_err()), "RV042");
    assert_eq!(code(breakglass::login(&house.ann, approved, "cli:ann").await.unwrap_err()), "RV042");
    let closed = closer::run_once(&house.scheduler).await.expect("a run");
    assert_eq!(closed, closer::Closed { expired: 2, finished: 2, left: 0 });
    let why = async |id| house.find(id).await.close_reason.expect("a reason");
    assert_eq!(why(asked).await, "nobody approved it in time");
    assert_eq!(why(approved).await, "its login was not taken in time");
    assert_eq!(code(breakglass::approve(&house.bob, asked, WHO).await.unwrap_err()), "RV042");
    house.end().await;
}

#[tokio::test]
async fn closing_cuts_sessions_drops_the_login_and_does_not_wait_for_what_they_hold() {
    let house = House::new().await;
    let (id, login) = house.open().await;
    let (mut reader, mut sleeper) = (house.begun(&login).await, house.connect(&login).await.expect("a second"));
    // This one holds the end of the tenant's audit log, which the closing entry needs, and owns something.
    do_in(&mut sleeper, "SELECT lo_create(0)").await.expect("a large object");
    do_in(&mut sleeper, &format!("BEGIN; {BEGIN}")).await.expect("begun and not committed");
    assert_eq!(breakglass::close(&house.bob, id, WHO).await.expect("closed").as_deref(), Some("open"));
    assert_eq!(house.find(id).await.state, "closing");
    for session in [&mut reader, &mut sleeper] {
        assert!(do_in(session, "SELECT 1").await.is_err(), "the session was cut");
    }
    assert_eq!(code(house.connect(&login).await.unwrap_err()), "28P01");
    let barred = format!("SELECT rolcanlogin FROM pg_roles WHERE rolname = '{}'", login.user);
    assert_eq!(house.ask(&barred).await, "false");
    let finished = breakglass::finish(&house.bob).await.expect("finished");
    assert_eq!(finished, [breakglass::Finished { opening: id, login_left: false }]);
    let found = house.find(id).await;
    assert_eq!((found.state, found.closed_by), ("closed".to_owned(), Some(login_of(&house.town, "bob"))));
    assert_eq!(code(house.connect(&login).await.unwrap_err()), "28P01", "the role is gone");
    assert_eq!(house.ask(&format!("SELECT count(*) FROM pg_roles WHERE rolname = '{}'", login.user)).await, "0");
    assert_eq!(breakglass::close(&house.bob, id, WHO).await.expect("answered").as_deref(), Some("closed"));
    assert_eq!(code(breakglass::login(&house.ann, id, "cli:ann").await.unwrap_err()), "RV042");
    house.end().await;
}

#[tokio::test]
async fn a_login_that_owns_something_elsewhere_is_barred_and_told_of() {
    let house = House::new().await;
    let (id, login) = house.open().await;
    let other = reeve_jobs::testing::TestDatabase::empty().await;
    let options = other.options(&login.user).password(login.password.reveal());
    let mut there = PgConnection::connect_with(&options).await.expect("another database");
    do_in(&mut there, "SELECT lo_create(0)").await.expect("a large object");
    breakglass::close(&house.ann, id, WHO).await.expect("closed");
    assert!(do_in(&mut there, "SELECT 1").await.is_err(), "the session was cut there too");
    let finished = breakglass::finish(&house.ann).await.expect("finished");
    assert_eq!(finished, [breakglass::Finished { opening: id, login_left: true }]);
    assert!(house.find(id).await.login_left);
    assert_eq!(code(house.connect(&login).await.unwrap_err()), "28P01", "it is barred");
    let barred = format!("SELECT rolcanlogin FROM pg_roles WHERE rolname = '{}'", login.user);
    assert_eq!(house.ask(&barred).await, "false");
    let groups = format!("SELECT count(*) FROM pg_auth_members WHERE member = '{}'::regrole", login.user);
    assert_eq!(house.ask(&groups).await, "0");
    let user = login.user;
    other.drop_now().await;
    house.run(&format!("DROP ROLE {user}")).await;
    house.end().await;
}

#[tokio::test]
async fn each_step_is_in_the_tenants_audit_log_and_its_chain_holds() {
    let house = House::new().await;
    let (id, login) = house.open().await;
    house.begun(&login).await;
    house.begun(&login).await;
    breakglass::close(&house.bob, id, Act { actor: "cli:bob", reason: "found it" }).await.expect("closed");
    breakglass::finish(&house.bob).await.expect("finished");
    let (ann, bob) = (login_of(&house.town, "ann"), login_of(&house.town, "bob"));
    let user = &login.user;
    let filter = inspect::Filter { action: Some("breakglass.".to_owned()), ..Default::default() };
    let mut found = inspect::search(&house.ann, &filter, 100).await.expect("entries");
    found.reverse();
    let target = format!("breakglass:{id}");
    assert!(
        found.iter().all(|e| (e.tenant.as_str(), e.class.as_str(), &e.target) == ("a", "24m", &target)),
        "{found:?}"
    );
    let said: Vec<_> = found
        .into_iter()
        .map(|e| (e.action.replace("breakglass.", ""), e.actor, e.reason.expect("a reason")))
        .collect();
    let until = login.valid_until.format("%Y-%m-%dT%H:%M:%SZ");
    let used = ("used".to_owned(), format!("login:{user} for login:{ann}"), "the stuck invoice".to_owned());
    let expected = [
        ("requested".to_owned(), format!("login:{ann} as cli:somebody"), format!("30 minutes: {}", WHO.reason)),
        ("approved".to_owned(), format!("login:{bob} as cli:somebody"), WHO.reason.to_owned()),
        ("opened".to_owned(), format!("login:{ann} as cli:ann"), format!("{user} until {until}")),
        used.clone(),
        used,
        ("closed".to_owned(), format!("login:{bob} as cli:bob"), "found it".to_owned()),
    ];
    assert_eq!(said, expected);
    let mut look = inspect::snapshot(&house.ann).await.expect("a snapshot");
    let report = verify::verify(&mut look, "a", None).await.expect("a report").0;
    assert_eq!(report.broken, None);
    drop(look);
    house.end().await;
}

#[tokio::test]
async fn the_password_is_stored_and_logged_nowhere() {
    let house = House::new().await;
    let name = &house.town.db.name;
    house
        .run(&format!(
            "ALTER DATABASE {name} SET log_statement = 'all'; ALTER DATABASE {name} SET log_min_duration_statement = 0"
        ))
        .await;
    // A connection made after the setting.
    let ann = house.town.db.pool(&login_of(&house.town, "ann")).await;
    let id = house.approved().await;
    let login = breakglass::login(&ann, id, "cli:ann").await.expect("made").expect("an opening");
    house.begun(&login).await;
    let password = login.password.reveal();
    let stored = house.ask(&format!("SELECT rolpassword FROM pg_authid WHERE rolname = '{}'", login.user)).await;
    assert!(stored.starts_with("SCRAM-SHA-256$") && !stored.contains(password), "{stored}");
    for table in ["breakglass_openings", "breakglass_sessions", "audit_log", "audit_bodies"] {
        let rows = house.ask(&format!("SELECT string_agg(t::text, ' ') FROM reeve.{table} t")).await;
        assert!(!rows.contains(password) && !rows.contains(&stored), "{table}");
    }
    // Where the server's standard error goes: the program's parent is the backend.
    let mut admin = house.town.db.admin.acquire().await.expect("a connection");
    do_in(&mut admin, "CREATE TEMP TABLE place (path text); COPY place FROM PROGRAM 'readlink /proc/$PPID/fd/2'")
        .await
        .expect("the server's log");
    let place: String = sqlx::query_scalar("SELECT path FROM place").fetch_one(&mut *admin).await.expect("a path");
    drop(admin);
    let log = String::from_utf8_lossy(&std::fs::read(&place).expect(&place)).into_owned();
    assert!(log.contains("-- breakglass.login") && log.contains("reeve.breakglass_begin"), "statements are logged");
    assert!(!log.contains(password), "the password is in the server's log");
    assert!(!format!("{login:?}").contains(password));
    house.end().await;
}

#[tokio::test]
async fn a_mistake_is_refused_and_changes_nothing() {
    let house = House::new().await;
    let stranger = "nobody".parse().expect("an id");
    let blank = Act { actor: "cli:ann", reason: " \t" };
    assert_eq!(code(breakglass::request(&house.ann, &stranger, 30, WHO).await.unwrap_err()), "RV003");
    assert_eq!(code(breakglass::request(&house.ann, &house.town.a, 30, blank).await.unwrap_err()), "RV005");
    for minutes in [i32::MIN, -1, 0, 241] {
        assert_eq!(code(breakglass::request(&house.ann, &house.town.a, minutes, WHO).await.unwrap_err()), "RV005");
    }
    assert_eq!(house.ask("SELECT count(*) FROM reeve.breakglass_openings").await, "0");
    let unknown = Uuid::nil();
    assert_eq!(breakglass::approve(&house.bob, unknown, WHO).await.expect("answered"), Approval::NoOpening);
    assert!(breakglass::login(&house.ann, unknown, "cli:ann").await.expect("answered").is_none());
    assert_eq!(breakglass::close(&house.ann, unknown, WHO).await.expect("answered"), None);

    let id = house.approved().await;
    assert_eq!(code(breakglass::approve(&house.bob, id, WHO).await.unwrap_err()), "RV042");
    assert_eq!(code(breakglass::login(&house.bob, id, "cli:ann").await.unwrap_err()), "RV043");
    for verifier in ["hunter2", "md5aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "'; DROP ROLE reeve_ops; --"] {
        let made = sqlx::query("SELECT reeve.breakglass_login($1, $2, 'cli:ann')").bind(id).bind(verifier);
        assert_eq!(code(made.execute(&house.ann).await.unwrap_err()), "RV005", "{verifier}");
    }
    assert!(breakglass::login(&house.ann, id, "cli:ann").await.expect("made").is_some());
    assert_eq!(code(breakglass::login(&house.ann, id, "cli:ann").await.unwrap_err()), "RV042");
    assert_eq!(house.actions().await, ["breakglass.requested", "breakglass.approved", "breakglass.opened"]);
    house.end().await;
}

//! Programs do not start on a database that would not keep tenants apart, and say what to do; on a sound one they do.
//!
//! Roles belong to the cluster, which other tests use at the same time: what is wrong with a role is wrong with one made for
//! the test. What `reeve doctor` finds in Reeve's own roles is tried beside it, in transactions that are rolled back.
use std::{
    os::unix::process::ExitStatusExt,
    process::{ExitStatus, Output, Stdio},
};

use reeve_jobs::testing::{TestDatabase, TestKeystore};
use sqlx::Executor;

use crate::support::program;

const PROGRAMS: [(&str, &str); 3] =
    [("reeve-worker", "reeve_worker"), ("reeve-scheduler", "reeve_scheduler"), ("reeve", "reeve_ops")];

/// Runs something of this program that acts and then ends by itself; the scheduler is ended when it has started.
async fn run(db: &TestDatabase, name: &str, url: &str) -> Output {
    let mut command = tokio::process::Command::new(program(name));
    command
        .env_remove("REEVE_CONFIG")
        .env("REEVE_WORKER__DATABASE_URL", url)
        .env("REEVE_WORKER__OPS_DATABASE_URL", db.url("reeve_ops"))
        .envs(TestKeystore::shared().await.env())
        .env("REEVE_WORKER__WEBHOOKS__LOOPBACK_ALLOWED", "true")
        .env("REEVE_WORKER__WEBHOOKS__HTTP_ALLOWED", "true")
        .env("REEVE_SCHEDULER__DATABASE_URL", url)
        .env("REEVE_OPS__DATABASE_URL", url)
        .env("REEVE_ACTOR", "ann")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    match name {
        "reeve-worker" => command.args(["endpoint", "add", "--tenant", "a", "--url", "http://127.0.0.1:9/x"]),
        "reeve" => command.args(["tenants", "pause", "a", "--reason", "trying"]),
        _ => &mut command,
    };
    let mut child = command.spawn().expect("the program starts");
    if name == "reeve-scheduler" {
        let mut lines =
            tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(child.stderr.take().expect("piped")));
        let mut said = String::new();
        while let Some(line) = lines.next_line().await.expect("UTF-8") {
            said.push_str(&line);
            said.push('\n');
            if line.contains("scheduler started") {
                // That it stops in order is tried elsewhere.
                child.kill().await.expect("it runs");
                return Output { status: ExitStatus::from_raw(0), stdout: Vec::new(), stderr: said.into_bytes() };
            }
        }
        let output = child.wait_with_output().await.expect("it ends");
        return Output { stderr: said.into_bytes(), ..output };
    }
    child.wait_with_output().await.expect("it ends")
}

/// A login of this database's own: a member of the program's role, and whatever else `with` makes it.
async fn login(db: &TestDatabase, own: &str, with: &str) -> String {
    let name = format!("{own}_{}", uuid::Uuid::new_v4().simple());
    let sql = format!("CREATE ROLE {name} LOGIN PASSWORD 'test' IN ROLE {own}; {}", with.replace("{login}", &name));
    db.admin.execute(sqlx::AssertSqlSafe(sql.clone())).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    name
}

async fn forget(db: &TestDatabase, login: &str) {
    let sql = format!("REASSIGN OWNED BY {login} TO reeve_owner; DROP OWNED BY {login}; DROP ROLE {login}");
    db.admin.execute(sqlx::AssertSqlSafe(sql)).await.expect("dropped");
}

async fn database() -> TestDatabase {
    let db = TestDatabase::new().await;
    db.tenant("a").await;
    db
}

async fn changes(db: &TestDatabase) -> i64 {
    let sql = "SELECT (SELECT count(*) FROM reeve.audit_log) + (SELECT count(*) FROM reeve.webhook_endpoints)
               + (SELECT count(*) FROM pg_inherits WHERE inhparent = 'reeve.job_history'::regclass)";
    sqlx::query_scalar(sql).fetch_one(&db.admin).await.expect("a count")
}

async fn refuses(db: &TestDatabase, name: &str, url: &str, broken: &str, says: &[&str]) {
    let before = changes(db).await;
    let ended = run(db, name, url).await;
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(!ended.status.success(), "{name} started though {broken}: {said}");
    assert!(says.iter().all(|part| said.contains(part)), "{name}, {broken}: {said}");
    assert!(said.contains("not safe for tenants' data, so nothing was started"), "{name}, {broken}: {said}");
    assert!(ended.stdout.is_empty(), "{name}, {broken}: {}", String::from_utf8_lossy(&ended.stdout));
    assert_eq!(changes(db).await, before, "{name}, {broken}");
}

#[tokio::test]
async fn a_program_whose_login_is_above_the_policies_does_not_start() {
    let db = database().await;
    for (name, own) in PROGRAMS {
        for (with, says, fix) in [
            ("ALTER ROLE {login} BYPASSRLS", "{login} bypasses row-level security", "log in as {own}"),
            ("ALTER ROLE {login} SUPERUSER", "{login} is a superuser", "log in as {own}"),
            ("ALTER ROLE {login} CREATEROLE", "{login} may make itself a member of any role", "log in as {own}"),
            ("GRANT reeve_owner TO {login}", "{login} is a member of reeve_owner", "REVOKE reeve_owner FROM {login};"),
            (
                "GRANT reeve_dispatch TO {login}",
                "{login} is a member of reeve_dispatch",
                "REVOKE reeve_dispatch FROM {login};",
            ),
            ("ALTER TABLE reeve.doorbells OWNER TO {login}", "{login} owns table doorbells", "to reeve_owner;"),
            (
                "GRANT reeve_app TO {login}",
                "{login} may become the role of another program, reeve_app",
                "REVOKE reeve_app",
            ),
        ] {
            let login = login(&db, own, with).await;
            let fill = |text: &str| text.replace("{login}", &login).replace("{own}", own);
            refuses(&db, name, &db.url(&login), with, &[&fill(says), &fill(fix)]).await;
            forget(&db, &login).await;
        }
    }
    db.drop_now().await;
}

#[tokio::test]
async fn a_superuser_that_took_a_programs_role_is_refused_since_it_could_give_it_back() {
    let db = database().await;
    for (name, own) in PROGRAMS {
        let url = db.admin_url();
        let url = format!("{url}{}options=-c%20role%3D{own}", if url.contains('?') { '&' } else { '?' });
        refuses(&db, name, &url, "its session is a superuser's", &["is a superuser", &format!("log in as {own}")])
            .await;
    }
    db.drop_now().await;
}

#[tokio::test]
async fn a_program_does_not_start_with_anothers_login() {
    let db = database().await;
    for (name, other) in [("reeve-worker", "reeve_ops"), ("reeve-scheduler", "reeve_worker")] {
        let says = format!("{other} is the role of another program");
        refuses(&db, name, &db.url(other), "another's login", &[&says]).await;
    }
    db.drop_now().await;
}

#[tokio::test]
async fn a_program_does_not_start_where_a_guard_is_missing() {
    for (broken, says) in [
        (
            "ALTER TABLE reeve.jobs NO FORCE ROW LEVEL SECURITY",
            "jobs does not force row-level security; fix: ALTER TABLE",
        ),
        ("ALTER TABLE reeve.tenants DISABLE ROW LEVEL SECURITY", "tenants has no row-level security; fix: ALTER TABLE"),
        (
            "ALTER TABLE reeve.flag_overrides NO FORCE ROW LEVEL SECURITY",
            "ALTER TABLE reeve.flag_overrides FORCE ROW LEVEL SECURITY;",
        ),
        (
            "ALTER TABLE reeve.job_history_default DISABLE ROW LEVEL SECURITY",
            "ALTER TABLE reeve.job_history_default ENABLE ROW LEVEL SECURITY;",
        ),
        ("CREATE TABLE reeve.notes (tenant_id text)", "notes has no row-level security"),
        (
            "ALTER FUNCTION reeve.promote(integer) RESET search_path",
            "ALTER FUNCTION reeve.promote(integer) SET search_path = pg_catalog, pg_temp;",
        ),
        ("ALTER FUNCTION reeve.promote(integer) SET search_path = public, pg_temp", "no pinned search_path"),
    ] {
        let db = database().await;
        db.admin.execute(broken).await.unwrap_or_else(|error| panic!("{broken}: {error}"));
        for (name, own) in PROGRAMS {
            refuses(&db, name, &db.url(own), broken, &[says]).await;
        }
        db.drop_now().await;
    }
}

#[tokio::test]
async fn on_a_sound_database_each_program_starts_also_as_a_member_of_its_role() {
    let db = database().await;
    for (name, own) in PROGRAMS {
        let member = login(&db, own, "").await;
        for login in [own, &member] {
            let before = changes(&db).await;
            db.admin.execute("UPDATE reeve.tenants SET paused = false").await.expect("arranged");
            let ended = run(&db, name, &db.url(login)).await;
            let said = String::from_utf8_lossy(&ended.stderr);
            assert!(ended.status.success(), "{name} as {login}: {said}");
            assert!(name == "reeve-scheduler" || changes(&db).await > before, "{name} as {login} did nothing: {said}");
        }
        forget(&db, &member).await;
    }
    db.drop_now().await;
}

#[tokio::test]
async fn on_an_unsound_database_an_operator_may_look_and_is_told_by_the_doctor() {
    let db = database().await;
    db.admin.execute("ALTER TABLE reeve.jobs NO FORCE ROW LEVEL SECURITY").await.expect("broken");
    for (arguments, code, says) in [
        (&["jobs", "list"][..], 0, "ID"),
        (&["audit", "verify"], 0, "TENANT"),
        (&["doctor"], 1, "fix: ALTER TABLE reeve.jobs FORCE ROW LEVEL SECURITY;"),
    ] {
        let output = tokio::process::Command::new(program("reeve"))
            .args(arguments)
            .env_remove("REEVE_CONFIG")
            .env("REEVE_OPS__DATABASE_URL", db.url("reeve_ops"))
            .output()
            .await
            .expect("the program starts");
        let out = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(out.contains(says), "{arguments:?}: {out}");
    }
    db.drop_now().await;
}

//! The whole command against a database: arguments in; data, messages and exit code out.
mod history;
mod schedules;
mod tenants;

use std::io::Write;

use clap::Parser;
use reeve_jobs::{
    JobId, Kind, TenantId,
    program::migrate,
    queue::{Lane, PostgresQueue, Queue, Settlement, operate},
    testing::TestDatabase,
};
use serde_json::Value;
use sqlx::{Connection, PgConnection};

use crate::{Cli, Terminal, run, run::exit_code};

mod catalogue;

const WHO: operate::Act<'static> = operate::Act { actor: "test", reason: "arranging" };

struct Ran {
    code: u8,
    out: String,
    messages: String,
}

impl Ran {
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {}", self.out))
    }
}

async fn run_with(config: &str, arguments: &[&str], stdin: &str, user: Option<&str>) -> Ran {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(config.as_bytes()).expect("a temporary file");
    let path = file.path().display().to_string();
    let cli = Cli::try_parse_from([&["reeve", "--config", &path], arguments].concat()).expect("arguments");
    let (mut out, mut messages) = (Vec::new(), Vec::new());
    let mut terminal = Terminal {
        is_terminal: false,
        out: &mut out,
        messages: &mut messages,
        input: &mut stdin.as_bytes(),
        user: user.map(str::to_owned),
    };
    let ended = run(&cli, &mut terminal).await;
    if let Err(failure) = &ended {
        failure.tell(terminal.messages).expect("a buffer takes all");
    }
    let code = exit_code(&ended);
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    Ran { code, out: text(out), messages: text(messages) }
}

fn config(db: &TestDatabase) -> String {
    format!("[ops]\ndatabase_url = '{}'\nadmin_database_url = '{}'\n", db.url("reeve_ops"), db.admin_url())
}

async fn reeve(db: &TestDatabase, arguments: &[&str]) -> Ran {
    run_with(&config(db), arguments, "", Some("ann")).await
}

async fn count(db: &TestDatabase, table: &str) -> i64 {
    let sql = format!("SELECT count(*) FROM reeve.{table}");
    sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_one(&db.admin).await.expect("a count")
}

async fn probe(db: &TestDatabase, tenant: &TenantId) -> JobId {
    operate::enqueue(&db.admin, tenant, Kind::FleetProbe, &serde_json::json!({}), WHO).await.expect("a job")
}

fn lane() -> Lane {
    Lane { queue: "probes".to_owned(), region: "default".to_owned() }
}

async fn claim(db: &TestDatabase) -> (PostgresQueue, reeve_jobs::job::ClaimedJob) {
    let queue = PostgresQueue::new(db.pool("reeve_worker").await);
    let mut claim = queue.claim(&lane(), 1, "worker-1", "", std::time::Duration::from_secs(30)).await.expect("a claim");
    (queue, claim.jobs.remove(0))
}

async fn settle(queue: &PostgresQueue, job: &reeve_jobs::job::ClaimedJob, outcome: &'static str) {
    let settlement = Settlement {
        job: job.id,
        token: job.lease_token,
        outcome,
        delay: std::time::Duration::ZERO,
        error: Some("because".to_owned()),
    };
    assert_eq!(queue.settle(&[settlement]).await.expect("a settlement"), [job.id]);
}

#[tokio::test]
async fn a_job_is_enqueued_seen_retried_and_cancelled_and_each_act_is_audited() {
    let db = TestDatabase::new().await;
    db.tenant("acme").await;
    let enqueue = ["jobs", "enqueue", "--tenant", "acme", "--kind", "fleet.probe", "--reason", "is it alive?"];
    let ran =
        run_with(&config(&db), &[&enqueue[..], &["--payload", "-"]].concat(), r#"{"note": "hi"}"#, Some("ann")).await;
    assert_eq!((ran.code, ran.messages.as_str()), (0, ""));
    let id = ran.out.trim().to_owned();

    let listed =
        reeve(&db, &["jobs", "list", "--tenant", "acme", "--kind", "fleet.probe", "--state", "available"]).await;
    assert!(listed.out.starts_with("ID ") && listed.out.contains(&id), "{}", listed.out);
    let shown = reeve(&db, &["--json", "jobs", "show", &id]).await.json();
    assert_eq!((&shown["where"], &shown["payload"]["note"]), (&"live".into(), &"hi".into()));
    assert!(shown["created_at"].as_str().expect("a time").ends_with('Z'), "{shown}");

    let (queue, job) = claim(&db).await;
    settle(&queue, &job, "dead").await;
    let retried = reeve(&db, &["jobs", "retry", &id, "--reason", "fixed"]).await;
    assert_eq!((retried.code, retried.out.trim()), (0, format!("{id}  dead → available").as_str()));
    let shown = reeve(&db, &["jobs", "show", &id]).await.out;
    assert!(shown.contains("OUTCOME") && shown.contains("because"), "{shown}");

    let cancelled = reeve(&db, &["--json", "jobs", "cancel", &id, "--reason", "enough"]).await.json();
    assert_eq!((&cancelled["was"], &cancelled["now"]), (&"available".into(), &"cancelled".into()));
    let shown = reeve(&db, &["--json", "jobs", "show", &id]).await.json();
    assert_eq!((&shown["where"], &shown["state"]), (&"history".into(), &"cancelled".into()));
    let history = reeve(&db, &["--json", "jobs", "list", "--history", "--state", "cancelled"]).await.json();
    assert_eq!(history[0]["id"], id);

    let audited: Vec<(String, String, String)> = sqlx::query_as(
        "SELECT actor, action, reason FROM reeve.audit_log JOIN reeve.audit_bodies USING (tenant_id, seq) ORDER BY seq",
    )
    .fetch_all(&db.admin)
    .await
    .expect("log");
    let expected = [("job.enqueued", "is it alive?"), ("job.retried", "fixed"), ("job.cancelled", "enough")];
    let expected = expected.map(|(action, reason)| ("cli:ann".to_owned(), action.to_owned(), reason.to_owned()));
    assert_eq!(audited, expected);
    db.drop_now().await;
}

#[tokio::test]
async fn a_bad_payload_is_refused_before_anything_is_sent() {
    let db = TestDatabase::new().await;
    db.tenant("acme").await;
    for (payload, says) in [
        ("{not json", "not JSON"),
        ("[1]", "must be a JSON object, this is an array"),
        ("\"x\"", "this is a string"),
        (r#"{"nota": "x"}"#, "unknown field `nota`"),
        (r#"{"sleep_ms": -1}"#, "invalid value"),
    ] {
        let enqueue = ["jobs", "enqueue", "--tenant", "acme", "--kind", "fleet.probe", "--reason", "r", "--payload"];
        let ran = reeve(&db, &[&enqueue[..], &[payload]].concat()).await;
        assert_eq!(ran.code, 2, "{payload}");
        assert!(ran.messages.contains(says) && ran.out.is_empty(), "{payload}: {}", ran.messages);
    }
    assert_eq!((count(&db, "jobs").await, count(&db, "audit_log").await), (0, 0));
    db.drop_now().await;
}

#[tokio::test]
async fn a_refusal_by_the_database_shows_its_code_and_hint_and_changes_nothing() {
    let db = TestDatabase::new().await;
    let acme = db.tenant("acme").await;
    let enqueue = |tenant| ["jobs", "enqueue", "--kind", "fleet.probe", "--reason", "r", "--tenant", tenant];
    let ran = reeve(&db, &enqueue("nobody")).await;
    assert_eq!(ran.code, 4, "{}", ran.messages);
    assert!(
        ran.messages.contains("RV003") && ran.messages.contains("hint: Call reeve.register_tenant"),
        "{}",
        ran.messages
    );
    assert_eq!((count(&db, "jobs").await, count(&db, "audit_log").await), (0, 0));

    let id = probe(&db, &acme).await;
    claim(&db).await;
    let ran = reeve(&db, &["jobs", "retry", &id.to_string(), "--reason", "hurry"]).await;
    assert_eq!(ran.code, 4, "{}", ran.messages);
    assert!(ran.messages.contains("RV008") && ran.messages.contains("is running"), "{}", ran.messages);
    assert_eq!(reeve(&db, &["--json", "jobs", "show", &id.to_string()]).await.json()["state"], "running");
    assert_eq!(count(&db, "audit_log").await, 1, "only the enqueue is audited");
    db.drop_now().await;
}

#[tokio::test]
async fn cancelling_a_running_job_asks_its_worker_to_stop() {
    let db = TestDatabase::new().await;
    let acme = db.tenant("acme").await;
    let id = probe(&db, &acme).await.to_string();
    claim(&db).await;
    let ran = reeve(&db, &["jobs", "cancel", &id, "--reason", "wrong tenant's data"]).await;
    assert!(ran.code == 0 && ran.out.contains("asked to stop"), "{}{}", ran.out, ran.messages);
    let shown = reeve(&db, &["--json", "jobs", "show", &id]).await.json();
    assert_eq!((&shown["state"], &shown["cancel_reason"]), (&"running".into(), &"wrong tenant's data".into()));
    db.drop_now().await;
}

#[tokio::test]
async fn what_does_not_exist_is_said_with_code_one_or_two() {
    let db = TestDatabase::new().await;
    let acme = db.tenant("acme").await;
    let none = "0190e3a0-0000-7000-8000-000000000000";
    let done = probe(&db, &acme).await.to_string();
    let (queue, job) = claim(&db).await;
    settle(&queue, &job, "completed").await;
    for (arguments, code, says) in [
        (&["jobs", "show", none][..], 1, "there is no job"),
        (&["jobs", "retry", none, "--reason", "r"], 1, "there is no job"),
        (&["jobs", "cancel", none, "--reason", "r"], 1, "there is no job"),
        (&["jobs", "retry", &done, "--reason", "r"], 1, "is over (completed)"),
        (&["tenants", "show", "nobody"], 1, "\"nobody\" is not registered"),
        (&["jobs", "list", "--tenant", "nobody"], 1, "\"nobody\" is not registered"),
        (&["jobs", "tail", "--tenant", "nobody"], 1, "\"nobody\" is not registered"),
        (
            &["jobs", "list", "--kind", "fleet.prob"],
            2,
            "known kinds are fleet.probe, key.rotate_tenant, webhook.deliver",
        ),
        (&["jobs", "list", "--state", "completed"], 2, "--history"),
        (&["jobs", "list", "--state", "running", "--history"], 2, "leave out --history"),
    ] {
        let ran = reeve(&db, arguments).await;
        assert_eq!(ran.code, code, "{arguments:?}: {}", ran.messages);
        assert!(ran.messages.contains(says) && ran.out.is_empty(), "{arguments:?}: {}", ran.messages);
    }
    db.drop_now().await;
}

#[tokio::test]
async fn an_act_without_a_name_for_the_audit_log_is_refused() {
    let db = TestDatabase::new().await;
    db.tenant("acme").await;
    let enqueue = ["jobs", "enqueue", "--tenant", "acme", "--kind", "fleet.probe", "--reason", "r"];
    for user in [None, Some(" "), Some("a\x1b[2J")] {
        let ran = run_with(&config(&db), &enqueue, "", user).await;
        assert_eq!(ran.code, 2);
        assert!(ran.messages.contains("REEVE_ACTOR"), "{}", ran.messages);
    }
    assert_eq!(count(&db, "jobs").await, 0);
    db.drop_now().await;
}

/// One migration behind.
const ONE_BEHIND: i64 = migrate::PREVIOUS;

#[tokio::test]
async fn every_command_but_migrate_refuses_another_schema() {
    let commands: [&[&str]; 5] =
        [&["doctor"], &["jobs", "list"], &["tenants", "list"], &["flags", "list"], &["jobs", "tail", "--for", "1"]];
    let refused = async |db: &TestDatabase, says: &str| {
        for arguments in commands {
            let ran = reeve(db, arguments).await;
            assert_eq!(ran.code, 3, "{arguments:?}: {}", ran.messages);
            assert!(ran.messages.contains(says) && ran.out.is_empty(), "{arguments:?}: {}", ran.messages);
        }
    };
    let db = TestDatabase::empty().await;
    refused(&db, "no Reeve schema yet; run `reeve migrate`").await;

    let mut admin = PgConnection::connect_with(&db.admin.connect_options()).await.expect("the administrator");
    migrate::run_to(&mut admin, ONE_BEHIND).await.expect("a part of the schema");
    let behind = format!("at migration {ONE_BEHIND}, this program needs {}; run `reeve migrate`", migrate::VERSION);
    refused(&db, &behind).await;

    let ran = reeve(&db, &["migrate"]).await;
    assert_eq!((ran.code, ran.out), (0, format!("schema: {ONE_BEHIND} → {}\n", migrate::VERSION)));
    assert_eq!(reeve(&db, &["jobs", "list"]).await.code, 0);

    db.drop_now().await;
}

#[tokio::test]
async fn migrate_says_from_where_to_where_and_stores_the_apps_setting() {
    let db = TestDatabase::empty().await;
    let ran = reeve(&db, &["--json", "migrate", "--app-context-setting", "app.tenant_id"]).await;
    assert_eq!(ran.code, 0, "{}", ran.messages);
    let expected = serde_json::json!({"from": 0, "to": migrate::VERSION, "keystore": null, "app_context_setting": "app.tenant_id"});
    assert_eq!(ran.json(), expected);
    let again = reeve(&db, &["migrate"]).await;
    assert_eq!((again.code, again.out), (0, format!("schema: already at {}\n", migrate::VERSION)));
    db.drop_now().await;
}

#[tokio::test]
async fn a_role_that_would_see_nothing_is_refused() {
    let db = TestDatabase::new().await;
    let config = format!("[ops]\ndatabase_url = '{}'", db.url("reeve_app"));
    let ran = run_with(&config, &["jobs", "list"], "", None).await;
    assert_eq!(ran.code, 2, "{}", ran.messages);
    assert!(ran.messages.contains("\"reeve_app\"") && ran.messages.contains("reeve_ops"), "{}", ran.messages);
    db.drop_now().await;
}

#[tokio::test]
async fn configuration_and_connection_faults_name_key_and_place() {
    for (config, code, says) in [
        ("[ops]", 2, "REEVE_OPS__DATABASE_URL"),
        ("[ops]\ndatabase_uri = 'x'", 2, "`database_uri` is not a key of [ops]"),
        ("[ops]\ndatabase_url = 'hunter2'", 2, "[ops] database_url is not a PostgreSQL URL"),
        (
            "[ops]\ndatabase_url = 'postgres://a:hunter2@127.0.0.1:1/x'",
            3,
            "cannot connect to the database of [ops] database_url",
        ),
    ] {
        let ran = run_with(config, &["jobs", "list"], "", None).await;
        assert_eq!(ran.code, code, "{config}: {}", ran.messages);
        assert!(ran.messages.contains(says) && !ran.messages.contains("hunter2"), "{config}: {}", ran.messages);
    }
    let ran = run_with("[ops]", &["migrate"], "", None).await;
    assert!(ran.code == 2 && ran.messages.contains("REEVE_OPS__ADMIN_DATABASE_URL"), "{}", ran.messages);
}

#[tokio::test]
async fn tenants_are_listed_and_shown_with_their_jobs() {
    let db = TestDatabase::new().await;
    let acme = db.tenant("acme").await;
    let quiet = db.tenant("عميل").await;
    probe(&db, &acme).await;
    probe(&db, &acme).await;
    probe(&db, &quiet).await;
    claim(&db).await;
    let listed = reeve(&db, &["tenants", "list"]).await.out;
    assert!(listed.contains("acme") && listed.contains("عميل"), "{listed}");
    let shown = reeve(&db, &["--json", "tenants", "show", "acme"]).await.json();
    let expected = serde_json::json!([
        {"state": "available", "kind": "fleet.probe", "jobs": 1}, {"state": "running", "kind": "fleet.probe", "jobs": 1}]);
    assert_eq!(shown["jobs"], expected);
    assert!(reeve(&db, &["tenants", "show", "acme"]).await.out.contains("running    fleet.probe  1"));
    db.drop_now().await;
}

#[tokio::test]
async fn flags_are_declared_listed_set_and_cleared() {
    let db = TestDatabase::new().await;
    db.tenant("acme").await;
    let because = ["--reason", "they asked"];
    let ran = async |arguments: &[&str]| reeve(&db, &[arguments, &because].concat()).await;
    let done = async |arguments: &[&str], says: &str| {
        let ran = ran(arguments).await;
        assert_eq!((ran.code, ran.out.trim_end()), (0, says), "{}", ran.messages);
        ran.messages
    };
    let declare = ["flags", "declare", "exports.rows_max", "--type", "int", "--default", "-1", "--description", "Rows"];
    done(&declare, "exports.rows_max (declared): unset → -1").await;
    done(&["flags", "set", "exports.rows_max", "50", "--tenant", "acme"], "exports.rows_max (tenant acme): unset → 50")
        .await;
    let note = done(
        &["flags", "set", "kind.fleet.probe", "false", "--plan", "prp"],
        "kind.fleet.probe (plan prp): unset → false",
    )
    .await;
    assert_eq!(note, "note: no tenant is on plan \"prp\" yet\n");
    done(&["flags", "set", "kind.fleet.probe", "false", "--default"], "kind.fleet.probe (default): unset → false")
        .await;
    assert!(reeve(&db, &["tenants", "show", "acme"]).await.out.contains("kinds off    fleet.probe\n"));

    let all = reeve(&db, &["--json", "flags", "list"]).await.json();
    assert_eq!(
        all.as_array().expect("rows").len(),
        reeve_jobs::Kind::ALL.len() + 2 + 3,
        "each as declared, and what was set: {all}"
    );
    let own = reeve(&db, &["--json", "flags", "list", "--tenant", "acme"]).await.json();
    let own: Vec<_> =
        own.as_array().expect("rows").iter().map(|row| (&row["name"], &row["value"], &row["level"])).collect();
    assert_eq!(own[0], (&"exports.rows_max".into(), &50.into(), &"tenant".into()));
    assert_eq!(own[1], (&"kind.fleet.probe".into(), &false.into(), &"default".into()));
    assert_eq!(own[2], (&"kind.key.rotate_tenant".into(), &true.into(), &"declared".into()));
    assert_eq!(own[3], (&"kind.webhook.deliver".into(), &true.into(), &"declared".into()));
    let table = reeve(&db, &["flags", "list"]).await.out;
    assert!(table.contains("plan prp") && table.contains("cli:ann") && table.contains("they asked"), "{table}");

    done(&["flags", "clear", "kind.fleet.probe", "--default"], "kind.fleet.probe (default): false → unset").await;
    for (arguments, code, says) in [
        (&["flags", "clear", "kind.fleet.probe", "--default"][..], 1, "has no value of its own for default"),
        (&["flags", "set", "kind.fleet.prob", "false", "--default"], 4, "hint: Known flags: exports.rows_max"),
        (&["flags", "set", "kind.fleet.probe", "off", "--default"], 4, "takes true or false, not \"off\""),
        (&["flags", "set", "exports.rows_max", "1e9", "--default"], 4, "takes a whole number"),
        (&["flags", "set", "exports.rows_max", "1", "--tenant", "nobody"], 4, "\"nobody\" is not registered"),
    ] {
        let ran = ran(arguments).await;
        assert!(
            ran.code == code && ran.messages.contains(says) && ran.out.is_empty(),
            "{}: {}",
            ran.code,
            ran.messages
        );
    }
    let ran = reeve(&db, &["flags", "list", "--tenant", "nobody"]).await;
    assert!(ran.code == 1 && ran.messages.contains("\"nobody\" is not registered"), "{}", ran.messages);
    assert_eq!(count(&db, "audit_log").await, 5, "each act that was done, and nothing else");
    db.drop_now().await;
}

#[tokio::test]
async fn the_tail_ends_by_itself_when_told_how_long() {
    let db = TestDatabase::new().await;
    let acme = db.tenant("acme").await;
    let config = config(&db);
    let tail = run_with(&config, &["--json", "jobs", "tail", "--for", "2"], "", None);
    // Enqueues until the tail has ended, so that some of it is news whenever the tail began to look.
    let arrange = async {
        loop {
            probe(&db, &acme).await;
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    let ran = tokio::select! {
        ran = tail => ran,
        () = arrange => unreachable!("the loop has no end"),
    };
    assert_eq!((ran.code, ran.messages.as_str()), (0, ""));
    let lines: Vec<Value> = ran.out.lines().map(|line| serde_json::from_str(line).expect("an object a line")).collect();
    assert!(!lines.is_empty(), "jobs appeared while the tail looked");
    assert!(lines.iter().all(|line| line["tenant"] == "acme" && line["state"] == "available"), "{}", ran.out);
    db.drop_now().await;
}

#[tokio::test]
async fn the_audit_log_is_searched_signed_and_verified_and_a_changed_entry_ends_with_code_one() {
    let db = TestDatabase::new().await;
    let acme = db.tenant("acme").await;
    let id = probe(&db, &acme).await.to_string();
    reeve(&db, &["jobs", "cancel", &id, "--reason", "=HYPERLINK(\"x\")"]).await;
    let keyed = format!("{}audit_key = 'AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8='\n", config(&db));

    let found = reeve(&db, &["--json", "audit", "search", "--actor", "cli:ann", "--action", "job."]).await.json();
    assert_eq!((&found[0]["action"], &found[0]["seq"]), (&"job.cancelled".into(), &2.into()));
    assert_eq!(found.as_array().map(Vec::len), Some(1));
    let by_target = ["--json", "audit", "search", "--target", &format!("job:{id}"), "--since", "2020-01-01"];
    assert_eq!(reeve(&db, &by_target).await.json().as_array().map(Vec::len), Some(2));
    for nothing in [["--until", "2020-01-01"], ["--trace", "0af7651916cd43dd8448eb211c80319c"], ["--tenant", "-"]] {
        let ran = reeve(&db, &[&["--json", "audit", "search"], &nothing[..]].concat()).await;
        assert_eq!(ran.json(), serde_json::json!([]), "{nothing:?}");
    }
    let csv = reeve(&db, &["audit", "csv"]).await.out;
    assert!(csv.contains(",\"'=HYPERLINK(\"\"x\"\")\","), "{csv}");

    let without = reeve(&db, &["audit", "checkpoint"]).await;
    assert!(without.code == 2 && without.messages.contains("REEVE_OPS__AUDIT_KEY"), "{}", without.messages);
    let signed = run_with(&keyed, &["--json", "audit", "checkpoint"], "", None).await.json();
    assert_eq!((&signed[0]["tenant"], &signed[0]["seq"]), (&"acme".into(), &2.into()));
    let again = run_with(&keyed, &["audit", "checkpoint"], "", None).await;
    assert!(again.code == 0 && again.out.contains("nothing new"), "{}", again.out);
    let erase = ["audit", "erase", "--tenant", "acme", "--seq", "2", "--reason", "asked to"];
    assert_eq!(reeve(&db, &erase).await.out, "erased\n");
    let verified = run_with(&keyed, &["audit", "verify"], "", None).await;
    assert!(verified.code == 0 && verified.messages.is_empty() && verified.out.contains("ok"), "{}", verified.out);
    assert!(reeve(&db, &["audit", "verify"]).await.messages.contains("were not checked"));

    let edit =
        "ALTER TABLE reeve.audit_log DISABLE TRIGGER append_only; UPDATE reeve.audit_log SET actor = 'x' WHERE seq = 2";
    sqlx::raw_sql(edit).execute(&db.admin).await.expect("an edit");
    let verified = run_with(&keyed, &["audit", "verify", "--tenant", "acme"], "", None).await;
    assert!(verified.code == 1 && verified.out.contains("BROKEN at 2"), "{}", verified.out);
    let refused = run_with(&keyed, &["audit", "checkpoint"], "", None).await;
    assert!(refused.code == 1 && refused.out.contains("not signed"), "{}", refused.out);
    db.drop_now().await;
}

#[tokio::test]
async fn a_strangers_database_is_drafted_checked_and_planned_from_the_command_line() {
    let db = TestDatabase::new().await;
    let tables = "CREATE TABLE teams (id bigint PRIMARY KEY);
        CREATE TABLE notes (id bigint PRIMARY KEY, team_id bigint NOT NULL REFERENCES teams, body text);
        INSERT INTO teams VALUES (1), (2); INSERT INTO notes VALUES (1, 1, 'x'), (2, 1, 'y'), (3, 2, 'z');";
    sqlx::raw_sql(tables).execute(&db.admin).await.expect("tables");
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("catalogue.toml").display().to_string();
    let catalogue = async |arguments: &[&str]| reeve(&db, &[&["catalogue", "--file", &file], arguments].concat()).await;

    let missing = catalogue(&["check"]).await;
    assert_eq!(missing.code, 2);
    assert!(missing.messages.contains("`reeve catalogue init` drafts one"), "{}", missing.messages);
    let drafted = catalogue(&["init"]).await;
    assert_eq!((drafted.code, drafted.messages.as_str()), (0, ""), "{}", drafted.out);
    assert!(drafted.out.contains("tenants: public.teams"), "{}", drafted.out);
    let checked = catalogue(&["check"]).await;
    assert_eq!(checked.code, 0, "{}", checked.out);
    assert!(checked.out.contains("CREATE INDEX CONCURRENTLY ON \"public\".\"notes\""), "{}", checked.out);

    let plan = catalogue(&["plan-delete", "1", "--json"]).await.json();
    let deleted: Vec<_> = plan["steps"].as_array().expect("steps").iter().map(|s| (&s["table"], &s["rows"])).collect();
    assert_eq!(deleted, [(&"public.notes".into(), &2.into()), (&"public.teams".into(), &1.into())]);
    assert_eq!(count_all(&db, "notes").await, 3, "a plan deletes nothing");
    assert!(catalogue(&["plan-delete", "1"]).await.out.starts_with("STEP  ACTION"));
    assert!(
        catalogue(&["plan-delete", "1", "--sql"]).await.out.starts_with("DELETE FROM \"public\".\"notes\" t WHERE")
    );
    assert!(catalogue(&["show", "public.notes"]).await.out.contains("free_text"));
    assert_eq!(catalogue(&["show", "public.nots"]).await.code, 1);
    assert!(catalogue(&["graph"]).await.out.starts_with("digraph"));
    assert!(catalogue(&["rls"]).await.out.contains("CREATE POLICY reeve_fence ON \"public\".\"notes\""));

    let change = async |sql: &str| {
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned())).execute(&db.admin).await.expect("a change")
    };
    assert_eq!(catalogue(&["check", "--rows"]).await.code, 0);
    change("ALTER TABLE notes DROP CONSTRAINT notes_team_id_fkey; INSERT INTO notes VALUES (4, 99, 'secret words')")
        .await;
    let text = std::fs::read_to_string(&file).expect("the draft");
    std::fs::write(&file, text.replace("  { columns = [\"team_id\"], table = \"public.teams\" },\n", ""))
        .expect("the draft");
    let rows = catalogue(&["check", "--rows"]).await;
    let said = "rows   table \"public.notes\": 1 row(s) name a tenant that is not in \"public.teams\"; to see them: SELECT \"id\" FROM";
    assert!(rows.code == 1 && rows.out.contains(said) && !rows.out.contains("secret words"), "{}", rows.out);
    assert_eq!(catalogue(&["check"]).await.code, 0, "the rows are not asked unasked");
    assert_eq!(catalogue(&["check", "--rows", "--json"]).await.json()["rows"][0]["kind"], "unknown_tenant");

    change("GRANT SELECT ON notes TO pg_monitor").await;
    let refused = catalogue(&["rls"]).await;
    assert_eq!((refused.code, refused.out.as_str()), (1, ""));
    assert!(refused.messages.lines().count() > 2 && refused.messages.contains("pg_monitor"), "{}", refused.messages);
    change("ALTER TABLE notes ADD COLUMN extra text").await;
    let stale = catalogue(&["check"]).await;
    assert_eq!(stale.code, 1);
    assert!(stale.out.contains("table \"public.notes\", column \"extra\": is in the database"), "{}", stale.out);
    db.drop_now().await;
}

async fn count_all(db: &TestDatabase, table: &str) -> i64 {
    let sql = format!("SELECT count(*) FROM {table}");
    sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_one(&db.admin).await.expect("a count")
}

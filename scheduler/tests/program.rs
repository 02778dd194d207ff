//! The program as its supervisor sees it: exit codes, messages, the signal to stop.
use std::{
    process::{Child, Command, Stdio},
    time::Duration,
};

use reeve_jobs::testing::TestDatabase;

fn program(database_url: Option<&str>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_reeve-scheduler"));
    command.env_remove("REEVE_CONFIG").env_remove("REEVE_SCHEDULER__DATABASE_URL").stderr(Stdio::piped());
    if let Some(url) = database_url {
        command.env("REEVE_SCHEDULER__DATABASE_URL", url);
    }
    command
}

fn ends(mut command: Command) -> (Option<i32>, String) {
    let output = command.output().expect("the program starts");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Ends the program if the test does not.
struct Running(Child);
impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
    }
}

#[test]
fn misconfiguration_exits_with_2_and_says_what_to_do() {
    let (code, said) = ends(program(None));
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("REEVE_SCHEDULER__DATABASE_URL"), "{said}");
    let mut command = program(Some("postgres://u:hunter2@localhost/d"));
    command.env("REEVE_SCHEDULER__TICK_MS", "0");
    let (code, said) = ends(command);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("tick_ms = 0") && !said.contains("hunter2"), "{said}");
    let (code, said) = ends(program(Some("not a url hunter2")));
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("database_url") && !said.contains("hunter2"), "{said}");
    let mut command = program(None);
    command.arg("--cfg");
    assert_eq!(ends(command).0, Some(2));
}

#[tokio::test]
async fn a_database_without_the_schema_exits_with_3_and_names_the_remedy() {
    let migrated = TestDatabase::new().await;
    let database = TestDatabase::empty().await;
    let (code, said) = ends(program(Some(&database.url("reeve_scheduler"))));
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("reeve migrate"), "{said}");
    database.drop_now().await;
    migrated.drop_now().await;
}

#[tokio::test]
async fn it_works_until_sigterm_and_exits_with_0() {
    let database = TestDatabase::new().await;
    database.tenant("t1").await;
    sqlx::raw_sql(
        "INSERT INTO reeve.kinds VALUES ('test.tick', 'tests', 3, 5, 64, false, true);
         INSERT INTO reeve.schedules (kind, cron, next_at) VALUES ('test.tick', '0 0 1 1 *', now() - interval '1 second')",
    )
    .execute(&database.admin)
    .await
    .expect("arranged");
    let mut running = Running(program(Some(&database.url("reeve_scheduler"))).spawn().expect("the program starts"));
    let mut tries = 0;
    // The slot fires, and its job is promoted.
    while sqlx::query("SELECT FROM reeve.jobs WHERE tenant_id = 't1' AND kind = 'test.tick' AND state = 'available'")
        .fetch_optional(&database.admin)
        .await
        .expect("a look")
        .is_none()
    {
        tries += 1;
        assert!(tries < 1000 && running.0.try_wait().expect("a child").is_none(), "no job after {tries} looks");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let told = Command::new("kill").args(["-TERM", &running.0.id().to_string()]).status().expect("kill");
    assert!(told.success());
    assert_eq!(running.0.wait().expect("a child").code(), Some(0));
    database.drop_now().await;
}

#[tokio::test]
async fn with_the_audit_key_it_signs_what_has_grown_and_appends_it_to_the_file() {
    let database = TestDatabase::new().await;
    sqlx::raw_sql("SELECT reeve.audit_append('t', 'ann', 'thing.done', 'thing:1', 'why', '{}', NULL, NULL, NULL)")
        .execute(&database.admin)
        .await
        .expect("an entry");
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("checkpoints.jsonl");
    let mut command = program(Some(&database.url("reeve_scheduler")));
    command
        .env("REEVE_SCHEDULER__AUDIT_KEY", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=")
        .env("REEVE_SCHEDULER__AUDIT_CHECKPOINT_FILE", &file);
    let mut running = Running(command.spawn().expect("the program starts"));
    let mut tries = 0;
    while sqlx::query("SELECT FROM reeve.audit_checkpoints WHERE tenant_id = 't' AND seq = 1")
        .fetch_optional(&database.admin)
        .await
        .expect("a look")
        .is_none()
    {
        tries += 1;
        assert!(tries < 1000 && running.0.try_wait().expect("a child").is_none(), "no checkpoint after {tries} looks");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let text = std::fs::read_to_string(&file).expect("the file was written first");
    assert!(text.ends_with("\"}\n") && text.contains("\"tenant\":\"t\",\"from_seq\":0,\"seq\":1,"), "{text}");
    drop(running);
    database.drop_now().await;
}

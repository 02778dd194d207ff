//! Mistakes at the programs' doors: each gets one clear message with what to do, and changes nothing. (Mistakes in SQL:
//! `enqueue`; at the `reeve` command: its own tests.)
use std::process::Stdio;

use crate::support::{ROOT_KEY, Town, program};

/// Runs the worker program to its end; returns whether it succeeded and what it said on standard error.
async fn worker(env: &[(&str, &str)], args: &[&str]) -> (bool, String) {
    let output = tokio::process::Command::new(program("reeve-worker"))
        .args(args)
        .env_remove("REEVE_CONFIG")
        .envs(env.iter().copied())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .expect("it runs");
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[tokio::test]
async fn a_wrong_configuration_is_refused_with_the_way_out() {
    let town = Town::new().await;
    let url = town.db.url("reeve_worker");
    let keystore = town.keystore.url();
    let (url, key) = (("REEVE_WORKER__DATABASE_URL", url.as_str()), ("REEVE_WORKER__KEYSTORE_URL", keystore.as_str()));
    for (env, says) in [
        (vec![key], "REEVE_WORKER__DATABASE_URL"),
        (vec![url], "REEVE_WORKER__KEYSTORE_URL"),
        (vec![url, key, ("REEVE_WORKER__SLOT", "3")], "`slot` is not a key"),
        (vec![url, key, ("REEVE_WORKER__WEBHOOKS__LOOPBACK", "true")], "webhooks.loopback"),
        (vec![url, key, ("REEVE_WORKER__ROOT_KEY", "c2hvcnQ=")], "openssl rand -base64 32"),
        (vec![url, key, ("REEVE_WORKER__PLATFORM_KEY", "s3:x")], "platform_key"),
        (vec![url, ("REEVE_WORKER__KEYSTORE_URL", "mysql://x")], "worker.keystore_url is not a PostgreSQL URL"),
        // The shared keystore's platform key is known, and its variable is not set.
        (vec![url, key], "the environment variable is not set"),
        (vec![key, ("REEVE_WORKER__DATABASE_URL", "mysql://x")], "not a PostgreSQL URL"),
        (vec![key, ("REEVE_WORKER__DATABASE_URL", "postgres://x@127.0.0.1:9/x")], "is PostgreSQL running"),
    ] {
        let (succeeded, said) = worker(&env, &[]).await;
        assert!(!succeeded, "{env:?}");
        // What begins with a brace is the log's.
        let told = said.lines().filter(|line| !line.starts_with('{')).count();
        assert!(said.contains(says) && told == 1, "{env:?}: {said}");
    }
}

#[tokio::test]
async fn a_database_behind_the_program_is_refused() {
    use reeve_jobs::{program::migrate, testing::TestDatabase};
    use sqlx::{Connection, PgConnection};
    let town = Town::new().await; // makes the roles
    let db = TestDatabase::empty().await;
    let url = db.url("reeve_worker");
    let keystore = town.keystore.url();
    let env = [("REEVE_WORKER__DATABASE_URL", url.as_str()), ("REEVE_WORKER__KEYSTORE_URL", keystore.as_str())];
    let (succeeded, said) = worker(&env, &[]).await;
    assert!(!succeeded && said.contains("no Reeve schema yet; run `reeve migrate`"), "{said}");
    let mut admin = PgConnection::connect_with(db.admin_options()).await.expect("admin");
    migrate::run_to(&mut admin, migrate::PREVIOUS).await.expect("one behind");
    let (succeeded, said) = worker(&env, &[]).await;
    let behind = format!("at migration {}, this program needs {}", migrate::PREVIOUS, migrate::VERSION);
    assert!(!succeeded && said.contains(&behind) && said.contains("reeve migrate"), "{said}");
    drop(town);
}

#[tokio::test]
async fn an_endpoint_on_a_private_address_or_with_a_bad_secret_is_refused() {
    let town = Town::new().await;
    let url = town.db.url("reeve_worker");
    let ops = town.db.url("reeve_ops");
    let keystore = town.keystore.url();
    let env = [
        ("REEVE_WORKER__DATABASE_URL", url.as_str()),
        ("REEVE_WORKER__KEYSTORE_URL", keystore.as_str()),
        ("REEVE_TEST_ROOT_KEY", ROOT_KEY),
        ("REEVE_WORKER__OPS_DATABASE_URL", ops.as_str()),
    ];
    let add = ["endpoint", "add", "--tenant", "a", "--url"];
    for (to, says) in [
        ("https://10.0.0.7/hook", "10.0.0.7"),
        ("https://127.0.0.1/hook", "127.0.0.1"),
        ("https://[::ffff:169.254.169.254]/", "not allowed"),
        ("http://example.com/hook", "https"),
        ("https://user:pw@example.com/", "user"),
        ("ftp://example.com/", "https"),
    ] {
        let (succeeded, said) = worker(&env, &[add.as_slice(), &[to]].concat()).await;
        assert!(!succeeded, "{to}");
        assert!(said.contains("refused") && said.contains(says) && said.lines().count() == 1, "{to}: {said}");
    }
    for secret in ["hunter2", "whsec_short", "whsec_AAAA-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="] {
        let env = [env.as_slice(), &[("REEVE_ENDPOINT_SECRET", secret)]].concat();
        let args = [add.as_slice(), &["https://example.com/hook", "--secret-from-env"]].concat();
        let (succeeded, said) = worker(&env, &args).await;
        assert!(!succeeded && said.contains("REEVE_ENDPOINT_SECRET:") && !said.contains(secret), "{secret}: {said}");
    }
    let (succeeded, said) =
        worker(&env, &["endpoint", "add", "--tenant", "nobody", "--url", "https://example.com/"]).await;
    assert!(!succeeded && said.contains("\"nobody\" is not registered"), "{said}");
    let (succeeded, said) =
        worker(&env[..3], &["endpoint", "add", "--tenant", "a", "--url", "https://example.com/"]).await;
    assert!(!succeeded && said.contains("worker.ops_database_url is missing"), "{said}");
    assert_eq!(town.count("SELECT count(*) FROM reeve.webhook_endpoints").await, 0);
    assert_eq!(town.count("SELECT count(*) FROM reeve.webhook_secrets").await, 0);
}

/// The sample is a test: as it stands, and with every commented default taken in.
#[tokio::test]
async fn the_example_configuration_is_read_by_each_program() {
    let sample = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../ops/reeve.example.toml");
    let text = std::fs::read_to_string(&sample).expect("the sample");
    let full: String = text
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(rest)
                if rest
                    .split_once(" = ")
                    .is_some_and(|(key, _)| key.chars().all(|c| c.is_ascii_lowercase() || c == '_')) =>
            {
                rest
            }
            _ => line,
        })
        .flat_map(|line| [line, "\n"])
        .collect();
    assert_ne!(full, text);
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), full).expect("written");
    for path in [sample.as_path(), file.path()] {
        let worker: reeve_worker::config::Config =
            reeve_jobs::program::config::load("worker", Some(path)).expect("[worker]");
        worker.check().expect("[worker]");
        reeve_scheduler::config::Config::load(Some(path)).expect("[scheduler]");
        let reeve = tokio::process::Command::new(program("reeve"))
            .args(["doctor", "--config"])
            .arg(path)
            .stdin(Stdio::null())
            .output()
            .await
            .expect("it runs");
        // Read, understood, and refused only because no such server is there.
        let said = String::from_utf8_lossy(&reeve.stderr).into_owned();
        assert!(reeve.status.code() == Some(3) && said.contains("cannot connect"), "{said}");
    }
}

//! Keys by the programs: a platform rotation and a shredding by command, with deliveries before and after.
use std::process::Stdio;

use reeve_jobs::{
    TenantId, client,
    kinds::DeliverWebhook,
    testing::{TestKeystore, keystore::ROOT_KEY},
};
use serde_json::{Value, json};

use crate::support::{Receiver, Town, program, until};

const NEXT: &str = "env:REEVE_TEST_NEXT_KEY";
const NEXT_KEY: &str = "IB8eHRwbGhkYFxYVFBMSERAPDg0MCwoJCAcGBQQDAgE=";

/// A town whose keys are its own.
async fn town() -> Town {
    Town { keystore: TestKeystore::new().await, ..Town::new().await }
}

/// Runs `reeve-worker keys …` to its end with these platform keys; its answer, or what it complained of.
async fn keys(town: &Town, platform: &[(&str, &str)], args: &[&str]) -> Result<Value, String> {
    let output = tokio::process::Command::new(program("reeve-worker"))
        .arg("keys")
        .args(args)
        .env_remove("REEVE_CONFIG")
        .env("REEVE_WORKER__DATABASE_URL", town.db.url("reeve_worker"))
        .env("REEVE_WORKER__OPS_DATABASE_URL", town.db.url("reeve_ops"))
        .env("REEVE_WORKER__KEYSTORE_URL", town.keystore.url())
        .envs(platform.iter().copied())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .expect("it runs");
    match output.status.success() {
        true => Ok(serde_json::from_slice(&output.stdout).expect("an answer in JSON")),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

/// Emits an event and waits until its job is over.
async fn deliver(town: &Town, tenant: &TenantId) -> String {
    let mut tx = town.app.begin().await.expect("begin");
    client::set_tenant(&mut tx, tenant).await.expect("context");
    sqlx::query("SELECT reeve.emit('ping', '{}')").execute(&mut *tx).await.expect("emitted");
    tx.commit().await.expect("commit");
    let job: reeve_jobs::JobId = sqlx::query_scalar("SELECT id FROM reeve.jobs WHERE tenant_id = $1 AND kind = $2")
        .bind(tenant.as_str())
        .bind(<DeliverWebhook as reeve_jobs::kinds::Payload>::KIND.name())
        .fetch_one(&town.db.admin)
        .await
        .expect("a job");
    until("the delivery is over", async || ["completed", "dead", "cancelled"].contains(&&*town.state(job).await)).await;
    town.state(job).await
}

#[tokio::test]
async fn the_platforms_key_is_replaced_by_a_command_and_the_old_one_is_needed_no_more() {
    let (town, receiver) = (town().await, Receiver::start().await);
    for tenant in [&town.a, &town.b] {
        town.endpoint(tenant, &receiver.url("/hook")).await;
    }
    let (old, next) = (("REEVE_TEST_ROOT_KEY", ROOT_KEY), ("REEVE_TEST_NEXT_KEY", NEXT_KEY));
    let status = keys(&town, &[old], &["status"]).await.expect("a status");
    assert_eq!(
        status,
        json!([{"version": 1, "provider_ref": "env:REEVE_TEST_ROOT_KEY", "state": "primary", "wraps": 2}])
    );
    let rotate = ["rotate-platform", "--reference", NEXT, "--reason", "yearly"];
    let refused = keys(&town, &[old], &rotate).await.expect_err("no worker has the new key");
    assert!(refused.contains("the environment variable is not set"), "{refused}");
    let rotated = keys(&town, &[old, next], &rotate).await.expect("rotated");
    assert_eq!(rotated[0]["state"], "retired");
    assert_eq!((&rotated[1]["state"], &rotated[1]["wraps"]), (&json!("primary"), &json!(2)));
    let verified = keys(&town, &[next], &["verify"]).await.expect("all open, without the old key");
    assert_eq!(verified, json!({"platform_versions": 1, "tenant_keys": 2, "failed": []}));
    assert_eq!(town.count("SELECT count(*) FROM reeve.audit_log WHERE action = 'key.platform_rotated'").await, 2);

    let mut worker = town.worker_program_with(&[("REEVE_TEST_ROOT_KEY", ""), next]);
    assert_eq!(deliver(&town, &town.a).await, "completed");
    assert_eq!(receiver.seen_count(), 1);
    worker.kill().await.expect("ended");
    // Another key under the version's name: the worker writes nothing, and says why.
    let other = keys(&town, &[("REEVE_TEST_NEXT_KEY", ROOT_KEY)], &["status"]).await.expect_err("refused");
    assert!(other.contains("is not the key that it was"), "{other}");
}

#[tokio::test]
async fn a_closed_tenants_keys_are_destroyed_with_a_certificate_and_open_nothing_any_more() {
    let (town, receiver) = (town().await, Receiver::start().await);
    for tenant in [&town.a, &town.b] {
        town.endpoint(tenant, &receiver.url("/hook")).await;
    }
    let key = [("REEVE_TEST_ROOT_KEY", ROOT_KEY)];
    let shred = ["shred", "--tenant", "a", "--reason", "closed for good"];
    let refused = keys(&town, &key, &shred).await.expect_err("it lives");
    assert!(refused.contains("is not closed"), "{refused}");
    let in_use = keys(&town, &key, &["destroy", "--tenant", "a", "--version", "1", "--reason", "why not"]).await;
    assert!(in_use.expect_err("in use").contains("version 1 of tenant \"a\" is active"));
    sqlx::query("UPDATE reeve.tenants SET state = 'closed' WHERE id = 'a'")
        .execute(&town.db.admin)
        .await
        .expect("closed");
    let certificate = keys(&town, &key, &shred).await.expect("shredded");
    assert_eq!((&certificate["tenant"], &certificate["destroyed_versions"]), (&json!("a"), &json!([1])));
    let status = keys(&town, &key, &["status", "--tenant", "a"]).await.expect("a status");
    assert_eq!(status[0]["state"], "destroyed");
    for action in ["key.destruction_begun", "key.destroyed"] {
        let sql = "SELECT count(*) FROM reeve.audit_log WHERE tenant_id = 'a' AND action = $1";
        let n: i64 = sqlx::query_scalar(sql).bind(action).fetch_one(&town.db.admin).await.expect("a count");
        assert_eq!(n, 1, "{action}");
    }
    // Even if the tenant comes back, and a copy of its rows: the secret does not open; the others' do.
    sqlx::query("UPDATE reeve.tenants SET state = 'active' WHERE id = 'a'")
        .execute(&town.db.admin)
        .await
        .expect("open");
    let mut worker = town.worker_program();
    assert_eq!(deliver(&town, &town.a).await, "dead");
    assert_eq!(deliver(&town, &town.b).await, "completed");
    assert_eq!(receiver.seen_count(), 1);
    worker.kill().await.expect("ended");
}

/// The provider is away for a while: deliveries wait, uncounted, and go out when it is back.
#[tokio::test]
async fn deliveries_wait_while_their_key_cannot_be_had() {
    let (town, receiver) = (town().await, Receiver::start().await);
    town.endpoint(&town.a, &receiver.url("/hook")).await;
    let fleet = town.fleet(town.duties(), 4);
    town.keystore.store.pool().close().await;
    let mut tx = town.app.begin().await.expect("begin");
    client::set_tenant(&mut tx, &town.a).await.expect("context");
    sqlx::query("SELECT reeve.emit('ping', '{}')").execute(&mut *tx).await.expect("emitted");
    tx.commit().await.expect("commit");
    let waits =
        "SELECT count(*) FROM reeve.jobs WHERE state = 'scheduled' AND attempt = 0 AND last_error LIKE '%keystore%'";
    until("the delivery waits", async || town.count(waits).await == 1).await;
    assert_eq!(receiver.seen_count(), 0);
    assert_eq!(town.count("SELECT count(*) FROM reeve.webhook_deliveries WHERE state = 'pending'").await, 1);
    fleet.stop().await;
}

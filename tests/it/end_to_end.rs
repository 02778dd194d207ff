//! From a web app's transaction to a receiver, through the real worker program.
use reeve_jobs::{TenantId, client, kinds::DeliverWebhook};

use crate::support::{Receiver, Town, program, until};

#[tokio::test]
async fn an_event_emitted_in_sql_reaches_its_receiver_signed() {
    let town = Town::new().await;
    let receiver = Receiver::start().await;
    let (_, secret) = town.endpoint(&town.a, &receiver.url("/hook")).await;
    let mut worker = town.worker_program();
    let mut tx = town.app.begin().await.expect("begin");
    client::set_tenant(&mut tx, &town.a).await.expect("context");
    let id =
        client::emit(&mut tx, "message.received", &serde_json::json!({"id": 1, "text": "سلام"})).await.expect("emit");
    tx.commit().await.expect("commit");

    until("the delivery is recorded", async || {
        town.count("SELECT count(*) FROM reeve.webhook_deliveries WHERE state = 'delivered'").await == 1
    })
    .await;
    worker.kill().await.expect("killed");
    let [seen] = receiver.seen().try_into().expect("one request");
    assert_eq!(seen.header("webhook-id"), id);
    assert_eq!(seen.header("content-type"), "application/json");
    let webhook = standardwebhooks::Webhook::new(&secret).expect("a secret");
    webhook.verify(&seen.body, &seen.headers).expect("the foreign verifier accepts the signature");
    let body: serde_json::Value = serde_json::from_slice(&seen.body).expect("JSON");
    assert_eq!(body["type"], "message.received");
    assert_eq!(body["data"]["text"], "سلام");
}

async fn emit(town: &Town, tenant: &TenantId) -> String {
    let mut tx = town.app.begin().await.expect("begin");
    client::set_tenant(&mut tx, tenant).await.expect("context");
    let id = client::emit(&mut tx, "contact.updated", &serde_json::json!({"id": 1})).await.expect("emit");
    tx.commit().await.expect("commit");
    id
}

async fn text(town: &Town, sql: &'static str) -> String {
    sqlx::query_scalar(sql).fetch_one(&town.db.admin).await.expect("one row")
}

#[tokio::test]
async fn a_refused_delivery_is_tried_again_signed_afresh_and_each_attempt_recorded() {
    let town = Town::new().await;
    let receiver = Receiver::start().await;
    town.endpoint(&town.a, &receiver.url("/a")).await;
    receiver.answer_with("/a", 503);
    emit(&town, &town.a).await;
    let fleet = town.fleet(town.duties(), 2);
    until("it failed", async || town.count("SELECT count(*) FROM reeve.jobs WHERE state = 'retryable'").await == 1)
        .await;
    assert_eq!(text(&town, "SELECT state || ' ' || last_status FROM reeve.webhook_deliveries").await, "pending 503");
    receiver.answer_with("/a", 200);
    sqlx::query("UPDATE reeve.jobs SET run_at = now()").execute(&town.db.admin).await.expect("time passes");
    sqlx::query("SELECT reeve.promote(10)").execute(&town.db.admin).await.expect("promoted");
    until("it is delivered", async || town.count("SELECT count(*) FROM reeve.job_history").await == 1).await;
    fleet.stop().await;
    let seen = receiver.seen();
    assert_eq!(seen.len(), 2);
    assert_eq!(seen[0].header("webhook-id"), seen[1].header("webhook-id"));
    assert_eq!(seen[0].body, seen[1].body);
    let attempts = text(
        &town,
        "SELECT string_agg(attempt || ' ' || result || ' ' || status || ' v' || secret_version, ', ' ORDER BY attempt)
         FROM reeve.webhook_attempts",
    )
    .await;
    assert_eq!(attempts, "1 refused_status 503 v1, 2 delivered 200 v1");
}

#[tokio::test]
async fn the_last_refused_attempt_ends_the_delivery_and_parks_the_job() {
    let town = Town::new().await;
    let receiver = Receiver::start().await;
    town.endpoint(&town.a, &receiver.url("/a")).await;
    receiver.answer_with("/a", 500);
    emit(&town, &town.a).await;
    sqlx::query("UPDATE reeve.jobs SET attempts_max = 1").execute(&town.db.admin).await.expect("arranged");
    let fleet = town.fleet(town.duties(), 2);
    until("it is dead", async || town.count("SELECT count(*) FROM reeve.jobs WHERE state = 'dead'").await == 1).await;
    fleet.stop().await;
    assert_eq!(text(&town, "SELECT state FROM reeve.webhook_deliveries").await, "failed");

    // The receiver is mended, and an operator gives the job new attempts.
    receiver.answer_with("/a", 200);
    let fleet = town.fleet(town.duties(), 2);
    sqlx::query("SELECT reeve.retry_job(id, 'test', 'mended') FROM reeve.jobs")
        .execute(&town.db.admin)
        .await
        .expect("retried");
    until("it is delivered", async || {
        town.count("SELECT count(*) FROM reeve.webhook_deliveries WHERE state = 'delivered'").await == 1
    })
    .await;
    fleet.stop().await;
}

#[tokio::test]
async fn a_delivery_whose_job_is_gone_is_failed_by_upkeep() {
    let town = Town::new().await;
    town.endpoint(&town.a, "http://127.0.0.1:9/").await;
    emit(&town, &town.a).await;
    emit(&town, &town.a).await;
    for sql in [
        "UPDATE reeve.webhook_deliveries SET created_at = now() - interval '2 hours'",
        "UPDATE reeve.jobs SET state = 'scheduled', run_at = now() + interval '1 day'",
        "SELECT reeve.cancel_job(min(id::text)::uuid, 'test', 'not needed') FROM reeve.jobs",
        "SELECT reeve.ops_enqueue('a', 'webhook.prune', '{}', 'test', 'now')",
    ] {
        sqlx::query(sql).execute(&town.db.admin).await.expect("arranged");
    }
    let fleet = town.fleet(town.duties(), 1);
    until("swept", async || town.count("SELECT count(*) FROM reeve.job_history WHERE state = 'completed'").await == 1)
        .await;
    fleet.stop().await;
    let states = text(&town, "SELECT string_agg(state, ',' ORDER BY state) FROM reeve.webhook_deliveries").await;
    assert_eq!(states, "failed,pending");
}

#[tokio::test]
async fn an_endpoint_that_says_gone_is_disabled_and_gets_nothing_more() {
    let town = Town::new().await;
    let receiver = Receiver::start().await;
    town.endpoint(&town.a, &receiver.url("/a")).await;
    receiver.answer_with("/a", 410);
    emit(&town, &town.a).await;
    let fleet = town.fleet(town.duties(), 1);
    until("it is cancelled", async || town.count("SELECT count(*) FROM reeve.job_history").await == 1).await;
    assert_eq!(text(&town, "SELECT state FROM reeve.webhook_endpoints").await, "disabled");
    assert_eq!(town.count("SELECT count(*) FROM reeve.audit_log WHERE action = 'endpoint.disabled'").await, 1);
    emit(&town, &town.a).await;
    assert_eq!(town.count("SELECT count(*) FROM reeve.webhook_deliveries WHERE state = 'pending'").await, 0);
    fleet.stop().await;
    assert_eq!(receiver.seen().len(), 1);
}

#[tokio::test]
async fn a_delivery_that_was_made_is_not_made_again_by_a_second_run_of_its_job() {
    let town = Town::new().await;
    let receiver = Receiver::start().await;
    town.endpoint(&town.a, &receiver.url("/a")).await;
    emit(&town, &town.a).await;
    let fleet = town.fleet(town.duties(), 1);
    until("delivered", async || town.count("SELECT count(*) FROM reeve.job_history").await == 1).await;
    let delivery_id =
        sqlx::query_scalar("SELECT id FROM reeve.webhook_deliveries").fetch_one(&town.db.admin).await.expect("it");
    client::enqueue_alone(&town.app, &town.a, &DeliverWebhook { delivery_id }).await.expect("enqueued");
    until("done", async || town.count("SELECT count(*) FROM reeve.job_history WHERE state = 'completed'").await == 2)
        .await;
    fleet.stop().await;
    assert_eq!(receiver.seen().len(), 1);
}

#[tokio::test]
async fn upkeep_deletes_what_is_past_its_time_of_this_tenant_alone() {
    let town = Town::new().await;
    let receiver = Receiver::start().await;
    for tenant in [&town.a, &town.b] {
        town.endpoint(tenant, &receiver.url(&format!("/{tenant}"))).await;
        emit(&town, tenant).await;
        emit(&town, tenant).await;
    }
    let fleet = town.fleet(town.duties(), 4);
    until("delivered", async || town.count("SELECT count(*) FROM reeve.job_history").await == 4).await;
    // One of each tenant's two is old; and a pending one, which stays however old.
    for sql in [
        "UPDATE reeve.webhook_events SET created_at = now() - interval '31 days'
         WHERE id IN (SELECT min(id) FROM reeve.webhook_events GROUP BY tenant_id)",
        "UPDATE reeve.webhook_deliveries d SET ended_at = v.created_at FROM reeve.webhook_events v
         WHERE v.tenant_id = d.tenant_id AND v.id = d.event_id AND v.created_at < now() - interval '1 day'",
        "SELECT reeve.ops_enqueue('a', 'webhook.prune', '{}', 'test', 'now')",
    ] {
        sqlx::query(sql).execute(&town.db.admin).await.expect("arranged");
    }
    until("pruned", async || town.count("SELECT count(*) FROM reeve.job_history").await == 5).await;
    fleet.stop().await;
    let left = "SELECT string_agg(tenant_id || ' ' || n, ', ' ORDER BY tenant_id) FROM
                (SELECT tenant_id, count(*) AS n FROM reeve.webhook_events GROUP BY 1) x";
    assert_eq!(text(&town, left).await, "a 1, b 2");
    assert_eq!(town.count("SELECT count(*) FROM reeve.webhook_deliveries").await, 3);
    assert_eq!(town.count("SELECT count(*) FROM reeve.webhook_attempts").await, 3);
}

/// The cadence of a real kind, through the real scheduler: one job a tenant and slot.
#[tokio::test]
async fn a_due_slot_becomes_one_job_for_each_tenant() {
    let town = Town::new().await;
    let mut scheduler = tokio::process::Command::new(program("reeve-scheduler"))
        .env("REEVE_SCHEDULER__DATABASE_URL", town.db.url("reeve_scheduler"))
        .stdin(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("it starts");
    until("the slot is computed", async || {
        town.count("SELECT count(*) FROM reeve.schedules WHERE next_at IS NOT NULL").await == 1
    })
    .await;
    sqlx::query("UPDATE reeve.schedules SET next_at = now() - interval '2 s', window_secs = 0")
        .execute(&town.db.admin)
        .await
        .expect("time passes");
    let fleet = town.fleet(town.duties(), 1);
    until("both tenants' jobs ran", async || {
        town.count("SELECT count(*) FROM reeve.job_history WHERE kind = 'webhook.prune' AND state = 'completed'").await
            == 2
    })
    .await;
    fleet.stop().await;
    scheduler.kill().await.expect("killed");
    assert_eq!(town.count("SELECT count(DISTINCT tenant_id) FROM reeve.job_history").await, 2);
}

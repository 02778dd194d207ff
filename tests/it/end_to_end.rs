//! From a web app's transaction to a receiver, through the real worker program.
use reeve_jobs::client;

use crate::support::{Receiver, Town, until};

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

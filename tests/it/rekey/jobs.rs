//! `key.rotate_tenant` as a job: Reeve's own secrets, versions that are made once, tables that cannot be swept.
use std::time::Duration;

use reeve_jobs::{
    catalogue::{self, Catalogue},
    job::{ClaimedJob, JobId, Outcome},
    queue::{Lane, PostgresQueue, Queue},
};
use reeve_worker::{
    duties::{rekey::Rotation, webhooks::secrets},
    runtime::Progress,
};

use super::{Archive, town_with_keys};
use crate::support::{Town, until};

pub async fn enqueue(town: &Town, payload: serde_json::Value) -> JobId {
    sqlx::query_scalar("SELECT reeve.ops_enqueue('a', 'key.rotate_tenant', $1, 'test', 'to see')")
        .bind(payload)
        .fetch_one(&town.db.admin)
        .await
        .expect("enqueued")
}

async fn claimed(town: &Town) -> ClaimedJob {
    let lane = Lane { queue: "maintenance".to_owned(), region: "default".to_owned() };
    let queue = PostgresQueue::new(town.worker.clone());
    queue.claim(&lane, 1, "w", "", Duration::from_secs(60)).await.expect("a claim").jobs.remove(0)
}

#[tokio::test]
async fn a_rotation_renews_webhook_secrets_that_go_on_signing() {
    let town = town_with_keys().await;
    let (endpoint, secret) = town.endpoint(&town.a, "http://127.0.0.1:1/").await;
    let job = enqueue(&town, serde_json::json!({"new_version": true})).await;
    let fleet = town.fleet(town.duties(), 1);
    until("the rotation is done", async || town.state(job).await == "completed").await;
    fleet.stop().await;
    let under = "SELECT count(*) FROM reeve.webhook_secrets WHERE substr(sealed, 1, 8) = '\\x5256010100000002'";
    assert_eq!(town.count(under).await, 1);
    let mut scope = town.scope(&town.a).await;
    let in_force = secrets::in_force(&mut scope, &town.keystore.keyring(), endpoint).await.expect("it opens");
    let newest = &in_force.expect("there").secrets[0];
    assert_eq!(newest.reveal().to_string(), secret);
    assert_eq!(town.count("SELECT count(*) FROM reeve.audit_log WHERE action = 'key.rotated'").await, 1);
}

#[tokio::test]
async fn a_rotation_that_is_gone_on_with_makes_no_other_version() {
    let town = town_with_keys().await;
    town.endpoint(&town.a, "http://127.0.0.1:1/").await;
    enqueue(&town, serde_json::json!({"new_version": true})).await;
    let (job, env) = (claimed(&town).await, town.environment());
    let context = town.context(&town.a).await;
    let rotation = |budget| Rotation {
        directory: &env.directory,
        keyring: &env.keyring,
        catalogue: &env.catalogue,
        settings: env.rekey,
        budget,
    };
    let progress = Progress::default();
    for _ in 0..2 {
        // Its time is up before its first batch.
        let outcome = rotation(Duration::ZERO).run(&job, &context, true, &progress).await.expect("an outcome");
        assert!(matches!(outcome, Outcome::Snooze { .. }), "{outcome:?}");
    }
    let outcome = rotation(Duration::from_secs(600)).run(&job, &context, true, &progress).await.expect("an outcome");
    assert_eq!(outcome, Outcome::Settled);
    let versions = town.keystore.store.of_tenant(&town.a).await.expect("versions");
    assert_eq!(versions.iter().map(|key| key.version).collect::<Vec<_>>(), [1, 2]);
}

#[tokio::test]
async fn a_table_that_cannot_be_swept_ends_the_job_with_its_reason_when_all_others_are_done() {
    let archive = Archive::new().await;
    let town = &archive.town;
    archive.put(&town.a, 1, "kept").await;
    let plain = super::DECLARED.replace("doc = { sealed = \"rv1\" }", "doc = { sealed = \"plain\" }");
    let gone = "[table.\"public.gone\"]\nscope = { column = \"org\" }\ncolumn.body = { sealed = \"rv1\" }\n";
    let declared = |text: &str| -> Catalogue {
        let app = catalogue::load::text_of("catalogue.toml", text).expect("a catalogue");
        app.merge(catalogue::load::own().expect("Reeve's own")).expect("merged")
    };
    enqueue(town, serde_json::json!({})).await;
    let job = claimed(town).await;
    let run = async |catalogue: &Catalogue| {
        let env = town.environment();
        let rotation = Rotation {
            directory: &env.directory,
            keyring: &archive.keyring,
            catalogue,
            settings: env.rekey,
            budget: Duration::from_secs(600),
        };
        rotation.run(&job, &archive.context, true, &Progress::default()).await.expect("an outcome")
    };
    let said = |outcome: Outcome| match outcome {
        Outcome::Dead { why } => why,
        other => panic!("{other:?}"),
    };
    let why = said(run(&declared(&plain)).await);
    assert!(why.contains("public.notes") && why.contains("adopt them first"), "{why}");
    let why = said(run(&declared(&format!("{}{gone}", super::DECLARED))).await);
    assert!(why.contains("public.gone") && why.contains("no such table"), "{why}");
    assert_eq!(archive.opened(&town.a, 1).await, vec![(2, "kept".to_owned()); 3], "the others were done");
    let refused = "SELECT count(*) FROM reeve.key_sweeps WHERE state = 'refused' AND reason IS NOT NULL";
    assert_eq!(town.count(refused).await, 1, "the one that can be swept by now is done");
}

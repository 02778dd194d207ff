//! Enqueueing in the caller's transaction: the job exists if and only if the caller commits.
use proptest::{prelude::*, test_runner::TestRunner};
use reeve_jobs::{
    TenantId,
    client::{self, Enqueue, EnqueueError},
    kinds::ProbeFleet,
};
use sqlx::PgPool;

use crate::support::Town;

/// What one of several concurrent transactions does, step by step.
#[derive(Debug, Clone)]
enum Step {
    Enqueue,
    EnqueueMany(u8),
    Emit,
    /// A savepoint that is rolled back, with a job in it.
    Savepoint,
}

#[derive(Debug, Clone)]
struct Script {
    steps: Vec<Step>,
    commits: bool,
}

fn script() -> impl Strategy<Value = Script> {
    let step = prop_oneof![
        Just(Step::Enqueue),
        (0_u8..4).prop_map(Step::EnqueueMany),
        Just(Step::Emit),
        Just(Step::Savepoint),
    ];
    (prop::collection::vec(step, 0..4), any::<bool>()).prop_map(|(steps, commits)| Script { steps, commits })
}

/// Runs one script with the others in between; returns how many jobs it left by its own account.
async fn play(app: PgPool, tenant: TenantId, script: Script) -> i64 {
    let mut tx = app.begin().await.expect("begin");
    client::set_tenant(&mut tx, &tenant).await.expect("context");
    let mut jobs = 0;
    for step in &script.steps {
        tokio::task::yield_now().await;
        match step {
            Step::Enqueue => {
                client::enqueue(&mut tx, &ProbeFleet::default(), &Enqueue::default()).await.expect("enqueued");
                jobs += 1;
            }
            Step::EnqueueMany(n) => {
                let many = vec![ProbeFleet::default(); usize::from(*n)];
                let ids = client::enqueue_many(&mut tx, &many).await.expect("enqueued");
                assert_eq!(ids.len(), many.len());
                jobs += i64::from(*n);
            }
            Step::Emit => {
                client::emit(&mut tx, "contact.updated", &serde_json::json!({"id": 1})).await.expect("emitted");
                jobs += 1;
            }
            Step::Savepoint => {
                use sqlx::Acquire;
                let mut inner = tx.begin().await.expect("savepoint");
                client::enqueue(&mut inner, &ProbeFleet::default(), &Enqueue::default()).await.expect("enqueued");
                inner.rollback().await.expect("rolled back");
            }
        }
    }
    if script.commits {
        tx.commit().await.expect("commit");
        jobs
    } else {
        tx.rollback().await.expect("rollback");
        0
    }
}

#[test]
fn rolled_back_transactions_leave_no_job_and_committed_ones_always_do() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let town = runtime.block_on(async {
        let town = Town::new().await;
        for tenant in [&town.a, &town.b] {
            town.endpoint(tenant, "http://127.0.0.1:9/").await;
        }
        town
    });
    let mut runner =
        TestRunner::new(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() });
    let scripts = prop::collection::vec((script(), any::<bool>()), 1..6);
    runner
        .run(&scripts, |scripts| {
            runtime.block_on(async {
                let jobs_of = async |tenant: &TenantId| -> i64 {
                    sqlx::query_scalar("SELECT count(*) FROM reeve.jobs WHERE tenant_id = $1")
                        .bind(tenant.as_str())
                        .fetch_one(&town.db.admin)
                        .await
                        .expect("a count")
                };
                let before = [jobs_of(&town.a).await, jobs_of(&town.b).await];
                let plays = scripts.iter().map(|(script, first)| {
                    let tenant = if *first { town.a.clone() } else { town.b.clone() };
                    tokio::spawn(play(town.app.clone(), tenant, script.clone()))
                });
                let mut expected = [0, 0];
                for (play, (_, first)) in futures::future::join_all(plays).await.into_iter().zip(&scripts) {
                    expected[usize::from(!*first)] += play.expect("no panic");
                }
                let left = [jobs_of(&town.a).await - before[0], jobs_of(&town.b).await - before[1]];
                prop_assert_eq!(left, expected);
                Ok(())
            })
        })
        .expect("the property holds");
}

async fn refused(town: &Town, tenant: Option<&TenantId>, sql: &'static str) -> (String, String) {
    let mut tx = town.app.begin().await.expect("begin");
    if let Some(tenant) = tenant {
        client::set_tenant(&mut tx, tenant).await.expect("context");
    }
    let error = sqlx::query(sql).execute(&mut *tx).await.expect_err("refused");
    drop(tx);
    match EnqueueError::from(error) {
        refused @ EnqueueError::Refused { .. } => {
            let said = refused.to_string();
            let EnqueueError::Refused { code, .. } = refused else { unreachable!("matched above") };
            (code, said)
        }
        other => panic!("{sql}: {other}"),
    }
}

#[tokio::test]
async fn bad_input_is_refused_with_what_to_do_and_leaves_nothing() {
    let town = Town::new().await;
    let a = Some(&town.a);
    for (tenant, sql, code, says) in [
        (None, "SELECT reeve.enqueue('fleet.probe')", "RV001", "set_config('reeve.tenant_id'"),
        (None, "SELECT reeve.emit('x.y', '{}')", "RV001", "no tenant context"),
        (a, "SELECT reeve.enqueue('fleet.prob')", "RV004", "fleet.probe"),
        (a, "SELECT reeve.enqueue('webhook.prune')", "RV004", "made by Reeve itself"),
        (a, "SELECT reeve.enqueue('fleet.probe', tenant_id => 'b')", "RV002", "leave it out"),
        (a, "SELECT reeve.enqueue('fleet.probe', '[1]')", "RV005", "JSON object"),
        (
            a,
            "SELECT reeve.enqueue('fleet.probe', jsonb_build_object('note', repeat('x', 2000)))",
            "RV005",
            "limit of 1024",
        ),
        (a, "SELECT reeve.enqueue('fleet.probe', priority => 7)", "RV005", "1 (first) to 4 (last)"),
        (a, "SELECT reeve.enqueue_many('[{\"kind\":\"fleet.probe\"},{\"kind\":\"nope\"}]')", "RV004", "nope"),
        (a, "SELECT reeve.enqueue_many('[{\"kind\":\"fleet.probe\",\"dedup\":1}]')", "RV005", "dedup"),
        (a, "SELECT reeve.enqueue_many('{}')", "RV005", "JSON array"),
        (a, "SELECT reeve.enqueue_many('[]', tenant_id => 'b')", "RV002", "confirm the context"),
        (a, "SELECT reeve.emit('x.y', '[]')", "RV005", "JSON object"),
        (a, "SELECT reeve.emit('Not A Type', '{}')", "RV005", "contact.updated"),
        (a, "SELECT reeve.emit('x.y', jsonb_build_object('x', repeat('y', 300000)))", "RV005", "262144"),
        (a, "SELECT reeve.enqueue('fleet.probe', run_at => '-infinity')", "RV005", "ten years from now"),
        (a, "SELECT reeve.enqueue('fleet.probe', run_at => '294000-01-01')", "RV005", "ten years from now"),
        (a, "SELECT reeve.enqueue('fleet.probe', traceparent => repeat('x', 65))", "RV005", "64 characters"),
        (a, "SELECT reeve.enqueue('fleet.probe', dedupe_key => repeat('x', 201))", "RV005", "200 characters"),
        (a, "SELECT reeve.enqueue_many('[{\"kind\":\"fleet.probe\",\"run_at\":\"infinity\"}]')", "RV005", "ten years"),
        (
            a,
            "SELECT reeve.enqueue_many('[{\"kind\":\"fleet.probe\",\"priority\":9}]')",
            "RV005",
            "1 (first) to 4 (last)",
        ),
        (a, "SELECT reeve.register_tenant('-', 'x')", "RV005", "1 to 64 bytes"),
        (a, "SELECT reeve.register_tenant(repeat('x', 65), 'x')", "RV005", "1 to 64 bytes"),
        (a, "SELECT reeve.register_tenant('x', 'x', 'No Region')", "RV005", "lower-case"),
    ] {
        let (got, said) = refused(&town, tenant, sql).await;
        assert_eq!(got, code, "{sql}: {said}");
        assert!(said.contains(says), "{sql}: {said}");
    }
    let stranger: TenantId = "nobody".parse().expect("an id");
    let (code, said) = refused(&town, Some(&stranger), "SELECT reeve.enqueue('fleet.probe')").await;
    assert!(code == "RV003" && said.contains("register_tenant"), "{said}");
    sqlx::query("UPDATE reeve.tenants SET state = 'closing' WHERE id = 'a'")
        .execute(&town.db.admin)
        .await
        .expect("closing");
    let (code, said) = refused(&town, a, "SELECT reeve.emit('x.y', '{}')").await;
    assert!(code == "RV006" && said.contains("closing"), "{said}");
    assert_eq!(town.count("SELECT count(*) FROM reeve.jobs").await, 0);
    assert_eq!(town.count("SELECT count(*) FROM reeve.webhook_events").await, 0);
}

#[tokio::test]
async fn a_transaction_that_names_two_tenants_is_refused() {
    let town = Town::new().await;
    sqlx::query("UPDATE reeve.settings SET app_context_setting = 'app.tenant_id'")
        .execute(&town.db.admin)
        .await
        .expect("set");
    let (code, said) = refused(
        &town,
        Some(&town.a),
        "WITH c AS MATERIALIZED (SELECT set_config('app.tenant_id', 'b', true)) SELECT reeve.enqueue('fleet.probe') FROM c",
    )
    .await;
    assert!(code == "RV002" && said.contains("two tenants"), "{said}");
    // The app's own setting alone is enough.
    let mut tx = town.app.begin().await.expect("begin");
    sqlx::query("SELECT set_config('app.tenant_id', 'b', true)").execute(&mut *tx).await.expect("context");
    sqlx::query("SELECT reeve.enqueue('fleet.probe')").execute(&mut *tx).await.expect("enqueued");
    tx.commit().await.expect("commit");
    assert_eq!(town.count("SELECT count(*) FROM reeve.jobs WHERE tenant_id = 'b'").await, 1);
}

#[tokio::test]
async fn one_live_job_has_a_dedupe_key_whoever_enqueues_it() {
    let town = Town::new().await;
    let how = Enqueue { dedupe_key: Some("k".to_owned()), ..Enqueue::default() };
    let enqueue = async || {
        let mut tx = town.app.begin().await.expect("begin");
        client::set_tenant(&mut tx, &town.a).await.expect("context");
        let id = client::enqueue(&mut tx, &ProbeFleet::default(), &how).await.expect("enqueued");
        tx.commit().await.expect("commit");
        id
    };
    let ids = futures::future::join_all((0..8).map(|_| enqueue())).await;
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    assert_eq!(town.count("SELECT count(*) FROM reeve.jobs").await, 1);
}

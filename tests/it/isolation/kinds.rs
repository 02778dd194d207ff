//! Every kind of job, given every id that another tenant has. A new kind is covered without an edit here: what its payload
//! needs is asked of the kind itself.
use std::collections::BTreeSet;

use reeve_jobs::{Kind, job::JobId};
use serde_json::{Map, Value, json};

use super::{furnished, without_policies};
use crate::support::{Receiver, Town, until};

/// Payloads of this kind in which every field that must be there holds `id`, as far as its type lets it.
fn payload(kind: Kind, id: &str) -> Value {
    let mut fields = Map::new();
    for _ in 0..100 {
        let said = match kind.decode(Value::Object(fields.clone())) {
            Ok(_) => return Value::Object(fields),
            Err(error) => error.to_string(),
        };
        let field = said.split('`').nth(1).filter(|_| said.starts_with("missing field")).map(str::to_owned);
        let field = field.unwrap_or_else(|| panic!("{kind}: this test cannot make a payload: {said}"));
        // The first of these that the type takes.
        let value = [json!(id), json!(1), json!(true), json!([id]), json!({})].into_iter().find(|value| {
            fields.insert(field.clone(), value.clone());
            let said =
                kind.decode(Value::Object(fields.clone())).err().map(|error| error.to_string()).unwrap_or_default();
            said.is_empty() || said.starts_with("missing field")
        });
        assert!(value.is_some(), "{kind}: nothing this test knows fits field {field}");
    }
    panic!("{kind}: too many fields")
}

/// Ids of b's rows, of every tenant table of Reeve's that has any.
async fn ids_of_b(town: &Town) -> BTreeSet<String> {
    let tables: Vec<String> = sqlx::query_scalar(
        "SELECT format('SELECT id::text FROM %s WHERE tenant_id = ''b''', c.oid::regclass) FROM pg_class c
         WHERE c.relnamespace = 'reeve'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
           AND 2 = (SELECT count(*) FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname IN ('id', 'tenant_id'))",
    )
    .fetch_all(&town.db.admin)
    .await
    .expect("tables");
    let mut ids = BTreeSet::new();
    for sql in tables {
        let found: Vec<String> =
            sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_all(&town.db.admin).await.expect("ids");
        ids.extend(found.into_iter().filter(|id| uuid::Uuid::parse_str(id).is_ok()));
    }
    assert!(ids.len() >= 2, "{ids:?}");
    ids
}

/// Everything of b's but what its own queue does.
async fn rows_of_b(town: &Town) -> Vec<String> {
    let tables: Vec<String> = sqlx::query_scalar(
        "SELECT format('SELECT %L || to_jsonb(t)::text FROM %s t WHERE tenant_id = ''b''', c.relname, c.oid::regclass)
         FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'tenant_id'
         WHERE c.relnamespace = 'reeve'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition ORDER BY 1",
    )
    .fetch_all(&town.db.admin)
    .await
    .expect("tables");
    let mut rows = Vec::new();
    for sql in tables {
        let found: Vec<String> =
            sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_all(&town.db.admin).await.expect("rows");
        rows.extend(found);
    }
    rows.sort();
    rows
}

async fn enqueue(town: &Town, kind: Kind, payload: Value) -> JobId {
    sqlx::query_scalar("SELECT reeve.ops_enqueue('a', $1, $2, 'test', 'to try')")
        .bind(kind.name())
        .bind(payload)
        .fetch_one(&town.db.admin)
        .await
        .unwrap_or_else(|error| panic!("{kind}: {error}"))
}

/// Runs every kind for tenant a with each of b's ids, and sees that b is as it was and b's receiver heard nothing.
async fn leaves_b_alone(town: &Town, receiver: &Receiver) {
    // b's own jobs would change b's rows rightly.
    sqlx::query("DELETE FROM reeve.jobs").execute(&town.db.admin).await.expect("an empty queue");
    let before = rows_of_b(town).await;
    let mut jobs = Vec::new();
    for id in ids_of_b(town).await {
        for kind in Kind::ALL {
            jobs.push((*kind, enqueue(town, *kind, payload(*kind, &id)).await));
        }
    }
    assert_eq!(receiver.seen().len(), 0);
    let fleet = town.fleet(town.duties(), 4);
    for (kind, job) in &jobs {
        until(&format!("{kind} has ended"), async || {
            !["available", "running", "scheduled"].contains(&town.state(*job).await.as_str())
        })
        .await;
    }
    fleet.stop().await;
    assert_eq!(rows_of_b(town).await, before);
    assert!(receiver.seen().is_empty(), "{:?}", receiver.seen());
    // Those that named another tenant's row were told apart from those that named nothing.
    let quarantined: Vec<String> = sqlx::query_scalar(
        "SELECT DISTINCT kind FROM reeve.jobs WHERE state = 'quarantined' AND tenant_id = 'a' ORDER BY 1",
    )
    .fetch_all(&town.db.admin)
    .await
    .expect("kinds");
    assert!(quarantined.contains(&"webhook.deliver".to_owned()), "{quarantined:?}");
}

#[tokio::test]
async fn no_kind_reaches_a_row_that_its_payload_names_of_another_tenant() {
    let (town, receiver, ..) = furnished().await;
    leaves_b_alone(&town, &receiver).await;
}

#[tokio::test]
async fn nor_does_any_kind_with_the_policies_gone() {
    let (town, receiver, ..) = furnished().await;
    without_policies(&town).await;
    leaves_b_alone(&town, &receiver).await;
}

/// The scheduler's fan-out: one slot becomes jobs of all tenants, each of which works for its own.
#[tokio::test]
async fn a_slot_makes_each_tenant_its_own_job_and_each_works_for_its_own() {
    let (town, ..) = furnished().await;
    without_policies(&town).await;
    sqlx::query("DELETE FROM reeve.jobs").execute(&town.db.admin).await.expect("an empty queue");
    // Old enough for every upkeep that a schedule may do: a's only.
    sqlx::raw_sql(
        "UPDATE reeve.webhook_deliveries SET state = 'delivered', ended_at = now() - interval '90 days' WHERE tenant_id = 'a';
         UPDATE reeve.webhook_events SET created_at = now() - interval '90 days'",
    )
    .execute(&town.db.admin)
    .await
    .expect("arranged");
    let scheduled: Vec<&Kind> = Kind::ALL.iter().filter(|kind| kind.spec().cadence.is_some()).collect();
    for kind in &scheduled {
        sqlx::query("SELECT reeve.schedule_fire($1, NULL, now() - interval '2 hours', now() + interval '1 day')")
            .bind(kind.name())
            .execute(&town.db.admin)
            .await
            .expect("fired");
    }
    sqlx::query("SELECT reeve.promote(100)").execute(&town.db.admin).await.expect("promoted");
    let jobs = town.count("SELECT count(*) FROM reeve.jobs WHERE state = 'available'").await;
    assert_eq!(jobs, 2 * i64::try_from(scheduled.len()).expect("few"));
    // b's jobs are held back, so that whatever happens to b was done by a's.
    sqlx::query("UPDATE reeve.tenants SET paused = true WHERE id = 'b'").execute(&town.db.admin).await.expect("paused");
    let before = rows_of_b(&town).await;
    let fleet = town.fleet(town.duties(), 2);
    until("a's are done", async || town.count("SELECT count(*) FROM reeve.jobs WHERE tenant_id = 'a'").await == 0)
        .await;
    fleet.stop().await;
    let after: Vec<_> = rows_of_b(&town).await;
    assert_eq!(after, before);
    assert_eq!(
        town.count("SELECT count(*) FROM reeve.webhook_deliveries WHERE tenant_id = 'a'").await,
        0,
        "a was swept"
    );
}

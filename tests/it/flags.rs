//! Flags: who decides, who may know, and what a kind that is off does to its jobs. (The command line: `reeve`'s own tests.)
use std::time::Duration;

use reeve_jobs::{
    TenantId,
    client::{self, EnqueueError},
    job::JobId,
    kinds::{ProbeFleet, PruneWebhooks},
    queue::{Lane, PostgresQueue, Queue, operate::Act},
    tenant::flags::{self, Declaration, Level},
};
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::support::{Town, until};

const WHO: Act<'static> = Act { actor: "cli:ann", reason: "trying" };
const PROBES: &str = "kind.fleet.probe";

fn pro() -> Level {
    Level::Plan("pro".to_owned())
}

/// What the app reads in this tenant's context.
async fn flag(pool: &PgPool, tenant: &TenantId, name: &str) -> Result<Value, EnqueueError> {
    let mut tx = pool.begin().await.expect("begin");
    client::set_tenant(&mut tx, tenant).await.expect("context");
    let value = sqlx::query_scalar("SELECT reeve.flag($1)").bind(name).fetch_one(&mut *tx).await?;
    tx.rollback().await.expect("rolled back");
    Ok(value)
}

/// What a duty reads.
async fn held_flag(town: &Town, tenant: &TenantId, name: &str) -> Result<Value, EnqueueError> {
    let mut tx = town.worker.begin().await.expect("begin");
    town.hold(&mut tx, tenant).await;
    Ok(sqlx::query_scalar("SELECT reeve.held_flag($1)").bind(name).fetch_one(&mut *tx).await?)
}

async fn declare(ops: &PgPool, name: &str, value_type: &str, default: Value) -> Result<bool, EnqueueError> {
    let flag = Declaration { name, value_type, default: &default, description: "for the test" };
    Ok(flags::declare(ops, flag, WHO).await?)
}

async fn put_on_plan(town: &Town, tenant: &TenantId, plan: &str) {
    sqlx::query("UPDATE reeve.tenants SET plan = $2 WHERE id = $1")
        .bind(tenant.as_str())
        .bind(plan)
        .execute(&town.db.admin)
        .await
        .expect("a plan");
}

async fn probe(town: &Town, tenant: &TenantId) -> JobId {
    client::enqueue_alone(&town.app, tenant, &ProbeFleet::default()).await.expect("enqueued")
}

/// Whose jobs a claim of this queue hands out, in byte order.
async fn claimed(town: &Town, queue: &str) -> Vec<String> {
    let lane = Lane { queue: queue.to_owned(), region: "default".to_owned() };
    let queue = PostgresQueue::new(town.worker.clone());
    let claim = queue.claim(&lane, 100, "w", "", Duration::from_secs(60)).await.expect("a claim");
    let mut tenants: Vec<_> = claim.jobs.iter().map(|job| job.tenant.to_string()).collect();
    tenants.sort();
    tenants
}

#[tokio::test]
async fn a_tenants_override_comes_before_its_plans_and_that_before_the_default() {
    let town = Town::new().await;
    let ops = town.db.pool("reeve_ops").await;
    assert!(declare(&ops, "exports.rows_max", "int", json!(1)).await.expect("declared"));
    put_on_plan(&town, &town.a, "pro").await;
    let name = "exports.rows_max";
    let (default, a) = (Level::Default, Level::Tenant(town.a.clone()));
    let both = async || {
        let mut seen = Vec::new();
        for tenant in [&town.a, &town.b] {
            let app = flag(&town.app, tenant, name).await.expect("a value");
            let worker = held_flag(&town, tenant, name).await.expect("a value");
            assert_eq!(app, worker, "the worker reads what the app does");
            seen.push(app.as_i64().expect("a number"));
        }
        (seen[0], seen[1])
    };
    assert_eq!(both().await, (1, 1));
    // In an order that shows that the level decides, and not the time.
    assert_eq!(flags::set(&ops, name, &a, &json!(30), WHO).await.expect("set"), None);
    assert_eq!(both().await, (30, 1));
    flags::set(&ops, name, &pro(), &json!(20), WHO).await.expect("set");
    flags::set(&ops, name, &default, &json!(10), WHO).await.expect("set");
    assert_eq!(both().await, (30, 10));
    assert_eq!(flags::clear(&ops, name, &a, WHO).await.expect("cleared"), Some(json!(30)));
    assert_eq!(both().await, (20, 10));
    assert_eq!(flags::set(&ops, name, &pro(), &json!(21), WHO).await.expect("set"), Some(json!(20)));
    assert_eq!(both().await, (21, 10));
    flags::clear(&ops, name, &pro(), WHO).await.expect("cleared");
    assert_eq!(both().await, (10, 10));
    flags::clear(&ops, name, &default, WHO).await.expect("cleared");
    assert_eq!(both().await, (1, 1));
    assert_eq!(flags::clear(&ops, name, &default, WHO).await.expect("answered"), None);
}

#[tokio::test]
async fn a_job_of_a_kind_that_is_off_for_its_tenant_waits_and_runs_when_it_is_on_again() {
    let town = Town::new().await;
    let ops = town.db.pool("reeve_ops").await;
    let level = Level::Tenant(town.a.clone());
    flags::set(&ops, PROBES, &level, &json!(false), WHO).await.expect("set");
    let (of_a, of_b) = (probe(&town, &town.a).await, probe(&town, &town.b).await);
    let fleet = town.fleet(town.duties(), 4);
    until("b's job is done", async || town.state(of_b).await == "completed").await;
    // Round after round passes it over: each of b's later jobs is claimed after a's was looked at.
    for _ in 0..3 {
        let later = probe(&town, &town.b).await;
        until("b's next is done", async || town.state(later).await == "completed").await;
    }
    let waiting: (String, i32) = sqlx::query_as("SELECT state, attempt FROM reeve.jobs WHERE id = $1")
        .bind(of_a)
        .fetch_one(&town.db.admin)
        .await
        .expect("a's job");
    assert_eq!(waiting, ("available".to_owned(), 0), "it waits, and nothing is counted");
    flags::clear(&ops, PROBES, &level, WHO).await.expect("cleared");
    until("a's job is done", async || town.state(of_a).await == "completed").await;
    fleet.stop().await;
}

#[tokio::test]
async fn only_the_kind_that_is_off_waits_where_a_queue_has_several() {
    let town = Town::new().await;
    let ops = town.db.pool("reeve_ops").await;
    // As a later build may have it: two kinds in one queue.
    sqlx::query("UPDATE reeve.kinds SET queue = 'probes' WHERE name = 'webhook.prune'")
        .execute(&town.db.admin)
        .await
        .expect("moved");
    let level = Level::Tenant(town.a.clone());
    flags::set(&ops, PROBES, &level, &json!(false), WHO).await.expect("set");
    for _ in 0..3 {
        probe(&town, &town.a).await;
    }
    reeve_jobs::queue::operate::enqueue(&ops, &town.a, reeve_jobs::Kind::WebhookPrune, &json!({}), WHO)
        .await
        .expect("enqueued");
    assert_eq!(claimed(&town, "probes").await, ["a"]);
    let kinds: Vec<String> = sqlx::query_scalar("SELECT kind FROM reeve.jobs WHERE state = 'running'")
        .fetch_all(&town.db.admin)
        .await
        .expect("kinds");
    assert_eq!(kinds, [<PruneWebhooks as reeve_jobs::kinds::Payload>::KIND.name()]);
    assert_eq!(claimed(&town, "probes").await, Vec::<String>::new());
}

#[tokio::test]
async fn jobs_that_wait_for_their_kind_are_not_looked_at_by_claims() {
    let town = Town::new().await;
    let ops = town.db.pool("reeve_ops").await;
    let mut tx = town.app.begin().await.expect("begin");
    client::set_tenant(&mut tx, &town.a).await.expect("context");
    client::enqueue_many(&mut tx, &vec![ProbeFleet::default(); 5_000]).await.expect("enqueued");
    tx.commit().await.expect("commit");
    probe(&town, &town.b).await;
    flags::set(&ops, PROBES, &Level::Tenant(town.a.clone()), &json!(false), WHO).await.expect("set");
    // Pages touched, not time. The first claim of a session also reads the catalogue.
    let mut tx = town.db.admin.begin().await.expect("begin");
    let claim =
        "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) SELECT * FROM reeve.claim('probes', 'default', 50, 'w', '', 30)";
    let mut pages = 0;
    for _ in 0..2 {
        let plan: Value = sqlx::query_scalar(claim).fetch_one(&mut *tx).await.expect("a plan");
        let top = &plan[0]["Plan"];
        pages = ["Shared Hit Blocks", "Shared Read Blocks"].iter().filter_map(|count| top[count].as_i64()).sum();
    }
    assert!(pages < 500, "{pages} pages for a claim beside 5,000 jobs that wait");
    tx.rollback().await.expect("rolled back");
    assert_eq!(claimed(&town, "probes").await, ["b"]);
}

#[tokio::test]
async fn a_plan_and_a_default_hold_for_tenants_that_come_later_or_change_their_plan() {
    let town = Town::new().await;
    let ops = town.db.pool("reeve_ops").await;
    flags::set(&ops, PROBES, &pro(), &json!(false), WHO).await.expect("set");
    put_on_plan(&town, &town.a, "pro").await;
    probe(&town, &town.a).await;
    probe(&town, &town.b).await;
    assert_eq!(claimed(&town, "probes").await, ["b"], "a came to the plan that has it off");
    put_on_plan(&town, &town.a, "basic").await;
    assert_eq!(claimed(&town, "probes").await, ["a"], "and left it");

    flags::set(&ops, PROBES, &Level::Default, &json!(false), WHO).await.expect("set");
    flags::set(&ops, PROBES, &Level::Tenant(town.a.clone()), &json!(true), WHO).await.expect("set");
    let late = town.db.tenant("late").await;
    for tenant in [&town.a, &town.b, &late] {
        probe(&town, tenant).await;
    }
    assert_eq!(claimed(&town, "probes").await, ["a"], "the default holds for whoever has no override");
    flags::clear(&ops, PROBES, &Level::Default, WHO).await.expect("cleared");
    assert_eq!(claimed(&town, "probes").await, ["b", "late"]);
    // Where nothing is off, the claim finds NULL and compares nothing.
    assert_eq!(town.count("SELECT count(*) FROM reeve.tenants WHERE kinds_off IS NOT NULL").await, 0);
}

#[tokio::test]
async fn a_tenant_registered_while_a_flag_is_set_gets_it_too() {
    let town = Town::new().await;
    let ops = town.db.pool("reeve_ops").await;
    let mut tx = town.app.begin().await.expect("begin");
    sqlx::query("SELECT reeve.register_tenant('late', 'Late')").execute(&mut *tx).await.expect("registered");
    let setting = flags::set(&ops, PROBES, &Level::Default, &json!(false), WHO);
    let committing = async {
        until("the setter waits for the registration", async || {
            let waiting = "SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database
                           WHERE d.datname = current_database() AND l.locktype = 'advisory' AND NOT l.granted";
            town.count(waiting).await == 1
        })
        .await;
        tx.commit().await.expect("commit");
    };
    let (set, ()) = tokio::join!(setting, committing);
    set.expect("set");
    let off = "SELECT count(*) FROM reeve.tenants WHERE kinds_off = ARRAY['fleet.probe']";
    assert_eq!(town.count(off).await, 3);
}

#[tokio::test]
async fn a_tenant_reads_its_own_flags_and_never_anothers_override() {
    let town = Town::new().await;
    let ops = town.db.pool("reeve_ops").await;
    declare(&ops, "beta", "text", json!("no")).await.expect("declared");
    flags::set(&ops, "beta", &Level::Tenant(town.b.clone()), &json!("b's own"), WHO).await.expect("set");
    for (tenant, value) in [(&town.a, "no"), (&town.b, "b's own")] {
        assert_eq!(flag(&town.app, tenant, "beta").await.expect("a value"), json!(value));
        assert_eq!(held_flag(&town, tenant, "beta").await.expect("a value"), json!(value));
    }
    // Twice over: neither role may read the table, and one that is let in by mistake is shown no row.
    let read = "SELECT count(*) FROM reeve.flag_overrides";
    for pool in [&town.app, &town.worker] {
        let refused = sqlx::query(read).execute(pool).await.expect_err("refused").to_string();
        assert!(refused.contains("permission denied"), "{refused}");
    }
    sqlx::query("GRANT SELECT ON reeve.flag_overrides TO reeve_app, reeve_worker")
        .execute(&town.db.admin)
        .await
        .expect("a mistake");
    for pool in [&town.app, &town.worker] {
        let mut tx = pool.begin().await.expect("begin");
        client::set_tenant(&mut tx, &town.a).await.expect("context");
        let seen: i64 = sqlx::query_scalar(read).fetch_one(&mut *tx).await.expect("a count");
        assert_eq!(seen, 0);
    }
    // Nor may they set one.
    let set = "SELECT reeve.set_flag('beta', '\"yes\"', 'tenant', 'a', 'app', 'because')";
    for pool in [&town.app, &town.worker] {
        let refused = sqlx::query(set).execute(pool).await.expect_err("refused").to_string();
        assert!(refused.contains("permission denied"), "{refused}");
    }
}

#[tokio::test]
async fn each_change_is_audited_by_name_and_without_its_value() {
    let town = Town::new().await;
    let ops = town.db.pool("reeve_ops").await;
    declare(&ops, "beta", "text", json!("no")).await.expect("declared");
    declare(&ops, "beta", "text", json!("maybe")).await.expect("declared again");
    let a = Level::Tenant(town.a.clone());
    flags::set(&ops, "beta", &a, &json!("secret sauce"), WHO).await.expect("set");
    flags::set(&ops, "beta", &pro(), &json!("yes"), WHO).await.expect("set");
    flags::clear(&ops, "beta", &a, WHO).await.expect("cleared");
    assert_eq!(flags::clear(&ops, "beta", &a, WHO).await.expect("answered"), None, "nothing to audit");
    let log: Vec<(String, String, String, String)> = sqlx::query_as(
        "SELECT l.tenant_id, l.action, l.target, array_to_string(b.fields, ' ')
         FROM reeve.audit_log l JOIN reeve.audit_bodies b ON b.tenant_id = l.tenant_id AND b.seq = l.seq
         WHERE l.actor = 'cli:ann' AND b.reason = 'trying' ORDER BY l.at",
    )
    .fetch_all(&town.db.admin)
    .await
    .expect("the log");
    let log: Vec<_> = log.iter().map(|(t, a, g, f)| (t.as_str(), a.as_str(), g.as_str(), f.as_str())).collect();
    assert_eq!(
        log,
        [
            ("-", "flag.declared", "flag:beta", "value_type description default_value"),
            ("-", "flag.declared", "flag:beta", "default_value"),
            ("a", "flag.set", "flag:beta", "value"),
            ("-", "flag.set", "flag:beta plan:pro", "value"),
            ("a", "flag.cleared", "flag:beta", "value"),
        ]
    );
    let leaked = "SELECT count(*) FROM reeve.audit_log l WHERE l::text LIKE '%sauce%'";
    assert_eq!(town.count(leaked).await, 0);
}

#[tokio::test]
async fn a_mistake_is_refused_with_the_way_out_and_changes_nothing() {
    let town = Town::new().await;
    let ops = town.db.pool("reeve_ops").await;
    let (default, nobody) = (Level::Default, Level::Tenant("nobody".parse().expect("an id")));
    let set = async |name: &str, level: &Level, value: Value| flags::set(&ops, name, level, &value, WHO).await;
    for (name, level, value, code, says) in [
        ("kind.fleet.prob", &default, json!(false), "RV020", "unknown flag \"kind.fleet.prob\""),
        (PROBES, &default, json!("off"), "RV005", "takes true or false, not \"off\""),
        (PROBES, &default, json!(null), "RV005", "takes true or false, not null"),
        (PROBES, &nobody, json!(false), "RV003", "tenant \"nobody\" is not registered"),
        (PROBES, &Level::Plan(String::new()), json!(false), "RV005", "named in 1 to 100 characters"),
        (PROBES, &Level::Plan("p".repeat(101)), json!(false), "RV005", "named in 1 to 100 characters"),
    ] {
        let refused = set(name, level, value).await.map_err(EnqueueError::from);
        let Err(EnqueueError::Refused { code: found, message, .. }) = &refused else { panic!("{refused:?}") };
        assert_eq!((found.as_str(), message.contains(says)), (code, true), "{message}");
    }
    for (name, value_type, value, says) in [
        ("kind.mine", "bool", json!(true), "cannot be named"),
        ("Beta", "bool", json!(true), "cannot be named"),
        ("a'; DROP TABLE reeve.jobs", "bool", json!(true), "cannot be named"),
        ("beta", "float", json!(1.5), "bool, int or text, not \"float\""),
        ("beta", "int", json!(1.5), "a whole number of at most 18 digits, not 1.5"),
        ("beta", "int", json!("7"), "a whole number"),
        ("beta", "text", json!("x".repeat(1001)), "at most 1000 characters"),
    ] {
        let refused = declare(&ops, name, value_type, value).await.expect_err("refused").to_string();
        assert!(refused.contains(says), "{name}: {refused}");
    }
    let refused = flag(&town.app, &town.a, "beta").await.expect_err("refused").to_string();
    assert!(refused.contains("unknown flag \"beta\"") && refused.contains("kind.webhook.deliver"), "{refused}");
    let refused = flag(&town.app, &"nobody".parse().expect("an id"), PROBES).await.expect_err("refused").to_string();
    assert!(refused.contains("\"nobody\" is not registered"), "{refused}");
    let bare = sqlx::query("SELECT reeve.flag($1)").bind(PROBES).execute(&town.app).await.expect_err("refused");
    assert!(bare.to_string().contains("no tenant context"), "{bare}");
    let left = "SELECT (SELECT count(*) FROM reeve.flag_overrides) + (SELECT count(*) FROM reeve.audit_log)";
    assert_eq!(town.count(left).await, 0);
}

/// How many of tenant a's probes one claim hands out, and none of them is given back.
async fn claimed_of_a(town: &Town) -> usize {
    claimed(town, "probes").await.len()
}

#[tokio::test]
async fn a_plans_limit_caps_what_runs_and_a_tenants_own_number_comes_before_it() {
    let town = Town::new().await;
    let ops = town.db.pool("reeve_ops").await;
    const LIMIT: &str = "limit.running_max";
    put_on_plan(&town, &town.a, "pro").await;
    for _ in 0..20 {
        probe(&town, &town.a).await;
    }
    flags::set(&ops, LIMIT, &Level::Default, &json!(1), WHO).await.expect("set");
    flags::set(&ops, LIMIT, &pro(), &json!(2), WHO).await.expect("set");
    assert_eq!(claimed_of_a(&town).await, 2, "the plan's");
    assert_eq!(claimed_of_a(&town).await, 0, "counted against what runs");
    flags::set(&ops, LIMIT, &Level::Tenant(town.a.clone()), &json!(5), WHO).await.expect("set");
    assert_eq!(claimed_of_a(&town).await, 3, "the tenant's flag before the plan's");
    sqlx::query("UPDATE reeve.tenants SET running_max = 6 WHERE id = 'a'").execute(&town.db.admin).await.expect("set");
    assert_eq!(claimed_of_a(&town).await, 1, "the tenant's own number before every flag");
    sqlx::query("UPDATE reeve.tenants SET running_max = NULL WHERE id = 'a'")
        .execute(&town.db.admin)
        .await
        .expect("set");
    flags::clear(&ops, LIMIT, &Level::Tenant(town.a.clone()), WHO).await.expect("cleared");
    put_on_plan(&town, &town.a, "free").await;
    let by_flag: Option<i32> = sqlx::query_scalar("SELECT running_max_by_flag FROM reeve.tenants WHERE id = 'a'")
        .fetch_one(&town.db.admin)
        .await
        .expect("a tenant");
    assert_eq!(by_flag, Some(1), "another plan, the default's");
    flags::set(&ops, LIMIT, &Level::Default, &json!(1_000_000), WHO).await.expect("set");
    assert_eq!(claimed_of_a(&town).await, 14, "a million is no cap");
    let refused = declare(&ops, LIMIT, "int", json!(3)).await.expect_err("Reeve's own").to_string();
    assert!(refused.contains("cannot be declared anew"), "{refused}");
    // The app reads it as any flag.
    assert_eq!(flag(&town.app, &town.a, LIMIT).await.expect("a value"), json!(1_000_000));
}

//! Isolation, twice: with the program's checks gone the database refuses; with the database's policies gone the program
//! refuses. And the ways in between: a job that names another tenant's row, a connection that comes back dirty.
//!
//! `ways` has the table of all ways that we could think of, `kinds` tries every kind of job.
mod kinds;
mod ways;

use std::{
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use reeve_jobs::{
    TenantContext, TenantId, client,
    job::{ClaimedJob, JobId, Outcome},
    kinds::{DeliverWebhook, ProbeFleet, Work},
    queue::{Lane, PostgresQueue, Queue},
    tenant::{Rows, Scope, ScopeError, TenantRow},
};
use reeve_worker::runtime::{
    Handler, Progress,
    attempt::{self, Job},
    lease::Leases,
};
use uuid::Uuid;

use crate::support::{Receiver, Town, until};

#[derive(Debug, sqlx::FromRow)]
struct Endpoint {
    tenant_id: String,
    url: String,
}

impl TenantRow for Endpoint {
    fn tenant_id(&self) -> &str {
        &self.tenant_id
    }
}

const ALL_ENDPOINTS: &str = "SELECT tenant_id, url FROM reeve.webhook_endpoints";

/// Tenant tables of Reeve's that a worker may read, and those it may write.
const TABLES: [&str; 5] =
    ["webhook_endpoints", "webhook_secrets", "webhook_events", "webhook_deliveries", "webhook_attempts"];
/// And those it may only read.
const READ_ONLY: [&str; 4] = ["jobs", "job_attempts", "job_history", "tenants"];

/// A town where both tenants have an endpoint, an event and a delivery. Returns tenant b's endpoint and delivery.
async fn furnished() -> (Town, Receiver, Uuid, Uuid) {
    let town = Town::new().await;
    let receiver = Receiver::start().await;
    let mut endpoints = Vec::new();
    for tenant in [&town.a, &town.b] {
        endpoints.push(town.endpoint(tenant, &receiver.url(&format!("/{tenant}"))).await.0);
        let mut tx = town.app.begin().await.expect("begin");
        client::set_tenant(&mut tx, tenant).await.expect("context");
        client::emit(&mut tx, "contact.updated", &serde_json::json!({"id": 1})).await.expect("emit");
        tx.commit().await.expect("commit");
    }
    let delivery = sqlx::query_scalar("SELECT id FROM reeve.webhook_deliveries WHERE tenant_id = 'b'")
        .fetch_one(&town.db.admin)
        .await
        .expect("b's delivery");
    (town, receiver, endpoints[1], delivery)
}

/// Enqueues, for `tenant`, the delivery of a row that may be another tenant's.
async fn enqueue_delivery(town: &Town, tenant: &TenantId, delivery_id: Uuid) -> JobId {
    client::enqueue_alone(&town.app, tenant, &DeliverWebhook { delivery_id }).await.expect("enqueued")
}

/// Takes the database's layer away: no policy holds any more.
async fn without_policies(town: &Town) {
    for table in TABLES.into_iter().chain(READ_ONLY) {
        for statement in [
            format!("ALTER TABLE reeve.{table} NO FORCE ROW LEVEL SECURITY"),
            format!("ALTER TABLE reeve.{table} DISABLE ROW LEVEL SECURITY"),
        ] {
            sqlx::query(sqlx::AssertSqlSafe(statement)).execute(&town.db.admin).await.expect("disabled");
        }
    }
}

#[tokio::test]
async fn without_the_programs_checks_the_database_shows_and_changes_nothing_of_another_tenant() {
    let (town, _receiver, endpoint_b, delivery_b) = furnished().await;
    // The worker's login, tenant a's context, and no Scope: what a handler full of bugs could do.
    let mut tx = town.worker.begin().await.expect("begin");
    town.hold(&mut tx, &town.a).await;
    for table in TABLES {
        let sql = format!("SELECT count(*) FROM reeve.{table} WHERE tenant_id <> 'a'");
        let seen: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_one(&mut *tx).await.expect("a count");
        assert_eq!(seen, 0, "{table}");
    }
    for (sql, id) in [
        ("UPDATE reeve.webhook_endpoints SET url = 'http://evil' WHERE id = $1", endpoint_b),
        ("DELETE FROM reeve.webhook_deliveries WHERE id = $1", delivery_b),
    ] {
        let changed = sqlx::query(sql).bind(id).execute(&mut *tx).await.expect("no error").rows_affected();
        assert_eq!(changed, 0, "{sql}");
    }
    for sql in [
        "INSERT INTO reeve.webhook_events (tenant_id, id, event_type, body) VALUES ('b', 'msg_x', 'x.y', '{}')",
        "UPDATE reeve.webhook_endpoints SET tenant_id = 'b'",
    ] {
        let mut inner = sqlx::Acquire::begin(&mut *tx).await.expect("savepoint");
        let error = sqlx::query(sql).execute(&mut *inner).await.expect_err("refused").to_string();
        assert!(error.contains("row-level security"), "{sql}: {error}");
    }
    // Nor can the queue be reached past its functions, nor a function be called that is another program's.
    for sql in ["UPDATE reeve.jobs SET tenant_id = 'a'", "DELETE FROM reeve.audit_log", "SELECT reeve.rescue(1)"] {
        let mut inner = sqlx::Acquire::begin(&mut *tx).await.expect("savepoint");
        let error = sqlx::query(sql).execute(&mut *inner).await.expect_err("refused").to_string();
        assert!(error.contains("permission denied"), "{sql}: {error}");
    }
}

#[tokio::test]
async fn without_a_context_the_database_shows_nothing() {
    let (town, ..) = furnished().await;
    for pool in [&town.worker, &town.app] {
        let seen: i64 =
            sqlx::query_scalar("SELECT count(*) FROM reeve.webhook_endpoints").fetch_one(pool).await.expect("a count");
        assert_eq!(seen, 0);
        let seen: i64 = sqlx::query_scalar("SELECT count(*) FROM reeve.jobs").fetch_one(pool).await.expect("a count");
        assert_eq!(seen, 0);
    }
}

#[tokio::test]
async fn without_the_policies_the_scope_refuses_rows_and_writes_of_another_tenant() {
    let (town, _receiver, endpoint_b, _) = furnished().await;
    // With them, both tenants' rows are there and a scope sees its own.
    let mut scope = town.scope(&town.a).await;
    let own = scope.fetch_all::<Endpoint>(sqlx::query_as(ALL_ENDPOINTS)).await.expect("own rows");
    assert!(own.len() == 1 && own[0].url.ends_with("/a"), "{own:?}");
    drop(scope);
    without_policies(&town).await;
    let mut scope = town.scope(&town.a).await;
    let refused = scope.fetch_all::<Endpoint>(sqlx::query_as(ALL_ENDPOINTS)).await;
    assert!(matches!(refused, Err(ScopeError::Mismatch(_))), "{refused:?}");
    // By b's own id, one row as meant: only its owner gives it away.
    let disable = "UPDATE reeve.webhook_endpoints SET state = 'disabled' WHERE id = $1 RETURNING tenant_id";
    let refused = scope.write(sqlx::query_scalar(disable).bind(endpoint_b), Rows::Exactly(1)).await;
    assert!(matches!(refused, Err(ScopeError::Mismatch(_))), "{refused:?}");
    drop(scope);
    assert_eq!(town.count("SELECT count(*) FROM reeve.webhook_endpoints WHERE state = 'disabled'").await, 0);
}

#[tokio::test]
async fn a_write_that_changes_another_number_of_rows_than_it_means_to_is_refused() {
    let (town, ..) = furnished().await;
    let mut scope = town.scope(&town.a).await;
    let nobody = "UPDATE reeve.webhook_endpoints SET state = 'disabled' WHERE id = $1 RETURNING tenant_id";
    let refused = scope.write(sqlx::query_scalar(nobody).bind(Uuid::now_v7()), Rows::Exactly(1)).await;
    assert!(matches!(refused, Err(ScopeError::RowCount { changed: 0, .. })), "{refused:?}");
    let all = "UPDATE reeve.webhook_endpoints SET state = 'disabled' RETURNING tenant_id";
    let refused = scope.write(sqlx::query_scalar(all), Rows::AtMost(0)).await;
    assert!(matches!(refused, Err(ScopeError::RowCount { changed: 1, .. })), "{refused:?}");
}

/// A sweep names no row: with the policies gone it is the tenant in its statements that keeps it at home.
#[tokio::test]
async fn without_the_policies_a_sweep_leaves_other_tenants_rows() {
    let (town, ..) = furnished().await;
    without_policies(&town).await;
    for sql in [
        "UPDATE reeve.webhook_deliveries SET state = 'delivered', ended_at = now() - interval '90 days'",
        "UPDATE reeve.webhook_events SET created_at = now() - interval '90 days'",
        "DELETE FROM reeve.jobs",
        "SELECT reeve.ops_enqueue('a', 'webhook.prune', '{}', 'test', 'now')",
    ] {
        sqlx::query(sql).execute(&town.db.admin).await.expect("arranged");
    }
    let fleet = town.fleet(town.duties(), 1);
    until("a is swept", async || {
        town.count("SELECT count(*) FROM reeve.job_history WHERE state = 'completed'").await == 1
    })
    .await;
    fleet.stop().await;
    for table in ["webhook_events", "webhook_deliveries"] {
        let sql = format!("SELECT string_agg(tenant_id, ',') FROM reeve.{table}");
        let left: String = sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_one(&town.db.admin).await.expect("b's");
        assert_eq!(left, "b", "{table}");
    }
}

/// Runs the job to its end and asserts that it was refused, audited and quarantined, and that b's receiver saw nothing.
async fn is_quarantined(town: &Town, receiver: &Receiver, job: JobId) {
    let fleet = town.fleet(town.duties(), 4);
    until("the job is quarantined", async || town.state(job).await == "quarantined").await;
    fleet.stop().await;
    let audited: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM reeve.audit_log WHERE tenant_id = 'a' AND action = 'job.quarantined' AND job_id = $1",
    )
    .bind(job)
    .fetch_one(&town.db.admin)
    .await
    .expect("a count");
    assert_eq!(audited, 1);
    // b's own job delivers b's event once; the foreign job sent none.
    assert!(receiver.seen().iter().filter(|seen| seen.path == "/b").count() <= 1);
}

#[tokio::test]
async fn a_job_that_names_another_tenants_row_is_refused_audited_and_quarantined() {
    let (town, receiver, _, delivery_b) = furnished().await;
    let job = enqueue_delivery(&town, &town.a, delivery_b).await;
    is_quarantined(&town, &receiver, job).await;
    let error: String = sqlx::query_scalar("SELECT last_error FROM reeve.jobs WHERE id = $1")
        .bind(job)
        .fetch_one(&town.db.admin)
        .await
        .expect("its error");
    assert!(error.contains("another tenant's"), "{error}");
}

#[tokio::test]
async fn the_same_job_is_quarantined_with_the_policies_gone() {
    let (town, receiver, _, delivery_b) = furnished().await;
    without_policies(&town).await;
    let job = enqueue_delivery(&town, &town.a, delivery_b).await;
    is_quarantined(&town, &receiver, job).await;
}

#[tokio::test]
async fn a_row_that_is_nobodys_is_no_attack() {
    let (town, ..) = furnished().await;
    let job = enqueue_delivery(&town, &town.a, Uuid::now_v7()).await;
    let fleet = town.fleet(town.duties(), 4);
    until("the job is cancelled", async || town.state(job).await == "cancelled").await;
    fleet.stop().await;
    assert_eq!(town.count("SELECT count(*) FROM reeve.audit_log WHERE action = 'job.quarantined'").await, 0);
}

#[tokio::test]
async fn a_tenant_of_another_region_or_closed_gets_no_scope() {
    let town = Town::new().await;
    let context = TenantContext { region: "eu".into(), ..town.context(&town.a).await };
    let refused = Scope::open(&town.directory(), &context).await;
    assert!(matches!(refused, Err(ScopeError::Mismatch(ref why)) if why.contains("eu")), "{refused:?}");
    sqlx::query("UPDATE reeve.tenants SET state = 'closed' WHERE id = 'a'")
        .execute(&town.db.admin)
        .await
        .expect("closed");
    let refused = Scope::open(&town.directory(), &town.context(&town.a).await).await;
    assert!(matches!(refused, Err(ScopeError::Closed(_))), "{refused:?}");
}

#[tokio::test]
async fn a_database_that_holds_another_context_gets_no_scope() {
    let town = Town::new().await;
    // Whatever the reason may be (a pooler between, a function replaced): what is read back decides, not what was asked.
    sqlx::query("CREATE OR REPLACE FUNCTION reeve.held_tenant() RETURNS text LANGUAGE sql STABLE RETURN 'b'")
        .execute(&town.db.admin)
        .await
        .expect("replaced");
    let refused = Scope::open(&town.directory(), &town.context(&town.a).await).await;
    assert!(matches!(refused, Err(ScopeError::Mismatch(ref why)) if why.contains("\"b\"")), "{refused:?}");
}

/// A handler that must not be reached: it opens no scope, which would refuse too.
#[derive(Clone)]
struct Never;

impl Handler for Never {
    async fn handle(&self, _: &ClaimedJob, _: TenantContext, _: Work, _: &Progress) -> Outcome {
        Outcome::Done
    }
}

#[tokio::test]
async fn a_job_whose_tenant_is_pinned_elsewhere_reaches_no_handler() {
    let town = Town::new().await;
    let job = client::enqueue_alone(&town.app, &town.a, &ProbeFleet::default()).await.expect("enqueued");
    sqlx::query("UPDATE reeve.tenants SET region = 'eu' WHERE id = 'a'").execute(&town.db.admin).await.expect("moved");
    let fleet = town.fleet(Never, 2);
    until("the job is over", async || !["available", "running"].contains(&town.state(job).await.as_str())).await;
    fleet.stop().await;
    assert_eq!(town.state(job).await, "quarantined");
    assert_eq!(town.count("SELECT count(*) FROM reeve.audit_log WHERE action = 'job.quarantined'").await, 1);
}

#[tokio::test]
async fn a_job_whose_tenant_was_closed_after_the_claim_does_not_start() {
    let town = Town::new().await;
    client::enqueue_alone(&town.app, &town.a, &ProbeFleet::default()).await.expect("enqueued");
    let lane = Lane { queue: "probes".to_owned(), region: "default".to_owned() };
    let queue = PostgresQueue::new(town.worker.clone());
    let jobs = queue.claim(&lane, 1, "w", "", Duration::from_secs(30)).await.expect("a claim").jobs;
    sqlx::query("UPDATE reeve.tenants SET state = 'closed' WHERE id = 'a'")
        .execute(&town.db.admin)
        .await
        .expect("closed");
    let lease = Leases::new(Duration::from_secs(30)).hold(&jobs, Instant::now()).remove(0);
    let job = Job::new(jobs[0].clone(), lease);
    let region: Arc<str> = "default".into();
    let ended = attempt::tenant_asserted(job, async { Outcome::Done }, town.directory(), region).await;
    assert!(matches!(ended, Outcome::Cancel { ref why } if why.contains("is closed")), "{ended:?}");
}

/// Polls `work` until its n-th wait, and drops it there. Returns whether it came to its end before.
async fn dropped_at_wait<T>(n: usize, work: impl Future<Output = T>) -> bool {
    let mut work = std::pin::pin!(work);
    let mut waits = 0;
    std::future::poll_fn(|cx| {
        if work.as_mut().poll(cx).is_ready() {
            return Poll::Ready(true);
        }
        waits += 1;
        if waits == n { Poll::Ready(false) } else { Poll::Pending }
    })
    .await
}

/// A future that is dropped while its scope opens or works, at every point where it can be, leaves nothing behind for
/// whoever takes the connection next: no context, no row, and no open transaction. One connection, so that the next user
/// gets that very one.
#[tokio::test]
async fn a_cancelled_scope_leaves_no_context_behind() {
    let (town, ..) = furnished().await;
    let pool = reeve_jobs::program::db::pool(town.db.options("reeve_worker"), 1).await.expect("a pool");
    let directory = reeve_jobs::tenant::Directory::new(pool.clone());
    let context = town.context(&town.a).await;
    for _ in 0..20 {
        for n in 1.. {
            let ended = dropped_at_wait(n, async {
                let mut scope = Scope::open(&directory, &context).await?;
                scope.fetch_all::<Endpoint>(sqlx::query_as(ALL_ENDPOINTS)).await?;
                scope.commit().await
            })
            .await;
            let mut next = pool.acquire().await.expect("a connection");
            let (seen, context): (i64, Option<String>) = sqlx::query_as(
                "SELECT (SELECT count(*) FROM reeve.webhook_endpoints),
                        nullif(current_setting('reeve.tenant_id', true), '')",
            )
            .fetch_one(&mut *next)
            .await
            .expect("the next user's query works");
            assert_eq!((seen, context), (0, None), "dropped at wait {n}");
            let mut transactions = Vec::new();
            for _ in 0..2 {
                let id: String = sqlx::query_scalar("SELECT pg_current_xact_id()::text")
                    .fetch_one(&mut *next)
                    .await
                    .expect("the next user's query works");
                transactions.push(id);
            }
            assert_ne!(transactions[0], transactions[1], "handed on inside a transaction; dropped at wait {n}");
            if ended {
                break;
            }
        }
    }
}

/// The second layer behind a scope's own rollback: whoever leaves a connection inside a transaction, the pool does not hand
/// it on.
#[tokio::test]
async fn a_connection_that_comes_back_inside_a_transaction_is_not_handed_on() {
    let (town, ..) = furnished().await;
    let pool = reeve_jobs::program::db::pool(town.db.options("reeve_worker"), 1).await.expect("a pool");
    for failed in [false, true] {
        let mut left = pool.acquire().await.expect("a connection");
        sqlx::raw_sql("BEGIN").execute(&mut *left).await.expect("begun behind the driver's back");
        town.hold(&mut left, &town.a).await;
        if failed {
            sqlx::raw_sql("SELECT 1 / 0").execute(&mut *left).await.expect_err("failed");
        }
        drop(left);
        let mut next = pool.acquire().await.expect("a connection");
        let context: Option<String> = sqlx::query_scalar("SELECT nullif(current_setting('reeve.tenant_id', true), '')")
            .fetch_one(&mut *next)
            .await
            .expect("the next user's query works");
        assert_eq!(context, None);
    }
}

/// The program refuses another region's tenant by itself: the database, which would refuse too, is not even asked.
#[tokio::test]
async fn a_tenant_of_another_region_is_refused_before_its_database_is_asked() {
    let town = Town::new().await;
    let pool = reeve_jobs::program::db::pool(town.db.options("reeve_worker"), 1).await.expect("a pool");
    let directory = reeve_jobs::tenant::Directory::new(pool.clone());
    let context = town.context(&town.a).await;
    drop(Scope::open(&directory, &context).await.expect("a scope; the directory knows the tenant now"));
    pool.close().await;
    let asked = Scope::open(&directory, &context).await;
    assert!(matches!(asked, Err(ScopeError::Database(sqlx::Error::PoolClosed))), "{asked:?}");
    let elsewhere = TenantContext { region: "eu".into(), ..context };
    let refused = Scope::open(&directory, &elsewhere).await;
    assert!(matches!(refused, Err(ScopeError::Mismatch(_))), "{refused:?}");
}

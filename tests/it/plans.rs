//! How the queue's hot statements read a million jobs: by index, and few entries of it.
//!
//! Not what EXPLAIN says of a statement's text: these run inside functions, under plans that a session keeps. So each is
//! carried out, and the server's own counters of the transaction tell what was read. One set of sessions made its plans
//! while the queue was empty, and nothing told the planner that it no longer is; the other comes after ANALYZE.
use reeve_jobs::{
    TenantContext, TenantId, client,
    job::{ClaimedJob, Outcome},
    kinds::Work,
    testing::TestDatabase,
};
use reeve_worker::runtime::{Handler, Progress};
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};
use uuid::Uuid;

use crate::support::{Town, until};

const JOBS: i64 = 1_000_000;

/// A statement, who runs it, and how many index entries it may read.
struct Hot {
    name: &'static str,
    role: &'static str,
    sql: &'static str,
    entries_max: i64,
}

const fn hot(name: &'static str, role: &'static str, sql: &'static str, entries_max: i64) -> Hot {
    Hot { name, role, sql, entries_max }
}

/// `$1` and `$2`: ids and tokens of a hundred running jobs; `$3` a waiting job, `$4` a hundred. Every statement names the
/// first three.
const HOT: &[Hot] = &[
    hot("enqueue", "reeve_app", "SELECT reeve.enqueue('fleet.probe', '{}') WHERE ($1, $2, $3) IS NOT NULL", 20),
    hot(
        "enqueue with a key",
        "reeve_app",
        "SELECT reeve.enqueue('fleet.probe', '{}', dedupe_key => 'taken') WHERE ($1, $2, $3) IS NOT NULL",
        40,
    ),
    hot(
        "enqueue_many",
        "reeve_app",
        "SELECT count(*) FROM reeve.enqueue_many((SELECT jsonb_agg(jsonb_build_object('kind', 'fleet.probe'))
           FROM generate_series(1, 100))) WHERE ($1, $2, $3) IS NOT NULL",
        400,
    ),
    hot(
        "claim, among two thousand tenants",
        "reeve_worker",
        "SELECT count(*) FROM reeve.claim('probes', 'default', 100, 'w', '', 30) WHERE ($1, $2, $3) IS NOT NULL",
        2_000,
    ),
    hot(
        "claim, one tenant only",
        "reeve_worker",
        "SELECT count(*) FROM reeve.claim('webhooks', 'default', 100, 'w', '', 30) WHERE ($1, $2, $3) IS NOT NULL",
        1_500,
    ),
    hot(
        "claim of an idle queue",
        "reeve_worker",
        "SELECT count(*) FROM reeve.claim('maintenance', 'default', 100, 'w', '', 30) WHERE ($1, $2, $3) IS NOT NULL",
        50,
    ),
    hot(
        "take_up",
        "reeve_worker",
        "SELECT count(*) FROM reeve.take_up('probes', 'default', $4, 100, 'w', 30) WHERE ($1, $2, $3) IS NOT NULL",
        1_500,
    ),
    hot(
        "window_jobs",
        "reeve_scheduler",
        "SELECT count(*) FROM reeve.window_jobs('probes', 'default',
           reeve.window_tenants('probes', 'default', '', 100), 100) WHERE ($1, $2, $3) IS NOT NULL",
        2_000,
    ),
    hot(
        "mark_started",
        "reeve_worker",
        "SELECT reeve.mark_started(($1::uuid[])[1], ($2::uuid[])[1]) WHERE $3 IS NOT NULL",
        20,
    ),
    hot("renew", "reeve_worker", "SELECT count(*) FROM reeve.renew($1, $2, 30) WHERE $3 IS NOT NULL", 500),
    hot(
        "report_progress",
        "reeve_worker",
        "SELECT reeve.report_progress($1, $2, array_fill('s'::text, ARRAY[100]), array_fill(1::bigint, ARRAY[100]),
           array_fill(2::bigint, ARRAY[100]), $1, $2) WHERE $3 IS NOT NULL",
        1_000,
    ),
    hot(
        "settle",
        "reeve_worker",
        "SELECT count(*) FROM reeve.settle($1, $2, array_fill('completed'::text, ARRAY[100]),
           array_fill(0::double precision, ARRAY[100]), array_fill(NULL::text, ARRAY[100])) WHERE $3 IS NOT NULL",
        1_000,
    ),
    hot(
        "settle for a retry",
        "reeve_worker",
        "SELECT count(*) FROM reeve.settle($1, $2, array_fill('retry'::text, ARRAY[100]),
           array_fill(10::double precision, ARRAY[100]), array_fill('e'::text, ARRAY[100])) WHERE $3 IS NOT NULL",
        1_000,
    ),
    hot(
        "tenant_entries",
        "reeve_worker",
        "SELECT count(*) FROM reeve.tenant_entries(ARRAY(SELECT 't' || lpad(g::text, 4, '0') FROM generate_series(1, 100) g))
         WHERE ($1, $2, $3) IS NOT NULL",
        400,
    ),
    hot("promote", "reeve_scheduler", "SELECT reeve.promote(100) WHERE ($1, $2, $3) IS NOT NULL", 1_000),
    // Among all that run: no index has the leases' time, for each renewal would have to keep it.
    hot("rescue", "reeve_scheduler", "SELECT count(*) FROM reeve.rescue(100) WHERE ($1, $2, $3) IS NOT NULL", 15_000),
    hot("why", "reeve_ops", "SELECT reeve.why($3) WHERE ($1, $2) IS NOT NULL", 20_000),
];

/// What is held for the statements.
struct Held {
    ids: Vec<Uuid>,
    tokens: Vec<Uuid>,
    waiting: Uuid,
    ready: Vec<Uuid>,
}

/// A session of each role, which keeps its plans.
struct Sessions(Vec<(&'static str, PgConnection)>);

impl Sessions {
    async fn open(town: &Town) -> Self {
        let mut all = Vec::new();
        for role in ["reeve_app", "reeve_worker", "reeve_scheduler", "reeve_ops"] {
            all.push((role, PgConnection::connect_with(&town.db.options(role)).await.expect("a session")));
        }
        Self(all)
    }

    fn of(&mut self, role: &str) -> &mut PgConnection {
        &mut self.0.iter_mut().find(|(name, _)| *name == role).expect("one of the four").1
    }

    /// Runs a statement in a transaction that is undone: sequential scans of the queue's tables, and index entries read.
    async fn run(&mut self, hot: &Hot, held: &Held, tenant: &TenantId, big: &[Vec<i64>; 2]) -> (i64, i64) {
        let mut tx = self.of(hot.role).begin().await.expect("begin");
        client::set_tenant(&mut tx, tenant).await.expect("context");
        let before = counters(&mut tx, big).await;
        let statement = sqlx::query(hot.sql).bind(&held.ids).bind(&held.tokens).bind(held.waiting);
        let statement = if hot.sql.contains("$4") { statement.bind(&held.ready) } else { statement };
        statement.execute(&mut *tx).await.unwrap_or_else(|error| panic!("{}: {error}", hot.name));
        let after = counters(&mut tx, big).await;
        tx.rollback().await.expect("rollback");
        (after.0 - before.0, after.1 - before.1)
    }
}

async fn counters(tx: &mut PgConnection, [tables, indexes]: &[Vec<i64>; 2]) -> (i64, i64) {
    let row = sqlx::query(
        "SELECT (SELECT sum(pg_stat_get_xact_numscans(t::oid))::bigint FROM unnest($1) t),
                (SELECT sum(pg_stat_get_xact_tuples_returned(i::oid))::bigint FROM unnest($2) i)",
    )
    .bind(tables)
    .bind(indexes)
    .fetch_one(tx)
    .await
    .expect("counters");
    (row.get(0), row.get(1))
}

/// The queue's tables that grow, and all indexes of Reeve's, by their numbers.
async fn big_relations(town: &Town) -> [Vec<i64>; 2] {
    let of = async |sql: &'static str| sqlx::query_scalar(sql).fetch_all(&town.db.admin).await.expect("relations");
    [
        of("SELECT c.oid::bigint FROM pg_class c WHERE c.relnamespace = 'reeve'::regnamespace AND c.relkind = 'r'
            AND c.relname ~ '^(jobs|job_attempts|job_history.*|job_progress|tenants|audit_log.*)$'")
        .await,
        of("SELECT c.oid::bigint FROM pg_class c WHERE c.relnamespace = 'reeve'::regnamespace AND c.relkind = 'i'")
            .await,
    ]
}

/// A million jobs: of one tenant in two queues nearly all; two jobs of each of two thousand others; ten thousand that run,
/// a hundred of which lost their worker, and some of every other state.
async fn fill(town: &Town) {
    for sql in [
        "INSERT INTO reeve.tenants (id, name, region) SELECT 't' || lpad(g::text, 4, '0'), 'T', 'default' FROM generate_series(1, 2000) g",
        "INSERT INTO reeve.jobs (id, tenant_id, kind, queue, region, state, priority, attempt, attempts_max, run_at, lease_token,
                                 lease_expires_at, worker, payload)
         SELECT reeve.new_id(), CASE WHEN g % 250 = 0 THEN 't' || lpad((g / 500 + 1)::text, 4, '0') ELSE 'a' END,
                CASE g % 2 WHEN 0 THEN 'fleet.probe' ELSE 'webhook.deliver' END, CASE g % 2 WHEN 0 THEN 'probes' ELSE 'webhooks' END,
                'default', s.state, 3, (s.state = 'running')::integer, 3,
                now() + CASE WHEN s.state IN ('scheduled', 'retryable') AND g % 1000 >= 15 THEN interval '1 day' ELSE interval '-1 min' END,
                CASE WHEN s.state = 'running' THEN gen_random_uuid() END,
                now() + CASE WHEN s.state = 'running' THEN CASE WHEN g % 1000 = 9 AND g % 10000 = 9 THEN interval '-1 min' ELSE interval '1 h' END END, 'w', '{}'
         FROM generate_series(1, 1000000) g
         CROSS JOIN LATERAL (SELECT CASE WHEN g % 1000 < 10 THEN 'running' WHEN g % 1000 < 20 THEN 'scheduled'
                               WHEN g % 1000 < 25 THEN 'retryable' WHEN g % 1000 < 30 THEN 'dead' ELSE 'available' END AS state) s",
        "UPDATE reeve.jobs SET unique_key = 'taken' WHERE id = (SELECT id FROM reeve.jobs WHERE tenant_id = 'a'
         AND kind = 'fleet.probe' AND state = 'available' LIMIT 1)",
    ] {
        sqlx::query(sql).execute(&town.db.admin).await.expect("filled");
    }
}

async fn held(town: &Town) -> Held {
    let rows = sqlx::query(
        "SELECT id, lease_token FROM reeve.jobs WHERE state = 'running' AND lease_expires_at > now() ORDER BY id LIMIT 100",
    )
    .fetch_all(&town.db.admin)
    .await
    .expect("running jobs");
    Held {
        ids: rows.iter().map(|row| row.get(0)).collect(),
        tokens: rows.iter().map(|row| row.get(1)).collect(),
        waiting: sqlx::query_scalar(
            "SELECT id FROM reeve.jobs WHERE tenant_id = 't0001' AND state = 'available' LIMIT 1",
        )
        .fetch_one(&town.db.admin)
        .await
        .expect("a waiting job"),
        ready: sqlx::query_scalar(
            "SELECT id FROM reeve.jobs WHERE queue = 'probes' AND state = 'available' AND tenant_id > 't' LIMIT 100",
        )
        .fetch_all(&town.db.admin)
        .await
        .expect("ready jobs"),
    }
}

#[derive(Clone)]
struct Nothing;

impl Handler for Nothing {
    async fn handle(&self, _: &ClaimedJob, _: TenantContext, _: Work, _: &Progress) -> Outcome {
        Outcome::Done
    }
}

/// Three hundred jobs, each of another tenant, and how often the server was asked where a tenant is.
#[tokio::test]
async fn the_tenants_of_a_claim_are_looked_up_together() {
    let db = TestDatabase::new().await;
    sqlx::query(AssertSqlSafe(format!("ALTER DATABASE {} SET track_functions = 'all'", db.name)))
        .execute(&db.admin)
        .await
        .expect("set");
    let town = Town::in_database(db).await;
    for sql in [
        "INSERT INTO reeve.tenants (id, name, region) SELECT 't' || lpad(g::text, 4, '0'), 'T', 'default' FROM generate_series(1, 300) g",
        "INSERT INTO reeve.jobs (id, tenant_id, kind, queue, region, state, priority, attempts_max, run_at, payload)
         SELECT reeve.new_id(), t.id, 'fleet.probe', 'probes', 'default', 'available', 3, 3, now(), '{}' FROM reeve.tenants t
         WHERE t.id LIKE 't%'",
    ] {
        sqlx::query(sql).execute(&town.db.admin).await.expect("filled");
    }
    let fleet = town.fleet(Nothing, 100);
    until("all are done", async || town.count("SELECT count(*) FROM reeve.jobs").await == 0).await;
    fleet.stop().await;
    // Sessions tell what they counted when they end.
    town.worker.close().await;
    let asked = async || {
        town.count(
            "SELECT coalesce(sum(calls), 0)::bigint FROM pg_stat_user_functions WHERE funcname = 'tenant_entries'",
        )
        .await
    };
    until("the sessions have told", async || asked().await > 0).await;
    assert!(asked().await < 30, "asked {} times", asked().await);
}

#[tokio::test]
async fn hot_statements_read_few_index_entries_of_a_million_jobs() {
    let town = Town::new().await;
    // Nothing may tell the planner that the queue has filled.
    sqlx::query("ALTER TABLE reeve.jobs SET (autovacuum_enabled = false)").execute(&town.db.admin).await.expect("set");
    let big = big_relations(&town).await;
    let mut early = Sessions::open(&town).await;
    let nothing =
        Held { ids: vec![Uuid::nil(); 100], tokens: vec![Uuid::nil(); 100], waiting: Uuid::nil(), ready: vec![] };
    for hot in HOT {
        early.run(hot, &nothing, &town.a, &big).await;
    }
    fill(&town).await;
    let held = held(&town).await;
    assert_eq!(held.ids.len(), 100);
    let mut wrong = Vec::new();
    check("plans of the empty queue", &mut early, &held, &town.a, &big, &mut wrong).await;
    sqlx::query("ANALYZE").execute(&town.db.admin).await.expect("analyzed");
    let jobs: i64 = sqlx::query_scalar("SELECT reltuples::bigint FROM pg_class WHERE oid = 'reeve.jobs'::regclass")
        .fetch_one(&town.db.admin)
        .await
        .expect("a count");
    assert!(jobs > JOBS * 9 / 10, "the planner believes in {jobs} jobs");
    check("plans of the full queue", &mut Sessions::open(&town).await, &held, &town.a, &big, &mut wrong).await;
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

async fn check(
    when: &str,
    sessions: &mut Sessions,
    held: &Held,
    tenant: &TenantId,
    big: &[Vec<i64>; 2],
    wrong: &mut Vec<String>,
) {
    for hot in HOT {
        let (scans, entries) = sessions.run(hot, held, tenant, big).await;
        if scans > 0 || entries > hot.entries_max {
            wrong.push(format!(
                "{when}: {}: {scans} sequential scans, {entries} index entries (at most {})",
                hot.name, hot.entries_max
            ));
        }
    }
}

//! The context as a capability: a worker's connection reaches the rows of tenants whose jobs it holds now, whatever SQL runs
//! on it. Each test is an attack with the worker's own login, as SQL injected into a handler would run.
use std::time::Duration;

use reeve_jobs::{
    TenantContext, TenantId, client,
    job::{ClaimedJob, Outcome},
    kinds::ProbeFleet,
    queue::{Lane, PostgresQueue, Queue, Settlement},
    tenant::{Proof, Rows, Scope, ScopeError},
};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::support::Town;

/// Both tenants' probes, claimed under the real function, a's first; and the texts of their proofs.
async fn held(town: &Town) -> (Vec<ClaimedJob>, Vec<String>) {
    for tenant in [&town.a, &town.b] {
        client::enqueue_alone(&town.app, tenant, &ProbeFleet::default()).await.expect("enqueued");
    }
    let lane = Lane { queue: "probes".to_owned(), region: "default".to_owned() };
    let claim = PostgresQueue::new(town.worker.clone());
    let mut jobs = claim.claim(&lane, 2, "w", "", Duration::from_secs(30)).await.expect("a claim").jobs;
    jobs.sort_by(|x, y| x.tenant.cmp(&y.tenant));
    assert_eq!(jobs.iter().map(|job| job.tenant.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    let texts = jobs.iter().map(|job| text(&job.proof)).collect();
    (jobs, texts)
}

/// A proof's text is not for printing, so it is taken from where it is used.
fn text(proof: &Proof) -> String {
    proof.clone().into_secret_text()
}

/// Runs `sql` on the worker's login, in a transaction that names `tenant` and shows `context`. The code of the refusal.
async fn tries(town: &Town, tenant: &str, context: &str, sql: &str) -> Result<i64, String> {
    let mut worker = PgConnection::connect_with(&town.db.options("reeve_worker")).await.expect("the worker's login");
    let mut tx = worker.begin().await.expect("begin");
    sqlx::query("SELECT set_config('reeve.tenant_id', $1, true), set_config('reeve.context', $2, true)")
        .bind(tenant)
        .bind(context)
        .execute(&mut *tx)
        .await
        .expect("anybody may set a setting");
    sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_one(&mut *tx).await.map_err(|error| {
        error.as_database_error().and_then(|db| db.code()).map_or_else(|| error.to_string(), |code| code.into_owned())
    })
}

const JOBS: &str = "SELECT count(*) FROM reeve.jobs";

/// The context with its n-th part replaced.
fn with_part(context: &str, n: usize, part: &str) -> String {
    let mut parts: Vec<_> = context.split('/').collect();
    parts[n] = part;
    parts.join("/")
}

#[tokio::test]
async fn what_was_claimed_shows_its_tenants_rows_and_nothing_else_does() {
    let town = Town::new().await;
    let (jobs, contexts) = held(&town).await;
    let (a, b) = (contexts[0].as_str(), contexts[1].as_str());
    assert_eq!(tries(&town, "a", a, JOBS).await, Ok(1));
    assert_eq!(tries(&town, "b", b, JOBS).await, Ok(1));
    assert_eq!(tries(&town, "", "", JOBS).await, Ok(0), "who names no tenant sees nothing");
    let later = with_part(a, 3, "9999999999");
    let other_job = with_part(a, 1, &jobs[1].id.to_string());
    let as_session = with_part(a, 0, "s");
    let other_key = with_part(a, 4, "00007");
    for (tenant, context, what) in [
        ("b", a, "another tenant's proof"),
        ("a", b, "another tenant's proof"),
        ("a", &later, "a stretched time"),
        ("a", &other_job, "another job's number"),
        ("a", &as_session, "a job's proof as a session's"),
        ("a", &other_key, "a key that does not exist"),
        ("b", "j/1/x/y/9/z", "garbage"),
        ("b", &a[..a.len() - 1], "a MAC cut short"),
    ] {
        assert_eq!(tries(&town, tenant, context, JOBS).await, Err("RV011".to_owned()), "{what}");
    }
    assert_eq!(tries(&town, "b", "", JOBS).await, Err("RV014".to_owned()), "no proof");
    let no_uuid = with_part(a, 1, &"x".repeat(36)).replace(&"x".repeat(36), "xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx");
    assert_eq!(tries(&town, "a", &no_uuid, JOBS).await, Err("22P02".to_owned()), "a number that is none");
}

#[tokio::test]
async fn neither_the_key_nor_what_makes_proofs_is_in_a_workers_reach() {
    let town = Town::new().await;
    let (_, contexts) = held(&town).await;
    let denied = Err("42501".to_owned());
    for sql in [
        "SELECT count(*) FROM reeve.context_keys",
        "SELECT count(*) FROM reeve.placement_keys",
        "SELECT count(*) FROM reeve.identity",
        "SELECT length(reeve.open_session('b', 'me', 'because', 5))::bigint",
        "SELECT reeve.rotate_context_key('me', 'because')::bigint",
        "SELECT length(reeve.context_mac('', '', 'j/…', 'b'))::bigint",
        "WITH off AS (UPDATE reeve.settings SET context_verified = false RETURNING 1) SELECT count(*) FROM off",
        "WITH mine AS (UPDATE reeve.jobs SET tenant_id = 'b' RETURNING 1) SELECT count(*) FROM mine",
    ] {
        assert_eq!(tries(&town, "a", &contexts[0], sql).await, denied, "{sql}");
    }
}

#[tokio::test]
async fn a_temporary_table_does_not_stand_in_for_the_key() {
    let town = Town::new().await;
    let (_, contexts) = held(&town).await;
    let mut worker = PgConnection::connect_with(&town.db.options("reeve_worker")).await.expect("the worker's login");
    sqlx::raw_sql(
        "CREATE TEMP TABLE context_keys (kid integer, inner_pad bytea, outer_pad bytea);
         INSERT INTO context_keys VALUES (1, '', '');
         CREATE TEMP TABLE settings (context_verified boolean);
         INSERT INTO settings VALUES (false);
         SET search_path = pg_temp, reeve, pg_catalog",
    )
    .execute(&mut worker)
    .await
    .expect("a worker may have temporary tables");
    let mut tx = worker.begin().await.expect("begin");
    sqlx::query("SELECT set_config('reeve.tenant_id', 'b', true), set_config('reeve.context', $1, true)")
        .bind(&contexts[0])
        .execute(&mut *tx)
        .await
        .expect("set");
    let refused = sqlx::query("SELECT count(*) FROM reeve.jobs").fetch_one(&mut *tx).await.expect_err("refused");
    assert_eq!(refused.as_database_error().and_then(|db| db.code()).as_deref(), Some("RV011"), "{refused}");
}

#[tokio::test]
async fn doors_that_write_ask_for_the_same_proof() {
    let town = Town::new().await;
    let (_, contexts) = held(&town).await;
    town.endpoint(&town.a, "http://127.0.0.1:9/").await;
    let mut tx = town.app.begin().await.expect("begin");
    client::set_tenant(&mut tx, &town.a).await.expect("context");
    client::emit(&mut tx, "contact.updated", &serde_json::json!({})).await.expect("a delivery");
    tx.commit().await.expect("commit");
    let delivery: String = sqlx::query_scalar("SELECT id::text FROM reeve.webhook_deliveries")
        .fetch_one(&town.db.admin)
        .await
        .expect("a delivery");
    let is_foreign = format!("SELECT reeve.delivery_is_foreign('{delivery}')::integer::bigint");
    let forged = Err("RV011".to_owned());
    let audit = "SELECT length(reeve.audit('worker', 'thing.done', 'x'))::bigint";
    assert_eq!(tries(&town, "a", &contexts[0], audit).await, Ok(1));
    let insert = "WITH made AS (INSERT INTO reeve.webhook_events (tenant_id, id, event_type, body)
                  VALUES ('b', 'msg_x', 'x.y', '{}') RETURNING 1) SELECT count(*) FROM made";
    for sql in [audit, insert, is_foreign.as_str(), "SELECT length(reeve.held_flag('kind.fleet.probe')::text)::bigint"]
    {
        assert_eq!(tries(&town, "b", &contexts[0], sql).await, forged, "{sql}");
    }
    // Named honestly and written for another: the policy's own refusal.
    assert_eq!(tries(&town, "a", &contexts[0], insert).await, Err("42501".to_owned()));
}

/// Whoever lost the lease is fenced at the next statement, in the middle of the scope that is open.
#[tokio::test]
async fn a_zombie_is_fenced_by_the_database_in_the_middle_of_its_scope() {
    let town = Town::new().await;
    let (jobs, contexts) = held(&town).await;
    let context = TenantContext::new(town.a.clone(), "default", jobs[0].proof.clone());
    let mut scope = Scope::open(&town.directory(), &context).await.expect("it holds the lease");
    let disable = || sqlx::query_scalar("UPDATE reeve.webhook_endpoints SET state = 'disabled' RETURNING tenant_id");
    scope.write(disable(), Rows::AtMost(0)).await.expect("there is none");
    // The lease runs out and another worker claims the job.
    sqlx::query("UPDATE reeve.jobs SET lease_expires_at = now() - interval '1 s' WHERE id = $1")
        .bind(jobs[0].id)
        .execute(&town.db.admin)
        .await
        .expect("run out");
    sqlx::query("SELECT reeve.rescue(10)").execute(&town.db.admin).await.expect("rescued");
    let error = scope.write(disable(), Rows::AtMost(0)).await.expect_err("no longer its job");
    assert!(error.to_string().contains("lease is no longer held"), "{error}");
    assert_eq!(error.into_outcome(), Outcome::Interrupted, "no failure of the job's");
    assert_eq!(tries(&town, "a", &contexts[0], JOBS).await, Err("RV013".to_owned()));
    assert_eq!(tries(&town, "b", &contexts[1], JOBS).await, Ok(1), "the neighbour's lease is its own");
    // And the next holder is let in.
    let lane = Lane { queue: "probes".to_owned(), region: "default".to_owned() };
    let queue = PostgresQueue::new(town.worker.clone());
    let again = queue.claim(&lane, 2, "w2", "", Duration::from_secs(30)).await.expect("a claim").jobs;
    assert_eq!(tries(&town, "a", &text(&again[0].proof), JOBS).await, Ok(1));
}

#[tokio::test]
async fn a_settled_jobs_proof_opens_nothing() {
    let town = Town::new().await;
    let (jobs, contexts) = held(&town).await;
    let settlement = Settlement {
        job: jobs[0].id,
        token: jobs[0].lease_token,
        outcome: "completed",
        delay: Duration::ZERO,
        error: None,
    };
    PostgresQueue::new(town.worker.clone()).settle(&[settlement]).await.expect("settled");
    assert_eq!(tries(&town, "a", &contexts[0], JOBS).await, Err("RV013".to_owned()));
}

/// Makes a proof as the database would, with the time of one's choice.
async fn minted(town: &Town, job: &ClaimedJob, exp: &str) -> String {
    let sql = format!(
        "SELECT h.head || '/' || reeve.context_mac(k.inner_pad, k.outer_pad, h.head, $3)
         FROM reeve.context_keys k CROSS JOIN LATERAL (SELECT reeve.context_head('j', $1, $2, {exp}, k.kid) AS head) h"
    );
    sqlx::query_scalar(AssertSqlSafe(sql))
        .bind(job.id)
        .bind(job.lease_token)
        .bind(job.tenant.as_str())
        .fetch_one(&town.db.admin)
        .await
        .expect("a proof")
}

#[tokio::test]
async fn a_proof_past_its_time_gives_the_job_back_and_a_claims_outlives_the_attempt() {
    let town = Town::new().await;
    let (jobs, contexts) = held(&town).await;
    let past = minted(&town, &jobs[0], "(extract(epoch FROM now()) - 1)::bigint").await;
    assert_eq!(tries(&town, "a", &past, JOBS).await, Err("RV012".to_owned()));
    let context = TenantContext::new(town.a.clone(), "default", Proof::new(&past));
    let refused = Scope::open(&town.directory(), &context).await.expect_err("past its time");
    assert_eq!(refused.into_outcome(), Outcome::Interrupted);
    let left: i64 = sqlx::query_scalar("SELECT $1::bigint - extract(epoch FROM now())::bigint")
        .bind(contexts[0].split('/').nth(3).expect("a time").parse::<i64>().expect("a number"))
        .fetch_one(&town.db.admin)
        .await
        .expect("a difference");
    let budget = i64::try_from(reeve_jobs::Kind::FleetProbe.spec().budget_secs).expect("small");
    assert!((budget + 200..=budget + 300).contains(&left), "{left} s");
}

#[tokio::test]
async fn a_scope_with_anothers_proof_quarantines_its_job() {
    let town = Town::new().await;
    let (jobs, _) = held(&town).await;
    let open = async |proof| {
        let context = TenantContext::new(town.a.clone(), "default", proof);
        Scope::open(&town.directory(), &context).await.expect_err("refused").into_outcome()
    };
    let outcome = open(Proof::none()).await;
    assert!(matches!(outcome, Outcome::Retry { .. }), "a fault of the program's, and no attack: {outcome:?}");
    let outcome = open(jobs[1].proof.clone()).await;
    assert!(matches!(outcome, Outcome::Quarantine { .. }), "{outcome:?}");
}

#[tokio::test]
async fn a_new_key_keeps_the_last_proofs_good_and_ends_older_ones() {
    let town = Town::new().await;
    let (_, contexts) = held(&town).await;
    let rotate = "SELECT reeve.rotate_context_key('cli:a', 'a year has passed')";
    let ops = town.db.pool("reeve_ops").await;
    sqlx::query(rotate).execute(&ops).await.expect("rotated");
    assert_eq!(tries(&town, "a", &contexts[0], JOBS).await, Ok(1));
    client::enqueue_alone(&town.app, &town.a, &ProbeFleet::default()).await.expect("enqueued");
    let lane = Lane { queue: "probes".to_owned(), region: "default".to_owned() };
    let queue = PostgresQueue::new(town.worker.clone());
    let newer = queue.claim(&lane, 1, "w", "", Duration::from_secs(30)).await.expect("a claim").jobs.remove(0);
    assert_eq!(text(&newer.proof).split('/').nth(4), Some("00002"));
    assert_eq!(tries(&town, "a", &text(&newer.proof), JOBS).await, Ok(2));
    sqlx::query(rotate).execute(&ops).await.expect("rotated again");
    assert_eq!(tries(&town, "a", &contexts[0], JOBS).await, Err("RV011".to_owned()));
    assert_eq!(tries(&town, "a", &text(&newer.proof), JOBS).await, Ok(2));
    assert_eq!(town.count("SELECT count(*) FROM reeve.audit_log WHERE action = 'key.context_rotated'").await, 2);
}

#[tokio::test]
async fn an_operators_session_opens_one_tenant_and_is_recorded() {
    let town = Town::new().await;
    let ops = town.db.pool("reeve_ops").await;
    let session = "SELECT reeve.open_session('a', 'cli:kim', 'register an endpoint', 5)";
    let context: String = sqlx::query_scalar(session).fetch_one(&ops).await.expect("a session");
    assert_eq!(tries(&town, "a", &context, "SELECT count(*) FROM reeve.tenants").await, Ok(1));
    let refused = tries(&town, "b", &context, "SELECT count(*) FROM reeve.tenants").await;
    assert_eq!(refused, Err("RV011".to_owned()));
    let recorded: (String, String) = sqlx::query_as(
        "SELECT l.actor, b.reason FROM reeve.audit_log l JOIN reeve.audit_bodies b USING (tenant_id, seq)
         WHERE l.tenant_id = 'a' AND l.action = 'session.opened'",
    )
    .fetch_one(&town.db.admin)
    .await
    .expect("an entry");
    assert_eq!(recorded, ("cli:kim".to_owned(), "register an endpoint".to_owned()));
    // The proof alone is nothing to the operators' login.
    let mut tx = ops.begin().await.expect("begin");
    sqlx::query("SELECT set_config('reeve.tenant_id', 'a', true), set_config('reeve.context', $1, true)")
        .bind(&context)
        .execute(&mut *tx)
        .await
        .expect("set");
    let refused = sqlx::query("SELECT * FROM reeve.webhook_secrets").execute(&mut *tx).await.expect_err("no right");
    assert!(refused.to_string().contains("permission denied"), "{refused}");
    for (sql, code) in [
        ("SELECT reeve.open_session('nobody', 'cli:kim', 'x', 5)", "RV003"),
        ("SELECT reeve.open_session('a', 'cli:kim', ' ', 5)", "RV005"),
        ("SELECT reeve.open_session('a', 'cli:kim', 'x', 61)", "RV005"),
    ] {
        let refused = sqlx::query(sql).execute(&ops).await.expect_err(sql);
        assert_eq!(refused.as_database_error().and_then(|db| db.code()).as_deref(), Some(code), "{refused}");
    }
}

/// What a database becomes that is one tenant's own: its key is its own, and there are no leases in it.
#[tokio::test]
async fn a_dedicated_database_takes_its_own_tenants_proofs_only() {
    let town = Town::new().await;
    sqlx::raw_sql(
        "INSERT INTO reeve.placement_keys SELECT 'a', reeve.padded_key('\\x01', 54), reeve.padded_key('\\x01', 92);
         INSERT INTO reeve.placement_keys SELECT 'b', reeve.padded_key('\\x01', 54), reeve.padded_key('\\x01', 92)",
    )
    .execute(&town.db.admin)
    .await
    .expect("a key for each, alike, so that it is not the key that tells them apart");
    let (jobs, contexts) = held(&town).await;
    assert_eq!(tries(&town, "a", &contexts[0], JOBS).await, Ok(1), "in the shared database it holds as before");
    sqlx::query(
        "INSERT INTO reeve.identity (tenant_id, region, epoch, inner_pad, outer_pad)
         SELECT tenant_id, 'default', 1, inner_pad, outer_pad FROM reeve.placement_keys WHERE tenant_id = 'a'",
    )
    .execute(&town.db.admin)
    .await
    .expect("now it is a's own");
    sqlx::query("DELETE FROM reeve.jobs").execute(&town.db.admin).await.expect("a queue has no business here");
    const TENANTS: &str = "SELECT count(*) FROM reeve.tenants";
    assert_eq!(tries(&town, "a", &contexts[0], TENANTS).await, Ok(1));
    assert_eq!(tries(&town, "b", &contexts[1], TENANTS).await, Err("RV011".to_owned()), "right proof, wrong database");
    let shared_only = contexts[0].rsplit_once('/').expect("two MACs").0;
    assert_eq!(tries(&town, "a", shared_only, TENANTS).await, Err("RV011".to_owned()), "the shared database's MAC");
    let past = minted(&town, &jobs[0], "1").await;
    assert!(tries(&town, "a", &past, TENANTS).await.is_err());
}

#[tokio::test]
async fn with_verification_off_the_setting_alone_is_believed() {
    let town = Town::new().await;
    held(&town).await;
    sqlx::query("UPDATE reeve.settings SET context_verified = false").execute(&town.db.admin).await.expect("off");
    assert_eq!(tries(&town, "b", "", JOBS).await, Ok(1));
    client::enqueue_alone(&town.app, &town.b, &ProbeFleet::default()).await.expect("enqueued");
    let lane = Lane { queue: "probes".to_owned(), region: "default".to_owned() };
    let queue = PostgresQueue::new(town.worker.clone());
    let jobs = queue.claim(&lane, 5, "w", "", Duration::from_secs(30)).await.expect("a claim").jobs;
    assert_eq!(jobs[0].proof, Proof::none(), "a claim makes none then");
}

#[tokio::test]
async fn a_moving_tenants_jobs_wait() {
    let town = Town::new().await;
    let moving = |on| {
        let sql = format!("UPDATE reeve.tenants SET moving = {on} WHERE id = 'a'");
        sqlx::query(AssertSqlSafe(sql)).execute(&town.db.admin)
    };
    moving(true).await.expect("moving");
    for tenant in [&town.a, &town.b] {
        client::enqueue_alone(&town.app, tenant, &ProbeFleet::default()).await.expect("enqueued all the same");
    }
    let lane = Lane { queue: "probes".to_owned(), region: "default".to_owned() };
    let queue = PostgresQueue::new(town.worker.clone());
    let claim = async || queue.claim(&lane, 5, "w", "", Duration::from_secs(30)).await.expect("a claim").jobs;
    let tenants: Vec<_> = claim().await.iter().map(|job| job.tenant.to_string()).collect();
    assert_eq!(tenants, ["b"]);
    moving(false).await.expect("there");
    let tenants: Vec<_> = claim().await.iter().map(|job| job.tenant.to_string()).collect();
    assert_eq!(tenants, ["a"]);
}

/// The tenant's id is an app's own text and stands in the opening as a literal.
#[tokio::test]
async fn no_tenants_id_breaks_out_of_the_statement_that_names_it() {
    let town = Town::new().await;
    for id in [
        "o'brien",
        r"back\slash",
        r"\'; SELECT set_config('reeve.tenant_id', 'b', true); --",
        "'; SELECT set_config('reeve.tenant_id', 'b', true); --",
        "a/b/c",
        "$1",
        "عميل",
        "\u{2028}",
    ] {
        let tenant: TenantId = town.db.tenant(id).await;
        for standard in ["on", "off"] {
            let options = town.db.options("reeve_worker").options([("standard_conforming_strings", standard)]);
            let pool = reeve_jobs::program::db::pool(options, 1).await.expect("a pool");
            let directory = reeve_jobs::tenant::Directory::new(pool);
            let context = TenantContext::new(tenant.clone(), "default", town.db.proof(&tenant).await);
            let mut scope = Scope::open(&directory, &context).await.expect(id);
            let named: String =
                scope.fetch_value(sqlx::query_scalar("SELECT current_setting('reeve.tenant_id')")).await.expect(id);
            assert_eq!(named, id);
        }
    }
}

#[tokio::test]
async fn a_scope_in_which_a_statement_failed_cannot_be_committed() {
    let town = Town::new().await;
    let mut scope = town.scope(&town.a).await;
    let failed: Result<i32, ScopeError> = scope.fetch_value(sqlx::query_scalar("SELECT 1 / 0")).await;
    assert!(failed.is_err());
    let refused = scope.commit().await.expect_err("PostgreSQL would roll back and say nothing");
    assert!(refused.to_string().contains("current transaction is aborted"), "{refused}");
}

//! The audit chain: whatever is changed in it is found where it was changed, and all that is allowed leaves it whole.
//!
//! Tampering is done as the cluster's superuser with the append-only triggers switched off, in a transaction that is rolled
//! back. That no program's role can change an entry is tried at the end.
use reeve_jobs::{
    audit::{
        AuditKey, Entry,
        chain::Content,
        inspect,
        verify::{Report, verify},
    },
    queue::operate::Act,
    tenant::{Directory, Scope, TenantContext},
    testing::TestDatabase,
};
use sqlx::{Acquire, PgConnection};

const WHO: Act<'static> = Act { actor: "test", reason: "because" };

pub fn key() -> AuditKey {
    AuditKey::from_base64("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=").expect("32 bytes")
}

/// Appends `n` entries in one statement.
pub async fn append(db: &TestDatabase, tenant: &str, action: &str, n: i32) {
    let written: i64 = sqlx::query_scalar(
        "SELECT reeve.audit_append_many(array_agg(ROW($1, 'ann', $2, 'thing:' || i, 'why ' || i, ARRAY['a', 'b'],
           gen_random_uuid(), i, NULL, '\\x01')::reeve.audit_entry ORDER BY i)) FROM generate_series(1, $3) i",
    )
    .bind(tenant)
    .bind(action)
    .bind(n)
    .fetch_one(&db.admin)
    .await
    .expect("entries");
    assert_eq!(written, i64::from(n));
}

async fn judged(connection: &mut PgConnection, tenant: &str) -> Report {
    verify(connection, tenant, Some(&key())).await.expect("a report").0
}

async fn report(db: &TestDatabase, tenant: &str) -> Report {
    let mut look = inspect::snapshot(&db.admin).await.expect("a snapshot");
    judged(&mut look, tenant).await
}

pub async fn holds(db: &TestDatabase, tenant: &str) -> Report {
    let report = report(db, tenant).await;
    assert_eq!(report.broken, None, "{report:?}");
    report
}

async fn checkpoint(db: &TestDatabase, tenant: &str) {
    let mut look = inspect::snapshot(&db.admin).await.expect("a snapshot");
    let (_, next) = verify(&mut look, tenant, Some(&key())).await.expect("a report");
    drop(look);
    let next = next.expect("something to sign");
    inspect::store_checkpoint(&db.pool("reeve_ops").await, tenant, &next, &key()).await.expect("a checkpoint");
}

pub const UNGUARDED: &str = "ALTER TABLE reeve.audit_log DISABLE TRIGGER append_only;
  ALTER TABLE reeve.audit_bodies DISABLE TRIGGER append_only; ALTER TABLE reeve.audit_stubs DISABLE TRIGGER append_only;
  ALTER TABLE reeve.audit_checkpoints DISABLE TRIGGER append_only;";

/// What is done to ten entries with checkpoints at 4 and 8, where the chain then breaks, and a part of why.
const TAMPERING: &[(&str, i64, &str)] = &[
    ("UPDATE reeve.audit_log SET actor = 'bob' WHERE seq = 5", 5, "does not follow"),
    ("UPDATE reeve.audit_log SET target = '' WHERE seq = 1", 1, "does not follow"),
    ("UPDATE reeve.audit_log SET at = at - interval '1 microsecond' WHERE seq = 9", 9, "does not follow"),
    ("UPDATE reeve.audit_log SET class = 'life' WHERE seq = 2", 2, "does not follow"),
    ("UPDATE reeve.audit_log SET job_id = NULL WHERE seq = 3", 3, "does not follow"),
    ("UPDATE reeve.audit_log SET source_ip_hash = NULL WHERE seq = 3", 3, "does not follow"),
    ("UPDATE reeve.audit_bodies SET reason = 'other' WHERE seq = 6", 6, "reason or its fields were changed"),
    ("UPDATE reeve.audit_bodies SET fields = '{ab}' WHERE seq = 6", 6, "reason or its fields were changed"),
    ("DELETE FROM reeve.audit_bodies WHERE seq = 6", 6, "no entry tells of their erasure"),
    ("DELETE FROM reeve.audit_log WHERE seq = 7", 7, "the entry is missing"),
    ("DELETE FROM reeve.audit_log WHERE seq = 1", 1, "the entry is missing"),
    ("DELETE FROM reeve.audit_log WHERE seq <= 4", 1, "the entry is missing"),
    ("DELETE FROM reeve.audit_log WHERE seq = 10", 10, "the end was cut off: the head is at 10"),
    (
        "DELETE FROM reeve.audit_log WHERE seq > 6; UPDATE reeve.audit_heads h SET seq = 6,
           hash = (SELECT hash FROM reeve.audit_log WHERE tenant_id = 't' AND seq = 6) WHERE tenant_id = 't'",
        7,
        "the end was cut off: a checkpoint has entry 8",
    ),
    (
        "UPDATE reeve.audit_log SET seq = 99 WHERE seq = 5; UPDATE reeve.audit_log SET seq = 5 WHERE seq = 6;
         UPDATE reeve.audit_log SET seq = 6 WHERE seq = 99",
        5,
        "reason or its fields were changed",
    ),
    (
        "UPDATE reeve.audit_log SET seq = 99 WHERE seq = 5; UPDATE reeve.audit_log SET seq = 5 WHERE seq = 6;
         UPDATE reeve.audit_log SET seq = 6 WHERE seq = 99;
         UPDATE reeve.audit_bodies SET seq = 99 WHERE seq = 5; UPDATE reeve.audit_bodies SET seq = 5 WHERE seq = 6;
         UPDATE reeve.audit_bodies SET seq = 6 WHERE seq = 99",
        5,
        "does not follow",
    ),
    ("UPDATE reeve.audit_heads SET hash = sha256('x')", 10, "the head is at 10 with another hash"),
    ("UPDATE reeve.audit_checkpoints SET hash = sha256('x') WHERE seq = 8", 8, "signature does not verify"),
    ("UPDATE reeve.audit_checkpoints SET keeps_until = now() - interval '1 day'", 4, "signature does not verify"),
    ("DELETE FROM reeve.audit_checkpoints WHERE seq = 4", 4, "the checkpoint of this entry is missing"),
    (
        "INSERT INTO reeve.audit_stubs SELECT tenant_id, seq, at, class, sha256('x'), hash FROM reeve.audit_log WHERE seq = 3;
         DELETE FROM reeve.audit_log WHERE seq = 3",
        3,
        "removed before its time",
    ),
    (
        "INSERT INTO reeve.audit_stubs SELECT tenant_id, seq, at, class, sha256('x'), hash FROM reeve.audit_log WHERE seq = 3",
        3,
        "a second entry or stub",
    ),
    // A chain written anew to its end, by the functions that wrote it first: only the signature tells.
    (
        "CREATE TEMP TABLE old AS SELECT tenant_id, actor, action, target, trace_id, seq FROM reeve.audit_log;
         DELETE FROM reeve.audit_log; DELETE FROM reeve.audit_bodies; DELETE FROM reeve.audit_heads;
         SELECT reeve.audit_append_many(array_agg(ROW(tenant_id, 'nobody', action, target, NULL, '{}', NULL, NULL, NULL,
           NULL)::reeve.audit_entry ORDER BY seq)) FROM old",
        4,
        "entries 1 to 4 were rewritten",
    ),
];

#[tokio::test]
async fn each_tampering_is_found_at_its_entry() {
    let db = TestDatabase::new().await;
    for (n, sign) in [(4, true), (4, true), (2, false)] {
        append(&db, "t", "thing.done", n).await;
        if sign {
            checkpoint(&db, "t").await;
        }
    }
    let report = holds(&db, "t").await;
    assert_eq!((report.entries, report.seq, report.signed_to, report.checkpoints), (10, 10, 8, 2));
    let mut admin = db.admin.acquire().await.expect("a connection");
    for (tampering, seq, why) in TAMPERING {
        let mut tx = admin.begin().await.expect("begin");
        let sql = format!("{UNGUARDED}{tampering}");
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut *tx).await.expect(tampering);
        let found = judged(&mut tx, "t").await.broken;
        tx.rollback().await.expect("rolled back");
        let found = found.unwrap_or_else(|| panic!("{tampering}: not found"));
        assert!(found.seq == *seq && found.why.contains(why), "{tampering}: {found:?}");
    }
    drop(admin);
    holds(&db, "t").await;
    db.drop_now().await;
}

#[tokio::test]
async fn concurrent_writers_leave_unbroken_chains() {
    let db = TestDatabase::new().await;
    let tenants = [db.tenant("a").await, db.tenant("b").await];
    let proofs = [db.proof(&tenants[0]).await, db.proof(&tenants[1]).await];
    let directory = Directory::new(db.pool("reeve_worker").await);
    let writers = (0..8).map(|writer| {
        let (directory, tenant, proof) = (directory.clone(), tenants[writer % 2].clone(), proofs[writer % 2].clone());
        tokio::spawn(async move {
            let context = TenantContext::new(tenant, "default", proof);
            for n in 0..50 {
                let mut scope = Scope::open(&directory, &context).await.expect("a scope");
                let target = format!("thing:{writer}-{n}");
                scope.audit(&Entry::new("worker", "thing.done", &target).because("it was")).await.expect("an entry");
                scope.commit().await.expect("a commit");
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.expect("a writer");
    }
    for tenant in ["a", "b"] {
        assert_eq!(holds(&db, tenant).await.entries, 200);
    }
    db.drop_now().await;
}

/// `pg_stat_xact_all_tables` counts what this transaction did: the head's row is written once, not once an entry.
#[tokio::test]
async fn a_batch_moves_each_head_once() {
    let db = TestDatabase::new().await;
    append(&db, "t", "thing.done", 1).await;
    append(&db, "u", "thing.done", 1).await;
    let mut tx = db.admin.begin().await.expect("begin");
    let both =
        "SELECT reeve.audit_append_many(array_agg(ROW(CASE i % 2 WHEN 0 THEN 't' ELSE 'u' END, 'ann', 'thing.done',
      'thing:' || i, 'why', NULL, NULL, NULL, NULL, NULL)::reeve.audit_entry)) FROM generate_series(1, 2000) i";
    // Counts of the connection's earlier transactions may still be in it.
    let versions = "SELECT n_tup_upd FROM pg_stat_xact_all_tables WHERE relid = 'reeve.audit_heads'::regclass";
    let before: i64 = sqlx::query_scalar(versions).fetch_one(&mut *tx).await.expect("a count");
    let written: i64 = sqlx::query_scalar(both).fetch_one(&mut *tx).await.expect("entries");
    let after: i64 = sqlx::query_scalar(versions).fetch_one(&mut *tx).await.expect("a count");
    tx.commit().await.expect("a commit");
    assert_eq!((written, after - before), (2000, 2));
    for tenant in ["t", "u"] {
        assert_eq!(holds(&db, tenant).await.entries, 1001);
    }
    db.drop_now().await;
}

/// Makes the chain's first `n` entries older, with hashes that fit: what a year would have done.
async fn age(db: &TestDatabase, n: i64, by: &str) {
    let sql = format!(
        "{UNGUARDED}
        UPDATE reeve.audit_log SET at = at - interval '{by}' WHERE tenant_id = 't' AND seq <= {n};
        WITH anew AS (
          SELECT seq, reeve.audit_chain(decode(repeat('00', 32), 'hex'), reeve.audit_link(tenant_id, seq, at, class,
                   reeve.audit_content(actor, action, target, job_id, attempt, trace_id, source_ip_hash, body_hash)))
                 OVER (ORDER BY seq ROWS UNBOUNDED PRECEDING) AS hash
          FROM reeve.audit_log WHERE tenant_id = 't')
        UPDATE reeve.audit_log l SET hash = anew.hash FROM anew WHERE l.tenant_id = 't' AND l.seq = anew.seq;
        UPDATE reeve.audit_heads h SET hash = (SELECT l.hash FROM reeve.audit_log l WHERE l.tenant_id = 't' AND l.seq = h.seq)
        WHERE h.tenant_id = 't';
        ALTER TABLE reeve.audit_log ENABLE TRIGGER append_only; ALTER TABLE reeve.audit_bodies ENABLE TRIGGER append_only;
        ALTER TABLE reeve.audit_stubs ENABLE TRIGGER append_only;
        ALTER TABLE reeve.audit_checkpoints ENABLE TRIGGER append_only"
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&db.admin).await.expect("an older chain");
}

#[tokio::test]
async fn pruning_heeds_class_and_checkpoint_and_leaves_the_chain_whole() {
    let db = TestDatabase::new().await;
    let scheduler = db.pool("reeve_scheduler").await;
    // 1 to 3 for twelve months; 4 for ever; 5 and 6 for twelve months; 7 for 24; then unsigned ones.
    for (action, n) in [("job.done", 3), ("key.rotated", 1), ("job.done", 2), ("thing.done", 1)] {
        append(&db, "t", action, n).await;
    }
    age(&db, 7, "367 days").await;
    assert_eq!(inspect::prune(&scheduler, 100).await.expect("pruned"), (0, 0), "nothing is signed");
    // Three checkpoints over the same chain: at 3, at 6 and at 7. Those of the middle are signed by hand.
    for seq in [3, 6] {
        let mut look = inspect::snapshot(&db.admin).await.expect("a snapshot");
        let (_, next) = verify(&mut look, "t", Some(&key())).await.expect("a report");
        let mut next = next.expect("something to sign");
        let row: (Vec<u8>, Option<chrono::DateTime<chrono::Utc>>) = sqlx::query_as(
            "SELECT hash, (SELECT CASE WHEN count(*) = count(reeve.audit_keep(class)) THEN max(at + reeve.audit_keep(class)) END
               FROM reeve.audit_log x WHERE x.seq > $2 AND x.seq <= $1) FROM reeve.audit_log WHERE seq = $1",
        )
        .bind(seq)
        .bind(next.from_seq)
        .fetch_one(&mut *look)
        .await
        .expect("an entry");
        (next.seq, next.hash, next.keeps_until) = (seq, row.0.try_into().expect("32 bytes"), row.1);
        drop(look);
        inspect::store_checkpoint(&db.pool("reeve_ops").await, "t", &next, &key()).await.expect("a checkpoint");
    }
    checkpoint(&db, "t").await;
    append(&db, "t", "job.done", 1).await;
    // One at a time: each step leaves a chain that holds.
    let (mut pruned, mut dropped) = (0, 0);
    loop {
        let step = inspect::prune(&scheduler, 1).await.expect("pruned");
        holds(&db, "t").await;
        if step == (0, 0) {
            break;
        }
        (pruned, dropped) = (pruned + step.0, dropped + step.1);
    }
    assert_eq!((pruned, dropped), (5, 3), "1 to 3 are gone with their checkpoint, 5 and 6 left stubs beside 4");
    let left: Vec<i64> =
        sqlx::query_scalar("SELECT seq FROM reeve.audit_log ORDER BY seq").fetch_all(&db.admin).await.expect("entries");
    assert_eq!(left, [4, 7, 8]);
    let bodies: i64 =
        sqlx::query_scalar("SELECT count(*) FROM reeve.audit_bodies").fetch_one(&db.admin).await.expect("a count");
    assert_eq!(bodies, 3);
    // What is left still shows tampering, and the next checkpoint goes on from there.
    checkpoint(&db, "t").await;
    let report = holds(&db, "t").await;
    assert_eq!((report.entries, report.stubs, report.signed_to), (3, 2, 8));
    let mut tx = db.admin.begin().await.expect("begin");
    let sql = format!("{UNGUARDED} DELETE FROM reeve.audit_stubs WHERE seq = 5");
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut *tx).await.expect("a removal");
    assert_eq!(judged(&mut tx, "t").await.broken.map(|broken| broken.seq), Some(5));
    tx.rollback().await.expect("rolled back");
    db.drop_now().await;
}

#[tokio::test]
async fn erasing_a_body_leaves_the_chain_whole_and_is_told() {
    let db = TestDatabase::new().await;
    append(&db, "t", "thing.done", 3).await;
    checkpoint(&db, "t").await;
    let ops = db.pool("reeve_ops").await;
    assert!(inspect::erase_body(&ops, "t", 2, WHO).await.expect("erased"));
    assert!(!inspect::erase_body(&ops, "t", 2, WHO).await.expect("nothing left"));
    let report = holds(&db, "t").await;
    assert_eq!((report.entries, report.erased), (4, 1));
    let found = inspect::search(&ops, &inspect::Filter::default(), 10).await.expect("entries");
    let said: Vec<_> = found.iter().map(|entry| (entry.seq, entry.reason.as_deref(), entry.erased)).collect();
    let expected = [(4, Some("because"), false), (3, Some("why 3"), false), (2, None, true), (1, Some("why 1"), false)];
    assert_eq!(said, expected);
    assert_eq!((found[0].action.as_str(), found[0].target.as_str()), ("audit.body_erased", "audit:2"));
    db.drop_now().await;
}

#[tokio::test]
async fn no_programs_role_changes_or_removes_anything_of_the_log() {
    let db = TestDatabase::new().await;
    append(&db, "t", "thing.done", 1).await;
    let tables = ["audit_log", "audit_bodies", "audit_heads", "audit_checkpoints", "audit_stubs"];
    for role in ["reeve_app", "reeve_worker", "reeve_scheduler", "reeve_ops"] {
        let pool = db.pool(role).await;
        for table in tables {
            for sql in ["UPDATE reeve.{} SET seq = 9", "DELETE FROM reeve.{}", "INSERT INTO reeve.{} DEFAULT VALUES"] {
                let sql = format!("SET reeve.audit_removal = 'on'; {}", sql.replace("{}", table));
                let refused = sqlx::raw_sql(sqlx::AssertSqlSafe(sql.clone())).execute(&pool).await;
                assert!(refused.expect_err(&sql).to_string().contains("permission denied"), "{role}: {sql}");
            }
        }
        pool.close().await;
    }
    // Nor the administrator by mistake.
    for table in ["audit_log", "audit_bodies", "audit_checkpoints", "audit_stubs"] {
        let sql = format!("SET LOCAL reeve.audit_removal = 'on'; DELETE FROM reeve.{table}");
        let refused = sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&db.admin).await;
        assert!(refused.expect_err(table).to_string().contains("append-only"), "{table}");
    }
    db.drop_now().await;
}

#[tokio::test]
async fn jobs_quarantined_together_are_chained_and_others_touch_no_chain() {
    let db = TestDatabase::new().await;
    let (a, b) = (db.tenant("a").await, db.tenant("b").await);
    let sql = "INSERT INTO reeve.jobs (id, tenant_id, kind, queue, region, state, priority, attempt, attempts_max, payload,
        lease_token, lease_expires_at, worker, attempted_at, run_at)
      SELECT reeve.new_id(), CASE i % 2 WHEN 0 THEN $1 ELSE $2 END, 'fleet.probe', 'probes', 'default', 'running', 1, 1, 3, '{}',
        gen_random_uuid(), now() + interval '1 hour', 'w', now(), now() FROM generate_series(1, 9) i";
    sqlx::query(sql).bind(a.as_str()).bind(b.as_str()).execute(&db.admin).await.expect("running jobs");
    let settle = "SELECT settled FROM (SELECT array_agg(id) i, array_agg(lease_token) t, array_agg($1::text) o,
        array_agg(0::double precision) d, array_agg('broken'::text) e
      FROM (SELECT * FROM reeve.jobs WHERE state = 'running' ORDER BY id LIMIT $2) j) s, reeve.settle(i, t, o, d, e)";
    let heads = "SELECT count(*) FROM reeve.audit_heads";
    for (outcome, n, chains) in [("completed", 2_i64, 0_i64), ("retry", 2, 0), ("quarantine", 5, 2)] {
        let settled: Vec<uuid::Uuid> =
            sqlx::query_scalar(settle).bind(outcome).bind(n).fetch_all(&db.admin).await.expect("settled");
        assert_eq!(settled.len() as i64, n, "{outcome}");
        let found: i64 = sqlx::query_scalar(heads).fetch_one(&db.admin).await.expect("a count");
        assert_eq!(found, chains, "{outcome}");
    }
    assert_eq!(holds(&db, "a").await.entries + holds(&db, "b").await.entries, 5);
    db.drop_now().await;
}

/// Two settlements that quarantine jobs of the same tenants in opposite order wait for each other in one order only.
#[tokio::test]
async fn writers_of_several_chains_do_not_lock_each_other_out() {
    let db = TestDatabase::new().await;
    let writers = (0..4).map(|writer| {
        let pool = db.admin.clone();
        tokio::spawn(async move {
            let order = if writer % 2 == 0 { "i" } else { "-i" };
            let sql = format!(
                "SELECT reeve.audit_append_many(array_agg(ROW('t' || i, 'ann', 'thing.done', '', NULL, NULL, NULL, NULL, NULL,
                   NULL)::reeve.audit_entry ORDER BY {order})) FROM generate_series(1, 20) i"
            );
            for _ in 0..20 {
                sqlx::query(sqlx::AssertSqlSafe(sql.clone())).execute(&pool).await.expect("no deadlock");
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.expect("a writer");
    }
    for tenant in ["t1", "t20"] {
        assert_eq!(holds(&db, tenant).await.entries, 80);
    }
    db.drop_now().await;
}

#[tokio::test]
async fn the_class_comes_from_the_action() {
    let db = TestDatabase::new().await;
    for (action, class) in [
        ("job.retried", "12m"),
        ("endpoint.disabled", "24m"),
        ("endpoint.secret_rotated", "life"),
        ("key.made", "life"),
        ("audit.body_erased", "life"),
    ] {
        let found: String = sqlx::query_scalar("SELECT reeve.audit_class($1)")
            .bind(action)
            .fetch_one(&db.admin)
            .await
            .expect("a class");
        assert_eq!(found, class, "{action}");
    }
    db.drop_now().await;
}

#[test]
fn a_missing_value_is_not_an_empty_one() {
    let none = Content {
        actor: "a",
        action: "b.c",
        target: "",
        job_id: None,
        attempt: None,
        trace_id: None,
        source_ip_hash: None,
        body_hash: None,
    };
    assert_ne!(none.hash(), Content { trace_id: Some(""), ..none }.hash());
    assert_ne!(none.hash(), Content { actor: "ab", action: ".c", ..none }.hash());
}

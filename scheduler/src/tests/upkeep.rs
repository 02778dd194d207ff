//! What is kept is kept guarded, and what is past its time goes.
use super::{ask, database, run};
use crate::pruner::{self, Keep, Pruned};

const KEEP: Keep = Keep { history_days: 30, history_days_ahead: 3, parked_days: 90, attempt_days: 30 };

#[tokio::test]
async fn partitions_are_made_ahead_under_forced_row_security() {
    let (database, pool) = database().await;
    let db = &database.admin;
    let pruned = pruner::run_once(&pool, &KEEP).await.expect("a run");
    assert_eq!(pruned, Pruned { partitions_made: 4, ..Pruned::default() });
    let unguarded = "SELECT count(*) FROM pg_class c JOIN pg_inherits i ON i.inhrelid = c.oid
                     WHERE i.inhparent = 'reeve.job_history'::regclass AND NOT (c.relrowsecurity AND c.relforcerowsecurity)";
    assert_eq!(ask(db, unguarded).await, "0");
    // No program may go round the parent's policies.
    let open = "SELECT count(*) FROM pg_inherits i, unnest(ARRAY['reeve_app', 'reeve_worker', 'reeve_scheduler', 'reeve_ops']) r
                WHERE i.inhparent = 'reeve.job_history'::regclass AND has_table_privilege(r, i.inhrelid, 'SELECT')";
    assert_eq!(ask(db, open).await, "0");
    // Again, and the same day: nothing to do.
    assert_eq!(pruner::run_once(&pool, &KEEP).await.expect("a run"), Pruned::default());
    database.drop_now().await;
}

#[tokio::test]
async fn days_past_their_time_are_dropped_whole() {
    let (database, pool) = database().await;
    let db = &database.admin;
    for (age, name) in [(31, "old"), (30, "kept")] {
        run(
            db,
            &format!(
                "DO $$ DECLARE d date := (now() AT TIME ZONE 'UTC')::date - {age}; BEGIN
                   EXECUTE format('CREATE TABLE reeve.job_history_%s PARTITION OF reeve.job_history
                     FOR VALUES FROM (%L) TO (%L)', to_char(d, 'YYYYMMDD'), d || ' 00:00+00', d + 1 || ' 00:00+00');
                   EXECUTE format('ALTER TABLE reeve.job_history_%s OWNER TO reeve_owner', to_char(d, 'YYYYMMDD'));
                   INSERT INTO reeve.job_history (id, tenant_id, kind, queue, region, state, priority, attempt, attempts_max,
                     rescues, run_at, created_at, finished_at, payload)
                   VALUES (gen_random_uuid(), 't1', '{name}', 'q', 'default', 'completed', 3, 1, 1, 0, d, d,
                     (d + time '12:00') AT TIME ZONE 'UTC', '{{}}');
                 END $$"
            ),
        )
        .await;
    }
    let pruned = pruner::run_once(&pool, &KEEP).await.expect("a run");
    assert_eq!(pruned, Pruned { partitions_made: 4, partitions_dropped: 1, ..Pruned::default() });
    assert_eq!(ask(db, "SELECT string_agg(kind, ' ') FROM reeve.job_history").await, "kept");
    database.drop_now().await;
}

#[tokio::test]
async fn history_in_the_default_partition_is_past_its_time_too() {
    let (database, pool) = database().await;
    let db = &database.admin;
    run(
        db,
        "INSERT INTO reeve.job_history (id, tenant_id, kind, queue, region, state, priority, attempt, attempts_max, rescues,
           run_at, created_at, finished_at, payload)
         SELECT gen_random_uuid(), 't1', age::text, 'q', 'default', 'completed', 3, 1, 1, 0, now(), now(),
           ((now() AT TIME ZONE 'UTC')::date - age + time '12:00') AT TIME ZONE 'UTC', '{}'
         FROM unnest(ARRAY[29, 30, 31, 32, 400]) age",
    )
    .await;
    let pruned = pruner::run_batches(&pool, &KEEP, 2).await.expect("a run");
    assert_eq!(pruned, Pruned { partitions_made: 4, stray_history: 3, ..Pruned::default() });
    assert_eq!(ask(db, "SELECT string_agg(kind, ' ' ORDER BY kind) FROM reeve.job_history").await, "29 30");
    database.drop_now().await;
}

#[tokio::test]
async fn a_day_whose_rows_lie_in_the_default_partition_keeps_them_there() {
    let (database, pool) = database().await;
    let db = &database.admin;
    run(
        db,
        "INSERT INTO reeve.job_history (id, tenant_id, kind, queue, region, state, priority, attempt, attempts_max, rescues,
           run_at, created_at, payload)
         VALUES (gen_random_uuid(), 't1', 'test.tick', 'q', 'default', 'completed', 3, 1, 1, 0, now(), now(), '{}')",
    )
    .await;
    assert_eq!(pruner::run_once(&pool, &KEEP).await.expect("a run").partitions_made, 3);
    assert_eq!(ask(db, "SELECT count(*) FROM reeve.job_history").await, "1");
    database.drop_now().await;
}

#[tokio::test]
async fn parked_jobs_nobody_looked_at_become_history_and_old_attempts_go() {
    let (database, pool) = database().await;
    let db = &database.admin;
    run(
        db,
        "INSERT INTO reeve.jobs (id, tenant_id, kind, queue, region, state, priority, attempt, attempts_max, run_at,
           created_at, attempted_at, payload, last_error)
         SELECT gen_random_uuid(), 't1', 'test.tick', 'tests', 'default', s, 3, 5, 5, now(), now() - interval '200 days',
           now() - age * interval '1 day', '{}', s || age
         FROM unnest(ARRAY['dead', 'quarantined', 'available']) s, unnest(ARRAY[89, 91]) age;
         INSERT INTO reeve.job_attempts (tenant_id, job_id, attempt, outcome, ended_at)
         SELECT 't1', gen_random_uuid(), age, 'retry', now() - age * interval '1 day' FROM unnest(ARRAY[29, 31, 32, 33]) age",
    )
    .await;
    let pruned = pruner::run_batches(&pool, &KEEP, 1).await.expect("a run");
    assert_eq!(pruned, Pruned { partitions_made: 4, parked: 2, attempts: 3, ..Pruned::default() });
    let left = "SELECT string_agg(last_error, ' ' ORDER BY last_error) FROM reeve.jobs";
    assert_eq!(ask(db, left).await, "available89 available91 dead89 quarantined89");
    let moved = "SELECT string_agg(state || ' ' || last_error, ', ' ORDER BY state) FROM reeve.job_history";
    assert_eq!(ask(db, moved).await, "dead dead91, quarantined quarantined91");
    // Into today's partition, which the same run had made.
    let default = "SELECT count(*) FROM reeve.job_history WHERE tableoid = 'reeve.job_history_default'::regclass";
    assert_eq!(ask(db, default).await, "0");
    assert_eq!(ask(db, "SELECT string_agg(attempt::text, ' ') FROM reeve.job_attempts").await, "29");
    database.drop_now().await;
}

#[tokio::test]
async fn audit_entries_past_their_time_go_once_they_are_signed() {
    let (database, pool) = database().await;
    let db = &database.admin;
    // Hashes that chain to nothing will do: what may go is decided by time, class and checkpoint.
    sqlx::raw_sql(
        "INSERT INTO reeve.audit_log (tenant_id, seq, at, class, actor, action, target, hash)
         SELECT 't', i, now() - interval '400 days', class, 'a', 'b.c', '', sha256('x')
         FROM unnest(ARRAY['12m', '12m', 'life', '12m', '24m', '12m']) WITH ORDINALITY x (class, i);
         INSERT INTO reeve.audit_checkpoints (tenant_id, from_seq, seq, hash, keeps_until, at, signature)
         VALUES ('t', 0, 2, sha256('x'), now() - interval '1 day', now(), sha256('y')),
                ('t', 2, 5, sha256('x'), NULL, now(), sha256('y'))",
    )
    .execute(db)
    .await
    .expect("entries");
    let pruned = pruner::run_batches(&pool, &KEEP, 1).await.expect("a run");
    assert_eq!(pruned, Pruned { partitions_made: 4, audit_entries: 3, audit_stubs: 2, ..Pruned::default() });
    assert_eq!(ask(db, "SELECT string_agg(seq::text, ' ' ORDER BY seq) FROM reeve.audit_log").await, "3 5 6");
    assert_eq!(ask(db, "SELECT string_agg(seq::text, ' ' ORDER BY seq) FROM reeve.audit_stubs").await, "4");
    database.drop_now().await;
}

#[tokio::test]
async fn the_scheduler_role_sees_no_row() {
    let (database, pool) = database().await;
    for table in ["jobs", "job_history", "job_attempts", "schedules", "tenants", "audit_log", "audit_bodies"] {
        let refused = sqlx::query(sqlx::AssertSqlSafe(format!("SELECT FROM reeve.{table}"))).execute(&pool).await;
        assert!(refused.unwrap_err().to_string().contains("permission denied"), "{table}");
    }
    database.drop_now().await;
}

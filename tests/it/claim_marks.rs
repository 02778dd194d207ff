//! A claim that knows where it was: what it passes over, what it finds all the same, and that nobody is left out for good.
use std::time::Duration;

use reeve_jobs::{
    TenantId, client,
    kinds::ProbeFleet,
    queue::{Lane, PostgresQueue, Queue},
};
use sqlx::{Connection, PgConnection, Row};

use crate::support::Town;

/// Ready jobs as (tenant, priority, seconds ago they were due), beside whatever else there is.
async fn put(town: &Town, jobs: &[(&TenantId, i16, i32)]) {
    for (tenant, priority, secs_ago) in jobs {
        sqlx::query(
            "INSERT INTO reeve.jobs (id, tenant_id, kind, queue, region, state, priority, attempts_max, run_at, payload)
             VALUES (reeve.new_id(), $1, 'fleet.probe', 'probes', 'default', 'available', $2, 3,
                     '2026-01-01'::timestamptz - make_interval(secs => $3), jsonb_build_object('note', $2 || '/' || $3))",
        )
        .bind(tenant.as_str())
        .bind(priority)
        .bind(secs_ago)
        .execute(&town.db.admin)
        .await
        .expect("put");
    }
}

/// The notes of what a claim with these marks brings, each with its tenant, and its last row.
async fn by_marks(town: &Town, n: i32, known: &[(&TenantId, i32)]) -> (Vec<String>, sqlx::postgres::PgRow) {
    let (tenants, ago): (Vec<_>, Vec<_>) = known.iter().map(|(tenant, ago)| (tenant.as_str(), *ago)).unzip();
    let mut rows = sqlx::query(
        "SELECT id, tenant_id, kind, payload, attempt, attempts_max, rescues FROM reeve.claim('probes', 'default', $1, 'w', '', 30, $2,
           ARRAY(SELECT '2026-01-01'::timestamptz - make_interval(secs => s) FROM unnest($3) WITH ORDINALITY u (s, o) ORDER BY o))",
    )
    .bind(n)
    .bind(&tenants)
    .bind(&ago)
    .fetch_all(&town.worker)
    .await
    .expect("a claim");
    let last = rows.pop().expect("a last row");
    let notes = rows.iter().map(|row| {
        let payload: serde_json::Value = row.get("payload");
        format!("{} {}", row.get::<&str, _>("tenant_id"), payload["note"].as_str().expect("a note"))
    });
    (notes.collect(), last)
}

#[tokio::test]
async fn known_tenants_are_served_from_their_mark_on_in_the_usual_order_and_nobody_else() {
    let town = Town::new().await;
    let c = town.db.tenant("c").await;
    put(&town, &[(&town.a, 3, 100), (&town.a, 3, 10), (&town.a, 1, 20), (&town.a, 1, 200), (&town.a, 4, 50)]).await;
    put(&town, &[(&town.b, 2, 30), (&town.b, 2, 31), (&c, 1, 1)]).await;
    let (got, last) = by_marks(&town, 10, &[(&town.a, 60), (&town.b, 30)]).await;
    assert_eq!(got, ["a 1/20", "b 2/30", "a 3/10", "a 4/50"]);
    assert_eq!(last.get::<i32, _>("attempt"), 1, "others were not looked at");
    // Whom it served, and the earliest time of theirs, so that the next begins there.
    let served: serde_json::Value = last.get("payload");
    assert_eq!(served["a"].as_str().map(|at| &at[..19]), Some("2025-12-31T23:59:10"));
    assert_eq!(served["b"].as_str().map(|at| &at[..19]), Some("2025-12-31T23:59:30"));
    // What is older than its mark, and who is not known, is found by the next that looks at everything.
    let (mut rest, last) = {
        let rows = sqlx::query("SELECT id, tenant_id, payload FROM reeve.claim('probes', 'default', 10, 'w', '', 30)")
            .fetch_all(&town.worker)
            .await
            .expect("a claim");
        (rows.iter().map(|row| row.get::<String, _>("tenant_id")).collect::<Vec<_>>(), rows.len())
    };
    rest.truncate(last - 1);
    assert_eq!(rest, ["a", "b", "c", "a"]);
    town.db.drop_now().await;
}

/// Caps, pauses and closing bind a claim by marks as any other.
#[tokio::test]
async fn marks_lift_no_rule() {
    let town = Town::new().await;
    let c = town.db.tenant("c").await;
    put(&town, &[(&town.a, 3, 5), (&town.a, 3, 4), (&town.a, 3, 3), (&town.b, 3, 5), (&c, 3, 5)]).await;
    for sql in [
        "UPDATE reeve.tenants SET running_max = 2 WHERE id = 'a'",
        "UPDATE reeve.tenants SET paused = true WHERE id = 'b'",
        "UPDATE reeve.tenants SET state = 'closed' WHERE id = 'c'",
    ] {
        sqlx::query(sql).execute(&town.db.admin).await.expect("changed");
    }
    let known = [(&town.a, 60), (&town.b, 60), (&c, 60)];
    assert_eq!(by_marks(&town, 10, &known).await.0, ["a 3/5", "a 3/4"]);
    assert!(by_marks(&town, 10, &known).await.0.is_empty());
    sqlx::query("UPDATE reeve.kinds SET paused = true WHERE name = 'fleet.probe'")
        .execute(&town.db.admin)
        .await
        .expect("paused");
    sqlx::query("UPDATE reeve.tenants SET running_max = NULL, paused = false")
        .execute(&town.db.admin)
        .await
        .expect("set");
    assert!(by_marks(&town, 10, &known).await.0.is_empty());
    town.db.drop_now().await;
}

/// Twenty thousand jobs that are over stand before fifty ready ones, kept by a snapshot. The server's own counter says how
/// many index entries a claim read.
#[tokio::test]
async fn what_is_over_is_not_read_again_by_a_claim_with_marks() {
    let town = Town::new().await;
    let mut holder = PgConnection::connect_with(&town.db.options("reeve_worker")).await.expect("a session");
    sqlx::query(
        "INSERT INTO reeve.jobs (id, tenant_id, kind, queue, region, state, priority, attempts_max, run_at, payload)
         SELECT reeve.new_id(), 'a', 'fleet.probe', 'probes', 'default', 'available', 3, 3,
                '2026-01-01'::timestamptz + make_interval(secs => g), '{}' FROM generate_series(1, 20050) g",
    )
    .execute(&town.db.admin)
    .await
    .expect("put");
    let mut snapshot = holder.begin().await.expect("begin");
    sqlx::query("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ").execute(&mut *snapshot).await.expect("set");
    sqlx::query("SELECT count(*) FROM pg_class").execute(&mut *snapshot).await.expect("held");
    sqlx::query("DELETE FROM reeve.jobs WHERE run_at <= '2026-01-01'::timestamptz + make_interval(secs => 20000)")
        .execute(&town.db.admin)
        .await
        .expect("over");
    let entries = async |known: Option<&str>| {
        let mut tx = town.worker.begin().await.expect("begin");
        let got: i64 = sqlx::query_scalar(
            "SELECT count(id) FROM reeve.claim('probes', 'default', 10, 'w', '', 30, string_to_array($1, ','),
               CASE WHEN $1 IS NOT NULL THEN ARRAY['2026-01-01'::timestamptz + make_interval(secs => 20001)] END)",
        )
        .bind(known)
        .fetch_one(&mut *tx)
        .await
        .expect("a claim");
        assert_eq!(got, 10);
        let read: i64 = sqlx::query_scalar("SELECT pg_stat_get_xact_tuples_returned('reeve.jobs_ready'::regclass)")
            .fetch_one(&mut *tx)
            .await
            .expect("a counter");
        tx.rollback().await.expect("undone");
        read
    };
    let (without, with) = (entries(None).await, entries(Some("a")).await);
    assert!(without > 20_000, "{without} entries: nothing was in the way, and this test shows nothing");
    assert!(with < 1_000, "{with} entries with marks, {without} without");
    snapshot.rollback().await.expect("let go");
    town.db.drop_now().await;
}

/// Through the queue itself, with a backlog that is slow to look at: all is handed out, also what the marks do not show.
#[tokio::test]
async fn a_slow_lane_hands_out_everything_in_the_end() {
    let town = Town::new().await;
    let queue = PostgresQueue::new(town.worker.clone());
    let lane = Lane { queue: "probes".to_owned(), region: "default".to_owned() };
    let mut holder = PgConnection::connect_with(&town.db.options("reeve_worker")).await.expect("a session");
    let mut snapshot = holder.begin().await.expect("begin");
    sqlx::query("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ").execute(&mut *snapshot).await.expect("set");
    sqlx::query("SELECT count(*) FROM pg_class").execute(&mut *snapshot).await.expect("held");
    for _ in 0..2 {
        sqlx::query(
            "INSERT INTO reeve.jobs (id, tenant_id, kind, queue, region, state, priority, attempts_max, run_at, payload)
             SELECT reeve.new_id(), 'a', 'fleet.probe', 'probes', 'default', 'available', 3, 3, now(), '{}'
             FROM generate_series(1, 100000)",
        )
        .execute(&town.db.admin)
        .await
        .expect("put");
        sqlx::query("DELETE FROM reeve.jobs WHERE id IN (SELECT id FROM reeve.jobs ORDER BY run_at, id LIMIT 99000)")
            .execute(&town.db.admin)
            .await
            .expect("over");
    }
    let (mut cursor, mut got, mut by_marks) = (String::new(), 0, 0);
    let mut late = false;
    loop {
        let marked = queue.is_marked(&lane);
        let claim = queue.claim(&lane, 50, "w", &cursor, Duration::from_secs(30)).await.expect("a claim");
        by_marks += i32::from(marked && !claim.jobs.is_empty());
        got += claim.jobs.len();
        if marked && !late {
            // Older than any mark, and of a tenant that is in none.
            put(&town, &[(&town.a, 1, 3), (&town.b, 3, 3)]).await;
            late = true;
        }
        if claim.jobs.is_empty() && !claim.more {
            break;
        }
        cursor = claim.cursor;
    }
    assert!(by_marks > 0 && late, "no claim went by marks: this test shows nothing");
    assert_eq!(got, 2_002);
    let mut tx = town.app.begin().await.expect("begin");
    client::set_tenant(&mut tx, &town.b).await.expect("context");
    client::enqueue(&mut tx, &ProbeFleet::default(), &client::Enqueue::default()).await.expect("enqueued");
    tx.commit().await.expect("commit");
    let claim = queue.claim(&lane, 50, "w", &cursor, Duration::from_secs(30)).await.expect("a claim");
    assert_eq!(claim.jobs.len(), 1, "an idle lane looks at everything");
    snapshot.rollback().await.expect("let go");
    town.db.drop_now().await;
}

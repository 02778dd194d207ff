//! Schedules fire once a slot, whoever does it and however often.
use std::time::Duration;

use sqlx::{Connection, PgPool};

use super::{ask, database, kind, run};
use crate::enqueuer::{self, Enqueuer, Fired, STALL_MS};

/// Schedules `test.tick` once a year, with the slot of forty days ago due: no slot comes up while a test runs.
async fn slot_due(db: &PgPool) {
    run(
        db,
        "INSERT INTO reeve.schedules (kind, cron, next_at)
         SELECT 'test.tick', to_char(day, '0 0 DD MM') || ' *', day AT TIME ZONE 'UTC'
         FROM date_trunc('day', now() AT TIME ZONE 'UTC' - interval '40 days') day
         ON CONFLICT (kind) DO UPDATE SET next_at = excluded.next_at",
    )
    .await;
}

#[tokio::test]
async fn first_sight_of_a_schedule_only_computes() {
    let (database, pool) = database().await;
    let db = &database.admin;
    run(db, "INSERT INTO reeve.schedules (kind, cron) VALUES ('test.tick', '0 * * * *')").await;
    let fired = Enqueuer::new().run_once(&pool).await.expect("a run");
    assert_eq!(fired, Fired { moved: 1, ..Fired::default() });
    let next = "SELECT next_at = date_trunc('hour', now()) + interval '1 hour' FROM reeve.schedules";
    assert_eq!(ask(db, next).await, "true");
    assert_eq!(ask(db, "SELECT count(*) FROM reeve.jobs").await, "0");
    database.drop_now().await;
}

#[tokio::test]
async fn a_slot_is_one_job_per_tenant_that_may_work() {
    let (database, pool) = database().await;
    let db = &database.admin;
    run(db, "UPDATE reeve.tenants SET state = CASE id WHEN 't2' THEN 'closing' ELSE 'closed' END WHERE id <> 't1'")
        .await;
    slot_due(db).await;
    let fired = Enqueuer::new().run_once(&pool).await.expect("a run");
    assert_eq!(fired, Fired { slots: 1, jobs: 1, ..Fired::default() });
    let job = "SELECT tenant_id || ' ' || kind || ' ' || queue || ' ' || state || ' ' || (j.run_at = s.last_slot_at)
               FROM reeve.jobs j JOIN reeve.schedules s USING (kind)";
    assert_eq!(ask(db, job).await, "t1 test.tick tests scheduled true");
    database.drop_now().await;
}

#[tokio::test]
async fn tenants_are_spread_over_the_window_and_always_alike() {
    let (database, pool) = database().await;
    let db = &database.admin;
    slot_due(db).await;
    run(db, "UPDATE reeve.schedules SET window_secs = 3600").await;
    Enqueuer::new().run_once(&pool).await.expect("a run");
    let offsets = "SELECT string_agg((run_at - last_slot_at)::text, ' ' ORDER BY tenant_id)
                   FROM reeve.jobs JOIN reeve.schedules USING (kind)";
    let first = ask(db, offsets).await;
    assert_eq!(ask(db, "SELECT count(DISTINCT run_at) FROM reeve.jobs").await, "3");
    run(db, "DELETE FROM reeve.jobs").await;
    slot_due(db).await;
    Enqueuer::new().run_once(&pool).await.expect("a run");
    assert_eq!(ask(db, offsets).await, first);
    database.drop_now().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_schedulers_make_one_job_per_tenant_and_slot() {
    let (database, _) = database().await;
    let db = &database.admin;
    for round in 0..10 {
        slot_due(db).await;
        // Jobs of the round before are done and gone: only the moved `next_at` says that their slot was fired.
        run(db, "DELETE FROM reeve.jobs").await;
        let mut schedulers = tokio::task::JoinSet::new();
        for _ in 0..3 {
            let pool = database.pool("reeve_scheduler").await;
            schedulers.spawn(async move {
                let (mut enqueuer, mut slots) = (Enqueuer::new(), 0);
                for _ in 0..8 {
                    slots += enqueuer.run_once(&pool).await.expect("a run").slots;
                }
                pool.close().await;
                slots
            });
        }
        let fired: u64 = schedulers.join_all().await.into_iter().sum();
        assert_eq!(fired, 1, "round {round}");
        let per_tenant = "SELECT string_agg(tenant_id || n, ' ' ORDER BY tenant_id)
                          FROM (SELECT tenant_id, count(*) n FROM reeve.jobs GROUP BY tenant_id) x";
        assert_eq!(ask(db, per_tenant).await, "t11 t21 t31", "round {round}");
    }
    database.drop_now().await;
}

#[tokio::test]
async fn a_scheduler_that_only_remembers_a_slot_changes_nothing() {
    let (database, pool) = database().await;
    let db = &database.admin;
    slot_due(db).await;
    let mut connection =
        sqlx::PgConnection::connect_with(&database.options("reeve_scheduler")).await.expect("connected");
    // It sees the slot, and loses its transaction and with it the lock.
    let mut tx = connection.begin().await.expect("begun");
    let due = enqueuer::look(&mut tx, STALL_MS).await.expect("a look").remove(0);
    tx.rollback().await.expect("lost");
    assert_eq!(Enqueuer::new().run_once(&pool).await.expect("a run").jobs, 3);
    // The jobs are done, so that their unique keys guard nothing any more.
    run(db, "DELETE FROM reeve.jobs").await;
    let moved = ask(db, "SELECT next_at FROM reeve.schedules").await;
    let fired = enqueuer::fire(&mut connection, &due, &due.step().expect("a step")).await.expect("an answer");
    assert_eq!(fired, None);
    assert_eq!(ask(db, "SELECT count(*) FROM reeve.jobs").await, "0");
    assert_eq!(ask(db, "SELECT next_at FROM reeve.schedules").await, moved);
    database.drop_now().await;
}

#[tokio::test]
async fn a_scheduler_paused_in_its_transaction_loses_it_and_another_fires() {
    let (database, pool) = database().await;
    let db = &database.admin;
    slot_due(db).await;
    let mut connection =
        sqlx::PgConnection::connect_with(&database.options("reeve_scheduler")).await.expect("connected");
    let mut paused = connection.begin().await.expect("begun");
    let due = enqueuer::look(&mut paused, STALL_MS).await.expect("a look").remove(0);
    // While it holds the row, another one has nothing to do.
    assert_eq!(Enqueuer::new().run_once(&pool).await.expect("a run"), Fired::default());
    // The same look with less patience, so that the test need not wait for ten seconds.
    enqueuer::look(&mut paused, 50).await.expect("a look");
    let mut tries = 0;
    while Enqueuer::new().run_once(&pool).await.expect("a run").jobs != 3 {
        tries += 1;
        assert!(tries < 500, "the paused scheduler still holds the schedule");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let step = due.step().expect("a step");
    enqueuer::fire(&mut paused, &due, &step).await.expect_err("its session was ended");
    assert_eq!(ask(db, "SELECT count(*) FROM reeve.jobs").await, "3");
    database.drop_now().await;
}

#[tokio::test]
async fn a_slot_fired_again_while_its_jobs_live_adds_none() {
    let (database, pool) = database().await;
    let db = &database.admin;
    slot_due(db).await;
    assert_eq!(Enqueuer::new().run_once(&pool).await.expect("a run").jobs, 3);
    // Somebody puts the schedule back, by a restore or by hand.
    slot_due(db).await;
    assert_eq!(Enqueuer::new().run_once(&pool).await.expect("a run").jobs, 0);
    assert_eq!(ask(db, "SELECT count(*) FROM reeve.jobs").await, "3");
    database.drop_now().await;
}

#[tokio::test]
async fn after_downtime_latest_fires_the_last_slot_and_skip_none() {
    let (database, pool) = database().await;
    let db = &database.admin;
    kind(db, "test.skip").await;
    // Two slots missed; the last one was forty days ago whenever this runs.
    run(
        db,
        "INSERT INTO reeve.schedules (kind, cron, catch_up, next_at)
         SELECT 'test.' || k, to_char(now() - interval '40 days', '0 0 DD MM') || ' *', CASE k WHEN 'tick' THEN 'latest' ELSE k END,
                now() - interval '800 days' FROM unnest(ARRAY['tick', 'skip']) k",
    )
    .await;
    let fired = Enqueuer::new().run_once(&pool).await.expect("a run");
    assert_eq!(fired, Fired { slots: 1, jobs: 3, moved: 1, refused: 0 });
    let made = "SELECT DISTINCT kind || ' ' || (run_at = date_trunc('day', now() AT TIME ZONE 'UTC' - interval '40 days') AT TIME ZONE 'UTC')
                FROM reeve.jobs";
    assert_eq!(ask(db, made).await, "test.tick true");
    assert_eq!(ask(db, "SELECT bool_and(next_at > now()) FROM reeve.schedules").await, "true");
    assert_eq!(Enqueuer::new().run_once(&pool).await.expect("a run"), Fired::default());
    database.drop_now().await;
}

#[tokio::test]
async fn a_schedule_that_cannot_be_followed_does_not_stop_the_others() {
    let (database, pool) = database().await;
    let db = &database.admin;
    slot_due(db).await;
    for (name, cron, zone) in [
        ("test.cron", "every day", "UTC"),
        ("test.zone", "0 * * * *", "Europe/Atlantis"),
        ("test.never", "0 0 30 2 *", "UTC"),
    ] {
        kind(db, name).await;
        run(db, &format!("INSERT INTO reeve.schedules (kind, cron, time_zone) VALUES ('{name}', '{cron}', '{zone}')"))
            .await;
    }
    let mut enqueuer = Enqueuer::new();
    let fired = enqueuer.run_once(&pool).await.expect("a run");
    assert_eq!(fired, Fired { slots: 1, jobs: 3, moved: 0, refused: 3 });
    let said = enqueuer.complaint("test.cron").expect("a complaint").to_owned();
    assert!(said.contains("every day"), "{said}");
    assert!(enqueuer.complaint("test.zone").expect("a complaint").contains("Europe/Atlantis"));
    assert_eq!(ask(db, "SELECT count(*) FROM reeve.schedules WHERE next_at IS NULL").await, "3");
    // Mended by the operator's override: taken up at the next look.
    run(db, "UPDATE reeve.schedules SET cron_override = '@daily' WHERE kind = 'test.cron'").await;
    assert_eq!(enqueuer.run_once(&pool).await.expect("a run"), Fired { moved: 1, refused: 2, ..Fired::default() });
    assert_eq!(enqueuer.complaint("test.cron"), None);
    database.drop_now().await;
}

#[tokio::test]
async fn jobs_that_the_database_refuses_undo_their_schedule_alone() {
    let (database, pool) = database().await;
    let db = &database.admin;
    slot_due(db).await;
    kind(db, "test.bad").await;
    run(
        db,
        "INSERT INTO reeve.schedules (kind, cron, next_at) VALUES ('test.bad', '0 * * * *', now() - interval '9 hours');
         ALTER TABLE reeve.jobs ADD CHECK (kind <> 'test.bad')",
    )
    .await;
    let mut enqueuer = Enqueuer::new();
    let fired = enqueuer.run_once(&pool).await.expect("a run");
    assert_eq!(fired, Fired { slots: 1, jobs: 3, moved: 0, refused: 1 });
    assert!(enqueuer.complaint("test.bad").is_some());
    assert_eq!(ask(db, "SELECT next_at < now() FROM reeve.schedules WHERE kind = 'test.bad'").await, "true");
    database.drop_now().await;
}

#[tokio::test]
async fn a_changed_cadence_is_computed_anew_and_other_changes_are_not() {
    let (database, pool) = database().await;
    let db = &database.admin;
    run(db, "INSERT INTO reeve.schedules (kind, cron) VALUES ('test.tick', '0 0 1 1 *')").await;
    let mut enqueuer = Enqueuer::new();
    enqueuer.run_once(&pool).await.expect("a run");
    run(db, "UPDATE reeve.schedules SET window_secs = 60, cron = cron").await;
    assert_eq!(ask(db, "SELECT next_at IS NULL FROM reeve.schedules").await, "false");
    run(db, "UPDATE reeve.schedules SET cron_override = '*/5 * * * *'").await;
    assert_eq!(enqueuer.run_once(&pool).await.expect("a run").moved, 1);
    assert_eq!(ask(db, "SELECT next_at <= now() + interval '5 minutes' FROM reeve.schedules").await, "true");
    // The built-in cadence changes under an override: nothing does.
    run(db, "UPDATE reeve.schedules SET cron = '0 0 2 1 *'").await;
    assert_eq!(ask(db, "SELECT next_at IS NULL FROM reeve.schedules").await, "false");
    database.drop_now().await;
}

#[tokio::test]
async fn a_paused_schedule_does_not_fire() {
    let (database, pool) = database().await;
    slot_due(&database.admin).await;
    run(&database.admin, "UPDATE reeve.schedules SET paused = true").await;
    assert_eq!(Enqueuer::new().run_once(&pool).await.expect("a run"), Fired::default());
    database.drop_now().await;
}

#[tokio::test]
async fn after_downtime_all_fires_every_missed_slot_under_its_own_key() {
    let (database, pool) = database().await;
    let db = &database.admin;
    run(
        db,
        "INSERT INTO reeve.schedules (kind, cron, catch_up, next_at)
         SELECT 'test.tick', '0 0 * * *', 'all', date_trunc('day', now() AT TIME ZONE 'UTC' - interval '4 days') AT TIME ZONE 'UTC'",
    )
    .await;
    let fired = Enqueuer::new().run_once(&pool).await.expect("a run");
    // Six when midnight passes in between.
    assert!(fired.slots == 5 || fired.slots == 6, "{fired:?}");
    assert_eq!(fired.jobs, 3 * fired.slots);
    let keys = ask(db, "SELECT count(DISTINCT unique_key) FROM reeve.jobs").await;
    assert_eq!(keys, fired.slots.to_string());
    assert_eq!(ask(db, "SELECT next_at > now() AND last_slot_at <= now() FROM reeve.schedules").await, "true");
    database.drop_now().await;
}

#[tokio::test]
async fn what_all_makes_up_for_at_a_time_is_bounded_and_nothing_is_left_out() {
    let (database, pool) = database().await;
    let db = &database.admin;
    run(
        db,
        "INSERT INTO reeve.schedules (kind, cron, catch_up, next_at)
         VALUES ('test.tick', '* * * * *', 'all', date_trunc('minute', now() - interval '1500 minutes'))",
    )
    .await;
    let mut enqueuer = Enqueuer::new();
    assert_eq!(enqueuer.run_once(&pool).await.expect("a run").slots, 1000);
    let rest = enqueuer.run_once(&pool).await.expect("a run").slots;
    assert!((501..=520).contains(&rest), "{rest}");
    let minutes =
        "SELECT extract(epoch FROM max(run_at) - min(run_at)) / 60 + 1 = count(DISTINCT run_at) FROM reeve.jobs";
    assert_eq!(ask(db, minutes).await, "true");
    database.drop_now().await;
}

/// What the planner and the functions touch does not grow with the tenants: a hundred thousand take the looks of three.
#[tokio::test]
async fn a_hundred_thousand_tenants_take_no_more_looks_than_three() {
    let (database, _) = database().await;
    let db = &database.admin;
    let mut looks = vec![];
    for tenants in [3, 100_000] {
        if tenants > 3 {
            run(
                db,
                "SET session_replication_role = replica;
                 INSERT INTO reeve.tenants (id, name, region)
                 SELECT 'n' || n, 'N', 'r' || n % 3 FROM generate_series(4, 100000) n",
            )
            .await;
        }
        slot_due(db).await;
        run(db, "DELETE FROM reeve.jobs").await;
        // A session of its own: what it counts begins with nothing.
        let mut session =
            sqlx::PgConnection::connect_with(&database.options("reeve_scheduler")).await.expect("connected");
        let mut tx = session.begin().await.expect("begun");
        let due = enqueuer::look(&mut tx, STALL_MS).await.expect("a look").remove(0);
        let made = enqueuer::fire(&mut tx, &due, &due.step().expect("a step")).await.expect("fired");
        assert_eq!(made, Some(tenants));
        // Rows that reads of other tables returned, and how often they were begun; the jobs' own unique index is its guard.
        let read: i64 = sqlx::query_scalar(
            "SELECT sum(coalesce(seq_scan, 0) + coalesce(idx_scan, 0))::bigint FROM pg_stat_xact_user_tables
             WHERE schemaname = 'reeve' AND relname <> 'jobs'",
        )
        .fetch_one(&mut *tx)
        .await
        .expect("statistics");
        looks.push(read);
        tx.commit().await.expect("committed");
    }
    assert_eq!(looks[0], looks[1], "{looks:?}");
    let regions =
        "SELECT count(*) FROM reeve.jobs j JOIN reeve.tenants t ON t.id = j.tenant_id AND t.region = j.region";
    assert_eq!(ask(db, regions).await, "100000");
    database.drop_now().await;
}

#[tokio::test]
async fn whoever_may_not_work_now_gets_jobs_that_wait() {
    let (database, pool) = database().await;
    let db = &database.admin;
    run(
        db,
        "UPDATE reeve.tenants SET paused = id = 't1', moving = id = 't2';
         INSERT INTO reeve.flags (name, description, value_type, default_value) VALUES ('kind.test.tick', 'd', 'bool', 'true');
         UPDATE reeve.tenants SET kinds_off = '{test.tick}' WHERE id = 't3'",
    )
    .await;
    slot_due(db).await;
    assert_eq!(Enqueuer::new().run_once(&pool).await.expect("a run").jobs, 3);
    run(db, "SELECT reeve.promote(100)").await;
    let claimed = "SELECT count(*) FROM reeve.claim('tests', 'default', 10, 'w', '', 30) WHERE id IS NOT NULL";
    assert_eq!(ask(db, claimed).await, "0");
    assert_eq!(ask(db, "SELECT count(*) FROM reeve.jobs WHERE state = 'available'").await, "3");
    database.drop_now().await;
}

#[tokio::test]
async fn the_operators_window_comes_before_the_kinds_own() {
    let (database, pool) = database().await;
    let db = &database.admin;
    slot_due(db).await;
    run(db, "UPDATE reeve.schedules SET window_secs = 0, window_override = 3600").await;
    Enqueuer::new().run_once(&pool).await.expect("a run");
    assert_eq!(ask(db, "SELECT count(DISTINCT run_at) FROM reeve.jobs").await, "3");
    database.drop_now().await;
}

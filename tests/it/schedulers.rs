//! Several real schedulers and no leader: what happens when one is stopped in the middle of a slot, and goes on when the
//! schedule has long moved on.
use crate::support::{Town, program, until};

fn scheduler(town: &Town) -> tokio::process::Child {
    tokio::process::Command::new(program("reeve-scheduler"))
        .env("REEVE_SCHEDULER__DATABASE_URL", town.db.url("reeve_scheduler"))
        .stdin(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("it starts")
}

fn signal(child: &tokio::process::Child, signal: i32) {
    let pid = i32::try_from(child.id().expect("it runs")).expect("a pid");
    // SAFETY: kill(2) of a child that has not been waited for: its pid cannot be another process'.
    #[allow(unsafe_code, reason = "there is no safe kill in the standard library")]
    let sent = unsafe { libc::kill(pid, signal) };
    assert_eq!(sent, 0);
}

async fn run(town: &Town, sql: &'static str) {
    sqlx::raw_sql(sql).execute(&town.db.admin).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
}

/// The slot of two hours ago is due; by the expression, the next comes in a year.
const DUE: &str = "INSERT INTO reeve.schedules (kind, cron, catch_up, next_at)
    SELECT 'fleet.probe', to_char(at, 'MI HH24 DD MM') || ' *', 'all', at AT TIME ZONE 'UTC'
    FROM date_trunc('minute', now() AT TIME ZONE 'UTC' - interval '2 hours') at";

/// Remembers what is fired, whatever becomes of the jobs.
const REMEMBER: &str = "DELETE FROM reeve.schedules;
    CREATE TABLE public.fired (kind text, tenant_id text, slot text);
    CREATE FUNCTION public.remember() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS
      $$ BEGIN INSERT INTO public.fired VALUES (NEW.kind, NEW.tenant_id, NEW.unique_key); RETURN NULL; END $$;
    CREATE TRIGGER remember AFTER INSERT ON reeve.jobs FOR EACH ROW EXECUTE FUNCTION public.remember()";

#[tokio::test]
async fn of_three_schedulers_one_stopped_in_a_slot_and_resumed_an_hour_later_repeats_and_loses_nothing() {
    let town = Town::new().await;
    run(&town, REMEMBER).await;
    run(&town, DUE).await;
    // Nobody can insert jobs: the first scheduler gets as far as its slot, and stands there.
    let mut held = town.db.admin.begin().await.expect("begun");
    sqlx::query("LOCK TABLE reeve.jobs IN SHARE MODE").execute(&mut *held).await.expect("locked");
    let mut stopped = scheduler(&town);
    until("it is in the middle of the slot", async || {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
                   AND wait_event_type = 'Lock' AND query LIKE '-- enqueuer.fire%'";
        town.count(sql).await == 1
    })
    .await;
    signal(&stopped, libc::SIGSTOP);
    held.rollback().await.expect("released");
    until("its transaction stands open", async || {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
                   AND state = 'idle in transaction' AND query LIKE '-- enqueuer.fire%'";
        town.count(sql).await == 1
    })
    .await;
    assert_eq!(town.count("SELECT count(*) FROM public.fired").await, 0, "nothing of it is committed");

    // The two others. The database ends the stopped one's session, and one of them fires.
    let mut others = [scheduler(&town), scheduler(&town)];
    until("another has fired the slot", async || town.count("SELECT count(*) FROM public.fired").await == 2).await;
    // An hour passes, by the database's clock: the next slot is due, and fires. The jobs of the first are done, so that no
    // unique key guards it any more.
    run(&town, "DELETE FROM reeve.jobs").await;
    run(&town, "UPDATE reeve.schedules SET next_at = date_trunc('minute', now() - interval '1 hour')").await;
    until("the slot of an hour later has fired", async || town.count("SELECT count(*) FROM public.fired").await == 4)
        .await;
    run(&town, "DELETE FROM reeve.jobs").await;

    // The resumed one is alone with the next slot: that it fires shows that it has looked, and works.
    for child in &mut others {
        child.kill().await.expect("killed");
    }
    signal(&stopped, libc::SIGCONT);
    run(&town, "UPDATE reeve.schedules SET next_at = date_trunc('minute', now() - interval '30 minutes')").await;
    until("it has fired a slot of its own", async || town.count("SELECT count(*) FROM public.fired").await >= 6).await;
    let twice = "SELECT count(*) FROM (SELECT FROM public.fired GROUP BY tenant_id, slot HAVING count(*) > 1) x";
    assert_eq!(town.count(twice).await, 0);
    assert_eq!(town.count("SELECT count(*) FROM public.fired").await, 6, "none besides");
    stopped.kill().await.expect("killed");
}

/// Gives the whole of Reeve's schema a clock that differs from this machine's, which is the schedulers'. (The clock of a
/// program cannot be changed alone.)
async fn differ(town: &Town, by: &str) {
    let clock = format!(
        "CREATE FUNCTION public.other_now() RETURNS timestamptz LANGUAGE sql STABLE
           RETURN pg_catalog.now() + interval '{by}';
         GRANT EXECUTE ON FUNCTION public.other_now() TO PUBLIC"
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(clock)).execute(&town.db.admin).await.expect("a clock");
    let functions: Vec<String> = sqlx::query_scalar(
        "SELECT pg_get_functiondef(p.oid) FROM pg_proc p WHERE p.pronamespace = 'reeve'::regnamespace AND p.prosrc ~ 'now\\(\\)'",
    )
    .fetch_all(&town.db.admin)
    .await
    .expect("the functions");
    assert!(functions.iter().any(|sql| sql.contains("reeve.schedules_due()")));
    for sql in functions {
        let sql = sql.replace("now()", "public.other_now()");
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&town.db.admin).await.expect("replaced");
    }
}

#[tokio::test]
async fn schedulers_whose_clock_is_ten_minutes_off_fire_by_the_databases_clock_and_once() {
    for by in ["10 minutes", "-10 minutes"] {
        let town = Town::new().await;
        run(&town, REMEMBER).await;
        differ(&town, by).await;
        // Five minutes from the database's now, both ways. By the schedulers' clock both were due long since, or neither is.
        run(
            &town,
            "INSERT INTO reeve.schedules (kind, cron, next_at)
             SELECT kind, to_char(at, 'MI HH24 DD MM') || ' *', at AT TIME ZONE 'UTC'
             FROM date_trunc('minute', public.other_now() AT TIME ZONE 'UTC') now,
                  LATERAL (VALUES ('fleet.probe', now - interval '5 minutes'), ('webhook.prune', now + interval '5 minutes')) s (kind, at)",
        )
        .await;
        let mut schedulers = [scheduler(&town), scheduler(&town)];
        let fired = "SELECT count(*) FROM public.fired WHERE kind = 'fleet.probe'";
        until("the slot has fired", async || town.count(fired).await == 2).await;
        // Its jobs are done, and another slot comes due: with it they have looked once more.
        run(&town, "DELETE FROM reeve.jobs; DELETE FROM reeve.schedules WHERE kind = 'fleet.probe'").await;
        run(
            &town,
            "INSERT INTO reeve.schedules (kind, cron, next_at)
             SELECT 'fleet.probe', to_char(at, 'MI HH24 DD MM') || ' *', at AT TIME ZONE 'UTC'
             FROM date_trunc('minute', public.other_now() AT TIME ZONE 'UTC' - interval '2 minutes') at",
        )
        .await;
        until("the next has fired", async || town.count(fired).await >= 4).await;
        assert_eq!(town.count("SELECT count(*) FROM public.fired").await, 4, "{by}: none twice, none before its time");
        assert_eq!(town.count("SELECT count(DISTINCT (tenant_id, slot)) FROM public.fired").await, 4);
        let following = "SELECT count(*) FROM reeve.schedules WHERE kind = 'fleet.probe' AND next_at > public.other_now() + interval '300 days'";
        assert_eq!(town.count(following).await, 1, "{by}: computed from the database's now");
        for child in &mut schedulers {
            child.kill().await.expect("killed");
        }
    }
}

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

#[tokio::test]
async fn of_three_schedulers_one_stopped_in_a_slot_and_resumed_an_hour_later_repeats_and_loses_nothing() {
    let town = Town::new().await;
    run(
        &town,
        "DELETE FROM reeve.schedules;
         -- What is fired is remembered, whatever becomes of the jobs.
         CREATE TABLE public.fired (tenant_id text, slot text);
         CREATE FUNCTION public.remember() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS
           $$ BEGIN INSERT INTO public.fired VALUES (NEW.tenant_id, NEW.unique_key); RETURN NULL; END $$;
         CREATE TRIGGER remember AFTER INSERT ON reeve.jobs FOR EACH ROW EXECUTE FUNCTION public.remember()",
    )
    .await;
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

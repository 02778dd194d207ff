//! `reeve schedules …`: what is stored, what is refused before it is, and what is audited.
use super::*;

const KIND: &str = "webhook.prune";

async fn stored(db: &TestDatabase) -> String {
    sqlx::query_scalar(
        "SELECT concat_ws('|', cron_override, time_zone, window_override, catch_up, paused) FROM reeve.schedules",
    )
    .fetch_one(&db.admin)
    .await
    .expect("one schedule")
}

#[tokio::test]
async fn a_schedule_is_changed_paused_resumed_and_given_back_and_each_act_is_audited() {
    let db = TestDatabase::new().await;
    let set = ["schedules", "set", KIND, "--reason", "r"];
    let all = ["--cron", "30 2 * * *", "--time-zone", "Europe/Berlin", "--window-secs", "60", "--catch-up", "all"];
    let ran = reeve(&db, &[&set[..], &all].concat()).await;
    assert_eq!(ran.out, "changed: catch_up, cron_override, time_zone, window_override\n", "{}", ran.messages);
    assert_eq!(stored(&db).await, "30 2 * * *|Europe/Berlin|60|all|f");
    let again = reeve(&db, &[&set[..], &all].concat()).await;
    assert_eq!((again.code, again.out.as_str()), (0, "it is so already; nothing was changed\n"));
    let shown = reeve(&db, &["schedules", "show", KIND]).await.out;
    assert!(shown.contains("30 2 * * *  (the kind's own: 17 3 * * *)") && shown.contains("60 s"), "{shown}");
    for (verb, said) in [("pause", "|t"), ("resume", "|f")] {
        assert_eq!(reeve(&db, &["schedules", verb, KIND, "--reason", "r"]).await.out, "changed: paused\n");
        assert!(stored(&db).await.ends_with(said));
    }
    let back = reeve(&db, &[&set[..], &["--cron-default", "--window-secs", "default"]].concat()).await;
    assert_eq!(back.out, "changed: cron_override, window_override\n", "{}", back.messages);
    assert!(reeve(&db, &["schedules", "list"]).await.out.contains("17 3 * * *"));
    let entries: String = sqlx::query_scalar(
        "SELECT string_agg(concat_ws(' ', actor, action, target, array_to_string(fields, ','), reason), '; ' ORDER BY seq)
         FROM reeve.audit_log JOIN reeve.audit_bodies USING (tenant_id, seq) WHERE tenant_id = '-'",
    )
    .fetch_one(&db.admin)
    .await
    .expect("entries");
    let target = format!("schedule:{KIND}");
    assert_eq!(
        entries,
        format!(
            "cli:ann schedule.changed {target} catch_up,cron_override,time_zone,window_override r; \
             cli:ann schedule.paused {target} paused r; cli:ann schedule.resumed {target} paused r; \
             cli:ann schedule.changed {target} cron_override,window_override r"
        )
    );
    db.drop_now().await;
}

#[tokio::test]
async fn what_cannot_be_followed_is_refused_before_it_is_stored() {
    let db = TestDatabase::new().await;
    let before = stored(&db).await;
    for (arguments, code, says) in [
        (&["set", KIND, "--reason", "r", "--cron", "every day"][..], 2, "five fields"),
        (&["set", KIND, "--reason", "r", "--cron", "0 0 30 2 *"], 2, "never comes due"),
        (&["set", KIND, "--reason", "r", "--time-zone", "europe/berlin"], 2, "it is written Europe/Berlin"),
        (&["set", "no.kind", "--reason", "r", "--catch-up", "skip"], 1, "schedules are webhook.prune"),
        (&["next", "no.kind"], 1, "schedules are webhook.prune"),
        (&["pause", "no.kind", "--reason", "r"], 4, "hint: Schedules: webhook.prune"),
        (&["run", KIND, "--tenant", "nobody", "--reason", "r"], 4, "\"nobody\" is not registered"),
    ] {
        let ran = reeve(&db, &[&["schedules"], arguments].concat()).await;
        assert!(ran.code == code && ran.messages.contains(says), "{arguments:?}: {} {}", ran.code, ran.messages);
    }
    assert_eq!(stored(&db).await, before);
    assert_eq!(count(&db, "audit_log").await, 0);
    db.drop_now().await;
}

#[tokio::test]
async fn a_run_outside_the_cadence_makes_jobs_once_and_moves_nothing() {
    let db = TestDatabase::new().await;
    for tenant in ["a", "b", "c"] {
        db.tenant(tenant).await;
    }
    let run = ["schedules", "run", KIND, "--reason", "r"];
    let one = reeve(&db, &[&run[..], &["--tenant", "a"]].concat()).await;
    assert_eq!(one.out, "jobs made: 1\n", "{}", one.messages);
    assert_eq!(reeve(&db, &run).await.out, "jobs made: 2\n");
    assert!(reeve(&db, &run).await.out.starts_with("jobs made: 0: "));
    assert_eq!(count(&db, "jobs").await, 3);
    assert_eq!(count(&db, "audit_log").await, 3);
    let unmoved: bool = sqlx::query_scalar("SELECT next_at IS NULL AND last_slot_at IS NULL FROM reeve.schedules")
        .fetch_one(&db.admin)
        .await
        .expect("a schedule");
    assert!(unmoved);
    db.drop_now().await;
}

#[tokio::test]
async fn the_next_slots_are_shown_in_both_times() {
    let db = TestDatabase::new().await;
    let set = ["schedules", "set", KIND, "--reason", "r", "--cron", "0 12 * * *", "--time-zone", "Asia/Kathmandu"];
    assert_eq!(reeve(&db, &set).await.code, 0);
    let found = reeve(&db, &["--json", "schedules", "next", KIND, "--count", "3"]).await.json();
    let slots = found["slots"].as_array().expect("slots");
    assert_eq!(slots.len(), 3);
    for slot in slots {
        assert!(slot["local"].as_str().is_some_and(|at| at.ends_with("T12:00:00")), "{slot}");
        assert!(slot["at"].as_str().is_some_and(|at| at.ends_with("T06:15:00Z")), "{slot}");
    }
    let shown = reeve(&db, &["schedules", "next", KIND, "--count", "1"]).await.out;
    assert!(
        shown.starts_with("Asia/Kathmandu") && shown.contains(" 12:00  ") && shown.contains("T06:15:00Z"),
        "{shown}"
    );
    db.drop_now().await;
}

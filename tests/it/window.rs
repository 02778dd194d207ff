//! The window in Redis: what the relay holds out, what a worker takes up, and that an id decides nothing. Faults are in
//! `window_faults`; what it shares with every queue is in `conformance`.
use std::{collections::BTreeSet, time::Duration};

use reeve_jobs::{
    JobId, TenantId, client,
    kinds::ProbeFleet,
    queue::{
        PostgresQueue, Queue, Settlement, WindowedQueue,
        window::{self, Link, Offer, TENANT_IDS_MAX, Window},
    },
    redact::Redacted,
};
use sqlx::Row;

use crate::{
    support::Town,
    window_places::{Place, lane, raw_at},
};

const LEASE: Duration = Duration::from_secs(30);

async fn fill(town: &Town, tenant: &TenantId, jobs: usize) -> Vec<JobId> {
    let mut tx = town.app.begin().await.expect("begin");
    client::set_tenant(&mut tx, tenant).await.expect("context");
    let ids = client::enqueue_many(&mut tx, &vec![ProbeFleet::default(); jobs]).await.expect("enqueued");
    tx.commit().await.expect("commit");
    ids
}

async fn change(town: &Town, sql: &'static str) {
    sqlx::raw_sql(sql).execute(&town.db.admin).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
}

async fn sizes(window: &Window, tenants: &[&str]) -> Vec<usize> {
    let tenants: Vec<_> = tenants.iter().map(|tenant| (*tenant).to_owned()).collect();
    window.sizes(&lane(), &tenants).await.expect("an answer")
}

#[tokio::test]
async fn a_relay_holds_out_a_bounded_share_of_each_tenant_and_nothing_that_may_not_run() {
    let (town, place) = (Town::new().await, Place::start().await);
    for tenant in ["capped", "paused", "moved", "off", "rated"] {
        fill(&town, &town.db.tenant(tenant).await, 50).await;
    }
    fill(&town, &town.a, 3_000).await;
    let quiet = fill(&town, &town.b, 1).await;
    change(&town, "UPDATE reeve.tenants SET running_max = 7 WHERE id = 'capped'").await;
    change(&town, "UPDATE reeve.tenants SET paused = true WHERE id = 'paused'").await;
    change(&town, "UPDATE reeve.tenants SET moving = true WHERE id = 'moved'").await;
    change(&town, "UPDATE reeve.tenants SET kinds_off = '{fleet.probe}' WHERE id = 'off'").await;
    change(&town, "UPDATE reeve.tenants SET starts_per_min = 120 WHERE id = 'rated'").await;
    let scheduler = town.db.pool("reeve_scheduler").await;
    let window = place.window().await;
    let all = ["a", "b", "capped", "paused", "moved", "off", "rated"];
    let mut relays = [place.relay(), place.relay()];
    for _ in 0..3 {
        let [one, two] = &mut relays;
        let (one, two) = tokio::join!(one.run_once(&scheduler), two.run_once(&scheduler));
        one.and(two).expect("relayed");
        // The rate brings back two in a second, so that a slow run may see one more.
        let found = sizes(&window, &all).await;
        assert_eq!(found[..6], [TENANT_IDS_MAX, 1, 7, 0, 0, 0], "{found:?}");
        assert!((10..=13).contains(&found[6]), "{found:?}");
    }
    // A full window is left alone, a short one filled up again.
    assert_eq!(relays[0].run_once(&scheduler).await.expect("relayed"), 1 + 7 + sizes(&window, &["rated"]).await[0]);
    let popped: BTreeSet<_> = window.pop(&lane(), 1_200).await.expect("popped").into_iter().collect();
    assert!(popped.contains(&quiet[0]) && popped.len() > 1_000);
    relays[0].run_once(&scheduler).await.expect("relayed");
    assert_eq!(sizes(&window, &["a"]).await, [TENANT_IDS_MAX]);
    // Nothing at all while the queue is paused, or has a kind with a deadline.
    for (before, after) in [
        ("SELECT reeve.pause_queue('probes', true, 't', 'x')", "SELECT reeve.pause_queue('probes', false, 't', 'x')"),
        (
            "SELECT reeve.pause_kind('fleet.probe', true, 't', 'x')",
            "SELECT reeve.pause_kind('fleet.probe', false, 't', 'x')",
        ),
        (
            "UPDATE reeve.kinds SET queue = 'probes', priority = 0, deadline_secs = 60 WHERE name = 'webhook.prune'",
            "UPDATE reeve.kinds SET queue = 'maintenance', priority = 4, deadline_secs = NULL WHERE name = 'webhook.prune'",
        ),
    ] {
        place.raw::<()>(&["FLUSHALL"]).await.expect("flushed");
        change(&town, before).await;
        assert_eq!(relays[0].run_once(&scheduler).await.expect("relayed"), 0, "{before}");
        change(&town, after).await;
        assert!(relays[0].run_once(&scheduler).await.expect("relayed") > 1_000, "{after}");
    }
}

#[tokio::test]
async fn places_are_dealt_in_rounds_by_weight_and_nobody_is_left_out() {
    let place = Place::start().await;
    let window = place.window().await;
    let offer = |tenant: &str, weight, n: u32| Offer {
        tenant: tenant.to_owned(),
        weight,
        ids: (0..n).map(|i| (i64::from(i), JobId(uuid::Uuid::now_v7()))).collect(),
    };
    let offers = [offer("heavy", 3, 90), offer("light", 1, 90), offer("small", 1, 2)];
    window.offer(&lane(), &offers).await.expect("offered");
    let of = |id: &JobId| offers.iter().position(|offer| offer.ids.iter().any(|(_, other)| other == id)).expect("ours");
    let mut got = [Vec::new(), Vec::new(), Vec::new()];
    for n in [7, 10, 20, 1, 1, 1, 1, 100, 100] {
        for id in window.pop(&lane(), n).await.expect("popped") {
            got[of(&id)].push(id);
        }
        if got[2].len() == 2 && got[1].len() < 80 && got[0].len() < 80 && n > 1 {
            let (heavy, light) = (got[0].len() as f64, got[1].len() as f64);
            assert!(heavy / light > 2.0 && heavy / light < 4.0, "{heavy} to {light}");
        }
    }
    // All of them, each once, and each tenant's in their order.
    for (got, offer) in got.iter().zip(&offers) {
        assert_eq!(*got, offer.ids.iter().map(|(_, id)| *id).collect::<Vec<_>>());
    }
    assert!(window.pop(&lane(), 5).await.expect("popped").is_empty());
    // Even after the ring was lost alone.
    window.offer(&lane(), &offers[2..]).await.expect("offered");
    place.raw::<i64>(&["DEL", "{rvw:probes:default}:ring"]).await.expect("evicted");
    window.offer(&lane(), &offers[1..]).await.expect("offered");
    assert_eq!(window.pop(&lane(), 200).await.expect("popped").len(), 92);
    // However much is offered.
    window.offer(&lane(), &[offer("big", 1, 1_200)]).await.expect("offered");
    assert_eq!(sizes(&window, &["big"]).await, [TENANT_IDS_MAX]);
}

#[tokio::test]
async fn a_forged_or_stale_id_does_nothing() {
    let (town, place) = (Town::new().await, Place::start().await);
    let window = place.window().await;
    let jobs = fill(&town, &town.a, 6).await;
    let of_b = fill(&town, &town.b, 1).await[0];
    let postgres = PostgresQueue::new(town.worker.clone());
    let mut held = postgres.take_up(&lane(), &jobs[..2], 10, "other", LEASE).await.expect("taken up").jobs;
    let over = held.remove(0);
    let end =
        Settlement { job: over.id, token: over.lease_token, outcome: "completed", delay: Duration::ZERO, error: None };
    assert_eq!(postgres.settle(&[end]).await.expect("settled"), [over.id]);
    let on = async |sql: &'static str, id: JobId| {
        sqlx::query(sql).bind(id).execute(&town.db.admin).await.expect(sql);
    };
    on("UPDATE reeve.jobs SET state = 'scheduled' WHERE id = $1", jobs[2]).await;
    on("UPDATE reeve.jobs SET state = 'dead' WHERE id = $1", jobs[3]).await;
    on("UPDATE reeve.jobs SET queue = 'maintenance' WHERE id = $1", jobs[4]).await;
    on("UPDATE reeve.jobs SET region = 'elsewhere' WHERE id = $1", jobs[5]).await;
    let before: Vec<String> = rows(&town).await;

    let mut forged: Vec<String> = jobs.iter().map(ToString::to_string).collect();
    // Of another tenant, in this one's list: it is its own tenant's all the same.
    forged.extend([of_b.to_string(), of_b.to_string().to_uppercase(), uuid::Uuid::new_v4().to_string()]);
    forged.extend(["".to_owned(), "'; DROP TABLE reeve.jobs; --".to_owned(), "\u{0}\u{ff}".to_owned()]);
    for (n, id) in forged.iter().enumerate() {
        let score = n.to_string();
        place.raw::<i64>(&["ZADD", "{rvw:probes:default}:ready:a", &score, id]).await.expect("forged");
    }
    place.raw::<i64>(&["ZADD", "{rvw:probes:default}:ready:nobody", "1", &of_b.to_string()]).await.expect("forged");
    for tenant in ["a", "nobody"] {
        place.raw::<i64>(&["RPUSH", "{rvw:probes:default}:ring", tenant]).await.expect("forged");
    }
    let ids = window.pop(&lane(), 100).await.expect("popped");
    let claim = postgres.take_up(&lane(), &ids, 100, "w", LEASE).await.expect("taken up");
    assert_eq!(claim.jobs.iter().map(|job| (job.id, job.tenant.clone())).collect::<Vec<_>>(), [(of_b, town.b.clone())]);
    assert!(claim.broken.is_empty());
    let after = rows(&town).await;
    let changed: Vec<_> = before.iter().filter(|row| !after.contains(row)).collect();
    assert!(changed.len() == 1 && changed[0].contains(&of_b.to_string()), "{changed:?}");
}

async fn rows(town: &Town) -> Vec<String> {
    sqlx::query_scalar("SELECT j::text FROM reeve.jobs j ORDER BY id").fetch_all(&town.db.admin).await.expect("rows")
}

/// Which jobs a path would take now, in a transaction that is undone.
async fn would(town: &Town, sql: &'static str) -> BTreeSet<JobId> {
    let mut tx = town.db.admin.begin().await.expect("begun");
    let rows = sqlx::query(sql).fetch_all(&mut *tx).await.expect(sql);
    tx.rollback().await.expect("undone");
    rows.iter().filter_map(|row| row.get(0)).collect()
}

const BY_CLAIM: &str = "SELECT id FROM reeve.claim('probes', 'default', 1000, 'w', '', 30)";
const BY_WINDOW: &str = "SELECT id FROM reeve.take_up('probes', 'default',
    (SELECT array_agg(j.id ORDER BY j.priority, j.run_at, j.id) FROM reeve.jobs j), 1000, 'w', 30)";
const BY_RELAY: &str = "SELECT id FROM reeve.window_jobs('probes', 'default',
    reeve.window_tenants('probes', 'default', '', 1000), 1000)";

/// A second kind in the queue, and a job of a kind that nobody knows.
async fn with_other_kinds(town: &Town) {
    change(town, "UPDATE reeve.kinds SET queue = 'probes', priority = 2 WHERE name = 'webhook.prune'").await;
    change(town, "SELECT reeve.ops_enqueue(t, 'webhook.prune', '{}', 'test', 'to see') FROM unnest('{a,b}'::text[]) t")
        .await;
    change(
        town,
        "INSERT INTO reeve.jobs (id, tenant_id, kind, queue, region, state, priority, attempts_max, run_at, payload)
         VALUES (reeve.new_id(), 'a', 'fleet.dance', 'probes', 'default', 'available', 2, 2, now(), '{}')",
    )
    .await;
}

/// Rule by rule: what a claim would not start, neither a held-out id starts, and the relay does not hold it out.
#[tokio::test]
async fn a_claim_and_the_window_start_the_same_jobs_under_every_rule() {
    let town = Town::new().await;
    for tenant in [&town.a, &town.b] {
        fill(&town, tenant, 12).await;
    }
    with_other_kinds(&town).await;
    assert_eq!(would(&town, BY_CLAIM).await.len(), 27);
    let mut seen = BTreeSet::new();
    for rule in [
        "UPDATE reeve.tenants SET paused = true WHERE id = 'a'",
        "UPDATE reeve.tenants SET moving = true WHERE id = 'a'",
        "UPDATE reeve.tenants SET state = 'closed' WHERE id = 'a'",
        "UPDATE reeve.tenants SET state = 'closing' WHERE id = 'a'",
        "UPDATE reeve.tenants SET state = 'closing'; UPDATE reeve.kinds SET runs_when_closing = (name = 'webhook.prune')",
        "UPDATE reeve.tenants SET kinds_off = '{fleet.probe}' WHERE id = 'a'",
        "UPDATE reeve.tenants SET kinds_off = '{fleet.probe,webhook.prune}' WHERE id = 'a'",
        "UPDATE reeve.tenants SET running_max = 5 WHERE id = 'a'",
        "UPDATE reeve.tenants SET running_max_by_flag = 3",
        "UPDATE reeve.tenants SET running_max_by_flag = 3, running_max = 4 WHERE id = 'b'",
        "UPDATE reeve.tenants SET running_max = 0",
        "UPDATE reeve.tenants SET running_max = 2; UPDATE reeve.jobs SET state = 'running', lease_token = reeve.new_id()
         WHERE id = (SELECT min(id::text)::uuid FROM reeve.jobs WHERE tenant_id = 'b')",
        // A whole number of starts, which no time between two looks makes one more.
        "UPDATE reeve.tenants SET starts_per_min = 48 WHERE id = 'a'",
        "UPDATE reeve.tenants SET starts_per_min = 1, running_max = 9",
        "INSERT INTO reeve.starts_ahead VALUES ('a', 'probes', now() + interval '1 hour');
         UPDATE reeve.tenants SET starts_per_min = 60",
        "UPDATE reeve.kinds SET paused = true WHERE name = 'fleet.probe'",
        "UPDATE reeve.kinds SET paused = true WHERE queue = 'probes'",
        "INSERT INTO reeve.paused_queues VALUES ('probes')",
    ] {
        change(&town, "CREATE TABLE public.kept AS TABLE reeve.tenants; CREATE TABLE public.kinds AS TABLE reeve.kinds").await;
        change(&town, "CREATE TABLE public.jobs AS TABLE reeve.jobs").await;
        change(&town, rule).await;
        let (claim, window, relay) =
            (would(&town, BY_CLAIM).await, would(&town, BY_WINDOW).await, would(&town, BY_RELAY).await);
        assert!(claim.len() < 27, "{rule}: it forbids something");
        assert_eq!(claim, window, "{rule}");
        assert_eq!(claim, relay, "{rule}");
        seen.insert(claim.len());
        change(
            &town,
            "UPDATE reeve.tenants t SET paused = k.paused, moving = k.moving, state = k.state, kinds_off = k.kinds_off,
               running_max = k.running_max, running_max_by_flag = k.running_max_by_flag, starts_per_min = k.starts_per_min
             FROM public.kept k WHERE k.id = t.id;
             UPDATE reeve.kinds t SET paused = k.paused, runs_when_closing = k.runs_when_closing FROM public.kinds k
             WHERE k.name = t.name;
             UPDATE reeve.jobs t SET state = k.state, lease_token = k.lease_token FROM public.jobs k WHERE k.id = t.id;
             DELETE FROM reeve.paused_queues; DELETE FROM reeve.starts_ahead;
             DROP TABLE public.kept, public.kinds, public.jobs",
        )
        .await;
        assert_eq!(would(&town, BY_WINDOW).await.len(), 27, "{rule}: it was undone");
    }
    assert!(seen.len() > 8, "{seen:?}");
    // Deadlines are the claim's: where there are any, the window starts nothing.
    change(&town, "UPDATE reeve.kinds SET priority = 0, deadline_secs = 60 WHERE name = 'webhook.prune'").await;
    assert_eq!(would(&town, BY_CLAIM).await.len(), 27);
    assert!(would(&town, BY_WINDOW).await.is_empty() && would(&town, BY_RELAY).await.is_empty());
}

#[tokio::test]
async fn caps_hold_with_claims_on_both_paths_at_a_time() {
    let town = Town::new().await;
    let mut ids = Vec::new();
    for tenant in [&town.a, &town.b] {
        ids.extend(fill(&town, tenant, 200).await);
    }
    change(&town, "UPDATE reeve.tenants SET running_max = 5").await;
    let queue = PostgresQueue::new(town.worker.clone());
    for round in 0..5 {
        let by_window = (0..8).map(|_| async { queue.take_up(&lane(), &ids, 20, "w", LEASE).await });
        let by_claim = (0..8).map(|_| async { queue.claim(&lane(), 20, "w", "", LEASE).await });
        let (one, two) = tokio::join!(futures::future::join_all(by_window), futures::future::join_all(by_claim));
        for claim in one.into_iter().chain(two) {
            claim.expect("a claim");
        }
        let sql = "SELECT count(*) FROM reeve.jobs WHERE state = 'running'";
        // Whoever found a tenant locked left it to the other, which had room for all of them.
        assert_eq!(town.count(sql).await, 10, "round {round}");
        let sql = "SELECT count(DISTINCT tenant_id) FROM reeve.jobs WHERE state = 'running'";
        assert_eq!(town.count(sql).await, 2);
        change(&town, "UPDATE reeve.jobs SET state = 'available', lease_token = NULL").await;
    }
}

#[tokio::test]
async fn rates_hold_with_claims_on_both_paths_at_a_time() {
    let town = Town::new().await;
    let ids = fill(&town, &town.a, 200).await;
    change(&town, "UPDATE reeve.tenants SET starts_per_min = 24").await;
    let queue = PostgresQueue::new(town.worker.clone());
    for _ in 0..3 {
        let by_window = (0..8).map(|_| async { queue.take_up(&lane(), &ids, 20, "w", LEASE).await });
        let by_claim = (0..8).map(|_| async { queue.claim(&lane(), 20, "w", "", LEASE).await });
        let (one, two) = tokio::join!(futures::future::join_all(by_window), futures::future::join_all(by_claim));
        for claim in one.into_iter().chain(two) {
            claim.expect("a claim");
        }
    }
    // Two at once, and one more each 2.5 s of the database's time.
    let (started, allowed): (i64, f64) = sqlx::query_as(
        "SELECT count(*), 2 + extract(epoch FROM max(attempted_at) - min(attempted_at))::float8 / 2.5
         FROM reeve.jobs WHERE state = 'running'",
    )
    .fetch_one(&town.db.admin)
    .await
    .expect("counted");
    assert!(started >= 2 && started as f64 <= allowed, "{started} started, {allowed} allowed");
}

#[tokio::test]
async fn an_id_given_twice_is_one_job_and_the_limit_holds() {
    let town = Town::new().await;
    let ids = fill(&town, &town.a, 10).await;
    let queue = PostgresQueue::new(town.worker.clone());
    let (mut ids, queue) = (ids, queue);
    // Of one transaction, and so of one age.
    ids.sort_unstable();
    let mut wanted = vec![ids[3], ids[1], ids[3], ids[1], ids[1]];
    let claim = queue.take_up(&lane(), &wanted, 10, "w", LEASE).await.expect("taken up");
    assert_eq!(claim.jobs.iter().map(|job| job.id).collect::<Vec<_>>(), [ids[1], ids[3]], "in the order of a claim");
    assert!(claim.jobs.iter().all(|job| job.attempt == 1));
    wanted.extend(&ids);
    assert_eq!(queue.take_up(&lane(), &wanted, 4, "w", LEASE).await.expect("taken up").jobs.len(), 4);
    assert_eq!(town.count("SELECT count(*) FROM reeve.jobs WHERE state = 'running'").await, 6);
}

/// Ids that nobody offers again, or that push others out of sight, hold up nobody: a lane is claimed past its window too.
#[tokio::test]
async fn a_job_that_is_not_in_a_full_window_is_claimed_all_the_same() {
    let (town, place) = (Town::new().await, Place::start().await);
    let scheduler = town.db.pool("reeve_scheduler").await;
    fill(&town, &town.a, 1_000).await;
    place.relay().run_once(&scheduler).await.expect("relayed");
    // No relay any more.
    fill(&town, &town.b, 1).await;
    let queue = WindowedQueue::new(PostgresQueue::new(town.worker.clone()), Some(place.link().await));
    let queue = queue.direct_every(Duration::from_millis(100));
    let (mut got, mut cursor) = (0, String::new());
    loop {
        let claim = queue.claim(&lane(), 1, "w", &cursor, LEASE).await.expect("a claim");
        (got, cursor) = (got + 1, claim.cursor.clone());
        if claim.jobs.iter().any(|job| job.tenant == town.b) {
            break;
        }
        assert!(got < 1_000, "the window was emptied first");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(queue.taken_up() > 0);
}

/// What was claimed past the window is stale in it. The claims after that find their way through, and do not chase it.
#[tokio::test]
async fn stale_ids_do_not_hide_the_ready_ones_behind_them() {
    let (town, place) = (Town::new().await, Place::start().await);
    let scheduler = town.db.pool("reeve_scheduler").await;
    for tenant in [&town.a, &town.b] {
        fill(&town, tenant, 500).await;
    }
    place.relay().run_once(&scheduler).await.expect("relayed");
    let postgres = PostgresQueue::new(town.worker.clone());
    let past = postgres.claim(&lane(), 100, "other", "", LEASE).await.expect("a claim");
    assert_eq!(past.jobs.len(), 100);
    let queue = WindowedQueue::new(postgres, Some(place.link().await)).direct_every(Duration::from_secs(3_600));
    for claims in 1..=5 {
        assert_eq!(queue.claim(&lane(), 100, "w", "", LEASE).await.expect("a claim").jobs.len(), 100);
        assert_eq!(queue.taken_up(), claims * 100);
    }
}

/// `users.acl` is enough for each side, and gives neither what the other does.
#[tokio::test]
async fn a_worker_takes_out_and_a_relay_puts_in_and_neither_does_more() {
    let (town, place) = (Town::new().await, Place::start().await);
    let scheduler = town.db.pool("reeve_scheduler").await;
    let ids = fill(&town, &town.a, 5).await;
    for user in window::USERS.lines() {
        let mut words: Vec<_> = user.split_whitespace().skip(1).collect();
        words.push(">pass2");
        place.raw::<()>(&[&["ACL", "SETUSER"], words.as_slice()].concat()).await.expect("rules that Redis takes");
    }
    let (worker, relay) = ("reeve_window_worker", "reeve_window_relay");
    let url = |user| place.url_of(user, "pass2");
    let mut relaying = reeve_scheduler::relay::Relay::new(Redacted::new(url(relay)), Vec::new());
    for _ in 0..2 {
        assert_eq!(relaying.run_once(&scheduler).await.expect("relayed"), 5);
    }
    let link = Link::new(Redacted::new(url(worker)));
    let mut popped = Vec::new();
    crate::support::until("the worker gets them", async || {
        popped.extend(link.pop(&lane(), 10).await);
        popped.len() == 5
    })
    .await;
    // Of one transaction, and so of one age.
    assert_eq!(popped.into_iter().collect::<BTreeSet<_>>(), ids.into_iter().collect());
    let key = "{rvw:probes:default}:ready:a";
    for (user, refused) in [
        (worker, vec!["ZADD", key, "1", "x"]),
        (worker, vec!["HSET", "{rvw:probes:default}:inring", "a", "1"]),
        (relay, vec!["ZPOPMIN", key]),
        (relay, vec!["LPOP", "{rvw:probes:default}:ring"]),
        (relay, vec!["ZRANGE", key, "0", "-1"]),
    ]
    .into_iter()
    .chain([worker, relay].into_iter().flat_map(|user| {
        [
            vec!["FLUSHALL"],
            vec!["KEYS", "*"],
            vec!["SCAN", "0"],
            vec!["CONFIG", "GET", "*"],
            vec!["EVAL", "return 1", "0"],
            vec!["SCRIPT", "FLUSH"],
            vec!["GET", "elsewhere"],
            vec!["EXISTS", "{rv:q:default}:ring"],
            vec!["RPUSH", "{rv:q:default}:ring", "x"],
        ]
        .map(|words| (user, words))
    })) {
        let error = raw_at::<redis::Value>(&url(user), &refused).await.expect_err(refused[0]).to_string();
        assert!(error.contains("permission") || error.contains("ACL"), "{user} {refused:?}: {error}");
    }
}

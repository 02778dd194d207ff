//! What a claim hands out, to whom, in which order, and what it leaves alone.
use std::{collections::BTreeMap, time::Duration};

use reeve_jobs::{
    TenantId, client,
    kinds::ProbeFleet,
    queue::{Claim, Lane, PostgresQueue, Queue},
};

use crate::support::Town;

fn lane() -> Lane {
    Lane { queue: "probes".to_owned(), region: "default".to_owned() }
}

/// A town with `n` further tenants `t001`…, each with `jobs` ready jobs.
async fn with_tenants(n: usize, jobs: usize) -> (Town, Vec<TenantId>) {
    let town = Town::new().await;
    let mut tenants = Vec::new();
    for i in 1..=n {
        let tenant = town.db.tenant(&format!("t{i:03}")).await;
        fill(&town, &tenant, jobs).await;
        tenants.push(tenant);
    }
    (town, tenants)
}

async fn fill(town: &Town, tenant: &TenantId, jobs: usize) {
    let mut tx = town.app.begin().await.expect("begin");
    client::set_tenant(&mut tx, tenant).await.expect("context");
    client::enqueue_many(&mut tx, &vec![ProbeFleet::default(); jobs]).await.expect("enqueued");
    tx.commit().await.expect("commit");
}

async fn change(town: &Town, sql: &'static str) {
    sqlx::query(sql).execute(&town.db.admin).await.expect("changed");
}

async fn claim(town: &Town, n: usize, cursor: &str) -> Claim {
    PostgresQueue::new(town.worker.clone())
        .claim(&lane(), n, "w", cursor, Duration::from_secs(30))
        .await
        .expect("a claim")
}

/// How many jobs each tenant gets of `rounds` claims of `n`, one claimer going round.
async fn shares(town: &Town, n: usize, rounds: usize) -> BTreeMap<String, usize> {
    let mut got = BTreeMap::new();
    let mut cursor = "m".to_owned();
    for _ in 0..rounds {
        let claim = claim(town, n, &cursor).await;
        for job in &claim.jobs {
            *got.entry(job.tenant.to_string()).or_default() += 1;
        }
        assert_eq!(claim.jobs.len(), n, "everybody has work, so every place is taken");
        cursor = claim.cursor;
    }
    got
}

#[tokio::test]
async fn tenants_with_a_backlog_get_equal_shares_whatever_the_batch() {
    // Batches smaller than, near, and no divisor of the number of tenants.
    for (tenants, n, rounds) in [(9_usize, 16_usize, 18_usize), (5, 16, 20), (7, 4, 35), (51, 100, 9)] {
        let (town, _) = with_tenants(tenants, (rounds * n).div_ceil(tenants) + n).await;
        let got = shares(&town, n, rounds).await;
        assert_eq!(got.len(), tenants, "batch {n}: somebody got nothing: {got:?}");
        let (least, most) = (got.values().min().expect("some"), got.values().max().expect("some"));
        assert!(most - least <= n.div_ceil(tenants) + 1, "batch {n} of {tenants} tenants: {least} to {most}");
        town.db.drop_now().await;
    }
}

#[tokio::test]
async fn a_weight_multiplies_a_share_and_starves_nobody() {
    let (town, _) = with_tenants(5, 300).await;
    change(&town, "UPDATE reeve.tenants SET weight = 4 WHERE id = 't003'").await;
    let got = shares(&town, 16, 30).await;
    let others = got.iter().filter(|(tenant, _)| *tenant != "t003").map(|(_, n)| *n);
    let (least, most) = (others.clone().min().expect("some"), others.max().expect("some"));
    assert!(got.len() == 5 && most - least <= 4, "{got:?}");
    assert!(got["t003"] >= 3 * most && got["t003"] <= 5 * least, "{got:?}");
}

#[tokio::test]
async fn a_heavy_weight_does_not_take_every_place() {
    let (town, _) = with_tenants(5, 500).await;
    change(&town, "UPDATE reeve.tenants SET weight = 100 WHERE id = 't002'").await;
    let got = shares(&town, 16, 15).await;
    assert_eq!(got.len(), 5, "{got:?}");
}

#[tokio::test]
async fn paused_closed_and_capped_tenants_are_left_alone() {
    let (town, _) = with_tenants(4, 10).await;
    change(&town, "UPDATE reeve.tenants SET paused = true WHERE id = 't001'").await;
    change(&town, "UPDATE reeve.tenants SET state = 'closed' WHERE id = 't002'").await;
    change(&town, "UPDATE reeve.tenants SET running_max = 3 WHERE id = 't003'").await;
    let mut got = BTreeMap::new();
    for _ in 0..3 {
        for job in claim(&town, 50, "").await.jobs {
            *got.entry(job.tenant.to_string()).or_insert(0) += 1;
        }
    }
    assert_eq!(got, BTreeMap::from([("t003".to_owned(), 3), ("t004".to_owned(), 10)]));
}

#[tokio::test]
async fn a_cap_holds_with_many_claimers_at_a_time() {
    let (town, _) = with_tenants(2, 200).await;
    change(&town, "UPDATE reeve.tenants SET running_max = 5").await;
    let claims = (0..16).map(|_| claim(&town, 20, ""));
    futures::future::join_all(claims).await;
    for _ in 0..3 {
        claim(&town, 20, "").await;
    }
    let sql = "SELECT count(*) FROM (SELECT FROM reeve.jobs WHERE state = 'running' GROUP BY tenant_id HAVING count(*) <> 5) x";
    assert_eq!(town.count(sql).await, 0);
    assert_eq!(town.count("SELECT count(*) FROM reeve.jobs WHERE state = 'running'").await, 10);
}

#[tokio::test]
async fn a_closing_tenant_gets_only_the_kinds_that_run_then() {
    let (town, _) = with_tenants(1, 2).await;
    change(&town, "UPDATE reeve.kinds SET runs_when_closing = false WHERE name = 'fleet.probe'").await;
    change(&town, "UPDATE reeve.tenants SET state = 'closing' WHERE id = 't001'").await;
    assert!(claim(&town, 10, "").await.jobs.is_empty());
    change(&town, "UPDATE reeve.kinds SET runs_when_closing = true WHERE name = 'fleet.probe'").await;
    assert_eq!(claim(&town, 10, "").await.jobs.len(), 2);
}

#[tokio::test]
async fn another_regions_jobs_are_never_claimed() {
    let (town, _) = with_tenants(1, 1).await;
    change(&town, "SELECT reeve.declare_region('eu', true, 'test', 'now')").await;
    change(&town, "SELECT reeve.register_tenant('eu1', 'In Europe', 'eu')").await;
    fill(&town, &"eu1".parse().expect("an id"), 3).await;
    assert_eq!(claim(&town, 10, "").await.jobs.len(), 1);
    let eu = Lane { region: "eu".to_owned(), ..lane() };
    let queue = PostgresQueue::new(town.worker.clone());
    let claimed = queue.claim(&eu, 10, "w", "", Duration::from_secs(30)).await.expect("a claim").jobs;
    assert!(claimed.len() == 3 && claimed.iter().all(|job| job.tenant.as_str() == "eu1"));
}

#[tokio::test]
async fn within_a_tenant_priority_comes_first_and_then_age() {
    let town = Town::new().await;
    // A transaction each: jobs of one transaction are of one age.
    for (note, priority) in [("late", 4), ("first", 1), ("second", 2), ("third", 2)] {
        let mut tx = town.app.begin().await.expect("begin");
        client::set_tenant(&mut tx, &town.a).await.expect("context");
        let how = client::Enqueue { priority: Some(priority), ..client::Enqueue::default() };
        let probe = ProbeFleet { note: Some(note.to_owned()), sleep_ms: 0 };
        client::enqueue(&mut tx, &probe, &how).await.expect("enqueued");
        tx.commit().await.expect("commit");
    }
    let mut order = Vec::new();
    for _ in 0..4 {
        let claim = claim(&town, 1, "").await;
        order.push(claim.jobs[0].payload["note"].as_str().expect("a note").to_owned());
    }
    assert_eq!(order, ["first", "second", "third", "late"]);
}

/// A claim looks at a bounded number of tenants. When none of them may run it says that there are more, and the next
/// goes on behind them; so the wall costs claims, and no waiting.
#[tokio::test]
async fn a_wall_of_paused_tenants_is_walked_past() {
    let (town, _) = with_tenants(40, 1).await;
    change(&town, "UPDATE reeve.tenants SET paused = (id <> 't040')").await;
    let mut cursor = String::new();
    for _ in 0..40 {
        let claim = claim(&town, 1, &cursor).await;
        if let [job] = claim.jobs.as_slice() {
            assert_eq!(job.tenant.as_str(), "t040");
            return;
        }
        assert!(claim.more, "an empty claim that had not looked at everybody claims to have");
        cursor = claim.cursor;
    }
    panic!("the one tenant that may run was never reached");
}

/// Tenants of a claim's jobs, in the order in which they came.
fn tenants(claim: &Claim) -> Vec<&str> {
    claim.jobs.iter().map(|job| job.tenant.as_str()).collect()
}

async fn switched(town: &Town, sql: &'static str) -> bool {
    sqlx::query_scalar(sql).fetch_one(&town.db.pool("reeve_ops").await).await.expect(sql)
}

#[tokio::test]
async fn a_paused_queue_gives_nothing_until_it_is_resumed() {
    let (town, _) = with_tenants(3, 5).await;
    assert!(switched(&town, "SELECT reeve.pause_queue('probes', true, 'cli:k', 'a fault')").await);
    assert!(!switched(&town, "SELECT reeve.pause_queue('probes', true, 'cli:k', 'again')").await, "no change");
    let paused = claim(&town, 10, "q").await;
    assert!(paused.jobs.is_empty() && !paused.more && paused.cursor == "q", "{paused:?}");
    assert!(switched(&town, "SELECT reeve.pause_queue('probes', false, 'cli:k', 'mended')").await);
    assert_eq!(claim(&town, 10, "").await.jobs.len(), 10);
    let audited =
        town.count("SELECT count(*) FROM reeve.audit_log WHERE action IN ('queue.paused', 'queue.resumed')").await;
    assert_eq!(audited, 2);
}

#[tokio::test]
async fn a_paused_kind_waits_and_the_queues_other_kinds_do_not() {
    let (town, _) = with_tenants(2, 3).await;
    change(&town, "UPDATE reeve.kinds SET queue = 'probes' WHERE name = 'webhook.prune'").await;
    change(&town, "SELECT reeve.ops_enqueue('t001', 'webhook.prune', '{}', 'test', 'to see')").await;
    assert!(switched(&town, "SELECT reeve.pause_kind('fleet.probe', true, 'cli:k', 'a fault')").await);
    let got = claim(&town, 10, "").await;
    assert_eq!(got.jobs.iter().map(|job| job.kind.as_str()).collect::<Vec<_>>(), ["webhook.prune"]);
    // All kinds of the queue: nothing is looked at.
    assert!(switched(&town, "SELECT reeve.pause_kind('webhook.prune', true, 'cli:k', 'a fault')").await);
    assert!(claim(&town, 10, "").await.jobs.is_empty());
    assert!(switched(&town, "SELECT reeve.pause_kind('fleet.probe', false, 'cli:k', 'mended')").await);
    assert_eq!(claim(&town, 10, "").await.jobs.len(), 6);
}

#[tokio::test]
async fn a_tenant_starts_no_faster_than_its_rate_and_others_take_the_places() {
    let (town, _) = with_tenants(2, 100).await;
    // Five seconds' worth at once: 10.
    change(&town, "UPDATE reeve.tenants SET starts_per_min = 120 WHERE id = 't001'").await;
    let first = claim(&town, 60, "").await;
    let rated = |claim: &Claim| tenants(claim).iter().filter(|tenant| **tenant == "t001").count();
    assert_eq!((rated(&first), first.jobs.len()), (10, 60), "the other tenant has the rest");
    assert_eq!(rated(&claim(&town, 20, "").await), 0);
    // Time passes: what had been due then is 3 s further back, which is worth six starts.
    change(&town, "UPDATE reeve.starts_ahead SET due_at = due_at - interval '3 s'").await;
    let later = rated(&claim(&town, 20, "").await);
    assert!((6..=7).contains(&later), "{later}");
    // However long nothing was started, no more than five seconds' worth.
    change(&town, "UPDATE reeve.starts_ahead SET due_at = now() - interval '1 hour'").await;
    change(&town, "DELETE FROM reeve.jobs WHERE tenant_id = 't002'").await;
    assert_eq!(rated(&claim(&town, 60, "").await), 10);
    // A rate below one in five seconds lets one start.
    change(&town, "UPDATE reeve.tenants SET starts_per_min = 1").await;
    change(&town, "DELETE FROM reeve.starts_ahead").await;
    assert_eq!(rated(&claim(&town, 60, "").await), 1);
    assert_eq!(rated(&claim(&town, 60, "").await), 0);
}

#[tokio::test]
async fn jobs_with_a_deadline_come_first_the_earliest_first_whoever_they_are_of() {
    let (town, _) = with_tenants(3, 20).await;
    change(
        &town,
        "UPDATE reeve.kinds SET queue = 'probes', priority = 0, deadline_secs = 3600 WHERE name = 'webhook.prune'",
    )
    .await;
    change(
        &town,
        "UPDATE reeve.kinds SET queue = 'probes', priority = 0, deadline_secs = 60 WHERE name = 'webhook.deliver'",
    )
    .await;
    for (tenant, kind, minutes) in [
        ("t001", "webhook.prune", 30),
        ("t002", "webhook.prune", 40),
        ("t003", "webhook.deliver", 5),
        ("t001", "webhook.prune", 10),
    ] {
        let id: reeve_jobs::JobId = sqlx::query_scalar("SELECT reeve.ops_enqueue($1, $2, '{}', 'test', 'to see')")
            .bind(tenant)
            .bind(kind)
            .fetch_one(&town.db.admin)
            .await
            .expect("enqueued");
        sqlx::query("UPDATE reeve.jobs SET run_at = now() - make_interval(mins => $2) WHERE id = $1")
            .bind(id)
            .bind(minutes)
            .execute(&town.db.admin)
            .await
            .expect("aged");
    }
    // No cap and no rate holds up what has a deadline; a pause does.
    change(&town, "UPDATE reeve.tenants SET running_max = 0, starts_per_min = 1 WHERE id = 't001'").await;
    // By deadline: t003 4 min ago, t002 in 20, t001 in 30, t001 in 50.
    assert_eq!(tenants(&claim(&town, 2, "").await), ["t003", "t002"]);
    change(&town, "UPDATE reeve.tenants SET paused = true WHERE id = 't001'").await;
    let others = claim(&town, 4, "").await;
    assert!(tenants(&others).iter().all(|tenant| *tenant != "t001"), "{:?}", tenants(&others));
    change(&town, "UPDATE reeve.tenants SET paused = false WHERE id = 't001'").await;
    let rest = claim(&town, 4, "").await;
    assert_eq!(tenants(&rest)[..2], ["t001", "t001"]);
    assert_eq!(rest.jobs[2..].iter().filter(|job| job.kind == "webhook.prune").count(), 0);
    assert_eq!(rest.jobs.len(), 4);
}

#[tokio::test]
async fn why_a_job_waits_is_told() {
    use reeve_jobs::queue::waits;
    let (town, _) = with_tenants(3, 4).await;
    let ops = town.db.pool("reeve_ops").await;
    let last: reeve_jobs::JobId =
        sqlx::query_scalar("SELECT id FROM reeve.jobs WHERE tenant_id = 't002' ORDER BY id DESC LIMIT 1")
            .fetch_one(&town.db.admin)
            .await
            .expect("a job");
    let told = async || waits::why(&ops, last).await.expect("an answer").expect("a live job").reasons();
    let place = told().await;
    assert!(
        place[0].contains("3 of the tenant's own jobs and 2 other tenants") && place[0].contains("some 11 jobs"),
        "{place:?}"
    );
    for (before, says, after) in [
        (
            "SELECT reeve.pause_queue('probes', true, 'k', 'x')",
            "queue probes is paused",
            "SELECT reeve.pause_queue('probes', false, 'k', 'x')",
        ),
        (
            "SELECT reeve.pause_kind('fleet.probe', true, 'k', 'x')",
            "kind fleet.probe is paused",
            "SELECT reeve.pause_kind('fleet.probe', false, 'k', 'x')",
        ),
        ("UPDATE reeve.tenants SET paused = true", "tenant is paused", "UPDATE reeve.tenants SET paused = false"),
        ("UPDATE reeve.tenants SET moving = true", "being moved", "UPDATE reeve.tenants SET moving = false"),
        (
            "UPDATE reeve.tenants SET running_max = 0",
            "cap: 0 of 0 jobs run",
            "UPDATE reeve.tenants SET running_max = NULL",
        ),
        (
            "UPDATE reeve.tenants SET kinds_off = '{fleet.probe}'",
            "flag kind.fleet.probe is off",
            "UPDATE reeve.tenants SET kinds_off = NULL",
        ),
        (
            "UPDATE reeve.jobs SET state = 'scheduled', run_at = now() + interval '90 s'",
            "it is due in 9",
            "UPDATE reeve.jobs SET state = 'available', run_at = now()",
        ),
        ("UPDATE reeve.tenants SET state = 'closed'", "tenant is closed", "UPDATE reeve.tenants SET state = 'active'"),
    ] {
        change(&town, before).await;
        let told = told().await;
        assert!(told.len() == 1 && told[0].contains(says), "{before}: {told:?}");
        change(&town, after).await;
    }
    change(&town, "UPDATE reeve.tenants SET starts_per_min = 6").await;
    claim(&town, 12, "").await;
    assert!(told().await[0].contains("rate of 6 starts a minute"), "{:?}", told().await);
    change(&town, "UPDATE reeve.tenants SET starts_per_min = NULL").await;
    claim(&town, 12, "").await;
    assert_eq!(told().await, ["it runs, on w"]);
    assert!(waits::why(&ops, reeve_jobs::JobId(uuid::Uuid::now_v7())).await.expect("an answer").is_none());
}

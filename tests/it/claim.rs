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

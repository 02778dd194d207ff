//! The fleet through faults of the window's Redis: flushed, put back to an older file, standing still, cut off, never there;
//! and of the relay. In each: no job is lost, no effect repeated, none settled twice.
use std::{
    collections::HashMap,
    path::Path,
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use reeve_jobs::{
    JobId, TenantContext, TenantId, client,
    job::{ClaimedJob, Outcome},
    kinds::{ProbeFleet, Work},
    queue::{PostgresQueue, WindowedQueue, window::Link},
    redact::Redacted,
};
use reeve_worker::runtime::{Handler, Progress};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    support::{Running, Town, program, until},
    window_places::{Place, lane},
};

/// Short enough that a fault outlives it, and long enough for a slow machine to renew it.
const LEASE: Duration = Duration::from_secs(4);

/// What the scheduler does all the time: takes back whatever lost its lease.
fn rescue_for_ever(town: &Town) -> AbortOnDropHandle<()> {
    let pool = town.db.admin.clone();
    AbortOnDropHandle::new(tokio::spawn(async move {
        loop {
            reeve_scheduler::rescuer::run_once(&pool).await.expect("rescue");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }))
}

/// Remembers what it did, how often.
#[derive(Clone, Default)]
struct Effects(Arc<Mutex<HashMap<JobId, u32>>>);

impl Handler for Effects {
    async fn handle(&self, job: &ClaimedJob, _: TenantContext, _: Work, _: &Progress) -> Outcome {
        *self.0.lock().expect("lock").entry(job.id).or_default() += 1;
        tokio::time::sleep(Duration::from_millis(1)).await;
        Outcome::Done
    }
}

impl Effects {
    fn len(&self) -> usize {
        self.0.lock().expect("lock").len()
    }
}

async fn fill(town: &Town, tenant: &TenantId, jobs: usize) -> Vec<JobId> {
    let mut tx = town.app.begin().await.expect("begin");
    client::set_tenant(&mut tx, tenant).await.expect("context");
    let ids = client::enqueue_many(&mut tx, &vec![ProbeFleet::default(); jobs]).await.expect("enqueued");
    tx.commit().await.expect("commit");
    ids
}

async fn fill_both(town: &Town, jobs: usize) -> Vec<JobId> {
    [fill(town, &town.a, jobs).await, fill(town, &town.b, jobs).await].concat()
}

fn queue(town: &Town, link: Link) -> WindowedQueue {
    WindowedQueue::new(PostgresQueue::new(town.worker.clone()), Some(link))
}

/// A fleet whose leases are short, so that a fault outlives them.
fn fleet(town: &Town, queue: &WindowedQueue, effects: &Effects) -> Running {
    town.fleet_over(queue.clone(), effects.clone(), |config| config.lease = LEASE)
}

async fn all_done(town: &Town) {
    until("all are done", async || town.count("SELECT count(*) FROM reeve.jobs").await == 0).await;
}

/// Gives work until more of it came by the window, and all of it is done.
async fn until_used(town: &Town, queue: &WindowedQueue, jobs: &mut Vec<JobId>) {
    let before = queue.taken_up();
    until("the window is used", async || {
        // More than a worker claims ahead: those are gone before a relay has seen them.
        jobs.extend(fill_both(town, 1_500).await);
        all_done(town).await;
        queue.taken_up() > before
    })
    .await;
}

/// Each job was done once, and is in history once.
async fn assert_each_once(town: &Town, jobs: &[JobId], effects: &Effects) {
    let done = effects.0.lock().expect("lock").clone();
    let lost: Vec<_> = jobs.iter().filter(|job| !done.contains_key(job)).collect();
    let again: Vec<_> = done.iter().filter(|(_, n)| **n != 1).collect();
    assert!(lost.is_empty() && again.is_empty(), "lost: {lost:?}, repeated: {again:?}");
    assert_eq!(done.len(), jobs.len(), "something ran that nobody enqueued");
    let settled = town.count("SELECT count(*) FROM reeve.job_history WHERE state = 'completed'").await;
    let distinct = town.count("SELECT count(DISTINCT id) FROM reeve.job_history").await;
    assert_eq!((settled, distinct), (jobs.len() as i64, jobs.len() as i64));
    assert_eq!(town.count("SELECT count(*) FROM reeve.job_attempts").await, 0, "an attempt was cut short");
}

#[tokio::test]
async fn flushing_redis_again_and_again_loses_and_repeats_nothing() {
    let (town, place) = (Town::new().await, Place::start().await);
    let _relaying = place.relaying(town.db.pool("reeve_scheduler").await);
    let (queue, effects) = (queue(&town, place.link().await), Effects::default());
    let fleet = fleet(&town, &queue, &effects);
    let mut jobs = Vec::new();
    for round in 0..20 {
        if round < 10 {
            jobs.extend(fill_both(&town, 150).await);
        }
        place.raw::<()>(&[if round % 2 == 0 { "FLUSHALL" } else { "FLUSHDB" }]).await.expect("flushed");
        if round % 5 == 0 {
            place.raw::<()>(&["SCRIPT", "FLUSH"]).await.expect("forgotten");
        }
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
    until_used(&town, &queue, &mut jobs).await;
    fleet.stop().await;
    assert_each_once(&town, &jobs, &effects).await;
}

fn copy(from: &Path, to: &Path) {
    let status = std::process::Command::new("cp").arg("-a").arg(from).arg(to).status().expect("cp starts");
    assert!(status.success());
}

/// Put back to an older file, Redis holds out again what was done since; nobody does it again.
#[tokio::test]
async fn an_older_append_only_file_repeats_and_loses_nothing() {
    let (town, mut place) = (Town::new().await, Place::start().await);
    let scheduler = town.db.pool("reeve_scheduler").await;
    let mut jobs = fill_both(&town, 300).await;
    place.relay().run_once(&scheduler).await.expect("relayed");
    place.end().await;
    let older = place.dir.path().join("older");
    copy(&place.data(), &older);

    place.begin().await;
    let (queue, effects) = (queue(&town, place.link().await), Effects::default());
    let running = fleet(&town, &queue, &effects);
    all_done(&town).await;
    place.end().await;
    std::fs::remove_dir_all(place.data()).expect("removed");
    copy(&older, &place.data());
    place.begin().await;
    let window = place.window().await;
    let stale = window.sizes(&lane(), &["a".to_owned(), "b".to_owned()]).await.expect("an answer");
    assert_eq!(stale, [300, 300], "as it was then");

    jobs.extend(fill_both(&town, 1_500).await);
    let _relaying = place.relaying(scheduler);
    all_done(&town).await;
    // The stale ids are gone too, and the window is of use again.
    until_used(&town, &queue, &mut jobs).await;
    running.stop().await;
    assert_each_once(&town, &jobs, &effects).await;
}

/// The fault lasts longer than every time-out and every lease; work goes on meanwhile, and the window comes back after it.
async fn outlives(secs: u32, fault: impl Fn(&Place, bool)) {
    let (town, place) = (Town::new().await, Place::start().await);
    let _relaying = place.relaying(town.db.pool("reeve_scheduler").await);
    let _rescuer = rescue_for_ever(&town);
    let (queue, effects) = (queue(&town, place.link().await), Effects::default());
    let fleet = fleet(&town, &queue, &effects);
    let mut jobs = fill_both(&town, 500).await;
    until("some are done", async || effects.len() > 100).await;
    fault(&place, true);
    for _ in 0..secs * 10 {
        jobs.extend(fill_both(&town, 5).await);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let so_far = effects.len();
    jobs.extend(fill_both(&town, 100).await);
    until("work goes on", async || effects.len() >= so_far + 100).await;
    fault(&place, false);
    until_used(&town, &queue, &mut jobs).await;
    fleet.stop().await;
    assert_each_once(&town, &jobs, &effects).await;
}

#[tokio::test]
async fn a_redis_that_stands_still_loses_and_repeats_nothing() {
    // Two leases and more.
    outlives(9, |place, begins| place.signal(if begins { "STOP" } else { "CONT" })).await;
}

#[tokio::test]
async fn a_network_that_drops_everything_for_a_minute_loses_and_repeats_nothing() {
    outlives(60, |place, begins| place.proxy.cut(begins)).await;
}

/// After failures in a row nobody asks any more: nothing reaches the network until the breaker lets one try.
#[tokio::test]
async fn a_window_that_does_not_answer_is_left_alone() {
    let place = Place::start().await;
    let link = place.link().await;
    place.proxy.cut(true);
    let mut asked = 0;
    while link.shut_for().is_none() {
        assert!(asked < 50, "it never gave up");
        assert!(link.pop(&lane(), 10).await.is_empty());
        tokio::time::sleep(Duration::from_millis(20)).await;
        asked += 1;
    }
    // What the client does of itself, such as mending its connection, is over when nothing more is heard.
    let mut heard = place.proxy.heard();
    let mut rounds = 0;
    while link.shut_for().is_some() && rounds < 5 {
        for _ in 0..1_000 {
            assert!(link.pop(&lane(), 10).await.is_empty());
        }
        let now = place.proxy.heard();
        assert!(now < heard + 50, "a thousand claims knocked {} times", now - heard);
        (heard, rounds) = (now, rounds + 1);
    }
    assert!(rounds > 0);
    place.proxy.cut(false);
    let id = JobId(uuid::Uuid::now_v7());
    let offer = reeve_jobs::queue::window::Offer { tenant: "a".to_owned(), weight: 1, ids: vec![(1, id)] };
    place.window().await.offer(&lane(), &[offer]).await.expect("offered");
    until("it is asked again", async || link.pop(&lane(), 10).await == [id]).await;
}

#[tokio::test]
async fn a_scheduler_killed_with_the_window_half_full_loses_nothing() {
    let (town, place) = (Town::new().await, Place::start().await);
    let mut jobs = fill_both(&town, 2_500).await;
    let scheduler = || {
        tokio::process::Command::new(program("reeve-scheduler"))
            .env("REEVE_SCHEDULER__DATABASE_URL", town.db.url("reeve_scheduler"))
            .env("REEVE_SCHEDULER__REDIS_URL", place.url())
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("it starts")
    };
    let window = place.window().await;
    let held_out = async || window.sizes(&lane(), &["a".to_owned(), "b".to_owned()]).await.expect("an answer");
    let mut first = scheduler();
    until("something is held out", async || held_out().await.iter().any(|n| *n > 0)).await;
    first.kill().await.expect("kill -9");
    // As if it had been in the middle of a pass.
    let half = held_out().await[0] / 2;
    place.raw::<redis::Value>(&["ZPOPMIN", "{rvw:probes:default}:ready:a", &half.to_string()]).await.expect("popped");
    let (queue, effects) = (queue(&town, place.link().await), Effects::default());
    let running = fleet(&town, &queue, &effects);
    until("work goes on", async || effects.len() > 1_000).await;
    let mut second = scheduler();
    all_done(&town).await;
    until_used(&town, &queue, &mut jobs).await;
    second.kill().await.expect("killed");
    running.stop().await;
    assert_each_once(&town, &jobs, &effects).await;
}

#[tokio::test]
async fn a_fleet_works_where_redis_was_never_there_and_uses_it_when_it_comes() {
    let (town, mut place) = (Town::new().await, Place::absent().await);
    let _relaying = place.relaying(town.db.pool("reeve_scheduler").await);
    let queue = queue(&town, Link::new(Redacted::new(place.url())));
    let effects = Effects::default();
    let running = fleet(&town, &queue, &effects);
    let mut jobs = fill_both(&town, 500).await;
    all_done(&town).await;
    assert_eq!(queue.taken_up(), 0);
    place.begin().await;
    until_used(&town, &queue, &mut jobs).await;
    running.stop().await;
    assert_each_once(&town, &jobs, &effects).await;
}

/// The programs as they are run: both with an address where nobody listens, then with one where somebody does.
#[tokio::test]
async fn the_programs_run_with_and_without_their_redis() {
    let (town, mut place) = (Town::new().await, Place::absent().await);
    let url = place.url();
    let mut worker = town.worker_program_with(&[("REEVE_WORKER__REDIS_URL", url.as_str())]);
    let mut scheduler = tokio::process::Command::new(program("reeve-scheduler"))
        .env("REEVE_SCHEDULER__DATABASE_URL", town.db.url("reeve_scheduler"))
        .env("REEVE_SCHEDULER__REDIS_URL", &url)
        .env("REEVE_SCHEDULER__WINDOW_QUEUES", "[\"probes\"]")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("it starts");
    fill_both(&town, 100).await;
    all_done(&town).await;
    place.begin().await;
    let window = place.window().await;
    // The scheduler finds it, with jobs that no worker may start yet; then the worker empties it.
    sqlx::query("SELECT reeve.pause_queue('probes', true, 'test', 'to see')")
        .execute(&town.db.admin)
        .await
        .expect("set");
    fill_both(&town, 700).await;
    sqlx::query("UPDATE reeve.tenants SET running_max = 1").execute(&town.db.admin).await.expect("set");
    sqlx::query("SELECT reeve.pause_queue('probes', false, 'test', 'seen')")
        .execute(&town.db.admin)
        .await
        .expect("set");
    let both = ["a".to_owned(), "b".to_owned()];
    until("ids are held out", async || {
        window.sizes(&lane(), &both).await.expect("an answer").iter().sum::<usize>() > 0
    })
    .await;
    sqlx::query("UPDATE reeve.tenants SET running_max = NULL").execute(&town.db.admin).await.expect("set");
    all_done(&town).await;
    scheduler.kill().await.expect("killed");
    worker.kill().await.expect("killed");
    assert_eq!(town.count("SELECT count(*) FROM reeve.job_attempts").await, 0);
}

//! What every queue must hold to, as one list of claims that runs over each store: PostgreSQL and Redis.
//!
//! A claim is a function over a [`Driver`], which says how to enqueue, how to move the store's clock, and where to look;
//! all else goes through [`Queue`]. [`each_queue_claim!`](crate::each_queue_claim) hands the list to a macro of the caller,
//! which makes a test of each. A claim expects a store of its own, empty.
//!
//! Not here: what only one store has, such as transactions of the app, seals, or plans of statements.
#![allow(async_fn_in_trait, clippy::missing_panics_doc, reason = "a suite of tests: it panics, on one task")]
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde_json::json;

use crate::{
    job::{ClaimedJob, JobId, LeaseToken, State},
    queue::{Claim, Lane, PAYLOAD_BYTES_MAX, Queue, Settlement},
    tenant::TenantId,
};

/// How long each claim's lease is here.
pub const LEASE: Duration = Duration::from_secs(30);

/// What is to be enqueued: a job with the payload `{"note": note}` and three attempts.
#[derive(Debug, Clone, Default)]
pub struct NewJob {
    pub note: String,
    pub unique_key: Option<String>,
    pub delay_secs: u32,
    /// 1 (first) to 4 (last); 0 stands for the kind's own, 3.
    pub priority: i16,
}

impl NewJob {
    pub fn note(note: impl Into<String>) -> Self {
        Self { note: note.into(), ..Self::default() }
    }
}

/// A tenant's share; `Rules::default()` is what a tenant gets without any setting.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    pub weight: i32,
    pub running_max: Option<i32>,
    pub paused: bool,
}

impl Default for Rules {
    fn default() -> Self {
        Self { weight: 1, running_max: None, paused: false }
    }
}

/// One store under test.
pub trait Driver {
    type Queue: Queue;
    fn queue(&self) -> &Self::Queue;
    fn lane(&self) -> Lane;
    /// Makes a tenant, or changes its rules.
    async fn tenant(&self, id: &str, rules: Rules) -> TenantId;
    /// The job's id, or what the enqueuer is told.
    async fn enqueue(&self, tenant: &TenantId, job: &NewJob) -> Result<JobId, String>;
    async fn pause_queue(&self, pause: bool);
    /// Moves the store's clock against that of all workers.
    async fn pass(&self, secs: i64);
    /// Promotes what is due and rescues what lost its lease.
    async fn upkeep(&self);
    async fn cancel(&self, job: JobId);
    /// An operator gives a parked job a fresh set of attempts.
    async fn redrive(&self, job: JobId);
    async fn state(&self, job: JobId) -> State;
    /// Makes the stored job unreadable.
    async fn spoil(&self, job: JobId);
    /// What is left of a running job's lease, by the store's clock.
    async fn lease_left(&self, job: JobId) -> f64;
}

/// Calls a macro with the names of all claims of [`queue_suite`](crate::testing::queue_suite).
#[macro_export]
macro_rules! each_queue_claim {
    ($run:ident) => {
        $run! {
            what_is_enqueued_is_handed_out_to_one,
            a_unique_key_has_one_live_job_of_its_tenant,
            a_delayed_job_waits_until_it_is_due,
            within_a_tenant_the_oldest_comes_first,
            a_lower_priority_number_comes_first,
            a_backlog_does_not_hold_up_other_tenants,
            a_weight_multiplies_a_share,
            a_cap_bounds_what_runs_and_leaves_the_rest_to_others,
            what_is_paused_waits,
            a_lease_that_runs_out_is_taken_back,
            a_renewed_lease_is_not_taken_back,
            a_lease_lost_to_another_can_neither_renew_nor_settle,
            a_batch_settles_each_job_by_its_own_token,
            three_lost_leases_quarantine_a_job,
            a_job_that_never_started_is_given_back_uncounted,
            used_up_attempts_park_a_job_and_a_redrive_gives_fresh_ones,
            a_drain_hands_out_every_job_once,
            a_cancelled_job_that_waits_is_never_claimed,
            a_running_job_is_told_to_stop_and_not_retried,
            a_cancelled_job_whose_worker_died_is_over,
            a_job_given_back_is_there_at_once_and_uncounted,
            a_snooze_is_no_attempt,
            an_unreadable_job_reaches_no_handler_and_spares_its_batch,
            an_oversized_payload_is_refused_and_says_its_limit,
            the_stores_clock_decides_against_a_slow_worker,
            the_stores_clock_decides_against_a_fast_worker,
        }
    };
}

async fn claim<D: Driver>(d: &D, limit: usize, cursor: &str) -> Claim {
    d.queue().claim(&d.lane(), limit, "w", cursor, LEASE).await.expect("a claim")
}

async fn enqueue<D: Driver>(d: &D, tenant: &TenantId, job: &NewJob) -> JobId {
    d.enqueue(tenant, job).await.expect("enqueued")
}

async fn fill<D: Driver>(d: &D, tenant: &TenantId, jobs: usize) -> Vec<JobId> {
    let mut ids = Vec::with_capacity(jobs);
    for n in 0..jobs {
        ids.push(enqueue(d, tenant, &NewJob::note(n.to_string())).await);
    }
    ids
}

/// The one job that there is to claim.
async fn one<D: Driver>(d: &D) -> ClaimedJob {
    let mut claim = claim(d, 10, "").await;
    assert_eq!((claim.jobs.len(), claim.broken.len()), (1, 0), "one job is ready");
    claim.jobs.remove(0)
}

async fn nothing<D: Driver>(d: &D) {
    let claim = claim(d, 10, "").await;
    assert!(claim.jobs.is_empty() && claim.broken.is_empty(), "{claim:?}");
}

fn settlement(job: &ClaimedJob, outcome: &'static str, delay_secs: u64) -> Settlement {
    Settlement {
        job: job.id,
        token: job.lease_token,
        outcome,
        delay: Duration::from_secs(delay_secs),
        error: Some("told".to_owned()),
    }
}

/// Whether the end was stored.
async fn settle<D: Driver>(d: &D, job: &ClaimedJob, outcome: &'static str, delay_secs: u64) -> bool {
    let settled = d.queue().settle(&[settlement(job, outcome, delay_secs)]).await.expect("an answer");
    assert!(settled.is_empty() || settled == [job.id]);
    !settled.is_empty()
}

async fn renew<D: Driver>(d: &D, job: &ClaimedJob) -> Option<Option<String>> {
    let answer = d.queue().renew(&[(job.id, job.lease_token)], LEASE).await.expect("an answer");
    answer.into_iter().map(|renewed| renewed.cancel_reason).next()
}

fn count(claim: &Claim, tenant: &TenantId) -> usize {
    claim.jobs.iter().filter(|job| job.tenant == *tenant).count()
}

pub async fn what_is_enqueued_is_handed_out_to_one<D: Driver>(d: &D) {
    let (a, b) = (d.tenant("t1", Rules::default()).await, d.tenant("t2", Rules::default()).await);
    let (first, second) = (enqueue(d, &a, &NewJob::note("x")).await, enqueue(d, &b, &NewJob::note("y")).await);
    assert_eq!(d.state(first).await, State::Available);
    let got = claim(d, 10, "").await;
    nothing(d).await;
    let of: BTreeMap<_, _> = got.jobs.iter().map(|job| (job.id, (job.tenant.clone(), job.payload.clone()))).collect();
    let meant = [(first, (a, json!({"note": "x"}))), (second, (b, json!({"note": "y"})))];
    assert_eq!(of, BTreeMap::from(meant));
    for job in &got.jobs {
        assert_eq!((job.kind.as_str(), job.attempt, job.attempts_max, job.rescues), ("fleet.probe", 1, 3, 0));
        assert_eq!(d.state(job.id).await, State::Running);
        assert!(settle(d, job, "completed", 0).await);
        assert_eq!(d.state(job.id).await, State::Completed);
        assert!(!settle(d, job, "completed", 0).await, "it is over");
    }
}

pub async fn a_unique_key_has_one_live_job_of_its_tenant<D: Driver>(d: &D) {
    let (a, b) = (d.tenant("t1", Rules::default()).await, d.tenant("t2", Rules::default()).await);
    let keyed = NewJob { unique_key: Some("k".to_owned()), ..NewJob::default() };
    let first = enqueue(d, &a, &keyed).await;
    assert_eq!(enqueue(d, &a, &keyed).await, first);
    let job = one(d).await;
    assert_eq!(enqueue(d, &a, &keyed).await, first, "it runs, and so is live");
    let others = enqueue(d, &b, &keyed).await;
    assert_ne!(others, first, "a key is its tenant's own");
    assert!(settle(d, &job, "completed", 0).await);
    let next = enqueue(d, &a, &keyed).await;
    assert!(next != first && next != others);
}

pub async fn a_delayed_job_waits_until_it_is_due<D: Driver>(d: &D) {
    let a = d.tenant("t1", Rules::default()).await;
    let id = enqueue(d, &a, &NewJob { delay_secs: 60, ..NewJob::default() }).await;
    d.pass(50).await;
    d.upkeep().await;
    nothing(d).await;
    assert_eq!(d.state(id).await, State::Scheduled);
    d.pass(11).await;
    d.upkeep().await;
    assert_eq!(one(d).await.id, id);
}

pub async fn within_a_tenant_the_oldest_comes_first<D: Driver>(d: &D) {
    let a = d.tenant("t1", Rules::default()).await;
    let ids = fill(d, &a, 5).await;
    let mut got = Vec::new();
    for _ in 0..5 {
        got.push(claim(d, 1, "").await.jobs[0].id);
    }
    assert_eq!(got, ids);
}

pub async fn a_lower_priority_number_comes_first<D: Driver>(d: &D) {
    let a = d.tenant("t1", Rules::default()).await;
    for (note, priority) in [("last", 4), ("own", 0), ("first", 1), ("second", 2)] {
        enqueue(d, &a, &NewJob { priority, ..NewJob::note(note) }).await;
    }
    let mut got = Vec::new();
    for _ in 0..4 {
        got.push(claim(d, 1, "").await.jobs[0].payload["note"].as_str().expect("a note").to_owned());
    }
    assert_eq!(got, ["first", "second", "own", "last"]);
}

pub async fn a_backlog_does_not_hold_up_other_tenants<D: Driver>(d: &D) {
    let big = d.tenant("t1", Rules::default()).await;
    fill(d, &big, 60).await;
    let mut small = Vec::new();
    for n in 2..5 {
        let tenant = d.tenant(&format!("t{n}"), Rules::default()).await;
        fill(d, &tenant, 3).await;
        small.push(tenant);
    }
    let first = claim(d, 12, "").await;
    assert_eq!(count(&first, &big), 3, "an equal share");
    assert!(small.iter().all(|tenant| count(&first, tenant) == 3));
    assert_eq!(claim(d, 20, &first.cursor).await.jobs.len(), 20, "places that nobody else wants are taken");
}

pub async fn a_weight_multiplies_a_share<D: Driver>(d: &D) {
    let heavy = d.tenant("t1", Rules { weight: 3, ..Rules::default() }).await;
    let light = d.tenant("t2", Rules::default()).await;
    fill(d, &heavy, 80).await;
    fill(d, &light, 80).await;
    let (mut shares, mut cursor) = ((0, 0), String::new());
    for _ in 0..10 {
        let claim = claim(d, 8, &cursor).await;
        shares = (shares.0 + count(&claim, &heavy), shares.1 + count(&claim, &light));
        cursor = claim.cursor;
    }
    assert_eq!(shares.0 + shares.1, 80);
    assert!((55..=65).contains(&shares.0), "{shares:?}");
}

pub async fn a_cap_bounds_what_runs_and_leaves_the_rest_to_others<D: Driver>(d: &D) {
    let capped = d.tenant("t1", Rules { running_max: Some(2), ..Rules::default() }).await;
    let free = d.tenant("t2", Rules::default()).await;
    fill(d, &capped, 10).await;
    fill(d, &free, 10).await;
    let first = claim(d, 10, "").await;
    assert_eq!((count(&first, &capped), count(&first, &free)), (2, 8));
    let second = claim(d, 10, &first.cursor).await;
    assert_eq!((count(&second, &capped), count(&second, &free)), (0, 2));
    let done = first.jobs.iter().find(|job| job.tenant == capped).expect("one of the two");
    assert!(settle(d, done, "completed", 0).await);
    assert_eq!(claim(d, 10, "").await.jobs.len(), 1, "the place that became free");
    // A lost lease frees its place as well.
    d.pass(31).await;
    d.upkeep().await;
    assert_eq!(count(&claim(d, 20, "").await, &capped), 2);
}

pub async fn what_is_paused_waits<D: Driver>(d: &D) {
    let a = d.tenant("t1", Rules::default()).await;
    fill(d, &a, 1).await;
    d.pause_queue(true).await;
    nothing(d).await;
    d.pause_queue(false).await;
    d.tenant("t1", Rules { paused: true, ..Rules::default() }).await;
    nothing(d).await;
    d.tenant("t1", Rules::default()).await;
    one(d).await;
}

pub async fn a_lease_that_runs_out_is_taken_back<D: Driver>(d: &D) {
    let a = d.tenant("t1", Rules::default()).await;
    fill(d, &a, 1).await;
    let first = one(d).await;
    let left = d.lease_left(first.id).await;
    assert!(left > 20.0 && left <= 30.0, "{left} s of 30");
    d.pass(20).await;
    d.upkeep().await;
    assert_eq!(d.state(first.id).await, State::Running);
    d.pass(11).await;
    d.upkeep().await;
    assert_eq!(d.state(first.id).await, State::Available);
    let second = one(d).await;
    assert_eq!((second.id, second.attempt, second.rescues), (first.id, 2, 1));
    assert_ne!(second.lease_token, first.lease_token);
}

pub async fn a_renewed_lease_is_not_taken_back<D: Driver>(d: &D) {
    let a = d.tenant("t1", Rules::default()).await;
    fill(d, &a, 1).await;
    let job = one(d).await;
    for _ in 0..3 {
        d.pass(20).await;
        assert_eq!(renew(d, &job).await, Some(None));
        d.upkeep().await;
        assert_eq!(d.state(job.id).await, State::Running);
    }
    assert!(settle(d, &job, "completed", 0).await);
}

pub async fn a_lease_lost_to_another_can_neither_renew_nor_settle<D: Driver>(d: &D) {
    let a = d.tenant("t1", Rules::default()).await;
    fill(d, &a, 1).await;
    let lost = one(d).await;
    d.pass(31).await;
    d.upkeep().await;
    assert_eq!(renew(d, &lost).await, None, "nobody holds it");
    assert!(!settle(d, &lost, "completed", 0).await);
    let held = one(d).await;
    assert_eq!(renew(d, &lost).await, None, "another holds it");
    assert!(!d.queue().mark_started(lost.id, lost.lease_token).await.expect("an answer"));
    for outcome in ["completed", "cancelled", "retry", "snooze", "release", "interrupted", "dead", "quarantine"] {
        assert!(!settle(d, &lost, outcome, 0).await, "{outcome}");
        assert_eq!(d.state(lost.id).await, State::Running, "{outcome}");
    }
    assert_eq!(renew(d, &held).await, Some(None));
    assert!(d.queue().mark_started(held.id, held.lease_token).await.expect("an answer"));
    assert!(settle(d, &held, "completed", 0).await);
}

pub async fn a_batch_settles_each_job_by_its_own_token<D: Driver>(d: &D) {
    let a = d.tenant("t1", Rules::default()).await;
    fill(d, &a, 7).await;
    let jobs = claim(d, 10, "").await.jobs;
    let outcomes = ["completed", "retry", "snooze", "dead", "cancelled", "quarantine", "completed"];
    let mut batch: Vec<_> = jobs.iter().zip(outcomes).map(|(job, outcome)| settlement(job, outcome, 60)).collect();
    batch[6].token = LeaseToken(uuid::Uuid::nil());
    let settled: BTreeSet<_> = d.queue().settle(&batch).await.expect("settled").into_iter().collect();
    assert_eq!(settled, jobs[..6].iter().map(|job| job.id).collect(), "all but the one under a foreign token");
    let states = [
        State::Completed,
        State::Retryable,
        State::Scheduled,
        State::Dead,
        State::Cancelled,
        State::Quarantined,
        State::Running,
    ];
    for (job, state) in jobs.iter().zip(states) {
        assert_eq!(d.state(job.id).await, state);
    }
}

pub async fn three_lost_leases_quarantine_a_job<D: Driver>(d: &D) {
    let a = d.tenant("t1", Rules::default()).await;
    let id = fill(d, &a, 1).await[0];
    for lost in 0..3 {
        let job = one(d).await;
        assert_eq!(job.rescues, lost);
        assert!(d.queue().mark_started(job.id, job.lease_token).await.expect("an answer"));
        d.pass(31).await;
        d.upkeep().await;
    }
    assert_eq!(d.state(id).await, State::Quarantined);
    nothing(d).await;
}

/// Twice beside a killer in the same buffer is no guilt.
pub async fn a_job_that_never_started_is_given_back_uncounted<D: Driver>(d: &D) {
    let a = d.tenant("t1", Rules::default()).await;
    fill(d, &a, 1).await;
    for _ in 0..6 {
        one(d).await;
        d.pass(31).await;
        d.upkeep().await;
    }
    let job = one(d).await;
    assert_eq!((job.attempt, job.rescues), (2, 1), "the first lost lease counts, the unstarted ones do not");
}

pub async fn used_up_attempts_park_a_job_and_a_redrive_gives_fresh_ones<D: Driver>(d: &D) {
    let a = d.tenant("t1", Rules::default()).await;
    let id = fill(d, &a, 1).await[0];
    for attempt in 1..=3 {
        let job = one(d).await;
        assert_eq!(job.attempt, attempt);
        assert!(settle(d, &job, "retry", 60).await);
        let parked = attempt == 3;
        assert_eq!(d.state(id).await, if parked { State::Dead } else { State::Retryable });
        nothing(d).await;
        d.pass(61).await;
        d.upkeep().await;
    }
    nothing(d).await;
    d.redrive(id).await;
    let job = one(d).await;
    assert_eq!((job.id, job.attempts_max - job.attempt), (id, 2), "three more, and this is the first");
}

pub async fn a_drain_hands_out_every_job_once<D: Driver>(d: &D) {
    let mut meant = BTreeSet::new();
    for n in 1..6 {
        let tenant = d.tenant(&format!("t{n}"), Rules::default()).await;
        meant.extend(fill(d, &tenant, n * 5).await);
    }
    let (mut got, mut cursor) = (Vec::new(), String::new());
    loop {
        let claim = claim(d, 7, &cursor).await;
        if claim.jobs.is_empty() && !claim.more {
            break;
        }
        let batch: Vec<_> = claim.jobs.iter().map(|job| settlement(job, "completed", 0)).collect();
        got.extend(d.queue().settle(&batch).await.expect("settled"));
        cursor = claim.cursor;
    }
    assert_eq!(got.len(), meant.len());
    assert_eq!(got.into_iter().collect::<BTreeSet<_>>(), meant);
}

pub async fn a_cancelled_job_that_waits_is_never_claimed<D: Driver>(d: &D) {
    let a = d.tenant("t1", Rules::default()).await;
    let ready = fill(d, &a, 1).await[0];
    let later = enqueue(d, &a, &NewJob { delay_secs: 60, ..NewJob::default() }).await;
    for id in [ready, later] {
        d.cancel(id).await;
        assert_eq!(d.state(id).await, State::Cancelled);
    }
    d.pass(61).await;
    d.upkeep().await;
    nothing(d).await;
}

pub async fn a_running_job_is_told_to_stop_and_not_retried<D: Driver>(d: &D) {
    let a = d.tenant("t1", Rules::default()).await;
    fill(d, &a, 1).await;
    let job = one(d).await;
    d.cancel(job.id).await;
    assert_eq!(d.state(job.id).await, State::Running, "its worker ends it");
    assert!(renew(d, &job).await.expect("still held").is_some_and(|why| !why.is_empty()));
    assert!(settle(d, &job, "retry", 0).await);
    assert_eq!(d.state(job.id).await, State::Cancelled);
    nothing(d).await;
}

pub async fn a_cancelled_job_whose_worker_died_is_over<D: Driver>(d: &D) {
    let a = d.tenant("t1", Rules::default()).await;
    fill(d, &a, 1).await;
    let job = one(d).await;
    d.cancel(job.id).await;
    d.pass(31).await;
    d.upkeep().await;
    assert_eq!(d.state(job.id).await, State::Cancelled);
    nothing(d).await;
}

pub async fn a_job_given_back_is_there_at_once_and_uncounted<D: Driver>(d: &D) {
    let a = d.tenant("t1", Rules::default()).await;
    fill(d, &a, 1).await;
    for outcome in ["release", "interrupted", "release", "interrupted"] {
        let job = one(d).await;
        assert_eq!(job.attempt, 1);
        assert!(settle(d, &job, outcome, 0).await);
    }
}

pub async fn a_snooze_is_no_attempt<D: Driver>(d: &D) {
    let a = d.tenant("t1", Rules::default()).await;
    fill(d, &a, 1).await;
    for _ in 0..5 {
        let job = one(d).await;
        assert_eq!(job.attempt, 1);
        assert!(settle(d, &job, "snooze", 60).await);
        nothing(d).await;
        d.pass(61).await;
        d.upkeep().await;
    }
}

pub async fn an_unreadable_job_reaches_no_handler_and_spares_its_batch<D: Driver>(d: &D) {
    let a = d.tenant("t1", Rules::default()).await;
    let ids = fill(d, &a, 3).await;
    d.spoil(ids[1]).await;
    let claim = claim(d, 10, "").await;
    assert_eq!(claim.jobs.iter().map(|job| job.id).collect::<Vec<_>>(), [ids[0], ids[2]]);
    assert_eq!(claim.broken.iter().map(|broken| broken.job).collect::<Vec<_>>(), [ids[1]]);
    assert!(claim.broken[0].error.as_ref().is_some_and(|why| !why.is_empty()));
    assert_eq!(d.queue().settle(&claim.broken).await.expect("settled"), [ids[1]]);
    assert!(matches!(d.state(ids[1]).await, State::Dead | State::Quarantined));
    d.pass(31).await;
    d.upkeep().await;
    let again = self::claim(d, 10, "").await;
    assert!(again.broken.is_empty() && again.jobs.iter().all(|job| job.id != ids[1]), "it is parked");
}

pub async fn an_oversized_payload_is_refused_and_says_its_limit<D: Driver>(d: &D) {
    let a = d.tenant("t1", Rules::default()).await;
    let refused = d.enqueue(&a, &NewJob::note("x".repeat(PAYLOAD_BYTES_MAX))).await.expect_err("too much");
    assert!(refused.contains("fleet.probe") && refused.contains(&PAYLOAD_BYTES_MAX.to_string()), "{refused}");
    nothing(d).await;
    let near = "x".repeat(PAYLOAD_BYTES_MAX - 32);
    enqueue(d, &a, &NewJob::note(near.clone())).await;
    assert_eq!(one(d).await.payload["note"], near);
}

/// The worker's clock says that ten more minutes are left; the store's says that the lease is over.
pub async fn the_stores_clock_decides_against_a_slow_worker<D: Driver>(d: &D) {
    let a = d.tenant("t1", Rules::default()).await;
    fill(d, &a, 1).await;
    let job = one(d).await;
    d.pass(600).await;
    d.upkeep().await;
    assert_eq!(d.state(job.id).await, State::Available);
    assert_eq!(renew(d, &job).await, None);
    assert!(!settle(d, &job, "completed", 0).await);
}

/// The worker's clock says that the lease ended long ago; by the store's it runs, and what the worker asks for is counted
/// from the store's now.
pub async fn the_stores_clock_decides_against_a_fast_worker<D: Driver>(d: &D) {
    let a = d.tenant("t1", Rules::default()).await;
    fill(d, &a, 1).await;
    let job = one(d).await;
    d.pass(-600).await;
    d.upkeep().await;
    assert_eq!(d.state(job.id).await, State::Running);
    assert_eq!(renew(d, &job).await, Some(None));
    let left = d.lease_left(job.id).await;
    assert!(left > 20.0 && left <= 30.0, "{left} s: a lease runs from the store's now");
    assert!(settle(d, &job, "retry", 60).await);
    d.pass(61).await;
    d.upkeep().await;
    one(d).await;
}

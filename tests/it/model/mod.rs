//! The queue against a model of itself: random calls of several workers, schedulers and operators, made of the real store and
//! checked step by step against `reference.rs`.
//!
//! Data flow: proptest makes a list of [`Op`]s; a [`Case`] turns each into a [`Call`] with ids and tokens that its workers
//! remember (they forget none, so that stale ones abound), makes it of a [`Store`], and asks the reference whether the answer and
//! all jobs as they then are may be so. Some calls are made two at a time. At the end time passes, all that is left is
//! worked off, and every job must have ended. A failure shrinks to the shortest list that still fails.
//!
//! `REEVE_TEST_MODEL_CASES` makes it longer, `REEVE_TEST_MODEL_SEED` (a number) another.
//!
//! Not here: who comes first (`conformance`, `claim`), workers as programs and lost connections (`chaos`).
mod reference;
mod stores;

use std::{
    fmt::Write as _,
    time::{Duration, Instant},
};

use proptest::{
    prelude::*,
    test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner},
};
use reeve_jobs::{
    JobId, TenantId,
    job::LeaseToken,
    queue::{Queue, QueueError, Settlement},
    testing::queue_suite::NewJob,
};

use self::{
    reference::{Answer, Call, End, LATER, LEASE, Reference, TICK, Taken},
    stores::Store,
};
use crate::conformance::{Postgres, Redis};

const WORKERS: usize = 3;
/// See [`op`].
const PAIRS: u32 = 4;
/// What a case may take of the clock without being able to change what is due; see [`TICK`].
const CASE_SECS_MAX: u64 = 8;

/// What somebody does. Workers and jobs are small numbers, taken modulo of what there is; a `pick` counts back from what a
/// worker claimed last.
#[derive(Debug, Clone)]
enum Op {
    Enqueue { tenant: usize, key: Option<u8>, later: bool },
    Claim { worker: usize, places: usize },
    Start { worker: usize, pick: usize },
    Renew { worker: usize },
    Settle { worker: usize, ends: Vec<(usize, End)> },
    Pass { ticks: u32 },
    Upkeep,
    Cancel { job: usize },
    Redrive { job: usize },
    Both(Box<Op>, Box<Op>),
}

fn end() -> impl Strategy<Value = End> {
    prop_oneof![
        4 => Just(End::Complete),
        3 => any::<bool>().prop_map(|later| End::Retry { later }),
        2 => any::<bool>().prop_map(|later| End::Snooze { later }),
        2 => Just(End::Release),
        2 => Just(End::Interrupt),
        1 => Just(End::Cancel),
        1 => Just(End::Dead),
        1 => Just(End::Quarantine),
    ]
}

/// What may happen at the same time as another.
fn beside() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0..WORKERS, 1..4_usize).prop_map(|(worker, places)| Op::Claim { worker, places }),
        2 => (0..WORKERS, 0..4_usize).prop_map(|(worker, pick)| Op::Start { worker, pick }),
        2 => (0..WORKERS).prop_map(|worker| Op::Renew { worker }),
        6 => (0..WORKERS, prop::collection::vec((0..4_usize, end()), 1..4))
            .prop_map(|(worker, ends)| Op::Settle { worker, ends }),
        3 => Just(Op::Upkeep),
        1 => (0..8_usize).prop_map(|job| Op::Cancel { job }),
    ]
}

/// `pairs`: how often two things happen at the same time, of some 25.
fn op(pairs: u32) -> impl Strategy<Value = Op> {
    prop_oneof![
        12 => beside(),
        4 => (0..2_usize, prop::option::weighted(0.3, 0..2_u8), prop::bool::weighted(0.2))
            .prop_map(|(tenant, key, later)| Op::Enqueue { tenant, key, later }),
        4 => (1..3_u32).prop_map(|ticks| Op::Pass { ticks }),
        2 => (0..8_usize).prop_map(|job| Op::Redrive { job }),
        pairs => (beside(), beside()).prop_map(|(one, other)| Op::Both(Box::new(one), Box::new(other))),
    ]
}

/// One run of a list of operations.
struct Case<'a, S> {
    store: &'a S,
    tenants: Vec<TenantId>,
    model: Reference,
    /// What each worker ever held, as far as it knows.
    held: [Vec<(JobId, LeaseToken)>; WORKERS],
    /// Tokens in the order in which they were given, for people.
    tokens: Vec<LeaseToken>,
    told: String,
}

impl<S: Store> Case<'_, S> {
    /// The call that is meant; `None` where there is nothing that it could be of.
    fn call(&self, op: &Op) -> Option<Call> {
        let held = |worker: usize, pick: usize| {
            let held = &self.held[worker];
            (!held.is_empty()).then(|| held[held.len() - 1 - pick % held.len()])
        };
        let job = |n: usize| {
            let jobs = self.model.jobs();
            (!jobs.is_empty()).then(|| jobs[n % jobs.len()])
        };
        Some(match op {
            Op::Enqueue { tenant, key, later } => Call::Enqueue { tenant: *tenant, key: *key, later: *later },
            Op::Claim { worker, places } => Call::Claim { worker: *worker, places: *places },
            Op::Start { worker, pick } => {
                let (job, token) = held(*worker, *pick)?;
                Call::Start { worker: *worker, job, token }
            }
            Op::Renew { worker } => Call::Renew { worker: *worker, held: self.held[*worker].clone() },
            Op::Settle { worker, ends } => {
                let mut meant: Vec<(JobId, LeaseToken, End)> = Vec::new();
                for (pick, end) in ends {
                    let (job, token) = held(*worker, *pick)?;
                    // No worker ends an attempt twice in one batch.
                    if meant.iter().all(|other| (other.0, other.1) != (job, token)) {
                        meant.push((job, token, *end));
                    }
                }
                Call::Settle { worker: *worker, ends: meant }
            }
            Op::Pass { ticks } => Call::Pass { ticks: *ticks },
            Op::Upkeep => Call::Upkeep,
            Op::Cancel { job: n } => Call::Cancel { job: job(*n)? },
            Op::Redrive { job: n } => Call::Redrive { job: job(*n)? },
            Op::Both(..) => return None,
        })
    }

    /// Makes the call, again where a passing fault (two batches that lock the same rows) undid it.
    async fn make(&self, call: &Call) -> Result<Answer, String> {
        for _ in 0..5 {
            match self.try_make(call).await {
                Err(error) if error.is_passing() => {}
                answer => return answer.map_err(|error| error.to_string()),
            }
        }
        Err("the store fails again and again".to_owned())
    }

    async fn try_make(&self, call: &Call) -> Result<Answer, QueueError> {
        let (store, queue) = (self.store, self.store.queue());
        let lease = Duration::from_secs(LEASE.into());
        Ok(match call {
            Call::Enqueue { tenant, key, later } => {
                let job = NewJob {
                    unique_key: key.map(|key| key.to_string()),
                    delay_secs: if *later { LATER } else { 0 },
                    ..NewJob::default()
                };
                Answer::Job(store.enqueue(&self.tenants[*tenant], &job).await.expect("enqueued"))
            }
            Call::Claim { worker, places } => {
                let claim = queue.claim(&store.lane(), *places, &format!("w{worker}"), "", lease).await?;
                assert!(claim.broken.is_empty(), "{:?}", claim.broken);
                let taken = claim.jobs.into_iter().map(|job| Taken {
                    job: job.id,
                    token: job.lease_token,
                    attempt: job.attempt,
                    attempts_max: job.attempts_max,
                    rescues: job.rescues,
                });
                Answer::Claimed(taken.collect())
            }
            Call::Start { job, token, .. } => Answer::Held(queue.mark_started(*job, *token).await?),
            Call::Renew { held, .. } => {
                let renewed = queue.renew(held, lease).await?;
                Answer::Renewed(renewed.into_iter().map(|told| (told.job, told.cancel_reason.is_some())).collect())
            }
            Call::Settle { ends, .. } => {
                let batch: Vec<_> = ends.iter().map(|(job, token, end)| settlement(*job, *token, *end)).collect();
                Answer::Settled(queue.settle(&batch).await?)
            }
            Call::Pass { ticks } => {
                store.pass((ticks * TICK).into()).await;
                Answer::Nothing
            }
            Call::Upkeep => {
                store.upkeep().await;
                Answer::Nothing
            }
            Call::Cancel { job } => store.cancelled(*job).await.map_or(Answer::Refused, Answer::Former),
            Call::Redrive { job } => store.redriven(*job).await.map_or(Answer::Refused, Answer::Former),
        })
    }

    async fn step(&mut self, op: &Op) -> Result<(), String> {
        if let Op::Both(one, other) = op {
            return self.both(one, other).await;
        }
        let Some(call) = self.call(op) else { return Ok(()) };
        let answer = self.make(&call).await.inspect_err(|_| self.tell(&call, None))?;
        self.note(&call, &answer);
        self.model.accept(&call, &answer)?;
        self.model.agrees(&self.store.seen(&self.model.jobs()).await?)
    }

    async fn both(&mut self, one: &Op, other: &Op) -> Result<(), String> {
        let (Some(one), Some(other)) = (self.call(one), self.call(other)) else { return Ok(()) };
        let (first, second) = tokio::join!(self.make(&one), self.make(&other));
        let (first, second) = (first?, second?);
        self.told.push_str("  at the same time:\n");
        self.note(&one, &first);
        self.note(&other, &second);
        let seen = self.store.seen(&self.model.jobs()).await?;
        self.model.accept_both((&one, &first), (&other, &second), &seen)?;
        self.model.agrees(&seen)
    }

    /// Time passes, and one diligent worker does all that is left.
    async fn drain(&mut self) -> Result<(), String> {
        self.told.push_str("  then all that is left is done:\n");
        self.step(&Op::Pass { ticks: 4 }).await?;
        self.step(&Op::Upkeep).await?;
        while self.model.live() > 0 {
            let before = self.held[0].len();
            self.step(&Op::Claim { worker: 0, places: 8 }).await?;
            if self.held[0].len() == before {
                return Err("a live job is never handed out".to_owned());
            }
            let ends = (0..self.held[0].len() - before).map(|pick| (pick, End::Complete)).collect();
            self.step(&Op::Settle { worker: 0, ends }).await?;
        }
        Ok(())
    }

    /// Keeps what the workers learn, and tells it.
    fn note(&mut self, call: &Call, answer: &Answer) {
        if let (Call::Claim { worker, .. }, Answer::Claimed(taken)) = (call, answer) {
            self.held[*worker].extend(taken.iter().map(|taken| (taken.job, taken.token)));
            self.tokens.extend(taken.first().map(|taken| taken.token));
        }
        self.tell(call, Some(answer));
    }

    /// A line for people: jobs as `j0`, leases as `L0`.
    fn tell(&mut self, call: &Call, answer: Option<&Answer>) {
        let mut line = format!("  {call:?} -> {answer:?}\n");
        for id in self.model.jobs() {
            let short = format!("j{}", self.model.number(id));
            line = line.replace(&format!("JobId({})", id.0), &short);
        }
        for (n, token) in self.tokens.iter().enumerate() {
            line = line.replace(&format!("LeaseToken({})", token.0), &format!("L{n}"));
        }
        let _ = self.told.write_str(&line);
    }
}

fn settlement(job: JobId, token: LeaseToken, end: End) -> Settlement {
    let delay = Duration::from_secs(if end.is_later() { LATER } else { 0 }.into());
    Settlement { job, token, outcome: end.word(), delay, error: None }
}

async fn run<S: Store>(store: &mut S, ops: &[Op]) -> Result<(), TestCaseError> {
    let begun = Instant::now();
    let tenants = store.fresh().await;
    let (held, tokens, told) = (Default::default(), Vec::new(), String::new());
    let mut case = Case { store: &*store, tenants, model: Reference::default(), held, tokens, told };
    let mut outcome = Ok(());
    for op in ops {
        outcome = case.step(op).await;
        if outcome.is_err() {
            break;
        }
    }
    if outcome.is_ok() {
        outcome = case.drain().await;
    }
    // A machine that stood still has moved the store's clock by itself, which the model knows nothing of.
    if begun.elapsed().as_secs() >= CASE_SECS_MAX {
        return Err(TestCaseError::reject("the machine stood still"));
    }
    outcome.map_err(|why| TestCaseError::fail(format!("{why}\n  after\n{}", case.told)))
}

fn from_env(name: &str, default: u32) -> u32 {
    std::env::var(name)
        .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}: a number, not {text:?}")))
}

/// How often a list that has failed once, and two things at the same time in it, is tried again: who comes first is chance.
const TRIES: usize = 20;

/// A shortest list of operations that the store does otherwise than the model, and the difference.
fn counterexample<S: Store>(
    runtime: &tokio::runtime::Runtime,
    store: S,
    cases: u32,
    pairs: u32,
) -> Option<(Vec<Op>, String)> {
    let mut seed = [0; 32];
    seed[..4].copy_from_slice(&from_env("REEVE_TEST_MODEL_SEED", 1).to_le_bytes());
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 3_000, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &seed));
    // proptest calls a Fn.
    let (store, shrinking) = (std::cell::RefCell::new(store), std::cell::Cell::new(false));
    let try_out = |ops: &[Op]| {
        let by_chance = ops.iter().any(|op| matches!(op, Op::Both(..)));
        let times = if shrinking.get() && by_chance { TRIES } else { 1 };
        let found = (0..times).try_for_each(|_| runtime.block_on(run(&mut *store.borrow_mut(), ops)));
        shrinking.set(shrinking.get() || matches!(found, Err(TestCaseError::Fail(_))));
        found
    };
    let (mut ops, mut why) = match runner.run(&prop::collection::vec(op(pairs), 1..50), |ops| try_out(&ops)) {
        Ok(()) => return None,
        Err(TestError::Fail(why, ops)) => (ops, why),
        Err(aborted @ TestError::Abort(_)) => panic!("{aborted}"),
    };
    // proptest leaves out what it can before it makes the rest simpler, and not again after it.
    let mut at = 0;
    while at < ops.len() {
        let mut fewer = ops.clone();
        fewer.remove(at);
        match try_out(&fewer) {
            Err(TestCaseError::Fail(still)) => (ops, why, at) = (fewer, still, 0),
            _ => at += 1,
        }
    }
    Some((ops, why.message().to_owned()))
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

fn cases() -> u32 {
    from_env("REEVE_TEST_MODEL_CASES", 200)
}

fn show(found: Option<(Vec<Op>, String)>) {
    if let Some((ops, why)) = found {
        panic!("the store does otherwise than the model, in {} steps: {ops:#?}\n{why}", ops.len());
    }
}

#[test]
fn the_queue_on_postgres_does_what_the_model_does() {
    let runtime = runtime();
    let store = runtime.block_on(Postgres::new());
    show(counterexample(&runtime, store, cases(), PAIRS));
}

#[test]
fn the_queue_on_redis_does_what_the_model_does() {
    let runtime = runtime();
    let store = runtime.block_on(Redis::new());
    show(counterexample(&runtime, store, cases(), PAIRS));
}

/// Takes `guard` out of a function of the database and sees the model find it.
fn is_found_without(function: &'static str, guard: &str) {
    let runtime = runtime();
    let store = runtime.block_on(async {
        let store = Postgres::new().await;
        let admin = &store.town.db.admin;
        let sql: String = sqlx::query_scalar("SELECT pg_get_functiondef(to_regproc($1))")
            .bind(function)
            .fetch_one(admin)
            .await
            .expect("the function");
        assert!(sql.contains(guard), "{function} has no {guard:?}");
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql.replace(guard, ""))).execute(admin).await.expect("replaced");
        store
    });
    let (ops, why) = counterexample(&runtime, store, 1_000, 0).expect("a difference");
    eprintln!("{function} without {guard:?}, in {} steps: {why}", ops.len());
    assert!(ops.len() <= 6, "few steps: {ops:#?}");
}

#[test]
fn a_settlement_without_its_fence_is_found_in_few_steps() {
    is_found_without("reeve.settle_once", "AND j.lease_token = s.token");
}

#[test]
fn a_renewal_without_its_fence_is_found_in_few_steps() {
    is_found_without("reeve.renew", "AND j.lease_token = h.token");
}

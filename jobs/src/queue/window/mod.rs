//! The window: ids of ready jobs, held out to the workers in Redis, so that most claims need not look for work in
//! PostgreSQL. For each lane some ids of each tenant, in two steps of Lua (`scripts/`).
//!
//! ```text
//!   reeve.jobs ──relay (scheduler): ids──► offer ─ window ─ pop ──ids──► WindowedQueue: reeve.take_up ──► leases
//!        ▲                                                                    │ nothing there, or no answer
//!        └────────────────────────────── reeve.claim ◄────────────────────────┘
//! ```
//! **It is no truth.** A job is a row of `reeve.jobs`, and a lease is given there alone. An id is a hint: whose job it is,
//! and whether it may start, PostgreSQL reads from the rows. What Redis lost (FLUSHALL, a crash) is offered again; what it
//! has too much (an older file, ids of jobs that are over, forged ones) is refused by the row's state and dropped. Popped
//! ids that nobody takes up are offered again when their tenant has few left, or found by a claim.
//!
//! No payload, no lease and no key is here. `users.acl` has what a worker's and a relay's login need of Redis: one cannot
//! put ids in, the other cannot take them out. A lane's keys have its prefix as hash tag, and so lie in one slot.
//!
//! **What it does not do.** It keeps no order across tenants: kinds with deadlines have no window. A job of higher priority
//! may wait behind ids that were offered before it, at most until the next claim past the window ([`queue::DIRECT_EVERY`]).
pub mod link;
pub mod queue;

use std::{fmt, sync::LazyLock, time::Duration};

use ::redis::{FromRedisValue, RedisError, Script, ScriptInvocation};

pub use self::{link::Link, queue::WindowedQueue};
use super::{
    Lane,
    connection::{self, Connection},
};
use crate::{job::JobId, redact::Redacted};

static OFFER: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scripts/offer.lua")));
static POP: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scripts/pop.lua")));

/// What Redis allows whom; see the file.
pub const USERS: &str = include_str!("users.acl");

/// Ids of one tenant, at most, whatever is offered.
pub const TENANT_IDS_MAX: usize = 1_000;
/// A window that nobody tends is gone after this.
const KEPT: Duration = Duration::from_secs(3_600);
/// No call waits longer; a worker's far less ([`link::PATIENCE`]).
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
const OPEN_WITHIN: Duration = Duration::from_secs(5);
/// Ids in one step, so that no step holds up the server for long.
const STEP_IDS: usize = 2_000;

/// Why the window did not answer. Never a reason to stop: the work is in PostgreSQL.
#[derive(Debug, thiserror::Error)]
pub enum WindowError {
    #[error("Redis cannot be reached: {0}")]
    Unreachable(String),
    #[error("Redis: {0}")]
    Server(#[from] RedisError),
    #[error("Redis did not answer in time")]
    Late,
}

/// The user's mistake, told at start: the server itself need not be there yet.
#[derive(Debug, thiserror::Error)]
#[error("{key}: {why}")]
pub struct InvalidRedisUrl {
    pub key: &'static str,
    why: connection::InvalidAddress,
}

/// Looks at an address, and repeats nothing of it.
pub fn check_url(key: &'static str, url: &Redacted<String>) -> Result<(), InvalidRedisUrl> {
    connection::check(url.reveal()).map_err(|why| InvalidRedisUrl { key, why })
}

/// Ready jobs of a tenant, to be held out.
#[derive(Debug, Clone, PartialEq)]
pub struct Offer {
    pub tenant: String,
    pub weight: i32,
    /// With the score that sorts them: lowest first, then by id.
    pub ids: Vec<(i64, JobId)>,
}

/// One Redis. Clones share the connection.
#[derive(Clone)]
pub struct Window {
    connection: Connection,
}

impl fmt::Debug for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Window").finish_non_exhaustive()
    }
}

/// What all keys of a lane begin with.
pub fn prefix(lane: &Lane) -> String {
    format!("{{rvw:{}:{}}}", lane.queue, lane.region)
}

async fn within<T>(limit: Duration, call: impl Future<Output = Result<T, RedisError>>) -> Result<T, WindowError> {
    match tokio::time::timeout(limit, call).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(WindowError::Late),
    }
}

impl Window {
    /// Connects to the Redis of this URL, which is never repeated in an error.
    pub async fn open(url: &str) -> Result<Self, WindowError> {
        match tokio::time::timeout(OPEN_WITHIN, connection::open(url)).await {
            Ok(Ok(connection)) => Ok(Self { connection }),
            Ok(Err(error)) => Err(WindowError::Unreachable(error.to_string())),
            Err(_) => Err(WindowError::Late),
        }
    }

    /// Whether somebody is there.
    pub async fn ping(&self) -> Result<(), WindowError> {
        let ping = ::redis::cmd("PING");
        within(ANSWER_WITHIN, ping.query_async(&mut self.connection.clone())).await
    }

    async fn call<T: FromRedisValue>(&self, step: &ScriptInvocation<'_>) -> Result<T, WindowError> {
        within(ANSWER_WITHIN, step.invoke_async(&mut self.connection.clone())).await
    }

    /// Holds out these ids. Repeating it, also after a lost answer, changes nothing.
    pub async fn offer(&self, lane: &Lane, offers: &[Offer]) -> Result<(), WindowError> {
        let mut rest = offers;
        while !rest.is_empty() {
            let mut step = OFFER.key(prefix(lane));
            step.arg(TENANT_IDS_MAX).arg(KEPT.as_secs());
            let mut ids = 0;
            while ids < STEP_IDS
                && let Some((offer, others)) = rest.split_first()
            {
                rest = others;
                if offer.ids.is_empty() {
                    continue;
                }
                step.arg(&offer.tenant).arg(offer.weight).arg(offer.ids.len());
                for (score, id) in &offer.ids {
                    step.arg(*score).arg(id.to_string());
                }
                ids += offer.ids.len();
            }
            self.call::<()>(&step).await?;
        }
        Ok(())
    }

    /// How many ids each of these tenants has there.
    pub async fn sizes(&self, lane: &Lane, tenants: &[String]) -> Result<Vec<usize>, WindowError> {
        if tenants.is_empty() {
            return Ok(Vec::new());
        }
        let prefix = prefix(lane);
        let mut pipe = ::redis::pipe();
        for tenant in tenants {
            pipe.cmd("ZCARD").arg(format!("{prefix}:ready:{tenant}"));
        }
        within(ANSWER_WITHIN, pipe.query_async(&mut self.connection.clone())).await
    }

    /// Takes up to `n` ids out, fairly. What is no id of ours is dropped.
    pub async fn pop(&self, lane: &Lane, n: usize) -> Result<Vec<JobId>, WindowError> {
        let mut step = POP.key(prefix(lane));
        step.arg(n);
        let ids: Vec<Vec<u8>> = self.call(&step).await?;
        Ok(ids.iter().filter_map(|id| str::from_utf8(id).ok()?.parse().ok()).collect())
    }
}

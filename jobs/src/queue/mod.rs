//! The queue as the worker sees it: claim, renew, settle, and waiting for more.
//!
//! What is guaranteed: a job that was committed is handed out until it is settled (at least once, so handlers are
//! idempotent); only the holder of the current lease settles it; tenants with ready jobs share each claim evenly by
//! weight. Enqueueing is not here: it happens in the app's transaction, by SQL (see [`crate::client`]).
#[cfg(feature = "program")]
pub mod bulk;
// Out here, since the window is linked where nothing that opens seals is.
#[cfg(any(feature = "redis", feature = "window"))]
pub mod connection;
#[cfg(feature = "program")]
pub mod history;
#[cfg(feature = "program")]
pub mod inspect;
mod marks;
#[cfg(feature = "program")]
pub mod operate;
pub mod postgres;
#[cfg(feature = "redis")]
pub mod redis;
#[cfg(feature = "program")]
pub mod schedules;
#[cfg(feature = "program")]
pub mod slots;
#[cfg(feature = "program")]
pub mod waits;
#[cfg(feature = "window")]
pub mod window;

use std::{future::Future, time::Duration};

pub use postgres::PostgresQueue;
#[cfg(feature = "window")]
pub use window::WindowedQueue;

use crate::job::{ClaimedJob, JobId, LeaseToken};

/// One queue in one region: what a worker serves.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Lane {
    pub queue: String,
    pub region: String,
}

impl Lane {
    /// As it stands in a notification.
    pub fn channel_payload(&self) -> String {
        format!("{}@{}", self.queue, self.region)
    }
}

/// What a claim brought, and where the next one continues its round of the tenants.
#[derive(Debug, Default)]
pub struct Claim {
    pub jobs: Vec<ClaimedJob>,
    /// Claimed as well, but not readable by this program: to be settled as they are here.
    pub broken: Vec<Settlement>,
    pub cursor: String,
    /// Tenants are left that this claim did not look at: worth another at once, even if it brought nothing.
    pub more: bool,
}

#[cfg(feature = "window")]
impl Claim {
    fn is_empty(&self) -> bool {
        self.jobs.is_empty() && self.broken.is_empty()
    }

    /// With what a later step of the same claim brought, and where that one ended.
    fn append(&mut self, later: Self) {
        self.jobs.extend(later.jobs);
        self.broken.extend(later.broken);
        (self.cursor, self.more) = (later.cursor, later.more);
    }
}

/// One attempt's end, ready to be stored.
#[derive(Debug, Clone)]
pub struct Settlement {
    pub job: JobId,
    pub token: LeaseToken,
    /// A word of [`crate::job::Outcome::as_str`].
    pub outcome: &'static str,
    pub delay: Duration,
    /// Scrubbed and shortened by the caller.
    pub error: Option<String>,
}

/// Error texts are cut to this many characters before they are stored.
pub const ERROR_CHARS_MAX: usize = 2_000;

/// No payload is larger, whatever its kind allows: payloads hold ids.
pub const PAYLOAD_BYTES_MAX: usize = 64 * 1024;

/// What renewing told about one held job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Renewed {
    pub job: JobId,
    /// An operator asked for the job to stop.
    pub cancel_reason: Option<String>,
}

/// How far a held job has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    pub job: JobId,
    pub token: LeaseToken,
    /// A constant of the program, so that nothing of a tenant's can stand here.
    pub step: &'static str,
    pub done: u64,
    pub total: Option<u64>,
}

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QueueError {
    #[error("queue: {0}")]
    Database(#[from] sqlx::Error),
    #[cfg(feature = "redis")]
    #[error("queue: {0}")]
    Redis(#[from] redis::RedisQueueError),
}

impl QueueError {
    /// Whether the same call may well succeed in a while.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Database(error) => crate::tenant::is_passing_fault(error),
            #[cfg(feature = "redis")]
            Self::Redis(error) => error.is_passing(),
        }
    }
}

/// A store of jobs. All calls are safe to repeat after an error.
pub trait Queue: Clone + Send + Sync + 'static {
    /// Claims up to `limit` jobs under one fresh lease token. `cursor` is the last claim's, or `""`.
    fn claim(
        &self,
        lane: &Lane,
        limit: usize,
        worker: &str,
        cursor: &str,
        lease: Duration,
    ) -> impl Future<Output = Result<Claim, QueueError>> + Send;

    /// Tells that a job which lost a lease before is about to start. False when its lease is gone: then it must not.
    fn mark_started(&self, job: JobId, token: LeaseToken) -> impl Future<Output = Result<bool, QueueError>> + Send;

    /// Extends the leases still held under these tokens. A job missing from the answer was taken away.
    fn renew(
        &self,
        held: &[(JobId, LeaseToken)],
        lease: Duration,
    ) -> impl Future<Output = Result<Vec<Renewed>, QueueError>> + Send;

    /// Stores ends of attempts. A job missing from the answer had lost its lease, and nothing of it was stored.
    fn settle(&self, batch: &[Settlement]) -> impl Future<Output = Result<Vec<JobId>, QueueError>> + Send;

    /// Stores reports of jobs still held under these tokens, and takes away those of the leases in `over`. A queue that
    /// keeps none loses nothing but what people would see.
    fn report(
        &self,
        _reports: &[Report],
        _over: &[(JobId, LeaseToken)],
    ) -> impl Future<Output = Result<(), QueueError>> + Send {
        async { Ok(()) }
    }

    /// Asks enqueuers to ring for the next `secs`.
    fn wait_for_jobs(&self, lane: &Lane, secs: f64) -> impl Future<Output = Result<(), QueueError>> + Send;

    /// Tells enqueuers that ringing is not needed.
    fn stop_waiting(&self, lane: &Lane) -> impl Future<Output = Result<(), QueueError>> + Send;
}

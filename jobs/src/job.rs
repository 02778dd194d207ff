//! A job, its states, and how an attempt may end.
//!
//! ```text
//!   enqueue ──► scheduled ──promote──► available ──claim──► running ──┬─ completed ─┐
//!                   ▲                      ▲  ▲                       ├─ cancelled ─┼─► job_history
//!                   │        snooze        │  └ release, interrupted ─┤             │
//!                   └──────────────────────┼──────────────────────────┤             │
//!               retryable ──promote────────┘                          │             │
//!                   ▲            retry (delay)                        │             │
//!                   └─────────────────────────────────────────────────┤             │
//!               dead         attempts used up, or nothing can help ◄──┤             │
//!               quarantined  wrong tenant, or three lost leases    ◄──┘   cancel ───┘
//!                   └── retry by an operator ──► available
//! ```
//! `completed` and `cancelled` jobs are history. `dead` and `quarantined` ones stay in `reeve.jobs` and wait for an
//! operator; nothing claims them.
use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::tenant::{Proof, TenantId};

/// A job's id: a UUID that sorts by time (RFC 9562, version 7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, sqlx::Type)]
#[serde(transparent)]
#[sqlx(transparent)]
pub struct JobId(pub Uuid);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for JobId {
    type Err = uuid::Error;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        s.parse().map(Self)
    }
}

/// Proof of holding a job: minted by each claim, checked by each renewal and settlement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, sqlx::Type)]
#[sqlx(transparent)]
pub struct LeaseToken(pub Uuid);

/// Where a job stands. See the diagram above.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Scheduled,
    Available,
    Running,
    Retryable,
    Completed,
    Cancelled,
    Dead,
    Quarantined,
}

impl State {
    pub const ALL: [Self; 8] = [
        Self::Scheduled,
        Self::Available,
        Self::Running,
        Self::Retryable,
        Self::Completed,
        Self::Cancelled,
        Self::Dead,
        Self::Quarantined,
    ];

    /// The word that the database and the command line use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Scheduled => "scheduled",
            Self::Available => "available",
            Self::Running => "running",
            Self::Retryable => "retryable",
            Self::Completed => "completed",
            Self::Cancelled => "cancelled",
            Self::Dead => "dead",
            Self::Quarantined => "quarantined",
        }
    }

    /// Whether nothing will happen to the job any more unless somebody acts.
    pub fn is_settled(self) -> bool {
        matches!(self, Self::Completed | Self::Cancelled | Self::Dead | Self::Quarantined)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "unknown job state {0:?}; states are scheduled, available, running, retryable, completed, cancelled, dead, quarantined"
)]
pub struct UnknownState(pub String);

impl FromStr for State {
    type Err = UnknownState;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|state| state.as_str() == s).ok_or_else(|| UnknownState(s.to_owned()))
    }
}

/// A job as a claim hands it out: everything an attempt needs to know, and the token that lets it settle.
#[derive(Debug, Clone)]
pub struct ClaimedJob {
    pub id: JobId,
    pub tenant: TenantId,
    /// As stored: may name a kind that this build does not know.
    pub kind: String,
    pub payload: serde_json::Value,
    /// 1 for the first.
    pub attempt: i32,
    pub attempts_max: i32,
    /// Earlier leases that ended without a settlement.
    pub rescues: i32,
    pub traceparent: Option<String>,
    pub lease_token: LeaseToken,
    /// Lets this job's holder into its tenant's rows, as long as it holds the lease.
    pub proof: Proof,
    /// Of a kind with a deadline: to be started before others.
    pub urgent: bool,
}

/// How an attempt ended. A value, not an error: the handler says what is to happen next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The job is done.
    Done,
    /// Failed; try again. `after` overrides the kind's own delay. Dead when attempts are used up.
    Retry { why: String, after: Option<Duration> },
    /// Not now, and not a failure: this attempt does not count.
    Snooze { why: String, after: Duration },
    /// There is nothing left to do.
    Cancel { why: String },
    /// No attempt can succeed; an operator should look.
    Dead { why: String },
    /// The job tried to cross a tenant's border, or is not safe to run. Audited; an operator must look.
    Quarantine { why: String },
    /// Given back unstarted: available at once, uncounted, and nothing is kept of it.
    Release,
    /// Given back after it had started: the process stops, or the lease may be lost. Available at once and uncounted, but on
    /// record, since what the attempt had done may be done again.
    Interrupted,
    /// Done, and settled already in the handler's own transaction: see [`crate::tenant::Scope::commit_and_settle`].
    Settled,
}

impl Outcome {
    pub fn retry(why: impl Into<String>) -> Self {
        Self::Retry { why: why.into(), after: None }
    }

    pub fn dead(why: impl Into<String>) -> Self {
        Self::Dead { why: why.into() }
    }

    pub fn cancel(why: impl Into<String>) -> Self {
        Self::Cancel { why: why.into() }
    }

    pub fn quarantine(why: impl Into<String>) -> Self {
        Self::Quarantine { why: why.into() }
    }

    /// Not a word that `reeve.settle` takes: there is nothing left to store.
    pub const SETTLED: &'static str = "settled";

    /// The word `reeve.settle` takes.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Done => "completed",
            Self::Retry { .. } => "retry",
            Self::Snooze { .. } => "snooze",
            Self::Cancel { .. } => "cancelled",
            Self::Dead { .. } => "dead",
            Self::Quarantine { .. } => "quarantine",
            Self::Release => "release",
            Self::Interrupted => "interrupted",
            Self::Settled => Self::SETTLED,
        }
    }

    /// Why, for the job's history; `None` where there is nothing to say.
    pub fn why(&self) -> Option<&str> {
        match self {
            Self::Done | Self::Release | Self::Interrupted | Self::Settled => None,
            Self::Retry { why, .. }
            | Self::Snooze { why, .. }
            | Self::Cancel { why }
            | Self::Dead { why }
            | Self::Quarantine { why } => Some(why),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::State;

    #[test]
    fn every_state_reads_back_and_an_unknown_one_lists_the_known() {
        for state in State::ALL {
            assert_eq!(state.as_str().parse(), Ok(state));
        }
        let said = "finished".parse::<State>().unwrap_err().to_string();
        assert!(said.contains("finished") && said.contains("quarantined"), "{said}");
    }
}

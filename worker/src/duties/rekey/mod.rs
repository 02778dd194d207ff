//! `key.rotate_tenant`: a tenant's sealed columns under the newest version of its key, online.
//!
//! ```text
//!   catalogue ──► sealed (which columns, where) ──► sweep, one table after the other ──► rows (read, compare-and-swap)
//!                                                     ├── renew (open, seal)     ├── ledger (position, quarantine)
//!                                                     └── pace (how fast)
//! ```
//! The job may be ended at any moment and goes on where it was; before its kind's budget is up it snoozes by itself. It is
//! done when every table had a pass with nothing to do. Tables that cannot be swept end it dead, with each reason, once all
//! others are done.
//!
//! Not here: retiring the version before (what is in quarantine or refused stands in its way), and the platform's keys,
//! whose rotation wraps the tenants' keys anew and touches no column.
pub mod ledger;
pub mod pace;
pub mod renew;
pub mod rows;
pub mod sealed;
pub mod sweep;

use std::time::Duration;

use reeve_jobs::{
    TenantContext, audit,
    catalogue::Catalogue,
    job::{ClaimedJob, Outcome},
    seal::{Keyring, KeyringError},
    tenant::{Directory, Scope, ScopeError},
};
use tokio::time::Instant;

use self::{
    sealed::{Declared, Refused},
    sweep::{Ended, Settings, Sweep},
};
use crate::runtime::Progress;

/// What an attempt leaves of its kind's budget, for the batch that it is at.
const MARGIN: Duration = Duration::from_secs(60);
/// How long a job waits when keys could not be had.
const KEYS_PAUSE: Duration = Duration::from_secs(30);
/// How long it leaves a table to another that is at it.
const TAKEN_PAUSE: Duration = Duration::from_secs(30);

#[derive(Debug, thiserror::Error)]
pub enum RekeyError {
    #[error(transparent)]
    Scope(#[from] ScopeError),
    #[error(transparent)]
    Keys(#[from] KeyringError),
    /// This one is not the holder any more.
    #[error("another attempt took this sweep over")]
    TakenOver,
    #[error("another job is at this sweep")]
    Held,
}

impl RekeyError {
    /// What a job ends with when it cannot go on for this reason.
    pub fn into_outcome(self) -> Outcome {
        match self {
            Self::Scope(error) => error.into_outcome(),
            Self::Keys(error) if error.is_transient() => Outcome::Snooze { why: error.to_string(), after: KEYS_PAUSE },
            Self::Keys(error) => Outcome::dead(error.to_string()),
            taken @ (Self::TakenOver | Self::Held) => Outcome::Snooze { why: taken.to_string(), after: TAKEN_PAUSE },
        }
    }
}

/// What a rotation works with.
#[derive(Debug)]
pub struct Rotation<'a> {
    pub directory: &'a Directory,
    pub keyring: &'a Keyring,
    /// Reeve's own with the app's.
    pub catalogue: &'a Catalogue,
    pub settings: Settings,
    /// Of the job's kind.
    pub budget: Duration,
}

impl Rotation<'_> {
    /// Sweeps every sealed column of the tenant; first makes the next version of its key, if that is asked for.
    pub async fn run(
        &self,
        job: &ClaimedJob,
        context: &TenantContext,
        new_version: bool,
        progress: &Progress,
    ) -> Result<Outcome, ScopeError> {
        match self.rotate(job, context, new_version, progress).await {
            Ok(outcome) => Ok(outcome),
            Err(RekeyError::Scope(error)) => Err(error),
            Err(other) => Ok(other.into_outcome()),
        }
    }

    async fn rotate(
        &self,
        job: &ClaimedJob,
        context: &TenantContext,
        new_version: bool,
        progress: &Progress,
    ) -> Result<Outcome, RekeyError> {
        let until = Instant::now() + self.budget.saturating_sub(MARGIN);
        let declared = sealed::declared(self.catalogue);
        let target = self.target(job, context, new_version, &declared).await?;
        let (mut refused, mut quarantined) = (Vec::new(), 0);
        for declared in declared {
            match self.one(job, context, target, declared, progress, until).await? {
                Ok(Ended::Done { quarantined: found }) => quarantined += found,
                Ok(Ended::Paused(wait)) => {
                    let why = "it goes on where it was".to_owned();
                    return Ok(Outcome::Snooze { why, after: wait.max(Duration::from_secs(1)) });
                }
                Err(why) => refused.push(why.to_string()),
            }
        }
        if quarantined > 0 {
            tracing::warn!(tenant = %context.tenant, quarantined, "sealed values do not open and were left as they are");
        }
        if !refused.is_empty() {
            return Ok(Outcome::dead(refused.join("; ")));
        }
        let mut scope = Scope::open_control(self.directory, context).await?;
        let (key, why) = (format!("key:{target}"), format!("{quarantined} values in quarantine"));
        scope.audit(&audit::Entry::new("worker", "key.rotated", &key).because(&why).by_job(job)).await?;
        Ok(scope.commit_and_settle(job).await?)
    }

    /// The version to reach. One that this job made in an earlier attempt is not made again.
    async fn target(
        &self,
        job: &ClaimedJob,
        context: &TenantContext,
        new_version: bool,
        declared: &[Declared],
    ) -> Result<u32, RekeyError> {
        let tenant = &context.tenant;
        let current = self.keyring.current(tenant).await?.version;
        // Reeve's own tables are always declared, so there is always one to note it at.
        let Some(table) = declared.iter().find(|table| table.route == sealed::Route::Control) else {
            return Ok(current);
        };
        if !new_version {
            return Ok(current);
        }
        let mut scope = Scope::open_control(self.directory, context).await?;
        let made = ledger::rotated(&mut scope, job.id.0).await?;
        scope.commit().await?;
        if let Some(made) = made.and_then(|made| u32::try_from(made).ok()) {
            return Ok(made);
        }
        let version = self.keyring.rotate(tenant).await?;
        let mut scope = Scope::open_control(self.directory, context).await?;
        let signed = i32::try_from(version).unwrap_or(i32::MAX);
        ledger::note_rotation(&mut scope, &table.name.to_string(), signed, job.id.0).await?;
        scope.commit().await?;
        Ok(version)
    }

    async fn one(
        &self,
        job: &ClaimedJob,
        context: &TenantContext,
        target: u32,
        declared: Declared,
        progress: &Progress,
        until: Instant,
    ) -> Result<Result<Ended, Refused>, RekeyError> {
        let mut scope = sweep::open(self.directory, context, declared.route).await?;
        let table = match sealed::describe(&mut scope, declared).await? {
            Ok(table) => table,
            Err(refused) => {
                let signed = i32::try_from(target).unwrap_or(i32::MAX);
                ledger::refuse(&mut scope, &refused.table.to_string(), signed, Some(job.id.0), &refused.why).await?;
                scope.commit().await?;
                return Ok(Err(refused));
            }
        };
        scope.commit().await?;
        let sweep = Sweep {
            directory: self.directory,
            context,
            keyring: self.keyring,
            table: &table,
            target,
            settings: self.settings,
            job: Some(job.id.0),
            progress,
        };
        Ok(Ok(sweep.run(until).await?))
    }
}

//! A transaction that is one tenant's, and proves it: the only way to a tenant's rows.
//!
//! Opening: look the tenant up, check region and state, begin on its database, `set_config(…, true)` with a bound
//! parameter, and read the setting back in the same statement. Then every row that comes out must carry the tenant's id
//! ([`TenantRow`]), and every write must return the tenant of each row it changed and say how many it means to change
//! ([`Rows`]), because under row-level security a write to another tenant's row is a silent zero.
//!
//! The setting is local to the transaction, so it dies with it. A future that is dropped half-way leaves the connection
//! inside the transaction; the pool's `after_release` (see `program::db`) then closes the connection instead of handing
//! it to the next tenant.
use std::time::Duration;

use sqlx::{
    FromRow, Postgres, Row, Transaction,
    postgres::{PgArguments, PgRow},
    query::{QueryAs, QueryScalar},
};

use super::{Directory, DirectoryError, TenantContext, TenantId, TenantState};
use crate::{audit, job::Outcome};

/// A row that knows whose it is. Every statement for it must select the tenant column.
pub trait TenantRow: for<'r> FromRow<'r, PgRow> + Send + Unpin {
    fn tenant_id(&self) -> &str;
}

/// How many rows a write means to change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rows {
    Exactly(u64),
    AtMost(u64),
}

#[derive(Debug, thiserror::Error)]
pub enum ScopeError {
    /// A border was about to be crossed. The job is to be quarantined, never retried.
    #[error("tenant mismatch: {0}")]
    Mismatch(String),
    #[error("tenant \"{0}\" is closed")]
    Closed(TenantId),
    #[error("a write of {expected:?} rows changed {changed}")]
    RowCount { expected: Rows, changed: u64 },
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    #[error("{0}")]
    Database(#[from] sqlx::Error),
}

/// See the module's head.
#[derive(Debug)]
pub struct Scope {
    tx: Transaction<'static, Postgres>,
    tenant: TenantId,
}

impl Scope {
    pub async fn open(directory: &Directory, context: &TenantContext) -> Result<Self, ScopeError> {
        let tenant = &context.tenant;
        let entry = directory.entry(tenant).await?;
        if entry.region != context.region {
            return Err(ScopeError::Mismatch(format!(
                "tenant \"{tenant}\" is pinned to region {}, this worker is in {}",
                entry.region, context.region
            )));
        }
        if entry.state == TenantState::Closed {
            return Err(ScopeError::Closed(tenant.clone()));
        }
        let pool = directory.database(tenant, &entry)?;
        #[allow(
            clippy::disallowed_methods,
            reason = "the scope is the one place that may begin a tenant's transaction"
        )]
        let mut tx = pool.begin().await?;
        let row = sqlx::query(
            "-- scope.open\nSELECT set_config('reeve.tenant_id', $1, true), current_setting('reeve.tenant_id'), reeve.tenant()",
        )
        .bind(tenant.as_str())
        .fetch_one(&mut *tx)
        .await?;
        let (set, held): (&str, &str) = (row.try_get(1)?, row.try_get(2)?);
        if set != tenant.as_str() || held != tenant.as_str() {
            return Err(ScopeError::Mismatch(format!(
                "the job is tenant \"{tenant}\"'s, the database holds the context of \"{held}\""
            )));
        }
        Ok(Self { tx, tenant: tenant.clone() })
    }

    pub fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    /// At most one row, which must be this tenant's.
    pub async fn fetch_optional<T: TenantRow>(
        &mut self,
        query: QueryAs<'_, Postgres, T, PgArguments>,
    ) -> Result<Option<T>, ScopeError> {
        let row = query.fetch_optional(&mut *self.tx).await?;
        row.map(|row| self.own(row)).transpose()
    }

    /// All rows, each of which must be this tenant's.
    pub async fn fetch_all<T: TenantRow>(
        &mut self,
        query: QueryAs<'_, Postgres, T, PgArguments>,
    ) -> Result<Vec<T>, ScopeError> {
        let rows = query.fetch_all(&mut *self.tx).await?;
        rows.into_iter().map(|row| self.own(row)).collect()
    }

    /// A value that is no tenant's row: a function's answer, a count. Row-level security alone guards what it reads.
    pub async fn fetch_value<T>(&mut self, query: QueryScalar<'_, Postgres, T, PgArguments>) -> Result<T, ScopeError>
    where
        T: Send + Unpin,
        (T,): for<'r> FromRow<'r, PgRow>,
    {
        Ok(query.fetch_one(&mut *self.tx).await?)
    }

    /// A write that must change as many rows as it means to, each this tenant's: the statement ends in
    /// `RETURNING tenant_id`. On a mismatch drop the scope, which undoes the write.
    pub async fn write(
        &mut self,
        query: QueryScalar<'_, Postgres, String, PgArguments>,
        expected: Rows,
    ) -> Result<u64, ScopeError> {
        let owners = query.fetch_all(&mut *self.tx).await?;
        if owners.iter().any(|owner| owner != self.tenant.as_str()) {
            return Err(ScopeError::Mismatch(format!(
                "a write in the scope of \"{}\" reached a row of another tenant and was undone",
                self.tenant
            )));
        }
        let changed = owners.len() as u64;
        let as_meant = match expected {
            Rows::Exactly(n) => changed == n,
            Rows::AtMost(n) => changed <= n,
        };
        if as_meant { Ok(changed) } else { Err(ScopeError::RowCount { expected, changed }) }
    }

    /// Appends to the audit log; committed with everything else of this scope. Late in it, please: until then every other
    /// writer of the tenant's log waits.
    pub async fn audit(&mut self, entry: &audit::Entry<'_>) -> Result<(), ScopeError> {
        let written: String = sqlx::query_scalar(audit::APPEND)
            .bind(entry.actor)
            .bind(entry.action)
            .bind(entry.target)
            .bind(entry.reason)
            .bind(entry.fields.iter().map(|field| (*field).to_owned()).collect::<Vec<_>>())
            .bind(entry.job.map(|(id, _)| id))
            .bind(entry.job.map(|(_, attempt)| attempt))
            .bind(entry.trace_id)
            .bind(entry.source_ip_hash.map(|hash| hash.to_vec()))
            .fetch_one(&mut *self.tx)
            .await?;
        if written == self.tenant.as_str() {
            Ok(())
        } else {
            Err(ScopeError::Mismatch(format!("an audit entry of \"{}\" was written for \"{written}\"", self.tenant)))
        }
    }

    /// Dropping the scope instead rolls everything back.
    pub async fn commit(self) -> Result<(), ScopeError> {
        Ok(self.tx.commit().await?)
    }

    fn own<T: TenantRow>(&self, row: T) -> Result<T, ScopeError> {
        if row.tenant_id() == self.tenant.as_str() {
            Ok(row)
        } else {
            // The other tenant's id is not repeated: this text ends in the job's history, which its tenant may read.
            Err(ScopeError::Mismatch(format!("a row of another tenant came out of the scope of \"{}\"", self.tenant)))
        }
    }
}

impl ScopeError {
    /// What a job ends with when it cannot go on for this reason.
    pub fn into_outcome(self) -> Outcome {
        match self {
            Self::Mismatch(why) => Outcome::Quarantine { why },
            closed @ Self::Closed(_) => Outcome::cancel(closed.to_string()),
            Self::Database(error) | Self::Directory(DirectoryError::Database(error)) if is_passing_fault(&error) => {
                Outcome::Snooze { why: format!("database: {error}"), after: FAULT_PAUSE }
            }
            other => Outcome::retry(other.to_string()),
        }
    }
}

/// How long a job waits when the database was out of reach.
pub const FAULT_PAUSE: Duration = Duration::from_secs(5);

/// Whether the database or the way to it failed, rather than the statement: a fault that costs a job no attempt.
pub fn is_passing_fault(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed
        | sqlx::Error::BeginFailed => true,
        // Connection lost, resources short, operator stopped it, serialization or deadlock (Appendix A of PostgreSQL's
        // manual: classes 08, 53, 57, 40).
        sqlx::Error::Database(db) => {
            db.code().is_some_and(|code| ["08", "53", "57", "40"].iter().any(|class| code.starts_with(class)))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_of_the_database_costs_a_job_no_attempt_and_a_wrong_statement_does() {
        for passing in [sqlx::Error::PoolTimedOut, sqlx::Error::WorkerCrashed] {
            assert!(matches!(ScopeError::Database(passing).into_outcome(), Outcome::Snooze { .. }));
        }
        assert!(matches!(ScopeError::Database(sqlx::Error::RowNotFound).into_outcome(), Outcome::Retry { .. }));
        assert!(matches!(ScopeError::Mismatch("x".to_owned()).into_outcome(), Outcome::Quarantine { .. }));
    }
}

//! A transaction that is one tenant's, and proves it: the only way to a tenant's rows.
//!
//! Opening: look the tenant up, check region and state, and in one trip begin on its database, set tenant and proof for this
//! transaction, let the database verify the proof, and read back whom it holds us for and whose database it is. Then every row that comes out must
//! carry the tenant's id ([`TenantRow`]), and every write must return the tenant of each row it changed and say how many it
//! means to change ([`Rows`]), because under row-level security a write to another tenant's row is a silent zero.
//!
//! The settings are local to the transaction, so they die with it. A future that is dropped half-way leaves the connection
//! inside the transaction: a dropped scope rolls back in a task of its own, and should that be missed, the pool's
//! `after_release` (see `program::db`) closes the connection instead of handing it to the next tenant.
use std::time::Duration;

use sqlx::{
    AssertSqlSafe, Executor, FromRow, PgConnection, PgPool, Postgres, Row,
    pool::PoolConnection,
    postgres::{PgArguments, PgRow},
    query::{QueryAs, QueryScalar},
};

#[cfg(feature = "program")]
use super::databases::{Checkout, CheckoutError, DatabasesError, Dedicated};
use super::{Directory, DirectoryError, Placement, TenantContext, TenantEntry, TenantId, TenantState, identity::Facts};
use crate::{
    audit,
    job::{ClaimedJob, Outcome},
};

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
    /// Its rows are on their way, or what the directory knew was from before; it asks anew.
    #[error("tenant \"{0}\" is moving or has just moved; try again in a moment")]
    Moving(TenantId),
    #[error("the job's lease was lost, and nothing was recorded")]
    LeaseLost,
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
    line: Line,
    tenant: TenantId,
}

impl Scope {
    /// The tenant's own rows, as the app has them: in the shared database, or in the tenant's own.
    pub async fn open(directory: &Directory, context: &TenantContext) -> Result<Self, ScopeError> {
        let entry = admit(directory, context).await?;
        // A job that ran before the move may end, and the move waits for it; an operator's session it does not see.
        if entry.moving && context.job.is_none() {
            return Err(ScopeError::Moving(context.tenant.clone()));
        }
        match &entry.placement {
            Placement::Shared => {
                let (scope, facts) = Self::open_pooled(directory.control(), context).await?;
                facts.must_be_shared(&context.region).map_err(ScopeError::Mismatch)?;
                if facts.placement.as_deref() != Some("shared") {
                    directory.forget(&context.tenant);
                    return Err(ScopeError::Moving(context.tenant.clone()));
                }
                Ok(scope)
            }
            #[cfg(feature = "program")]
            Placement::Dedicated { epoch, url_sealed } => {
                let tenant = context.tenant.clone();
                let placement = Dedicated { tenant, epoch: *epoch, url_sealed: url_sealed.clone() };
                Self::open_dedicated(directory, context, &placement).await
            }
            #[cfg(not(feature = "program"))]
            Placement::Dedicated { .. } => Err(DirectoryError::NoWay(context.tenant.clone()).into()),
        }
    }

    /// Reeve's own rows about the tenant (its jobs, webhooks, audit log): in the control database, wherever its own are.
    pub async fn open_control(directory: &Directory, context: &TenantContext) -> Result<Self, ScopeError> {
        admit(directory, context).await?;
        let (scope, facts) = Self::open_pooled(directory.control(), context).await?;
        facts.must_be_control().map_err(ScopeError::Mismatch)?;
        Ok(scope)
    }

    async fn open_pooled(pool: &PgPool, context: &TenantContext) -> Result<(Self, Facts), ScopeError> {
        #[allow(
            clippy::disallowed_methods,
            reason = "the scope is the one place that may begin a tenant's transaction"
        )]
        let connection = pool.acquire().await?;
        // A scope from here on, so that whatever fails below is rolled back.
        let mut scope = Self { line: Line(Some(Connected::Pooled(connection))), tenant: context.tenant.clone() };
        let row = sqlx::raw_sql(AssertSqlSafe(opening(context))).fetch_one(scope.line.connection()).await?;
        let facts = scope.judge(&row)?;
        Ok((scope, facts))
    }

    #[cfg(feature = "program")]
    async fn open_dedicated(
        directory: &Directory,
        context: &TenantContext,
        placement: &Dedicated,
    ) -> Result<Self, ScopeError> {
        let tenant = &context.tenant;
        let databases = directory.dedicated().ok_or_else(|| DirectoryError::NoWay(tenant.clone()))?;
        let judge = |facts: Facts| facts.must_be_dedicated(tenant, &context.region, placement.epoch);
        let (checkout, row) = match databases.checkout(placement, &opening(context)).await {
            Ok(answered) => answered,
            Err(CheckoutError::Databases(error)) => return Err(DirectoryError::from(error).into()),
            // Refused for another reason than ours, perhaps: another tenant's database knows our proof as little as a forged
            // one. So ask it who it is, for a text that helps.
            Err(CheckoutError::Refused(error)) => {
                let asked = match databases.checkout(placement, &question(context)).await {
                    Ok((_checkout, row)) => judge(Facts::of(&row)?),
                    Err(CheckoutError::Refused(error)) if is_code(&error, FOREIGN_SCHEMA) => {
                        Err(format!("the database was not prepared for tenant \"{tenant}\": it has no Reeve schema"))
                    }
                    Err(_) => Ok(()),
                };
                return Err(asked.map_or_else(ScopeError::Mismatch, |()| ScopeError::Database(error)));
            }
        };
        let mut scope = Self { line: Line(Some(Connected::Dedicated(checkout))), tenant: tenant.clone() };
        let facts = scope.judge(&row)?;
        judge(facts).map_err(ScopeError::Mismatch)?;
        Ok(scope)
    }

    /// Whom the database holds us for, and what it says of itself.
    fn judge(&mut self, row: &PgRow) -> Result<Facts, ScopeError> {
        let tenant = &self.tenant;
        let (set, held): (&str, Option<&str>) = (row.try_get(2)?, row.try_get(3)?);
        if set != tenant.as_str() || held != Some(tenant.as_str()) {
            return Err(ScopeError::Mismatch(format!(
                "the job is tenant \"{tenant}\"'s, the database holds the context of \"{}\"",
                held.unwrap_or_default()
            )));
        }
        Ok(Facts::of(row)?)
    }

    pub fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    /// At most one row, which must be this tenant's.
    pub async fn fetch_optional<T: TenantRow>(
        &mut self,
        query: QueryAs<'_, Postgres, T, PgArguments>,
    ) -> Result<Option<T>, ScopeError> {
        let row = query.fetch_optional(self.line.connection()).await?;
        row.map(|row| self.own(row)).transpose()
    }

    /// All rows, each of which must be this tenant's.
    pub async fn fetch_all<T: TenantRow>(
        &mut self,
        query: QueryAs<'_, Postgres, T, PgArguments>,
    ) -> Result<Vec<T>, ScopeError> {
        let rows = query.fetch_all(self.line.connection()).await?;
        rows.into_iter().map(|row| self.own(row)).collect()
    }

    /// A value that is no tenant's row: a function's answer, a count. Row-level security alone guards what it reads.
    pub async fn fetch_value<T>(&mut self, query: QueryScalar<'_, Postgres, T, PgArguments>) -> Result<T, ScopeError>
    where
        T: Send + Unpin,
        (T,): for<'r> FromRow<'r, PgRow>,
    {
        Ok(query.fetch_one(self.line.connection()).await?)
    }

    /// A write that must change as many rows as it means to, each this tenant's: the statement ends in
    /// `RETURNING tenant_id`. On a mismatch drop the scope, which undoes the write.
    pub async fn write(
        &mut self,
        query: QueryScalar<'_, Postgres, String, PgArguments>,
        expected: Rows,
    ) -> Result<u64, ScopeError> {
        let owners = query.fetch_all(self.line.connection()).await?;
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
            .fetch_one(self.line.connection())
            .await?;
        if written == self.tenant.as_str() {
            Ok(())
        } else {
            Err(ScopeError::Mismatch(format!("an audit entry of \"{}\" was written for \"{written}\"", self.tenant)))
        }
    }

    /// Settles the job as done in this transaction and commits: the effect and its settlement stand or fall together, so that
    /// a worker which dies in between leaves neither or both. The last thing a handler does, whose outcome it is; only in a
    /// scope of the database that has the job ([`Scope::open_control`], or the shared one). Whoever lost the lease gets an
    /// error, and nothing of the scope is kept.
    pub async fn commit_and_settle(mut self, job: &ClaimedJob) -> Result<Outcome, ScopeError> {
        // From here to the commit the renewal of this worker's leases waits for the job's row: so nothing comes between.
        let settled: Option<uuid::Uuid> = sqlx::query_scalar(
            "-- scope.settle
            SELECT settled FROM reeve.settle(ARRAY[$1], ARRAY[$2], ARRAY['completed'], ARRAY[0::double precision], ARRAY[NULL])",
        )
        .bind(job.id.0)
        .bind(job.lease_token.0)
        .fetch_optional(self.line.connection())
        .await?;
        if settled.is_none() {
            return Err(ScopeError::LeaseLost);
        }
        self.commit().await?;
        Ok(Outcome::Settled)
    }

    /// Dropping the scope instead rolls everything back.
    pub async fn commit(mut self) -> Result<(), ScopeError> {
        // COMMIT alone answers a transaction in which a statement failed with a silent rollback; any statement before it,
        // with an error.
        self.line.connection().execute("-- scope.commit\nSELECT; COMMIT").await?;
        match self.line.0.take() {
            #[cfg(feature = "program")]
            Some(Connected::Dedicated(checkout)) => checkout.committed(),
            pooled => drop(pooled),
        }
        Ok(())
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

/// The connection that a scope's transaction is open on; `None` once it is committed.
#[derive(Debug)]
struct Line(Option<Connected>);

#[derive(Debug)]
enum Connected {
    /// To the control database.
    Pooled(PoolConnection<Postgres>),
    /// To the tenant's own, which rolls back by itself when it is dropped.
    #[cfg(feature = "program")]
    Dedicated(Checkout),
}

impl Line {
    fn connection(&mut self) -> &mut PgConnection {
        // Taken by `commit` and by the drop, after which nobody has the scope.
        match self.0.as_mut().expect("a scope that is open has its connection") {
            Connected::Pooled(connection) => connection,
            #[cfg(feature = "program")]
            Connected::Dedicated(checkout) => checkout.connection(),
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        // Without a runtime the connection goes back as it is, and its pool closes it.
        if let (Some(Connected::Pooled(mut connection)), Ok(runtime)) =
            (self.0.take(), tokio::runtime::Handle::try_current())
        {
            runtime.spawn(async move {
                // Should this fail, the pool finds the connection busy and closes it.
                let _ = connection.execute("-- scope.roll_back\nROLLBACK").await;
            });
        }
    }
}

/// Whether this job may come near the tenant at all: it is of the worker's region, and not closed.
async fn admit(directory: &Directory, context: &TenantContext) -> Result<TenantEntry, ScopeError> {
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
    Ok(entry)
}

/// Everything that opening takes, in one message: begin, set the context, read back whom it is held for, and ask the database
/// whose it is. The simple protocol has no parameters, so the tenant's id, which is an app's own text, is written as a
/// literal; the proof has no character that could end one (see [`super::Proof::new`]).
fn opening(context: &TenantContext) -> String {
    format!(
        "-- scope.open\nBEGIN; SELECT set_config('reeve.tenant_id', {tenant}, true), set_config('reeve.context', '{}', true),
         current_setting('reeve.tenant_id'), reeve.held_tenant(), f.*
         FROM reeve.database_facts({tenant}, {}) f",
        context.proof.reveal(),
        literal(&context.region),
        tenant = literal(context.tenant.as_str()),
    )
}

/// What a database that refused is asked: only whose it is.
#[cfg(feature = "program")]
fn question(context: &TenantContext) -> String {
    let (tenant, region) = (literal(context.tenant.as_str()), literal(&context.region));
    format!("-- scope.who_are_you\nBEGIN; SELECT f.* FROM reeve.database_facts({tenant}, {region}) f")
}

/// What a database without our schema, or with an older one, answers: no such schema, function or relation, no right to it.
#[cfg(feature = "program")]
const FOREIGN_SCHEMA: &[&str] = &["3F000", "42883", "42P01", "42501"];

/// Of the form E'…', which reads alike whatever `standard_conforming_strings` is.
fn literal(text: &str) -> String {
    format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

impl ScopeError {
    /// What a job ends with when it cannot go on for this reason.
    pub fn into_outcome(self) -> Outcome {
        match self {
            Self::Mismatch(why) => Outcome::Quarantine { why },
            Self::Database(error) if is_code(&error, &["RV011"]) => Outcome::quarantine(format!("database: {error}")),
            // Another holds the job, or it waited too long for its turn: the fence, or a new claim, decides.
            Self::Database(error) if is_code(&error, &["RV012", "RV013"]) => Outcome::Interrupted,
            Self::LeaseLost => Outcome::Interrupted,
            closed @ Self::Closed(_) => Outcome::cancel(closed.to_string()),
            moving @ Self::Moving(_) => Outcome::Snooze { why: moving.to_string(), after: FAULT_PAUSE },
            #[cfg(feature = "program")]
            Self::Directory(DirectoryError::Dedicated(error)) => dedicated_outcome(error),
            Self::Database(error) | Self::Directory(DirectoryError::Database(error)) if is_passing_fault(&error) => {
                Outcome::Snooze { why: format!("database: {error}"), after: FAULT_PAUSE }
            }
            other => Outcome::retry(other.to_string()),
        }
    }
}

/// A database that is down, or has no connection left, is no fault of the job's.
#[cfg(feature = "program")]
fn dedicated_outcome(error: DatabasesError) -> Outcome {
    let why = error.to_string();
    match error {
        DatabasesError::Down { after, .. } | DatabasesError::Unreachable { after, .. } => {
            Outcome::Snooze { why, after }
        }
        DatabasesError::Busy { .. } => Outcome::Snooze { why, after: FAULT_PAUSE },
        DatabasesError::Sealed(_) | DatabasesError::Url(_) => Outcome::Quarantine { why },
    }
}

/// Whether the database refused with one of these codes; `reeve.held_tenant` says what each means.
fn is_code(error: &sqlx::Error, codes: &[&str]) -> bool {
    error.as_database_error().and_then(|db| db.code()).is_some_and(|code| codes.contains(&code.as_ref()))
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
    fn a_literal_ends_only_where_it_should() {
        assert_eq!(literal(r"a'b\c"), r"E'a''b\\c'");
    }

    #[test]
    fn a_fault_of_the_database_costs_a_job_no_attempt_and_a_wrong_statement_does() {
        for passing in [sqlx::Error::PoolTimedOut, sqlx::Error::WorkerCrashed] {
            assert!(matches!(ScopeError::Database(passing).into_outcome(), Outcome::Snooze { .. }));
        }
        assert!(matches!(ScopeError::Database(sqlx::Error::RowNotFound).into_outcome(), Outcome::Retry { .. }));
        assert!(matches!(ScopeError::Mismatch("x".to_owned()).into_outcome(), Outcome::Quarantine { .. }));
    }
}

//! Is this installation sound? Each check says what it found and, unless all is well, what to do.
//!
//! ```text
//!   run ──► roles, ownership ◄── program::soundness (what every program asks at its start)
//!       ──► tables, functions, views: the guards as they are      ──► server: version, clock, settings, transactions
//!       ──► privileges: each grant, owner and policy, against     ──► queue: schema, kinds, leases, parked jobs
//!           migrations/privileges.txt                             ──► app: the app's tables, by its catalogue
//!                                                                window: the Redis that the configuration names
//! ```
//! The guards of tenancy are read from the catalogs as they are, not as the migrations meant them: somebody may have
//! changed a table or a role since. All of it in one read-only transaction; nothing here changes anything.
mod app;
mod breakglass;
mod functions;
mod privileges;
mod queue;
mod roles;
mod server;
mod tables;
mod views;
mod window;

use reeve_jobs::{
    clock::Clock,
    program::soundness::{self, LOGIN_ROLES},
};
use serde::Serialize;
use sqlx::{PgConnection, PgPool};

pub use self::{app::app, window::window};
use super::ServiceError;

/// Bad news sorts after good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Ok,
    Warn,
    Fail,
}

impl Status {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

#[derive(Debug, Clone, Serialize)]
pub struct Check {
    pub name: &'static str,
    pub status: Status,
    pub found: String,
    /// What to do; `None` when all is well.
    pub fix: Option<String>,
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, status: Status::Ok, found: found.into(), fix: None }
    }

    fn warn(name: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name, status: Status::Warn, found: found.into(), fix: Some(fix.into()) }
    }

    fn fail(name: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name, status: Status::Fail, found: found.into(), fix: Some(fix.into()) }
    }
}

#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub checks: Vec<Check>,
}

impl Report {
    /// The worst of all checks.
    pub fn status(&self) -> Status {
        self.checks.iter().map(|check| check.status).max().unwrap_or(Status::Ok)
    }
}

/// Runs every check on a database whose schema is this build's (see [`super::ready`]).
pub async fn run(pool: &PgPool, clock: &dyn Clock) -> Result<Report, ServiceError> {
    let mut transaction = pool.begin_with("BEGIN READ ONLY").await?;
    let checks = checks(&mut transaction, clock).await?;
    transaction.rollback().await?;
    Ok(Report { checks })
}

/// Inside a transaction, for the length of which names are written in full.
async fn checks(connection: &mut PgConnection, clock: &dyn Clock) -> sqlx::Result<Vec<Check>> {
    sqlx::query("-- doctor.names\nSET LOCAL search_path = pg_catalog").execute(&mut *connection).await?;
    let faults = soundness::faults(connection, "reeve_ops", &LOGIN_ROLES).await?;
    let mut checks = vec![server::server(connection).await?, queue::schema(connection).await?];
    checks.push(roles::roles(&faults));
    checks.push(roles::ownership(&faults));
    checks.push(tables::tenant_tables(connection, &faults).await?);
    checks.push(tables::partitions(connection).await?);
    checks.push(functions::functions(connection, &faults).await?);
    checks.push(privileges::check(&privileges::lines(connection).await?));
    checks.push(breakglass::breakglass(connection).await?);
    checks.push(views::views(connection).await?);
    checks.push(views::leakproof(connection).await?);
    checks.push(server::settings(connection).await?);
    checks.push(server::clock(connection, clock).await?);
    checks.push(queue::kinds(connection).await?);
    checks.push(server::durability(connection).await?);
    checks.push(server::oldest_transaction(connection).await?);
    checks.extend(queue::stuck(connection).await?);
    Ok(checks)
}

#[cfg(test)]
mod tests;

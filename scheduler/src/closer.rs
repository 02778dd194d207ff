//! Ends what was opened for a time: the logins of break-glass whose time is over, and requests that nobody answered.
//!
//! The server lets nobody log in past a role's end, and the policies show nothing then; but sessions that are there stay, and
//! a statement that runs goes on. This cuts them, drops the role and has the end written into the tenant's audit log. It
//! also finishes what an operator closed and was interrupted at. Two steps, so that the first never waits for a lock that
//! such a session holds; see `migrations/0015_breakglass.sql`.
use reeve_jobs::tenant::breakglass;
use sqlx::PgPool;

use crate::service::{Service, ServiceError};

/// What one run did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Closed {
    /// Whose time was over.
    pub expired: u64,
    /// Whose end is written down, those that operators closed included.
    pub finished: u64,
    /// Logins that are barred and could not be dropped.
    pub left: u64,
}

/// Ends and finishes all there is.
pub async fn run_once(pool: &PgPool) -> sqlx::Result<Closed> {
    let expired = breakglass::expire(pool).await?;
    let finished = breakglass::finish(pool).await?;
    let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
    let left = finished.iter().filter(|one| one.login_left).count();
    Ok(Closed { expired, finished: count(finished.len()), left: count(left) })
}

/// The loop's form of [`run_once`].
#[derive(Debug, Clone, Copy, Default)]
pub struct Closer;

impl Service for Closer {
    const NAME: &'static str = "closer";

    async fn run(&mut self, pool: &PgPool) -> Result<(), ServiceError> {
        let closed = run_once(pool).await?;
        if closed.left > 0 {
            tracing::warn!(left = closed.left, "logins are barred but own something elsewhere and were not dropped");
        }
        if closed != Closed::default() {
            tracing::info!(expired = closed.expired, finished = closed.finished, "openings ended");
        }
        Ok(())
    }
}

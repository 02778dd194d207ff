//! The dedicated databases of this process: connections to them, few and bounded, whatever the number of tenants.
//!
//! ```text
//!   Scope::open ──► checkout ──► the database's breaker ──► one of its 2 places ──► an idle connection of it
//!                                                                                 └► or: one of the process' 200 permits
//!                                                                                        (the longest idle one is closed
//!                                                                                        for it), unseal, connect
//!   Checkout dropped ──► rolled back, proven idle ──► idle for 30 s at most ──► closed, its permit free
//! ```
//! A permit lives as long as its connection, idle or not, so the permits bound what is open. Nothing is kept of a database
//! that has no connection and no failure behind it: ten thousand registered tenants cost what is in use.
//!
//! What it deliberately does not do: judge whose database it is. [`super::identity`] does, inside each transaction.
pub mod breaker;
mod pool;

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

pub use pool::{Checkout, Databases};

use super::TenantId;
use crate::redact::Redacted;

/// Where a tenant's dedicated database is, as the control database has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dedicated {
    pub tenant: TenantId,
    /// Raised by each placing; the database's identity must have the same.
    pub epoch: i32,
    /// The URL, sealed under the tenant's key to this tenant and epoch.
    pub url_sealed: Arc<[u8]>,
}

/// Why a sealed URL was not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotOpened {
    /// Another key, or a value moved from its place.
    Sealed,
    /// The key cannot be had now: where from, in one word.
    Away(&'static str),
}

/// The future of a URL.
pub type Opening<'a> = Pin<Box<dyn Future<Output = Result<Redacted<String>, NotOpened>> + Send + 'a>>;

/// Opens sealed URLs: the worker's keyring, or a test's stand-in.
pub trait OpenUrl: Send + Sync + std::fmt::Debug {
    fn open_url<'a>(&'a self, placement: &'a Dedicated) -> Opening<'a>;
}

/// What bounds the dedicated connections of one process.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Open connections to all dedicated databases, idle ones included.
    pub connections: u32,
    /// Open connections to one of them.
    pub per_database: u32,
    /// A connection that nobody used for so long is closed.
    pub idle: Duration,
    /// How long a job waits for a connection while all are in use.
    pub wait: Duration,
    /// How long a database may take to let us in.
    pub connect: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 200,
            per_database: 2,
            idle: Duration::from_secs(30),
            wait: Duration::from_secs(5),
            connect: Duration::from_secs(5),
        }
    }
}

/// Why there is no connection. None of these texts holds a URL, a host or a user: they end where the tenant may read them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DatabasesError {
    #[error("the dedicated database of tenant \"{tenant}\" is down; asked again in {} s", after.as_secs().max(1))]
    Down { tenant: TenantId, after: Duration },
    #[error("the dedicated database of tenant \"{tenant}\" cannot be reached: {why}")]
    Unreachable { tenant: TenantId, why: String, after: Duration },
    #[error("no connection to a dedicated database became free within {} s", waited.as_secs())]
    Busy { waited: Duration },
    #[error("the placement of tenant \"{0}\" does not open: sealed under another key, or moved from its place")]
    Sealed(TenantId),
    #[error("the placement of tenant \"{0}\" holds no PostgreSQL URL; set it again with `reeve-worker placement set`")]
    Url(TenantId),
}

/// Why a checkout did not come about: no connection, or one on which the opening was refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum CheckoutError {
    #[error(transparent)]
    Databases(#[from] DatabasesError),
    #[error(transparent)]
    Refused(#[from] sqlx::Error),
}

#[cfg(test)]
mod tests;

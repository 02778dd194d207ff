//! Tenant → where its rows are, which region it is pinned to, whether it lives.
//!
//! Answers from a small cache for [`FRESH`], so that a change is seen within that time and a busy tenant costs no query.
//! A dedicated placement is refused for now: its databases are not yet opened from here.
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use sqlx::{PgPool, Row};

use super::TenantId;

/// How long an entry is believed.
pub const FRESH: Duration = Duration::from_secs(5);
/// Entries kept; beyond it the cache is emptied, which costs one query per tenant and bounds its memory.
const ENTRIES_MAX: usize = 100_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    Shared,
    Dedicated,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TenantState {
    Active,
    /// Only kinds that may run then are claimed.
    Closing,
    Closed,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantEntry {
    pub placement: Placement,
    pub region: Arc<str>,
    pub state: TenantState,
}

#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    #[error("tenant \"{0}\" is not registered")]
    Unknown(TenantId),
    #[error(
        "tenant \"{tenant}\" has {column} {value:?}, which this program does not know; is the program older than the database?"
    )]
    Unreadable { tenant: TenantId, column: &'static str, value: String },
    #[error("tenant \"{0}\" has a dedicated database, and this program has no way to it")]
    NoWay(TenantId),
    #[error("the tenant directory could not be read: {0}")]
    Database(#[from] sqlx::Error),
}

/// The directory of one control database. Clones share the cache.
#[derive(Debug, Clone)]
pub struct Directory {
    shared: PgPool,
    cache: Arc<Mutex<HashMap<TenantId, (TenantEntry, Instant)>>>,
}

impl Directory {
    /// `shared` is the pool of the shared database, opened by [`crate::program::db`] as a role without ownership.
    pub fn new(shared: PgPool) -> Self {
        Self { shared, cache: Arc::default() }
    }

    pub async fn entry(&self, tenant: &TenantId) -> Result<TenantEntry, DirectoryError> {
        if let Some((entry, at)) = self.lock().get(tenant)
            && at.elapsed() < FRESH
        {
            return Ok(entry.clone());
        }
        let row = sqlx::query("-- directory.entry\nSELECT placement, region, state FROM reeve.tenant_entry($1)")
            .bind(tenant.as_str())
            .fetch_optional(&self.shared)
            .await?
            .ok_or_else(|| DirectoryError::Unknown(tenant.clone()))?;
        let unreadable = |column, value| DirectoryError::Unreadable { tenant: tenant.clone(), column, value };
        let entry = TenantEntry {
            placement: match row.try_get("placement")? {
                "shared" => Placement::Shared,
                "dedicated" => Placement::Dedicated,
                other => return Err(unreadable("placement", other.to_owned())),
            },
            region: row.try_get::<&str, _>("region")?.into(),
            state: match row.try_get("state")? {
                "active" => TenantState::Active,
                "closing" => TenantState::Closing,
                "closed" => TenantState::Closed,
                other => return Err(unreadable("state", other.to_owned())),
            },
        };
        let mut cache = self.lock();
        if cache.len() >= ENTRIES_MAX {
            cache.clear();
        }
        cache.insert(tenant.clone(), (entry.clone(), Instant::now()));
        Ok(entry)
    }

    /// The pool of the database that holds this tenant's rows.
    pub(super) fn database(&self, tenant: &TenantId, entry: &TenantEntry) -> Result<&PgPool, DirectoryError> {
        match entry.placement {
            Placement::Shared => Ok(&self.shared),
            Placement::Dedicated => Err(DirectoryError::NoWay(tenant.clone())),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<TenantId, (TenantEntry, Instant)>> {
        // A panic elsewhere cannot leave a half-written entry: inserts are whole.
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

//! Tenant → where its rows are, which region it is pinned to, whether it lives.
//!
//! Answers from a small cache for [`FRESH`], so that a change is seen within that time and a busy tenant costs no query.
//! The ways to dedicated databases are [`super::databases`]; a program that was given none refuses their tenants.
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use sqlx::{PgPool, Row};

use super::TenantId;
#[cfg(feature = "program")]
use super::databases::{Databases, DatabasesError};

/// How long an entry is believed.
pub const FRESH: Duration = Duration::from_secs(5);
/// Entries kept; beyond it the cache is emptied, which costs one query per tenant and bounds its memory.
const ENTRIES_MAX: usize = 100_000;

/// Where a tenant's rows are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Placement {
    Shared,
    /// In a database of its own, whose URL is sealed to this epoch.
    Dedicated {
        epoch: i32,
        url_sealed: Arc<[u8]>,
    },
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
    /// Its jobs wait; those that run end as they would.
    pub moving: bool,
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
    #[cfg(feature = "program")]
    #[error(transparent)]
    Dedicated(#[from] DatabasesError),
}

/// The directory of one control database. Clones share the cache.
#[derive(Debug, Clone)]
pub struct Directory {
    control: PgPool,
    #[cfg(feature = "program")]
    dedicated: Option<Databases>,
    cache: Arc<Mutex<HashMap<TenantId, (TenantEntry, Instant)>>>,
}

impl Directory {
    /// `control` is the pool of the control database, which is the shared one too, opened by [`crate::program::db`] as a
    /// role without ownership.
    pub fn new(control: PgPool) -> Self {
        Self {
            control,
            #[cfg(feature = "program")]
            dedicated: None,
            cache: Arc::default(),
        }
    }

    /// With ways to dedicated databases.
    #[cfg(feature = "program")]
    pub fn with_dedicated(self, databases: Databases) -> Self {
        Self { dedicated: Some(databases), ..self }
    }

    /// The control database's pool: for what is asked there of no tenant's rows, such as a bucket's region.
    pub fn control(&self) -> &PgPool {
        &self.control
    }

    #[cfg(feature = "program")]
    pub(super) fn dedicated(&self) -> Option<&Databases> {
        self.dedicated.as_ref()
    }

    pub async fn entry(&self, tenant: &TenantId) -> Result<TenantEntry, DirectoryError> {
        if let Some((entry, at)) = self.lock().get(tenant)
            && at.elapsed() < FRESH
        {
            return Ok(entry.clone());
        }
        // Believed from before the question: its answer may have been long under way.
        let asked_at = Instant::now();
        let row = sqlx::query(
            "-- directory.entry
            SELECT placement, region, state, moving, epoch, url_sealed FROM reeve.tenant_entry($1)",
        )
        .bind(tenant.as_str())
        .fetch_optional(&self.control)
        .await?
        .ok_or_else(|| DirectoryError::Unknown(tenant.clone()))?;
        let unreadable = |column, value| DirectoryError::Unreadable { tenant: tenant.clone(), column, value };
        let entry = TenantEntry {
            placement: match row.try_get("placement")? {
                "shared" => Placement::Shared,
                "dedicated" => match (row.try_get("epoch")?, row.try_get::<Option<&[u8]>, _>("url_sealed")?) {
                    (Some(epoch), Some(sealed)) => Placement::Dedicated { epoch, url_sealed: sealed.into() },
                    _ => return Err(unreadable("placement", "dedicated, but to no database".to_owned())),
                },
                other => return Err(unreadable("placement", other.to_owned())),
            },
            region: row.try_get::<&str, _>("region")?.into(),
            state: match row.try_get("state")? {
                "active" => TenantState::Active,
                "closing" => TenantState::Closing,
                "closed" => TenantState::Closed,
                other => return Err(unreadable("state", other.to_owned())),
            },
            moving: row.try_get("moving")?,
        };
        let mut cache = self.lock();
        if cache.len() >= ENTRIES_MAX {
            cache.clear();
        }
        cache.insert(tenant.clone(), (entry.clone(), asked_at));
        Ok(entry)
    }

    /// Asks anew next time: what is known of this tenant was found to be behind.
    pub(super) fn forget(&self, tenant: &TenantId) {
        self.lock().remove(tenant);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<TenantId, (TenantEntry, Instant)>> {
        // A panic elsewhere cannot leave a half-written entry: inserts are whole.
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

//! Tenant → where its rows are, which region it is pinned to, whether it lives.
//!
//! Answers from a small cache for [`FRESH`], so that a change is seen within that time and a busy tenant costs no query.
//! The ways to dedicated databases are [`super::databases`]; a program that was given none refuses their tenants.
use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use sqlx::{PgPool, Row, postgres::PgRow};

use super::TenantId;
#[cfg(feature = "program")]
use super::databases::{Databases, DatabasesError};

/// How long an entry is believed.
pub const FRESH: Duration = Duration::from_secs(5);
/// Entries kept. Beyond it those that are believed no more go, or all, which costs a query per tenant and bounds the memory.
const ENTRIES_MAX: usize = 150_000;

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
        self.ask(&[tenant]).await?.pop().unwrap_or_else(|| Err(DirectoryError::Unknown(tenant.clone())))
    }

    /// Asks by one question of all of these tenants that are not known freshly, so that [`Directory::entry`] need not. Of
    /// whom nothing is heard, or nothing that can be read, that one asks again, and says what is wrong.
    pub async fn prefetch(&self, tenants: impl IntoIterator<Item = &TenantId>) -> Result<(), DirectoryError> {
        let unknown: Vec<&TenantId> = {
            let cache = self.lock();
            let fresh = |tenant: &TenantId| cache.get(tenant).is_some_and(|(_, at)| at.elapsed() < FRESH);
            let unknown: BTreeSet<_> = tenants.into_iter().filter(|tenant| !fresh(tenant)).collect();
            unknown.into_iter().collect()
        };
        if !unknown.is_empty() {
            self.ask(&unknown).await?;
        }
        Ok(())
    }

    /// What is registered of these, and remembers it.
    async fn ask(&self, tenants: &[&TenantId]) -> Result<Vec<Result<TenantEntry, DirectoryError>>, DirectoryError> {
        // Believed from before the question: its answer may have been long under way.
        let asked_at = Instant::now();
        let asked: HashMap<&str, &TenantId> = tenants.iter().map(|tenant| (tenant.as_str(), *tenant)).collect();
        let rows = sqlx::query(
            "-- directory.entries
            SELECT id, placement, region, state, moving, epoch, url_sealed FROM reeve.tenant_entries($1)",
        )
        .bind(asked.keys().copied().collect::<Vec<_>>())
        .fetch_all(&self.control)
        .await?;
        let known = rows.iter().filter_map(|row| Some((*asked.get(row.try_get::<&str, _>("id").ok()?)?, row)));
        let entries = known.map(|(tenant, row)| {
            let entry = decode(tenant, row)?;
            self.remember(tenant, &entry, asked_at);
            Ok(entry)
        });
        Ok(entries.collect())
    }

    fn remember(&self, tenant: &TenantId, entry: &TenantEntry, asked_at: Instant) {
        let mut cache = self.lock();
        if cache.len() >= ENTRIES_MAX {
            cache.retain(|_, (_, at)| at.elapsed() < FRESH);
            if cache.len() >= ENTRIES_MAX {
                cache.clear();
            }
        }
        cache.insert(tenant.clone(), (entry.clone(), asked_at));
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

fn decode(tenant: &TenantId, row: &PgRow) -> Result<TenantEntry, DirectoryError> {
    let unreadable = |column, value| DirectoryError::Unreadable { tenant: tenant.clone(), column, value };
    Ok(TenantEntry {
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
    })
}

#[cfg(all(test, feature = "testing"))]
mod tests {
    use super::*;
    use crate::testing::TestDatabase;

    /// Pages of this process that are in memory, in MiB (proc(5), statm).
    fn resident_mib() -> usize {
        let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux");
        statm.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).expect("a number") * 4096 / (1 << 20)
    }

    #[tokio::test]
    async fn a_hundred_thousand_tenants_take_under_200_mb_however_long_their_names_and_urls() {
        let db = TestDatabase::new().await;
        let directory = Directory::new(db.pool("reeve_worker").await);
        let before = resident_mib();
        for n in 0..100_000 {
            let tenant = format!("{n:064}").parse().expect("64 bytes");
            // As if each were in a database of its own, with a URL of some 300 bytes.
            let placement = Placement::Dedicated { epoch: 1, url_sealed: vec![7; 400].into() };
            let entry =
                TenantEntry { placement, region: "eu-central-1".into(), state: TenantState::Active, moving: false };
            directory.remember(&tenant, &entry, Instant::now());
        }
        assert_eq!(directory.lock().len(), 100_000, "all are kept");
        let used = resident_mib() - before;
        assert!(used < 190, "{used} MiB");
        db.drop_now().await;
    }

    #[tokio::test]
    async fn a_tenant_is_answered_from_the_cache_and_a_change_is_seen_when_its_time_is_up() {
        let db = TestDatabase::new().await;
        let a = db.tenant("a").await;
        let directory = Directory::new(db.pool("reeve_worker").await);
        assert_eq!(directory.entry(&a).await.expect("an entry").state, TenantState::Active);
        sqlx::query("-- test.close\nUPDATE reeve.tenants SET state = 'closed'")
            .execute(&db.admin)
            .await
            .expect("closed");
        assert_eq!(directory.entry(&a).await.expect("an entry").state, TenantState::Active, "without a query");
        assert!(FRESH <= Duration::from_secs(5));
        directory.lock().values_mut().for_each(|(_, at)| *at -= FRESH);
        assert_eq!(directory.entry(&a).await.expect("an entry").state, TenantState::Closed);
        db.drop_now().await;
    }

    #[tokio::test]
    async fn many_tenants_are_looked_up_by_one_question_and_not_asked_for_again() {
        let db = TestDatabase::new().await;
        let (a, b) = (db.tenant("a").await, db.tenant("b").await);
        let nobody: TenantId = "nobody".parse().expect("an id");
        let directory = Directory::new(db.pool("reeve_worker").await);
        let before = directory.entry(&a).await.expect("an entry");
        directory.prefetch([&a, &b, &b, &nobody]).await.expect("asked");
        directory.control.close().await;
        assert_eq!(directory.entry(&a).await.expect("from memory"), before);
        assert_eq!(directory.entry(&b).await.expect("from memory").state, TenantState::Active);
        assert!(
            matches!(directory.entry(&nobody).await, Err(DirectoryError::Database(_))),
            "who is unknown is asked for"
        );
        directory.prefetch([&a, &b]).await.expect("no question");
        directory.lock().values_mut().for_each(|(_, at)| *at -= FRESH);
        assert!(directory.prefetch([&a, &b]).await.is_err(), "what is believed no more is asked for");
        db.drop_now().await;
    }
}

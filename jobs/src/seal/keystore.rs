//! The keystore's statements: every call of a function of `migrations/keys/`, and nothing else.
//!
//! Keys come and go wrapped; [`super::keyring`] is where they are opened. What this does not do: decide.
use sqlx::{PgPool, Row, postgres::PgRow};

use crate::tenant::TenantId;

/// The keystore's database, entered as `reeve_keyring`. Clones share the pool.
#[derive(Debug, Clone)]
pub struct Keystore {
    pool: PgPool,
}

/// A platform key version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlatformKey {
    pub version: u32,
    /// As [`super::provider::KeyRef`] reads it.
    pub provider_ref: String,
    pub check_wrapped: Vec<u8>,
    pub check_value: Vec<u8>,
    pub state: PlatformState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlatformState {
    Pending,
    Primary,
    DecryptOnly,
    Retired,
}

/// A tenant's key version. `wrapped` is `None` where it was destroyed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrappedKey {
    pub tenant: String,
    pub version: u32,
    pub platform_version: u32,
    pub wrapped: Option<Vec<u8>>,
    pub region: String,
    pub state: KeyState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyState {
    Active,
    Retiring,
    Retired,
    Destroyed,
}

/// An entry of the ledger of destroyed keys.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct DestroyedKey {
    pub tenant: String,
    pub version: u32,
    pub actor: String,
    pub reason: String,
}

fn unsigned(row: &PgRow, column: &str) -> sqlx::Result<u32> {
    u32::try_from(row.try_get::<i32, _>(column)?).map_err(|error| sqlx::Error::Decode(Box::new(error)))
}

/// Versions are counted from 1 by one; PostgreSQL's integers end at 2^31.
fn signed(version: u32) -> i32 {
    i32::try_from(version).unwrap_or(i32::MAX)
}

fn unknown(what: &str, found: &str) -> sqlx::Error {
    sqlx::Error::Decode(format!("{what} {found:?} is none that this program knows").into())
}

fn platform_key(row: &PgRow) -> sqlx::Result<PlatformKey> {
    Ok(PlatformKey {
        version: unsigned(row, "version")?,
        provider_ref: row.try_get("provider_ref")?,
        check_wrapped: row.try_get("check_wrapped")?,
        check_value: row.try_get("check_value")?,
        state: match row.try_get("state")? {
            "pending" => PlatformState::Pending,
            "primary" => PlatformState::Primary,
            "decrypt_only" => PlatformState::DecryptOnly,
            "retired" => PlatformState::Retired,
            other => return Err(unknown("platform key state", other)),
        },
    })
}

fn wrapped_key(row: &PgRow) -> sqlx::Result<WrappedKey> {
    Ok(WrappedKey {
        tenant: row.try_get("tenant_id")?,
        version: unsigned(row, "version")?,
        platform_version: unsigned(row, "platform_version")?,
        wrapped: row.try_get("wrapped")?,
        region: row.try_get("region")?,
        state: match row.try_get("state")? {
            "active" => KeyState::Active,
            "retiring" => KeyState::Retiring,
            "retired" => KeyState::Retired,
            "destroyed" => KeyState::Destroyed,
            other => return Err(unknown("key state", other)),
        },
    })
}

fn destroyed_key(row: &PgRow) -> sqlx::Result<DestroyedKey> {
    Ok(DestroyedKey {
        tenant: row.try_get("tenant_id")?,
        version: unsigned(row, "version")?,
        actor: row.try_get("actor")?,
        reason: row.try_get("reason")?,
    })
}

impl Keystore {
    pub fn new(pool: PgPool) -> Self {
        Self { pool }
    }

    pub fn pool(&self) -> &PgPool {
        &self.pool
    }

    pub async fn platform(&self) -> sqlx::Result<Vec<PlatformKey>> {
        let rows = sqlx::query(
            "-- keystore.platform
            SELECT version, provider_ref, check_wrapped, check_value, state FROM keys.platform()",
        )
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(platform_key).collect()
    }

    /// False: the version or the reference is taken.
    pub async fn add_platform(&self, key: &PlatformKey) -> sqlx::Result<bool> {
        sqlx::query_scalar("-- keystore.add_platform\nSELECT keys.add_platform($1, $2, $3, $4)")
            .bind(signed(key.version))
            .bind(&key.provider_ref)
            .bind(&key.check_wrapped)
            .bind(&key.check_value)
            .fetch_one(&self.pool)
            .await
    }

    /// False: there is none of that version, or it is retired.
    pub async fn make_primary(&self, version: u32) -> sqlx::Result<bool> {
        sqlx::query_scalar("-- keystore.make_primary\nSELECT keys.make_primary($1)")
            .bind(signed(version))
            .fetch_one(&self.pool)
            .await
    }

    pub async fn wrapped_by(&self, version: u32) -> sqlx::Result<i64> {
        sqlx::query_scalar("-- keystore.wrapped_by\nSELECT keys.wrapped_by($1)")
            .bind(signed(version))
            .fetch_one(&self.pool)
            .await
    }

    /// From here on nothing can be wrapped by a version below this one.
    pub async fn fence_platform(&self, version: u32) -> sqlx::Result<()> {
        sqlx::query("-- keystore.fence_platform\nSELECT keys.fence_platform($1)")
            .bind(signed(version))
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Retires the platform versions below the fence, how many; an error while a key is left below it.
    pub async fn retire_platform_below(&self, version: u32) -> sqlx::Result<i32> {
        sqlx::query_scalar("-- keystore.retire_platform_below\nSELECT keys.retire_platform_below($1)")
            .bind(signed(version))
            .fetch_one(&self.pool)
            .await
    }

    /// All versions of a tenant, the earliest first.
    pub async fn of_tenant(&self, tenant: &TenantId) -> sqlx::Result<Vec<WrappedKey>> {
        let rows = sqlx::query(
            "-- keystore.of_tenant
            SELECT tenant_id, version, platform_version, wrapped, region, state FROM keys.of_tenant($1)",
        )
        .bind(tenant.as_str())
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(wrapped_key).collect()
    }

    /// False: somebody else added a version meanwhile, or the platform version is not primary any more.
    pub async fn add_tenant_key(&self, key: &WrappedKey) -> sqlx::Result<bool> {
        sqlx::query_scalar("-- keystore.add_tenant_key\nSELECT keys.add_tenant_key($1, $2, $3, $4, $5)")
            .bind(&key.tenant)
            .bind(signed(key.version))
            .bind(signed(key.platform_version))
            .bind(&key.wrapped)
            .bind(&key.region)
            .fetch_one(&self.pool)
            .await
    }

    /// The next keys that another version than `target` wraps, behind a tenant's version.
    pub async fn to_rewrap(&self, target: u32, after: (&str, u32), limit: u32) -> sqlx::Result<Vec<WrappedKey>> {
        let rows = sqlx::query(
            "-- keystore.to_rewrap
            SELECT tenant_id, version, platform_version, wrapped, region, state FROM keys.to_rewrap($1, $2, $3, $4)",
        )
        .bind(signed(target))
        .bind(after.0)
        .bind(signed(after.1))
        .bind(signed(limit))
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(wrapped_key).collect()
    }

    /// False: it was wrapped anew or destroyed meanwhile.
    pub async fn rewrap(&self, key: &WrappedKey, platform_version: u32, new: &[u8]) -> sqlx::Result<bool> {
        sqlx::query_scalar("-- keystore.rewrap\nSELECT keys.rewrap($1, $2, $3, $4, $5)")
            .bind(&key.tenant)
            .bind(signed(key.version))
            .bind(&key.wrapped)
            .bind(signed(platform_version))
            .bind(new)
            .fetch_one(&self.pool)
            .await
    }

    /// False: it is not one that only opens.
    pub async fn retire(&self, tenant: &TenantId, version: u32) -> sqlx::Result<bool> {
        sqlx::query_scalar("-- keystore.retire\nSELECT keys.retire($1, $2)")
            .bind(tenant.as_str())
            .bind(signed(version))
            .fetch_one(&self.pool)
            .await
    }

    /// For good. True where there was a key.
    pub async fn destroy(&self, key: &DestroyedKey) -> sqlx::Result<bool> {
        sqlx::query_scalar("-- keystore.destroy\nSELECT keys.destroy($1, $2, $3, $4)")
            .bind(&key.tenant)
            .bind(signed(key.version))
            .bind(&key.actor)
            .bind(&key.reason)
            .fetch_one(&self.pool)
            .await
    }

    pub async fn ledger(&self) -> sqlx::Result<Vec<DestroyedKey>> {
        let rows = sqlx::query("-- keystore.ledger\nSELECT tenant_id, version, actor, reason FROM keys.ledger()")
            .fetch_all(&self.pool)
            .await?;
        rows.iter().map(destroyed_key).collect()
    }
}

/// The control database's ledger of destroyed keys, read by a worker's login.
pub async fn control_ledger(control: &PgPool) -> sqlx::Result<Vec<DestroyedKey>> {
    let rows =
        sqlx::query("-- keystore.control_ledger\nSELECT tenant_id, version, actor, reason FROM reeve.destroyed_keys()")
            .fetch_all(control)
            .await?;
    rows.iter().map(destroyed_key).collect()
}

/// Writes into it what is missing there, each with an audit entry.
pub async fn record_destroyed(control: &PgPool, keys: &[DestroyedKey]) -> sqlx::Result<i32> {
    sqlx::query_scalar("-- keystore.record_destroyed\nSELECT reeve.record_destroyed($1, $2, $3, $4)")
        .bind(keys.iter().map(|key| key.tenant.as_str()).collect::<Vec<_>>())
        .bind(keys.iter().map(|key| signed(key.version)).collect::<Vec<_>>())
        .bind(keys.iter().map(|key| key.actor.as_str()).collect::<Vec<_>>())
        .bind(keys.iter().map(|key| key.reason.as_str()).collect::<Vec<_>>())
        .fetch_one(control)
        .await
}

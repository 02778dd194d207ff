//! What an operator does with keys by hand: look, rotate the platform's key, try all of them, destroy a tenant's.
//!
//! Each act is on record on the operators' login (`reeve.record_key_act`) before it begins. A rotation of the platform's key
//! recomputes what is left from the keystore's rows, so it is run again after whatever broke it off:
//!
//! ```text
//!   next version added, proven, primary ──► every key wrapped anew, by compare-and-swap ──► fence: the database refuses the
//!   old version from then on ──► PostgreSQL validates that no key is left below ──► the old versions are retired
//! ```
//! What it deliberately does not do: destroy a key that something live or a backup may still need. Only retired versions, or
//! all keys of a tenant that is closed, are destroyed.
use reeve_jobs::{
    TenantId,
    queue::operate::Act,
    seal::{
        Keyring, KeyringError,
        keyring::KEPT_FOR,
        keystore::{self, DestroyedKey, KeyState, PlatformState},
        provider::KeyRef,
    },
    tenant::{Directory, DirectoryError, TenantState},
};
use serde::Serialize;
use sqlx::PgPool;

/// Keys that are read at a time.
const BATCH: u32 = 500;

#[derive(Debug, thiserror::Error)]
pub enum KeyActError {
    #[error("tenant \"{0}\" is not closed, and its keys are destroyed only then")]
    NotClosed(TenantId),
    #[error("tenant \"{0}\" has no key")]
    NoKey(TenantId),
    #[error("key version {version} of tenant \"{tenant}\" is {state}; only a retired one is destroyed by itself")]
    InUse { tenant: TenantId, version: u32, state: &'static str },
    #[error("{left} keys are still wrapped by earlier versions; run it again")]
    Left { left: i64 },
    #[error(transparent)]
    Keyring(#[from] KeyringError),
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    #[error("{0}")]
    Database(#[from] sqlx::Error),
}

/// Who acts on what with which right: the keyring, and the control database entered as worker and as operator.
#[derive(Debug)]
pub struct Keeper<'a> {
    pub keyring: &'a Keyring,
    pub directory: &'a Directory,
    pub ops: &'a PgPool,
    pub act: Act<'a>,
}

/// A platform version, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlatformStatus {
    pub version: u32,
    pub provider_ref: String,
    pub state: &'static str,
    /// Tenant keys that it wraps.
    pub wraps: i64,
}

/// A tenant's version, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeyStatus {
    pub version: u32,
    pub state: &'static str,
    pub platform_version: u32,
    pub region: String,
}

/// What is said of destroyed keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Certificate {
    pub tenant: String,
    pub destroyed_versions: Vec<u32>,
    pub actor: String,
    pub reason: String,
    /// What the certificate cannot speak for.
    pub horizon: &'static str,
}

/// What a trial of all keys found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Verified {
    pub platform_versions: usize,
    pub tenant_keys: usize,
    /// `tenant/version: reason`, the first hundred.
    pub failed: Vec<String>,
}

const HORIZON: &str = "Other workers that run may keep a key that they had opened for five minutes more. Backups of the \
keystore itself, copies that a provider made, and whatever was never sealed, are outside of this: they end with their own \
retention.";

// What the certificate says is what the keyring does.
const _: () = assert!(KEPT_FOR.as_secs() == 5 * 60);

const fn platform_state(state: PlatformState) -> &'static str {
    match state {
        PlatformState::Pending => "pending",
        PlatformState::Primary => "primary",
        PlatformState::DecryptOnly => "decrypt_only",
        PlatformState::Retired => "retired",
    }
}

const fn key_state(state: KeyState) -> &'static str {
    match state {
        KeyState::Active => "active",
        KeyState::Retiring => "retiring",
        KeyState::Retired => "retired",
        KeyState::Destroyed => "destroyed",
    }
}

/// The platform's versions, and how much hangs on each.
pub async fn platform_status(keyring: &Keyring) -> Result<Vec<PlatformStatus>, KeyActError> {
    let mut status = Vec::new();
    for row in keyring.store().platform().await? {
        let wraps = keyring.store().wrapped_by(row.version).await?;
        let (version, provider_ref, state) = (row.version, row.provider_ref, platform_state(row.state));
        status.push(PlatformStatus { version, provider_ref, state, wraps });
    }
    Ok(status)
}

/// A tenant's versions.
pub async fn key_status(keyring: &Keyring, tenant: &TenantId) -> Result<Vec<KeyStatus>, KeyActError> {
    let rows = keyring.store().of_tenant(tenant).await?.into_iter();
    let status = rows.map(|row| {
        let (version, platform_version, state) = (row.version, row.platform_version, key_state(row.state));
        KeyStatus { version, state, platform_version, region: row.region }
    });
    Ok(status.collect())
}

/// Opens every key there is, and keeps none. Whatever does not open is named, with the class of its reason.
pub async fn verify(keyring: &Keyring) -> Result<Verified, KeyActError> {
    let mut verified = Verified::default();
    for row in keyring.store().platform().await?.into_iter().filter(|row| row.state != PlatformState::Retired) {
        match keyring.platform(row.version).await {
            Ok(_) => verified.platform_versions += 1,
            Err(error) => verified.failed.push(format!("platform/{}: {}", row.version, error.reason())),
        }
    }
    let mut after = (String::new(), 0);
    loop {
        // No version is 0, so these are all.
        let batch = keyring.store().to_rewrap(0, (&after.0, after.1), BATCH).await?;
        let Some(last) = batch.last() else { return Ok(verified) };
        after = (last.tenant.clone(), last.version);
        for key in &batch {
            match keyring.unwrap(key).await {
                Ok(_) => verified.tenant_keys += 1,
                Err(error) if error.is_transient() => return Err(error.into()),
                Err(error) if verified.failed.len() < 100 => {
                    verified.failed.push(format!("{}/{}: {}", key.tenant, key.version, error.reason()));
                }
                Err(_) => {}
            }
        }
    }
}

impl Keeper<'_> {
    async fn on_record(&self, tenant: &str, action: &str, target: &str) -> Result<(), KeyActError> {
        sqlx::query("-- keys.on_record\nSELECT reeve.record_key_act($1, $2, $3, $4, $5)")
            .bind(tenant)
            .bind(self.act.actor)
            .bind(action)
            .bind(target)
            .bind(self.act.reason)
            .execute(self.ops)
            .await?;
        Ok(())
    }

    /// Puts the platform on another key, and retires those before it. `progress` is told how many keys were wrapped anew.
    pub async fn rotate_platform(
        &self,
        reference: &KeyRef,
        mut progress: impl FnMut(u64),
    ) -> Result<Vec<PlatformStatus>, KeyActError> {
        self.on_record("-", "key.platform_rotated", &reference.to_string()).await?;
        let version = self.keyring.add_platform(reference).await?;
        let (store, mut done) = (self.keyring.store(), 0);
        // What lost a race was wrapped by somebody else: nobody can wrap by another version than this one any more, since
        // only the primary makes keys. So one walk finds all; the validation is the proof.
        let mut after = (String::new(), 0);
        loop {
            let batch = store.to_rewrap(version, (&after.0, after.1), BATCH).await?;
            let Some(last) = batch.last() else { break };
            after = (last.tenant.clone(), last.version);
            for key in &batch {
                done += u64::from(self.keyring.rewrap(key, version).await?);
            }
            progress(done);
        }
        store.fence_platform(version).await?;
        let mut left = 0;
        for row in store.platform().await?.iter().filter(|row| row.version < version) {
            left += store.wrapped_by(row.version).await?;
        }
        if left > 0 {
            return Err(KeyActError::Left { left });
        }
        store.retire_platform_below(version).await?;
        platform_status(self.keyring).await
    }

    /// Destroys one retired version of a tenant's key.
    pub async fn destroy(&self, tenant: &TenantId, version: u32) -> Result<Certificate, KeyActError> {
        let rows = self.keyring.store().of_tenant(tenant).await?;
        let row = rows.iter().find(|row| row.version == version).ok_or_else(|| KeyActError::NoKey(tenant.clone()))?;
        if !matches!(row.state, KeyState::Retired | KeyState::Destroyed) {
            let (tenant, state) = (tenant.clone(), key_state(row.state));
            return Err(KeyActError::InUse { tenant, version, state });
        }
        self.destroy_all(tenant, vec![version]).await
    }

    /// Destroys all keys of a closed tenant: what they sealed, wherever a copy of it is, opens no more.
    pub async fn shred(&self, tenant: &TenantId) -> Result<Certificate, KeyActError> {
        if self.directory.entry(tenant).await?.state != TenantState::Closed {
            return Err(KeyActError::NotClosed(tenant.clone()));
        }
        let rows = self.keyring.store().of_tenant(tenant).await?;
        if rows.is_empty() {
            return Err(KeyActError::NoKey(tenant.clone()));
        }
        self.destroy_all(tenant, rows.iter().map(|row| row.version).collect()).await
    }

    /// The control database's ledger first: should the keystore not be reached then, the next start destroys them there.
    async fn destroy_all(&self, tenant: &TenantId, versions: Vec<u32>) -> Result<Certificate, KeyActError> {
        let (actor, reason) = (self.act.actor.to_owned(), self.act.reason.to_owned());
        let keys: Vec<_> = versions
            .iter()
            .map(|version| DestroyedKey {
                tenant: tenant.to_string(),
                version: *version,
                actor: actor.clone(),
                reason: reason.clone(),
            })
            .collect();
        self.on_record(tenant.as_str(), "key.destruction_begun", &format!("key:{versions:?}")).await?;
        keystore::record_destroyed(self.directory.control(), &keys).await?;
        for key in &keys {
            self.keyring.store().destroy(key).await?;
        }
        self.keyring.forget(tenant);
        Ok(Certificate { tenant: tenant.to_string(), destroyed_versions: versions, actor, reason, horizon: HORIZON })
    }
}

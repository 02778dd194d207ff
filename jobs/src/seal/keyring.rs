//! The keys of this process: opened when they are first needed, forgotten soon after, never printed.
//!
//! ```text
//!   seal / open ──► this tenant's key of that version, in the cache? ──► HKDF, AES-GCM (field)
//!                        └── no: keystore ──► wrapped ──► its platform version's provider ──► unwrapped
//!                                               the first use of a version proves its provider by the check value
//! ```
//! A tenant's first key is made when something of theirs is first sealed. Which version seals is asked anew each
//! [`CURRENT_FOR`]; whoever retires a version waits longer than that.
//!
//! Before any key is served, the ledgers of destroyed keys (here, and in the control database) are made equal, so that a
//! database put back from a backup brings none of them back ([`Keyring::start`]).
//!
//! With a provider away, what is in the cache serves until its time is up; then all is refused, for now
//! ([`KeyringError::is_transient`]). There is no other way to a key, and none to go without.
use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use hmac::{Hmac, KeyInit, Mac};
use rand::CryptoRng;
use sha2::Sha256;
use subtle::ConstantTimeEq;
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::{
    DataKey, Header, KeyScope, Place, Purpose, RootKey, SealError, field,
    keystore::{DestroyedKey, KeyState, Keystore, PlatformKey, PlatformState, WrappedKey},
    provider::{Answer, InvalidKeyRef, KeyProvider, KeyRef, ProviderError, WrapContext, rewrap_proven, wrap_proven},
};
use crate::tenant::TenantId;

/// An opened key is kept this long.
pub const KEPT_FOR: Duration = Duration::from_secs(300);
/// Opened keys that are kept, at most.
pub const KEPT_MAX: usize = 1_000;
/// How long the answer to "which version seals?" is believed.
pub const CURRENT_FOR: Duration = Duration::from_secs(30);

const CHECKED: &[u8] = b"reeve/kcv/v1";
/// Whose context the check key is wrapped in. Its version is 0, which no tenant's key has.
const CHECK_TENANT: &str = "reeve";

/// Opens the provider of a platform key version.
pub trait OpenProvider: Send + Sync + fmt::Debug {
    fn open<'a>(&'a self, reference: &'a KeyRef, version: u32) -> Answer<'a, Arc<dyn KeyProvider>>;
}

/// Why there is no key. None of these texts holds a key, or what was to be sealed.
#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    #[error("the keystore: {0}")]
    Store(#[from] sqlx::Error),
    #[error(transparent)]
    Provider(#[from] ProviderError),
    #[error("the keystore has no platform key yet; set [worker] platform_key, and start a worker")]
    NoPlatform,
    #[error("platform key version {version}: {source}")]
    Reference { version: u32, source: InvalidKeyRef },
    /// Another key under this version's name.
    #[error(
        "platform key version {version} ({provider_ref}) is not the key that it was: its check value differs. Nothing was written. Give this version its own key back; a new key is a new version"
    )]
    OtherKey { version: u32, provider_ref: String },
    #[error("platform key version {0} is retired")]
    Retired(u32),
    #[error("tenant \"{tenant}\" has no key version {version}")]
    Unknown { tenant: TenantId, version: u32 },
    #[error("key version {version} of tenant \"{tenant}\" is destroyed: what it sealed opens no more")]
    Destroyed { tenant: TenantId, version: u32 },
    #[error("all keys of tenant \"{0}\" are destroyed, and none is made without being asked for")]
    Shredded(TenantId),
    #[error("the value was sealed under the root key of an earlier release, and [worker] root_key is not set")]
    NoRoot,
    #[error("{0}")]
    Seal(#[from] SealError),
    #[error("another worker adds keys at this moment; again")]
    Raced,
}

impl KeyringError {
    /// Whether the same call may succeed later without anybody's doing.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Store(_) | Self::Raced => true,
            Self::Provider(error) => error.is_transient(),
            _ => false,
        }
    }

    /// The class of the reason, for the log.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Store(_) => "keystore",
            Self::Provider(error) => error.reason(),
            Self::NoPlatform => "no platform key",
            Self::Reference { .. } => "reference",
            Self::OtherKey { .. } => "another platform key",
            Self::Retired(_) => "retired platform key",
            Self::Unknown { .. } => "unknown key version",
            Self::Destroyed { .. } | Self::Shredded(_) => "destroyed key",
            Self::NoRoot => "no root key",
            Self::Seal(error) => error.reason(),
            Self::Raced => "raced",
        }
    }
}

/// A tenant's opened key of one version.
#[derive(Debug)]
pub struct TenantKey {
    pub version: u32,
    key: DataKey,
}

impl TenantKey {
    pub fn new(version: u32, key: DataKey) -> Self {
        Self { version, key }
    }

    pub fn seal(
        &self,
        purpose: Purpose,
        place: &Place<'_>,
        plain: &[u8],
        random: &mut impl CryptoRng,
    ) -> Result<Vec<u8>, SealError> {
        let header = Header { scope: KeyScope::Tenant, version: self.version };
        field::seal(&self.key, header, purpose, place, plain, random)
    }

    pub fn open(&self, purpose: Purpose, place: &Place<'_>, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
        field::open(&self.key, purpose, place, sealed)
    }

    /// For streams and indexes, which derive from it themselves.
    pub fn data_key(&self) -> &DataKey {
        &self.key
    }
}

/// A platform version whose provider is open, and proven or not yet.
#[derive(Debug, Clone)]
struct Platform {
    row: PlatformKey,
    provider: Arc<dyn KeyProvider>,
    proven: bool,
}

#[derive(Default)]
struct Cache {
    keys: HashMap<(TenantId, u32), (Arc<TenantKey>, Instant)>,
    current: HashMap<TenantId, (u32, Instant)>,
    platform: HashMap<u32, Platform>,
}

struct Inner {
    store: Keystore,
    opener: Arc<dyn OpenProvider>,
    /// Of the keys that are made here.
    region: String,
    /// What earlier releases sealed with.
    root: Option<RootKey>,
    cache: Mutex<Cache>,
}

/// See the module's head. Clones share everything.
#[derive(Clone)]
pub struct Keyring(Arc<Inner>);

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyring").field("keys", &self.cache().keys.len()).finish_non_exhaustive()
    }
}

impl Keyring {
    pub fn new(store: Keystore, opener: Arc<dyn OpenProvider>, region: &str, root: Option<RootKey>) -> Self {
        Self(Arc::new(Inner { store, opener, region: region.to_owned(), root, cache: Mutex::default() }))
    }

    pub fn store(&self) -> &Keystore {
        &self.0.store
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        // Entries are put in whole.
        self.0.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be done before anything is sealed or opened. `first` becomes platform version 1 of a keystore that has none;
    /// `ledger` is the control database's. Destroys here what that says is destroyed, proves every platform version whose
    /// provider answers, and returns this keystore's ledger for the control database to learn.
    ///
    /// # Errors
    /// A platform version's key is another than it was; with a provider away it is proven at its first use.
    pub async fn start(
        &self,
        first: Option<&KeyRef>,
        ledger: Vec<DestroyedKey>,
    ) -> Result<Vec<DestroyedKey>, KeyringError> {
        let known: BTreeSet<_> =
            self.0.store.ledger().await?.into_iter().map(|key| (key.tenant, key.version)).collect();
        for key in ledger {
            let replayed = !known.contains(&(key.tenant.clone(), key.version));
            if self.0.store.destroy(&key).await? {
                tracing::warn!(
                    tenant = key.tenant,
                    version = key.version,
                    "a destroyed key had come back; destroyed again"
                );
            } else if replayed {
                tracing::info!(tenant = key.tenant, version = key.version, "the ledger of destroyed keys was behind");
            }
        }
        if self.0.store.platform().await?.is_empty()
            && let Some(reference) = first
        {
            self.add_platform(reference).await?;
        }
        for row in self.0.store.platform().await? {
            if row.state == PlatformState::Retired {
                continue;
            }
            match self.platform(row.version).await {
                Err(error) if error.is_transient() => {
                    tracing::warn!(
                        version = row.version,
                        reason = error.reason(),
                        "a platform key could not be proven yet"
                    );
                }
                proven => drop(proven?),
            }
        }
        Ok(self.0.store.ledger().await?)
    }

    /// Reads local keys again, and has every platform version proven anew at its next use.
    pub async fn reload(&self) -> Result<(), KeyringError> {
        let platform: Vec<_> = self.cache().platform.values().cloned().collect();
        for version in platform {
            version.provider.reload()?;
        }
        self.doubt();
        for row in self.0.store.platform().await? {
            if row.state != PlatformState::Retired {
                self.platform(row.version).await?;
            }
        }
        Ok(())
    }

    /// Forgets every opened key, and that any platform version was proven.
    fn doubt(&self) {
        let mut cache = self.cache();
        cache.platform.values_mut().for_each(|platform| platform.proven = false);
        cache.keys.clear();
        cache.current.clear();
    }

    /// Adds the platform's next version and makes it the one that wraps new keys. Its version; or that of the reference,
    /// where it is known already.
    pub async fn add_platform(&self, reference: &KeyRef) -> Result<u32, KeyringError> {
        let provider_ref = reference.to_string();
        let rows = self.0.store.platform().await?;
        let version = match rows.iter().find(|row| row.provider_ref == provider_ref) {
            Some(row) if row.state == PlatformState::Retired => return Err(KeyringError::Retired(row.version)),
            Some(row) => row.version,
            None => {
                let version = 1 + rows.iter().map(|row| row.version).max().unwrap_or(0);
                let provider = self.0.opener.open(reference, version).await?;
                let check = DataKey::random(&mut rand::rng());
                let tenant = check_tenant();
                let context = WrapContext { tenant: &tenant, version: 0, region: "" };
                let check_wrapped = wrap_proven(&*provider, context, &check).await?;
                let check_value = check_value(&check);
                let row =
                    PlatformKey { version, provider_ref, check_wrapped, check_value, state: PlatformState::Pending };
                if !self.0.store.add_platform(&row).await? {
                    return Err(KeyringError::Raced);
                }
                version
            }
        };
        // Proven before anything is wrapped by it.
        self.platform(version).await?;
        if self.0.store.make_primary(version).await? { Ok(version) } else { Err(KeyringError::Retired(version)) }
    }

    /// A platform version's provider, proven to hold the key that it held.
    pub async fn platform(&self, version: u32) -> Result<Arc<dyn KeyProvider>, KeyringError> {
        let cached = self.cache().platform.get(&version).cloned();
        let mut platform = match cached {
            Some(platform) if platform.proven => return Ok(platform.provider),
            Some(platform) => platform,
            None => {
                let rows = self.0.store.platform().await?;
                let row = rows.into_iter().find(|row| row.version == version).ok_or(KeyringError::NoPlatform)?;
                let reference: KeyRef =
                    row.provider_ref.parse().map_err(|source| KeyringError::Reference { version, source })?;
                Platform { provider: self.0.opener.open(&reference, version).await?, row, proven: false }
            }
        };
        let other = || KeyringError::OtherKey { version, provider_ref: platform.row.provider_ref.clone() };
        let tenant = check_tenant();
        let context = WrapContext { tenant: &tenant, version: 0, region: "" };
        let check = match platform.provider.unwrap(context, &platform.row.check_wrapped).await {
            Err(ProviderError::Refused { class: super::provider::Refusal::Opening, .. }) => return Err(other()),
            answer => answer?,
        };
        if !bool::from(check_value(&check).ct_eq(&platform.row.check_value)) {
            return Err(other());
        }
        platform.proven = true;
        let provider = platform.provider.clone();
        self.cache().platform.insert(version, platform);
        Ok(provider)
    }

    /// The key that seals for a tenant. Made, where the tenant never had one.
    pub async fn current(&self, tenant: &TenantId) -> Result<Arc<TenantKey>, KeyringError> {
        let known = self.cache().current.get(tenant).copied();
        if let Some((version, at)) = known
            && at.elapsed() < CURRENT_FOR
        {
            return self.version(tenant, version).await;
        }
        let asked_at = Instant::now();
        let rows = self.0.store.of_tenant(tenant).await?;
        let version = match rows.iter().find(|row| row.state == KeyState::Active) {
            Some(row) => row.version,
            // Its first, and no other: whoever else makes it at this moment makes the same.
            None if rows.is_empty() => self.make(tenant, 1).await?,
            None => return Err(KeyringError::Shredded(tenant.clone())),
        };
        let key = self.version(tenant, version).await?;
        let mut cache = self.cache();
        if cache.current.len() >= KEPT_MAX {
            cache.current.retain(|_, (_, at)| at.elapsed() < CURRENT_FOR);
            if cache.current.len() >= KEPT_MAX {
                cache.current.clear();
            }
        }
        cache.current.insert(tenant.clone(), (version, asked_at));
        Ok(key)
    }

    /// Makes the tenant's next key version, which seals from now on. Other processes learn of it within [`CURRENT_FOR`].
    /// Where another was first, that one's version.
    pub async fn rotate(&self, tenant: &TenantId) -> Result<u32, KeyringError> {
        let rows = self.0.store.of_tenant(tenant).await?;
        self.make(tenant, 1 + rows.last().map_or(0, |row| row.version)).await
    }

    async fn make(&self, tenant: &TenantId, version: u32) -> Result<u32, KeyringError> {
        let platform = self.0.store.platform().await?;
        let primary =
            platform.iter().find(|row| row.state == PlatformState::Primary).ok_or(KeyringError::NoPlatform)?;
        let provider = self.platform(primary.version).await?;
        let key = DataKey::random(&mut rand::rng());
        let context = WrapContext { tenant, version, region: &self.0.region };
        let wrapped = wrap_proven(&*provider, context, &key).await?;
        let row = WrappedKey {
            tenant: tenant.to_string(),
            version,
            platform_version: primary.version,
            wrapped: Some(wrapped),
            region: self.0.region.clone(),
            state: KeyState::Active,
        };
        self.cache().current.remove(tenant);
        if self.0.store.add_tenant_key(&row).await? {
            return Ok(version);
        }
        // Who was first made the same version; or the platform's primary changed, or the ledger knows more of this tenant.
        let rows = self.0.store.of_tenant(tenant).await?;
        rows.iter()
            .find(|row| row.state == KeyState::Active && row.version >= version)
            .map(|row| row.version)
            .ok_or(KeyringError::Raced)
    }

    /// A tenant's key of one version.
    pub async fn version(&self, tenant: &TenantId, version: u32) -> Result<Arc<TenantKey>, KeyringError> {
        let id = (tenant.clone(), version);
        if let Some((key, at)) = self.cache().keys.get(&id)
            && at.elapsed() < KEPT_FOR
        {
            return Ok(key.clone());
        }
        let rows = self.0.store.of_tenant(tenant).await?;
        let unknown = || KeyringError::Unknown { tenant: tenant.clone(), version };
        let row = rows.iter().find(|row| row.version == version).ok_or_else(unknown)?;
        let Some(wrapped) = &row.wrapped else {
            self.cache().keys.remove(&id);
            return Err(KeyringError::Destroyed { tenant: tenant.clone(), version });
        };
        let key = Arc::new(self.unwrap_from(tenant, row, wrapped).await?);
        self.keep(id, key.clone());
        Ok(key)
    }

    /// Opens a key as it stands in the keystore, past the cache.
    pub async fn unwrap(&self, row: &WrappedKey) -> Result<TenantKey, KeyringError> {
        let tenant: TenantId = row.tenant.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))?;
        match &row.wrapped {
            Some(wrapped) => self.unwrap_from(&tenant, row, wrapped).await,
            None => Err(KeyringError::Destroyed { tenant, version: row.version }),
        }
    }

    async fn unwrap_from(
        &self,
        tenant: &TenantId,
        row: &WrappedKey,
        wrapped: &[u8],
    ) -> Result<TenantKey, KeyringError> {
        let provider = self.platform(row.platform_version).await?;
        let context = WrapContext { tenant, version: row.version, region: &row.region };
        Ok(TenantKey::new(row.version, provider.unwrap(context, wrapped).await?))
    }

    /// Wraps a key anew, by a platform version. False where somebody else did meanwhile, or it was destroyed.
    pub async fn rewrap(&self, key: &WrappedKey, platform_version: u32) -> Result<bool, KeyringError> {
        let tenant: TenantId = key.tenant.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))?;
        let Some(wrapped) = &key.wrapped else { return Ok(false) };
        let (old, new) = (self.platform(key.platform_version).await?, self.platform(platform_version).await?);
        let context = WrapContext { tenant: &tenant, version: key.version, region: &key.region };
        let rewrapped = rewrap_proven(&*new, &*old, context, wrapped).await?;
        Ok(self.0.store.rewrap(key, platform_version, &rewrapped).await?)
    }

    fn keep(&self, id: (TenantId, u32), key: Arc<TenantKey>) {
        let mut cache = self.cache();
        if cache.keys.len() >= KEPT_MAX && !cache.keys.contains_key(&id) {
            cache.keys.retain(|_, (_, at)| at.elapsed() < KEPT_FOR);
            if cache.keys.len() >= KEPT_MAX {
                let oldest = cache.keys.iter().min_by_key(|(_, (_, at))| *at).map(|(id, _)| id.clone());
                oldest.map(|id| cache.keys.remove(&id));
            }
        }
        cache.keys.insert(id, (key, Instant::now()));
    }

    /// Forgets a tenant's keys at once: they were destroyed.
    pub fn forget(&self, tenant: &TenantId) {
        let mut cache = self.cache();
        cache.keys.retain(|(of, _), _| of != tenant);
        cache.current.remove(tenant);
    }

    pub async fn seal(&self, purpose: Purpose, place: &Place<'_>, plain: &[u8]) -> Result<Vec<u8>, KeyringError> {
        Ok(self.current(place.tenant).await?.seal(purpose, place, plain, &mut rand::rng())?)
    }

    /// Opens what any version of the tenant's key sealed, or the root key of an earlier release.
    pub async fn open(
        &self,
        purpose: Purpose,
        place: &Place<'_>,
        sealed: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, KeyringError> {
        if sealed.starts_with(b"RV0") {
            return Ok(self.0.root.as_ref().ok_or(KeyringError::NoRoot)?.open(place, sealed)?);
        }
        let header = Header::read(sealed)?;
        if header.scope != KeyScope::Tenant {
            return Err(SealError::Form("it is sealed under no tenant's key").into());
        }
        Ok(self.version(place.tenant, header.version).await?.open(purpose, place, sealed)?)
    }
}

fn check_tenant() -> TenantId {
    // One to 64 characters of those that an id may have.
    CHECK_TENANT.parse().unwrap_or_else(|_| unreachable!("{CHECK_TENANT} is a tenant id"))
}

fn check_value(check: &DataKey) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(check.reveal()).unwrap_or_else(|_| unreachable!("HMAC takes any key"));
    mac.update(CHECKED);
    mac.finalize().into_bytes().to_vec()
}

#[cfg(all(test, feature = "testing"))]
mod tests;

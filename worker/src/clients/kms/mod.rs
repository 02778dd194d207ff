//! The way to the keepers of the platform's keys: from a reference to a provider that is ready to be asked.
//!
//! Flow: `[worker.kms]` ([`KmsSettings`]) and a [`KeyRef`] from the keystore → [`open`] → a [`KeyProvider`] for that one
//! platform key version. Nothing is asked of a remote keeper before the first wrap or unwrap.
//!
//! Each remote call, retries included, ends by one time-out; what goes wrong is one of the three classes of
//! [`ProviderError`], in words of ours alone. Addresses are the operator's, so they are not judged as tenants' are, but a
//! key never goes over plain HTTP to another machine. Redirects are not followed. A Vault's client takes no
//! proxy from the environment; AWS's does, and speaks TLS through it.
//!
//! What is not promised: the plain key passes through the buffers of the HTTP and TLS libraries, which do not wipe them.
mod aws;
mod settings;
mod vault;

use std::sync::Arc;

use reeve_jobs::seal::provider::{KeyProvider, KeyRef, ProviderError, local::LocalProvider};
pub use settings::{AwsSettings, KmsSettings, SettingsError, VaultSettings};

/// Calls to a remote keeper for one answer: the first, and two more where it was throttled or away.
const ATTEMPTS_MAX: u32 = 3;

/// Opens the provider of one platform key version.
///
/// # Errors
/// What `reference` needs is not there or not in order: a variable, a file, `[worker.kms.vault]`, a CA, a token's file.
pub async fn open(
    reference: &KeyRef,
    version: u32,
    settings: &KmsSettings,
) -> Result<Arc<dyn KeyProvider>, ProviderError> {
    Ok(match reference {
        KeyRef::Env(_) | KeyRef::File(_) => Arc::new(LocalProvider::open(reference, version)?),
        KeyRef::AwsKms(key) => Arc::new(aws::AwsKms::open(key, settings).await?),
        KeyRef::Vault(key) => Arc::new(vault::Transit::open(key, settings)?),
    })
}

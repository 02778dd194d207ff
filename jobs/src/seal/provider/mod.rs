//! Who keeps the platform's keys: one trait before a variable, a file, AWS KMS and a Vault.
//!
//! Flow: [`KeyRef`] names one platform key version → a [`KeyProvider`] is opened for it and serves that version alone →
//! tenant keys go in as [`DataKey`] and come out wrapped, bound to their [`WrapContext`]; unwrapping asks for the same
//! context. `env:` and `file:` are here ([`local`]); what calls out is the worker's (`clients::kms`).
//!
//! Deliberately absent: a way round a provider that does not answer, caches (the keyring's), retries beyond one call's
//! time-out (the job's), and any text of an answer in an error: what a remote party says may hold anything.
pub mod local;
mod reference;

use std::{borrow::Cow, fmt, future::Future, pin::Pin};

pub use reference::{AwsKey, InvalidKeyRef, KeyRef, TransitKey};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::{Place, key::DataKey};
use crate::tenant::TenantId;

/// What a wrapped key is bound to: with another it does not open.
///
/// `version` is the tenant key's; they begin at 1, so that 0 is free for the key that proves the provider.
#[derive(Debug, Clone, Copy)]
pub struct WrapContext<'a> {
    pub tenant: &'a TenantId,
    pub version: u32,
    pub region: &'a str,
}

impl WrapContext<'_> {
    /// The row's part of the place: a version is digits, so the first `@` ends it.
    fn row(&self) -> String {
        format!("{}@{}", self.version, self.region)
    }

    /// Runs `what` with the place that the context is to RV1.
    fn at<T>(&self, what: impl FnOnce(&Place<'_>) -> T) -> T {
        what(&Place { tenant: self.tenant, table: "tenant_keys", column: "wrapped", row: &self.row() })
    }

    /// The context as bytes, no two contexts alike: the associated data for providers that take any.
    pub fn bytes(&self) -> Vec<u8> {
        self.at(|place| place.bytes())
    }
}

/// The future of an answer; boxed, so that providers of all kinds stand behind one pointer.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, ProviderError>> + Send + 'a>>;

/// What a provider is able to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// It calls out: it may be slow, throttled or away, and each call may cost money.
    pub remote: bool,
    /// It can re-wrap between two keys of its kind without the key coming out.
    pub rewraps_inside: bool,
}

/// Keeper of one platform key version.
pub trait KeyProvider: Send + Sync + fmt::Debug {
    fn reference(&self) -> &KeyRef;

    fn wrap<'a>(&'a self, context: WrapContext<'a>, key: &'a DataKey) -> Answer<'a, Vec<u8>>;

    fn unwrap<'a>(&'a self, context: WrapContext<'a>, wrapped: &'a [u8]) -> Answer<'a, DataKey>;

    /// From `old` to this one. Here the key comes out there and goes in here; a provider that can do it inside does.
    fn rewrap<'a>(
        &'a self,
        old: &'a dyn KeyProvider,
        context: WrapContext<'a>,
        wrapped: &'a [u8],
    ) -> Answer<'a, Vec<u8>> {
        Box::pin(async move { self.wrap(context, &old.unwrap(context, wrapped).await?).await })
    }

    fn capabilities(&self) -> Capabilities;

    /// Reads again what was read at start, on SIGHUP. What was read before stays in force if that fails. A key may be
    /// another one afterwards: its check value is to be verified again.
    fn reload(&self) -> Result<(), ProviderError> {
        Ok(())
    }
}

/// Wraps, and proves by unwrapping that the same key comes out of it. A provider that answers nonsense to a wrap would
/// else be found out when the only copy of the key is gone.
pub async fn wrap_proven(
    provider: &dyn KeyProvider,
    context: WrapContext<'_>,
    key: &DataKey,
) -> Result<Vec<u8>, ProviderError> {
    let wrapped = provider.wrap(context, key).await?;
    let back = provider.unwrap(context, &wrapped).await?;
    if same(key, &back) {
        return Ok(wrapped);
    }
    Err(ProviderError::misanswered(provider.reference(), "what it wrapped unwraps to another key"))
}

/// Re-wraps, and proves that the key which `old` unwraps comes out of the new wrap.
pub async fn rewrap_proven(
    provider: &dyn KeyProvider,
    old: &dyn KeyProvider,
    context: WrapContext<'_>,
    wrapped: &[u8],
) -> Result<Vec<u8>, ProviderError> {
    let rewrapped = provider.rewrap(old, context, wrapped).await?;
    let (before, after) = (old.unwrap(context, wrapped).await?, provider.unwrap(context, &rewrapped).await?);
    if same(&before, &after) {
        return Ok(rewrapped);
    }
    Err(ProviderError::misanswered(provider.reference(), "what it re-wrapped unwraps to another key"))
}

/// Without an early end, so that its time says nothing of the keys.
fn same(a: &DataKey, b: &DataKey) -> bool {
    a.reveal().ct_eq(b.reveal()).into()
}

/// The key in an answer, or what is wrong with the answer.
pub fn key_of(reference: &KeyRef, plain: &[u8]) -> Result<DataKey, ProviderError> {
    let bytes: [u8; DataKey::BYTES] =
        plain.try_into().map_err(|_| ProviderError::misanswered(reference, "the unwrapped key has not 32 bytes"))?;
    Ok(DataKey::from_bytes(Zeroizing::new(bytes)))
}

/// Refuses as wrapped what is too short to hide the key, or shows it.
pub fn check_wrapped(reference: &KeyRef, key: &DataKey, wrapped: &[u8]) -> Result<(), ProviderError> {
    if wrapped.len() <= DataKey::BYTES {
        return Err(ProviderError::misanswered(reference, "the wrapped key is shorter than any cipher makes it"));
    }
    if wrapped.windows(DataKey::BYTES).any(|window| window == key.reveal()) {
        return Err(ProviderError::misanswered(reference, "the wrapped key is the key itself"));
    }
    Ok(())
}

/// Why a provider will not do it: asking again the same way changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The wrapped key does not open: another key, another context, or changed bytes. Which one is not told apart, nor
    /// can a remote party.
    Opening,
    /// Wrapped by another version of the key.
    Version,
    UnknownKey,
    /// The key is disabled, or waits to be deleted.
    Disabled,
    /// Not allowed, or not known: credentials, token, policy.
    Permission,
    /// What was asked is not understood.
    Request,
    /// What this machine is set up with: the variable, the file, the address.
    Settings,
}

/// Why a provider does not do it now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outage {
    TimedOut,
    Throttled,
    /// No connection, no TLS, or the connection broke.
    Unreachable,
    /// It answers that it cannot: faults of its own, sealed, no leader.
    Failing,
}

impl Refusal {
    /// The class, for logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Opening => "does_not_open",
            Self::Version => "other_version",
            Self::UnknownKey => "unknown_key",
            Self::Disabled => "key_disabled",
            Self::Permission => "no_permission",
            Self::Request => "bad_request",
            Self::Settings => "settings",
        }
    }
}

impl Outage {
    /// The class, for logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::TimedOut => "timed_out",
            Self::Throttled => "throttled",
            Self::Unreachable => "unreachable",
            Self::Failing => "failing",
        }
    }
}

/// What came of a call that gave no key. `what` is always a text of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProviderError {
    /// For good: asking again is of no use before somebody changes something.
    #[error("the key provider {key} refused: {what}")]
    Refused { key: Box<KeyRef>, class: Refusal, what: Cow<'static, str> },
    /// For now.
    #[error("the key provider {key} is not available: {what}")]
    Unavailable { key: Box<KeyRef>, class: Outage, what: Cow<'static, str> },
    /// The answer is not what the protocol says. None of it was used; treat it as an outage.
    #[error("the key provider {key} answered wrongly: {what}")]
    Misanswered { key: Box<KeyRef>, what: Cow<'static, str> },
}

impl ProviderError {
    pub fn refused(key: &KeyRef, class: Refusal, what: impl Into<Cow<'static, str>>) -> Self {
        Self::Refused { key: Box::new(key.clone()), class, what: what.into() }
    }

    pub fn unavailable(key: &KeyRef, class: Outage, what: impl Into<Cow<'static, str>>) -> Self {
        Self::Unavailable { key: Box::new(key.clone()), class, what: what.into() }
    }

    pub fn misanswered(key: &KeyRef, what: impl Into<Cow<'static, str>>) -> Self {
        Self::Misanswered { key: Box::new(key.clone()), what: what.into() }
    }

    /// Whether the same call may succeed later without anybody's doing.
    pub const fn is_transient(&self) -> bool {
        !matches!(self, Self::Refused { .. })
    }

    /// The class, for logs and counters.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Refused { class, .. } => class.as_str(),
            Self::Unavailable { class, .. } => class.as_str(),
            Self::Misanswered { .. } => "wrong_answer",
        }
    }
}

#[cfg(test)]
mod tests;

//! The keys that seal envelopes: one for each tenant, derived from the queue's, which is derived from the root key.
//!
//! Whoever hands jobs over to Redis needs the queue's key alone. It opens no secret at rest, and the root key cannot be
//! got back from it. Only the worker holds either: the app and the scheduler hand over nothing here.
use aes_gcm::{Aes256Gcm, KeyInit};
use base64::{Engine, prelude::BASE64_STANDARD};
use hmac::{Hmac, Mac};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::tenant::TenantId;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the root key must be 32 bytes in base64; make one with `openssl rand -base64 32`")]
pub struct InvalidRootKey;

/// The queue's key. Zeroized on drop; never printed.
#[derive(Clone)]
pub struct QueueKey(Zeroizing<[u8; 32]>);

impl std::fmt::Debug for QueueKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("QueueKey([redacted])")
    }
}

impl QueueKey {
    /// From the root key: 32 bytes in standard base64.
    pub fn from_root(text: &str) -> Result<Self, InvalidRootKey> {
        let root = Zeroizing::new(BASE64_STANDARD.decode(text.trim()).map_err(|_| InvalidRootKey)?);
        if root.len() != 32 {
            return Err(InvalidRootKey);
        }
        Ok(Self(derived(&root, b"reeve/queue/v1")))
    }

    /// The cipher that seals one tenant's envelopes.
    pub(super) fn cipher(&self, tenant: &TenantId) -> Aes256Gcm {
        // The label has a fixed length, so that no tenant's name can shift into it.
        Aes256Gcm::new(&(*derived(self.0.as_slice(), &[b"tenant/", tenant.as_str().as_bytes()].concat())).into())
    }
}

/// HMAC-SHA-256 as a key derivation: the input is uniform already, so the extract step of HKDF adds nothing.
fn derived(key: &[u8], label: &[u8]) -> Zeroizing<[u8; 32]> {
    let mut mac = <Hmac<Sha256> as hmac::KeyInit>::new_from_slice(key).unwrap_or_else(|_| {
        // HMAC takes keys of any length (RFC 2104), so this is not reached.
        unreachable!("HMAC takes any key")
    });
    mac.update(label);
    Zeroizing::new(mac.finalize().into_bytes().into())
}

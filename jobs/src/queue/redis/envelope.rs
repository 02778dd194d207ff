//! What a job is in Redis: its payload and limits, sealed to whose it is and where it stands.
//!
//! Layout: `b"RQ1"`, 12 bytes of random nonce, ciphertext with its 16-byte tag, AES-256-GCM under the tenant's queue key.
//! The tag covers the header and tenant, kind, job, queue and region, each with its length before it: an envelope that was
//! forged, changed, or moved to another tenant, kind, job or lane does not open. Outside the seal stand only what Redis
//! needs to count and order: attempts, priority, due time. Who writes to Redis can change those, and so drop a job or run
//! one again, but not make one.
//!
//! Bound: random 96-bit nonces are safe for 2^32 envelopes of one tenant (NIST SP 800-38D, 8.3). The key has no version
//! yet; the header's three bytes are there to tell the next form apart.
use aes_gcm::aead::{Aead, Payload};
use rand::Rng;
use serde::{Deserialize, Serialize};

use super::keys::QueueKey;
use crate::{job::JobId, queue::Lane, tenant::TenantId};

const HEADER: &[u8; 3] = b"RQ1";
const NONCE_BYTES: usize = 12;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    #[error("not an envelope")]
    Form,
    #[error("the envelope does not open: forged, changed, or moved from another tenant, job or queue")]
    Seal,
    #[error("the envelope's content cannot be read")]
    Content,
}

/// What the seal binds an envelope to.
#[derive(Debug, Clone, Copy)]
pub struct Address<'a> {
    pub tenant: &'a TenantId,
    pub kind: &'a str,
    pub job: JobId,
    pub lane: &'a Lane,
}

impl Address<'_> {
    fn bytes(&self) -> Vec<u8> {
        let job = self.job.to_string();
        let mut out = HEADER.to_vec();
        for part in [self.tenant.as_str(), self.kind, &job, &self.lane.queue, &self.lane.region] {
            // Names and ids: far below 4 GiB.
            out.extend_from_slice(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
            out.extend_from_slice(part.as_bytes());
        }
        out
    }
}

/// The sealed part.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Content {
    pub payload: serde_json::Value,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
}

impl Content {
    pub fn seal(&self, key: &QueueKey, address: &Address<'_>, random: &mut impl Rng) -> Result<Vec<u8>, EnvelopeError> {
        let plain = zeroize::Zeroizing::new(serde_json::to_vec(self).map_err(|_| EnvelopeError::Content)?);
        let mut nonce = [0; NONCE_BYTES];
        random.fill_bytes(&mut nonce);
        let sealed = key
            .cipher(address.tenant)
            .encrypt(&nonce.into(), Payload { msg: &plain, aad: &address.bytes() })
            .map_err(|_| EnvelopeError::Form)?;
        Ok([HEADER.as_slice(), &nonce, &sealed].concat())
    }

    pub fn open(key: &QueueKey, address: &Address<'_>, sealed: &[u8]) -> Result<Self, EnvelopeError> {
        let rest = sealed.strip_prefix(HEADER).ok_or(EnvelopeError::Form)?;
        let (nonce, text) = rest.split_first_chunk::<NONCE_BYTES>().ok_or(EnvelopeError::Form)?;
        let plain = key
            .cipher(address.tenant)
            .decrypt(nonce.into(), Payload { msg: text, aad: &address.bytes() })
            .map(zeroize::Zeroizing::new)
            .map_err(|_| EnvelopeError::Seal)?;
        serde_json::from_slice(&plain).map_err(|_| EnvelopeError::Content)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_envelope_opens_only_where_it_was_sealed_to() {
        let key = QueueKey::from_root("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=").expect("32 bytes");
        let other = QueueKey::from_root("AQECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=").expect("32 bytes");
        let (a, b): (TenantId, TenantId) = ("a".parse().expect("an id"), "b".parse().expect("an id"));
        let lane = Lane { queue: "q".to_owned(), region: "eu".to_owned() };
        let moved =
            [Lane { queue: "qe".to_owned(), region: "u".to_owned() }, Lane { region: "us".to_owned(), ..lane.clone() }];
        let home = Address { tenant: &a, kind: "fleet.probe", job: JobId(uuid::Uuid::nil()), lane: &lane };
        let content = Content { payload: serde_json::json!({"note": "canary"}), traceparent: None };
        let sealed = content.seal(&key, &home, &mut rand::rng()).expect("sealed");
        assert!(!sealed.windows(6).any(|bytes| bytes == b"canary"));
        assert_eq!(Content::open(&key, &home, &sealed), Ok(content));
        assert_eq!(Content::open(&other, &home, &sealed), Err(EnvelopeError::Seal), "another key");
        for elsewhere in [
            Address { tenant: &b, ..home },
            Address { kind: "x", ..home },
            Address { job: JobId(uuid::Uuid::max()), ..home },
            Address { lane: &moved[0], ..home },
            Address { lane: &moved[1], ..home },
        ] {
            assert_eq!(Content::open(&key, &elsewhere, &sealed), Err(EnvelopeError::Seal), "{elsewhere:?}");
        }
        for i in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[i] ^= 1;
            assert!(Content::open(&key, &home, &changed).is_err(), "byte {i}");
        }
        assert_eq!(format!("{key:?}"), "QueueKey([redacted])");
        assert!(QueueKey::from_root("short").is_err());
    }
}

//! What is done with the audit key, which the database never has: signatures of checkpoints, hashes of source addresses.
//!
//! HMAC-SHA256, so whoever can check a signature can also make one: the key belongs to the operators alone. A public-key
//! signature would let others check; it can come as another form of [`AuditKey::sign`], since the tag names this one.
use std::net::IpAddr;

use base64::{Engine, prelude::BASE64_STANDARD};
use chrono::{DateTime, Utc};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use zeroize::Zeroizing;

use super::chain::{Hash, micros, put};

const CHECKPOINT_TAG: &[u8] = b"reeve audit checkpoint 1";
const IP_TAG: &[u8] = b"reeve audit source ip 1";
const KEY_BYTES: usize = 32;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuditKeyError {
    #[error("the audit key must be 32 bytes in base64; make one with `openssl rand -base64 32`")]
    Form,
}

/// Zeroized on drop; never printed.
#[derive(Clone)]
pub struct AuditKey(Zeroizing<[u8; KEY_BYTES]>);

impl std::fmt::Debug for AuditKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AuditKey([redacted])")
    }
}

/// What a checkpoint says of a tenant's chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Where the checkpoint before it stands; 0 for the first. Its entries are those after that one, up to `seq`.
    pub from_seq: i64,
    pub seq: i64,
    /// Of entry `seq`.
    pub hash: Hash,
    /// When the last of its entries may be pruned; `None` when one is kept for ever.
    pub keeps_until: Option<DateTime<Utc>>,
    pub at: DateTime<Utc>,
}

impl AuditKey {
    /// From 32 bytes in standard base64.
    pub fn from_base64(text: &str) -> Result<Self, AuditKeyError> {
        let bytes = Zeroizing::new(BASE64_STANDARD.decode(text.trim()).map_err(|_| AuditKeyError::Form)?);
        <[u8; KEY_BYTES]>::try_from(bytes.as_slice())
            .map(|key| Self(Zeroizing::new(key)))
            .map_err(|_| AuditKeyError::Form)
    }

    pub fn sign(&self, tenant: &str, checkpoint: &Checkpoint) -> Hash {
        mac(self.0.as_slice(), &said(tenant, checkpoint)).finalize().into_bytes().into()
    }

    /// In constant time.
    pub fn signed(&self, tenant: &str, checkpoint: &Checkpoint, signature: &[u8]) -> bool {
        mac(self.0.as_slice(), &said(tenant, checkpoint)).verify_slice(signature).is_ok()
    }

    /// Tells whether two acts of a tenant came from one address, and nothing else: each tenant has a key of its own, and
    /// without it the 2^32 addresses of IPv4 cannot be tried. `::ffff:192.0.2.1` is `192.0.2.1`.
    pub fn ip_hash(&self, tenant: &str, address: IpAddr) -> Hash {
        let mut text = IP_TAG.to_vec();
        put(&mut text, Some(tenant.as_bytes()));
        let own = Zeroizing::new(<[u8; 32]>::from(mac(self.0.as_slice(), &text).finalize().into_bytes()));
        let bytes = match address.to_canonical() {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        mac(own.as_slice(), &bytes).finalize().into_bytes().into()
    }
}

fn mac(key: &[u8], text: &[u8]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    mac.update(text);
    mac
}

fn said(tenant: &str, checkpoint: &Checkpoint) -> Vec<u8> {
    let mut text = CHECKPOINT_TAG.to_vec();
    put(&mut text, Some(tenant.as_bytes()));
    put(&mut text, Some(&checkpoint.from_seq.to_be_bytes()));
    put(&mut text, Some(&checkpoint.seq.to_be_bytes()));
    put(&mut text, Some(&checkpoint.hash));
    put(&mut text, checkpoint.keeps_until.map(micros).as_ref().map(|bytes| bytes.as_slice()));
    put(&mut text, Some(&micros(checkpoint.at)));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> AuditKey {
        AuditKey::from_base64("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=").expect("32 bytes")
    }

    fn hash(tenant: &str, address: &str) -> Hash {
        key().ip_hash(tenant, address.parse().expect("an address"))
    }

    #[test]
    fn a_mapped_address_is_the_address_and_tenants_share_no_hash() {
        assert_eq!(hash("a", "::ffff:192.0.2.1"), hash("a", "192.0.2.1"));
        assert_eq!(hash("a", "2001:db8::1"), hash("a", "2001:0db8:0:0::1"));
        assert_ne!(hash("a", "192.0.2.1"), hash("b", "192.0.2.1"));
        assert_ne!(hash("a", "192.0.2.1"), hash("a", "192.0.2.2"));
        let other = AuditKey::from_base64("AQECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=").expect("32 bytes");
        assert_ne!(other.ip_hash("a", IpAddr::from([192, 0, 2, 1])), hash("a", "192.0.2.1"));
    }

    #[test]
    fn every_part_of_a_checkpoint_is_signed() {
        let at = DateTime::from_timestamp(1_700_000_000, 0).expect("a time");
        let good = Checkpoint { from_seq: 3, seq: 9, hash: [7; 32], keeps_until: Some(at), at };
        let signature = key().sign("a", &good);
        assert!(key().signed("a", &good, &signature));
        assert!(!key().signed("b", &good, &signature));
        for changed in [
            Checkpoint { from_seq: 2, ..good.clone() },
            Checkpoint { seq: 8, ..good.clone() },
            Checkpoint { hash: [8; 32], ..good.clone() },
            Checkpoint { keeps_until: None, ..good.clone() },
            Checkpoint { at: at + chrono::Duration::microseconds(1), ..good.clone() },
        ] {
            assert!(!key().signed("a", &changed, &signature), "{changed:?}");
        }
    }

    #[test]
    fn a_key_of_another_length_is_refused_and_none_is_printed() {
        for bad in ["", "AAEC", "not base64!"] {
            assert_eq!(AuditKey::from_base64(bad).unwrap_err(), AuditKeyError::Form);
        }
        assert_eq!(format!("{:?}", key()), "AuditKey([redacted])");
    }
}

//! Secrets at rest: sealed values, bound to the place where they stand.
//!
//! A value goes through [`field::seal`] under a [`DataKey`] and comes out as RV1, whose header says which version of whose
//! key it needs: [`Header::read`] finds the key, [`field::open`] opens. `FORMAT.md` beside this file is the specification.
//!
//! Beside it stands the first form, RV0, under one [`RootKey`]: `b"RV0"`, 12 bytes of random nonce, ciphertext with its
//! 16-byte tag, AES-256-GCM. The tag covers the header and the [`Place`]. The third byte of a sealed value (`'0'`, or a
//! number) tells the two apart. Bound of RV0: random 96-bit nonces are safe for 2^32 values under one key (NIST SP
//! 800-38D, 8.3).
//!
//! Nothing here keeps keys, chooses one or asks a provider for one; randomness is passed in.
pub mod aad;
pub mod blind;
pub mod field;
#[cfg(any(test, fuzzing))]
#[allow(clippy::missing_panics_doc, reason = "a panic is what a fuzz target says")]
pub mod fuzzing;
pub mod key;
#[cfg(feature = "program")]
pub mod keyring;
#[cfg(feature = "program")]
pub mod keystore;
pub mod legacy;
#[cfg(feature = "program")]
pub mod placement;
pub mod provider;
pub mod selfcheck;
pub mod stream;
pub mod text;

#[cfg(test)]
mod nist_tests;
#[cfg(test)]
mod salamander_tests;

pub use aad::Place;
use aes_gcm::{
    Aes256Gcm, KeyInit,
    aead::{Aead, Payload},
};
use base64::{Engine, prelude::BASE64_STANDARD};
pub use field::{Header, KeyScope, Purpose};
pub use key::DataKey;
#[cfg(feature = "program")]
pub use keyring::{Keyring, KeyringError};
pub use selfcheck::selfcheck;
use zeroize::Zeroizing;

const HEADER: &[u8; 3] = b"RV0";
const NONCE_BYTES: usize = 12;

/// Why a value was not sealed or opened. All that has to do with a sealed value reads the same, so that nobody outside
/// learns what was wrong with it; [`SealError::reason`] is for our own log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    #[error("the root key must be 32 bytes in base64; make one with `openssl rand -base64 32`")]
    Key,
    #[error("the plaintext is too long to be sealed as one value")]
    TooLong,
    /// Not the bytes of a sealed value; says what is wrong with them.
    #[error("{REFUSED}")]
    Form(&'static str),
    /// Sealed by a later format than this program knows, or its header was changed.
    #[error("{REFUSED}")]
    Format(u8),
    /// Another suite than the reader expects: a stream where a field should be, or one of later days.
    #[error("{REFUSED}")]
    Suite(u8),
    /// The key, the header or the place is not the one that it was sealed with.
    #[error("{REFUSED}")]
    Commitment,
    /// Key, header and place are right, and the bytes behind them were changed.
    #[error("{REFUSED}")]
    Tag,
    /// A form that does not tell the two apart does not open.
    #[error("{REFUSED}")]
    Open,
}

const REFUSED: &str = "the sealed value does not open: another key, another place, or changed bytes";

impl SealError {
    /// The class of the reason, for the log.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Key => "no usable key",
            Self::TooLong => "too long",
            Self::Form(_) => "not a sealed value",
            Self::Format(_) => "unknown format version",
            Self::Suite(_) => "unknown suite",
            Self::Commitment => "wrong key or wrong row",
            Self::Tag => "damaged bytes",
            Self::Open => "wrong key, wrong row or damaged bytes",
        }
    }
}

/// The key that seals RV0. Zeroized on drop by the cipher; never printed.
#[derive(Clone)]
pub struct RootKey(Aes256Gcm);

impl std::fmt::Debug for RootKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RootKey([redacted])")
    }
}

impl RootKey {
    /// From 32 bytes in standard base64.
    pub fn from_base64(text: &str) -> Result<Self, SealError> {
        let bytes = Zeroizing::new(BASE64_STANDARD.decode(text.trim()).map_err(|_| SealError::Key)?);
        Aes256Gcm::new_from_slice(&bytes).map(Self).map_err(|_| SealError::Key)
    }

    /// Seals `plain` to its place, as earlier releases did: for tests of what they left behind.
    #[cfg(any(test, feature = "testing"))]
    pub fn seal(&self, place: &Place<'_>, plain: &[u8], random: &mut impl rand::Rng) -> Result<Vec<u8>, SealError> {
        let mut nonce = [0; NONCE_BYTES];
        random.fill_bytes(&mut nonce);
        let aad = [HEADER.as_slice(), &place.bytes()].concat();
        let sealed =
            self.0.encrypt(&nonce.into(), Payload { msg: plain, aad: &aad }).map_err(|_| SealError::TooLong)?;
        Ok([HEADER.as_slice(), &nonce, &sealed].concat())
    }

    pub fn open(&self, place: &Place<'_>, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let rest = sealed.strip_prefix(HEADER).ok_or(SealError::Form("the header is missing"))?;
        let (nonce, text) = rest.split_first_chunk::<NONCE_BYTES>().ok_or(SealError::Form("it is too short"))?;
        let aad = [HEADER.as_slice(), &place.bytes()].concat();
        self.0.decrypt(nonce.into(), Payload { msg: text, aad: &aad }).map(Zeroizing::new).map_err(|_| SealError::Open)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tenant::TenantId;

    fn key() -> RootKey {
        RootKey::from_base64("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=").expect("32 bytes")
    }

    #[test]
    fn a_sealed_value_opens_only_in_its_place() {
        let (a, b): (TenantId, TenantId) = ("a".parse().unwrap(), "b".parse().unwrap());
        let home = Place { tenant: &a, table: "webhook_secrets", column: "sealed", row: "1" };
        let sealed = key().seal(&home, b"hush", &mut rand::rng()).unwrap();
        assert!(!sealed.windows(4).any(|w| w == b"hush"));
        assert_eq!(key().open(&home, &sealed).unwrap().as_slice(), b"hush");
        for elsewhere in [
            Place { tenant: &b, ..home },
            Place { table: "x", ..home },
            Place { column: "x", ..home },
            Place { row: "2", ..home },
            // Same bytes in a row, other borders: only the length prefixes tell them apart.
            Place { table: "webhook_secretss", column: "ealed", ..home },
        ] {
            assert_eq!(key().open(&elsewhere, &sealed), Err(SealError::Open), "{elsewhere:?}");
        }
        for i in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[i] ^= 1;
            assert!(key().open(&home, &changed).is_err(), "byte {i}");
        }
    }

    #[test]
    fn a_key_of_wrong_form_is_refused_with_the_way_out() {
        for bad in ["", "short", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHg=="] {
            let said = RootKey::from_base64(bad).unwrap_err().to_string();
            assert!(said.contains("openssl rand -base64 32"), "{said}");
        }
        assert_eq!(format!("{:?}", key()), "RootKey([redacted])");
    }
}

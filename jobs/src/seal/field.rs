//! RV1, the form of one sealed value: a header, a commitment, AES-256-GCM under a key of its own.
//!
//! ```text
//!  0   2  "RV"
//!  2   1  format version, 0x01
//!  3   1  suite: high nibble whose key, low nibble 1 (2 is the stream, `stream`)
//!  4   4  key version, u32 BE
//!  8  24  salt, random
//! 32  32  commitment
//! 64   n  ciphertext
//!  …  16  tag
//! ```
//!
//! Key and commitment come from the data key by HKDF over purpose, header and place; the nonce is the end of the salt. So
//! no key seals two values, and the commitment, which covers all but the ciphertext, fails first when key, header or place
//! is another one: that is told apart from damaged bytes. It also binds the value to one key, which GCM alone does not.
//!
//! Which key a value needs is the caller's question, by [`Header::read`]; nothing in the header is believed before the
//! commitment stood. Nothing is compressed, and a value's length is not hidden.
use aes_gcm::{Aes256Gcm, KeyInit, aead::AeadInOut};
use rand::CryptoRng;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::{DataKey, Place, SealError};

const MAGIC: &[u8; 2] = b"RV";
const FORMAT: u8 = 1;
pub(super) const SALT_BYTES: usize = 24;
pub(super) const HEADER_BYTES: usize = 32;
const COMMITMENT_BYTES: usize = 32;
/// Header and commitment: all that stands before the ciphertext.
pub(super) const HEAD_BYTES: usize = HEADER_BYTES + COMMITMENT_BYTES;
pub(super) const TAG_BYTES: usize = 16;
/// What sealing adds to a value.
pub const OVERHEAD_BYTES: usize = HEAD_BYTES + TAG_BYTES;

/// Whose key a value is sealed under.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KeyScope {
    Tenant = 0,
    /// One person's, wrapped by the tenant's.
    Subject = 1,
    Platform = 2,
}

/// What a value is for. Two purposes never share a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// A sealed column of the app.
    Field,
    /// The signing secret of a webhook endpoint.
    Webhook,
    /// A secret that Reeve itself stores: a database's URL, a TOTP secret, the pepper of API tokens.
    Secret,
    Backup,
    Export,
    /// The payload of a sealed kind of job.
    Queue,
    /// A key under another key.
    Wrap,
}

impl Purpose {
    pub const ALL: [Self; 7] =
        [Self::Field, Self::Webhook, Self::Secret, Self::Backup, Self::Export, Self::Queue, Self::Wrap];

    /// Where the HKDF info begins. None is the beginning of another, and a header of fixed length follows.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Field => "reeve/field/v1",
            Self::Webhook => "reeve/webhook/v1",
            Self::Secret => "reeve/secret/v1",
            Self::Backup => "reeve/backup/v1",
            Self::Export => "reeve/export/v1",
            Self::Queue => "reeve/queue/v1",
            Self::Wrap => "reeve/wrap/v1",
        }
    }
}

/// How the bytes after the head are sealed: the low nibble of the suite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Suite {
    Field = 1,
    Stream = 2,
}

/// Which key a sealed value needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Header {
    pub scope: KeyScope,
    /// Of that tenant's, subject's or the platform's key.
    pub version: u32,
}

impl Header {
    /// What a sealed field says of itself. Unproven until it opens.
    pub fn read(sealed: &[u8]) -> Result<Self, SealError> {
        let header = Self::parse(sealed, Suite::Field)?;
        if sealed.len() < OVERHEAD_BYTES { Err(SealError::Form("it is too short")) } else { Ok(header) }
    }

    pub(super) fn parse(sealed: &[u8], wanted: Suite) -> Result<Self, SealError> {
        let head = sealed.first_chunk::<HEAD_BYTES>().ok_or(SealError::Form("it is too short"))?;
        let [r, v, format, suite, a, b, c, d, ..] = *head;
        if [r, v] != *MAGIC {
            return Err(SealError::Form("the header is missing"));
        }
        if format != FORMAT {
            return Err(SealError::Format(format));
        }
        if suite & 0x0f != wanted as u8 {
            return Err(SealError::Suite(suite));
        }
        let scope = match suite >> 4 {
            0 => KeyScope::Tenant,
            1 => KeyScope::Subject,
            2 => KeyScope::Platform,
            _ => return Err(SealError::Suite(suite)),
        };
        Ok(Self { scope, version: u32::from_be_bytes([a, b, c, d]) })
    }

    pub(super) fn bytes(self, suite: Suite, salt: &[u8; SALT_BYTES]) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[..2].copy_from_slice(MAGIC);
        out[2] = FORMAT;
        out[3] = (self.scope as u8) << 4 | suite as u8;
        out[4..8].copy_from_slice(&self.version.to_be_bytes());
        out[8..].copy_from_slice(salt);
        out
    }
}

/// The cipher of one message, and what commits to it.
pub(super) struct Message {
    pub(super) cipher: Aes256Gcm,
    pub(super) commitment: [u8; COMMITMENT_BYTES],
    /// The place, as the tag covers it.
    pub(super) context: Vec<u8>,
}

impl Message {
    /// For a new message with this header.
    pub(super) fn new(key: &DataKey, purpose: Purpose, header: &[u8; HEADER_BYTES], place: &Place<'_>) -> Self {
        let context = place.bytes();
        let derived = key.expand::<64>(&[purpose.label().as_bytes(), header, &context]);
        let mut commitment = [0; COMMITMENT_BYTES];
        commitment.copy_from_slice(&derived[32..]);
        let cipher = Aes256Gcm::new_from_slice(&derived[..32])
            // The slice has the length of the key.
            .unwrap_or_else(|_| unreachable!("AES-256 takes 32 bytes"));
        Self { cipher, commitment, context }
    }

    /// For the message that begins with `head`: only if key, purpose, header and place are those it was sealed with.
    pub(super) fn proven(
        key: &DataKey,
        purpose: Purpose,
        head: &[u8; HEAD_BYTES],
        place: &Place<'_>,
    ) -> Result<Self, SealError> {
        let mut header = [0; HEADER_BYTES];
        header.copy_from_slice(&head[..HEADER_BYTES]);
        let message = Self::new(key, purpose, &header, place);
        // In constant time: else an attacker with many tries learns the commitment byte by byte.
        if bool::from(message.commitment.ct_eq(&head[HEADER_BYTES..])) {
            Ok(message)
        } else {
            Err(SealError::Commitment)
        }
    }
}

/// The nonce of a field: the last 12 bytes of the header, which end the salt.
fn nonce(header: &[u8]) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce.copy_from_slice(&header[HEADER_BYTES - 12..HEADER_BYTES]);
    nonce
}

/// Seals one value to its purpose and place. An empty value is sealed like any other.
pub fn seal(
    key: &DataKey,
    header: Header,
    purpose: Purpose,
    place: &Place<'_>,
    plain: &[u8],
    random: &mut (impl CryptoRng + ?Sized),
) -> Result<Vec<u8>, SealError> {
    let mut salt = [0; SALT_BYTES];
    random.fill_bytes(&mut salt);
    let header = header.bytes(Suite::Field, &salt);
    let message = Message::new(key, purpose, &header, place);
    let mut out = Vec::with_capacity(plain.len() + OVERHEAD_BYTES);
    out.extend_from_slice(&header);
    out.extend_from_slice(&message.commitment);
    out.extend_from_slice(plain);
    let body = out.split_at_mut(HEAD_BYTES).1;
    let tag = message
        .cipher
        .encrypt_inout_detached(&nonce(&header).into(), &message.context, body.into())
        .map_err(|_| SealError::TooLong)?;
    out.extend_from_slice(&tag);
    Ok(out)
}

/// Opens one value in its place. `key` is the one that [`Header::read`] names.
pub fn open(
    key: &DataKey,
    purpose: Purpose,
    place: &Place<'_>,
    sealed: &[u8],
) -> Result<Zeroizing<Vec<u8>>, SealError> {
    Header::read(sealed)?;
    let (head, rest) = sealed.split_first_chunk::<HEAD_BYTES>().ok_or(SealError::Form("it is too short"))?;
    let (body, tag) = rest.split_last_chunk::<TAG_BYTES>().ok_or(SealError::Form("it is too short"))?;
    let message = Message::proven(key, purpose, head, place)?;
    let mut plain = Zeroizing::new(body.to_vec());
    message
        .cipher
        .decrypt_inout_detached(&nonce(head).into(), &message.context, plain.as_mut_slice().into(), tag.into())
        .map_err(|_| SealError::Tag)?;
    Ok(plain)
}

#[cfg(test)]
#[path = "field_tests.rs"]
mod tests;

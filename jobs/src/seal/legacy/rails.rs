//! Values of Active Record encryption (Rails 7.0 and later), as its JSON serializer stores them.
//!
//! `{"p":ciphertext,"h":{"iv":…,"at":tag}}`, strict base64, AES-256-GCM without AAD. More headers: `k`, the key of an
//! envelope, itself such a message under a primary key; `i`, the first four hex digits of the SHA-1 of the key; `c`, the
//! plaintext is compressed with zlib (Rails does that above 140 bytes); `e`, its encoding. Each primary key is made from a
//! passphrase by PBKDF2-HMAC (SHA-1 up to Rails 7.0, SHA-256 from 7.1 on), 65,536 rounds, with `key_derivation_salt`. A
//! deterministic attribute is stored in the same form, under the key made from `deterministic_key`.
//!
//! Keys with an `i` are tried where it fits, and all where there is none, as Rails does. Not read here: the MessagePack
//! serializer, custom ciphers, and texts of encodings other than UTF-8, which Reeve would have to transcode.
use base64::{Engine, prelude::BASE64_STANDARD};
use hmac::{EagerHash, Hmac, KeyInit, Mac};
use miniz_oxide::inflate::decompress_to_vec_zlib_with_limit;
use serde::Deserialize;
use sha1::{Digest, Sha1};
use sha2::Sha256;
use zeroize::Zeroizing;

use super::{LegacyError, gcm};
use crate::seal::DataKey;

/// `ActiveSupport::KeyGenerator`'s, which Active Record encryption does not change.
const ROUNDS: u32 = 1 << 16;
/// No text column of an app holds more; what claims to inflate to more is refused, and not held in memory.
const INFLATED_MAX: usize = 64 << 20;

/// `config.active_record.encryption.hash_digest_class`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hash {
    Sha1,
    Sha256,
}

/// The key that Rails makes from a `primary_key` or `deterministic_key`. Takes some ten milliseconds.
#[must_use]
pub fn derived(passphrase: &str, key_derivation_salt: &str, hash: Hash) -> DataKey {
    let (password, salt) = (passphrase.as_bytes(), key_derivation_salt.as_bytes());
    DataKey::from_bytes(match hash {
        Hash::Sha1 => pbkdf2::<Sha1, 32>(password, salt, ROUNDS),
        Hash::Sha256 => pbkdf2::<Sha256, 32>(password, salt, ROUNDS),
    })
}

/// The keys that values may be sealed under.
#[derive(Debug, Default)]
pub struct Keys(Vec<(String, DataKey)>);

impl Keys {
    /// Adds one that is tried after those before it.
    pub fn add(&mut self, key: DataKey) {
        let id = Sha1::digest(key.reveal())[..2].iter().map(|byte| format!("{byte:02x}")).collect();
        self.0.push((id, key));
    }

    pub fn open(&self, stored: &[u8]) -> Result<Zeroizing<Vec<u8>>, LegacyError> {
        let message: Message =
            serde_json::from_slice(stored).map_err(|_| LegacyError::Form("it is not the JSON of a message"))?;
        let header = &message.h;
        if let Some(encoding) = header.e.as_deref().map(decoded).transpose()?
            && !["UTF-8", "ASCII-8BIT", "BINARY", "US-ASCII"].iter().any(|known| known.as_bytes() == encoding)
        {
            return Err(LegacyError::Unsupported("its text is in another encoding than UTF-8"));
        }
        let plain = match &header.k {
            None => self.open_part(&message.part()?, header.i.as_deref())?,
            Some(envelope) => {
                let bytes = self.open_part(&envelope.part()?, header.i.as_deref())?;
                let bytes = <[u8; 32]>::try_from(bytes.as_slice()).map(Zeroizing::new);
                let key = bytes.map_err(|_| LegacyError::Form("the key of its envelope has not 32 bytes"))?;
                message.part()?.open(&DataKey::from_bytes(key))?
            }
        };
        if header.c == Some(true) { inflate(&plain) } else { Ok(plain) }
    }

    fn open_part(&self, part: &Part, id: Option<&str>) -> Result<Zeroizing<Vec<u8>>, LegacyError> {
        let id = id.map(decoded).transpose()?;
        let fits = |known: &str| id.as_ref().is_none_or(|id| id.as_slice() == known.as_bytes());
        let mut keys = self.0.iter().filter(|(known, _)| fits(known)).peekable();
        if keys.peek().is_none() {
            return Err(LegacyError::Form("no key was given that it names"));
        }
        keys.find_map(|(_, key)| part.open(key).ok()).ok_or(LegacyError::Open)
    }
}

/// The fields that are read; others may stand beside them. A field that stands twice is refused by serde.
#[derive(Deserialize)]
struct Message {
    p: String,
    h: Headers,
}

#[derive(Deserialize)]
struct Headers {
    iv: String,
    at: String,
    k: Option<Box<Envelope>>,
    i: Option<String>,
    c: Option<bool>,
    e: Option<String>,
}

#[derive(Deserialize)]
struct Envelope {
    p: String,
    h: EnvelopeHeaders,
}

#[derive(Deserialize)]
struct EnvelopeHeaders {
    iv: String,
    at: String,
}

impl Message {
    fn part(&self) -> Result<Part, LegacyError> {
        Part::new(&self.p, &self.h.iv, &self.h.at)
    }
}

impl Envelope {
    fn part(&self) -> Result<Part, LegacyError> {
        Part::new(&self.p, &self.h.iv, &self.h.at)
    }
}

/// What one key opens.
struct Part {
    nonce: [u8; 12],
    /// Ciphertext and tag.
    body: Vec<u8>,
}

impl Part {
    fn new(payload: &str, nonce: &str, tag: &str) -> Result<Self, LegacyError> {
        let nonce = <[u8; 12]>::try_from(decoded(nonce)?.as_slice());
        let tag = decoded(tag)?;
        // OpenSSL takes a shorter tag for good, which would be easy to forge.
        if tag.len() != 16 {
            return Err(LegacyError::Form("its tag has not 16 bytes"));
        }
        let body = [decoded(payload)?.as_slice(), &tag].concat();
        Ok(Self { nonce: nonce.map_err(|_| LegacyError::Form("its iv has not 12 bytes"))?, body })
    }

    fn open(&self, key: &DataKey) -> Result<Zeroizing<Vec<u8>>, LegacyError> {
        gcm(key, &self.nonce, b"", &self.body)
    }
}

fn decoded(text: &str) -> Result<Vec<u8>, LegacyError> {
    BASE64_STANDARD.decode(text).map_err(|_| LegacyError::Form("a part of it is not base64"))
}

/// zlib, up to a limit.
pub(in crate::seal) fn inflate(bytes: &[u8]) -> Result<Zeroizing<Vec<u8>>, LegacyError> {
    use miniz_oxide::inflate::TINFLStatus::HasMoreOutput;
    match decompress_to_vec_zlib_with_limit(bytes, INFLATED_MAX) {
        Ok(plain) => Ok(Zeroizing::new(plain)),
        Err(error) if error.status == HasMoreOutput => {
            Err(LegacyError::Unsupported("it is compressed and has more than 64 MiB"))
        }
        Err(_) => Err(LegacyError::Form("it says that it is compressed, and is not")),
    }
}

/// PBKDF2 (RFC 8018, 5.2) with HMAC: short, and used for nothing else.
fn pbkdf2<H: EagerHash, const N: usize>(password: &[u8], salt: &[u8], rounds: u32) -> Zeroizing<[u8; N]>
where
    Hmac<H>: Mac + KeyInit + Clone,
{
    let mac = <Hmac<H> as KeyInit>::new_from_slice(password)
        // RFC 2104 takes keys of any length.
        .unwrap_or_else(|_| unreachable!("HMAC takes any key"));
    let prf = |parts: &[&[u8]]| {
        let mut mac = mac.clone();
        parts.iter().for_each(|part| mac.update(part));
        mac.finalize().into_bytes()
    };
    let mut out = Zeroizing::new([0; N]);
    let block_bytes = prf(&[]).len();
    for (number, block) in (1u32..).zip(out.chunks_mut(block_bytes)) {
        let mut last = prf(&[salt, &number.to_be_bytes()]);
        let mut sum = last.clone();
        for _ in 1..rounds {
            last = prf(&[&last]);
            sum.iter_mut().zip(&last).for_each(|(sum, byte)| *sum ^= byte);
        }
        block.copy_from_slice(&sum[..block.len()]);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 6070; the last one needs a second block.
    #[test]
    fn pbkdf2_gives_what_the_rfc_says() {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let made = pbkdf2::<Sha1, 20>(b"password", b"salt", 4096);
        assert_eq!(hex(made.as_slice()), "4b007901b765489abead49d926f721d065a429c1");
        let made = pbkdf2::<Sha1, 25>(b"passwordPASSWORDpassword", b"saltSALTsaltSALTsaltSALTsaltSALTsalt", 4096);
        assert_eq!(hex(made.as_slice()), "3d2eec4fe41c849b80c8d83662c0e44a8b291a964cf2f07038");
        let made = pbkdf2::<Sha256, 32>(b"passwd", b"salt", 1);
        assert_eq!(hex(made.as_slice()), "55ac046e56e3089fec1691c22544b605f94185216dde0465e68b9d57c20dacbc");
    }

    #[test]
    fn what_inflates_without_end_is_refused() {
        let bomb = miniz_oxide::deflate::compress_to_vec_zlib(&vec![0; INFLATED_MAX + 1], 1);
        assert!(bomb.len() < 1 << 20);
        assert_eq!(inflate(&bomb).map(|_| ()).expect_err("64 MiB and one").reason(), "not supported");
        let small = miniz_oxide::deflate::compress_to_vec_zlib(b"canary", 6);
        assert_eq!(inflate(&small).expect("it is whole").as_slice(), b"canary");
        for length in 0..small.len() {
            assert!(inflate(&small[..length]).is_err(), "{length} bytes of {}", small.len());
        }
    }
}

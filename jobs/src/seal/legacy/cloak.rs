//! Values of the Elixir library cloak (module `Cloak.Ciphers.AES.GCM`), which cloak_ecto stores in `binary` columns.
//!
//! ```text
//!  1  0x01
//!  1  length of the tag: below 128, or 0x80 + how many bytes of length follow (big endian, as in DER)
//!  n  the cipher's tag, as configured: it names the key
//!  v  IV, 12 or 16 bytes: configured as `iv_length`, 16 unless told
//! 16  the GCM tag
//!  …  ciphertext
//! ```
//!
//! The AAD is the text `AES256GCM`. Which length the IV has cannot be seen in a value, so it is configured here as well.
//! The other modules of cloak (AES.CTR, and what it calls deprecated) authenticate nothing, or were left behind by its
//! authors; they are not read here.
use aes_gcm::{
    Aes256Gcm, AesGcm, KeyInit,
    aead::{AeadInOut, array::typenum::U16},
    aes::Aes256,
};
use zeroize::Zeroizing;

use super::LegacyError;
use crate::seal::DataKey;

const AAD: &[u8] = b"AES256GCM";
const GCM_TAG_BYTES: usize = 16;

/// `iv_length` of a cipher.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Iv {
    Twelve,
    Sixteen,
}

/// One entry of a vault's `ciphers`.
#[derive(Debug)]
pub struct Cipher {
    /// As configured, `AES.GCM.V1` for example.
    pub tag: Vec<u8>,
    pub iv: Iv,
    pub key: DataKey,
}

/// A vault's ciphers. A value is opened by the ones that have its tag.
#[derive(Debug)]
pub struct Ciphers(pub Vec<Cipher>);

/// A value taken apart as far as it can be without its cipher.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parts<'a> {
    pub tag: &'a [u8],
    /// IV, GCM tag, ciphertext.
    pub body: &'a [u8],
}

impl<'a> Parts<'a> {
    pub fn read(stored: &'a [u8]) -> Result<Self, LegacyError> {
        const SHORT: LegacyError = LegacyError::Form("it ends inside of its tag");
        let (&[kind, first], rest) = stored.split_first_chunk::<2>().ok_or(SHORT)?;
        if kind != 1 {
            return Err(LegacyError::Form("it does not begin with a tag"));
        }
        let (length, rest) = match first {
            0..=127 => (usize::from(first), rest),
            // A tag is a name; four bytes of length are more than any has.
            129..=132 => {
                let (length, rest) = rest.split_at_checked(usize::from(first - 128)).ok_or(SHORT)?;
                (length.iter().fold(0usize, |sum, byte| sum << 8 | usize::from(*byte)), rest)
            }
            _ => return Err(LegacyError::Form("its tag has no length that makes sense")),
        };
        let (tag, body) = rest.split_at_checked(length).ok_or(SHORT)?;
        Ok(Self { tag, body })
    }
}

impl Ciphers {
    pub fn open(&self, stored: &[u8]) -> Result<Zeroizing<Vec<u8>>, LegacyError> {
        let parts = Parts::read(stored)?;
        let mut error = LegacyError::Form("no cipher was given for its tag");
        for cipher in self.0.iter().filter(|cipher| cipher.tag == parts.tag) {
            match cipher.open(parts.body) {
                Ok(plain) => return Ok(plain),
                Err(failed) => error = failed,
            }
        }
        Err(error)
    }
}

impl Cipher {
    fn open(&self, body: &[u8]) -> Result<Zeroizing<Vec<u8>>, LegacyError> {
        match self.iv {
            Iv::Twelve => decrypt::<_, 12>(&Aes256Gcm::new(self.key.reveal().into()), body),
            Iv::Sixteen => decrypt::<_, 16>(&AesGcm::<Aes256, U16>::new(self.key.reveal().into()), body),
        }
    }
}

fn decrypt<C: AeadInOut, const IV: usize>(cipher: &C, body: &[u8]) -> Result<Zeroizing<Vec<u8>>, LegacyError> {
    const SHORT: LegacyError = LegacyError::Form("it is too short");
    let (iv, rest) = body.split_first_chunk::<IV>().ok_or(SHORT)?;
    let (tag, text) = rest.split_first_chunk::<GCM_TAG_BYTES>().ok_or(SHORT)?;
    let (Ok(iv), Ok(tag)) = (iv.as_slice().try_into(), tag.as_slice().try_into()) else { return Err(SHORT) };
    let mut plain = Zeroizing::new(text.to_vec());
    cipher.decrypt_inout_detached(iv, AAD, plain.as_mut_slice().into(), tag).map_err(|_| LegacyError::Open)?;
    Ok(plain)
}

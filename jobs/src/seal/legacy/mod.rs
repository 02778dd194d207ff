//! Sealed values of other makers, to be read once and sealed as RV1: `key.adopt` goes through [`Reader`].
//!
//! Each reader takes a stored value and gives the plaintext, or says why not. Nothing here writes these forms. None of
//! them binds a value to its row (but RV0), so a value that was copied to another row before it was adopted opens there.
//! Nor do they commit to their key: where several keys are given, the first that opens wins, as with their makers.
//!
//! | form | where it comes from |
//! | --- | --- |
//! | [`Reader::Plain`] | a column that was never sealed |
//! | [`Reader::NonceFirst`] | `nonce ‖ ciphertext ‖ tag`, what most hand-written code stores |
//! | [`Reader::Rv0`] | Reeve's first form |
//! | [`Reader::Rails`] | Active Record encryption ([`rails`]) |
//! | [`Reader::Cloak`] | cloak and cloak_ecto ([`cloak`]) |
//!
//! A value of Vault's or OpenBao's transit engine is only taken apart here ([`vault`]): what opens it is the server.
pub mod cloak;
pub mod rails;
pub mod vault;

use aes_gcm::{
    Aes256Gcm, KeyInit,
    aead::{Aead, Payload},
};
use zeroize::Zeroizing;

use super::{DataKey, Place, RootKey, SealError};

/// Why a value of another maker does not open. As with [`SealError`], one message outside and [`LegacyError::reason`]
/// for the log, but for what the operator must know to go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LegacyError {
    #[error("the value does not open: not of this form, another key, or changed bytes")]
    Form(&'static str),
    #[error("the value does not open: not of this form, another key, or changed bytes")]
    Open,
    #[error("the value cannot be adopted: {0}")]
    Unsupported(&'static str),
}

impl LegacyError {
    /// The class of the reason, for the log.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Form(_) => "not of this form",
            Self::Open => "wrong key or damaged bytes",
            Self::Unsupported(_) => "not supported",
        }
    }
}

impl From<SealError> for LegacyError {
    fn from(error: SealError) -> Self {
        if let SealError::Form(what) = error { Self::Form(what) } else { Self::Open }
    }
}

/// How the values of one column were sealed, with the keys that open them.
#[derive(Debug)]
pub enum Reader {
    Plain,
    NonceFirst { key: DataKey, aad: Vec<u8> },
    Rv0(Box<RootKey>),
    Rails(rails::Keys),
    Cloak(cloak::Ciphers),
}

impl Reader {
    /// The plaintext of a stored value. `place` is where it stands, which only RV0 was bound to.
    pub fn open(&self, place: &Place<'_>, stored: &[u8]) -> Result<Zeroizing<Vec<u8>>, LegacyError> {
        match self {
            Self::Plain => Ok(Zeroizing::new(stored.to_vec())),
            Self::NonceFirst { key, aad } => nonce_first(key, aad, stored),
            Self::Rv0(key) => Ok(key.open(place, stored)?),
            Self::Rails(keys) => keys.open(stored),
            Self::Cloak(ciphers) => ciphers.open(stored),
        }
    }
}

/// `nonce (12) ‖ ciphertext ‖ tag (16)`, AES-256-GCM.
pub fn nonce_first(key: &DataKey, aad: &[u8], stored: &[u8]) -> Result<Zeroizing<Vec<u8>>, LegacyError> {
    let (nonce, body) = stored.split_first_chunk::<12>().ok_or(LegacyError::Form("it is too short"))?;
    if body.len() < 16 {
        return Err(LegacyError::Form("it is too short"));
    }
    gcm(key, nonce, aad, body)
}

/// AES-256-GCM with a 96-bit nonce, the tag behind the ciphertext.
fn gcm(key: &DataKey, nonce: &[u8; 12], aad: &[u8], body: &[u8]) -> Result<Zeroizing<Vec<u8>>, LegacyError> {
    let opened = Aes256Gcm::new(key.reveal().into()).decrypt(nonce.into(), Payload { msg: body, aad });
    opened.map(Zeroizing::new).map_err(|_| LegacyError::Open)
}

#[cfg(test)]
mod tests;

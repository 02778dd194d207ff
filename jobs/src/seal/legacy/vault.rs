//! Values of the transit engine of Vault and OpenBao: `vault:v3:` and base64.
//!
//! Only the server opens them, by the text as a whole; here one is told from other text, and its key version is read, so
//! that the job can ask for the ones of a version and stop before it sends what is no ciphertext.
use base64::{Engine, prelude::BASE64_STANDARD};

use super::LegacyError;

/// A value of a transit engine. What it holds is proven by the server alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Value<'a> {
    /// As stored: what the server is asked to decrypt or rewrap.
    pub text: &'a str,
    /// Of the transit key.
    pub version: u32,
    /// Base64 of what the server made.
    pub body: &'a str,
}

impl<'a> Value<'a> {
    pub fn read(stored: &'a [u8]) -> Result<Self, LegacyError> {
        let text = std::str::from_utf8(stored).map_err(|_| LegacyError::Form("it is not text"))?;
        let rest = text.strip_prefix("vault:v").ok_or(LegacyError::Form("it does not begin with vault:v"))?;
        let (version, body) = rest.split_once(':').ok_or(LegacyError::Form("its version has no end"))?;
        let digits = version.bytes().all(|b| b.is_ascii_digit()) && !version.starts_with('0');
        let version = version.parse().ok().filter(|_| digits).ok_or(LegacyError::Form("its version is no number"))?;
        match BASE64_STANDARD.decode(body) {
            Ok(bytes) if !bytes.is_empty() => Ok(Self { text, version, body }),
            _ => Err(LegacyError::Form("what follows its version is not base64")),
        }
    }
}

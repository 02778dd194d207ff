//! Sealed bytes as text, for columns of type text and for JSON: `rv1.` and base64url (RFC 4648, 5) without padding.
//!
//! Each value has one text: padding, spaces, the other alphabet and set bits behind the last byte are refused, so that two
//! texts that differ are two values, and a compare-and-swap on the text is one on the value. The bytes are not looked at.
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};

use super::SealError;

const PREFIX: &str = "rv1.";

/// The text of a sealed value.
#[must_use]
pub fn write(sealed: &[u8]) -> String {
    let mut out = PREFIX.to_owned();
    BASE64_URL_SAFE_NO_PAD.encode_string(sealed, &mut out);
    out
}

/// The sealed value of a text, as `write` wrote it.
pub fn read(text: &str) -> Result<Vec<u8>, SealError> {
    let body = text.strip_prefix(PREFIX).ok_or(SealError::Form("the text does not begin with rv1."))?;
    BASE64_URL_SAFE_NO_PAD
        .decode(body)
        .map_err(|_| SealError::Form("the text is not base64url without padding, or not as it is written"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_has_one_text() {
        for bytes in [&b""[..], b"\0", b"RV", &[0xfb, 0xff, 0xbf], &[255; 100]] {
            let text = write(bytes);
            assert_eq!(read(&text).as_deref(), Ok(bytes));
            assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)), "{text} needs quoting");
        }
        assert_eq!(write(&[0xfb, 0xff, 0xbf]), "rv1.-_-_");
    }

    #[test]
    fn another_text_of_the_same_bytes_is_refused() {
        assert_eq!(read("rv1.AA").as_deref(), Ok(&[0][..]));
        for bad in [
            "rv1.AA==", // padded
            "rv1.AA=",  // half so
            "rv1.AB",   // a bit set behind the last byte
            "rv1.A",    // six bits are no byte
            "rv1.+/+/", // the other alphabet
            "rv1.A A", "rv1.AA\n", " rv1.AA", "RV1.AA", "rv2.AA", "rv1AA", "AA", "", "rv1.ÄA",
        ] {
            assert!(matches!(read(bad), Err(SealError::Form(_))), "{bad:?}");
        }
    }
}

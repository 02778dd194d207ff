//! Signing a message after Standard Webhooks, version `v1`: HMAC-SHA256 over `id "." timestamp "." body`.
//!
//! Flow: a [`SigningSecret`] comes out of the sealed store (or is generated) → [`signature_header`] signs the bytes that
//! go on the wire once for each live secret, newest first, so that a receiver which still holds the old secret goes on
//! verifying while a rotation overlaps.
//!
//! The parser is stricter than some receivers' libraries: those accept secrets that others read differently or refuse
//! (the URL-safe alphabet, no padding), and a secret must mean the same bytes to all of them.
//!
//! Deliberately absent: storage, sealing, which secrets are live, and the clock: every attempt passes a fresh timestamp.

use std::fmt;

use base64::{Engine, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use rand::CryptoRng;
use sha2::Sha256;
use zeroize::Zeroizing;

/// What every secret begins with.
pub const SECRET_PREFIX: &str = "whsec_";
/// Fewest and most bytes of a secret, before base64.
pub const SECRET_BYTES_MIN: usize = 24;
pub const SECRET_BYTES_MAX: usize = 64;
const SECRET_BYTES_GENERATED: usize = 32;

/// One signing secret of one endpoint. Wiped when dropped; `Debug` shows nothing of it.
pub struct SigningSecret {
    key: Zeroizing<Vec<u8>>,
}

/// Why a text is not a signing secret. Holds no part of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SecretInvalid {
    #[error("a signing secret begins with `whsec_`: give the whole secret, prefix included")]
    MissingPrefix,
    #[error("the signing secret uses the URL-safe base64 alphabet (`-`, `_`): encode it with `+` and `/` instead")]
    UrlSafeAlphabet,
    #[error("the signing secret lacks its base64 padding: keep the `=` at its end")]
    MissingPadding,
    #[error("the signing secret is not standard base64 after `whsec_`")]
    NotBase64,
    #[error("the signing secret has {bytes} bytes: give at least {SECRET_BYTES_MIN}")]
    TooShort { bytes: usize },
    #[error("the signing secret has {bytes} bytes: give at most {SECRET_BYTES_MAX}")]
    TooLong { bytes: usize },
}

impl SigningSecret {
    /// Reads `whsec_` followed by padded standard base64 of 24 to 64 bytes.
    ///
    /// # Errors
    /// Says which rule the text breaks, without repeating any of it.
    pub fn parse(text: &str) -> Result<Self, SecretInvalid> {
        let encoded = text.strip_prefix(SECRET_PREFIX).ok_or(SecretInvalid::MissingPrefix)?;
        if encoded.contains(['-', '_']) {
            return Err(SecretInvalid::UrlSafeAlphabet);
        }
        let key = Zeroizing::new(STANDARD.decode(encoded).map_err(|fault| match fault {
            base64::DecodeError::InvalidPadding => SecretInvalid::MissingPadding,
            _ => SecretInvalid::NotBase64,
        })?);
        match key.len() {
            bytes if bytes < SECRET_BYTES_MIN => Err(SecretInvalid::TooShort { bytes }),
            bytes if bytes > SECRET_BYTES_MAX => Err(SecretInvalid::TooLong { bytes }),
            _ => Ok(Self { key }),
        }
    }

    /// Makes a new secret of 32 bytes.
    pub fn generate(rng: &mut impl CryptoRng) -> Self {
        let mut key = Zeroizing::new(vec![0; SECRET_BYTES_GENERATED]);
        rng.fill_bytes(&mut key);
        Self { key }
    }

    /// The secret as its receiver needs it, `whsec_…`. Wiped when dropped; keep it out of logs.
    pub fn reveal(&self) -> Zeroizing<String> {
        // Sized beforehand: a string that grows leaves copies behind that nobody wipes.
        let mut text = Zeroizing::new(String::with_capacity(SECRET_PREFIX.len() + self.key.len().div_ceil(3) * 4));
        text.push_str(SECRET_PREFIX);
        STANDARD.encode_string(&*self.key, &mut text);
        text
    }

    fn sign(&self, id: &str, timestamp_secs: i64, body: &[u8]) -> String {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.key).expect("HMAC takes a key of any length");
        mac.update(id.as_bytes());
        mac.update(format!(".{timestamp_secs}.").as_bytes());
        mac.update(body);
        STANDARD.encode(mac.finalize().into_bytes())
    }
}

impl fmt::Debug for SigningSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningSecret(redacted)")
    }
}

/// The value of `webhook-signature`: one `v1,<base64>` for each of `secrets` (newest first), one space between.
///
/// `id` is the value of `webhook-id` and holds no dot; `timestamp_secs` that of `webhook-timestamp`, in seconds since
/// 1970; `body` is UTF-8 and exactly what is sent. Without secrets the value is empty, which every verifier refuses.
pub fn signature_header(secrets: &[SigningSecret], id: &str, timestamp_secs: i64, body: &[u8]) -> String {
    let mut header = String::new();
    for secret in secrets {
        // A second or trailing space makes one of the common verifiers fail outright.
        if !header.is_empty() {
            header.push(' ');
        }
        header.push_str("v1,");
        header.push_str(&secret.sign(id, timestamp_secs, body));
    }
    header
}

#[cfg(test)]
mod tests {

    use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE};
    use rand::{SeedableRng, rngs::StdRng};
    use reqwest::header::HeaderMap;
    use standardwebhooks::Webhook;

    use super::*;

    const SPEC_SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const SPEC_ID: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";
    const SPEC_TIMESTAMP_SECS: i64 = 1_614_265_330;
    const SPEC_BODY: &[u8] = br#"{"test": 2432232314}"#;

    fn secret_of(bytes: usize) -> String {
        format!("{SECRET_PREFIX}{}", STANDARD.encode(vec![0xfb; bytes]))
    }

    fn foreign_verdict(secret: &SigningSecret, id: &str, timestamp_secs: i64, signature: &str, body: &[u8]) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert("webhook-id", id.parse().unwrap());
        headers.insert("webhook-timestamp", timestamp_secs.to_string().parse().unwrap());
        headers.insert("webhook-signature", signature.parse().unwrap());
        Webhook::new(&secret.reveal()).unwrap().verify(body, &headers).is_ok()
    }

    /// The foreign verifier reads the real clock, so what it verifies must be stamped by it.
    fn now_secs() -> i64 {
        reeve_jobs::clock::Clock::now(&reeve_jobs::clock::SystemClock).timestamp()
    }

    #[test]
    fn the_published_vector_comes_out_to_the_byte() {
        let secret = SigningSecret::parse(SPEC_SECRET).unwrap();
        let ours = signature_header(&[secret], SPEC_ID, SPEC_TIMESTAMP_SECS, SPEC_BODY);
        assert_eq!(ours, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        let theirs = Webhook::new(SPEC_SECRET).unwrap().sign(SPEC_ID, SPEC_TIMESTAMP_SECS, SPEC_BODY).unwrap();
        assert_eq!(ours, theirs);
    }

    #[test]
    fn a_foreign_verifier_agrees_for_every_length_of_secret_and_any_body() {
        let bodies = ["", "{}", r#"{"a":"ü€😀"}"#, "a.b.c", &"x".repeat(100_000)];
        for bytes in SECRET_BYTES_MIN..=SECRET_BYTES_MAX {
            let secret = SigningSecret::parse(&secret_of(bytes)).unwrap();
            let foreign = Webhook::new(&secret.reveal()).unwrap();
            for body in bodies {
                let theirs = foreign.sign("msg_1", 1_700_000_000, body.as_bytes()).unwrap();
                let ours = signature_header(std::slice::from_ref(&secret), "msg_1", 1_700_000_000, body.as_bytes());
                assert_eq!(ours, theirs);
            }
        }
    }

    #[test]
    fn during_a_rotation_holders_of_either_secret_verify_and_of_neither_do_not() {
        let mut rng = StdRng::seed_from_u64(1);
        let secrets = [SigningSecret::generate(&mut rng), SigningSecret::generate(&mut rng)];
        let stranger = SigningSecret::generate(&mut rng);
        let at = now_secs();
        let header = signature_header(&secrets, "msg_7", at, b"{}");
        assert!(foreign_verdict(&secrets[0], "msg_7", at, &header, b"{}"));
        assert!(foreign_verdict(&secrets[1], "msg_7", at, &header, b"{}"));
        assert!(!foreign_verdict(&stranger, "msg_7", at, &header, b"{}"));
        assert!(!foreign_verdict(&secrets[0], "msg_8", at, &header, b"{}"), "another id");
        assert!(!foreign_verdict(&secrets[0], "msg_7", at + 1, &header, b"{}"), "another time");
        assert!(!foreign_verdict(&secrets[0], "msg_7", at, &header, b"{ }"), "another body");
    }

    #[test]
    fn the_header_is_newest_first_with_one_space_between() {
        let mut rng = StdRng::seed_from_u64(2);
        let secrets: Vec<_> = (0..3).map(|_| SigningSecret::generate(&mut rng)).collect();
        let header = signature_header(&secrets, "msg_1", 1, b"{}");
        let tokens: Vec<_> = header.split(' ').collect();
        assert_eq!(tokens.len(), 3);
        for (token, secret) in tokens.iter().zip(&secrets) {
            assert_eq!(*token, format!("v1,{}", secret.sign("msg_1", 1, b"{}")));
            assert_eq!(token.matches(',').count(), 1);
        }
        assert_eq!(signature_header(&[], "msg_1", 1, b"{}"), "");
    }

    #[test]
    fn a_secret_that_libraries_read_differently_is_refused_with_the_reason() {
        let raw = [0xfb; 25];
        for (text, refused) in [
            (STANDARD.encode(raw), SecretInvalid::MissingPrefix),
            (format!("WHSEC_{}", STANDARD.encode(raw)), SecretInvalid::MissingPrefix),
            (String::new(), SecretInvalid::MissingPrefix),
            (format!("whsec_{}", URL_SAFE.encode(raw)), SecretInvalid::UrlSafeAlphabet),
            (format!("whsec_{}", STANDARD_NO_PAD.encode(raw)), SecretInvalid::MissingPadding),
            (format!("whsec_{} ", STANDARD.encode(raw)), SecretInvalid::NotBase64),
            ("whsec_secret!".to_owned(), SecretInvalid::NotBase64),
            ("whsec_".to_owned(), SecretInvalid::TooShort { bytes: 0 }),
            (secret_of(23), SecretInvalid::TooShort { bytes: 23 }),
            (secret_of(65), SecretInvalid::TooLong { bytes: 65 }),
        ] {
            assert_eq!(SigningSecret::parse(&text).err(), Some(refused), "{text}");
        }
    }

    #[test]
    fn the_limits_themselves_are_allowed_and_read_back_the_same() {
        for bytes in [24, 25, 26, 32, 63, 64] {
            let text = secret_of(bytes);
            assert_eq!(*SigningSecret::parse(&text).unwrap().reveal(), text);
        }
    }

    #[test]
    fn a_generated_secret_has_32_bytes_and_reads_back() {
        let mut rng = StdRng::seed_from_u64(3);
        let (one, two) = (SigningSecret::generate(&mut rng), SigningSecret::generate(&mut rng));
        assert_eq!(one.key.len(), 32);
        assert_ne!(one.key, two.key);
        assert_eq!(SigningSecret::parse(&one.reveal()).unwrap().key, one.key);
    }

    #[test]
    fn debug_and_errors_show_nothing_of_the_secret() {
        let secret = SigningSecret::parse(SPEC_SECRET).unwrap();
        assert_eq!(format!("{secret:?}"), "SigningSecret(redacted)");
        let fault = SigningSecret::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZI!").unwrap_err();
        assert!(!format!("{fault} {fault:?}").contains("MfKQ"));
    }
}

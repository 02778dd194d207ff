//! Passwords that PostgreSQL is never told: made here, and sent as the verifier that it stores (RFC 5802 and 7677).
//!
//! `CREATE ROLE … PASSWORD 'SCRAM-SHA-256$…'` stores the verifier as it is, so no statement, log or backup ever has the
//! password. From a verifier nobody can log in, and one of 190 random bits is not found by trying.
use base64::{Engine, prelude::BASE64_STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use rand::RngExt as _;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// Letters and digits, so it needs neither quoting in an address nor SASLprep.
const PASSWORD_CHARS: usize = 32;
/// PostgreSQL's own default. It makes weak passwords dearer to try; these are not weak.
const ITERATIONS: u32 = 4096;

type Block = Zeroizing<[u8; 32]>;

/// Zeroized on drop; never printed but by [`Password::reveal`].
pub struct Password(Zeroizing<String>);

impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Password([redacted])")
    }
}

impl Password {
    pub fn generate() -> Self {
        let random = rand::rng().sample_iter(rand::distr::Alphanumeric).take(PASSWORD_CHARS).map(char::from);
        Self(Zeroizing::new(random.collect()))
    }

    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// What PostgreSQL is to store, under a fresh salt.
    pub fn verifier(&self) -> String {
        verifier(self.0.as_bytes(), &rand::random::<[u8; 16]>(), ITERATIONS)
    }
}

/// `SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>`
fn verifier(password: &[u8], salt: &[u8], iterations: u32) -> String {
    let salted = salted(password, salt, iterations);
    let stored = Sha256::digest(hmac(&*salted, &[b"Client Key"]).as_slice());
    let server = hmac(&*salted, &[b"Server Key"]);
    let text = |bytes: &[u8]| BASE64_STANDARD.encode(bytes);
    format!("SCRAM-SHA-256${iterations}:{}${}:{}", text(salt), text(&stored), text(server.as_slice()))
}

/// `Hi` of RFC 5802: PBKDF2 for one block.
fn salted(password: &[u8], salt: &[u8], iterations: u32) -> Block {
    let mut last = hmac(password, &[salt, &1_u32.to_be_bytes()]);
    let mut all = last.clone();
    for _ in 1..iterations {
        last = hmac(password, &[last.as_slice()]);
        all.iter_mut().zip(last.iter()).for_each(|(all, last)| *all ^= last);
    }
    all
}

fn hmac(key: &[u8], parts: &[&[u8]]) -> Block {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    parts.iter().for_each(|part| mac.update(part));
    Zeroizing::new(mac.finalize().into_bytes().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The exchange of RFC 7677, section 3: what the server there proves with its key.
    #[test]
    fn the_servers_key_signs_as_in_the_rfc() {
        let salt = BASE64_STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").expect("base64");
        let verifier = verifier(b"pencil", &salt, 4096);
        let (_, server) = verifier.rsplit_once(':').expect("keys");
        let server = BASE64_STANDARD.decode(server).expect("base64");
        let nonce = "rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
        let said =
            format!("n=user,r=rOprNGfwEbeRWgbNEkqO,r={nonce},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,c=biws,r={nonce}");
        let signature = BASE64_STANDARD.encode(hmac(&server, &[said.as_bytes()]).as_slice());
        assert_eq!(signature, "6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
    }

    #[test]
    fn a_password_is_long_fresh_and_not_printed() {
        let (one, two) = (Password::generate(), Password::generate());
        assert_eq!(one.reveal().len(), PASSWORD_CHARS);
        assert!(one.reveal().chars().all(|c| c.is_ascii_alphanumeric()));
        assert_ne!(one.reveal(), two.reveal());
        assert_ne!(one.verifier(), one.verifier(), "the salt is fresh");
        assert!(!format!("{one:?}").contains(one.reveal()) && !one.verifier().contains(one.reveal()));
    }
}

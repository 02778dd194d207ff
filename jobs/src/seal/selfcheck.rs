//! Before the first value is sealed: does the cryptography of this build on this machine give the right answers, and is
//! it done by hardware?
//!
//! The known answers cover all that a value goes through: HKDF, commitment, AES-256-GCM, and its refusal of changed
//! bytes. A build for the wrong machine, or a broken one, would write values that no other program opens; so a program
//! that seals does not start without.
use base64::{Engine, prelude::BASE64_STANDARD};
use zeroize::Zeroizing;

use super::{DataKey, Place, Purpose, field};
use crate::tenant::TenantId;

/// `field` of `jobs/clients/vectors/sealed.json`, which an independent reader opens as well.
const SEALED: &str = "UlYBAQAAAAEgISIjJCUmJygpKissLS4vMDEyMzQ1Njewb6OH4U8btgbvN6P7w3ehIumPApKy3zem8Ov2rmGaZspXcd1337M8VqzPDEqmVNG9AwRYiZr0miyNXJ4BILJ1ihM=";
const PLAIN: &str = "a canary of 30 °C";

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the cryptographic self-check failed: {0}. Nothing was sealed or opened. Run the build that was made for this \
     machine; if it is that one, replace the machine"
)]
pub struct SelfCheckFailed(&'static str);

/// What does the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backend {
    /// AES by instructions of the processor: fast, and in constant time.
    pub aes_in_hardware: bool,
    /// The same for GCM's authentication.
    pub ghash_in_hardware: bool,
}

impl std::fmt::Display for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let by = |hardware| if hardware { "hardware" } else { "software" };
        write!(f, "AES by {}, GHASH by {}", by(self.aes_in_hardware), by(self.ghash_in_hardware))
    }
}

/// Tries the known answers; what works, if they are right.
pub fn selfcheck() -> Result<Backend, SelfCheckFailed> {
    answers(SEALED, PLAIN)?;
    Ok(backend())
}

fn answers(sealed: &str, plain: &str) -> Result<(), SelfCheckFailed> {
    let tenant: TenantId = "acme".parse().map_err(|_| SelfCheckFailed("the known answer has no tenant"))?;
    let row = "018f2b6e-7c1a-7000-8000-000000000001";
    let place = Place { tenant: &tenant, table: "contacts", column: "email", row };
    let key = DataKey::from_bytes(Zeroizing::new(std::array::from_fn(|i| i.to_le_bytes()[0])));
    let mut sealed = BASE64_STANDARD.decode(sealed).map_err(|_| SelfCheckFailed("the known answer is not base64"))?;
    match field::open(&key, Purpose::Field, &place, &sealed) {
        Ok(opened) if opened.as_slice() == plain.as_bytes() => {}
        Ok(_) => return Err(SelfCheckFailed("a known value opened to another plaintext")),
        Err(_) => return Err(SelfCheckFailed("a known value did not open")),
    }
    if let Some(last) = sealed.last_mut() {
        *last ^= 1;
    }
    match field::open(&key, Purpose::Field, &place, &sealed) {
        Err(_) => Ok(()),
        Ok(_) => Err(SelfCheckFailed("a changed value opened")),
    }
}

/// As the crates `aes` and `polyval` choose, at run time; a `soft` backend is how a build forbids it.
fn backend() -> Backend {
    #[cfg(target_arch = "x86_64")]
    let (aes, ghash) = (
        std::is_x86_feature_detected!("aes"),
        std::is_x86_feature_detected!("avx") && std::is_x86_feature_detected!("pclmulqdq"),
    );
    // On ARM one feature stands for both instructions.
    #[cfg(target_arch = "aarch64")]
    let (aes, ghash) = (std::arch::is_aarch64_feature_detected!("aes"), std::arch::is_aarch64_feature_detected!("aes"));
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let (aes, ghash) = (false, false);
    Backend {
        aes_in_hardware: aes && !cfg!(aes_backend = "soft"),
        ghash_in_hardware: ghash && !cfg!(polyval_backend = "soft"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_known_answers_are_right_here() {
        let backend = selfcheck().expect("this machine seals");
        let shown = backend.to_string();
        assert!(shown.starts_with("AES by ") && shown.contains("GHASH by "), "{shown}");
    }

    #[test]
    fn a_wrong_answer_is_told_with_what_to_do() {
        for (sealed, plain) in
            [(SEALED, "another"), (&SEALED[..SEALED.len() - 8], PLAIN), ("UlYB", PLAIN), ("%", PLAIN)]
        {
            let said = answers(sealed, plain).expect_err("it passed").to_string();
            assert!(said.contains("Run the build that was made for this machine"), "{said}");
        }
    }
}

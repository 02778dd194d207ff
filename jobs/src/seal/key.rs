//! The 32 secret bytes under which values are sealed, and what is derived from them.
//!
//! A data key is made at random, or comes out of a provider's unwrap; it seals nothing by itself: each message has a key
//! of its own, by HKDF. Who holds it decides how long: it is zeroized on drop, is not printed and cannot be copied.
use hkdf::Hkdf;
use rand::CryptoRng;
use sha2::Sha256;
use zeroize::Zeroizing;

/// The key of a tenant, a data subject or the platform, of one version. Its holder knows which.
pub struct DataKey(Zeroizing<[u8; Self::BYTES]>);

impl DataKey {
    pub const BYTES: usize = 32;

    /// A new key.
    pub fn random(random: &mut (impl CryptoRng + ?Sized)) -> Self {
        let mut bytes = Zeroizing::new([0; Self::BYTES]);
        random.fill_bytes(bytes.as_mut_slice());
        Self(bytes)
    }

    /// From bytes that are uniformly random: a password or a passphrase is not.
    #[must_use]
    pub fn from_bytes(bytes: Zeroizing<[u8; Self::BYTES]>) -> Self {
        Self(bytes)
    }

    /// The bytes, to be wrapped. A search for this finds every use.
    #[must_use]
    pub fn reveal(&self) -> &[u8; Self::BYTES] {
        &self.0
    }

    /// HKDF-Expand with SHA-256 (RFC 5869, 2.3): the key is uniform already, so nothing is extracted.
    pub(super) fn expand<const N: usize>(&self, info: &[&[u8]]) -> Zeroizing<[u8; N]> {
        // HKDF gives at most 255 blocks of 32 bytes.
        const { assert!(N <= 255 * 32) };
        let mut out = Zeroizing::new([0; N]);
        Hkdf::<Sha256>::from_prk(self.0.as_slice())
            .ok()
            .and_then(|hkdf| hkdf.expand_multi_info(info, out.as_mut_slice()).ok())
            // The key is as long as the hash, and the assertion above holds.
            .unwrap_or_else(|| unreachable!("HKDF takes a key of 32 bytes and gives {N}"));
        out
    }
}

impl std::fmt::Debug for DataKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DataKey([redacted])")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_new_each_time_and_never_printed() {
        let (a, b) = (DataKey::random(&mut rand::rng()), DataKey::random(&mut rand::rng()));
        assert_ne!(a.reveal(), b.reveal());
        assert_ne!(a.reveal(), &[0; 32]);
        assert_eq!(format!("{a:?}"), "DataKey([redacted])");
        assert_eq!(DataKey::from_bytes(Zeroizing::new(*a.reveal())).reveal(), a.reveal());
    }

    /// RFC 5869, A.1: its PRK, info and OKM.
    #[test]
    fn what_is_derived_is_hkdf_expand() {
        let prk = [
            0x07, 0x77, 0x09, 0x36, 0x2c, 0x2e, 0x32, 0xdf, 0x0d, 0xdc, 0x3f, 0x0d, 0xc4, 0x7b, 0xba, 0x63, 0x90, 0xb6,
            0xc7, 0x3b, 0xb5, 0x0f, 0x9c, 0x31, 0x22, 0xec, 0x84, 0x4a, 0xd7, 0xc2, 0xb3, 0xe5,
        ];
        let okm = [
            0x3c, 0xb2, 0x5f, 0x25, 0xfa, 0xac, 0xd5, 0x7a, 0x90, 0x43, 0x4f, 0x64, 0xd0, 0x36, 0x2f, 0x2a, 0x2d, 0x2d,
            0x0a, 0x90, 0xcf, 0x1a, 0x5a, 0x4c, 0x5d, 0xb0, 0x2d, 0x56, 0xec, 0xc4, 0xc5, 0xbf, 0x34, 0x00, 0x72, 0x08,
            0xd5, 0xb8, 0x87, 0x18, 0x58, 0x65,
        ];
        let key = DataKey::from_bytes(Zeroizing::new(prk));
        assert_eq!(*key.expand::<42>(&[&[0xf0, 0xf1, 0xf2], &[0xf3, 0xf4, 0xf5, 0xf6, 0xf7, 0xf8, 0xf9]]), okm);
    }
}

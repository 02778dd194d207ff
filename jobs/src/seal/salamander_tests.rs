//! One ciphertext that opens under two keys, built, and refused.
//!
//! GCM does not commit to its key: its tag is a polynomial of the ciphertext in a point that the key gives, plus a mask.
//! Whoever knows two keys chooses one block of the ciphertext so that both give the same tag (Dodis, Grubbs, Ristenpart,
//! Woodage, 2018: "invisible salamanders"). Then the same stored bytes mean one thing to who holds one key and another to
//! who holds the other, and a rotation that is told the wrong version "succeeds". RV1 commits to its key.
use aes_gcm::{
    Aes256Gcm,
    aead::{Aead, Payload},
};
use rand::Rng;
use zeroize::Zeroizing;

use super::{
    DataKey, Header, KeyScope, Place, Purpose, SealError,
    field::{self, HEAD_BYTES, HEADER_BYTES, Message, SALT_BYTES, Suite},
    legacy,
};
use crate::tenant::TenantId;

/// An element of GCM's field: the first bit of the block is the coefficient of 1.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Element(u128);

impl Element {
    const ONE: Self = Self(1 << 127);

    fn times(self, other: Self) -> Self {
        let (mut product, mut shifted) = (0, other.0);
        for bit in (0..128).rev() {
            if self.0 >> bit & 1 == 1 {
                product ^= shifted;
            }
            shifted = shifted >> 1 ^ if shifted & 1 == 1 { 0xe1 << 120 } else { 0 };
        }
        Self(product)
    }

    fn plus(self, other: Self) -> Self {
        Self(self.0 ^ other.0)
    }

    fn squared(self, times: u32) -> Self {
        (0..times).fold(self, |x, _| x.times(x))
    }

    fn power(self, exponent: usize) -> Self {
        (0..exponent).fold(Self::ONE, |product, _| product.times(self))
    }

    /// To the power of 2^128 - 2.
    fn inverse(self) -> Self {
        (1..128).fold(Self::ONE, |product, times| product.times(self.squared(times)))
    }
}

/// What a key makes of GCM under one nonce: the point, and the mask of the tag.
struct Gcm {
    point: Element,
    mask: Element,
}

impl Gcm {
    /// Found by asking the cipher for tags, as it is only reached through its public face.
    fn of(cipher: &Aes256Gcm, nonce: [u8; 12]) -> Self {
        let tag = |aad: &[u8]| {
            let tag = cipher.encrypt(&nonce.into(), Payload { msg: b"", aad }).expect("a tag");
            Element(u128::from_be_bytes(tag.try_into().expect("16 bytes")))
        };
        // The tag of nothing is the mask. A block of AAD adds itself times the point's square: the block 1 gives that
        // square, whose root is its power of 2^127.
        let square = tag(&Element::ONE.0.to_be_bytes()).plus(tag(&[0; 16]));
        Self { point: square.squared(127), mask: tag(b"") }
    }

    fn tag(&self, aad: &[u8], text: &[u8]) -> Element {
        let bits = |part: &[u8]| u128::try_from(part.len() * 8).expect("short");
        let blocks = aad.chunks(16).chain(text.chunks(16)).map(|block| {
            let mut padded = [0; 16];
            padded[..block.len()].copy_from_slice(block);
            u128::from_be_bytes(padded)
        });
        let lengths = bits(aad) << 64 | bits(text);
        let sum = blocks.chain([lengths]).fold(Element(0), |sum, block| sum.plus(Element(block)).times(self.point));
        sum.plus(self.mask)
    }
}

/// Ciphertext and tag that open under both: the block numbered `free` of `text` is chosen, the others stay.
fn for_both(ciphers: [&Aes256Gcm; 2], nonce: [u8; 12], aad: &[u8], mut text: Vec<u8>, free: usize) -> Vec<u8> {
    let [a, b] = ciphers.map(|cipher| Gcm::of(cipher, nonce));
    let exponent = text.len() / 16 - free + 1;
    let block = free * 16..free * 16 + 16;
    text[block.clone()].fill(0);
    let differ = a.tag(aad, &text).plus(b.tag(aad, &text));
    let per_block = a.point.power(exponent).plus(b.point.power(exponent));
    text[block].copy_from_slice(&differ.times(per_block.inverse()).0.to_be_bytes());
    let tag = a.tag(aad, &text);
    assert!(tag == b.tag(aad, &text), "the algebra is wrong");
    [text, tag.0.to_be_bytes().to_vec()].concat()
}

fn random_text() -> Vec<u8> {
    let mut text = vec![0; 8 * 16];
    rand::rng().fill_bytes(&mut text);
    text
}

#[test]
fn plain_gcm_opens_one_ciphertext_under_two_keys() {
    use aes_gcm::KeyInit;
    let keys = [DataKey::random(&mut rand::rng()), DataKey::random(&mut rand::rng())];
    let ciphers = [0, 1].map(|i: usize| Aes256Gcm::new(keys[i].reveal().into()));
    for (free, aad) in [(0, &b""[..]), (3, b"users.email"), (7, b"")] {
        let nonce = rand::random();
        let body = for_both([&ciphers[0], &ciphers[1]], nonce, aad, random_text(), free);
        let stored = [nonce.as_slice(), &body].concat();
        let [one, other] =
            [0, 1].map(|i: usize| legacy::nonce_first(&keys[i], aad, &stored).expect("it opens under both"));
        assert_ne!(one, other, "and to different plaintexts");
        let third = DataKey::random(&mut rand::rng());
        assert!(legacy::nonce_first(&third, aad, &stored).is_err());
    }
}

#[test]
fn rv1_opens_a_two_key_ciphertext_under_one_of_them_at_most() {
    let keys = [DataKey::random(&mut rand::rng()), DataKey::random(&mut rand::rng())];
    let tenant: TenantId = "a".parse().expect("an id");
    let place = Place { tenant: &tenant, table: "contacts", column: "email", row: "1" };
    let salt: [u8; SALT_BYTES] = rand::random();
    let header = Header { scope: KeyScope::Tenant, version: 1 }.bytes(Suite::Field, &salt);
    let [a, b] = [0, 1].map(|i: usize| Message::new(&keys[i], Purpose::Field, &header, &place));
    let nonce: [u8; 12] = *header.last_chunk().expect("a salt");
    let body = for_both([&a.cipher, &b.cipher], nonce, &a.context, random_text(), 2);
    for message in [&a, &b] {
        let payload = Payload { msg: &body, aad: &message.context };
        assert!(message.cipher.decrypt(&nonce.into(), payload).is_ok(), "the cipher alone would take it");
    }
    let open = |i: usize, commitment: &[u8]| {
        let stored = [header.as_slice(), commitment, &body].concat();
        field::open(&keys[i], Purpose::Field, &place, &stored).map(|_: Zeroizing<Vec<u8>>| ())
    };
    assert_eq!((open(0, &a.commitment), open(1, &a.commitment)), (Ok(()), Err(SealError::Commitment)));
    assert_eq!((open(0, &b.commitment), open(1, &b.commitment)), (Err(SealError::Commitment), Ok(())));
    let mut mixed = a.commitment;
    mixed[16..].copy_from_slice(&b.commitment[16..]);
    for neither in [mixed, [0; HEAD_BYTES - HEADER_BYTES]] {
        assert_eq!((open(0, &neither), open(1, &neither)), (Err(SealError::Commitment), Err(SealError::Commitment)));
    }
}

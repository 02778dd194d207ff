//! RV1 refuses whatever is not the value that was sealed, in the place that it was sealed for.
use std::collections::BTreeSet;

use super::*;
use crate::tenant::TenantId;

const HEADER: Header = Header { scope: KeyScope::Tenant, version: 7 };

fn key(byte: u8) -> DataKey {
    DataKey::from_bytes(Zeroizing::new([byte; 32]))
}

fn tenant(id: &str) -> TenantId {
    id.parse().expect("an id")
}

fn home(tenant: &TenantId) -> Place<'_> {
    Place { tenant, table: "contacts", column: "email", row: "1" }
}

fn sealed(place: &Place<'_>, plain: &[u8]) -> Vec<u8> {
    seal(&key(1), HEADER, Purpose::Field, place, plain, &mut rand::rng()).expect("sealed")
}

fn opened(place: &Place<'_>, sealed: &[u8]) -> Result<Vec<u8>, SealError> {
    open(&key(1), Purpose::Field, place, sealed).map(|plain| plain.to_vec())
}

#[test]
fn a_sealed_value_opens_to_what_it_was() {
    let tenant = tenant("a");
    for plain in [&b""[..], b"x", b"a canary in a mine", &[7; 100_000]] {
        let value = sealed(&home(&tenant), plain);
        assert_eq!(value.len(), plain.len() + OVERHEAD_BYTES);
        assert_eq!(Header::read(&value), Ok(HEADER));
        assert_eq!(opened(&home(&tenant), &value).as_deref(), Ok(plain));
        assert!(plain.len() < 4 || !value.windows(plain.len()).any(|bytes| bytes == plain));
    }
    let twice = [sealed(&home(&tenant), b"same"), sealed(&home(&tenant), b"same")];
    assert!(twice[0].windows(4).zip(twice[1].windows(4)).skip(8).all(|(a, b)| a != b));
}

#[test]
fn a_value_of_another_place_fails_by_its_commitment() {
    let (a, b) = (tenant("a"), tenant("b"));
    let here = home(&a);
    let value = sealed(&here, b"hush");
    for elsewhere in [
        Place { tenant: &b, ..here },
        Place { table: "companies", ..here },
        Place { column: "phone", ..here },
        Place { row: "2", ..here },
        Place { row: "", ..here },
        // The same bytes with other borders: the length before each part tells them apart.
        Place { table: "contactse", column: "mail", ..here },
        Place { table: "contact", column: "semail", ..here },
        Place { column: "email1", row: "", ..here },
    ] {
        assert_eq!(opened(&elsewhere, &value), Err(SealError::Commitment), "{elsewhere:?}");
    }
}

#[test]
fn a_value_of_another_purpose_or_key_fails_by_its_commitment() {
    let tenant = tenant("a");
    let place = home(&tenant);
    let value = sealed(&place, b"hush");
    for purpose in Purpose::ALL {
        let opened = open(&key(1), purpose, &place, &value).map(|plain| plain.to_vec());
        if purpose == Purpose::Field {
            assert_eq!(opened.as_deref(), Ok(&b"hush"[..]));
        } else {
            assert_eq!(opened, Err(SealError::Commitment), "{purpose:?}");
        }
    }
    // Two workers configured with different roots: the right version number, and another key behind it.
    assert_eq!(open(&key(2), Purpose::Field, &place, &value), Err(SealError::Commitment));
    let labels: BTreeSet<_> = Purpose::ALL.iter().map(|purpose| purpose.label()).collect();
    assert_eq!(labels.len(), Purpose::ALL.len());
    assert!(labels.iter().all(|a| labels.iter().all(|b| a == b || !b.starts_with(a))));
}

#[test]
fn every_flipped_bit_is_refused_with_its_reason() {
    let tenant = tenant("a");
    let value = sealed(&home(&tenant), b"hush");
    for (index, bit) in (0..value.len()).flat_map(|index| (0..8).map(move |bit| (index, bit))) {
        let mut changed = value.clone();
        changed[index] ^= 1 << bit;
        let error = opened(&home(&tenant), &changed).expect_err("a changed value opened");
        let expected = match index {
            0 | 1 => "not a sealed value",
            2 => "unknown format version",
            // The scope's nibble has three values: a flip makes another one, or none.
            3 if bit < 4 || changed[3] >> 4 > 2 => "unknown suite",
            3..64 => "wrong key or wrong row",
            _ => "damaged bytes",
        };
        assert_eq!(error.reason(), expected, "byte {index}, bit {bit}");
        assert_eq!(error.to_string(), SealError::Open.to_string(), "one message outside");
    }
}

#[test]
fn a_value_cut_anywhere_or_with_more_behind_it_is_refused() {
    let tenant = tenant("a");
    let value = sealed(&home(&tenant), b"hush");
    for length in 0..value.len() {
        let error = opened(&home(&tenant), &value[..length]).expect_err("a cut value opened");
        let expected = if length < OVERHEAD_BYTES { "not a sealed value" } else { "damaged bytes" };
        assert_eq!(error.reason(), expected, "{length} bytes");
    }
    let longer = [value.as_slice(), b"!"].concat();
    assert_eq!(opened(&home(&tenant), &longer), Err(SealError::Tag));
}

#[test]
fn formats_and_suites_of_other_days_are_refused_by_name() {
    let tenant = tenant("a");
    let value = sealed(&home(&tenant), b"hush");
    let with = |at: usize, byte: u8| {
        let mut changed = value.clone();
        changed[at] = byte;
        opened(&home(&tenant), &changed).expect_err("it opened")
    };
    for format in [0, b'0', 2, 255] {
        assert_eq!(with(2, format), SealError::Format(format));
    }
    for suite in [0x00, 0x02, 0x0f, 0x31, 0xf1] {
        assert_eq!(with(3, suite), SealError::Suite(suite));
    }
    // An earlier version of the same tenant's key: what a rollback of the row would look like with its header changed.
    for version in [0, 6, 8, u8::MAX] {
        assert_eq!(with(7, version), SealError::Commitment);
    }
}

#[test]
fn each_scope_and_version_is_in_the_header() {
    let tenant = tenant("a");
    for (scope, suite) in [(KeyScope::Tenant, 0x01), (KeyScope::Subject, 0x11), (KeyScope::Platform, 0x21)] {
        let header = Header { scope, version: 0x0102_0304 };
        let value = seal(&key(1), header, Purpose::Wrap, &home(&tenant), b"k", &mut rand::rng()).expect("sealed");
        assert_eq!(value[..8], [b'R', b'V', 1, suite, 1, 2, 3, 4]);
        assert_eq!(Header::read(&value), Ok(header));
    }
}

//! RVS1 gives back the object, and nothing that is not a proven beginning of it.
use super::*;
use crate::{seal::KeyScope, tenant::TenantId};

const HEADER: Header = Header { scope: KeyScope::Tenant, version: 3 };
const SEALED_CHUNK: usize = CHUNK_BYTES + TAG_BYTES;

fn key() -> DataKey {
    DataKey::from_bytes(Zeroizing::new([9; 32]))
}

fn tenant() -> TenantId {
    "a".parse().expect("an id")
}

fn place(tenant: &TenantId) -> Place<'_> {
    Place { tenant, table: "backups", column: "part", row: "7" }
}

/// Bytes that do not repeat from chunk to chunk.
fn object(length: usize) -> Vec<u8> {
    (0u64..).flat_map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_be_bytes()).take(length).collect()
}

fn sealed(plain: &[u8], piece: usize) -> Vec<u8> {
    let (tenant, mut out) = (tenant(), Vec::new());
    let mut sealer = Sealer::start(&key(), HEADER, Purpose::Backup, &place(&tenant), &mut rand::rng(), &mut out);
    for piece in plain.chunks(piece) {
        sealer.update(piece, &mut out).expect("sealed");
    }
    sealer.finish(&mut out).expect("sealed");
    out
}

/// What was given out, and how it ended.
fn opened(sealed: &[u8], piece: usize) -> (Vec<u8>, Result<(), SealError>) {
    let (tenant, mut out) = (tenant(), Vec::new());
    let Some((head, rest)) = sealed.split_first_chunk() else { return (out, Err(SealError::Form("no head"))) };
    let ended = Opener::start(&key(), Purpose::Backup, &place(&tenant), head).and_then(|mut opener| {
        rest.chunks(piece).try_for_each(|piece| opener.update(piece, &mut out))?;
        opener.finish(&mut out)
    });
    (out, ended)
}

fn chunks(sealed: &[u8]) -> (&[u8], Vec<&[u8]>) {
    let (head, rest) = sealed.split_at(STREAM_HEAD_BYTES);
    (head, rest.chunks(SEALED_CHUNK).collect())
}

fn refused(what: &str, whole: &[u8], sealed: &[u8]) {
    let (out, ended) = opened(sealed, 10_000);
    let error = ended.expect_err(what);
    assert!(whole.starts_with(&out), "{what}: gave out what the object does not begin with");
    assert_eq!(error.to_string(), SealError::Open.to_string(), "one message outside");
}

#[test]
fn an_object_comes_back_whatever_its_length_and_the_pieces() {
    for length in [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES, 3 * CHUNK_BYTES + 17] {
        let plain = object(length);
        for piece in [4_093, CHUNK_BYTES, usize::MAX] {
            let value = sealed(&plain, piece);
            let number = length.div_ceil(CHUNK_BYTES).max(1);
            assert_eq!(value.len(), STREAM_HEAD_BYTES + length + number * TAG_BYTES, "one form for {length}");
            assert_eq!(Header::read_stream(&value), Ok(HEADER));
            for opening in [1_021, SEALED_CHUNK, usize::MAX] {
                assert_eq!(opened(&value, opening), (plain.clone(), Ok(())), "{length} bytes by {piece} and {opening}");
            }
        }
    }
}

#[test]
fn an_object_cut_at_any_chunk_or_byte_is_not_whole() {
    let plain = object(2 * CHUNK_BYTES + 100);
    let value = sealed(&plain, usize::MAX);
    let edges = (0..3).map(|n| STREAM_HEAD_BYTES + n * SEALED_CHUNK);
    for edge in edges {
        for cut in [edge, edge + 1, edge + TAG_BYTES - 1, edge + TAG_BYTES, edge + TAG_BYTES + 1, edge + 99] {
            refused(&format!("cut after {cut}"), &plain, &value[..cut]);
        }
    }
    for cut in [value.len() - TAG_BYTES - 1, value.len() - TAG_BYTES, value.len() - 1] {
        refused(&format!("cut after {cut}"), &plain, &value[..cut]);
    }
    // Full chunks only: there the last one looks like any other.
    let plain = object(2 * CHUNK_BYTES);
    let value = sealed(&plain, usize::MAX);
    refused("cut at the border of two full chunks", &plain, &value[..STREAM_HEAD_BYTES + SEALED_CHUNK]);
    // Every length of a short one.
    let plain = object(40);
    let value = sealed(&plain, usize::MAX);
    (0..value.len()).for_each(|cut| refused(&format!("cut after {cut}"), &plain, &value[..cut]));
}

#[test]
fn chunks_left_out_repeated_or_put_in_another_order_are_refused() {
    let plain = object(3 * CHUNK_BYTES + 100);
    let value = sealed(&plain, usize::MAX);
    let (head, parts) = chunks(&value);
    for order in [
        &[1, 0, 2, 3][..],
        &[0, 2, 1, 3],
        &[0, 0, 1, 2, 3],
        &[0, 1, 2, 2, 3],
        &[0, 1, 2, 3, 3],
        &[1, 2, 3],
        &[0, 2, 3],
        &[0, 1, 3],
        &[3],
        &[0, 1, 2],
        &[3, 0, 1, 2],
    ] {
        let shuffled: Vec<_> = order.iter().fold(head.to_vec(), |all, part| [&all, parts[*part]].concat());
        refused(&format!("in the order {order:?}"), &plain, &shuffled);
    }
    // A chunk of another object under the same key, at its own number.
    let other = sealed(&plain, usize::MAX);
    let (_, others) = chunks(&other);
    refused("with a chunk of another", &plain, &[head, parts[0], others[1], parts[2], parts[3]].concat());
}

#[test]
fn bytes_behind_the_last_chunk_are_refused() {
    for length in [0, 100, CHUNK_BYTES, CHUNK_BYTES + 100] {
        let plain = object(length);
        let value = sealed(&plain, usize::MAX);
        for more in [1, TAG_BYTES, SEALED_CHUNK, 2 * SEALED_CHUNK] {
            refused(&format!("{more} bytes behind {length}"), &plain, &[value.clone(), vec![0; more]].concat());
        }
        // And a whole object, as `cat` would join them.
        refused("two in one", &plain, &[value.clone(), sealed(&plain, usize::MAX)].concat());
    }
}

#[test]
fn a_flipped_bit_is_refused_before_its_chunk_is_given_out() {
    let plain = object(CHUNK_BYTES + 100);
    let value = sealed(&plain, usize::MAX);
    let second = STREAM_HEAD_BYTES + SEALED_CHUNK;
    for index in (0..80).chain(second - 20..second + 20).chain(value.len() - 20..value.len()) {
        for bit in [0, 7] {
            let mut changed = value.clone();
            changed[index] ^= 1 << bit;
            let (out, ended) = opened(&changed, usize::MAX);
            ended.expect_err("a changed object opened");
            assert_eq!(out.len(), if index < second { 0 } else { CHUNK_BYTES }, "byte {index}, bit {bit}");
        }
    }
}

#[test]
fn an_opener_that_failed_opens_no_more() {
    let (tenant, plain) = (tenant(), object(3 * CHUNK_BYTES));
    let value = sealed(&plain, usize::MAX);
    let (head, parts) = chunks(&value);
    let head = head.try_into().expect("a head");
    let mut opener = Opener::start(&key(), Purpose::Backup, &place(&tenant), head).expect("the head is whole");
    let mut out = Vec::new();
    // The second chunk where the first should be. Whoever goes on after the error would have it tried as the second.
    assert_eq!(opener.update(&[parts[1], parts[2]].concat(), &mut out), Err(SealError::Tag));
    assert_eq!(opener.update(parts[2], &mut out), Err(SealError::Tag));
    assert_eq!(opener.finish(&mut out), Err(SealError::Tag));
    assert!(out.is_empty(), "{} bytes of an object without its beginning", out.len());
}

#[test]
fn an_object_that_was_sealed_with_an_empty_chunk_behind_a_full_one_is_refused() {
    let (tenant, plain, mut out) = (tenant(), object(CHUNK_BYTES), Vec::new());
    let mut sealer = Sealer::start(&key(), HEADER, Purpose::Backup, &place(&tenant), &mut rand::rng(), &mut out);
    sealer.update(&plain, &mut out).expect("sealed");
    // What our sealer never does, and a holder of the key could.
    sealer.seal(false, &mut out).expect("sealed");
    sealer.finish(&mut out).expect("sealed");
    refused("an empty last chunk", &plain, &out);
}

#[test]
fn a_stream_is_bound_to_its_key_purpose_and_place() {
    let (a, b): (TenantId, TenantId) = (tenant(), "b".parse().expect("an id"));
    let value = sealed(b"hush", 4);
    let (head, _) = value.split_first_chunk().expect("a head");
    let start = |key, purpose, place| Opener::start(&key, purpose, &place, head).map(|_| ());
    assert_eq!(start(key(), Purpose::Backup, place(&a)), Ok(()));
    let other = DataKey::from_bytes(Zeroizing::new([8; 32]));
    assert_eq!(start(other, Purpose::Backup, place(&a)), Err(SealError::Commitment));
    assert_eq!(start(key(), Purpose::Export, place(&a)), Err(SealError::Commitment));
    assert_eq!(start(key(), Purpose::Backup, place(&b)), Err(SealError::Commitment));
    assert_eq!(start(key(), Purpose::Backup, Place { row: "8", ..place(&a) }), Err(SealError::Commitment));
}

#[test]
fn a_stream_is_no_field_and_a_field_no_stream() {
    let tenant = tenant();
    let value = sealed(b"", 1);
    assert_eq!(Header::read(&value), Err(SealError::Suite(0x02)));
    let mut recast = value.clone();
    recast[3] = 0x01;
    let opened = super::super::field::open(&key(), Purpose::Backup, &place(&tenant), &recast);
    assert_eq!(opened.map(|_| ()), Err(SealError::Commitment), "the suite is covered");
    let field = super::super::field::seal(&key(), HEADER, Purpose::Backup, &place(&tenant), b"", &mut rand::rng());
    assert_eq!(Header::read_stream(&field.expect("sealed")), Err(SealError::Suite(0x01)));
}

#[test]
fn a_chunk_number_is_never_used_twice() {
    let (tenant, mut out) = (tenant(), Vec::new());
    let start =
        |out: &mut Vec<u8>| Sealer::start(&key(), HEADER, Purpose::Backup, &place(&tenant), &mut rand::rng(), out);
    let mut sealer = start(&mut out);
    sealer.chunks.next = Some(u32::MAX);
    sealer.update(&object(CHUNK_BYTES), &mut out).expect("there is a number left");
    let length = out.len();
    // The next byte makes the full chunk one of the middle; there is no number for the last then.
    sealer.update(b"!", &mut out).expect("the last number goes to the full chunk");
    assert_eq!(out.len(), length + SEALED_CHUNK);
    assert_eq!(sealer.update(&object(CHUNK_BYTES), &mut out), Err(SealError::TooLong));
    assert_eq!(sealer.finish(&mut out), Err(SealError::TooLong));
    // The very last number is good for the last chunk.
    let mut sealer = start(&mut out);
    sealer.chunks.next = Some(u32::MAX);
    sealer.finish(&mut out).expect("sealed");
}

#[test]
fn both_sides_hold_one_chunk() {
    let (tenant, mut out) = (tenant(), Vec::new());
    let mut sealer = Sealer::start(&key(), HEADER, Purpose::Backup, &place(&tenant), &mut rand::rng(), &mut out);
    let head = *out.first_chunk().expect("a head");
    let mut opener = Opener::start(&key(), Purpose::Backup, &place(&tenant), &head).expect("its head");
    let (plain, mut given) = (object(CHUNK_BYTES), Vec::new());
    for _ in 0..64 {
        out.clear();
        given.clear();
        sealer.update(&plain, &mut out).expect("sealed");
        opener.update(&out, &mut given).expect("opened");
        assert!(given.is_empty() || given == plain);
        assert_eq!((sealer.held.capacity(), opener.held.capacity()), (CHUNK_BYTES, SEALED_CHUNK));
    }
}

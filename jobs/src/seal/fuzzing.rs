//! What the fuzz targets of `jobs/fuzz` call, one function a parser. Each takes any bytes and must come back, having
//! checked what can be said of any input: what was refused was refused, and what was read writes the same bytes again.
//!
//! Each says whether it read something to its end, so that a test can hold that the corpus reaches that far.
//!
//! Not part of a normal build: only tests (which replay the corpus) and cargo-fuzz (`cfg(fuzzing)`) compile this.
use std::sync::LazyLock;

use zeroize::Zeroizing;

use super::{
    DataKey, Header, Place, Purpose, RootKey,
    blind::{BlindIndex, Column, IndexKey, Rule},
    field,
    legacy::{self, cloak, rails, vault},
    stream::{Opener, STREAM_HEAD_BYTES, Sealer},
    text,
};
use crate::tenant::TenantId;

type Target = fn(&[u8]) -> bool;

/// Every target by the name of its file in `jobs/fuzz/targets` and of its folder in `jobs/fuzz/corpus`.
pub const TARGETS: [(&str, Target); 9] = [
    ("field", field),
    ("stream", stream),
    ("text", text),
    ("blind", blind),
    ("nonce_first", nonce_first),
    ("rv0", rv0),
    ("rails", rails),
    ("cloak", cloak),
    ("vault", vault),
];

static TENANT: LazyLock<TenantId> = LazyLock::new(|| "acme".parse().expect("an id"));

/// The key, purpose and place of the committed vectors, so that those open when they are put into a corpus.
fn key() -> DataKey {
    DataKey::from_bytes(Zeroizing::new(std::array::from_fn(|i| i.to_le_bytes()[0])))
}

fn place() -> Place<'static> {
    let row = "018f2b6e-7c1a-7000-8000-000000000001";
    Place { tenant: &TENANT, table: "contacts", column: "email", row }
}

pub fn field(data: &[u8]) -> bool {
    let header = Header::read(data);
    let opened = field::open(&key(), Purpose::Field, &place(), data);
    assert!(header.is_ok() || opened.is_err(), "opened without a header");
    opened.map(|plain| assert_eq!(plain.len() + field::OVERHEAD_BYTES, data.len())).is_ok()
}

/// The first byte chooses the pieces. Whatever they are, the same comes out and it ends the same way; and what opens to its
/// end is what the sealer makes of it, but for the salt.
pub fn stream(data: &[u8]) -> bool {
    let Some((piece, sealed)) = data.split_first() else { return false };
    let Some((head, rest)) = sealed.split_first_chunk::<STREAM_HEAD_BYTES>() else { return false };
    let open = |piece: usize| {
        let mut out = Vec::new();
        let ended = Opener::start(&key(), Purpose::Field, &place(), head).and_then(|mut opener| {
            rest.chunks(piece).try_for_each(|piece| opener.update(piece, &mut out))?;
            opener.finish(&mut out)
        });
        (out, ended)
    };
    let (out, ended) = open(usize::MAX);
    assert_eq!((&out, &ended), (&open(usize::from(*piece) * 257 + 1).0, &open(usize::from(*piece) * 257 + 1).1));
    if ended.is_ok() {
        let header = Header::read_stream(head).expect("it opened");
        let mut again = Vec::new();
        let mut sealer = Sealer::start(&key(), header, Purpose::Field, &place(), &mut rand::rng(), &mut again);
        sealer.update(&out, &mut again).and_then(|()| sealer.finish(&mut again)).expect("it was sealed before");
        assert_eq!(again.len(), sealed.len(), "an object has one form");
    }
    ended.is_ok()
}

pub fn text(data: &[u8]) -> bool {
    assert_eq!(text::read(&text::write(data)).as_deref(), Ok(data));
    let Ok(given) = std::str::from_utf8(data) else { return false };
    let Ok(sealed) = text::read(given) else { return false };
    assert_eq!(text::write(&sealed), given, "two texts of one value");
    field(&sealed)
}

pub fn blind(data: &[u8]) -> bool {
    let read = BlindIndex::read(data).map(|index| assert_eq!(index.as_bytes(), data)).is_ok();
    let Ok(value) = std::str::from_utf8(data) else { return read };
    for rule in [Rule::Exact, Rule::Email, Rule::Phone] {
        let normalised = rule.normalised(value);
        assert_eq!(rule.normalised(&normalised), normalised, "normalised again, it changes");
        let of = Column { tenant: &TENANT, table: "contacts", column: "email", rule };
        let key = IndexKey::derive(&key(), 3, &of);
        assert_eq!(key.index(value), key.index(&normalised));
    }
    read
}

pub fn nonce_first(data: &[u8]) -> bool {
    legacy::nonce_first(&key(), b"", data).map(|plain| assert_eq!(plain.len() + 28, data.len())).is_ok()
}

pub fn rv0(data: &[u8]) -> bool {
    static KEY: LazyLock<RootKey> =
        LazyLock::new(|| RootKey::from_base64("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=").expect("32 bytes"));
    legacy::Reader::Rv0(Box::new(KEY.clone())).open(&place(), data).is_ok()
}

/// The message, and what a message says is compressed: no tag keeps the fuzzer from that.
pub fn rails(data: &[u8]) -> bool {
    let mut keys = rails::Keys::default();
    keys.add(key());
    rails::inflate(data).is_ok() || keys.open(data).is_ok()
}

pub fn cloak(data: &[u8]) -> bool {
    let Ok(parts) = cloak::Parts::read(data) else { return false };
    assert!(data.ends_with(parts.body) && parts.tag.len() + parts.body.len() + 2 <= data.len());
    let ciphers =
        [cloak::Iv::Twelve, cloak::Iv::Sixteen].map(|iv| cloak::Cipher { tag: parts.tag.to_vec(), iv, key: key() });
    cloak::Ciphers(ciphers.into()).open(data).is_ok()
}

pub fn vault(data: &[u8]) -> bool {
    let Ok(value) = vault::Value::read(data) else { return false };
    assert_eq!(value.text.as_bytes(), data);
    assert_eq!(format!("vault:v{}:{}", value.version, value.body), value.text, "two texts of one value");
    true
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, path::Path};

    use super::*;

    fn names(folder: &Path) -> BTreeSet<String> {
        let entries = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8")).collect()
    }

    #[test]
    fn the_corpus_is_replayed_and_each_parser_has_one() {
        let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
        let wanted: BTreeSet<_> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
        assert_eq!(names(&fuzz.join("corpus")), wanted);
        assert_eq!(names(&fuzz.join("targets")), wanted.iter().map(|name| format!("{name}.rs")).collect());
        for (name, target) in TARGETS {
            let folder = fuzz.join("corpus").join(name);
            let files = names(&folder);
            assert!(files.len() >= 3, "{name}: {} inputs", files.len());
            for file in files {
                let read = target(&std::fs::read(folder.join(&file)).expect("an input"));
                assert!(read || file != "value", "{name}: its value is not read to the end");
            }
        }
    }

    /// The inputs that open, cut and changed: what a fuzzer would find first, on every run of the tests.
    #[test]
    fn each_input_is_also_tried_cut_and_changed() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
        for (name, target) in TARGETS {
            let folder = corpus.join(name);
            for file in names(&folder) {
                let input = std::fs::read(folder.join(file)).expect("an input");
                let step = input.len() / 100 + 1;
                for at in (0..input.len()).step_by(step) {
                    target(&input[..at]);
                    let mut changed = input.clone();
                    changed[at] = changed[at].wrapping_add(1);
                    target(&changed);
                }
            }
        }
    }
}

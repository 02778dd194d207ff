//! The readers open what independent makers sealed (`jobs/clients/vectors/legacy.py`, Python), and refuse the rest.
use std::{collections::BTreeMap, sync::Mutex};

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::Value;

use super::{cloak::Iv, *};
use crate::tenant::TenantId;

const VECTORS: &str = include_str!("../../../clients/vectors/legacy.json");

struct Case {
    name: String,
    reader: Reader,
    place: [String; 4],
    stored: Vec<u8>,
    plain: Vec<u8>,
}

impl Case {
    fn open(&self, stored: &[u8]) -> Result<Vec<u8>, LegacyError> {
        let [tenant, table, column, row] = &self.place;
        let tenant: TenantId = tenant.parse().expect("an id");
        self.reader.open(&Place { tenant: &tenant, table, column, row }, stored).map(|plain| plain.to_vec())
    }
}

fn bytes(value: &Value) -> Vec<u8> {
    BASE64_STANDARD.decode(value.as_str().expect("text")).expect("base64")
}

fn key(value: &Value) -> DataKey {
    DataKey::from_bytes(Zeroizing::new(bytes(value).try_into().expect("32 bytes")))
}

fn texts(value: &Value) -> impl Iterator<Item = &str> {
    value.as_array().expect("a list").iter().map(|text| text.as_str().expect("text"))
}

/// Derivation is slow by design: each key is made once.
fn derived(passphrase: &str, salt: &str, hash: rails::Hash) -> DataKey {
    static MADE: Mutex<BTreeMap<String, [u8; 32]>> = Mutex::new(BTreeMap::new());
    let mut made = MADE.lock().expect("no test panics here");
    let bytes = made
        .entry(format!("{passphrase} {salt} {hash:?}"))
        .or_insert_with(|| *rails::derived(passphrase, salt, hash).reveal());
    DataKey::from_bytes(Zeroizing::new(*bytes))
}

fn reader(case: &Value) -> Reader {
    match case["reader"].as_str().expect("a reader") {
        "nonce_first" => Reader::NonceFirst { key: key(&case["key"]), aad: bytes(&case["aad"]) },
        "rv0" => Reader::Rv0(Box::new(RootKey::from_base64(case["key"].as_str().expect("text")).expect("32 bytes"))),
        "cloak" => {
            let iv = if case["iv_length"] == 12 { Iv::Twelve } else { Iv::Sixteen };
            Reader::Cloak(cloak::Ciphers(vec![cloak::Cipher { tag: bytes(&case["tag"]), iv, key: key(&case["key"]) }]))
        }
        "rails" => {
            let mut keys = rails::Keys::default();
            let hash = if case["digest"] == "sha1" { rails::Hash::Sha1 } else { rails::Hash::Sha256 };
            let salt = case["salt"].as_str().expect("text");
            texts(&case["passphrases"]).for_each(|passphrase| keys.add(derived(passphrase, salt, hash)));
            Reader::Rails(keys)
        }
        other => panic!("unknown reader {other}"),
    }
}

fn cases(wanted: &str) -> Vec<Case> {
    let all: Vec<Value> = serde_json::from_str(VECTORS).expect("JSON");
    let of = all.iter().filter(|case| case["reader"] == wanted);
    let cases: Vec<_> = of
        .map(|case| Case {
            name: case["name"].as_str().expect("a name").to_owned(),
            reader: reader(case),
            place: case.get("place").map_or_else(
                || std::array::from_fn(|_| "x".to_owned()),
                |place| texts(place).map(str::to_owned).collect::<Vec<_>>().try_into().expect("four"),
            ),
            stored: bytes(&case["stored"]),
            plain: bytes(&case["plain"]),
        })
        .collect();
    assert!(!cases.is_empty(), "no vector for {wanted}");
    cases
}

#[test]
fn values_of_other_makers_open() {
    for wanted in ["nonce_first", "rv0", "cloak", "rails"] {
        for case in cases(wanted) {
            assert_eq!(case.open(&case.stored).as_deref(), Ok(&*case.plain), "{}", case.name);
        }
    }
}

#[test]
fn binary_values_cut_or_changed_anywhere_are_refused() {
    for case in ["nonce_first", "rv0", "cloak"].into_iter().flat_map(cases) {
        for length in 0..case.stored.len() {
            case.open(&case.stored[..length]).expect_err(&case.name);
        }
        for index in 0..case.stored.len() {
            let mut changed = case.stored.clone();
            changed[index] ^= 1;
            case.open(&changed).expect_err(&case.name);
        }
        case.open(&[case.stored.as_slice(), b"!"].concat()).expect_err(&case.name);
    }
}

#[test]
fn rv0_is_bound_to_its_place_even_when_it_is_adopted() {
    let mut case = cases("rv0").remove(0);
    case.place[3] = "2".to_owned();
    assert_eq!(case.open(&case.stored), Err(LegacyError::Open));
}

#[test]
fn a_cloak_value_of_another_cipher_is_told_apart() {
    let case = cases("cloak").remove(0);
    let other = |tag: &[u8], iv, byte| {
        let key = DataKey::from_bytes(Zeroizing::new([byte; 32]));
        cloak::Ciphers(vec![cloak::Cipher { tag: tag.to_vec(), iv, key }]).open(&case.stored).map(|_| ())
    };
    assert_eq!(other(b"AES.GCM.V2", Iv::Twelve, 1).expect_err("its tag").reason(), "not of this form");
    assert_eq!(other(b"AES.GCM.V1", Iv::Twelve, 1).expect_err("its key").reason(), "wrong key or damaged bytes");
    let Reader::Cloak(ciphers) = case.reader else { unreachable!("a vector of cloak") };
    let [mut cipher] = <[_; 1]>::try_from(ciphers.0).expect("one");
    cipher.iv = Iv::Sixteen;
    assert!(cloak::Ciphers(vec![cipher]).open(&case.stored).is_err(), "the length of the IV is not guessed");
    for bad in
        [&[][..], &[1], &[2, 0], &[1, 0x80], &[1, 0x85, 0, 0, 0, 0, 0], &[1, 0x84, 255, 255, 255, 255], &[1, 255]]
    {
        assert!(cloak::Parts::read(bad).is_err(), "{bad:?}");
    }
}

/// Each change to the JSON, and the class of its refusal.
#[test]
fn a_rails_message_that_was_changed_is_refused() {
    let cases = cases("rails");
    let case = cases.iter().find(|case| case.name == "rails, sha256").expect("a vector");
    let original: Value = serde_json::from_slice(&case.stored).expect("JSON");
    let reason = |change: &dyn Fn(&mut Value)| {
        let mut changed = original.clone();
        change(&mut changed);
        case.open(changed.to_string().as_bytes()).expect_err("a changed message opened").reason()
    };
    let flipped = |text: &Value| {
        let mut changed = bytes(text);
        changed[0] ^= 1;
        Value::from(BASE64_STANDARD.encode(changed))
    };
    for part in ["iv", "at"] {
        assert_eq!(reason(&|v| v["h"][part] = flipped(&v["h"][part])), "wrong key or damaged bytes", "{part}");
        assert_eq!(reason(&|v| v["h"][part] = BASE64_STANDARD.encode([0; 11]).into()), "not of this form", "{part}");
        assert_eq!(reason(&|v| v["h"][part] = Value::Null), "not of this form", "{part}");
    }
    assert_eq!(reason(&|v| v["p"] = flipped(&v["p"])), "wrong key or damaged bytes");
    assert_eq!(reason(&|v| v["p"] = "%".into()), "not of this form");
    assert_eq!(reason(&|v| v["h"]["i"] = BASE64_STANDARD.encode("zzzz").into()), "not of this form");
    assert_eq!(reason(&|v| v["h"]["c"] = true.into()), "not of this form", "it is not compressed");
    assert_eq!(reason(&|v| v["h"]["e"] = BASE64_STANDARD.encode("Shift_JIS").into()), "not supported");
    // A message as its own envelope: what it opens to is no key.
    assert_eq!(reason(&|v| v["h"]["k"] = original.clone()), "not of this form");
    for length in 0..case.stored.len() {
        assert!(case.open(&case.stored[..length]).is_err());
    }
    let text = String::from_utf8(case.stored.clone()).expect("JSON");
    let twice = text.replacen('{', r#"{"p":"","#, 1);
    assert_eq!(case.open(twice.as_bytes()).expect_err("two payloads").reason(), "not of this form");
    assert!(!format!("{:?}", case.reader).contains("EGY8"));
}

#[test]
fn the_hash_of_another_version_of_rails_does_not_open() {
    let mut cases = cases("rails").into_iter().filter(|case| ["rails, sha1", "rails, sha256"].contains(&&*case.name));
    let (sha1, sha256) = (cases.next().expect("sha1"), cases.next().expect("sha256"));
    assert_eq!(sha1.open(&sha256.stored), Err(LegacyError::Open));
    assert_eq!(sha256.open(&sha1.stored), Err(LegacyError::Open));
}

#[test]
fn a_transit_value_is_taken_apart_and_other_text_is_not() {
    let text = "vault:v12:8SDd3WHDOjf7mq69CyCqYjBXAiQQAVZRkFM13ok481zoCmHnSeDX9vyf7w==";
    let value = vault::Value::read(text.as_bytes()).expect("a value");
    assert_eq!((value.version, value.text), (12, text));
    assert_eq!(value.body, &text["vault:v12:".len()..]);
    for bad in [
        "",
        "vault",
        "vault:v",
        "vault:v1",
        "vault:v1:",
        "vault:v:AAAA",
        "vault:v0:AAAA",
        "vault:v01:AAAA",
        "vault:v+1:AAAA",
        "vault:v-1:AAAA",
        "vault:v4294967296:AAAA",
        "vault:v1:AAA",
        "vault:v1:A A=",
        "vault:v1:AAAA\n",
        " vault:v1:AAAA",
        "Vault:v1:AAAA",
        "vault:v1:AA_-",
        "vault:v1:v1:AAAA",
    ] {
        assert!(matches!(vault::Value::read(bad.as_bytes()), Err(LegacyError::Form(_))), "{bad:?}");
    }
    assert!(vault::Value::read(b"vault:v1:\xff").is_err());
}

#[test]
fn a_plain_value_is_itself() {
    let tenant: TenantId = "a".parse().expect("an id");
    let place = Place { tenant: &tenant, table: "t", column: "c", row: "1" };
    assert_eq!(Reader::Plain.open(&place, b"as it is").expect("plain").as_slice(), b"as it is");
}

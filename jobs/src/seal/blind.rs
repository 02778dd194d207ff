//! The blind index: what stands beside a sealed column so that rows can be found by equality.
//!
//! `HMAC-SHA256(index key, normalised value)`, its first 16 bytes, stored after the version of the index key: 20 bytes. The
//! index key is derived from a data key (by HKDF over version, rule, tenant, table and column), so the same value has
//! another index in another tenant or column, and no index says anything of a field's key.
//!
//! The index has versions of its own: it is rotated by a second column or by `IN (old, new)`, apart from the sealed column.
//! Whoever reads the database sees which rows of a tenant's column are equal; nothing more, without the key. A match is a
//! filter: open the row and compare before it counts.
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use zeroize::Zeroizing;

use super::{DataKey, SealError, aad::joined};
use crate::tenant::TenantId;

const LABEL: &[u8] = b"reeve/index/v1";
/// Named one by one: languages differ in what their `trim` takes away.
const WHITE: [char; 6] = [' ', '\t', '\n', '\x0b', '\x0c', '\r'];
const MAC_BYTES: usize = 16;
/// What is stored: version, u32 BE, and 16 bytes of the MAC.
pub const INDEX_BYTES: usize = 4 + MAC_BYTES;

/// What makes two values the same. A rule is part of the key: an index made by another one never matches.
///
/// Unicode is not normalised (that would need tables which change with each edition of Unicode).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rule {
    /// Byte for byte.
    Exact,
    /// Without ASCII white space around it, and A to Z as a to z.
    Email,
    /// The digits alone, in order: ASCII, Arabic-Indic and Persian ones alike. A national number does not match the same one
    /// with its country's code.
    Phone,
}

impl Rule {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Email => "email",
            Self::Phone => "phone",
        }
    }

    /// The value as it is indexed.
    #[must_use]
    pub fn normalised(self, value: &str) -> Zeroizing<String> {
        Zeroizing::new(match self {
            Self::Exact => value.to_owned(),
            Self::Email => value.trim_matches(WHITE).to_ascii_lowercase(),
            Self::Phone => value.chars().filter_map(digit).collect(),
        })
    }
}

fn digit(c: char) -> Option<char> {
    let zero = [u32::from('0'), 0x0660, 0x06f0].into_iter().find(|zero| (*zero..*zero + 10).contains(&u32::from(c)))?;
    char::from_digit(u32::from(c) - zero, 10)
}

/// One index of one column, in one version.
#[derive(Debug, Clone, Copy)]
pub struct Column<'a> {
    pub tenant: &'a TenantId,
    pub table: &'a str,
    /// The column that the index is of, not the one that it stands in.
    pub column: &'a str,
    pub rule: Rule,
}

/// The key of one index. Zeroized on drop; never printed.
pub struct IndexKey {
    key: Zeroizing<[u8; 32]>,
    version: u32,
    rule: Rule,
}

impl std::fmt::Debug for IndexKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IndexKey").field("version", &self.version).field("rule", &self.rule).finish_non_exhaustive()
    }
}

impl IndexKey {
    /// `version` is the index's; `key` the data key that it is derived from in that version.
    #[must_use]
    pub fn derive(key: &DataKey, version: u32, of: &Column<'_>) -> Self {
        let place = joined(&[of.rule.name(), of.tenant.as_str(), of.table, of.column]);
        Self { key: key.expand::<32>(&[LABEL, &version.to_be_bytes(), &place]), version, rule: of.rule }
    }

    /// The index of a value.
    #[must_use]
    pub fn index(&self, value: &str) -> BlindIndex {
        let mut mac = Hmac::<Sha256>::new_from_slice(self.key.as_slice())
            // RFC 2104 takes keys of any length.
            .unwrap_or_else(|_| unreachable!("HMAC takes any key"));
        mac.update(self.rule.normalised(value).as_bytes());
        let mut out = [0; INDEX_BYTES];
        out[..4].copy_from_slice(&self.version.to_be_bytes());
        out[4..].copy_from_slice(&mac.finalize().into_bytes()[..MAC_BYTES]);
        BlindIndex(out)
    }
}

/// An index as it is stored. Equal ones are of equal values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlindIndex([u8; INDEX_BYTES]);

impl BlindIndex {
    pub fn read(stored: &[u8]) -> Result<Self, SealError> {
        stored.try_into().map(Self).map_err(|_| SealError::Form("a blind index has 20 bytes"))
    }

    #[must_use]
    pub fn as_bytes(&self) -> &[u8; INDEX_BYTES] {
        &self.0
    }

    /// Which version of the index's key made it.
    #[must_use]
    pub fn version(&self) -> u32 {
        let [a, b, c, d, ..] = self.0;
        u32::from_be_bytes([a, b, c, d])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> DataKey {
        DataKey::from_bytes(Zeroizing::new([byte; 32]))
    }

    #[test]
    fn equal_values_match_and_others_do_not() {
        let tenant: TenantId = "a".parse().expect("an id");
        let index = |rule, value: &str| {
            let of = Column { tenant: &tenant, table: "contacts", column: "email", rule };
            IndexKey::derive(&key(1), 1, &of).index(value)
        };
        let same = |rule, a, b| index(rule, a) == index(rule, b);
        assert!(same(Rule::Email, "  Ada@Example.COM\n", "ada@example.com"));
        assert!(!same(Rule::Email, "ada@example.com", "adb@example.com"));
        assert!(!same(Rule::Email, "ÄDA@example.com", "äda@example.com"), "only ASCII is folded, as it says");
        assert!(same(Rule::Phone, "+971 (4) 123-4567", "+97141234567"));
        assert!(same(Rule::Phone, "٩٧١٤", "۹۷۱۴") && same(Rule::Phone, "٩٧١٤", "9714"));
        assert!(!same(Rule::Phone, "041234567", "+97141234567"));
        assert!(same(Rule::Exact, "a", "a") && !same(Rule::Exact, "a", "A") && !same(Rule::Exact, "a", "a "));
        assert!(index(Rule::Exact, "a") != index(Rule::Email, "a"), "another rule is another index");
    }

    #[test]
    fn an_index_is_bound_to_its_key_version_and_column() {
        let (a, b): (TenantId, TenantId) = ("a".parse().expect("an id"), "b".parse().expect("an id"));
        let home = Column { tenant: &a, table: "contacts", column: "email", rule: Rule::Exact };
        let index = |key: &DataKey, version, of: &Column<'_>| {
            IndexKey::derive(key, version, of).index("v").as_bytes()[4..].to_vec()
        };
        let here = index(&key(1), 1, &home);
        assert_eq!(here, index(&key(1), 1, &home));
        for (other, of) in [
            (index(&key(2), 1, &home), "key"),
            (index(&key(1), 2, &home), "version"),
            (index(&key(1), 1, &Column { tenant: &b, ..home }), "tenant"),
            (index(&key(1), 1, &Column { table: "contactse", column: "mail", ..home }), "border"),
            (index(&key(1), 1, &Column { column: "phone", ..home }), "column"),
        ] {
            assert_ne!(here, other, "another {of}");
        }
    }

    #[test]
    fn a_stored_index_says_its_version_and_has_one_length() {
        let tenant: TenantId = "a".parse().expect("an id");
        let of = Column { tenant: &tenant, table: "t", column: "c", rule: Rule::Exact };
        let made = IndexKey::derive(&key(1), 0x0102_0304, &of);
        let stored = made.index("v");
        assert_eq!((stored.version(), &stored.as_bytes()[..4]), (0x0102_0304, &[1, 2, 3, 4][..]));
        assert_eq!(BlindIndex::read(stored.as_bytes()), Ok(stored));
        let long = [0; 40];
        for length in (0..40).filter(|length| *length != INDEX_BYTES) {
            assert!(BlindIndex::read(&long[..length]).is_err(), "{length} bytes");
        }
        assert!(!format!("{made:?}").contains("key"), "{made:?}");
    }
}

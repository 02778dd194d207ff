//! Names of tables, and the quoting of whatever reaches SQL as text.
use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A table with its schema. Written `schema.name` with the letters as PostgreSQL has them; a schema that has a dot in
/// its name stands in double quotes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
pub struct TableName {
    pub schema: String,
    pub name: String,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no table's name; write schema.table, as in \"public.contacts\"")]
pub struct InvalidName(String);

impl TableName {
    pub fn new(schema: impl Into<String>, name: impl Into<String>) -> Self {
        Self { schema: schema.into(), name: name.into() }
    }

    /// As it stands in SQL.
    pub fn sql(&self) -> String {
        format!("{}.{}", ident(&self.schema), ident(&self.name))
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.schema.contains(['.', '"']) {
            write!(f, "{}.{}", ident(&self.schema), self.name)
        } else {
            write!(f, "{}.{}", self.schema, self.name)
        }
    }
}

impl Serialize for TableName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl FromStr for TableName {
    type Err = InvalidName;
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let invalid = || InvalidName(text.to_owned());
        let (schema, name) = match text.strip_prefix('"') {
            Some(rest) => {
                let end = closing_quote(rest).ok_or_else(invalid)?;
                (rest[..end].replace("\"\"", "\""), rest[end + 1..].strip_prefix('.').ok_or_else(invalid)?)
            }
            None => text.split_once('.').map(|(schema, name)| (schema.to_owned(), name)).ok_or_else(invalid)?,
        };
        if schema.is_empty() || name.is_empty() || text.contains('\0') {
            return Err(invalid());
        }
        Ok(Self::new(schema, name))
    }
}

fn closing_quote(rest: &str) -> Option<usize> {
    let bytes = rest.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at] == b'"' {
            if bytes.get(at + 1) != Some(&b'"') {
                return Some(at);
            }
            at += 1;
        }
        at += 1;
    }
    None
}

/// An identifier, always in quotes: whether a word is reserved depends on the server's version.
pub fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Identifiers with commas between them.
pub fn idents<T: AsRef<str>>(names: &[T]) -> String {
    names.iter().map(|name| ident(name.as_ref())).collect::<Vec<_>>().join(", ")
}

/// A string constant. The `E` form, so that a backslash means the same under every setting.
pub fn literal(text: &str) -> String {
    if text.contains('\\') {
        format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
    } else {
        format!("'{}'", text.replace('\'', "''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_back_as_it_was_written() {
        for (schema, name) in [("public", "contacts"), ("a.b", "C.d"), ("q\"x", "t"), ("S", "it's \"quoted\"")] {
            let name = TableName::new(schema, name);
            assert_eq!(name.to_string().parse(), Ok(name));
        }
        for bad in ["contacts", ".x", "x.", "\"x.y", "\"x\"y", ""] {
            assert!(bad.parse::<TableName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn nothing_escapes_its_quotes() {
        assert_eq!(ident("a\"; DROP TABLE x; --"), "\"a\"\"; DROP TABLE x; --\"");
        assert_eq!(literal("it's"), "'it''s'");
        assert_eq!(literal("a\\'b"), "E'a\\\\''b'");
    }
}

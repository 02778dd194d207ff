//! Reading `catalogue.toml`. A mistake is told with its line, table and column, and with what to write instead.
use std::{fmt, path::Path};

use super::{
    model::{Catalogue, Place},
    raw,
};

/// Reeve's own tables, in the same format.
const OWN: &str = include_str!("../../../migrations/catalogue.toml");

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("{file}: cannot be read: {source}; `reeve catalogue init` drafts one")]
    Read { file: String, source: std::io::Error },
    #[error("{0}")]
    Wrong(Mistake),
    #[error("table {0:?} is declared by Reeve itself; take it out of the app's catalogue")]
    Twice(String),
}

/// Something wrong at a place of a file.
#[derive(Debug, Clone)]
pub struct Mistake {
    pub place: Place,
    pub table: Option<String>,
    pub column: Option<String>,
    pub what: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: ", self.place.file, self.place.line)?;
        if let Some(table) = &self.table {
            write!(f, "table {table:?}")?;
            if let Some(column) = &self.column {
                write!(f, ", column {column:?}")?;
            }
            f.write_str(": ")?;
        }
        f.write_str(&self.what)
    }
}

/// The app's catalogue alone.
pub fn file(path: &Path) -> Result<Catalogue, LoadError> {
    let name = path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned());
    let text =
        std::fs::read_to_string(path).map_err(|source| LoadError::Read { file: path.display().to_string(), source })?;
    text_of(&name, &text)
}

/// Reeve's own.
pub fn own() -> Result<Catalogue, LoadError> {
    text_of("migrations/catalogue.toml", OWN)
}

/// The app's catalogue with Reeve's own in it.
pub fn merged(path: &Path) -> Result<Catalogue, LoadError> {
    file(path)?.merge(own()?).map_err(|name| LoadError::Twice(name.to_string()))
}

/// A catalogue from text; `file` names it in messages.
pub fn text_of(file: &str, text: &str) -> Result<Catalogue, LoadError> {
    let lines = Lines { file, text };
    let raw: raw::File = toml::from_str(text).map_err(|error| {
        let offset = error.span().map_or(0, |span| span.start);
        let (table, column) = lines.context(offset);
        let what = error.message().trim().replace('\n', "; ");
        LoadError::Wrong(Mistake { place: lines.place(offset), table, column, what })
    })?;
    raw.into_catalogue(&lines).map_err(LoadError::Wrong)
}

/// Offsets of a text as lines.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lines<'a> {
    file: &'a str,
    text: &'a str,
}

impl Lines<'_> {
    pub fn place(&self, offset: usize) -> Place {
        let before = &self.text.as_bytes()[..offset.min(self.text.len())];
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        Place { file: self.file.to_owned(), line }
    }

    /// The table and column that an offset stands under: for what the TOML reader refuses before there is a model.
    fn context(&self, offset: usize) -> (Option<String>, Option<String>) {
        let line = self.place(offset).line;
        let header = self.text.lines().take(line).filter_map(|text| text.trim().strip_prefix("[table.")).last();
        let Some(header) = header else { return (None, None) };
        let header = header.split_once(']').map_or(header, |(inside, _)| inside);
        let (table, rest) = unquote(header);
        let own_key =
            self.text.lines().nth(line - 1).and_then(|text| text.split_once('=')).map(|(key, _)| unquote(key).0);
        let column = match rest.strip_prefix(".column.") {
            Some(column) => Some(unquote(column).0),
            None if rest == ".column" => own_key,
            None => None,
        };
        (Some(table), column)
    }
}

/// The first part of a dotted TOML key, and what follows it.
fn unquote(key: &str) -> (String, &str) {
    let key = key.trim();
    for quote in ['"', '\''] {
        if let Some(inside) = key.strip_prefix(quote)
            && let Some(end) = inside.find(quote)
        {
            return (inside[..end].to_owned(), &inside[end + 1..]);
        }
    }
    let end = key.find(['.', ' ']).unwrap_or(key.len());
    (key[..end].to_owned(), &key[end..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::{fixtures::table, model::*};

    pub const FULL: &str = include_str!("fixtures/full.toml");

    fn refused(text: &str) -> String {
        text_of("catalogue.toml", text).expect_err("a mistake").to_string()
    }

    #[test]
    fn every_form_is_read() {
        let read = text_of("catalogue.toml", FULL).expect("a catalogue");
        let scope = |name: &str| read.tables[&table(name)].scope.clone();
        assert_eq!(scope("app.orgs"), Scope::Column { column: "id".into(), null: None });
        let Scope::Path(steps) = scope("app.Order Lines") else { panic!("a path") };
        assert_eq!((steps[0].columns.as_slice(), steps.len()), (&["order_id".to_owned()][..], 2));
        assert!(matches!(scope("app.settings"), Scope::Reverse(parents) if parents.len() == 2));
        assert!(matches!(scope("app.notes"), Scope::Polymorphic { of, .. } if of.len() == 2));
        assert!(matches!(scope("app.users"), Scope::Shared(parents) if parents.len() == 1));
        assert_eq!(scope("app.plans"), Scope::Reference);
        assert_eq!(scope("app.cache"), Scope::Ignored("rebuilt every night".into()));
        let contacts = &read.tables[&table("app.contacts")];
        assert_eq!(contacts.columns["profile"].pii.len(), 2);
        assert_eq!(contacts.columns["token"].sealed, Some(Codec::Plain));
        assert_eq!(contacts.erase, Some(Erase::Keep("tax law, ten years".into())));
        assert_eq!(contacts.references[0].place.line, 22);
        assert!(contacts.place.line > 1 && contacts.columns["email"].place.line > contacts.place.line);
    }

    #[test]
    fn a_mistake_names_line_table_and_column() {
        for (text, place, says) in [
            ("[table.\"a.b\"]\nscop = \"reference\"", "catalogue.toml:2: table \"a.b\": ", "unknown field `scop`"),
            ("[table.\"a.b\"]\nscope = \"refrence\"", "catalogue.toml:2: table \"a.b\": ", "\"reference\", \"shared\""),
            ("[table.\"a.b\"]\ncolumns = [\"x\"]", "catalogue.toml:1: table \"a.b\": ", "missing field `scope`"),
            ("[table.\"a.b\"]\nscope = { }", "catalogue.toml:2: table \"a.b\": ", "one of"),
            ("[table.\"a.b\"]\nscope = { column = \"t\", path = [] }", "catalogue.toml:2: table \"a.b\": ", "one of"),
            ("[table.\"a.b\"]\nscope = { path = [[\"x\"]] }", "catalogue.toml:2: table \"a.b\": ", "a join"),
            ("[table.\"a.b\"]\nscope = { path = [] }", "catalogue.toml:2: table \"a.b\": ", "1 to 4 joins"),
            ("[table.\"a.b\"]\nscope = { ignored = \" \" }", "catalogue.toml:2: table \"a.b\": ", "say why"),
            ("[table.b]\nscope = \"reference\"", "catalogue.toml:1: table \"b\": ", "schema.table"),
            (
                "[table.\"a.b\"]\nscope = \"reference\"\n[table.\"a.b\".column]\n\nmail = { pii = \"emial\" }",
                "catalogue.toml:5: table \"a.b\", column \"mail\": ",
                "unknown variant `emial`",
            ),
            (
                "[table.\"a.b\"]\nscope = \"reference\"\ncolumns = [\"x\",\n\"x\"]",
                "catalogue.toml:4: table \"a.b\", column \"x\": ",
                "twice",
            ),
        ] {
            let said = refused(text);
            assert!(said.starts_with(place) && said.contains(says), "{said}");
        }
    }

    #[test]
    fn what_is_no_toml_is_told_with_its_line() {
        let said = refused("[table.\"a.b\"]\nscope = \"reference");
        assert!(said.starts_with("catalogue.toml:2: "), "{said}");
    }
}

//! The TOML form of the catalogue: serde types with spans, turned into the model. Strings and tables stand side by side in
//! the format (`erase = "delete"`, `erase = { keep = "…" }`), so several types have a visitor each, which says in its
//! `expecting` what would be right; an untagged enum would only say that nothing matched.
use std::{collections::BTreeMap, fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, SeqAccess, Visitor, value::MapAccessDeserializer},
};
use toml::Spanned;

use super::{
    TableName,
    load::{Lines, Mistake},
    model::*,
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    tenants: Option<Spanned<RawTenants>>,
    #[serde(default)]
    table: BTreeMap<String, Spanned<Table>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTenants {
    table: Name,
    key: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    scope: Scope,
    #[serde(default)]
    also: Vec<Step>,
    #[serde(default)]
    key: Many<String>,
    #[serde(default)]
    columns: Vec<Spanned<String>>,
    #[serde(default)]
    column: BTreeMap<String, Spanned<Column>>,
    #[serde(default)]
    references: Vec<Spanned<RawReference>>,
    retention: Option<Retention>,
    export: Option<Export>,
    attachments: Option<Attachments>,
    erase: Option<Erase>,
    soft_delete: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Column {
    sealed: Option<Codec>,
    #[serde(default)]
    pii: Many<Pii>,
    erase: Option<Erase>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawReference {
    columns: Many<String>,
    table: Name,
    #[serde(default)]
    unconstrained: bool,
}

impl File {
    pub fn into_catalogue(self, lines: &Lines<'_>) -> Result<Catalogue, Mistake> {
        let mut catalogue = Catalogue::default();
        if let Some(tenants) = self.tenants {
            let place = lines.place(tenants.span().start);
            let RawTenants { table, key } = tenants.into_inner();
            catalogue.tenants = Some(Tenants { table: table.0, key, place });
        }
        for (name, entry) in self.table {
            let place = lines.place(entry.span().start);
            let table: TableName = name.parse().map_err(|error: super::name::InvalidName| Mistake {
                place: place.clone(),
                table: Some(name.clone()),
                column: None,
                what: error.to_string(),
            })?;
            let entry = entry.into_inner().into_entry(&name, place, lines)?;
            catalogue.tables.insert(table, entry);
        }
        Ok(catalogue)
    }
}

impl Table {
    fn into_entry(self, name: &str, place: Place, lines: &Lines<'_>) -> Result<TableEntry, Mistake> {
        let mut columns = BTreeMap::new();
        for (column, entry) in self.column {
            let place = lines.place(entry.span().start);
            let Column { sealed, pii, erase } = entry.into_inner();
            columns.insert(column, ColumnEntry { place, sealed, pii: pii.0, erase });
        }
        for column in self.columns {
            let place = lines.place(column.span().start);
            let column = column.into_inner();
            if columns.contains_key(&column) {
                let what = "is declared twice; leave one".to_owned();
                return Err(Mistake { place, table: Some(name.to_owned()), column: Some(column), what });
            }
            columns.insert(column, ColumnEntry { place, ..ColumnEntry::default() });
        }
        let references = self.references.into_iter().map(|reference| {
            let place = lines.place(reference.span().start);
            let RawReference { columns, table, unconstrained } = reference.into_inner();
            Reference { place, columns: columns.0, table: table.0, unconstrained }
        });
        Ok(TableEntry {
            place,
            scope: self.scope,
            also: self.also,
            key: self.key.0,
            columns,
            references: references.collect(),
            retention: self.retention,
            export: self.export,
            attachments: self.attachments,
            erase: self.erase,
            soft_delete: self.soft_delete,
        })
    }
}

/// A table's name, as text.
struct Name(TableName);

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map(Self).map_err(de::Error::custom)
    }
}

/// One value or a list of them.
struct Many<T>(Vec<T>);

impl<T> Default for Many<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Many<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Seen<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Seen<T> {
            type Value = Many<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("one value or a list of values")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Many<T>, E> {
                T::deserialize(de::value::StrDeserializer::new(text)).map(|one| Many(vec![one]))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Many<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(|one| Many(vec![one]))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Many<T>, A::Error> {
                let mut all = Vec::new();
                while let Some(one) = seq.next_element()? {
                    all.push(one);
                }
                Ok(Many(all))
            }
        }
        deserializer.deserialize_any(Seen(PhantomData))
    }
}

impl<'de> Deserialize<'de> for Step {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Join;
        impl<'de> Visitor<'de> for Join {
            type Value = Step;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a join, written [\"column\", \"schema.table\"] or [[\"a\", \"b\"], \"schema.table\", [\"c\", \"d\"]]")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Step, A::Error> {
                let columns: Many<String> = seq.next_element()?.ok_or_else(|| de::Error::invalid_length(0, &self))?;
                let table: Name = seq.next_element()?.ok_or_else(|| de::Error::invalid_length(1, &self))?;
                let target: Many<String> = seq.next_element()?.unwrap_or_default();
                Ok(Step { columns: columns.0, table: table.0, target: target.0 })
            }
        }
        deserializer.deserialize_seq(Join)
    }
}

impl<'de> Deserialize<'de> for Parent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Points;
        impl<'de> Visitor<'de> for Points {
            type Value = Parent;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("who points here, written [\"schema.table\", \"column\"]")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Parent, A::Error> {
                let table: Name = seq.next_element()?.ok_or_else(|| de::Error::invalid_length(0, &self))?;
                let columns: Many<String> = seq.next_element()?.ok_or_else(|| de::Error::invalid_length(1, &self))?;
                Ok(Parent { table: table.0, columns: columns.0 })
            }
        }
        deserializer.deserialize_seq(Points)
    }
}

const SCOPES: &str =
    "\"reference\", \"shared\", or a table with one of column, path, reverse, polymorphic, shared, ignored";

impl<'de> Deserialize<'de> for Scope {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Seen;
        impl<'de> Visitor<'de> for Seen {
            type Value = Scope;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(SCOPES)
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Scope, E> {
                match text {
                    "reference" => Ok(Scope::Reference),
                    "shared" => Ok(Scope::Shared(Vec::new())),
                    "?" => Ok(Scope::Undecided),
                    _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
                }
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Scope, A::Error> {
                scope(MapAccessDeserializer::new(map))
            }
        }
        deserializer.deserialize_any(Seen)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ScopeTable {
    column: Option<String>,
    null: Option<NullRows>,
    path: Option<Vec<Step>>,
    reverse: Option<Vec<Parent>>,
    polymorphic: Option<Polymorphic>,
    shared: Option<Vec<Parent>>,
    ignored: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Polymorphic {
    type_column: String,
    id_column: String,
    of: BTreeMap<String, Name>,
}

fn scope<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Scope, D::Error> {
    let raw = ScopeTable::deserialize(deserializer)?;
    let null = raw.null;
    let only_column = |scope| match null {
        None => Ok(scope),
        Some(_) => Err(de::Error::custom("null goes with column alone")),
    };
    match (raw.column, raw.path, raw.reverse, raw.polymorphic, raw.shared, raw.ignored) {
        (Some(column), None, None, None, None, None) => Ok(Scope::Column { column, null }),
        (None, Some(steps), None, None, None, None) if (1..=PATH_STEPS_MAX).contains(&steps.len()) => {
            only_column(Scope::Path(steps))
        }
        (None, Some(steps), None, None, None, None) => {
            Err(de::Error::custom(format!("a path has 1 to {PATH_STEPS_MAX} joins, this one has {}", steps.len())))
        }
        (None, None, Some(parents), None, None, None) if !parents.is_empty() => only_column(Scope::Reverse(parents)),
        (None, None, None, Some(p), None, None) => {
            let of = p.of.into_iter().map(|(label, name)| (label, name.0)).collect();
            only_column(Scope::Polymorphic { type_column: p.type_column, id_column: p.id_column, of })
        }
        (None, None, None, None, Some(parents), None) => only_column(Scope::Shared(parents)),
        (None, None, None, None, None, Some(reason)) if reason.trim().is_empty() => {
            Err(de::Error::custom("say why it is ignored: ignored = \"reason\""))
        }
        (None, None, None, None, None, Some(reason)) => only_column(Scope::Ignored(reason)),
        _ => Err(de::Error::custom(format!("a scope is {SCOPES}; give one"))),
    }
}

impl<'de> Deserialize<'de> for NullRows {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match String::deserialize(deserializer)?.as_str() {
            "everyone" => Ok(Self::Everyone),
            "nobody" => Ok(Self::Nobody),
            other => Err(de::Error::unknown_variant(other, &["everyone", "nobody"])),
        }
    }
}

impl<'de> Deserialize<'de> for Pii {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Whole {
            kind: PiiKind,
            subject: Option<Step>,
            path: Option<String>,
        }
        struct Seen;
        impl<'de> Visitor<'de> for Seen {
            type Value = Pii;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a kind such as \"email\", or { kind, subject, path }")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Pii, E> {
                let kind = PiiKind::deserialize(de::value::StrDeserializer::new(text))?;
                Ok(Pii { kind, subject: None, path: None })
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Pii, A::Error> {
                let Whole { kind, subject, path } = Whole::deserialize(MapAccessDeserializer::new(map))?;
                Ok(Pii { kind, subject, path })
            }
        }
        deserializer.deserialize_any(Seen)
    }
}

impl<'de> Deserialize<'de> for Erase {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Keep {
            keep: String,
        }
        struct Seen;
        impl<'de> Visitor<'de> for Seen {
            type Value = Erase;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"delete\", \"null\", \"anonymise\" or { keep = \"legal basis\" }")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Erase, E> {
                match text {
                    "delete" => Ok(Erase::Delete),
                    "null" => Ok(Erase::Null),
                    "anonymise" => Ok(Erase::Anonymise),
                    _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
                }
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Erase, A::Error> {
                Keep::deserialize(MapAccessDeserializer::new(map)).map(|keep| Erase::Keep(keep.keep))
            }
        }
        deserializer.deserialize_any(Seen)
    }
}

//! What `catalogue.toml` says, in memory. How it is written is in [`super::load`].
use std::collections::BTreeMap;

use serde::Serialize;

use super::TableName;

/// The most joins that a path may take.
pub const PATH_STEPS_MAX: usize = 4;

#[derive(Debug, Clone, Default, Serialize)]
pub struct Catalogue {
    /// The app's table of tenants, where it has one.
    pub tenants: Option<Tenants>,
    pub tables: BTreeMap<TableName, TableEntry>,
}

#[derive(Debug, Clone, Serialize)]
pub struct Tenants {
    pub table: TableName,
    pub key: String,
    pub place: Place,
}

/// Where in which file something is said.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Place {
    pub file: String,
    /// From 1.
    pub line: usize,
}

#[derive(Debug, Clone, Serialize)]
pub struct TableEntry {
    pub place: Place,
    pub scope: Scope,
    /// Further routes to the tenant, known to the author.
    pub also: Vec<Step>,
    /// What tells rows apart, where the primary key does not.
    pub key: Vec<String>,
    pub columns: BTreeMap<String, ColumnEntry>,
    pub references: Vec<Reference>,
    pub retention: Option<Retention>,
    pub export: Option<Export>,
    pub attachments: Option<Attachments>,
    /// What becomes of a person's rows here when that person is erased.
    pub erase: Option<Erase>,
    pub soft_delete: Option<String>,
}

/// Whose rows a table holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// The tenant's id stands in the row. `null`: whose the rows are that have none.
    Column { column: String, null: Option<NullRows> },
    /// The tenant of the row at the end of these joins.
    Path(Vec<Step>),
    /// The tenant of the row that points here.
    Reverse(Vec<Parent>),
    /// One of several tables, named by a column.
    Polymorphic { type_column: String, id_column: String, of: BTreeMap<String, TableName> },
    /// The same for all tenants.
    Reference,
    /// Rows of several tenants each: of those that have a row here pointing at it.
    Shared(Vec<Parent>),
    /// Not touched, for this reason.
    Ignored(String),
    /// Written `"?"` by `init` where it could not tell. Refused by `check`.
    Undecided,
}

/// Rows whose tenant column is NULL. Either way they outlive every tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NullRows {
    /// Every tenant may read them.
    Everyone,
    /// No tenant sees them.
    Nobody,
}

/// A join from columns of one table to a row of another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Step {
    pub columns: Vec<String>,
    pub table: TableName,
    /// Empty: what the foreign key points at, or else the primary key.
    pub target: Vec<String>,
}

/// Columns of another table that point at a row of this one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Parent {
    pub table: TableName,
    pub columns: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reference {
    pub place: Place,
    pub columns: Vec<String>,
    pub table: TableName,
    /// True: the database has no such foreign key, the app keeps to it all the same.
    pub unconstrained: bool,
}

#[derive(Debug, Clone, Default, Serialize)]
pub struct ColumnEntry {
    pub place: Place,
    pub sealed: Option<Codec>,
    pub pii: Vec<Pii>,
    pub erase: Option<Erase>,
}

/// How a sealed column stores its values now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Codec {
    Rv1,
    /// In the clear still; the rekey duty is to seal it.
    Plain,
    NonceCtTag,
    Rails,
    Cloak,
    Vault,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Pii {
    pub kind: PiiKind,
    /// The row of the person it is about; none: this row.
    pub subject: Option<Step>,
    /// Where inside json it stands, as a path of PostgreSQL's jsonpath.
    pub path: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PiiKind {
    Email,
    Phone,
    Name,
    Address,
    BirthDate,
    NationalId,
    Ip,
    Location,
    Financial,
    FreeText,
    Mixed,
    Other,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Retention {
    pub class: String,
    /// The column that says how old a row is.
    pub age: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Export {
    pub file: String,
    pub order: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attachments {
    /// Names the object in the store.
    pub column: String,
    /// Names the store, where there are several.
    pub bucket_column: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Erase {
    Delete,
    Null,
    Anonymise,
    /// With the legal basis.
    Keep(String),
}

impl Catalogue {
    /// Takes the tables of another file in. A table of both is refused by name.
    pub fn merge(mut self, other: Self) -> Result<Self, TableName> {
        for (name, entry) in other.tables {
            if self.tables.contains_key(&name) {
                return Err(name);
            }
            self.tables.insert(name, entry);
        }
        self.tenants = self.tenants.or(other.tenants);
        Ok(self)
    }
}

impl Scope {
    /// Does each row belong to one tenant (or none)?
    pub fn is_owned(&self) -> bool {
        matches!(self, Self::Column { .. } | Self::Path(_) | Self::Reverse(_) | Self::Polymorphic { .. })
    }

    /// Do these columns of that table tell the owner in reverse? Then they are no second opinion about it.
    pub fn is_owned_over(&self, table: &TableName, columns: &[String]) -> bool {
        let is = |parent: &Parent| parent.table == *table && parent.columns == columns;
        matches!(self, Self::Reverse(parents) if parents.iter().any(is))
    }
}

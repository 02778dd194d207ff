//! What a database has: one consistent read of `pg_catalog`.
//!
//! System schemas and objects of extensions are left out. Partitions stand behind their parent, since rows are reached
//! through it; children by inheritance are tables of their own, because a parent's policies do not cover them.
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sqlx::PgExecutor;

use super::{TableName, name::idents};

const READ: &str = include_str!("introspect.sql");

/// All tables and views of a database, by name.
#[derive(Debug, Clone, Serialize)]
pub struct Schema {
    pub database: String,
    pub tables: BTreeMap<TableName, Table>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TableKind {
    Table,
    Partitioned,
    View,
    MaterializedView,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Table {
    pub name: TableName,
    pub kind: TableKind,
    pub owner: String,
    pub rls: bool,
    pub rls_forced: bool,
    pub partitions: u32,
    /// Parents by inheritance, which is not partitioning.
    pub inherits: Vec<TableName>,
    /// Reading it without `ONLY` reads the children too.
    pub has_heirs: bool,
    pub columns: Vec<Column>,
    /// Empty: there is none.
    pub primary_key: Vec<String>,
    pub foreign_keys: Vec<ForeignKey>,
    pub indexes: Vec<Index>,
    pub triggers: Vec<String>,
    pub policies: Vec<Policy>,
    /// Roles other than the owner that may touch rows and would feel row-level security.
    pub writers: Vec<Writer>,
}

/// Who may touch rows of a table, by a grant on it, on some of its columns, or on all tables.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Writer {
    /// `public` is everybody. A policy for a role binds its members too.
    pub role: String,
    /// `select`, `insert`, `update`, `delete`.
    pub commands: Vec<String>,
    /// The roles whose rights it has without asking.
    pub member_of: Vec<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Column {
    pub name: String,
    /// As declared: a domain's or an enumeration's name, lengths included.
    #[serde(rename = "type")]
    pub declared: String,
    /// What it is in the end: a domain's base, without lengths.
    pub base: String,
    pub domain: bool,
    /// The labels of an enumeration, or nothing.
    pub enumeration: Vec<String>,
    pub nullable: bool,
    pub generated: bool,
    pub identity: bool,
    /// The sequence behind a `serial` column.
    pub sequence: Option<TableName>,
    pub default: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnDelete {
    NoAction,
    Restrict,
    Cascade,
    SetNull,
    SetDefault,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ForeignKey {
    pub name: String,
    pub columns: Vec<String>,
    pub table: TableName,
    pub target: Vec<String>,
    pub on_delete: OnDelete,
    pub deferrable: bool,
    pub validated: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Index {
    pub name: String,
    pub unique: bool,
    pub partial: bool,
    pub valid: bool,
    /// Leading columns, up to the first expression.
    pub columns: Vec<String>,
    /// `columns` is all of it.
    pub whole: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Policy {
    pub name: String,
    pub command: String,
    pub permissive: bool,
    pub roles: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum IntrospectError {
    #[error("the database's catalogs could not be read: {0}")]
    Database(#[from] sqlx::Error),
    #[error("the database's catalogs answered in another shape than this program knows: {0}")]
    Shape(#[from] serde_json::Error),
}

impl Table {
    pub fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.name == name)
    }

    /// May a row have NULL in one of these?
    pub fn may_be_null(&self, columns: &[String]) -> bool {
        columns.iter().any(|name| self.column(name).is_none_or(|column| column.nullable))
    }

    /// Does it keep rows of its own? A view does not; a materialized one keeps copies.
    pub fn holds_rows(&self) -> bool {
        matches!(self.kind, TableKind::Table | TableKind::Partitioned)
    }

    /// Sets of columns that tell rows apart: the primary key, then unique indexes without a condition or an expression.
    pub fn unique_sets(&self) -> Vec<&[String]> {
        let indexes = self.indexes.iter().filter(|i| i.unique && i.valid && !i.partial && i.whole);
        let primary = (!self.primary_key.is_empty()).then_some(self.primary_key.as_slice());
        primary.into_iter().chain(indexes.map(|i| i.columns.as_slice()).filter(|c| *c != self.primary_key)).collect()
    }

    /// Is there an index that finds rows by these columns, whatever their order?
    pub fn is_indexed_by(&self, columns: &[String]) -> bool {
        self.indexes.iter().filter(|index| index.valid).any(|index| {
            // "WHERE x IS NOT NULL" is the usual condition, and a foreign key looks for no NULL; others are not told apart.
            let lead: Vec<_> = index.columns.iter().take(columns.len()).collect();
            lead.len() == columns.len() && columns.iter().all(|column| lead.contains(&column))
        })
    }

    /// The foreign key on exactly these columns to that table.
    pub fn foreign_key(&self, columns: &[String], table: &TableName) -> Option<&ForeignKey> {
        self.foreign_keys.iter().find(|key| key.columns == columns && key.table == *table)
    }

    /// Makes an index beside running work. On a partitioned table PostgreSQL has no such way: there writers wait, unless one
    /// is made on each partition first.
    pub fn create_index_sql(&self, columns: &[String]) -> String {
        let way = if self.kind == TableKind::Partitioned { "" } else { " CONCURRENTLY" };
        format!("CREATE INDEX{way} ON {} ({});", self.name.sql(), idents(columns))
    }

    /// How `FROM` names it, so that only its own rows are meant.
    pub fn from_sql(&self) -> String {
        if self.has_heirs { format!("ONLY {}", self.name.sql()) } else { self.name.sql() }
    }
}

impl Column {
    /// Values of one family compare with each other without losing anything.
    pub fn family(&self) -> &str {
        match self.base.as_str() {
            "smallint" | "integer" | "bigint" => "integer",
            "text" | "character varying" | "character" | "citext" | "name" => "text",
            other => other,
        }
    }

    /// Of a type that real tenant ids have.
    pub fn may_be_tenant(&self) -> bool {
        matches!(self.family(), "integer" | "text" | "uuid")
    }
}

/// Reads the database; `own` includes the schema `reeve`.
pub async fn introspect(database: impl PgExecutor<'_>, own: bool) -> Result<Schema, IntrospectError> {
    #[derive(Deserialize)]
    struct Read {
        database: String,
        tables: Vec<Table>,
    }
    let read: serde_json::Value = sqlx::query_scalar(READ).bind(own).fetch_one(database).await?;
    let read: Read = serde_json::from_value(read)?;
    let tables = read.tables.into_iter().map(|table| (table.name.clone(), table)).collect();
    Ok(Schema { database: read.database, tables })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::fixtures::{database, table};

    #[tokio::test]
    async fn all_shapes_are_read_as_they_are() {
        let (db, schema) = database(include_str!("fixtures/shapes.sql")).await;
        let people = &schema.tables[&table("public.people")];
        assert_eq!(people.primary_key, ["tenant_id", "id"]);
        let email = people.column("email").expect("a column");
        assert_eq!((email.base.as_str(), email.domain), ("text", true));
        assert_eq!(people.column("mood").expect("a column").enumeration, ["good", "bad"]);
        assert!(people.column("full_name").expect("a column").generated);
        assert!(people.column("id").expect("a column").identity);
        assert_eq!(people.triggers, ["people_touch"]);
        let boss = people.foreign_key(&["tenant_id".into(), "boss_id".into()], &people.name).expect("a self reference");
        assert_eq!(boss.on_delete, OnDelete::SetNull);

        let events = &schema.tables[&table("Other Space.Event Log")];
        assert_eq!((events.kind, events.partitions), (TableKind::Partitioned, 2));
        assert!(
            !schema.tables.keys().any(|name| name.name.starts_with("events_2")),
            "partitions stand behind their parent"
        );
        assert!(events.primary_key.is_empty() && events.unique_sets().is_empty());

        assert_eq!(schema.tables[&table("public.people_archived")].inherits, [table("public.people_old")]);
        assert!(schema.tables[&table("public.people_old")].from_sql().starts_with("ONLY "));
        assert_eq!(schema.tables[&table("public.people_summary")].kind, TableKind::MaterializedView);
        assert_eq!(schema.tables[&table("public.people_shown")].kind, TableKind::View);
        let guarded = &schema.tables[&table("public.guarded")];
        assert!(guarded.rls && !guarded.rls_forced);
        assert_eq!(guarded.policies[0].roles, ["public"]);
        assert_eq!(guarded.unique_sets(), [["code"]], "neither a partial index nor an expression tells rows apart");
        db.drop_now().await;
    }

    #[tokio::test]
    async fn reeves_own_schema_is_read_only_when_asked_for() {
        let db = crate::testing::TestDatabase::new().await;
        assert!(introspect(&db.admin, false).await.expect("an answer").tables.is_empty());
        let own = introspect(&db.admin, true).await.expect("an answer");
        assert!(own.tables.contains_key(&table("reeve.jobs")));
        assert!(own.tables[&table("reeve.jobs")].writers.iter().any(|writer| writer.role == "reeve_worker"));
        db.drop_now().await;
    }
}

//! Which columns are sealed: what the catalogue declares, completed with what the database says of them.
//!
//! ```text
//!   Catalogue ──► Declared (table, tenant column, sealed columns) ──► describe (pg_catalog) ──► SealedTable, or why not
//! ```
//! A value's place is (tenant, table, column, row): the table as the catalogue names it, Reeve's own without their schema;
//! the row is the text of its key columns, without the tenant's ([`row_of`]).
//!
//! Taken are tables whose row holds its tenant's id. Others are refused by name and reason: what is not swept must not
//! look as if it were.
use std::fmt;

use reeve_jobs::{
    catalogue::{
        Catalogue, TableName,
        model::{Codec, Scope as RowScope, TableEntry},
    },
    seal::{Purpose, legacy::Reader},
    tenant::{Scope, ScopeError},
};
use serde::Deserialize;

/// Reached by functions of the control database alone, and sealed and renewed through them (`seal::placement`).
const NOT_SWEPT: (&str, &str) = ("reeve", "placements");

/// Which scope reaches the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// The tenant's rows, wherever they are.
    Tenant,
    /// Reeve's own, in the control database.
    Control,
}

/// The type of a sealed column, which decides how a sealed value is written in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// The bytes.
    Bytea,
    /// `rv1.` and base64url (`seal::text`).
    Text,
    /// That text as a JSON string.
    Json,
    Jsonb,
}

impl Form {
    fn of(base: &str) -> Option<Self> {
        match base {
            "bytea" => Some(Self::Bytea),
            // A varying one may have a length: a value that is too long is refused by the database, and nothing is lost.
            "text" | "character varying" => Some(Self::Text),
            "json" => Some(Self::Json),
            "jsonb" => Some(Self::Jsonb),
            _ => None,
        }
    }
}

/// How values are sealed that are not RV1 under this tenant's key yet.
pub enum Source {
    /// None are: what does not open as RV1 (or as RV0, Reeve's first form) is in quarantine.
    Rv1,
    /// Of another maker, to be adopted.
    Legacy(Reader),
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A reader holds keys.
        f.write_str(if matches!(self, Self::Rv1) { "Rv1" } else { "Legacy" })
    }
}

#[derive(Debug)]
pub struct SealedColumn {
    pub name: String,
    pub form: Form,
    pub purpose: Purpose,
    pub source: Source,
}

/// A column with its type, as SQL writes that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Typed {
    pub name: String,
    pub sql_type: String,
}

/// A table whose sealed columns can be swept.
#[derive(Debug)]
pub struct SealedTable {
    pub name: TableName,
    /// Of the place of its values.
    pub logical: String,
    pub route: Route,
    pub tenant: Typed,
    /// Tells its rows apart within a tenant; in the order of the primary key.
    pub key: Vec<Typed>,
    pub columns: Vec<SealedColumn>,
}

/// A table with sealed columns that is not swept, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("table \"{table}\" is not re-encrypted: {why}")]
pub struct Refused {
    pub table: TableName,
    pub why: String,
}

/// A table of the catalogue that has sealed columns.
#[derive(Debug, Clone)]
pub struct Declared {
    pub name: TableName,
    pub route: Route,
    tenant: Result<String, &'static str>,
    key: Vec<String>,
    columns: Vec<(String, Codec)>,
}

/// All tables of the catalogue with sealed columns, by name.
#[must_use]
pub fn declared(catalogue: &Catalogue) -> Vec<Declared> {
    let one = |(name, entry): (&TableName, &TableEntry)| {
        let sealed = |(name, column): (&String, &reeve_jobs::catalogue::model::ColumnEntry)| {
            column.sealed.map(|codec| (name.clone(), codec))
        };
        let columns: Vec<_> = entry.columns.iter().filter_map(sealed).collect();
        let is_ours = name.schema == "reeve";
        if columns.is_empty() || (name.schema.as_str(), name.name.as_str()) == NOT_SWEPT {
            return None;
        }
        let tenant = match &entry.scope {
            RowScope::Column { column, null: None } => Ok(column.clone()),
            RowScope::Column { .. } => Err("its tenant column may be NULL, and such rows are under nobody's key"),
            _ => Err("its rows do not hold their tenant's id; so far only tables with a tenant column are swept"),
        };
        let route = if is_ours { Route::Control } else { Route::Tenant };
        Some(Declared { name: name.clone(), route, tenant, key: entry.key.clone(), columns })
    };
    catalogue.tables.iter().filter_map(one).collect()
}

/// What `pg_catalog` says of a table.
#[derive(Debug, Deserialize)]
struct Described {
    kind: String,
    has_heirs: bool,
    columns: Vec<Column>,
    primary_key: Vec<String>,
    /// The columns of each unique index that is whole and valid.
    unique: Vec<Vec<String>>,
}

#[derive(Debug, Deserialize)]
struct Column {
    name: String,
    base: String,
    not_null: bool,
    writable: bool,
}

const DESCRIBE: &str = "-- rekey.describe
SELECT jsonb_build_object(
  'kind', c.relkind,
  'has_heirs', c.relkind = 'r' AND EXISTS (SELECT FROM pg_inherits h WHERE h.inhparent = c.oid),
  'columns', (SELECT jsonb_agg(jsonb_build_object('name', a.attname, 'not_null', a.attnotnull,
      'base', format_type(CASE WHEN t.typtype = 'd' THEN t.typbasetype ELSE t.oid END, NULL),
      'writable', has_column_privilege(c.oid, a.attnum, 'SELECT') AND has_column_privilege(c.oid, a.attnum, 'UPDATE')))
    FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
    WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped),
  'primary_key', coalesce((SELECT jsonb_agg(a.attname ORDER BY k.at)
    FROM pg_index i CROSS JOIN LATERAL unnest(i.indkey) WITH ORDINALITY k (attnum, at)
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.attnum WHERE i.indrelid = c.oid AND i.indisprimary), '[]'),
  'unique', coalesce((SELECT jsonb_agg(ARRAY(SELECT a.attname FROM pg_attribute a
      WHERE a.attrelid = c.oid AND a.attnum = ANY (i.indkey[0:i.indnkeyatts - 1])))
    FROM pg_index i WHERE i.indrelid = c.oid AND i.indisunique AND i.indisvalid AND i.indimmediate
      AND i.indpred IS NULL AND i.indexprs IS NULL), '[]'))
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relname = $2
UNION ALL SELECT NULL LIMIT 1";

/// Completes what the catalogue declares with what the database says. The scope is one of the declared route.
pub async fn describe(scope: &mut Scope, declared: Declared) -> Result<Result<SealedTable, Refused>, ScopeError> {
    let ask = sqlx::query_scalar(DESCRIBE).bind(declared.name.schema.clone()).bind(declared.name.name.clone());
    let said: Option<sqlx::types::Json<Described>> = scope.fetch_value(ask).await?;
    let table = declared.name.clone();
    let found = said.map(|json| json.0).ok_or_else(|| "the database has no such table".to_owned());
    Ok(found.and_then(|found| complete(declared, &found)).map_err(|why| Refused { table, why }))
}

fn complete(declared: Declared, found: &Described) -> Result<SealedTable, String> {
    if !matches!(found.kind.as_str(), "r" | "p") || found.has_heirs {
        return Err("it is no plain or partitioned table".to_owned());
    }
    let column = |name: &str| {
        let column = found.columns.iter().find(|column| column.name == name);
        column.ok_or_else(|| format!("it has no column \"{name}\""))
    };
    let typed = |column: &Column| {
        let known = ["smallint", "integer", "bigint", "uuid", "text", "character varying"];
        let sql_type = known.into_iter().find(|known| *known == column.base).map(str::to_owned);
        let sql_type = sql_type.ok_or_else(|| {
            format!("column \"{}\" is of type {}, whose text depends on settings", column.name, column.base)
        })?;
        Ok::<_, String>(Typed { name: column.name.clone(), sql_type })
    };
    let tenant_name = declared.tenant?;
    let tenant = typed(column(&tenant_name)?)?;
    let key_names = if declared.key.is_empty() { &found.primary_key } else { &declared.key };
    let mut key = Vec::new();
    for name in key_names.iter().filter(|name| **name != tenant_name) {
        let column = column(name)?;
        if !column.not_null {
            return Err(format!("column \"{name}\" of its key may be NULL"));
        }
        key.push(typed(column)?);
    }
    let is_key = |name: &String| *name == tenant_name || key.iter().any(|column| column.name == *name);
    if key.is_empty() || !found.unique.iter().any(|columns| columns.iter().all(is_key)) {
        return Err("it has no key that is unique: a primary key, or `key` in the catalogue".to_owned());
    }
    let is_ours = declared.route == Route::Control;
    let mut columns = Vec::new();
    for (name, codec) in declared.columns {
        let column = column(&name)?;
        let form = Form::of(&column.base)
            .ok_or_else(|| format!("column \"{name}\" is of type {}; it must be bytea, text or json", column.base))?;
        if codec != Codec::Rv1 {
            return Err(format!(
                "column \"{name}\" holds values of another form still (sealed = {codec:?}); adopt them first"
            ));
        }
        if !column.writable {
            return Err(format!(
                "reeve_worker may not read and write column \"{name}\"; run what `reeve catalogue rls` writes"
            ));
        }
        let purpose = if is_ours { Purpose::Webhook } else { Purpose::Field };
        columns.push(SealedColumn { name, form, purpose, source: Source::Rv1 });
    }
    let logical = if is_ours { declared.name.name.clone() } else { declared.name.to_string() };
    Ok(SealedTable { name: declared.name, logical, route: declared.route, tenant, key, columns })
}

/// The row of a value's place: the text of its key columns. Several are joined by `/`; a `/` inside one is then written
/// `~1` and a `~` written `~0` (as in RFC 6901), so that no two keys have the same text.
#[must_use]
pub fn row_of(key: &[String]) -> String {
    match key {
        [one] => one.clone(),
        several => several.iter().map(|part| part.replace('~', "~0").replace('/', "~1")).collect::<Vec<_>>().join("/"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(columns: &[(&str, &str)], primary_key: &[&str]) -> Described {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let column = |(name, base): &(&str, &str)| Column {
            name: (*name).to_owned(),
            base: (*base).to_owned(),
            not_null: true,
            writable: true,
        };
        Described {
            kind: "r".to_owned(),
            has_heirs: false,
            columns: columns.iter().map(column).collect(),
            primary_key: names(primary_key),
            unique: vec![names(primary_key)],
        }
    }

    fn from(toml: &str) -> Declared {
        let catalogue = reeve_jobs::catalogue::load::text_of("test", toml).expect("a catalogue");
        declared(&catalogue).pop().expect("a table with a sealed column")
    }

    const NOTES: &str = "[table.\"public.notes\"]\nscope = { column = \"org\" }\ncolumn.body = { sealed = \"rv1\" }\n";

    #[test]
    fn reeves_own_sealed_columns_are_declared_but_for_those_behind_functions() {
        let own = reeve_jobs::catalogue::load::own().expect("its own catalogue");
        let names: Vec<_> = declared(&own).into_iter().map(|table| table.name.to_string()).collect();
        assert_eq!(names, ["reeve.webhook_secrets"]);
    }

    #[test]
    fn a_row_is_its_key_without_the_tenant() {
        let found = found(&[("org", "uuid"), ("id", "bigint"), ("body", "bytea")], &["org", "id"]);
        let table = complete(from(NOTES), &found).expect("a table");
        assert_eq!((table.logical.as_str(), table.route), ("public.notes", Route::Tenant));
        assert_eq!(table.key, [Typed { name: "id".to_owned(), sql_type: "bigint".to_owned() }]);
    }

    #[test]
    fn what_cannot_be_swept_is_refused_with_its_reason() {
        let columns = [("org", "uuid"), ("id", "bigint"), ("body", "bytea")];
        let refused = |declared: &str, found: Described| complete(from(declared), &found).expect_err("refused");
        let path = NOTES.replace("column = \"org\"", "path = [[\"owner\", \"public.owners\"]]");
        assert!(refused(&path, found(&columns, &["id"])).contains("tenant column"));
        let plain = NOTES.replace("rv1", "plain");
        assert!(refused(&plain, found(&columns, &["id"])).contains("adopt them first"));
        assert!(refused(NOTES, found(&columns, &[])).contains("no key that is unique"));
        let dated = [("org", "uuid"), ("id", "timestamp with time zone"), ("body", "bytea")];
        assert!(refused(NOTES, found(&dated, &["id"])).contains("depends on settings"));
        let arrays = [("org", "uuid"), ("id", "bigint"), ("body", "text[]")];
        assert!(refused(NOTES, found(&arrays, &["id"])).contains("bytea, text or json"));
        let mut closed = found(&columns, &["id"]);
        closed.columns.iter_mut().for_each(|column| column.writable = false);
        assert!(refused(NOTES, closed).contains("reeve catalogue rls"));
        let mut unsure = found(&columns, &["id"]);
        unsure.columns.iter_mut().for_each(|column| column.not_null = false);
        assert!(refused(NOTES, unsure).contains("may be NULL"));
        let view = Described { kind: "v".to_owned(), ..found(&columns, &["id"]) };
        assert!(refused(NOTES, view).contains("no plain"));
    }

    #[test]
    fn no_two_keys_have_the_same_text() {
        let row = |parts: &[&str]| row_of(&parts.iter().map(|part| (*part).to_owned()).collect::<Vec<_>>());
        assert_eq!(row(&["0190", "2"]), "0190/2");
        assert_eq!(row(&["a/b"]), "a/b", "one column is its own text");
        let texts = [row(&["a/b", "c"]), row(&["a", "b/c"]), row(&["a~1b", "c"]), row(&["a", "b", "c"])];
        let distinct: std::collections::BTreeSet<_> = texts.iter().collect();
        assert_eq!(distinct.len(), texts.len(), "{texts:?}");
    }
}

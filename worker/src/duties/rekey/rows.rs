//! The app's rows: read by key, and changed where they are still as they were read.
//!
//! Statements are written for each table from its [`SealedTable`]; names are quoted, values are bound. Nothing is locked by
//! reading, and a write changes a row only where each old value is still there: whatever a client wrote in between stays.
//! Values travel as the bytes of their text, so that JSON and text are compared to the letter and not by a collation.
//!
//! Casts stand on the bound arrays and not on what is unnested from them: else row-level security would keep the planner
//! from the key's index.
use std::fmt::Write;

use reeve_jobs::{
    catalogue::name::ident,
    tenant::{Rows, Scope, ScopeError, TenantRow},
};
use sqlx::AssertSqlSafe;

use super::sealed::{Form, SealedColumn, SealedTable, Typed};

/// A row as it was read: the text of its key, and each sealed column's value.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Stored {
    tenant_id: String,
    pub key: Vec<String>,
    pub values: Vec<Option<Vec<u8>>>,
}

impl TenantRow for Stored {
    fn tenant_id(&self) -> &str {
        &self.tenant_id
    }
}

impl Stored {
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.values.iter().flatten().map(Vec::len).sum()
    }
}

/// A row to be changed: for each sealed column the old value and the new one, or nothing.
#[derive(Debug, Clone)]
pub struct Swap {
    pub key: Vec<String>,
    pub values: Vec<Option<Change>>,
}

#[derive(Debug, Clone)]
pub struct Change {
    pub old: Vec<u8>,
    pub new: Vec<u8>,
}

/// The statements of one table.
#[derive(Debug)]
pub struct Statements {
    first: String,
    next: String,
    keyed: String,
    swap: String,
    forms: Vec<Form>,
    key_columns: usize,
}

impl Statements {
    #[must_use]
    pub fn of(table: &SealedTable) -> Self {
        let on = table.name.sql();
        let tenant = ident(&table.tenant.name);
        let values: Vec<_> = table.columns.iter().map(read).collect();
        let keys: Vec<_> = table.key.iter().map(|column| format!("t.{}", ident(&column.name))).collect();
        let texts: Vec<_> = keys.iter().map(|key| format!("{key}::text")).collect();
        let owned = format!("t.{tenant} = $1::text::{}", table.tenant.sql_type);
        let select = format!(
            "SELECT t.{tenant}::text AS tenant_id, ARRAY[{}] AS key, ARRAY[{}]::bytea[] AS values\nFROM {on} t WHERE {owned}",
            texts.join(", "),
            values.join(", "),
        );
        let position: Vec<_> = table
            .key
            .iter()
            .enumerate()
            .map(|(at, key)| format!("($3::text[])[{}]::{}", at + 1, key.sql_type))
            .collect();
        let (order, after) = (keys.join(", "), position.join(", "));
        let unnested = |first: usize| {
            let array = |(at, key): (usize, &Typed)| format!("${}::text[]::{}[]", first + at, key.sql_type);
            table.key.iter().enumerate().map(array).collect::<Vec<_>>().join(", ")
        };
        Self {
            first: format!("-- rekey.read_first\n{select} ORDER BY {order} LIMIT $2"),
            next: format!("-- rekey.read_next\n{select} AND ({order}) > ({after}) ORDER BY {order} LIMIT $2"),
            keyed: format!(
                "-- rekey.read_again\n{select} AND ({order}) IN (SELECT * FROM unnest({})) ORDER BY {order}",
                unnested(2)
            ),
            swap: swap(table, &on, &owned, &unnested(2)),
            forms: table.columns.iter().map(|column| column.form).collect(),
            key_columns: table.key.len(),
        }
    }

    /// The rows behind `after` in the order of the key, at most `limit`.
    pub async fn read(
        &self,
        scope: &mut Scope,
        after: Option<&[String]>,
        limit: usize,
    ) -> Result<Vec<Stored>, ScopeError> {
        let sql = if after.is_some() { &self.next } else { &self.first };
        let tenant = scope.tenant().as_str().to_owned();
        let mut query =
            sqlx::query_as(AssertSqlSafe(sql.clone())).bind(tenant).bind(i64::try_from(limit).unwrap_or(i64::MAX));
        if let Some(after) = after {
            query = query.bind(after.to_vec());
        }
        scope.fetch_all(query).await
    }

    /// These rows as they are now; those that are gone are left out.
    pub async fn read_again(&self, scope: &mut Scope, keys: &[Vec<String>]) -> Result<Vec<Stored>, ScopeError> {
        let mut query = sqlx::query_as(AssertSqlSafe(self.keyed.clone())).bind(scope.tenant().as_str().to_owned());
        for at in 0..self.key_columns {
            query = query.bind(column_of(keys.iter(), at));
        }
        scope.fetch_all(query).await
    }

    /// Changes those of the rows whose values are still the old ones. How many.
    pub async fn swap(&self, scope: &mut Scope, swaps: &[Swap]) -> Result<u64, ScopeError> {
        let mut query = sqlx::query_scalar(AssertSqlSafe(self.swap.clone())).bind(scope.tenant().as_str().to_owned());
        for at in 0..self.key_columns {
            query = query.bind(column_of(swaps.iter().map(|swap| &swap.key), at));
        }
        for (at, form) in self.forms.iter().enumerate() {
            let changes = || swaps.iter().map(|swap| swap.values.get(at).and_then(Option::as_ref));
            let (old, new) =
                (changes().map(|change| change.map(|c| &c.old)), changes().map(|change| change.map(|c| &c.new)));
            query = match form {
                Form::Bytea => query
                    .bind(old.map(Option::<&Vec<u8>>::cloned).collect::<Vec<_>>())
                    .bind(new.map(Option::<&Vec<u8>>::cloned).collect::<Vec<_>>()),
                _ => query.bind(old.map(text).collect::<Vec<_>>()).bind(new.map(text).collect::<Vec<_>>()),
            };
        }
        scope.write(query, Rows::AtMost(swaps.len() as u64)).await
    }
}

/// What was read as bytes of a text, or written by `seal::text`: always UTF-8.
fn text(bytes: Option<&Vec<u8>>) -> Option<String> {
    bytes.map(|bytes| String::from_utf8_lossy(bytes).into_owned())
}

fn column_of<'a>(keys: impl Iterator<Item = &'a Vec<String>>, at: usize) -> Vec<String> {
    keys.map(|key| key.get(at).cloned().unwrap_or_default()).collect()
}

fn read(column: &SealedColumn) -> String {
    let name = ident(&column.name);
    match column.form {
        Form::Bytea => format!("t.{name}"),
        _ => format!("convert_to(t.{name}::text, 'UTF8')"),
    }
}

fn swap(table: &SealedTable, on: &str, owned: &str, keys: &str) -> String {
    let (mut sets, mut conditions, mut arrays) = (Vec::new(), Vec::new(), keys.to_owned());
    let mut names: Vec<_> = (1..=table.key.len()).map(|at| format!("k{at}")).collect();
    for (at, column) in table.columns.iter().enumerate() {
        let name = ident(&column.name);
        let parameter = 2 + table.key.len() + 2 * at;
        let (array, new) = match column.form {
            Form::Bytea => ("bytea[]", format!("v.n{at}")),
            Form::Text => ("text[]", format!("v.n{at}")),
            Form::Json => ("text[]", format!("v.n{at}::json")),
            Form::Jsonb => ("text[]", format!("v.n{at}::jsonb")),
        };
        let as_read = match column.form {
            Form::Bytea => format!("t.{name} = v.o{at}"),
            _ => format!("t.{name}::text COLLATE \"C\" = v.o{at}"),
        };
        let _ = write!(arrays, ", ${parameter}::{array}, ${}::{array}", parameter + 1);
        names.extend([format!("o{at}"), format!("n{at}")]);
        sets.push(format!("{name} = CASE WHEN v.n{at} IS NULL THEN t.{name} ELSE {new} END"));
        conditions.push(format!("(v.n{at} IS NULL OR {as_read})"));
    }
    let pairs: Vec<_> =
        table.key.iter().enumerate().map(|(at, key)| format!("t.{} = v.k{}", ident(&key.name), at + 1)).collect();
    format!(
        "-- rekey.swap\nUPDATE {on} AS t SET {}\nFROM unnest({arrays}) AS v ({})\nWHERE {owned} AND {} AND {}\nRETURNING t.{}::text",
        sets.join(", "),
        names.join(", "),
        pairs.join(" AND "),
        conditions.join(" AND "),
        ident(&table.tenant.name),
    )
}

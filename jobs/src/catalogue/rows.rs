//! The rows against the catalogue: `reeve catalogue check --rows`.
//!
//! [`super::check`] compares shapes, and a catalogue names one route to the tenant for each table. Whether the other routes
//! say the same is a matter of the rows: a field may hang on one tenant's document and another's recipient. Here each such
//! doubt becomes a query, which is counted and shown and never printed with its values. Reads every table it asks about;
//! changes nothing. Run as the owner of the tables: with row-level security in force the count would be of some rows only,
//! so it is turned into an error.
use std::collections::BTreeSet;

use serde::Serialize;
use sqlx::{Connection, PgConnection};

use super::{
    Catalogue, Schema, TableName,
    introspect::Table,
    model::{Scope, Step, TableEntry},
    name::{ident, idents},
    route::{self, RouteError},
};

/// Rows that are not what the catalogue says.
#[derive(Debug, Clone, Serialize)]
pub struct RowFinding {
    pub table: TableName,
    pub kind: RowKind,
    pub what: String,
    pub rows: i64,
    /// Shows which they are.
    pub sql: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RowKind {
    NoTenant,
    SeveralTenants,
    UnknownTenant,
    RoutesDisagree,
}

#[derive(Debug, thiserror::Error)]
pub enum RowsError {
    #[error("table \"{table}\": {source}; `reeve catalogue check` says more")]
    Route { table: TableName, source: Box<RouteError> },
    #[error(
        "table \"{table}\": this role is bound by row-level security and would count some rows only; use the tables' owner"
    )]
    Bound { table: TableName },
    #[error("table \"{table}\" could not be read: {source}")]
    Database { table: TableName, source: sqlx::Error },
    #[error("the rows could not be read: {0}")]
    Connection(#[from] sqlx::Error),
}

/// A doubt as a query: `FROM` and what follows it.
#[derive(Debug, Clone)]
pub struct Question {
    pub table: TableName,
    pub kind: RowKind,
    pub what: String,
    rest: String,
    /// What tells a row to a reader.
    shown: String,
}

impl Question {
    pub fn count_sql(&self) -> String {
        format!("-- catalogue.rows\nSELECT count(*) FROM {}", self.rest)
    }

    pub fn show_sql(&self) -> String {
        format!("SELECT {} FROM {};", self.shown, self.rest)
    }
}

/// All doubts about the app's tables. The catalogue is one that `check` has no error for.
pub fn questions(catalogue: &Catalogue, schema: &Schema) -> Result<Vec<Question>, RowsError> {
    let mut all = Vec::new();
    for (name, entry) in catalogue.tables.iter().filter(|(name, _)| name.schema != "reeve") {
        let Some(table) = schema.tables.get(name).filter(|table| table.holds_rows()) else { continue };
        if entry.scope.is_owned() {
            let mut asker = Asker { catalogue, schema, entry, table, all: &mut all };
            asker.ask().map_err(|source| RowsError::Route { table: name.clone(), source: Box::new(source) })?;
        }
    }
    Ok(all)
}

/// Counts, all at one moment, and keeps the questions that some row answers.
pub async fn count(connection: &mut PgConnection, questions: Vec<Question>) -> Result<Vec<RowFinding>, RowsError> {
    let mut tx = connection.begin().await?;
    let still = "-- catalogue.rows_still\nSET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY";
    sqlx::query(still).execute(&mut *tx).await?;
    sqlx::query("-- catalogue.rows_all\nSET LOCAL row_security = off").execute(&mut *tx).await?;
    let mut found = Vec::new();
    for question in questions {
        let counted = sqlx::query_scalar(sqlx::AssertSqlSafe(question.count_sql())).fetch_one(&mut *tx).await;
        let rows: i64 = counted.map_err(|source| refused(&question.table, source))?;
        if rows > 0 {
            let sql = question.show_sql();
            let Question { table, kind, what, .. } = question;
            found.push(RowFinding { table, kind, what, rows, sql });
        }
    }
    tx.rollback().await?;
    Ok(found)
}

fn refused(table: &TableName, source: sqlx::Error) -> RowsError {
    let table = table.clone();
    let bound = source.as_database_error().is_some_and(|error| {
        error.code().as_deref() == Some("42501") && error.message().contains("row-level security")
    });
    if bound { RowsError::Bound { table } } else { RowsError::Database { table, source } }
}

struct Asker<'a> {
    catalogue: &'a Catalogue,
    schema: &'a Schema,
    entry: &'a TableEntry,
    table: &'a Table,
    all: &'a mut Vec<Question>,
}

impl Asker<'_> {
    fn ask(&mut self) -> Result<(), RouteError> {
        let tenants = self.tenants(&self.table.name, "t")?;
        match &self.entry.scope {
            Scope::Column { column, .. } => self.unknown(column),
            _ => {
                let what = "reach no tenant: no tenant's job sees them and no deletion takes them".to_owned();
                self.push(RowKind::NoTenant, what, format!("NOT EXISTS ({tenants})"));
            }
        }
        if matches!(self.entry.scope, Scope::Reverse(_)) {
            let what =
                "are pointed at by rows of several tenants, and the catalogue says each is one tenant's".to_owned();
            self.push(
                RowKind::SeveralTenants,
                what,
                format!("(SELECT count(DISTINCT a.x) FROM ({tenants}) a (x)) > 1"),
            );
        }
        for step in self.others() {
            self.disagree(&step, &tenants)?;
        }
        Ok(())
    }

    fn tenants(&self, name: &TableName, alias: &str) -> Result<String, RouteError> {
        route::tenants(self.catalogue, self.schema, name, alias)
    }

    fn push(&mut self, kind: RowKind, what: String, condition: String) {
        let key = if self.entry.key.is_empty() { &self.table.primary_key } else { &self.entry.key };
        let shown = if key.is_empty() { "t.ctid".to_owned() } else { idents(key) };
        let rest = format!("{} t WHERE {condition}", self.table.from_sql());
        self.all.push(Question { table: self.table.name.clone(), kind, what, rest, shown });
    }

    /// A tenant's id that no foreign key holds to the table of tenants.
    fn unknown(&mut self, column: &str) {
        let Some(tenants) = self.catalogue.tenants.as_ref().filter(|tenants| tenants.table != self.table.name) else {
            return;
        };
        let own = [column.to_owned()];
        let held = self.table.foreign_key(&own, &tenants.table).is_some_and(|key| key.target == [tenants.key.clone()]);
        if let (false, Some(of)) = (held, self.schema.tables.get(&tenants.table)) {
            let what = format!("name a tenant that is not in \"{}\"", tenants.table);
            let column = ident(column);
            let known = format!("SELECT FROM {} k WHERE k.{} = t.{column}", of.from_sql(), ident(&tenants.key));
            self.push(RowKind::UnknownTenant, what, format!("t.{column} IS NOT NULL AND NOT EXISTS ({known})"));
        }
    }

    /// Every way from here to a row of one tenant, but for the one that the scope takes.
    fn others(&self) -> Vec<Step> {
        let mut seen = BTreeSet::new();
        let keys = self.table.foreign_keys.iter().map(|key| (&key.columns, &key.table, Some(&key.target)));
        let declared = self.entry.references.iter().filter(|reference| reference.unconstrained);
        let declared = declared.map(|reference| (&reference.columns, &reference.table, None));
        let also = self.entry.also.iter().map(|step| (&step.columns, &step.table, Some(&step.target)));
        let mut steps = Vec::new();
        for (columns, to, target) in keys.chain(declared).chain(also) {
            let scope = self.catalogue.tables.get(to).map(|entry| &entry.scope);
            let other = scope.is_some_and(|scope| {
                scope.is_owned() && !scope.is_owned_over(&self.table.name, columns) && !self.is_own(columns, to, scope)
            });
            if other && seen.insert((columns, to)) {
                steps.push(Step {
                    columns: columns.clone(),
                    table: to.clone(),
                    target: target.cloned().unwrap_or_default(),
                });
            }
        }
        steps
    }

    /// Is it the scope's own way, or does it carry the tenant's id itself?
    fn is_own(&self, columns: &[String], to: &TableName, scope: &Scope) -> bool {
        match (&self.entry.scope, scope) {
            (Scope::Path(steps), _) => steps[0].table == *to && steps[0].columns == columns,
            (Scope::Column { column: own, .. }, Scope::Column { column: theirs, .. }) => {
                let key = self.table.foreign_keys.iter().find(|key| key.columns == columns && key.table == *to);
                key.is_some_and(|key| key.columns.iter().zip(&key.target).any(|(from, to)| from == own && to == theirs))
            }
            _ => false,
        }
    }

    fn disagree(&mut self, step: &Step, tenants: &str) -> Result<(), RouteError> {
        let other = route::table(self.schema, &step.table)?;
        let on = route::compare("t", "o", &route::resolve(self.schema, self.table, step)?);
        let theirs = self.tenants(&step.table, "o")?;
        let what = format!(
            "are one tenant's by their own route and another's over {} → {}",
            step.columns.join(", "),
            step.table
        );
        let condition = format!(
            "EXISTS ({tenants}) AND EXISTS (SELECT FROM {} o WHERE {on} AND EXISTS ({theirs}) AND NOT EXISTS (SELECT FROM ({tenants}) a (x) JOIN ({theirs}) b (x) ON a.x = b.x))",
            other.from_sql()
        );
        self.push(RowKind::RoutesDisagree, what, condition);
        Ok(())
    }
}

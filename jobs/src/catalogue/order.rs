//! In which order one tenant's rows can be deleted: computed from the database's foreign keys and the catalogue's routes.
//!
//! A table is emptied before the tables that it points at. Where foreign keys go in a circle, a column of the circle that
//! may be NULL is set to NULL first. Rows owned in reverse go after the rows that point at them, and by then nothing says
//! whose they were, so their keys are remembered at the start. ON DELETE actions are listed as effects and not relied on.
use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use sqlx::PgPool;

use super::{
    Catalogue, Schema, TableName,
    introspect::{ForeignKey, OnDelete, Table, TableKind},
    model::Scope,
    name::{ident, idents},
    route::{self, RouteError, TenantSql},
};
use crate::tenant::TenantId;

/// The plan. Statements take the tenant's id as `$1`, text, and belong in one transaction.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    pub steps: Vec<Step>,
    /// What happens to rows of tables that the plan does not name.
    pub effects: Vec<String>,
}

#[derive(Debug, Clone, Serialize)]
pub struct Step {
    pub action: Action,
    pub table: TableName,
    /// Why, where it is not plain.
    pub note: Option<String>,
    pub sql: String,
    /// Counts the rows that the step will change, asked before the first step.
    #[serde(skip)]
    pub count_sql: Option<String>,
    pub rows: Option<i64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    Remember,
    SetNull,
    Delete,
    Refresh,
}

#[derive(Debug, thiserror::Error)]
pub enum OrderError {
    #[error("table \"{table}\": {source}; `reeve catalogue check` says more")]
    Route { table: TableName, source: Box<RouteError> },
    #[error(
        "no order: {0} point at one another and no column of the circle may be NULL; let one be NULL, or make one of the \
         foreign keys ON DELETE CASCADE"
    )]
    Circle(String),
    #[error("counting failed: {0}")]
    Database(#[from] sqlx::Error),
}

/// The order of deletion for every tenant of this catalogue.
pub fn plan(catalogue: &Catalogue, schema: &Schema) -> Result<Plan, OrderError> {
    let owned: BTreeMap<&TableName, &Table> = catalogue
        .tables
        .iter()
        // What Reeve keeps of a tenant goes by its own duties, the audit log last.
        .filter(|(name, entry)| entry.scope.is_owned() && name.schema != "reeve")
        .filter_map(|(name, _)| schema.tables.get(name).map(|table| (name, table)))
        .filter(|(_, table)| table.holds_rows())
        .collect();
    let mut planner = Planner { catalogue, schema, owned, steps: Vec::new(), remembered: BTreeSet::new() };
    planner.remember()?;
    planner.order()?;
    planner.refresh();
    let effects = planner.effects();
    Ok(Plan { steps: planner.steps, effects })
}

/// Fills in how many rows each step will change for this tenant. As a role that may read the tables.
pub async fn count(pool: &PgPool, tenant: &TenantId, plan: &mut Plan) -> Result<(), OrderError> {
    for step in &mut plan.steps {
        if let Some(sql) = &step.count_sql {
            let rows: i64 =
                sqlx::query_scalar(sqlx::AssertSqlSafe(sql.clone())).bind(tenant.as_str()).fetch_one(pool).await?;
            step.rows = Some(rows);
        }
    }
    Ok(())
}

struct Planner<'a> {
    catalogue: &'a Catalogue,
    schema: &'a Schema,
    owned: BTreeMap<&'a TableName, &'a Table>,
    steps: Vec<Step>,
    remembered: BTreeSet<&'a TableName>,
}

impl<'a> Planner<'a> {
    fn condition(&self, name: &TableName) -> Result<String, OrderError> {
        route::condition(self.catalogue, self.schema, name, "t", TenantSql::Parameter(1))
            .map_err(|source| OrderError::Route { table: name.clone(), source: Box::new(source) })
    }

    /// Keys of rows whose owner points at them, and of all that is owned through such rows.
    fn remember(&mut self) -> Result<(), OrderError> {
        let tables: Vec<_> = self.owned.iter().map(|(name, table)| (*name, *table)).collect();
        for (name, table) in tables {
            if !matches!(self.catalogue.tables[name].scope, Scope::Reverse(_)) {
                continue;
            }
            let condition = self.condition(name)?;
            let from = table.from_sql();
            let columns = self.key(name, table);
            let kept = kept(name);
            let sql = format!(
                "CREATE TEMPORARY TABLE {kept} ON COMMIT DROP AS SELECT {} FROM {from} t WHERE {condition}",
                idents(columns)
            );
            let note = Some("owned in reverse: keys are kept, since the rows that tell the owner go first".to_owned());
            self.push(Action::Remember, name, note, sql, Some(format!("{from} t WHERE {condition}")));
            self.remembered.insert(name);
        }
        Ok(())
    }

    fn key(&self, name: &TableName, table: &'a Table) -> &'a [String] {
        let declared = &self.catalogue.tables[name].key;
        let set = |set: &&[String]| declared.is_empty() || *set == declared.as_slice();
        // Reverse scopes are reached by the key that others point at, so there is one.
        table.unique_sets().into_iter().find(set).unwrap_or(&table.primary_key)
    }

    fn push(&mut self, action: Action, name: &TableName, note: Option<String>, sql: String, counted: Option<String>) {
        let count_sql = counted.map(|counted| format!("-- catalogue.count\nSELECT count(*) FROM {counted}"));
        self.steps.push(Step { action, table: name.clone(), note, sql, count_sql, rows: None });
    }

    /// Repeatedly takes a table that nothing left points at; breaks a circle where there is none.
    fn order(&mut self) -> Result<(), OrderError> {
        let mut edges = self.edges();
        let mut left: BTreeSet<&TableName> = self.owned.keys().copied().collect();
        while !left.is_empty() {
            let free = left.iter().copied().find(|name| !edges.iter().any(|edge| edge.to == *name));
            let Some(name) = free else {
                let broken = self.break_circle(&left, &edges)?;
                edges.remove(broken);
                continue;
            };
            self.delete(name)?;
            left.remove(name);
            edges.retain(|edge| edge.from != name);
        }
        Ok(())
    }

    /// "Must go before": foreign keys, and routes without one.
    fn edges(&self) -> Vec<Edge<'a>> {
        let mut edges = Vec::new();
        for (name, table) in &self.owned {
            for key in table.foreign_keys.iter().filter(|key| key.table != **name) {
                if let Some((to, _)) = self.owned.get_key_value(&key.table) {
                    edges.push(Edge { from: name, to, key: Some(key) });
                }
            }
            let over: Vec<&TableName> = match &self.catalogue.tables[*name].scope {
                Scope::Path(steps) => steps.iter().map(|step| &step.table).collect(),
                Scope::Polymorphic { of, .. } => of.values().collect(),
                _ => Vec::new(),
            };
            for over in over {
                if let Some((to, _)) = self.owned.get_key_value(over).filter(|(to, _)| *to != name) {
                    edges.push(Edge { from: name, to, key: None });
                }
            }
        }
        edges
    }

    /// Sets one foreign key of the circle to NULL: one that no path goes over, if there is one.
    fn break_circle(&mut self, left: &BTreeSet<&'a TableName>, edges: &[Edge<'a>]) -> Result<usize, OrderError> {
        let nullable = |edge: &Edge<'a>| {
            edge.key.is_some_and(|key| !self.settable(edge.from, key).is_empty()) && !self.is_route(edge)
        };
        let circle = circle(left, edges);
        let inside = |edge: &Edge<'a>| circle.contains(edge.from) && circle.contains(edge.to);
        if let Some(at) = edges.iter().position(|edge| inside(edge) && nullable(edge)) {
            let (from, Some(key)) = (edges[at].from, edges[at].key) else { unreachable!("chosen for its key") };
            self.set_null(from, key, format!("breaks the circle with {}", key.table))?;
            return Ok(at);
        }
        let gives = |edge: &Edge<'_>| {
            edge.key.is_some_and(|key| matches!(key.on_delete, OnDelete::Cascade | OnDelete::SetNull))
                && !self.is_route(edge)
        };
        edges.iter().position(|edge| inside(edge) && gives(edge)).ok_or_else(|| {
            let names: Vec<_> = circle.iter().map(|name| format!("\"{name}\"")).collect();
            OrderError::Circle(names.join(", "))
        })
    }

    /// Columns of the key that may be set to NULL; one NULL is enough for PostgreSQL not to look further. Not those that
    /// tell whose the row is: it would be nobody's when its turn comes.
    fn settable<'k>(&self, name: &TableName, key: &'k ForeignKey) -> Vec<&'k str> {
        let table = self.owned[name];
        let telling: Vec<&String> = match &self.catalogue.tables[name].scope {
            Scope::Column { column, .. } => vec![column],
            Scope::Path(steps) => steps[0].columns.iter().collect(),
            Scope::Polymorphic { type_column, id_column, .. } => vec![type_column, id_column],
            _ => Vec::new(),
        };
        let may = |name: &&str| {
            !telling.iter().any(|telling| telling.as_str() == *name)
                && table.column(name).is_some_and(|column| column.nullable && !column.generated)
        };
        key.columns.iter().map(String::as_str).filter(may).collect()
    }

    /// Is the owner found over this foreign key? Then it must stand until the rows are gone.
    fn is_route(&self, edge: &Edge<'_>) -> bool {
        let Some(key) = edge.key else { return true };
        let over = |steps: &[super::model::Step], from: &TableName| {
            let mut at = from.clone();
            steps.iter().any(|step| {
                let hit = at == *edge.from && step.table == *edge.to && step.columns == key.columns;
                at = step.table.clone();
                hit
            })
        };
        self.owned.keys().any(|name| match &self.catalogue.tables[*name].scope {
            Scope::Path(steps) => over(steps, name),
            _ => false,
        })
    }

    fn set_null(&mut self, name: &TableName, key: &ForeignKey, note: String) -> Result<(), OrderError> {
        let table = self.owned[name];
        let columns = self.settable(name, key);
        let condition = self.condition(name)?;
        let set: Vec<_> = columns.iter().map(|column| format!("{} = NULL", ident(column))).collect();
        let present = ident(columns[0]);
        let from = table.from_sql();
        let sql = format!("UPDATE {from} t SET {} WHERE t.{present} IS NOT NULL AND {condition}", set.join(", "));
        let counted = format!("{from} t WHERE t.{present} IS NOT NULL AND {condition}");
        self.push(Action::SetNull, name, Some(note), sql, Some(counted));
        Ok(())
    }

    fn delete(&mut self, name: &'a TableName) -> Result<(), OrderError> {
        let table = self.owned[name];
        let mut note = None;
        for key in table.foreign_keys.iter().filter(|key| key.table == *name) {
            if self.settable(name, key).is_empty() {
                note = Some(
                    "points at itself by a column that cannot be NULL: in one statement, not in batches".to_owned(),
                );
            } else if !self.remembered.contains(name) {
                self.set_null(name, key, "points at itself".to_owned())?;
            }
        }
        let from = table.from_sql();
        if self.remembered.contains(name) {
            let key = self.key(name, table);
            let same: Vec<_> = key.iter().map(|c| format!("t.{0} = k.{0}", ident(c))).collect();
            let sql = format!("DELETE FROM {from} t USING {} k WHERE {}", kept(name), same.join(" AND "));
            self.push(Action::Delete, name, note, sql, None);
        } else {
            let condition = self.condition(name)?;
            let sql = format!("DELETE FROM {from} t WHERE {condition}");
            self.push(Action::Delete, name, note, sql, Some(format!("{from} t WHERE {condition}")));
        }
        Ok(())
    }

    fn refresh(&mut self) {
        let views: Vec<_> =
            self.schema.tables.values().filter(|table| table.kind == TableKind::MaterializedView).collect();
        for view in views {
            let note = Some("keeps copies of rows until then".to_owned());
            self.push(
                Action::Refresh,
                &view.name,
                note,
                format!("REFRESH MATERIALIZED VIEW {}", view.name.sql()),
                None,
            );
        }
    }

    /// Is it certain that both ends are one tenant's: the key carries the tenant's id, or is the row's own route?
    fn is_of_one_tenant(&self, table: &Table, key: &ForeignKey) -> bool {
        let scope = |name: &TableName| self.catalogue.tables.get(name).map(|entry| &entry.scope);
        match (scope(&table.name), scope(&key.table)) {
            (Some(Scope::Path(steps)), _) => steps[0].table == key.table && steps[0].columns == key.columns,
            (Some(Scope::Column { column: own, .. }), Some(Scope::Column { column: theirs, .. })) => {
                key.columns.iter().zip(&key.target).any(|(from, to)| from == own && to == theirs)
            }
            _ => false,
        }
    }

    /// Foreign keys from tables that the plan leaves alone.
    fn effects(&self) -> Vec<String> {
        let mut effects = Vec::new();
        for table in self.schema.tables.values() {
            for key in table.foreign_keys.iter().filter(|key| self.owned.contains_key(&key.table)) {
                let inside = self.owned.contains_key(&table.name);
                let columns = key.columns.join(", ");
                let effect = match key.on_delete {
                    OnDelete::Cascade if !inside => "rows are deleted with it",
                    OnDelete::SetNull if !inside => "is set to NULL",
                    OnDelete::SetDefault if !inside => "is set to its default",
                    OnDelete::NoAction | OnDelete::Restrict if !inside => "stops the deletion while rows point there",
                    OnDelete::Cascade if key.table != table.name && !self.is_of_one_tenant(table, key) => {
                        "another tenant's rows that point there go too, if any do"
                    }
                    _ => continue,
                };
                effects.push(format!("{} ({columns} → {}): {effect}", table.name, key.table));
            }
        }
        effects
    }
}

#[derive(Debug, Clone, Copy)]
struct Edge<'a> {
    from: &'a TableName,
    to: &'a TableName,
    /// None: a route that no foreign key stands for.
    key: Option<&'a ForeignKey>,
}

/// The tables of `left` that lie on a circle: those that are reached from themselves.
fn circle<'a>(left: &BTreeSet<&'a TableName>, edges: &[Edge<'a>]) -> BTreeSet<&'a TableName> {
    let reaches = |start: &'a TableName| {
        let (mut seen, mut next) = (BTreeSet::new(), vec![start]);
        while let Some(at) = next.pop() {
            for edge in edges.iter().filter(|edge| edge.from == at) {
                if seen.insert(edge.to) {
                    next.push(edge.to);
                }
            }
        }
        seen.contains(start)
    };
    left.iter().copied().filter(|name| reaches(name)).collect()
}

fn kept(name: &TableName) -> String {
    // PostgreSQL cuts names at 63 bytes, and two long ones would become one.
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in name.to_string().bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    format!("reeve_kept_{hash:016x}")
}

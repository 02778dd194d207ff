//! From a row to its tenant, as SQL: the joins of a scope resolved against what the database has.
//!
//! The duties use it for explicit joins (counts, deletes), and `rls` for policies; both come from the same place, so the
//! two layers cannot disagree about whose a row is.
use super::{
    Catalogue, Schema, TableName,
    introspect::{Column, Table},
    model::{NullRows, Parent, Scope, Step},
    name::{ident, literal},
};

/// A reverse scope may lead to a table with a path, and that is far enough.
const DEPTH_MAX: usize = 3;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    #[error("table \"{0}\" is not in the database")]
    NoTable(TableName),
    #[error("table \"{table}\" has no column \"{column}\"")]
    NoColumn { table: TableName, column: String },
    #[error("\"{0}\" is not declared")]
    NotDeclared(TableName),
    #[error(
        "joins {from} to \"{table}\", whose key has {target} column(s); name the columns meant as the join's third part"
    )]
    Arity { from: String, table: TableName, target: usize },
    #[error("{0}: these do not compare")]
    Type(String),
    #[error("does not end at a tenant: \"{0}\" has no tenant column of its own; end the path at a table that has one")]
    NoTenant(TableName),
    #[error("\"{0}\" belongs to nobody (reference, shared or ignored), so it leads to no tenant")]
    Unowned(TableName),
    #[error("goes in a circle over \"{0}\"; give one table of the circle a path or a tenant column")]
    Circle(TableName),
}

/// Columns that a join compares, in pairs.
pub type Pairs = Vec<(String, String)>;

/// What compares with the tenant's id. Written once a statement, with the tenant column's own type.
#[derive(Debug, Clone, Copy)]
pub enum TenantSql {
    /// A bound text parameter, by number.
    Parameter(u8),
    /// The context of the transaction, for reading.
    Context,
    /// The same for writing: rows that are everybody's to read are nobody's to change.
    ContextToWrite,
    /// The tenant that a break-glass session may see, for reading.
    BreakGlass,
}

impl TenantSql {
    fn of(self, column: &Column) -> String {
        let text = column.family() == "text";
        match self {
            Self::Parameter(n) if text => format!("${n}::text"),
            Self::Parameter(n) => format!("${n}::text::{}", column.base),
            // In a sub-select, so that it is computed once and not for each row.
            Self::Context | Self::ContextToWrite if text => "(SELECT reeve.tenant())".to_owned(),
            Self::Context | Self::ContextToWrite => format!("(SELECT reeve.tenant()::{})", column.base),
            Self::BreakGlass if text => "(SELECT reeve.breakglass_tenant())".to_owned(),
            Self::BreakGlass => format!("(SELECT reeve.breakglass_tenant()::{})", column.base),
        }
    }
}

pub fn table<'a>(schema: &'a Schema, name: &TableName) -> Result<&'a Table, RouteError> {
    schema.tables.get(name).ok_or_else(|| RouteError::NoTable(name.clone()))
}

pub fn column<'a>(table: &'a Table, name: &str) -> Result<&'a Column, RouteError> {
    table.column(name).ok_or_else(|| RouteError::NoColumn { table: table.name.clone(), column: name.to_owned() })
}

/// The pairs of columns that a step compares.
pub fn resolve(schema: &Schema, from: &Table, step: &Step) -> Result<Pairs, RouteError> {
    let to = table(schema, &step.table)?;
    let target = if !step.target.is_empty() {
        &step.target
    } else if let Some(key) = from.foreign_key(&step.columns, &step.table) {
        &key.target
    } else {
        &to.primary_key
    };
    pairs(from, &step.columns, to, target)
}

/// The pairs by which a parent points at a row of `child`: (parent's column, child's).
pub fn resolve_parent(schema: &Schema, child: &Table, parent: &Parent) -> Result<Pairs, RouteError> {
    let step = Step { columns: parent.columns.clone(), table: child.name.clone(), target: Vec::new() };
    resolve(schema, table(schema, &parent.table)?, &step)
}

fn pairs(from: &Table, columns: &[String], to: &Table, target: &[String]) -> Result<Pairs, RouteError> {
    if columns.is_empty() || columns.len() != target.len() {
        let from = columns.join(", ");
        return Err(RouteError::Arity { from, table: to.name.clone(), target: target.len() });
    }
    for (left, right) in columns.iter().zip(target) {
        let (l, r) = (column(from, left)?, column(to, right)?);
        if l.family() != r.family() {
            return Err(RouteError::Type(format!(
                "column \"{left}\" is {}, \"{}\".\"{right}\" is {}",
                l.declared, to.name, r.declared
            )));
        }
    }
    Ok(columns.iter().cloned().zip(target.iter().cloned()).collect())
}

/// The condition under which row `alias` of table `name` is the tenant's. For shared rows: may be seen by it.
pub fn condition(
    catalogue: &Catalogue,
    schema: &Schema,
    name: &TableName,
    alias: &str,
    tenant: TenantSql,
) -> Result<String, RouteError> {
    Writer { catalogue, schema, tenant, aliases: 0 }.of(name, alias, 0)
}

struct Writer<'a> {
    catalogue: &'a Catalogue,
    schema: &'a Schema,
    tenant: TenantSql,
    aliases: usize,
}

impl Writer<'_> {
    fn alias(&mut self) -> String {
        self.aliases += 1;
        format!("r{}", self.aliases)
    }

    fn of(&mut self, name: &TableName, alias: &str, depth: usize) -> Result<String, RouteError> {
        if depth > DEPTH_MAX {
            return Err(RouteError::Circle(name.clone()));
        }
        let entry = self.catalogue.tables.get(name).ok_or_else(|| RouteError::NotDeclared(name.clone()))?;
        let own = table(self.schema, name)?;
        match &entry.scope {
            Scope::Column { column: tenant, null } => {
                let equal = format!("{alias}.{} = {}", ident(tenant), self.tenant.of(column(own, tenant)?));
                Ok(match (null, self.tenant) {
                    // Everybody may read them; nobody's purge takes them.
                    (Some(NullRows::Everyone), TenantSql::Context | TenantSql::BreakGlass) => {
                        format!("({equal} OR {alias}.{} IS NULL)", ident(tenant))
                    }
                    _ => equal,
                })
            }
            Scope::Path(steps) => self.path(own, alias, steps),
            Scope::Reverse(parents) | Scope::Shared(parents) if !parents.is_empty() => {
                self.parents(own, alias, parents, depth)
            }
            Scope::Polymorphic { type_column, id_column, of } => {
                let id = column(own, id_column)?.clone();
                column(own, type_column)?;
                let mut cases = Vec::new();
                for (label, target) in of {
                    cases.push(self.polymorphic(alias, type_column, &id, label, target, depth)?);
                }
                Ok(format!("({})", cases.join(" OR ")))
            }
            _ => Err(RouteError::Unowned(name.clone())),
        }
    }

    fn path(&mut self, own: &Table, alias: &str, steps: &[Step]) -> Result<String, RouteError> {
        let (mut from, mut on) = (String::new(), String::new());
        let (mut here, mut here_alias) = (own, alias.to_owned());
        for step in steps {
            let pairs = resolve(self.schema, here, step)?;
            let next = self.alias();
            let compare = compare(&here_alias, &next, &pairs);
            here = table(self.schema, &step.table)?;
            if from.is_empty() {
                from = format!("{} {next}", here.from_sql());
                on = compare;
            } else {
                from = format!("{from} JOIN {} {next} ON {compare}", here.from_sql());
            }
            here_alias = next;
        }
        let entry = self.catalogue.tables.get(&here.name).ok_or_else(|| RouteError::NotDeclared(here.name.clone()))?;
        let Scope::Column { column: tenant, .. } = &entry.scope else {
            return Err(RouteError::NoTenant(here.name.clone()));
        };
        let value = self.tenant.of(column(here, tenant)?);
        Ok(format!("EXISTS (SELECT FROM {from} WHERE {on} AND {here_alias}.{} = {value})", ident(tenant)))
    }

    fn parents(&mut self, own: &Table, alias: &str, parents: &[Parent], depth: usize) -> Result<String, RouteError> {
        let mut cases = Vec::new();
        for parent in parents {
            let pairs = resolve_parent(self.schema, own, parent)?;
            let over = table(self.schema, &parent.table)?;
            let next = self.alias();
            let compare = compare(&next, alias, &pairs);
            let inner = self.of(&parent.table, &next, depth + 1)?;
            cases.push(format!("EXISTS (SELECT FROM {} {next} WHERE {compare} AND {inner})", over.from_sql()));
        }
        Ok(if cases.len() == 1 { cases.remove(0) } else { format!("({})", cases.join(" OR ")) })
    }

    fn polymorphic(
        &mut self,
        alias: &str,
        type_column: &str,
        id: &Column,
        label: &str,
        target: &TableName,
        depth: usize,
    ) -> Result<String, RouteError> {
        let over = table(self.schema, target)?;
        let [key] = over.primary_key.as_slice() else {
            let from = id.name.clone();
            return Err(RouteError::Arity { from, table: target.clone(), target: over.primary_key.len() });
        };
        let next = self.alias();
        let (left, right) = (format!("{next}.{}", ident(key)), format!("{alias}.{}", ident(&id.name)));
        // The id is often text where the key is a uuid or a number.
        let same = if column(over, key)?.family() == id.family() {
            format!("{left} = {right}")
        } else {
            format!("{left}::text = {right}::text")
        };
        let inner = self.of(target, &next, depth + 1)?;
        Ok(format!(
            "({alias}.{} = {} AND EXISTS (SELECT FROM {} {next} WHERE {same} AND {inner}))",
            ident(type_column),
            literal(label),
            over.from_sql()
        ))
    }
}

fn compare(left: &str, right: &str, pairs: &Pairs) -> String {
    let one = |(l, r): &(String, String)| format!("{right}.{} = {left}.{}", ident(r), ident(l));
    pairs.iter().map(one).collect::<Vec<_>>().join(" AND ")
}

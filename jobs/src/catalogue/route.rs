//! From a row to its tenant, as SQL: the joins of a scope resolved against what the database has.
//!
//! The duties use it for explicit joins (counts, deletes), and `rls` for policies; both come from the same place, so the
//! two layers cannot disagree about whose a row is.
use std::collections::BTreeSet;

use super::{
    Catalogue, Schema, TableName,
    introspect::{Column, ForeignKey, Table},
    model::{NullRows, Parent, Scope, Step},
    name::{ident, literal},
};

/// A reverse scope may lead to a table with a path, and that is far enough.
const DEPTH_MAX: usize = 3;
/// What the worker's policies ask whose rows to show: the tenant that the transaction has proof for, as text.
const TENANT_FUNCTION: &str = "reeve.held_tenant()";

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
    #[error(
        "goes over \"{0}\", which is not granted to the worker (ignored, undecided, or shared by nobody knows whom)"
    )]
    Closed(TableName),
    #[error(
        "joins {from} to \"{table}\", and foreign keys of these columns point at different columns there; name the columns \
         meant as the join's third part"
    )]
    Ambiguous { from: String, table: TableName },
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
        let cast = match column.base.as_str() {
            // Without a length; `character` alone is one letter. As text it would be compared past its index.
            "character" => "::bpchar".to_owned(),
            _ if column.family() == "text" => String::new(),
            base => format!("::{base}"),
        };
        match self {
            Self::Parameter(n) => format!("${n}::text{cast}"),
            // In a sub-select, so that it is computed once and not for each row.
            Self::Context | Self::ContextToWrite => format!("(SELECT {TENANT_FUNCTION}{cast})"),
            Self::BreakGlass => format!("(SELECT reeve.breakglass_tenant(){cast})"),
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
        let same = |other: &&ForeignKey| other.columns == key.columns && other.table == key.table;
        if from.foreign_keys.iter().filter(same).any(|other| other.target != key.target) {
            return Err(RouteError::Ambiguous { from: step.columns.join(", "), table: step.table.clone() });
        }
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
    if reads_itself(catalogue, name) {
        return Err(RouteError::Circle(name.clone()));
    }
    Writer { catalogue, schema, tenant, aliases: 0 }.of(name, alias, 0)
}

/// Would the policy of this table read the table itself, over the policies of those that it reads? PostgreSQL refuses such
/// a query when it is asked, with every table of the circle.
pub fn reads_itself(catalogue: &Catalogue, name: &TableName) -> bool {
    let (mut seen, mut next) = (BTreeSet::new(), vec![name]);
    while let Some(at) = next.pop() {
        for over in catalogue.tables.get(at).map(|entry| reads(&entry.scope)).unwrap_or_default() {
            if over == name {
                return true;
            }
            if seen.insert(over) {
                next.push(over);
            }
        }
    }
    false
}

/// The tables that a scope looks into.
fn reads(scope: &Scope) -> Vec<&TableName> {
    match scope {
        Scope::Path(steps) => steps.iter().map(|step| &step.table).collect(),
        Scope::Reverse(parents) | Scope::Shared(parents) => parents.iter().map(|parent| &parent.table).collect(),
        Scope::Polymorphic { of, .. } => of.values().collect(),
        _ => Vec::new(),
    }
}

/// A query for the tenants of row `alias` of table `name`, as text: none, one, or several. For reading rows of all tenants.
pub fn tenants(catalogue: &Catalogue, schema: &Schema, name: &TableName, alias: &str) -> Result<String, RouteError> {
    Writer { catalogue, schema, tenant: TenantSql::Context, aliases: 0 }.tenants(name, alias, 0)
}

/// `right.r = left.l` for each pair.
pub fn compare(left: &str, right: &str, pairs: &Pairs) -> String {
    let one = |(l, r): &(String, String)| format!("{right}.{} = {left}.{}", ident(r), ident(l));
    pairs.iter().map(one).collect::<Vec<_>>().join(" AND ")
}

struct Writer<'a> {
    catalogue: &'a Catalogue,
    schema: &'a Schema,
    tenant: TenantSql,
    aliases: usize,
}

impl<'a> Writer<'a> {
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
        let joined = self.joined(own, alias, steps)?;
        let value = self.tenant.of(joined.tenant);
        let Joined { from, on, at, tenant } = joined;
        Ok(format!("EXISTS (SELECT FROM {from} WHERE {on} AND {at}.{} = {value})", ident(&tenant.name)))
    }

    fn joined(&mut self, own: &Table, alias: &str, steps: &[Step]) -> Result<Joined<'a>, RouteError> {
        let (mut from, mut on) = (String::new(), String::new());
        let (mut here, mut at) = (&own.name, alias.to_owned());
        for step in steps {
            let pairs = resolve(self.schema, table(self.schema, here)?, step)?;
            self.granted(&step.table)?;
            let next = self.alias();
            let compare = compare(&at, &next, &pairs);
            here = &step.table;
            let over = table(self.schema, here)?.from_sql();
            if from.is_empty() {
                from = format!("{over} {next}");
                on = compare;
            } else {
                from = format!("{from} JOIN {over} {next} ON {compare}");
            }
            at = next;
        }
        let entry = self.catalogue.tables.get(here).ok_or_else(|| RouteError::NotDeclared(here.clone()))?;
        let Scope::Column { column: tenant, .. } = &entry.scope else {
            return Err(RouteError::NoTenant(here.clone()));
        };
        Ok(Joined { from, on, at, tenant: column(table(self.schema, here)?, tenant)? })
    }

    fn tenants(&mut self, name: &TableName, alias: &str, depth: usize) -> Result<String, RouteError> {
        if depth > DEPTH_MAX {
            return Err(RouteError::Circle(name.clone()));
        }
        let entry = self.catalogue.tables.get(name).ok_or_else(|| RouteError::NotDeclared(name.clone()))?;
        let own = table(self.schema, name)?;
        let (mut cases, mut over) = (Vec::new(), Vec::new());
        match &entry.scope {
            Scope::Column { column: tenant, .. } => {
                let value = format!("{alias}.{}", ident(&column(own, tenant)?.name));
                return Ok(format!("SELECT {value}::text WHERE {value} IS NOT NULL"));
            }
            Scope::Path(steps) => {
                let Joined { from, on, at, tenant } = self.joined(own, alias, steps)?;
                let value = format!("{at}.{}", ident(&tenant.name));
                return Ok(format!("SELECT {value}::text FROM {from} WHERE {on} AND {value} IS NOT NULL"));
            }
            Scope::Reverse(parents) | Scope::Shared(parents) if !parents.is_empty() => {
                for parent in parents {
                    let next = self.alias();
                    let on = compare(&next, alias, &resolve_parent(self.schema, own, parent)?);
                    over.push((&parent.table, next, on));
                }
            }
            Scope::Polymorphic { type_column, id_column, of } => {
                for (label, target) in of {
                    let next = self.alias();
                    let same = self.same_id(alias, &next, column(own, id_column)?, target)?;
                    let on = format!("{alias}.{} = {} AND {same}", ident(type_column), literal(label));
                    over.push((target, next, on));
                }
            }
            _ => return Err(RouteError::Unowned(name.clone())),
        }
        for (target, next, on) in over {
            let inner = self.tenants(target, &next, depth + 1)?;
            let each = self.alias();
            let from = table(self.schema, target)?.from_sql();
            cases
                .push(format!("SELECT {each}.x FROM {from} {next} CROSS JOIN LATERAL ({inner}) {each} (x) WHERE {on}"));
        }
        Ok(cases.join(" UNION ALL "))
    }

    /// The policy reads that table as the worker, which must have been granted it.
    fn granted(&self, name: &TableName) -> Result<(), RouteError> {
        match self.catalogue.tables.get(name).map(|entry| &entry.scope) {
            None => Err(RouteError::NotDeclared(name.clone())),
            Some(Scope::Ignored(_) | Scope::Undecided) => Err(RouteError::Closed(name.clone())),
            Some(Scope::Shared(parents)) if parents.is_empty() => Err(RouteError::Closed(name.clone())),
            Some(_) => Ok(()),
        }
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
        let next = self.alias();
        let same = self.same_id(alias, &next, id, target)?;
        let inner = self.of(target, &next, depth + 1)?;
        Ok(format!(
            "({alias}.{} = {} AND EXISTS (SELECT FROM {} {next} WHERE {same} AND {inner}))",
            ident(type_column),
            literal(label),
            table(self.schema, target)?.from_sql()
        ))
    }

    fn same_id(&self, alias: &str, next: &str, id: &Column, target: &TableName) -> Result<String, RouteError> {
        let over = table(self.schema, target)?;
        let [key] = over.primary_key.as_slice() else {
            let from = id.name.clone();
            return Err(RouteError::Arity { from, table: target.clone(), target: over.primary_key.len() });
        };
        let (left, right) = (format!("{next}.{}", ident(key)), format!("{alias}.{}", ident(&id.name)));
        // The id is often text where the key is a uuid or a number.
        Ok(if column(over, key)?.family() == id.family() {
            format!("{left} = {right}")
        } else {
            format!("{left}::text = {right}::text")
        })
    }
}

/// A path as joins: what stands in FROM, what joins the first table, and where the tenant's id is found.
struct Joined<'a> {
    from: String,
    on: String,
    at: String,
    tenant: &'a Column,
}

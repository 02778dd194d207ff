//! The catalogue against the database, both ways: what is there must be declared, what is declared must be there.
//!
//! Nothing is run and nothing of the catalogue reaches SQL here: names are only compared with names.
use std::collections::BTreeSet;

use serde::Serialize;

use super::{
    Catalogue, Schema, TableName,
    introspect::{Table, TableKind},
    load::Mistake,
    model::{Erase, Place, Scope, Step, TableEntry},
    route::{self, RouteError, TenantSql},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    Error,
    Warning,
}

/// One thing to know, and what to do about it.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    pub severity: Severity,
    pub place: Place,
    pub table: Option<String>,
    pub column: Option<String>,
    pub what: String,
    pub fix: String,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { place, table, column, what, fix, .. } = self;
        let what = format!("{what}; {fix}");
        let mistake = Mistake { place: place.clone(), table: table.clone(), column: column.clone(), what };
        mistake.fmt(f)
    }
}

/// Errors first, each group by table.
pub fn check(catalogue: &Catalogue, schema: &Schema) -> Vec<Finding> {
    let mut findings = Findings(Vec::new());
    tables(catalogue, schema, &mut findings);
    for (name, entry) in &catalogue.tables {
        let Some(table) = schema.tables.get(name) else { continue };
        let mut on = On { findings: &mut findings, entry, table };
        match &entry.scope {
            // What nobody touches need not be described.
            Scope::Ignored(_) => continue,
            _ if !table.holds_rows() => continue,
            _ => {}
        }
        columns(&mut on);
        references(&mut on, schema);
        scope(&mut on, catalogue, schema);
        details(&mut on);
    }
    findings.0.sort_by_key(|finding| finding.severity);
    findings.0
}

struct Findings(Vec<Finding>);

/// Findings about one table.
struct On<'a> {
    findings: &'a mut Findings,
    entry: &'a TableEntry,
    table: &'a Table,
}

impl On<'_> {
    fn add(&mut self, severity: Severity, column: Option<&str>, what: impl Into<String>, fix: impl Into<String>) {
        let place = column.and_then(|column| self.entry.columns.get(column)).map_or(&self.entry.place, |c| &c.place);
        self.findings.0.push(Finding {
            severity,
            place: place.clone(),
            table: Some(self.table.name.to_string()),
            column: column.map(str::to_owned),
            what: what.into(),
            fix: fix.into(),
        });
    }

    fn error(&mut self, column: Option<&str>, what: impl Into<String>, fix: impl Into<String>) {
        self.add(Severity::Error, column, what, fix);
    }

    fn warning(&mut self, column: Option<&str>, what: impl Into<String>, fix: impl Into<String>) {
        // An operator cannot index Reeve's tables; how they are indexed is argued in the migrations.
        if self.table.name.schema != "reeve" {
            self.add(Severity::Warning, column, what, fix);
        }
    }
}

fn tables(catalogue: &Catalogue, schema: &Schema, findings: &mut Findings) {
    let mut add = |place: Place, name: &TableName, what: &str, fix: String| {
        findings.0.push(Finding {
            severity: Severity::Error,
            place,
            table: Some(name.to_string()),
            column: None,
            what: what.to_owned(),
            fix,
        });
    };
    let file = || Place { file: "catalogue.toml".to_owned(), line: 1 };
    for (name, table) in &schema.tables {
        // A view has no rows of its own; a materialized one keeps copies that a purge must reach.
        if table.kind != TableKind::View && !catalogue.tables.contains_key(name) {
            let fix = "declare it; `reeve catalogue init` drafts an entry";
            add(file(), name, "is in the database and not in the catalogue", fix.to_owned());
        }
    }
    for (name, entry) in &catalogue.tables {
        if !schema.tables.contains_key(name) {
            let like = schema.tables.keys().find(|other| other.to_string().eq_ignore_ascii_case(&name.to_string()));
            let fix = match like {
                Some(like) => format!("is {:?} meant? case counts", like.to_string()),
                None => "take the entry out, or correct its name".to_owned(),
            };
            add(entry.place.clone(), name, "is in the catalogue and not in the database", fix);
        }
    }
    if let Some(tenants) = &catalogue.tenants {
        let found = schema.tables.get(&tenants.table);
        if found.is_none_or(|table| table.column(&tenants.key).is_none()) {
            let what =
                format!("[tenants] names \"{}\".\"{}\", which is not in the database", tenants.table, tenants.key);
            add(tenants.place.clone(), &tenants.table, &what, "correct table and key".to_owned());
        }
    }
}

fn columns(on: &mut On<'_>) {
    let (entry, table) = (on.entry, on.table);
    for column in &table.columns {
        if !entry.columns.contains_key(&column.name) {
            let fix = "add it to `columns`, or describe it under [table.\"…\".column]";
            on.error(Some(&column.name), "is in the database and not in the catalogue", fix);
        }
    }
    for name in entry.columns.keys() {
        if table.column(name).is_none() {
            let like = table.columns.iter().find(|column| column.name.eq_ignore_ascii_case(name));
            let fix = match like {
                Some(like) => format!("is {:?} meant? case counts", like.name),
                None => "take it out, or correct its name".to_owned(),
            };
            on.error(Some(name), "is in the catalogue and not in the database", fix);
        }
    }
}

fn references(on: &mut On<'_>, schema: &Schema) {
    let (entry, table) = (on.entry, on.table);
    for key in &table.foreign_keys {
        let declared = entry.references.iter().any(|r| r.columns == key.columns && r.table == key.table);
        let columns = key.columns.join(", ");
        if !declared {
            let what = format!("foreign key {:?} ({columns} → {}) is not declared", key.name, key.table);
            let listed = key.columns.iter().map(|c| format!("{c:?}")).collect::<Vec<_>>().join(", ");
            let fix = format!("add {{ columns = [{listed}], table = {:?} }} to `references`", key.table.to_string());
            on.error(None, what, fix);
        }
        if !table.is_indexed_by(&key.columns) {
            let what = format!(
                "foreign key {:?} ({columns} → {}) has no index: each delete there reads all of this",
                key.name, key.table
            );
            on.warning(key.columns.first().map(String::as_str), what, table.create_index_sql(&key.columns));
        }
    }
    for reference in &entry.references {
        let found = table.foreign_key(&reference.columns, &reference.table).is_some();
        let columns = reference.columns.join(", ");
        let problem = match (found, reference.unconstrained) {
            (true, true) => Some(("is a foreign key in the database".to_owned(), "take `unconstrained` out")),
            (false, false) => Some((
                "is no foreign key in the database".to_owned(),
                "take it out, or add unconstrained = true if the app alone keeps to it",
            )),
            (false, true) => {
                let step =
                    Step { columns: reference.columns.clone(), table: reference.table.clone(), target: Vec::new() };
                route::resolve(schema, table, &step).err().map(|error| (error.to_string(), "correct the reference"))
            }
            (true, false) => None,
        };
        if let Some((what, fix)) = problem {
            on.error(None, format!("reference {columns} → {} {what}", reference.table), fix);
            // The line of the reference says more than that of its table.
            if let Some(last) = on.findings.0.last_mut() {
                last.place = reference.place.clone();
            }
        }
    }
}

fn scope(on: &mut On<'_>, catalogue: &Catalogue, schema: &Schema) {
    let (entry, table) = (on.entry, on.table);
    match &entry.scope {
        Scope::Undecided => on.error(
            None,
            "scope = \"?\": `init` could not tell whose rows these are",
            "a person must: a tenant column, a path, \"reference\", \"shared\" or { ignored = \"why\" }",
        ),
        Scope::Column { column, null } => tenant_column(on, catalogue, schema, column, null.is_some()),
        Scope::Path(steps) if steps_end(on, catalogue, schema) => {
            routes(on, catalogue, steps);
            gaps(on, schema, steps);
        }
        Scope::Polymorphic { of, .. } if of.is_empty() => {
            on.error(
                None,
                "the polymorphic scope names no table",
                "give `of` an entry for each value of the type column",
            );
        }
        Scope::Reverse(_) | Scope::Polymorphic { .. } => {
            steps_end(on, catalogue, schema);
        }
        Scope::Shared(parents) if !parents.is_empty() => {
            steps_end(on, catalogue, schema);
        }
        _ => {}
    }
    for step in &entry.also {
        let error = match route::resolve(schema, table, step) {
            Err(error) => Some(error),
            Ok(_) => catalogue
                .tables
                .get(&step.table)
                .is_none_or(|entry| !entry.scope.is_owned())
                .then(|| RouteError::Unowned(step.table.clone())),
        };
        if let Some(error) = error {
            on.error(
                None,
                format!("the route `also` over {}: {error}", step.columns.join(", ")),
                "correct it, or take it out",
            );
        }
    }
}

/// Does the scope lead to a tenant? The condition is written to find out, and thrown away.
fn steps_end(on: &mut On<'_>, catalogue: &Catalogue, schema: &Schema) -> bool {
    match route::condition(catalogue, schema, &on.table.name, "t", TenantSql::Context) {
        Ok(_) => true,
        Err(error) => {
            let fix = match error {
                RouteError::NotDeclared(_) => "declare that table too",
                _ => "correct the scope",
            };
            on.error(None, format!("the scope: {error}"), fix);
            false
        }
    }
}

fn tenant_column(on: &mut On<'_>, catalogue: &Catalogue, schema: &Schema, name: &str, null_said: bool) {
    let table = on.table;
    let Some(column) = table.column(name) else {
        let near: Vec<_> = table.columns.iter().filter(|c| c.may_be_tenant()).map(|c| c.name.as_str()).collect();
        on.error(Some(name), "the tenant column is not in the database", format!("columns are {}", near.join(", ")));
        return;
    };
    if !column.may_be_tenant() {
        let what = format!("the tenant column is {}", column.declared);
        on.error(Some(name), what, "a tenant's id is an integer, a uuid or text; name another column, or a path");
    } else if let Some(tenants) = &catalogue.tenants
        // Reeve's own tables keep every tenant's id as text.
        && table.name.schema != "reeve"
        && let Some(key) = schema.tables.get(&tenants.table).and_then(|table| table.column(&tenants.key))
        && key.family() != column.family()
    {
        let what = format!(
            "the tenant column is {}, \"{}\".\"{}\" is {}",
            column.declared, tenants.table, tenants.key, key.declared
        );
        on.error(Some(name), what, "name the column that holds the tenant's id, or change its type");
    }
    if column.nullable && !null_said {
        let fix = "add null = \"nobody\" (no tenant sees such rows) or null = \"everyone\" (all may read them)";
        on.error(Some(name), "the tenant column may be NULL, and nothing says whose such rows are", fix);
    }
    let leads = table.indexes.iter().any(|i| i.valid && !i.partial && i.columns.first().is_some_and(|c| c == name));
    if !leads {
        let sql = table.create_index_sql(&[name.to_owned()]);
        on.warning(Some(name), "no index begins with the tenant column: each policy check reads the whole table", sql);
    }
}

/// Where a path goes over NULL it ends, and the row is nobody's.
fn gaps(on: &mut On<'_>, schema: &Schema, steps: &[Step]) {
    let mut at = on.table;
    for step in steps {
        if at.may_be_null(&step.columns) {
            let what = format!(
                "the path goes over \"{}\" ({}), which may be NULL: such rows reach no tenant",
                at.name,
                step.columns.join(", ")
            );
            on.warning(None, what, "`reeve catalogue check --rows` counts them; another path may have none");
        }
        let Some(next) = schema.tables.get(&step.table) else { return };
        at = next;
    }
}

/// Every other foreign key to a tenant's row is a second opinion about whose this row is.
fn routes(on: &mut On<'_>, catalogue: &Catalogue, steps: &[Step]) {
    let (entry, table) = (on.entry, on.table);
    let known: BTreeSet<_> =
        steps.first().into_iter().chain(&entry.also).map(|step| (&step.columns, &step.table)).collect();
    for key in &table.foreign_keys {
        let scope = catalogue.tables.get(&key.table).map(|entry| &entry.scope);
        let owned = scope.is_some_and(|scope| scope.is_owned() && !scope.is_owned_over(&table.name, &key.columns));
        if owned && key.table != table.name && !known.contains(&(&key.columns, &key.table)) {
            let columns = key.columns.join(", ");
            let what = format!(
                "two routes lead to a tenant: the path goes over {}, and {columns} → {} is another",
                steps[0].columns.join(", "),
                key.table
            );
            let listed = key.columns.iter().map(|c| format!("{c:?}")).collect::<Vec<_>>().join(", ");
            on.error(
                None,
                what,
                format!("add [[{listed}], {:?}] to `also` if both name the same tenant", key.table.to_string()),
            );
        }
    }
}

fn details(on: &mut On<'_>) {
    let (entry, table) = (on.entry, on.table);
    let mut named: Vec<(&str, &str)> = Vec::new();
    named.extend(entry.key.iter().map(|c| ("key", c.as_str())));
    named.extend(entry.soft_delete.iter().map(|c| ("soft_delete", c.as_str())));
    if let Some(export) = &entry.export {
        named.extend(export.order.iter().map(|c| ("export.order", c.as_str())));
    }
    if let Some(attachments) = &entry.attachments {
        named.push(("attachments.column", &attachments.column));
        named.extend(attachments.bucket_column.iter().map(|c| ("attachments.bucket_column", c.as_str())));
    }
    if let Some(retention) = &entry.retention {
        named.push(("retention.age", &retention.age));
        let age = table.column(&retention.age).map(|column| column.base.as_str());
        let usable = ["timestamp with time zone", "timestamp without time zone", "date", "bigint", "integer"];
        if let Some(age) = age.filter(|age| !usable.contains(age)) {
            on.error(
                Some(&retention.age),
                format!("retention.age is {age}"),
                "name a timestamp, a date or seconds since 1970",
            );
        }
    }
    for (what, name) in named {
        if table.column(name).is_none() {
            on.error(Some(name), format!("`{what}` names a column that is not in the database"), "correct its name");
        }
    }
    key(on);
    for (name, column) in &entry.columns {
        column_details(on, name, column);
    }
}

fn key(on: &mut On<'_>) {
    let (entry, table) = (on.entry, on.table);
    let sets = table.unique_sets();
    if entry.key.is_empty() {
        if sets.is_empty() {
            on.warning(
                None,
                "nothing tells its rows apart",
                "give it a primary key; until then duties take its rows by statement, not by key",
            );
        } else if table.primary_key.is_empty() {
            let fix = format!("declare one of its unique sets: key = {:?}", sets[0]);
            on.error(None, "there is no primary key and no `key`", fix);
        }
        return;
    }
    let declared: BTreeSet<_> = entry.key.iter().collect();
    if !sets.iter().any(|set| set.iter().collect::<BTreeSet<_>>() == declared) {
        on.error(
            None,
            format!("`key` {:?} is not unique in the database", entry.key),
            "name a primary key or the columns of a unique index",
        );
    }
}

fn column_details(on: &mut On<'_>, name: &str, entry: &super::model::ColumnEntry) {
    let table = on.table;
    let Some(column) = table.column(name) else { return };
    if entry.pii.iter().any(|pii| pii.path.is_some()) && !matches!(column.base.as_str(), "json" | "jsonb") {
        on.error(
            Some(name),
            format!("`path` looks into json, and the column is {}", column.declared),
            "take `path` out",
        );
    }
    if matches!(entry.erase, Some(Erase::Null)) && !column.nullable {
        on.error(
            Some(name),
            "erase = \"null\", and the column is NOT NULL",
            "use \"anonymise\", or let the column be NULL",
        );
    }
    if column.generated && entry.erase.as_ref().is_some_and(|erase| !matches!(erase, Erase::Keep(_))) {
        on.error(
            Some(name),
            "a generated column cannot be written",
            "take `erase` out here; it follows the columns it is made from",
        );
    }
    if entry.sealed.is_some() {
        if !matches!(column.family(), "text" | "bytea" | "jsonb" | "json") {
            on.error(
                Some(name),
                format!("a {} cannot hold a sealed value", column.declared),
                "seal text, bytea or json",
            );
        }
        if column.declared.starts_with("character varying(") {
            on.warning(Some(name), format!("a sealed value may not fit {}", column.declared), "make it text");
        }
        let looked_up = table.indexes.iter().any(|i| i.unique && i.columns.len() == 1 && i.columns[0] == name);
        if looked_up {
            on.warning(
                Some(name),
                "a sealed value is different each time, so its unique index finds nothing",
                "look it up by a keyed hash in a column of its own",
            );
        }
    }
}

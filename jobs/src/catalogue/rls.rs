//! The SQL that lets Reeve's worker reach the app's rows one tenant at a time: grants, policies, and their indexes.
//!
//! Row-level security is enabled and not forced, so the owner, which is how most apps connect, is unaffected. Where the app
//! connects as another role, enabling it would hide every row from the app: then nothing is written and the way out is
//! told. Likewise where a restrictive policy of the app's own would hide every row from the worker. Each table gets one
//! permissive policy that opens and restrictive ones that fence; a permissive policy added later by somebody else opens
//! nothing more to the worker. Partitions are not granted: rows are reached through their parent.
//! Break-glass gets the same to read, for the tenant its session may see, and no sealed column.
use std::collections::BTreeSet;

use super::{
    Catalogue, Schema, TableName,
    introspect::{Policy, Table, Writer},
    model::{NullRows, Parent, Scope, TableEntry},
    name::{ident, idents},
    route::{self, RouteError, TenantSql},
};

/// The role that policies are for.
const WORKER: &str = "reeve_worker";
/// The group of break-glass logins: they read, and what they see is decided by `reeve.breakglass_tenant()`.
const BREAKGLASS: &str = "reeve_breakglass";
/// Roles that Reeve writes policies for: a grant to one of them is no app's.
const SERVED: [&str; 2] = [WORKER, BREAKGLASS];

/// Fails before anything is changed, with what to do. Fixed text: no name of the app's stands between the dollars.
const MAY_REFER: &str = "\
DO $$ BEGIN
  IF to_regnamespace('reeve') IS NULL THEN
    RAISE EXCEPTION 'this database has no schema reeve, whose function the policies call'
      USING HINT = 'Run `reeve migrate` in it first.';
  ELSIF NOT has_schema_privilege('reeve', 'USAGE') THEN
    RAISE EXCEPTION 'role % may not use schema reeve, whose function the policies call', current_user
      USING HINT = format('As an administrator: GRANT reeve_app TO %I;', current_user);
  END IF;
END $$;
";
/// A schema that belongs to somebody else: its GRANT is only a warning, and the worker would reach none of its tables.
const MAY_REACH: &str = "
DO $$ DECLARE closed text; BEGIN
  SELECT string_agg(DISTINCT quote_ident(n.nspname), ', ') INTO closed
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  WHERE c.relkind IN ('r', 'p') AND has_table_privilege('reeve_worker', c.oid, 'SELECT')
    AND NOT has_schema_privilege('reeve_worker', n.oid, 'USAGE');
  IF closed IS NOT NULL THEN
    RAISE EXCEPTION 'reeve_worker may not use schema %, which role % does not own', closed, current_user
      USING HINT = format('As its owner: GRANT USAGE ON SCHEMA %s TO reeve_worker;', closed);
  END IF;
END $$;
";

#[derive(Debug, thiserror::Error)]
pub enum RlsError {
    #[error("table \"{table}\": {source}; `reeve catalogue check` says more")]
    Route { table: TableName, source: Box<RouteError> },
    #[error("table \"{0}\" has scope = \"?\"; say whose its rows are, `reeve catalogue check` lists all such tables")]
    Undecided(TableName),
    #[error("row-level security would lock the app out:\n{0}")]
    LocksOut(String),
    #[error("the app's own policies would hide every row from Reeve's worker:\n{0}")]
    ShutsOut(String),
}

/// All of it as one script: a transaction, then indexes, which are made beside running work. Safe to run again.
pub fn sql(catalogue: &Catalogue, schema: &Schema) -> Result<String, RlsError> {
    let tables: Vec<_> = catalogue
        .tables
        .iter()
        .filter(|(name, _)| name.schema != "reeve")
        .filter_map(|(name, entry)| schema.tables.get(name).map(|table| (entry, table)))
        .filter(|(_, table)| table.holds_rows())
        .collect();
    locked_out(&tables)?;
    shut_out(&tables)?;
    let schemas: BTreeSet<_> = tables
        .iter()
        .filter(|(entry, _)| !matches!(entry.scope, Scope::Ignored(_)))
        .map(|(_, table)| table.name.schema.as_str())
        .collect();
    let mut out = String::from(
        "-- Written by `reeve catalogue rls`. Run it as the owner of the tables, or an administrator.\nBEGIN;\n",
    );
    out.push_str(MAY_REFER);
    out.push_str("-- Where this only warns, the worker has it already or the end of the script says so.\n");
    for schema in schemas {
        out.push_str(&format!("GRANT USAGE ON SCHEMA {} TO {WORKER}, {BREAKGLASS};\n", ident(schema)));
    }
    let mut indexes = BTreeSet::new();
    for (entry, table) in tables {
        let wrong = |source| RlsError::Route { table: table.name.clone(), source: Box::new(source) };
        out.push_str(&one(catalogue, schema, entry, table)?);
        out.push_str(&breakglass(catalogue, schema, entry, table).map_err(wrong)?);
        needed(schema, entry, table, &mut indexes).map_err(wrong)?;
    }
    out.push_str(MAY_REACH);
    out.push_str("COMMIT;\n");
    if !indexes.is_empty() {
        out.push_str("\n-- What the policies need to be quick. Outside a transaction; nobody waits for the\n-- concurrent ones.\n");
        out.extend(indexes);
    }
    Ok(out)
}

/// Will its rows stand behind policies?
fn is_guarded(entry: &TableEntry) -> bool {
    entry.scope.is_owned() || matches!(&entry.scope, Scope::Shared(parents) if !parents.is_empty())
}

/// Roles of the app that row-level security would bind and no policy admits, for each thing that they may do.
fn locked_out(tables: &[(&TableEntry, &Table)]) -> Result<(), RlsError> {
    let mut told = String::new();
    for (entry, table) in tables {
        if !is_guarded(entry) || table.rls {
            continue;
        }
        let admits = |policy: &Policy, writer: &Writer, command: &String| {
            let role = |role: &String| role == "public" || *role == writer.role || writer.member_of.contains(role);
            policy.permissive
                && (policy.command == "all" || policy.command == *command)
                && policy.roles.iter().any(role)
        };
        let admitted = |writer: &Writer| {
            writer.commands.iter().all(|command| table.policies.iter().any(|p| admits(p, writer, command)))
        };
        let out: Vec<_> = app_writers(table).filter(|writer| !admitted(writer)).map(|w| w.role.as_str()).collect();
        if out.is_empty() {
            continue;
        }
        let (names, to) = if out.contains(&"public") {
            ("everybody".to_owned(), "PUBLIC".to_owned())
        } else {
            (out.iter().map(|role| format!("role {role:?}")).collect::<Vec<_>>().join(" and "), idents(&out))
        };
        let (uses, does, has) = if out.len() == 1 { ("uses", "does not", "has") } else { ("use", "do not", "have") };
        told.push_str(&format!(
            "  {}: {names} {uses} it, {does} own it ({:?} does) and {has} no policy; first run\n    CREATE POLICY {} ON {} TO {to} USING (true) WITH CHECK (true);\n",
            on_one_line(&table.name),
            table.owner,
            free_name(table),
            table.name.sql()
        ));
    }
    if told.is_empty() { Ok(()) } else { Err(RlsError::LocksOut(told.trim_end().to_owned())) }
}

fn app_writers(table: &Table) -> impl Iterator<Item = &Writer> {
    table.writers.iter().filter(|writer| !SERVED.contains(&writer.role.as_str()))
}

/// `app`, or the next like it that no policy of the table has.
fn free_name(table: &Table) -> String {
    let taken = |name: &String| table.policies.iter().any(|policy| policy.name == *name);
    let names = std::iter::once("app".to_owned()).chain((2..).map(|n| format!("app_{n}")));
    names.into_iter().find(|name| !taken(name)).unwrap_or_default()
}

/// Restrictive policies of the app's that bind every role. They were written with the app's roles in mind: the worker would
/// see nothing, and nobody would be told. One that names the worker is meant for it.
fn shut_out(tables: &[(&TableEntry, &Table)]) -> Result<(), RlsError> {
    let mut told = String::new();
    for (entry, table) in tables {
        let bound = is_guarded(entry) || (table.rls && entry.scope == Scope::Reference);
        let binding = table.policies.iter().filter(|p| !p.permissive && p.roles.iter().any(|role| role == "public"));
        for policy in binding.filter(|_| bound) {
            let mut roles: Vec<_> = app_writers(table).map(|w| w.role.as_str()).filter(|r| *r != "public").collect();
            if roles.is_empty() {
                roles.push(&table.owner);
            }
            told.push_str(&format!(
                "  {}: policy {:?} is restrictive and binds every role; if it is meant for the app's roles, first run\n    ALTER POLICY {} ON {} TO {};\n",
                on_one_line(&table.name),
                policy.name,
                ident(&policy.name),
                table.name.sql(),
                idents(&roles)
            ));
        }
    }
    if told.is_empty() {
        return Ok(());
    }
    told.push_str(&format!("  One that is meant for the worker too says so: TO {WORKER} and the app's roles."));
    Err(RlsError::ShutsOut(told))
}

fn one(catalogue: &Catalogue, schema: &Schema, entry: &TableEntry, table: &Table) -> Result<String, RlsError> {
    let on = table.name.sql();
    let condition = |tenant| {
        route::condition(catalogue, schema, &table.name, &on_alias(table), tenant)
            .map_err(|source| RlsError::Route { table: table.name.clone(), source: Box::new(source) })
    };
    let mut lines: Vec<String> = Vec::new();
    match &entry.scope {
        Scope::Undecided => return Err(RlsError::Undecided(table.name.clone())),
        Scope::Ignored(_) => return Ok(String::new()),
        Scope::Reference => {
            lines.push(format!("GRANT SELECT ON {on} TO {WORKER};"));
            if table.rls {
                lines.extend(policy(&on, "reeve_open", format!("FOR SELECT TO {WORKER} USING (true)")));
            }
        }
        Scope::Shared(parents) if parents.is_empty() => {
            lines.push("-- Shared, and nothing says by whom: not granted.".to_owned());
        }
        Scope::Shared(_) => {
            let read = condition(TenantSql::Context)?;
            lines.push(format!("GRANT SELECT ON {on} TO {WORKER};"));
            lines.push(format!("ALTER TABLE {on} ENABLE ROW LEVEL SECURITY;"));
            lines.extend(policy(&on, "reeve_open", format!("FOR SELECT TO {WORKER} USING (true)")));
            lines.extend(policy(&on, "reeve_fence", format!("AS RESTRICTIVE TO {WORKER} USING ({read})")));
        }
        scope => {
            let (read, write) = (condition(TenantSql::Context)?, condition(TenantSql::ContextToWrite)?);
            // A row owned in reverse stands before the row that points at it; until then nobody sees it.
            let made = if matches!(scope, Scope::Reverse(_)) { "true" } else { &write };
            lines.push(format!("GRANT SELECT, INSERT, UPDATE, DELETE ON {on} TO {WORKER};"));
            let sequences = table.columns.iter().filter_map(|column| column.sequence.as_ref());
            lines.extend(sequences.map(|name| format!("GRANT USAGE ON SEQUENCE {} TO {WORKER};", name.sql())));
            lines.push(format!("ALTER TABLE {on} ENABLE ROW LEVEL SECURITY;"));
            lines.extend(policy(&on, "reeve_open", format!("TO {WORKER} USING (true) WITH CHECK (true)")));
            let fence = format!("AS RESTRICTIVE TO {WORKER} USING ({read}) WITH CHECK ({made})");
            lines.extend(policy(&on, "reeve_fence", fence));
            if matches!(scope, Scope::Column { null: Some(NullRows::Everyone), .. }) {
                let update = format!("AS RESTRICTIVE FOR UPDATE TO {WORKER} USING ({write})");
                lines.extend(policy(&on, "reeve_fence_update", update));
                let delete = format!("AS RESTRICTIVE FOR DELETE TO {WORKER} USING ({write})");
                lines.extend(policy(&on, "reeve_fence_delete", delete));
            }
        }
    }
    Ok(format!("\n-- {}\n{}\n", on_one_line(&table.name), lines.join("\n")))
}

fn on_one_line(name: &TableName) -> String {
    name.to_string().replace(|c: char| c.is_control(), " ")
}

/// What an investigator reads: rows as the worker's fence has them, columns but for the sealed ones. What a script of an
/// earlier catalogue granted is taken back first.
fn breakglass(catalogue: &Catalogue, schema: &Schema, entry: &TableEntry, table: &Table) -> Result<String, RouteError> {
    let on = table.name.sql();
    let fence = match &entry.scope {
        Scope::Undecided | Scope::Ignored(_) => return Ok(String::new()),
        Scope::Shared(parents) if parents.is_empty() => return Ok(String::new()),
        Scope::Reference => None,
        _ => Some(route::condition(catalogue, schema, &table.name, &on_alias(table), TenantSql::BreakGlass)?),
    };
    let is_sealed = |name: &String| entry.columns.get(name).is_some_and(|column| column.sealed.is_some());
    let columns: Vec<_> = table.columns.iter().map(|column| column.name.clone()).collect();
    let open: Vec<_> = columns.iter().filter(|name| !is_sealed(name)).cloned().collect();
    let mut lines = vec![format!("REVOKE ALL ON {on} FROM {BREAKGLASS};")];
    if open.len() == columns.len() {
        lines.push(format!("GRANT SELECT ON {on} TO {BREAKGLASS};"));
    } else if !open.is_empty() {
        lines.push(format!("GRANT SELECT ({}) ON {on} TO {BREAKGLASS};", idents(&open)));
    }
    if fence.is_some() || table.rls {
        lines.extend(policy(&on, "reeve_breakglass", format!("FOR SELECT TO {BREAKGLASS} USING (true)")));
    }
    if let Some(fence) = fence {
        let fence = format!("AS RESTRICTIVE TO {BREAKGLASS} USING ({fence})");
        lines.extend(policy(&on, "reeve_breakglass_fence", fence));
    }
    Ok(format!("{}\n", lines.join("\n")))
}

/// In a policy the table has no alias, only its name.
fn on_alias(table: &Table) -> String {
    table.name.sql()
}

fn policy(on: &str, name: &str, rest: String) -> [String; 2] {
    [format!("DROP POLICY IF EXISTS {name} ON {on};"), format!("CREATE POLICY {name} ON {on} {rest};")]
}

/// The index that each policy needs and that is missing.
fn needed(schema: &Schema, entry: &TableEntry, table: &Table, all: &mut BTreeSet<String>) -> Result<(), RouteError> {
    let mut need = |table: &Table, columns: &[String]| {
        if !table.is_indexed_by(columns) {
            all.insert(format!("{}\n", table.create_index_sql(columns)));
        }
    };
    match &entry.scope {
        Scope::Column { column, .. } => need(table, std::slice::from_ref(column)),
        Scope::Path(steps) => {
            let mut here = table;
            for step in steps {
                need(here, &step.columns);
                here = route::table(schema, &step.table)?;
            }
        }
        Scope::Reverse(parents) | Scope::Shared(parents) => {
            for Parent { table, columns } in parents {
                need(route::table(schema, table)?, columns);
            }
        }
        Scope::Polymorphic { type_column, id_column, .. } => {
            need(table, &[type_column.clone(), id_column.clone()]);
        }
        _ => {}
    }
    Ok(())
}

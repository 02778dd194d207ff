//! Is this installation sound? Each check says what it found and, unless all is well, what to do.
//!
//! The guards of tenancy are read from the catalogs as they are, not as the migrations meant them: somebody may have
//! changed a table or a role since. Nothing here changes anything.
use std::collections::{BTreeSet, HashMap};

use reeve_jobs::{Kind, program::migrate::VERSION, queue::inspect};
use serde::Serialize;
use serde_json::Value;
use sqlx::{PgConnection, PgPool};

use super::ServiceError;

/// Bad news sorts after good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Ok,
    Warn,
    Fail,
}

impl Status {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

#[derive(Debug, Clone, Serialize)]
pub struct Check {
    pub name: &'static str,
    pub status: Status,
    pub found: String,
    /// What to do; `None` when all is well.
    pub fix: Option<String>,
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, status: Status::Ok, found: found.into(), fix: None }
    }

    fn warn(name: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name, status: Status::Warn, found: found.into(), fix: Some(fix.into()) }
    }

    fn fail(name: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name, status: Status::Fail, found: found.into(), fix: Some(fix.into()) }
    }
}

#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub checks: Vec<Check>,
}

impl Report {
    /// The worst of all checks.
    pub fn status(&self) -> Status {
        self.checks.iter().map(|check| check.status).max().unwrap_or(Status::Ok)
    }
}

/// Runs every check on a database whose schema is this build's (see [`super::ready`]).
pub async fn run(pool: &PgPool) -> Result<Report, ServiceError> {
    #[allow(clippy::disallowed_methods, reason = "catalogs and counts: no tenant's rows are read")]
    let mut connection = pool.acquire().await?;
    Ok(Report { checks: checks(&mut connection).await? })
}

async fn checks(connection: &mut PgConnection) -> sqlx::Result<Vec<Check>> {
    let mut checks = vec![server(connection).await?, schema(connection).await?];
    checks.push(roles(connection).await?);
    checks.push(ownership(connection).await?);
    checks.push(tenant_tables(connection).await?);
    checks.push(functions(connection).await?);
    checks.push(kinds(connection).await?);
    checks.push(durability(connection).await?);
    checks.push(oldest_transaction(connection).await?);
    checks.extend(stuck(connection).await?);
    Ok(checks)
}

/// PostgreSQL 15, as `server_version_num` counts.
const SERVER_VERSION_MIN: i32 = 150_000;

async fn server(connection: &mut PgConnection) -> sqlx::Result<Check> {
    let (number, version): (i32, String) = sqlx::query_as(
        "-- doctor.server
        SELECT current_setting('server_version_num')::integer, current_setting('server_version')",
    )
    .fetch_one(connection)
    .await?;
    Ok(server_verdict(number, &version))
}

fn server_verdict(number: i32, version: &str) -> Check {
    let found = format!("PostgreSQL {version}");
    if number >= SERVER_VERSION_MIN {
        return Check::ok("server", found);
    }
    Check::fail("server", found, "upgrade the server: Reeve needs PostgreSQL 15 or later")
}

async fn schema(connection: &mut PgConnection) -> sqlx::Result<Check> {
    let found: i64 =
        sqlx::query_scalar("-- doctor.schema\nSELECT reeve.schema_version()").fetch_one(connection).await?;
    Ok(match found {
        VERSION => Check::ok("schema", format!("at migration {found}, as this build needs")),
        _ => Check::fail(
            "schema",
            format!("at migration {found}, this build needs {VERSION}"),
            if found < VERSION { "run `reeve migrate`" } else { "update this program" },
        ),
    })
}

/// The roles that Reeve makes; the first four log in.
const ROLES: [&str; 6] = ["reeve_app", "reeve_worker", "reeve_scheduler", "reeve_ops", "reeve_owner", "reeve_dispatch"];

/// No role may stand above row-level security: not Reeve's own, nor the one that this connection uses.
async fn roles(connection: &mut PgConnection) -> sqlx::Result<Check> {
    let rows: Vec<(String, bool, bool)> = sqlx::query_as(
        "-- doctor.roles
        SELECT r.rolname::text, r.rolsuper, r.rolbypassrls FROM pg_roles r
        WHERE r.rolname = ANY ($1) OR r.rolname = current_user ORDER BY 1",
    )
    .bind(ROLES.map(str::to_owned).to_vec())
    .fetch_all(connection)
    .await?;
    let mut wrong = Vec::new();
    let mut fixes = Vec::new();
    for (name, is_super, bypasses) in rows.iter().filter(|(_, is_super, bypasses)| *is_super || *bypasses) {
        wrong.push(format!("{name} {}", if *is_super { "is a superuser" } else { "bypasses row-level security" }));
        if ROLES.contains(&name.as_str()) {
            let off = [(*is_super, "NOSUPERUSER"), (*bypasses, "NOBYPASSRLS")];
            let off: Vec<_> = off.iter().filter(|(set, _)| *set).map(|(_, word)| *word).collect();
            fixes.push(format!("ALTER ROLE {name} {};", off.join(" ")));
        } else {
            fixes.push("let [ops] database_url log in as reeve_ops".to_owned());
        }
    }
    if wrong.is_empty() {
        return Ok(Check::ok("roles", "none is a superuser, none bypasses row-level security"));
    }
    Ok(Check::fail("roles", wrong.join("; "), fixes.join(" ")))
}

/// An owner may switch row-level security off, so no role that logs in may own anything here, itself or through another.
async fn ownership(connection: &mut PgConnection) -> sqlx::Result<Check> {
    let owned: Vec<(String, String)> = sqlx::query_as(
        "-- doctor.owned
        SELECT pg_get_userbyid(o.owner)::text, o.thing FROM (
          SELECT c.relowner AS owner, 'table ' || c.relname AS thing FROM pg_class c
          WHERE c.relnamespace = 'reeve'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm', 'S')
          UNION ALL
          SELECT p.proowner, 'function ' || p.proname FROM pg_proc p WHERE p.pronamespace = 'reeve'::regnamespace
          UNION ALL
          SELECT n.nspowner, 'schema ' || n.nspname FROM pg_namespace n WHERE n.nspname = 'reeve') o
        WHERE pg_get_userbyid(o.owner) = ANY ($1) ORDER BY 1, 2",
    )
    .bind(ROLES[..4].iter().map(|role| (*role).to_owned()).collect::<Vec<_>>())
    .fetch_all(&mut *connection)
    .await?;
    let members: Vec<(String, String)> = sqlx::query_as(
        "-- doctor.members
        SELECT r.rolname::text, o.rolname::text FROM pg_roles r, pg_roles o
        WHERE r.rolname = ANY ($1) AND o.rolname IN ('reeve_owner', 'reeve_dispatch') AND NOT r.rolsuper
          AND pg_has_role(r.oid, o.oid, 'MEMBER') ORDER BY 1, 2",
    )
    .bind(ROLES[..4].iter().map(|role| (*role).to_owned()).collect::<Vec<_>>())
    .fetch_all(connection)
    .await?;
    if owned.is_empty() && members.is_empty() {
        return Ok(Check::ok("ownership", "roles that log in own nothing in schema reeve"));
    }
    let found: Vec<_> = (owned.iter().map(|(role, thing)| format!("{role} owns {thing}")))
        .chain(members.iter().map(|(role, of)| format!("{role} is a member of {of}")))
        .collect();
    let fixes: BTreeSet<_> = (owned.iter().map(|(role, thing)| format!("give {thing} of {role} to reeve_owner;")))
        .chain(members.iter().map(|(role, of)| format!("REVOKE {of} FROM {role};")))
        .collect();
    Ok(Check::fail("ownership", found.join("; "), fixes.into_iter().collect::<Vec<_>>().join(" ")))
}

#[derive(Debug, sqlx::FromRow)]
struct TenantTable {
    name: String,
    column: String,
    enabled: bool,
    forced: bool,
    not_null: bool,
    indexed: bool,
}

/// Every table with a tenant column is guarded: row-level security enabled and forced, the column NOT NULL and indexed.
async fn tenant_tables(connection: &mut PgConnection) -> sqlx::Result<Check> {
    let tables: Vec<TenantTable> = sqlx::query_as(
        "-- doctor.tenant_tables
        SELECT c.relname::text AS name, a.attname::text AS column, c.relrowsecurity AS enabled,
               c.relforcerowsecurity AS forced, a.attnotnull AS not_null,
               EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisvalid AND i.indkey[0] = a.attnum) AS indexed
        FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND NOT a.attisdropped
        WHERE c.relnamespace = 'reeve'::regnamespace AND c.relkind IN ('r', 'p')
          AND (a.attname = 'tenant_id' OR (c.relname, a.attname) IN (('tenants', 'id'), ('flag_overrides', 'subject')))
        ORDER BY 1",
    )
    .fetch_all(connection)
    .await?;
    let mut wrong = Vec::new();
    let mut fixes = Vec::new();
    for table in &tables {
        let (name, column) = (&table.name, &table.column);
        let alter = |what: &str| format!("ALTER TABLE reeve.{name} {what};");
        let rules = [
            (table.enabled, "has no row-level security", alter("ENABLE ROW LEVEL SECURITY")),
            (table.forced, "does not force row-level security", alter("FORCE ROW LEVEL SECURITY")),
            (table.not_null, "allows rows of no tenant", alter(&format!("ALTER COLUMN {column} SET NOT NULL"))),
            (table.indexed, "has no index by tenant", format!("CREATE INDEX CONCURRENTLY ON reeve.{name} ({column});")),
        ];
        for (_, what, fix) in rules.into_iter().filter(|(holds, ..)| !holds) {
            wrong.push(format!("{name} {what}"));
            fixes.push(fix);
        }
    }
    if wrong.is_empty() {
        return Ok(Check::ok("tenant tables", format!("{} tables, each guarded and indexed by tenant", tables.len())));
    }
    Ok(Check::fail("tenant tables", wrong.join("; "), fixes.join(" ")))
}

#[derive(Debug, sqlx::FromRow)]
struct Definer {
    signature: String,
    search_path: Option<String>,
    is_public: bool,
}

/// A SECURITY DEFINER function acts with its owner's rights for whoever calls it: its names must be pinned, so that no
/// caller's schema can stand in, and only named roles may call it.
async fn functions(connection: &mut PgConnection) -> sqlx::Result<Check> {
    let definers: Vec<Definer> = sqlx::query_as(
        "-- doctor.functions
        SELECT p.oid::regprocedure::text AS signature,
               (SELECT substring(c FROM '^search_path=(.*)$') FROM unnest(p.proconfig) c WHERE c LIKE 'search\\_path=%')
                 AS search_path,
               has_function_privilege('public', p.oid, 'EXECUTE') AS is_public
        FROM pg_proc p WHERE p.pronamespace = 'reeve'::regnamespace AND p.prosecdef ORDER BY 1",
    )
    .fetch_all(connection)
    .await?;
    let mut wrong = Vec::new();
    let mut fixes = Vec::new();
    for definer in &definers {
        let signature = &definer.signature;
        if !definer.search_path.as_deref().is_some_and(is_pinned) {
            wrong.push(format!("{signature} has no pinned search_path"));
            fixes.push(format!("ALTER FUNCTION {signature} SET search_path = pg_catalog, pg_temp;"));
        }
        if definer.is_public {
            wrong.push(format!("{signature} may be called by everybody"));
            fixes.push(format!("REVOKE EXECUTE ON FUNCTION {signature} FROM PUBLIC;"));
        }
    }
    if wrong.is_empty() {
        let found = format!("{} SECURITY DEFINER functions, each pinned and closed to PUBLIC", definers.len());
        return Ok(Check::ok("functions", found));
    }
    Ok(Check::fail("functions", wrong.join("; "), fixes.join(" ")))
}

/// Whether nobody but the server and Reeve can put a name on this path, and temporary objects come last: left out, they
/// would be looked at first.
fn is_pinned(search_path: &str) -> bool {
    let schemas: Vec<_> = search_path.split(',').map(|schema| schema.trim().trim_matches('"')).collect();
    matches!(schemas.as_slice(), [named @ .., "pg_temp"] if named.iter().all(|schema| matches!(*schema, "pg_catalog" | "reeve")))
}

/// The database's copy of the kinds table against this build's.
async fn kinds(connection: &mut PgConnection) -> sqlx::Result<Check> {
    const FIX: &str = "run `reeve migrate` of the newest program in use";
    let stored = inspect::stored_kinds(connection).await?;
    let stored: HashMap<_, _> = stored.iter().filter_map(|kind| Some((kind.get("name")?.as_str()?, kind))).collect();
    let mut differing = Vec::new();
    for kind in Kind::ALL {
        let ours = serde_json::to_value(kind.spec()).map_err(|error| sqlx::Error::Encode(Box::new(error)))?;
        match stored.get(kind.name()) {
            None => differing.push(format!("{kind} is missing")),
            Some(theirs) => {
                differing.extend(differences(&ours, theirs).map(|field| format!("{kind} differs in {field}")))
            }
        }
    }
    if !differing.is_empty() {
        return Ok(Check::fail("kinds", differing.join("; "), FIX));
    }
    let mut foreign: Vec<_> = stored.keys().filter(|name| name.parse::<Kind>().is_err()).copied().collect();
    if foreign.is_empty() {
        return Ok(Check::ok("kinds", format!("{} kinds, equal to this build's", Kind::ALL.len())));
    }
    foreign.sort_unstable();
    let found = format!("not of this build: {}", foreign.join(", "));
    Ok(Check::warn("kinds", found, "keep a worker of the build that knows them until none of their jobs is left"))
}

/// Fields of a stored kind that differ from this build's. A cadence that the build no longer has stays in the database.
fn differences<'a>(ours: &'a Value, theirs: &'a Value) -> impl Iterator<Item = &'a String> {
    theirs.as_object().into_iter().flatten().filter_map(|(field, value)| {
        let own = ours.get(field).unwrap_or(&Value::Null);
        (own != value && !(field == "cadence" && own.is_null())).then_some(field)
    })
}

/// A committed job must survive a crash of the server. Settings of Reeve's roles count as well as the server's.
async fn durability(connection: &mut PgConnection) -> sqlx::Result<Check> {
    let off: Vec<String> = sqlx::query_scalar(
        "-- doctor.durability
        SELECT s.name || ' = off' FROM pg_settings s WHERE s.name IN ('fsync', 'synchronous_commit') AND s.setting = 'off'
        UNION ALL
        SELECT 'synchronous_commit = off for ' || r.rolname FROM pg_roles r
        WHERE r.rolname = ANY ($1) AND 'synchronous_commit=off' = ANY (r.rolconfig) ORDER BY 1",
    )
    .bind(ROLES.map(str::to_owned).to_vec())
    .fetch_all(connection)
    .await?;
    if off.is_empty() {
        return Ok(Check::ok("durability", "commits are flushed"));
    }
    let fix = "set it to on: a crash of the server can lose committed jobs";
    Ok(Check::warn("durability", off.join("; "), fix))
}

const TRANSACTION_SECS_MAX: f64 = 300.0;

/// Claims slow down while an old snapshot keeps dead rows from being cleaned.
async fn oldest_transaction(connection: &mut PgConnection) -> sqlx::Result<Check> {
    let (holder, secs, unseen, owner): (Option<String>, Option<f64>, i64, String) = sqlx::query_as(
        "-- doctor.oldest_transaction
        SELECT o.holder, o.age_secs, o.unseen,
               (SELECT pg_get_userbyid(p.proowner)::text FROM pg_proc p WHERE p.oid = 'reeve.oldest_transaction'::regproc)
        FROM reeve.oldest_transaction() o",
    )
    .fetch_one(connection)
    .await?;
    Ok(transaction_verdict(holder.zip(secs), unseen, &owner))
}

fn transaction_verdict(oldest: Option<(String, f64)>, unseen: i64, looks_as: &str) -> Check {
    const NAME: &str = "oldest transaction";
    match oldest {
        Some((holder, secs)) if secs > TRANSACTION_SECS_MAX => Check::warn(
            NAME,
            format!("{:.0} min: {holder}", secs / 60.0),
            "end it, or give its role idle_in_transaction_session_timeout: it slows every claim",
        ),
        _ if unseen > 0 => Check::warn(
            NAME,
            format!("cannot tell: sessions hidden from {looks_as}: {unseen}"),
            format!("GRANT pg_read_all_stats TO {looks_as};"),
        ),
        None => Check::ok(NAME, "no other is open"),
        Some((_, secs)) => Check::ok(NAME, format!("{secs:.0} s")),
    }
}

/// Leases that ran out this long ago should have been taken back many times over.
const LEASE_OVERDUE_SECS: i32 = 120;

async fn stuck(connection: &mut PgConnection) -> sqlx::Result<Vec<Check>> {
    let stuck = inspect::stuck(connection, LEASE_OVERDUE_SECS).await?;
    let leases = match stuck.leases_expired {
        0 => Check::ok("leases", "none has run out and been left"),
        n => Check::fail(
            "leases",
            format!("{n} ran out more than {} min ago", LEASE_OVERDUE_SECS / 60),
            "no scheduler is running: start reeve-scheduler",
        ),
    };
    let parked = |name, count, state: &str| match count {
        0 => Check::ok(name, "none"),
        n => Check::warn(
            name,
            format!("{n} waiting for an operator"),
            format!("`reeve jobs list --state {state}`; then `reeve jobs retry` or `reeve jobs cancel`"),
        ),
    };
    Ok(vec![leases, parked("quarantined", stuck.quarantined, "quarantined"), parked("dead", stuck.dead, "dead")])
}

#[cfg(test)]
mod tests;

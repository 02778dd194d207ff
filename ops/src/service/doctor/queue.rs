//! The queue: the schema and kinds that this build needs, and work that nobody does.
use std::collections::HashMap;

use reeve_jobs::{Kind, program::migrate::VERSION, queue::inspect};
use serde_json::Value;
use sqlx::PgConnection;

use super::Check;

pub(super) async fn schema(connection: &mut PgConnection) -> sqlx::Result<Check> {
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

/// The database's copy of the kinds table against this build's.
pub(super) async fn kinds(connection: &mut PgConnection) -> sqlx::Result<Check> {
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
pub(super) fn differences<'a>(ours: &'a Value, theirs: &'a Value) -> impl Iterator<Item = &'a String> {
    theirs.as_object().into_iter().flatten().filter_map(|(field, value)| {
        let own = ours.get(field).unwrap_or(&Value::Null);
        (own != value && !(field == "cadence" && own.is_null())).then_some(field)
    })
}

/// Leases that ran out this long ago should have been taken back many times over.
const LEASE_OVERDUE_SECS: i32 = 120;

pub(super) async fn stuck(connection: &mut PgConnection) -> sqlx::Result<Vec<Check>> {
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

//! Who may do what in schema `reeve`, against what this build's migrations grant.
//!
//! `migrations/privileges.txt` is made from a freshly migrated database by the same statement that looks at this one (a test
//! fails while the file is stale; `./ops/test privileges` makes it anew). Every line is a grant, an owner, a policy, a guard,
//! a trigger or the hash of a function's body. Compared both ways: what is missing and what is too much. Policies and
//! bodies are compared as PostgreSQL writes them down, and the file is made by PostgreSQL 15.
use std::collections::BTreeSet;

use sqlx::PgConnection;

use super::Check;

const EXPECTED: &str = include_str!("../../../../migrations/privileges.txt");
const LINES: &str = include_str!("privileges.sql");

/// A line as it was found; `grantee` where it grants something.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub(super) struct Line {
    pub line: String,
    pub grantee: Option<String>,
}

pub(super) async fn lines(connection: &mut PgConnection) -> sqlx::Result<Vec<Line>> {
    sqlx::query_as(LINES).fetch_all(connection).await
}

/// What this build's migrations make.
fn expected() -> impl Iterator<Item = &'static str> {
    EXPECTED.lines().filter(|line| !line.starts_with("#") && !line.is_empty())
}

/// Whether this build's migrations leave this function to whoever migrates.
pub(super) fn is_migrators(signature: &str) -> bool {
    expected().any(|line| line == format!("-- ROUTINE {signature} is owned by whoever migrates"))
}

pub(super) fn check(found: &[Line]) -> Check {
    compare(&expected().collect(), found)
}

pub(super) fn compare(known: &BTreeSet<&str>, found: &[Line]) -> Check {
    const NAME: &str = "privileges";
    let there: BTreeSet<_> = found.iter().map(|line| line.line.as_str()).collect();
    let (mut wrong, mut odd, mut fixes) = (Vec::new(), Vec::new(), Vec::new());
    for line in found {
        let forbidden = line.grantee.is_some() && is_forbidden(&line.line);
        if known.contains(line.line.as_str()) && !forbidden {
            continue;
        }
        // Whom Reeve does not know may be somebody's reporting; whom it knows got more than it is built for.
        let stranger = line.grantee.as_deref().is_some_and(|role| role != "PUBLIC" && !role.starts_with("reeve_"));
        let (said, fix) = surplus(&line.line, known);
        if stranger && !forbidden { &mut odd } else { &mut wrong }.push(said);
        fixes.extend(fix);
    }
    for line in known.difference(&there) {
        let (said, fix) = missing(line);
        wrong.push(said);
        fixes.push(fix);
    }
    let found = wrong.iter().chain(&odd).map(String::as_str).collect::<Vec<_>>().join("; ");
    let fix = fixes.join(" ");
    match (wrong.is_empty(), odd.is_empty()) {
        (true, true) => {
            Check::ok(NAME, format!("{} grants, owners, policies and functions, all as migrated", known.len()))
        }
        (true, false) => Check::warn(NAME, found, fix),
        (false, _) => Check::fail(NAME, found, fix),
    }
}

/// These go past the policies, or let a role put code of its own on a table. Nobody has them, whatever a migration says.
fn is_forbidden(line: &str) -> bool {
    let privilege = line.strip_prefix("GRANT ").and_then(|rest| rest.split([' ', '(']).next());
    matches!(privilege, Some("TRUNCATE" | "REFERENCES" | "TRIGGER"))
}

/// What is said of a line that is too much, and what takes it away. A changed body is told with the line that is missing.
fn surplus(line: &str, known: &BTreeSet<&str>) -> (String, Option<String>) {
    if let Some((start, _)) = body(line) {
        if known.iter().any(|line| line.starts_with(start)) {
            return (format!("another {} than this build's", &start[3..start.len() - 1]), None);
        }
        let function = &start["-- body of ".len()..start.len() - 1];
        return (format!("{function} is not of this build"), Some(format!("DROP ROUTINE {function};")));
    }
    let undo = undo(line);
    let said = line.trim_start_matches("-- ").trim_end_matches(';');
    (format!("too much: {said}"), undo)
}

fn missing(line: &str) -> (String, String) {
    if let Some((start, _)) = body(line) {
        let function = &start["-- body of ".len()..start.len() - 1];
        let fix = format!("find out who replaced {function}, then restore it from this build's migrations;");
        return (format!("{function} is not as this build made it"), fix);
    }
    match line.strip_prefix("-- ") {
        Some(remark) => {
            (format!("missing: {remark}"), "run `reeve migrate` on a database restored from before;".to_owned())
        }
        None => (format!("missing: {}", line.trim_end_matches(';')), line.to_owned()),
    }
}

/// The part of a body's line that names the function, up to its colon, and the rest.
fn body(line: &str) -> Option<(&str, &str)> {
    let at = line.strip_prefix("-- body of ")?.rfind(": ")? + "-- body of ".len() + 1;
    Some(line.split_at(at))
}

/// The statement that takes a line's effect away; `None` where another line's statement does, or nothing simple.
fn undo(line: &str) -> Option<String> {
    let words: Vec<_> = line.trim_end_matches(';').split(' ').collect();
    let bare = line.trim_end_matches(';');
    if let Some(rest) = bare.strip_prefix("GRANT ") {
        let (granted, to) = rest.rsplit_once(" TO ")?;
        return Some(format!("REVOKE {granted} FROM {};", to.trim_end_matches(" WITH GRANT OPTION")));
    }
    if let Some((start, rest)) = bare.split_once(" GRANT ").filter(|_| bare.starts_with("ALTER DEFAULT PRIVILEGES")) {
        let (granted, to) = rest.rsplit_once(" TO ")?;
        return Some(format!("{start} REVOKE {granted} FROM {to};"));
    }
    if let Some(rest) = bare.strip_prefix("CREATE POLICY ") {
        return Some(format!("DROP POLICY {};", rest.split_once(" AS ")?.0));
    }
    match words.as_slice() {
        ["ALTER", "TABLE", table, "DISABLE", "TRIGGER", trigger] => {
            Some(format!("ALTER TABLE {table} ENABLE TRIGGER {trigger};"))
        }
        ["CREATE", "TRIGGER", name, ..] => {
            let table = words.iter().skip_while(|word| **word != "ON").nth(1)?;
            Some(format!("DROP TRIGGER {name} ON {table};"))
        }
        ["ALTER", "ROUTINE", .., "SECURITY", "DEFINER"] => {
            Some(format!("{}INVOKER;", bare.trim_end_matches("DEFINER")))
        }
        ["ALTER", "ROUTINE", .., "LEAKPROOF"] => Some(format!("{}NOT LEAKPROOF;", bare.trim_end_matches("LEAKPROOF"))),
        _ => None,
    }
}

//! The app's own tables, by its catalogue: each declared, each guarded that holds tenants' rows.
use std::path::Path;

use reeve_jobs::catalogue::{check::Severity, introspect::Table, model::Scope};
use sqlx::PgPool;

use super::Check;
use crate::service::catalogue::{self, CatalogueError};

/// Findings that are told one by one; `reeve catalogue check` has them all.
const TOLD_MAX: usize = 10;

/// Errors of `reeve catalogue check`, and tables of tenants' rows without the policies of `reeve catalogue rls`.
pub async fn app(pool: &PgPool, file: &Path) -> Result<Check, CatalogueError> {
    const NAME: &str = "app tables";
    let report = catalogue::check(pool, file, None).await?;
    let (declared, schema) = catalogue::read(pool, file).await?;
    let errors = report.findings.iter().filter(|finding| finding.severity == Severity::Error);
    let mut wrong: Vec<_> = errors.map(ToString::to_string).collect();
    let mut fixes = Vec::new();
    if !wrong.is_empty() {
        fixes.push("`reeve catalogue check` says what to write");
    }
    let mut guarded = 0;
    for (name, entry) in declared.tables.iter().filter(|(name, _)| name.schema != "reeve") {
        let holds_tenants = entry.scope.is_owned() || matches!(&entry.scope, Scope::Shared(all) if !all.is_empty());
        let Some(table) = schema.tables.get(name).filter(|table| holds_tenants && table.holds_rows()) else { continue };
        if is_fenced(table) {
            guarded += 1;
        } else {
            wrong.push(format!("{name} holds tenants' rows and has no policy of Reeve's"));
        }
    }
    if wrong.iter().any(|what| what.ends_with("has no policy of Reeve's")) {
        fixes.push("`reeve catalogue rls` writes the policies; run them as the tables' owner");
    }
    if wrong.is_empty() {
        return Ok(Check::ok(NAME, format!("{} declared, {guarded} with tenants' rows, each guarded", report.tables)));
    }
    let more = wrong.len().saturating_sub(TOLD_MAX);
    wrong.truncate(TOLD_MAX);
    if more > 0 {
        wrong.push(format!("and {more} more"));
    }
    Ok(Check::fail(NAME, wrong.join("; "), fixes.join("; ")))
}

/// The restrictive policy that `reeve catalogue rls` writes, in force.
fn is_fenced(table: &Table) -> bool {
    let fence = |policy: &reeve_jobs::catalogue::introspect::Policy| {
        policy.name == "reeve_fence" && !policy.permissive && policy.roles.iter().any(|role| role == "reeve_worker")
    };
    table.rls && table.policies.iter().any(fence)
}

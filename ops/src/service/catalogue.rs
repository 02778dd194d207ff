//! The catalogue for operators: draft it, check it, see what follows from it. Nothing here changes the database.
//!
//! These commands read the app's own database, as a role that may read its tables: `plan-delete` counts rows and `init`
//! samples some. Where the same database has Reeve's schema too, Reeve's own catalogue is merged in.
use std::path::Path;

use reeve_jobs::{
    TenantId,
    catalogue::{
        Catalogue, Schema, TableName,
        check::{self, Finding, Severity},
        draft, draft_text, editor, graph,
        introspect::{self, IntrospectError, Table},
        load::{self, LoadError},
        model::{Scope, TableEntry},
        order::{self, OrderError, Plan},
        rls::{self, RlsError},
        route::{self, TenantSql},
        rows::{self, RowFinding, RowsError},
    },
};
use serde::Serialize;
use sqlx::{PgConnection, PgPool};

#[derive(Debug, thiserror::Error)]
pub enum CatalogueError {
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Introspect(#[from] IntrospectError),
    #[error(transparent)]
    Order(#[from] OrderError),
    #[error(transparent)]
    Rls(#[from] RlsError),
    #[error(transparent)]
    Rows(#[from] RowsError),
    #[error(
        "the catalogue is not that of this database: {errors} error(s), first\n  {first}\n`reeve catalogue check` lists them; nothing is written on such ground"
    )]
    NotAccepted { errors: usize, first: String },
    #[error("{0} exists; --force replaces it, --file names another")]
    Exists(String),
    #[error("{file} cannot be written: {source}")]
    Write { file: String, source: std::io::Error },
    #[error("table \"{0}\" is not in the catalogue; `reeve catalogue check` lists what is missing")]
    NoTable(TableName),
    #[error("table \"{0}\" of --tenants is not in the database, or has no primary key of one column")]
    NoTenants(TableName),
}

impl CatalogueError {
    /// As the command line documents its exit codes.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Load(_) | Self::Exists(_) | Self::Write { .. } | Self::NoTenants(_) => 2,
            Self::Introspect(_) | Self::Order(OrderError::Database(_)) => 3,
            Self::Rows(RowsError::Connection(_)) => 3,
            Self::NoTable(_) | Self::Order(_) | Self::Rls(_) | Self::Rows(_) | Self::NotAccepted { .. } => 1,
        }
    }
}

#[derive(Debug, Serialize)]
pub struct Drafted {
    pub file: String,
    pub tables: usize,
    pub tenants: Option<TableName>,
    /// Where no table of tenants was found: those that most tables point at.
    pub likely: Vec<TableName>,
    /// Tables that a person must decide about.
    pub undecided: Vec<TableName>,
}

/// Drafts the app's catalogue into `file`, and the editors' schema beside it.
pub async fn init(
    pool: &PgPool,
    file: &Path,
    force: bool,
    tenants: Option<&TableName>,
) -> Result<Drafted, CatalogueError> {
    if !force && file.exists() {
        return Err(CatalogueError::Exists(file.display().to_string()));
    }
    let schema = introspect::introspect(pool, false).await?;
    let samples = draft::sample(pool, &schema).await;
    let guess = draft::scopes(&schema, &samples, tenants);
    if let (Some(told), None) = (tenants, &guess.tenants) {
        return Err(CatalogueError::NoTenants(told.clone()));
    }
    write(file, &draft_text::write(&schema, &samples, &guess))?;
    write(&file.with_file_name("catalogue.schema.json"), editor::TEXT)?;
    let undecided = guess.scopes.iter().filter(|(_, scope)| **scope == Scope::Undecided).map(|(name, _)| name.clone());
    Ok(Drafted {
        file: file.display().to_string(),
        tables: guess.scopes.len(),
        undecided: undecided.collect(),
        likely: guess.likely,
        tenants: guess.tenants.map(|tenants| tenants.table),
    })
}

fn write(file: &Path, text: &str) -> Result<(), CatalogueError> {
    std::fs::write(file, text).map_err(|source| CatalogueError::Write { file: file.display().to_string(), source })
}

/// The catalogue and the database it is about.
pub(super) async fn read(pool: &PgPool, file: &Path) -> Result<(Catalogue, Schema), CatalogueError> {
    let schema = introspect::introspect(pool, true).await?;
    let ours = schema.tables.keys().any(|name| name.schema == "reeve");
    Ok((if ours { load::merged(file)? } else { load::file(file)? }, schema))
}

/// The same for what acts on it: a table that the catalogue does not know would keep the tenant's rows.
async fn accepted(pool: &PgPool, file: &Path) -> Result<(Catalogue, Schema), CatalogueError> {
    let (catalogue, schema) = read(pool, file).await?;
    let findings = check::check(&catalogue, &schema);
    let mut errors = findings.iter().filter(|finding| finding.severity == Severity::Error);
    match errors.next() {
        None => Ok((catalogue, schema)),
        Some(first) => Err(CatalogueError::NotAccepted { errors: errors.count() + 1, first: first.to_string() }),
    }
}

#[derive(Debug, Serialize)]
pub struct Report {
    pub tables: usize,
    pub errors: usize,
    pub warnings: usize,
    pub findings: Vec<Finding>,
    /// What the rows say, where they were asked; they are not while there are errors.
    pub rows: Option<Vec<RowFinding>>,
}

impl Report {
    pub fn passed(&self) -> bool {
        self.errors == 0 && self.rows.as_ref().is_none_or(Vec::is_empty)
    }
}

/// With a connection for it, the rows are asked too. Tables are counted without Reeve's own.
pub async fn check(pool: &PgPool, file: &Path, rows: Option<&mut PgConnection>) -> Result<Report, CatalogueError> {
    let (catalogue, schema) = read(pool, file).await?;
    let findings = check::check(&catalogue, &schema);
    let errors = findings.iter().filter(|finding| finding.severity == Severity::Error).count();
    let rows = match rows {
        Some(connection) if errors == 0 => Some(rows::count(connection, rows::questions(&catalogue, &schema)?).await?),
        _ => None,
    };
    let tables = catalogue.tables.keys().filter(|name| name.schema != "reeve").count();
    Ok(Report { tables, errors, warnings: findings.len() - errors, findings, rows })
}

/// What is said of a table, and what the database has.
#[derive(Debug, Serialize)]
pub struct Shown {
    pub table: TableName,
    pub entry: TableEntry,
    pub found: Option<Table>,
    /// The SQL that tells the tenant's rows, `$1` being its id; none where rows are of no tenant.
    pub condition: Option<String>,
    pub pointed_at_by: Vec<String>,
}

pub async fn show(pool: &PgPool, file: &Path, table: &TableName) -> Result<Shown, CatalogueError> {
    let (catalogue, schema) = read(pool, file).await?;
    let entry = catalogue.tables.get(table).cloned().ok_or_else(|| CatalogueError::NoTable(table.clone()))?;
    let pointing = schema.tables.values().flat_map(|from| {
        from.foreign_keys
            .iter()
            .filter(|key| key.table == *table)
            .map(|key| format!("{} ({})", from.name, key.columns.join(", ")))
    });
    Ok(Shown {
        table: table.clone(),
        entry,
        found: schema.tables.get(table).cloned(),
        condition: route::condition(&catalogue, &schema, table, "t", TenantSql::Parameter(1)).ok(),
        pointed_at_by: pointing.collect(),
    })
}

/// The plan, with the tenant's rows counted.
pub async fn plan_delete(pool: &PgPool, file: &Path, tenant: &TenantId) -> Result<Plan, CatalogueError> {
    let (catalogue, schema) = accepted(pool, file).await?;
    let mut plan = order::plan(&catalogue, &schema)?;
    order::count(pool, tenant, &mut plan).await?;
    Ok(plan)
}

pub async fn rls(pool: &PgPool, file: &Path) -> Result<String, CatalogueError> {
    let (catalogue, schema) = accepted(pool, file).await?;
    Ok(rls::sql(&catalogue, &schema)?)
}

pub async fn graph(pool: &PgPool, file: &Path) -> Result<String, CatalogueError> {
    let (catalogue, schema) = read(pool, file).await?;
    Ok(graph::dot(&catalogue, &schema))
}

#[cfg(test)]
mod tests {
    use reeve_jobs::testing::TestDatabase;
    use sqlx::Executor;

    use super::*;
    use crate::service::doctor;

    const CRM: &str = include_str!("../../dev/crm/schema.sql");

    /// The sample app, drafted; and where its catalogue is.
    async fn crm() -> (TestDatabase, tempfile::TempDir, std::path::PathBuf) {
        let db = TestDatabase::new().await;
        let sql = sqlx::AssertSqlSafe(format!("BEGIN; {CRM} COMMIT;"));
        db.admin.execute(sql).await.unwrap_or_else(|error| panic!("{error}"));
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("catalogue.toml");
        let drafted = init(&db.admin, &file, false, None).await.unwrap_or_else(|error| panic!("{error}"));
        // What nobody but a person can tell: the same for all tenants, and the loader's own.
        let undecided: Vec<_> = drafted.undecided.iter().map(ToString::to_string).collect();
        assert_eq!(undecided, ["crm.countries", "crm.sample_load"]);
        assert_eq!(drafted.tenants.expect("tenants").to_string(), "crm.workspaces");
        (db, directory, file)
    }

    fn decide(file: &Path) {
        let text = std::fs::read_to_string(file).expect("the draft");
        let text = text.replacen("\nscope = \"?\"", "\nscope = \"reference\"", 1);
        let text = text.replacen("\nscope = \"?\"", "\nscope = { ignored = \"the loader's own\" }", 1);
        std::fs::write(file, text).expect("the draft");
    }

    #[tokio::test]
    async fn the_sample_app_is_drafted_and_accepted_once_two_tables_are_decided() {
        let (db, _directory, file) = crm().await;
        let said: Vec<_> = check(&db.admin, &file, None).await.expect("a report").findings;
        let errors: Vec<_> = said.iter().filter(|f| f.severity == Severity::Error).map(ToString::to_string).collect();
        assert!(errors.len() == 2 && errors.iter().all(|error| error.contains("a person must")), "{errors:#?}");
        decide(&file);
        let report = check(&db.admin, &file, None).await.expect("a report");
        assert_eq!(report.errors, 0, "{:#?}", report.findings);
        let lines = show(&db.admin, &file, &"crm.invoice_lines".parse().expect("a name")).await.expect("a table");
        assert!(matches!(lines.entry.scope, Scope::Path(steps) if steps.len() == 1));
        let error = init(&db.admin, &file, false, None).await.unwrap_err();
        assert!(matches!(error, CatalogueError::Exists(_)), "{error}");
        db.drop_now().await;
    }

    #[tokio::test]
    async fn the_sample_apps_workspace_is_deleted_in_the_order_planned() {
        let (db, _directory, file) = crm().await;
        decide(&file);
        db.admin
            .execute(
                "INSERT INTO crm.workspaces (id, name) VALUES (7, 'a'), (8, 'b');
                 INSERT INTO crm.contacts (workspace_id, id, first_name, last_name) VALUES (7, 1, 'A', 'B'), (8, 2, 'A', 'B');
                 INSERT INTO crm.conversations (workspace_id, id, contact_id, channel) VALUES (7, 1, 1, 'web');
                 INSERT INTO crm.messages (workspace_id, id, conversation_id, body, status) VALUES (7, 1, 1, 'x', 'sent');
                 UPDATE crm.conversations SET last_message_id = 1",
            )
            .await
            .expect("rows");
        let plan = plan_delete(&db.admin, &file, &"7".parse().expect("an id")).await.expect("a plan");
        let rows: i64 = plan.steps.iter().filter(|s| s.action == order::Action::Delete).filter_map(|s| s.rows).sum();
        assert_eq!(rows, 4, "{plan:#?}");
        let script: Vec<_> = plan.steps.iter().map(|step| step.sql.replace("$1", "'7'")).collect();
        let script = format!("BEGIN; {}; COMMIT", script.join("; "));
        db.admin.execute(sqlx::AssertSqlSafe(script)).await.unwrap_or_else(|error| panic!("{error}"));
        let left: i64 =
            sqlx::query_scalar("SELECT (SELECT count(*) FROM crm.workspaces) + (SELECT count(*) FROM crm.contacts)")
                .fetch_one(&db.admin)
                .await
                .expect("a count");
        assert_eq!(left, 2, "the other workspace and its contact");
        db.drop_now().await;
    }

    #[tokio::test]
    async fn the_sample_apps_policies_can_be_written_and_run() {
        let (db, _directory, file) = crm().await;
        decide(&file);
        let sql = rls(&db.admin, &file).await.unwrap_or_else(|error| panic!("{error}"));
        let (transaction, _indexes) = sql.split_once("COMMIT;").expect("a transaction");
        let unguarded = doctor::app(&db.admin, &file).await.expect("a check");
        assert_eq!(unguarded.status, doctor::Status::Fail, "{unguarded:?}");
        assert!(unguarded.found.contains("crm.contacts holds tenants' rows and has no policy"), "{unguarded:?}");
        assert!(unguarded.fix.as_ref().is_some_and(|fix| fix.contains("reeve catalogue rls")), "{unguarded:?}");
        db.admin
            .execute(sqlx::AssertSqlSafe(format!("{transaction}COMMIT;")))
            .await
            .unwrap_or_else(|error| panic!("{error}"));
        let guarded = doctor::app(&db.admin, &file).await.expect("a check");
        assert_eq!(guarded.status, doctor::Status::Ok, "{guarded:?}");
        for (fault, found) in [
            ("ALTER TABLE crm.contacts DISABLE ROW LEVEL SECURITY", "crm.contacts holds"),
            ("DROP POLICY reeve_fence ON crm.messages", "crm.messages holds"),
            (
                "CREATE TABLE crm.notes (workspace_id bigint)",
                "\"crm.notes\": is in the database and not in the catalogue",
            ),
        ] {
            db.admin.execute(fault).await.expect(fault);
            let check = doctor::app(&db.admin, &file).await.expect("a check");
            assert!(check.status == doctor::Status::Fail && check.found.contains(found), "{fault}: {check:?}");
        }
        let dot = graph(&db.admin, &file).await.expect("a picture");
        assert!(dot.contains("\"crm.invoice_lines\" -> \"crm.invoices\""), "{dot}");
        db.drop_now().await;
    }
}

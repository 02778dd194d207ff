//! The sample app: a multi-tenant CRM in a schema of its own, which knows Reeve only through SQL functions.
//!
//! [`load`] applies `crm/schema.sql` and fills it: shape and seed in, the same rows out on every machine. [`AppClient`]
//! then does what the web app would do, one transaction a request, under row-level security.
//!
//! It does not run migrations, sets no password, makes no webhook endpoint, puts nothing into an object store
//! ([`attachment_content`] says what belongs there), and grants nothing to Reeve's worker.

mod app;
mod copy;
mod rng;
mod rows;
#[cfg(test)]
mod tests;
mod words;

use std::collections::BTreeMap;
use std::fmt;

use sqlx::{AssertSqlSafe, PgConnection, PgPool, Row};

pub use app::{AppClient, ContactChange, MessageStatus, TenantTx};

/// The schema, as SQL that an administrator runs once in one transaction.
pub const SCHEMA_SQL: &str = include_str!("../crm/schema.sql");

/// The role that the web app logs in as.
pub const APP_ROLE: &str = "crm_app";

/// The app's own setting that names the tenant of a transaction.
pub const APP_CONTEXT_SETTING: &str = "app.tenant_id";

/// Every table of a tenant's rows. Each forces row-level security.
pub const TENANT_TABLES: &[&str] = &[
    "workspaces",
    "users",
    "companies",
    "contacts",
    "contact_tags",
    "leads",
    "conversations",
    "messages",
    "invoices",
    "invoice_lines",
    "attachments",
    "integrations",
    "webhook_subscriptions",
    "email_history",
];

/// Tables without tenants: what is the same for all, and the loader's note of what it loaded.
pub const GLOBAL_TABLES: &[&str] = &["countries", "sample_load"];

const TENANTS_MAX: u32 = 10_000;
const ROWS_MAX: u32 = 1_000_000;

/// How much to load. The same shape gives the same rows, whatever the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// 1 to 10,000.
    pub tenants: u32,
    /// Contacts of each tenant, 1 to 1,000,000; the other tables follow (about 6.5 rows in all for each contact).
    pub rows: u32,
    /// Chooses the rows.
    pub seed: u64,
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} tenants with {} contacts each, seed {}", self.tenants, self.rows, self.seed)
    }
}

/// A tenant of the sample app, as Reeve knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadedTenant {
    /// The workspace's id as text: Reeve's tenant id.
    pub id: String,
    pub name: String,
}

/// What the database holds after [`load`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// In the order of their ids.
    pub tenants: Vec<LoadedTenant>,
    /// Rows of each table of [`TENANT_TABLES`] and [`GLOBAL_TABLES`], as they are now.
    pub rows: BTreeMap<&'static str, u64>,
    /// False when an earlier load had already done the work.
    pub fresh: bool,
}

/// Why the sample app could not be loaded or used.
#[derive(Debug, thiserror::Error)]
pub enum CrmError {
    #[error("the sample app cannot have {0}; use 1 to {TENANTS_MAX} tenants with 1 to {ROWS_MAX} contacts each")]
    Shape(Shape),
    #[error("role \"{role}\" is no superuser, and only one can load the sample app; connect as the administrator")]
    NotAdmin { role: String },
    #[error("this database has no schema \"reeve\" with register_tenant(); run `reeve migrate` on it first")]
    NoReeve,
    #[error("this database has a schema \"crm\" that the sample loader did not make; use another database")]
    ForeignSchema,
    #[error(
        "this database holds the sample app with {found}, not {asked}; ask for the former, or use a fresh database \
         (`DROP SCHEMA crm CASCADE` as the administrator removes the sample app, but not what it queued in Reeve)"
    )]
    LoadedOtherwise { found: String, asked: Shape },
    #[error("sample app: {0}")]
    Database(#[from] sqlx::Error),
}

/// Loads the sample app through `admin`, a superuser's pool, in one transaction: schema, rows, Reeve's settings, and
/// each tenant's registration. Does nothing when the same shape is there already.
///
/// # Errors
/// Refuses a shape out of range, a role that is no superuser, a database without Reeve's schema, and one that holds
/// another shape or a foreign schema `crm`. Nothing is left behind then.
pub async fn load(admin: &PgPool, shape: Shape) -> Result<Loaded, CrmError> {
    if !(1..=TENANTS_MAX).contains(&shape.tenants) || !(1..=ROWS_MAX).contains(&shape.rows) {
        return Err(CrmError::Shape(shape));
    }
    let mut tx = admin.begin().await?;
    let fresh = !already_loaded(&mut tx, shape).await?;
    if fresh {
        sqlx::raw_sql(SCHEMA_SQL).execute(&mut *tx).await?;
        fill(&mut tx, shape).await?;
        tell_reeve(&mut tx).await?;
    }
    let tenants = sqlx::query("SELECT id::text, name FROM crm.workspaces ORDER BY workspaces.id")
        .fetch_all(&mut *tx)
        .await?
        .iter()
        .map(|row| Ok(LoadedTenant { id: row.try_get(0)?, name: row.try_get(1)? }))
        .collect::<Result<_, sqlx::Error>>()?;
    let rows = row_counts(&mut tx).await?;
    tx.commit().await?;
    Ok(Loaded { tenants, rows, fresh })
}

/// Whether this very shape is there. One load at a time: a second one waits here and then finds the first one's work.
async fn already_loaded(db: &mut PgConnection, shape: Shape) -> Result<bool, CrmError> {
    sqlx::query("SELECT pg_advisory_xact_lock(7261, 100)").execute(&mut *db).await?;
    let (role, is_admin, has_reeve, has_crm, has_note): (String, bool, bool, bool, bool) = sqlx::query_as(
        "SELECT current_user::text, (SELECT rolsuper FROM pg_roles WHERE rolname = current_user),
                to_regprocedure('reeve.register_tenant(text,text,text)') IS NOT NULL,
                to_regnamespace('crm') IS NOT NULL, to_regclass('crm.sample_load') IS NOT NULL",
    )
    .fetch_one(&mut *db)
    .await?;
    if !is_admin {
        return Err(CrmError::NotAdmin { role });
    }
    if !has_reeve {
        return Err(CrmError::NoReeve);
    }
    if has_crm && !has_note {
        return Err(CrmError::ForeignSchema);
    }
    if !has_crm {
        return Ok(false);
    }
    let found: Option<(i64, i64, String)> =
        sqlx::query_as("SELECT tenants, rows, seed FROM crm.sample_load").fetch_optional(&mut *db).await?;
    let Some((tenants, rows, seed)) = found else { return Err(CrmError::ForeignSchema) };
    if (tenants, rows, &seed) == (shape.tenants.into(), shape.rows.into(), &shape.seed.to_string()) {
        return Ok(true);
    }
    let found = format!("{tenants} tenants with {rows} contacts each, seed {seed}");
    Err(CrmError::LoadedOtherwise { found, asked: shape })
}

async fn fill(db: &mut PgConnection, shape: Shape) -> Result<(), CrmError> {
    let mut generator = rows::Generator::new(shape);
    generator.send_shared(db).await?;
    for tenant in 1..=i64::from(shape.tenants) {
        generator.send_tenant(tenant, db).await?;
    }
    sqlx::raw_sql(
        "UPDATE crm.conversations c SET last_message_id = m.last_id
         FROM (SELECT workspace_id, conversation_id, max(id) AS last_id FROM crm.messages GROUP BY 1, 2) m
         WHERE m.workspace_id = c.workspace_id AND m.conversation_id = c.id;
         DO $$
         DECLARE
           t text;
         BEGIN
           -- The rows brought their ids; the next id is the app's.
           FOR t IN SELECT table_name FROM information_schema.columns
                    WHERE table_schema = 'crm' AND column_name = 'id' AND is_identity = 'YES' LOOP
             EXECUTE format('SELECT setval(pg_get_serial_sequence(%L, %L), max(id)) FROM crm.%I', 'crm.' || t, 'id', t);
           END LOOP;
         END $$;",
    )
    .execute(&mut *db)
    .await?;
    sqlx::query("INSERT INTO crm.sample_load (tenants, rows, seed) VALUES ($1, $2, $3)")
        .bind(i64::from(shape.tenants))
        .bind(i64::from(shape.rows))
        .bind(shape.seed.to_string())
        .execute(&mut *db)
        .await?;
    for table in TENANT_TABLES {
        sqlx::query(AssertSqlSafe(format!("ANALYZE crm.{table}"))).execute(&mut *db).await?;
    }
    Ok(())
}

async fn tell_reeve(db: &mut PgConnection) -> Result<(), CrmError> {
    sqlx::query("UPDATE reeve.settings SET app_context_setting = $1")
        .bind(APP_CONTEXT_SETTING)
        .execute(&mut *db)
        .await?;
    sqlx::query("SELECT reeve.register_tenant(w.id::text, w.name, w.region) FROM crm.workspaces w ORDER BY w.id")
        .execute(&mut *db)
        .await?;
    Ok(())
}

async fn row_counts(db: &mut PgConnection) -> Result<BTreeMap<&'static str, u64>, CrmError> {
    let mut counts = BTreeMap::new();
    for &table in TENANT_TABLES.iter().chain(GLOBAL_TABLES) {
        let count: i64 =
            sqlx::query_scalar(AssertSqlSafe(format!("SELECT count(*) FROM crm.{table}"))).fetch_one(&mut *db).await?;
        counts.insert(table, count.unsigned_abs());
    }
    Ok(counts)
}

/// One checksum for each table of the sample app, whatever the order of its rows: equal checksums, equal contents.
/// Through a superuser's pool, since any other role sees only its own tenant's rows.
///
/// # Errors
/// When the sample app is not loaded or the database fails.
pub async fn checksums(admin: &PgPool) -> Result<BTreeMap<&'static str, String>, CrmError> {
    let mut tx = admin.begin().await?;
    // Rows are hashed as text, and these decide how values print.
    sqlx::raw_sql("SET LOCAL TimeZone = 'UTC'; SET LOCAL DateStyle = 'ISO'; SET LOCAL bytea_output = 'hex'")
        .execute(&mut *tx)
        .await?;
    let mut sums = BTreeMap::new();
    for &table in TENANT_TABLES.iter().chain(GLOBAL_TABLES) {
        let sum: String = sqlx::query_scalar(AssertSqlSafe(format!(
            "SELECT md5(coalesce(string_agg(h.sum, '' ORDER BY h.sum COLLATE \"C\"), ''))
             FROM (SELECT md5(t::text) AS sum FROM crm.{table} t) h"
        )))
        .fetch_one(&mut *tx)
        .await?;
        sums.insert(table, sum);
    }
    Ok(sums)
}

/// What an object store is to hold under the `object_key` of a loaded row of crm.attachments; its SHA-256 and its size
/// stand in that row.
#[must_use]
pub fn attachment_content(object_key: &str) -> Vec<u8> {
    format!("Attachment of the sample app.\n{object_key}\nمرفق من التطبيق التجريبي\n").into_bytes()
}

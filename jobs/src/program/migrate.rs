//! Bringing a database to this build's schema, and refusing to run on another.
//!
//! The migrations are compiled in. After them the kinds table of this build is copied to `reeve.kinds`,
//! `reeve.schedules` and `reeve.flags`, in one transaction. Programs call [`check`] at start: on a database behind or ahead of them they
//! say so and stop.
use sqlx::{
    Connection, PgConnection, PgPool,
    migrate::{Migration, MigrationType, Migrator},
};

use crate::kinds::Kind;

const FILES: &[(i64, &str, &str)] = &[
    (1, "roles", include_str!("../../../migrations/0001_roles.sql")),
    (2, "tenants", include_str!("../../../migrations/0002_tenants.sql")),
    (3, "kinds", include_str!("../../../migrations/0003_kinds.sql")),
    (4, "jobs", include_str!("../../../migrations/0004_jobs.sql")),
    (5, "audit", include_str!("../../../migrations/0005_audit.sql")),
    (6, "queue", include_str!("../../../migrations/0006_queue.sql")),
    (7, "webhooks", include_str!("../../../migrations/0007_webhooks.sql")),
    (8, "schedules", include_str!("../../../migrations/0008_schedules.sql")),
    (9, "sessions", include_str!("../../../migrations/0009_sessions.sql")),
    (10, "queue_upkeep", include_str!("../../../migrations/0010_queue_upkeep.sql")),
    (11, "audit_chain", include_str!("../../../migrations/0011_audit_chain.sql")),
    (12, "flags", include_str!("../../../migrations/0012_flags.sql")),
    (13, "context", include_str!("../../../migrations/0013_context.sql")),
    (14, "placements", include_str!("../../../migrations/0014_placements.sql")),
    (15, "breakglass", include_str!("../../../migrations/0015_breakglass.sql")),
    (16, "tenant_commands", include_str!("../../../migrations/0016_tenant_commands.sql")),
    (17, "limits", include_str!("../../../migrations/0017_limits.sql")),
    (18, "claim", include_str!("../../../migrations/0018_claim.sql")),
    (19, "audit_signing", include_str!("../../../migrations/0019_audit_signing.sql")),
    (21, "schedule_commands", include_str!("../../../migrations/0021_schedule_commands.sql")),
    (22, "progress", include_str!("../../../migrations/0022_progress.sql")),
    (23, "bulk", include_str!("../../../migrations/0023_bulk.sql")),
    (24, "history", include_str!("../../../migrations/0024_history.sql")),
    (25, "window", include_str!("../../../migrations/0025_window.sql")),
    (26, "settle_beside_cancel", include_str!("../../../migrations/0026_settle_beside_cancel.sql")),
    (27, "plans", include_str!("../../../migrations/0027_plans.sql")),
    (28, "directory", include_str!("../../../migrations/0028_directory.sql")),
    (29, "claim_marks", include_str!("../../../migrations/0029_claim_marks.sql")),
    (30, "keys", include_str!("../../../migrations/0030_keys.sql")),
    (31, "rekey", include_str!("../../../migrations/0031_rekey.sql")),
];

/// The schema this build needs.
pub const VERSION: i64 = FILES[FILES.len() - 1].0;

/// The schema before it: numbers may have gaps. For tests of programs on an older schema.
pub const PREVIOUS: i64 = FILES[FILES.len() - 2].0;

#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    #[error("the database has no Reeve schema yet; run `reeve migrate`")]
    Absent,
    #[error("the database is at migration {found}, this program needs {needed}; run `reeve migrate`")]
    Behind { found: i64, needed: i64 },
    #[error("the database is at migration {found}, this program knows only {known}; update the program")]
    Ahead { found: i64, known: i64 },
    #[error("migration failed, nothing of it was kept: {0}")]
    Failed(#[from] sqlx::migrate::MigrateError),
    #[error("the schema's version could not be read: {0}")]
    Database(#[from] sqlx::Error),
}

/// What [`run`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migrated {
    pub from: i64,
    pub to: i64,
}

/// Where the bookkeeping is: a schema of its own. In `public`, where it began, an app's `GRANT … ON ALL TABLES IN SCHEMA
/// public` would meet a table that the app's owner does not own, and fail.
const BOOKS: &str = "_reeve.migrations";
const BOOKS_BEFORE: &str = "public._reeve_migrations";

/// A migration's number, name and SQL.
type File = (i64, &'static str, sqlx::SqlStr);

fn files() -> Vec<File> {
    use sqlx::SqlSafeStr;
    FILES.iter().map(|(version, name, sql)| (*version, *name, (*sql).into_sql_str())).collect()
}

fn migrator(files: &[File], books: &'static str) -> Migrator {
    let migrations = files
        .iter()
        .map(|(version, name, sql)| Migration::new(*version, (*name).into(), MigrationType::Simple, sql.clone(), false))
        .collect();
    let mut migrator = Migrator::with_migrations(migrations);
    // A table of our own name: the app in the same database may use the same library.
    migrator.dangerous_set_table_name(books);
    migrator.set_ignore_missing(false);
    migrator
}

/// Brings the database to [`VERSION`] as an administrator: a role that may create roles and schemas. Safe to repeat, and
/// safe to run twice at a time (an advisory lock lets one wait for the other).
pub async fn run(admin: &mut PgConnection) -> Result<Migrated, MigrateError> {
    run_to(admin, VERSION).await
}

/// [`run`] up to a certain version: for tests of programs on an older schema.
pub async fn run_to(admin: &mut PgConnection, upto: i64) -> Result<Migrated, MigrateError> {
    let mut files = files();
    files.retain(|(version, ..)| *version <= upto);
    run_files(admin, &files).await
}

/// [`run`] with the files of a directory instead of those compiled in: for tests of what a changed migration lets through.
#[cfg(feature = "testing")]
pub async fn run_from(directory: &std::path::Path, admin: &mut PgConnection) -> Result<Migrated, MigrateError> {
    use sqlx::SqlSafeStr;
    let read = |(version, name, _): &(i64, &'static str, &str)| {
        let file = directory.join(format!("{version:04}_{name}.sql"));
        let sql = std::fs::read_to_string(&file).map_err(|error| sqlx::Error::Configuration(error.into()))?;
        Ok((*version, *name, sqlx::AssertSqlSafe(sql).into_sql_str()))
    };
    let files = FILES.iter().map(read).collect::<Result<Vec<_>, MigrateError>>()?;
    run_files(admin, &files).await
}

async fn run_files(admin: &mut PgConnection, files: &[File]) -> Result<Migrated, MigrateError> {
    // Held until the connection ends or lets go: where the books are must not change between the look and the use.
    sqlx::query("-- migrate.lock\nSELECT pg_advisory_lock(7261, 3)").execute(&mut *admin).await?;
    let migrated = run_locked(admin, files).await?;
    sqlx::query("-- migrate.unlock\nSELECT pg_advisory_unlock(7261, 3)").execute(&mut *admin).await?;
    Ok(migrated)
}

async fn run_locked(admin: &mut PgConnection, files: &[File]) -> Result<Migrated, MigrateError> {
    let upto = files.last().map_or(0, |(version, ..)| *version);
    let books = books(admin).await?;
    let from = found(admin, books).await?.unwrap_or(0);
    // The first migration looks for them where they began.
    migrator(files, books.unwrap_or(BOOKS_BEFORE)).run_direct(None, &mut *admin, false).await?;
    if books != Some(BOOKS) {
        move_books(admin).await?;
    }
    if upto == VERSION {
        copy_kinds(admin).await?;
    }
    Ok(Migrated { from, to: upto })
}

/// Books and whoever reads them move in one transaction.
async fn move_books(admin: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::raw_sql(
        "-- migrate.move_books
        BEGIN;
        CREATE SCHEMA IF NOT EXISTS _reeve;
        ALTER TABLE public._reeve_migrations SET SCHEMA _reeve;
        ALTER TABLE _reeve._reeve_migrations RENAME TO migrations;
        CREATE OR REPLACE FUNCTION reeve.schema_version() RETURNS bigint LANGUAGE sql STABLE SECURITY DEFINER
          SET search_path = pg_catalog, pg_temp
          AS $$ SELECT max(version) FROM _reeve.migrations WHERE success $$;
        COMMIT",
    )
    .execute(admin)
    .await?;
    Ok(())
}

/// `None`: there are none yet.
async fn books(connection: &mut PgConnection) -> sqlx::Result<Option<&'static str>> {
    let (now, before): (bool, bool) =
        sqlx::query_as("-- migrate.books\nSELECT to_regclass($1) IS NOT NULL, to_regclass($2) IS NOT NULL")
            .bind(BOOKS)
            .bind(BOOKS_BEFORE)
            .fetch_one(connection)
            .await?;
    Ok(if now { Some(BOOKS) } else { before.then_some(BOOKS_BEFORE) })
}

/// Copies this build's kinds, their cadences and their flags. Kinds that this build lacks stay: an older program may still run them.
async fn copy_kinds(admin: &mut PgConnection) -> sqlx::Result<()> {
    let specs: Vec<_> = Kind::ALL.iter().map(|kind| kind.spec()).collect();
    let specs = serde_json::to_value(specs).map_err(|error| sqlx::Error::Encode(Box::new(error)))?;
    let mut tx = admin.begin().await?;
    sqlx::query(
        "-- migrate.copy_kinds
        INSERT INTO reeve.kinds (name, queue, priority, attempts_max, payload_bytes_max, runs_when_closing, app_may_enqueue,
                                 budget_secs, deadline_secs)
        SELECT name, queue, priority, attempts_max, payload_bytes_max, runs_when_closing, app_may_enqueue, budget_secs,
               deadline_secs
        FROM jsonb_populate_recordset(NULL::reeve.kinds, $1)
        ON CONFLICT (name) DO UPDATE SET queue = excluded.queue, priority = excluded.priority,
          attempts_max = excluded.attempts_max, payload_bytes_max = excluded.payload_bytes_max,
          runs_when_closing = excluded.runs_when_closing, app_may_enqueue = excluded.app_may_enqueue,
          budget_secs = excluded.budget_secs, deadline_secs = excluded.deadline_secs",
    )
    .bind(&specs)
    .execute(&mut *tx)
    .await?;
    sqlx::query(
        "-- migrate.copy_cadences
        INSERT INTO reeve.schedules AS s (kind, cron, window_secs)
        SELECT k ->> 'name', k -> 'cadence' ->> 'cron', (k -> 'cadence' ->> 'window_secs')::integer
        FROM jsonb_array_elements($1) k WHERE k -> 'cadence' <> 'null'
        ON CONFLICT (kind) DO UPDATE SET cron = excluded.cron, window_secs = excluded.window_secs,
          next_at = CASE WHEN s.cron = excluded.cron THEN s.next_at END",
    )
    .bind(&specs)
    .execute(&mut *tx)
    .await?;
    sqlx::query(
        "-- migrate.copy_flags
        INSERT INTO reeve.flags (name, description, value_type, default_value)
        SELECT 'kind.' || (k ->> 'name'), format('Jobs of kind %s run; when off, they wait', k ->> 'name'), 'bool', 'true'
        FROM jsonb_array_elements($1) k
        UNION ALL SELECT 'limit.running_max', 'Jobs of a tenant that may run at one time in one queue; a million is no cap', 'int',
                         '1000000'::jsonb
        ON CONFLICT (name) DO NOTHING",
    )
    .bind(&specs)
    .execute(&mut *tx)
    .await?;
    tx.commit().await
}

async fn found(connection: &mut PgConnection, books: Option<&str>) -> sqlx::Result<Option<i64>> {
    let Some(books) = books else { return Ok(None) };
    // One of two names of this module's.
    let sql = format!("-- migrate.version\nSELECT max(version) FROM {books} WHERE success");
    sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_one(connection).await
}

/// Refuses a database that is not at this build's version. Any of the program roles may ask.
pub async fn check(pool: &PgPool) -> Result<(), MigrateError> {
    #[allow(clippy::disallowed_methods, reason = "the schema's version is of no tenant")]
    let mut connection = pool.acquire().await?;
    check_on(&mut connection).await
}

/// [`check`] on a connection: of a database that is to become a tenant's.
pub async fn check_on(connection: &mut PgConnection) -> Result<(), MigrateError> {
    let made: bool = sqlx::query_scalar("-- migrate.made\nSELECT to_regproc('reeve.schema_version') IS NOT NULL")
        .fetch_one(&mut *connection)
        .await?;
    if !made {
        return Err(MigrateError::Absent);
    }
    let found: i64 =
        sqlx::query_scalar("-- migrate.schema_version\nSELECT reeve.schema_version()").fetch_one(connection).await?;
    match found {
        VERSION => Ok(()),
        _ if found < VERSION => Err(MigrateError::Behind { found, needed: VERSION }),
        _ => Err(MigrateError::Ahead { found, known: VERSION }),
    }
}

/// Tells one set of migrations and kinds from another.
pub fn fingerprint() -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    FILES.hash(&mut hasher);
    for kind in Kind::ALL {
        format!("{:?}", kind.spec()).hash(&mut hasher);
    }
    hasher.finish()
}

//! Bringing the keystore to this build's form. It is a database of its own, so it has books and numbers of its own.
use std::borrow::Cow;

use sqlx::{
    PgConnection, PgPool, SqlSafeStr, SqlStr,
    migrate::{Migration, MigrationType, Migrator},
};

use super::migrate::{MigrateError, Migrated};

const FILES: &[(i64, &str, &str)] = &[(1, "keystore", include_str!("../../../migrations/keys/0001_keystore.sql"))];

/// The form that this build needs.
pub const VERSION: i64 = FILES[FILES.len() - 1].0;

const BOOKS: &str = "_reeve.migrations";

/// Brings the keystore to [`VERSION`], as an administrator who may create roles and schemas. Safe to repeat.
pub async fn run(admin: &mut PgConnection) -> Result<Migrated, MigrateError> {
    let files = FILES.iter().map(|(version, name, sql)| (*version, *name, (*sql).into_sql_str())).collect();
    run_files(admin, files).await
}

/// [`run`] with the files of a directory instead of those compiled in: for tests of what a changed one lets through.
#[cfg(feature = "testing")]
pub async fn run_from(directory: &std::path::Path, admin: &mut PgConnection) -> Result<Migrated, MigrateError> {
    let read = |(version, name, _): &(i64, &'static str, &str)| {
        let sql = std::fs::read_to_string(directory.join(format!("{version:04}_{name}.sql")));
        let sql = sql.map_err(|error| sqlx::Error::Configuration(error.into()))?;
        Ok((*version, *name, sqlx::AssertSqlSafe(sql).into_sql_str()))
    };
    run_files(admin, FILES.iter().map(read).collect::<Result<_, MigrateError>>()?).await
}

async fn run_files(
    admin: &mut PgConnection,
    files: Vec<(i64, &'static str, SqlStr)>,
) -> Result<Migrated, MigrateError> {
    sqlx::query("-- migrate_keys.lock\nSELECT pg_advisory_lock(7261, 4)").execute(&mut *admin).await?;
    sqlx::query("-- migrate_keys.books\nCREATE SCHEMA IF NOT EXISTS _reeve").execute(&mut *admin).await?;
    let from = found(admin).await?.unwrap_or(0);
    let files = files
        .into_iter()
        .map(|(version, name, sql)| Migration::new(version, Cow::Borrowed(name), MigrationType::Simple, sql, false));
    let mut migrator = Migrator::with_migrations(files.collect());
    migrator.dangerous_set_table_name(BOOKS);
    migrator.run_direct(None, &mut *admin, false).await?;
    sqlx::query("-- migrate_keys.unlock\nSELECT pg_advisory_unlock(7261, 4)").execute(&mut *admin).await?;
    Ok(Migrated { from, to: VERSION })
}

async fn found(admin: &mut PgConnection) -> sqlx::Result<Option<i64>> {
    let made: bool = sqlx::query_scalar("-- migrate_keys.made\nSELECT to_regclass('_reeve.migrations') IS NOT NULL")
        .fetch_one(&mut *admin)
        .await?;
    if !made {
        return Ok(None);
    }
    sqlx::query_scalar("-- migrate_keys.version\nSELECT max(version) FROM _reeve.migrations WHERE success")
        .fetch_one(admin)
        .await
}

/// Tells one set of migrations from another.
#[cfg(feature = "testing")]
pub fn fingerprint() -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    FILES.hash(&mut hasher);
    hasher.finish()
}

/// Refuses a keystore that is not at this build's version.
pub async fn check(keystore: &PgPool) -> Result<(), MigrateError> {
    let made: bool = sqlx::query_scalar("-- migrate_keys.exists\nSELECT to_regproc('keys.schema_version') IS NOT NULL")
        .fetch_one(keystore)
        .await?;
    if !made {
        return Err(MigrateError::Absent);
    }
    let found: i64 =
        sqlx::query_scalar("-- migrate_keys.schema_version\nSELECT keys.schema_version()").fetch_one(keystore).await?;
    match found {
        VERSION => Ok(()),
        _ if found < VERSION => Err(MigrateError::Behind { found, needed: VERSION }),
        _ => Err(MigrateError::Ahead { found, known: VERSION }),
    }
}

//! Bringing the database to this build's schema, as its administrator.
use reeve_jobs::program::{
    migrate::{self as schema, MigrateError, VERSION},
    migrate_keys,
};
use serde::Serialize;
use sqlx::{PgConnection, migrate::MigrateError as SqlxMigrateError};

use super::ServiceError;

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Migrated {
    /// 0 when there was no schema.
    pub from: i64,
    pub to: i64,
    /// The keystore's version, where its address is known here.
    pub keystore: Option<i64>,
    /// The setting that was stored by this run.
    pub app_context_setting: Option<String>,
}

/// Migrates, and stores the app's own tenant setting when one is given; without one the stored setting stays.
pub async fn run(admin: &mut PgConnection, app_context_setting: Option<&str>) -> Result<Migrated, ServiceError> {
    let migrated = match schema::run(admin).await {
        Ok(migrated) => migrated,
        Err(error) => return Err(explain(admin, "[ops] admin_database_url", error).await),
    };
    if let Some(setting) = app_context_setting {
        sqlx::query("-- migrate.app_context_setting\nUPDATE reeve.settings SET app_context_setting = $1")
            .bind(setting)
            .execute(admin)
            .await?;
    }
    let app_context_setting = app_context_setting.map(str::to_owned);
    Ok(Migrated { from: migrated.from, to: migrated.to, keystore: None, app_context_setting })
}

/// Migrates the keystore; returns its version.
pub async fn run_keystore(admin: &mut PgConnection) -> Result<i64, ServiceError> {
    match migrate_keys::run(admin).await {
        Ok(migrated) => Ok(migrated.to),
        Err(error) => Err(explain(admin, "[ops] keystore_admin_url", error).await),
    }
}

/// Why a migration failed, in an operator's words; `key` is where the administrator's address came from.
pub(super) async fn explain(admin: &mut PgConnection, key: &'static str, error: MigrateError) -> ServiceError {
    match error {
        error if lacks_rights(&error) => {
            let role = sqlx::query_scalar("-- migrate.role\nSELECT current_user::text").fetch_one(admin).await;
            let lacks = "which may not create roles and schemas here; log in as the database's administrator";
            role.map_or_else(ServiceError::from, |role| ServiceError::Role { key, role, lacks })
        }
        MigrateError::Failed(SqlxMigrateError::VersionMissing(found)) => {
            ServiceError::Schema(MigrateError::Ahead { found, known: VERSION })
        }
        MigrateError::Database(error) => error.into(),
        error => ServiceError::Schema(error),
    }
}

fn lacks_rights(error: &MigrateError) -> bool {
    let error = match error {
        MigrateError::Database(error)
        | MigrateError::Failed(SqlxMigrateError::Execute(error) | SqlxMigrateError::ExecuteMigration(error, _)) => {
            error
        }
        _ => return false,
    };
    // insufficient_privilege
    error.as_database_error().and_then(|db| db.code()).is_some_and(|code| code == "42501")
}

#[cfg(test)]
mod tests {
    use reeve_jobs::testing::TestDatabase;
    use sqlx::Connection;

    use super::*;

    #[tokio::test]
    async fn migrating_twice_changes_nothing_the_second_time() {
        let db = TestDatabase::empty().await;
        let mut admin = PgConnection::connect_with(&db.admin.connect_options()).await.expect("the administrator");
        let first = run(&mut admin, Some("app.tenant_id")).await.expect("a migration");
        assert_eq!((first.from, first.to), (0, VERSION));
        let second = run(&mut admin, None).await.expect("a repetition");
        assert_eq!((second.from, second.to), (VERSION, VERSION));
        let stored: Option<String> = sqlx::query_scalar("SELECT app_context_setting FROM reeve.settings")
            .fetch_one(&db.admin)
            .await
            .expect("settings");
        assert_eq!(stored.as_deref(), Some("app.tenant_id"), "a run without the option leaves the setting");
        db.drop_now().await;
    }

    /// An ordinary owner of `public` may grant all of it, whatever Reeve keeps in the same database.
    #[tokio::test]
    async fn an_app_may_grant_all_tables_of_its_schema_after_a_migration_from_any_earlier_place_of_the_books() {
        let db = TestDatabase::empty().await;
        let mut admin = PgConnection::connect_with(&db.admin.connect_options()).await.expect("the administrator");
        run(&mut admin, None).await.expect("a migration");
        // As an earlier build left them.
        for sql in [
            "ALTER TABLE _reeve.migrations SET SCHEMA public",
            "ALTER TABLE public.migrations RENAME TO _reeve_migrations",
            "CREATE ROLE migrate_app_owner",
            "ALTER SCHEMA public OWNER TO migrate_app_owner",
            "CREATE TABLE public.mine (id int)",
            "ALTER TABLE public.mine OWNER TO migrate_app_owner",
        ] {
            sqlx::query(sql).execute(&mut admin).await.expect(sql);
        }
        let again = run(&mut admin, None).await.expect("a repetition");
        assert_eq!((again.from, again.to), (VERSION, VERSION), "nothing is migrated twice");
        let version: i64 =
            sqlx::query_scalar("SELECT reeve.schema_version()").fetch_one(&mut admin).await.expect("a version");
        assert_eq!(version, VERSION);
        let grant = "SET ROLE migrate_app_owner; GRANT SELECT ON ALL TABLES IN SCHEMA public TO reeve_app; RESET ROLE";
        sqlx::raw_sql(grant).execute(&mut admin).await.expect("every table of the schema is the app's own");
        for sql in ["DROP OWNED BY migrate_app_owner", "DROP ROLE migrate_app_owner"] {
            sqlx::query(sql).execute(&mut admin).await.expect(sql);
        }
        db.drop_now().await;
    }

    #[tokio::test]
    async fn a_database_ahead_of_the_program_is_refused() {
        let db = TestDatabase::new().await;
        sqlx::query(
            "INSERT INTO _reeve.migrations (version, description, success, checksum, execution_time)
             VALUES ($1, 'later', true, '', 0)",
        )
        .bind(VERSION + 1)
        .execute(&db.admin)
        .await
        .expect("a later migration");
        let mut admin = PgConnection::connect_with(&db.admin.connect_options()).await.expect("the administrator");
        let said = run(&mut admin, None).await.unwrap_err().to_string();
        assert!(said.contains("update the program"), "{said}");
        db.drop_now().await;
    }

    #[tokio::test]
    async fn a_role_without_the_rights_is_named() {
        let db = TestDatabase::empty().await;
        let mut ops = PgConnection::connect_with(&db.options("reeve_ops")).await.expect("reeve_ops");
        let error = run(&mut ops, None).await.unwrap_err();
        assert!(matches!(&error, ServiceError::Role { role, .. } if role == "reeve_ops"), "{error}");
        db.drop_now().await;
    }
}

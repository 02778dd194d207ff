//! Tests against a real database, each in a copy of its own.
mod slots_fire;
mod upkeep;
mod waiting;

use reeve_jobs::testing::TestDatabase;
use sqlx::{AssertSqlSafe, PgPool};

/// A database with the tenants `t1` to `t3`, a kind `test.tick` that may be attempted five times, and no schedule.
async fn database() -> (TestDatabase, PgPool) {
    let database = TestDatabase::new().await;
    for tenant in ["t1", "t2", "t3"] {
        database.tenant(tenant).await;
    }
    let db = &database.admin;
    run(db, "DELETE FROM reeve.schedules").await;
    kind(db, "test.tick").await;
    let pool = database.pool("reeve_scheduler").await;
    (database, pool)
}

async fn kind(db: &PgPool, name: &str) {
    run(db, &format!("INSERT INTO reeve.kinds VALUES ('{name}', 'tests', 3, 5, 64, false, true)")).await;
}

/// Arranges, as the superuser. Statements are the tests' own words.
async fn run(db: &PgPool, sql: &str) -> u64 {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
        .execute(db)
        .await
        .unwrap_or_else(|e| panic!("{sql}: {e}"))
        .rows_affected()
}

/// Looks, as the superuser: the statement's one value, as text.
async fn ask(db: &PgPool, sql: &str) -> String {
    let sql = format!("SELECT coalesce((({sql}))::text, 'NULL')");
    sqlx::query_scalar(AssertSqlSafe(sql.clone())).fetch_one(db).await.unwrap_or_else(|e| panic!("{sql}: {e}"))
}

//! Schemas that tests load: SQL files beside this one, in shapes that real applications have.
use sqlx::Executor;

use super::{Schema, TableName, introspect};
use crate::testing::TestDatabase;

/// A migrated database with these tables in it.
pub async fn database(sql: &'static str) -> (TestDatabase, Schema) {
    let db = TestDatabase::new().await;
    db.admin.execute(sql).await.unwrap_or_else(|error| panic!("{error}"));
    let schema = introspect(&db.admin, false).await.unwrap_or_else(|error| panic!("{error}"));
    (db, schema)
}

pub fn table(name: &str) -> TableName {
    name.parse().expect("a table's name")
}

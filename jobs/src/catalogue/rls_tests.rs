//! The script is run, and the worker's role is tried: it sees and changes its tenant's rows and no others.
use sqlx::{Connection, Executor, PgConnection};

use super::{fixtures::database, introspect, load, rls};
use crate::testing::TestDatabase;

const A: &str = "00000000-0000-0000-0000-00000000000a";
const TABLES: [(&str, i64); 11] = [
    ("app.orgs", 1),
    ("app.settings", 1),
    ("app.folders", 2),
    ("app.documents", 1),
    ("app.\"Recipients\"", 1),
    ("app.fields", 1),
    ("app.strokes", 2),
    ("app.comments", 2),
    ("app.people", 1),
    ("app.memberships", 1),
    // Its own, and the one for all.
    ("app.templates", 2),
];

async fn guarded() -> TestDatabase {
    let (db, schema) = database(include_str!("fixtures/owners.sql")).await;
    db.admin.execute(include_str!("fixtures/owners_rows.sql")).await.expect("rows");
    let catalogue = load::text_of("catalogue.toml", include_str!("fixtures/owners.toml")).expect("a catalogue");
    for _ in 0..2 {
        // Twice: the script may be run again.
        for statement in script(&rls::sql(&catalogue, &schema).expect("a script")) {
            let shown = statement.clone();
            db.admin.execute(sqlx::AssertSqlSafe(statement)).await.unwrap_or_else(|error| panic!("{shown}\n{error}"));
        }
    }
    db
}

/// The transaction as one string, then each index alone, as psql would send them.
fn script(sql: &str) -> Vec<String> {
    let (first, rest) = sql.split_once("COMMIT;\n").expect("a transaction");
    let rest = rest.lines().filter(|line| line.starts_with("CREATE")).map(str::to_owned);
    std::iter::once(format!("{first}COMMIT;")).chain(rest).collect()
}

async fn number(connection: &mut PgConnection, sql: &str) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar(sqlx::AssertSqlSafe(sql.to_owned())).fetch_one(connection).await
}

#[tokio::test]
async fn the_worker_sees_its_tenants_rows_by_every_kind_of_route_and_none_without_a_tenant() {
    let db = guarded().await;
    let mut worker = PgConnection::connect_with(&db.options("reeve_worker")).await.expect("the worker");
    for (table, _) in TABLES {
        let own = if table == "app.templates" { 1 } else { 0 };
        let seen = number(&mut worker, &format!("SELECT count(*) FROM {table}")).await.expect(table);
        assert_eq!(seen, own, "{table} without a tenant");
    }
    let mut tx = worker.begin().await.expect("a transaction");
    db.hold(&mut tx, &A.parse().expect("an id")).await;
    for (table, rows) in TABLES {
        let seen = number(&mut tx, &format!("SELECT count(*) FROM {table}")).await.expect(table);
        assert_eq!(seen, rows, "{table}");
    }
    assert_eq!(number(&mut tx, "SELECT count(*) FROM app.plans").await.expect("a reference"), 1);
    drop(tx);
    assert!(number(&mut worker, "SELECT count(*) FROM app.migrations").await.is_err(), "ignored is not granted");
    db.drop_now().await;
}

#[tokio::test]
async fn the_worker_cannot_change_make_or_move_rows_of_another_tenant_or_of_all() {
    let db = guarded().await;
    let mut worker = PgConnection::connect_with(&db.options("reeve_worker")).await.expect("the worker");
    for (sql, refused) in [
        ("DELETE FROM app.templates WHERE org_id IS NULL", false),
        ("UPDATE app.templates SET body = 'x' WHERE id IN (10, 99)", false),
        ("UPDATE app.strokes SET points = '{}' WHERE field_id = 10", false),
        ("DELETE FROM app.comments WHERE id >= 10", false),
        ("INSERT INTO app.templates VALUES (7, NULL, 'mine for all')", true),
        ("INSERT INTO app.documents VALUES (gen_random_uuid(), '00000000-0000-0000-0000-00000000001b', 'x')", true),
        ("UPDATE app.folders SET org_id = '00000000-0000-0000-0000-00000000000b'", true),
        ("INSERT INTO app.comments VALUES (7, 'Recipient', '10', 'x')", true),
        ("UPDATE app.plans SET price_cents = 0", true),
    ] {
        let mut tx = worker.begin().await.expect("a transaction");
        db.hold(&mut tx, &A.parse().expect("an id")).await;
        match tx.execute(sql).await {
            Ok(done) => assert!(!refused && done.rows_affected() == 0, "{sql}"),
            Err(error) => assert!(
                refused && error.to_string().contains("denied") | error.to_string().contains("policy"),
                "{sql}: {error}"
            ),
        }
    }
    // A policy that opens everything, added by somebody else, opens nothing to the worker.
    db.admin.execute("CREATE POLICY all_open ON app.folders USING (true)").await.expect("a policy");
    assert_eq!(number(&mut worker, "SELECT count(*) FROM app.folders").await.expect("an answer"), 0);
    db.drop_now().await;
}

#[tokio::test]
async fn the_owner_is_unaffected_and_an_app_that_is_not_the_owner_is_not_locked_out() {
    let (db, _) = database(include_str!("fixtures/owners.sql")).await;
    db.admin
        .execute("GRANT USAGE ON SCHEMA app TO reeve_app; GRANT SELECT ON app.folders TO pg_monitor")
        .await
        .expect("a grant");
    let catalogue = load::text_of("catalogue.toml", include_str!("fixtures/owners.toml")).expect("a catalogue");
    let schema = introspect(&db.admin, false).await.expect("a schema");
    let said = rls::sql(&catalogue, &schema).unwrap_err().to_string();
    assert!(
        said.contains("app.folders: role \"pg_monitor\" uses it") && said.contains("CREATE POLICY app ON"),
        "{said}"
    );
    let way_out = said.lines().find(|line| line.contains("CREATE POLICY")).expect("a way out").to_owned();
    db.admin.execute(sqlx::AssertSqlSafe(way_out)).await.expect("what was advised can be run");
    let schema = introspect(&db.admin, false).await.expect("a schema");
    let sql = rls::sql(&catalogue, &schema).expect("a script");
    assert!(!sql.contains("FORCE"), "the owner must stay free");
    db.drop_now().await;
}

#[tokio::test]
async fn names_with_quotes_and_capitals_stay_names() {
    let (db, schema) =
        database("CREATE SCHEMA \"We\"\"ird\"; CREATE TABLE \"We\"\"ird\".\"T'; --\" (\"Tenant Id\" bigint NOT NULL)")
            .await;
    let toml = "[table.'\"We\"\"ird\".T''; --']\n".replace("''; --", "'; --");
    let toml = format!(
        "{}scope = {{ column = \"Tenant Id\" }}\ncolumns = [\"Tenant Id\"]\n",
        toml.replace("'\"We\"\"ird\".T'; --'", "\"\\\"We\\\"\\\"ird\\\".T'; --\"")
    );
    let catalogue = load::text_of("catalogue.toml", &toml).unwrap_or_else(|error| panic!("{error}"));
    let sql = rls::sql(&catalogue, &schema).expect("a script");
    for statement in script(&sql) {
        db.admin.execute(sqlx::AssertSqlSafe(statement)).await.unwrap_or_else(|error| panic!("{error}\n{sql}"));
    }
    assert!(sql.contains("CREATE INDEX CONCURRENTLY ON \"We\"\"ird\".\"T'; --\" (\"Tenant Id\");"), "{sql}");
    db.drop_now().await;
}

#[tokio::test]
async fn a_label_made_to_break_out_of_the_policy_stays_a_label_and_names_stay_in_their_comments() {
    let sql = "CREATE TABLE teams (id char(4) PRIMARY KEY);
        CREATE TABLE \"notes\nDROP TABLE teams; --\" (id int PRIMARY KEY, team_id char(4) NOT NULL REFERENCES teams);
        CREATE TABLE marks (id int PRIMARY KEY, of_type text NOT NULL, of_id int NOT NULL);
        INSERT INTO teams VALUES ('aaaa'), ('bbbb');
        INSERT INTO \"notes\nDROP TABLE teams; --\" VALUES (1, 'aaaa'), (2, 'bbbb');
        CREATE INDEX ON \"notes\nDROP TABLE teams; --\" (team_id);
        INSERT INTO marks VALUES (1, 'x'' OR true --', 1), (2, 'x'' OR true --', 2), (3, 'other', 1);";
    let (db, _) = database(sql).await;
    let schema = introspect(&db.admin, false).await.expect("a schema");
    let toml = "[table.\"public.teams\"]\nscope = { column = \"id\" }\ncolumns = [\"id\"]
        [table.\"public.notes\\nDROP TABLE teams; --\"]\nscope = { column = \"team_id\" }\ncolumns = [\"id\", \"team_id\"]
        [table.\"public.marks\"]\ncolumns = [\"id\", \"of_type\", \"of_id\"]\nscope = { polymorphic = { type_column = \"of_type\",
            id_column = \"of_id\", of = { \"x' OR true --\" = \"public.notes\\nDROP TABLE teams; --\" } } }"
        .replace("\n            id_column", " id_column");
    let catalogue = load::text_of("catalogue.toml", &toml).unwrap_or_else(|error| panic!("{error}"));
    let sql = rls::sql(&catalogue, &schema).expect("a script");
    // A length less: `character` alone would be one letter.
    assert!(sql.contains("::bpchar"), "{sql}");
    for statement in script(&sql) {
        db.admin.execute(sqlx::AssertSqlSafe(statement)).await.unwrap_or_else(|error| panic!("{error}\n{sql}"));
    }
    let mut worker = PgConnection::connect_with(&db.options("reeve_worker")).await.expect("the worker");
    for (tenant, own) in [("aaaa", 1), ("bbbb", 2), ("a", 0)] {
        let mut tx = super::proof::speak_for(&db, &mut worker, tenant).await;
        let sum = "SELECT coalesce(sum(id), 0)::bigint FROM marks";
        assert_eq!(number(&mut tx, sum).await.expect("an answer"), own, "{tenant}");
    }
    assert_eq!(number(&mut worker, "SELECT count(*) FROM teams").await.expect("the table is there"), 0);
    db.drop_now().await;
}

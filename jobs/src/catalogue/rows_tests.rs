//! Rows that are not what the catalogue says, planted one kind at a time: each is counted, can be shown, and no value is told.
use sqlx::{Connection, Executor, PgConnection};

use super::{
    Catalogue, Schema,
    fixtures::{database, table},
    introspect, load,
    proof::{OWNER, owned},
    rows::{self, RowFinding, RowKind, RowsError},
};
use crate::testing::TestDatabase;

async fn asked(db: &TestDatabase, catalogue: &Catalogue, schema: &Schema) -> Vec<RowFinding> {
    let mut connection = PgConnection::connect_with(db.admin_options()).await.expect("a connection");
    let questions = rows::questions(catalogue, schema).unwrap_or_else(|error| panic!("{error}"));
    rows::count(&mut connection, questions).await.unwrap_or_else(|error| panic!("{error}"))
}

/// What is planted, and what is found: table, kind, how many, and a word of what is said. `b` is the second tenant.
const PLANTED: &[(&str, &str, RowKind, i64, &str)] = &[
    // A field on one tenant's document and on another's recipient.
    ("UPDATE app.fields SET recipient_id = 10 WHERE id = 0", "app.fields", RowKind::RoutesDisagree, 1, "recipient_id"),
    // A folder below another tenant's folder.
    (
        "UPDATE app.folders SET parent_id = '00000000-0000-0000-0000-00000000001b' WHERE id = '00000000-0000-0000-0000-00000000001a'",
        "app.folders",
        RowKind::RoutesDisagree,
        1,
        "parent_id",
    ),
    // On nothing.
    ("UPDATE app.comments SET owner_id = '4711'", "app.comments", RowKind::NoTenant, 4, "reach no tenant"),
    (
        "UPDATE app.comments SET owner_type = 'Thing' WHERE id = 0",
        "app.comments",
        RowKind::NoTenant,
        1,
        "reach no tenant",
    ),
    ("INSERT INTO app.settings VALUES (5, 'x'), (6, 'y')", "app.settings", RowKind::NoTenant, 2, "reach no tenant"),
    (
        "ALTER TABLE app.orgs DROP CONSTRAINT orgs_settings_id_key; UPDATE app.orgs SET settings_id = 0",
        "app.settings",
        RowKind::SeveralTenants,
        1,
        "several tenants",
    ),
    (
        "ALTER TABLE app.memberships DROP CONSTRAINT memberships_org_id_fkey;
         UPDATE app.memberships SET org_id = '00000000-0000-0000-0000-00000000000c' WHERE person_id = 0",
        "app.memberships",
        RowKind::UnknownTenant,
        1,
        "not in \"app.orgs\"",
    ),
];

#[tokio::test]
async fn each_row_that_its_routes_do_not_agree_about_is_counted_and_can_be_shown() {
    for (sql, name, kind, n, says) in PLANTED {
        let (db, schema) = database(include_str!("fixtures/owners.sql")).await;
        db.admin.execute(include_str!("fixtures/owners_rows.sql")).await.expect("rows");
        let catalogue = load::text_of("catalogue.toml", include_str!("fixtures/owners.toml")).expect("a catalogue");
        assert!(asked(&db, &catalogue, &schema).await.is_empty(), "before {sql}");
        db.admin.execute(*sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        let schema = introspect(&db.admin, false).await.expect("a schema");
        let found = asked(&db, &catalogue, &schema).await;
        let of = |f: &&RowFinding| (f.table == table(name), f.kind) == (true, *kind);
        let hit = found.iter().find(of).unwrap_or_else(|| panic!("{sql}: {found:#?}"));
        assert!(hit.rows == *n && hit.what.contains(says), "{hit:#?}");
        let shown = db.admin.fetch_all(sqlx::AssertSqlSafe(hit.sql.clone())).await;
        assert_eq!(
            shown.unwrap_or_else(|error| panic!("{}: {error}", hit.sql)).len(),
            usize::try_from(*n).expect("few")
        );
        // Ids and words of the rows stand nowhere; the labels of the catalogue do.
        let told = serde_json::to_string(&found).expect("json");
        assert!(!["4711", "Thing", "000c", "x.example"].iter().any(|value| told.contains(value)), "{told}");
        db.drop_now().await;
    }
}

#[tokio::test]
async fn rows_are_not_counted_by_a_role_that_would_see_some_only() {
    let db = TestDatabase::new().await;
    let owner = owned(&db).await;
    let sql = "CREATE TABLE teams (id int PRIMARY KEY);
        CREATE TABLE notes (id int PRIMARY KEY, team_id int NOT NULL);
        ALTER TABLE notes ENABLE ROW LEVEL SECURITY; ALTER TABLE notes FORCE ROW LEVEL SECURITY;";
    owner.execute(sql).await.expect("tables");
    let schema = introspect(&owner, false).await.expect("a schema");
    let toml = "[tenants]\ntable = \"public.teams\"\nkey = \"id\"
        [table.\"public.teams\"]\nscope = { column = \"id\" }\ncolumns = [\"id\"]
        [table.\"public.notes\"]\nscope = { column = \"team_id\" }\ncolumns = [\"id\", \"team_id\"]";
    let catalogue = load::text_of("catalogue.toml", toml).expect("a catalogue");
    let mut connection = PgConnection::connect_with(&db.options(OWNER)).await.expect("a connection");
    let questions = rows::questions(&catalogue, &schema).expect("questions");
    let error = rows::count(&mut connection, questions).await.expect_err("a refusal");
    assert!(matches!(&error, RowsError::Bound { table } if table.name == "notes"), "{error}");
    drop(connection);
    owner.close().await;
    db.drop_now().await;
}

//! The plan is run, not only read: afterwards the tenant has no row, and another tenant has all of its own.
use std::collections::BTreeMap;

use sqlx::{Connection, Executor, PgConnection};

use super::{
    Catalogue, Schema, draft, draft_text,
    fixtures::{database, table},
    load,
    order::{self, Action, Plan},
};
use crate::testing::TestDatabase;

async fn drafted(db: &TestDatabase, schema: &Schema) -> Catalogue {
    let samples = draft::sample(&db.admin, schema).await;
    let text = draft_text::write(schema, &samples, &draft::scopes(schema, &samples, None));
    load::text_of("catalogue.toml", &text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

async fn rows(db: &TestDatabase, schema: &Schema) -> BTreeMap<String, i64> {
    let mut all = BTreeMap::new();
    for table in schema.tables.values().filter(|table| table.holds_rows()) {
        let sql = format!("SELECT count(*) FROM {}", table.from_sql());
        let n = sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_one(&db.admin).await.expect("a count");
        all.insert(table.name.to_string(), n);
    }
    all
}

/// Runs the plan and returns how many rows each step changed.
async fn run(db: &TestDatabase, plan: &Plan, tenant: &str) -> Vec<i64> {
    let mut connection = PgConnection::connect_with(db.admin_options()).await.expect("a connection");
    let mut tx = connection.begin().await.expect("a transaction");
    let mut changed = Vec::new();
    for step in &plan.steps {
        // Utility statements take no parameters: the tests' ids are plain.
        let sql = step.sql.replace("$1", &format!("'{tenant}'"));
        let done = tx.execute(sqlx::AssertSqlSafe(sql)).await.unwrap_or_else(|error| panic!("{}: {error}", step.sql));
        changed.push(i64::try_from(done.rows_affected()).expect("few rows"));
    }
    tx.commit().await.expect("a commit");
    changed
}

#[tokio::test]
async fn a_plan_takes_all_of_one_tenant_and_nothing_of_another() {
    let (db, schema) = database(include_str!("fixtures/owners.sql")).await;
    db.admin.execute(include_str!("fixtures/owners_rows.sql")).await.expect("rows");
    let catalogue = load::text_of("catalogue.toml", include_str!("fixtures/owners.toml")).expect("a catalogue");
    let tenant = "00000000-0000-0000-0000-00000000000a";
    let before = rows(&db, &schema).await;
    let mut plan = order::plan(&catalogue, &schema).expect("an order");
    order::count(&db.admin, &tenant.parse().expect("an id"), &mut plan).await.expect("counts");
    let at =
        |name: &str| plan.steps.iter().position(|s| s.action == Action::Delete && s.table == table(name)).expect(name);
    for (first, then) in [
        ("app.strokes", "app.fields"),
        ("app.fields", "app.Recipients"),
        ("app.comments", "app.Recipients"),
        ("app.documents", "app.folders"),
        ("app.folders", "app.orgs"),
        ("app.orgs", "app.settings"),
    ] {
        assert!(at(first) < at(then), "{first} before {then}");
    }
    let changed = run(&db, &plan, tenant).await;
    for (step, changed) in plan.steps.iter().zip(changed) {
        assert!(step.rows.is_none_or(|rows| rows == changed), "{step:?} changed {changed}");
    }
    let after = rows(&db, &schema).await;
    for (name, n) in before {
        // Both tenants have the same rows; people, plans, templates for all and migrations are nobody's alone.
        let kept = match name.as_str() {
            "app.people" | "app.plans" | "app.migrations" => n,
            "app.templates" => n - 1,
            _ => n / 2,
        };
        assert_eq!(after[&name], kept, "{name}");
    }
    assert_eq!(plan.steps.last().map(|s| s.action), Some(Action::Refresh));
    db.drop_now().await;
}

#[tokio::test]
async fn a_circle_is_broken_by_a_column_that_may_be_null() {
    let (db, schema) = database(include_str!("fixtures/mapper.sql")).await;
    db.admin.execute(include_str!("fixtures/mapper_rows.sql")).await.expect("rows");
    let catalogue = drafted(&db, &schema).await;
    let plan = order::plan(&catalogue, &schema).expect("an order");
    let nulled: Vec<_> = plan
        .steps
        .iter()
        .filter(|s| s.action == Action::SetNull)
        .map(|s| (s.table.name.as_str(), s.note.as_deref()))
        .collect();
    assert_eq!(
        nulled,
        [("Document", Some("breaks the circle with public.Version")), ("Version", Some("points at itself"))]
    );
    run(&db, &plan, "it''s").await;
    let after = rows(&db, &schema).await;
    assert_eq!((after["public.Document"], after["public.Version"], after["public.Team"]), (1, 2, 1), "{after:?}");
    db.drop_now().await;
}

#[tokio::test]
async fn a_circle_without_a_nullable_column_is_named() {
    let sql = "CREATE TABLE tenants (id int PRIMARY KEY);
        CREATE TABLE a (id int PRIMARY KEY, tenant_id int NOT NULL REFERENCES tenants, b_id int NOT NULL);
        CREATE TABLE b (id int PRIMARY KEY, tenant_id int NOT NULL REFERENCES tenants, a_id int NOT NULL REFERENCES a);
        ALTER TABLE a ADD FOREIGN KEY (b_id) REFERENCES b;";
    let (db, schema) = database(sql).await;
    let said = order::plan(&drafted(&db, &schema).await, &schema).unwrap_err().to_string();
    assert!(said.contains("\"public.a\", \"public.b\"") && !said.contains("tenants"), "{said}");
    db.drop_now().await;
}

#[tokio::test]
async fn what_the_plan_leaves_alone_and_still_happens_is_listed() {
    let sql = "CREATE TABLE tenants (id text PRIMARY KEY);
        CREATE TABLE logs (id int PRIMARY KEY, t text REFERENCES tenants ON DELETE SET NULL);
        CREATE TABLE blockers (id int PRIMARY KEY, t text REFERENCES tenants);";
    let (db, schema) = database(sql).await;
    let toml = "[table.\"public.tenants\"]\nscope = { column = \"id\" }\ncolumns = [\"id\"]
        [table.\"public.logs\"]\nscope = { ignored = \"x\" }\n[table.\"public.blockers\"]\nscope = { ignored = \"x\" }";
    let plan = order::plan(&load::text_of("catalogue.toml", toml).expect("a catalogue"), &schema).expect("an order");
    let expected = [
        "public.blockers (t → public.tenants): stops the deletion while rows point there",
        "public.logs (t → public.tenants): is set to NULL",
    ];
    assert_eq!(plan.effects, expected);
    db.drop_now().await;
}

#[tokio::test]
async fn a_circle_is_never_broken_by_the_column_that_tells_the_tenant() {
    let sql = "CREATE TABLE tenants (id int PRIMARY KEY);
        CREATE TABLE a (tenant_id int REFERENCES tenants, id int NOT NULL, b_id int, UNIQUE (tenant_id, id));
        CREATE TABLE b (tenant_id int REFERENCES tenants, id int NOT NULL, a_id int NOT NULL, UNIQUE (tenant_id, id),
          FOREIGN KEY (tenant_id, a_id) REFERENCES a (tenant_id, id));
        ALTER TABLE a ADD FOREIGN KEY (tenant_id, b_id) REFERENCES b (tenant_id, id);
        INSERT INTO tenants VALUES (1); INSERT INTO a VALUES (1, 1, NULL); INSERT INTO b VALUES (1, 1, 1);
        UPDATE a SET b_id = 1;";
    let (db, schema) = database(sql).await;
    let plan = order::plan(&drafted(&db, &schema).await, &schema).expect("an order");
    assert!(!plan.steps.iter().any(|step| step.sql.contains("\"tenant_id\" = NULL")), "{plan:#?}");
    run(&db, &plan, "1").await;
    let left = rows(&db, &schema).await;
    assert!(left.values().all(|n| *n == 0), "{left:?}");
    db.drop_now().await;
}

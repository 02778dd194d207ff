//! Who row-level security would lock out: found by whatever way a role came to its rights, and by nothing else; what is
//! advised can be run, and afterwards each role still reads what it read.
use sqlx::{Connection, Executor, PgConnection};

use super::{
    Catalogue, introspect, load,
    proof::{APP, owned, run, speak_for, statements},
    rls,
};
use crate::testing::TestDatabase;

const TABLES: &str = "CREATE TABLE teams (id int PRIMARY KEY);
    CREATE TABLE notes (id serial PRIMARY KEY, team_id int NOT NULL REFERENCES teams, body text);
    CREATE INDEX ON notes (team_id);
    INSERT INTO teams VALUES (1), (2); INSERT INTO notes (team_id, body) VALUES (1, 'x'), (2, 'y'), (2, 'z');";
const TOML: &str = "[table.\"public.teams\"]\nscope = { column = \"id\" }\ncolumns = [\"id\"]
[table.\"public.notes\"]\nscope = { column = \"team_id\" }\ncolumns = [\"id\", \"team_id\", \"body\"]
references = [{ columns = \"team_id\", table = \"public.teams\" }]";

fn catalogue() -> Catalogue {
    load::text_of("catalogue.toml", TOML).expect("a catalogue")
}

/// What is granted, and to whom the way out opens; none: nobody is locked out. `{app}` logs in, `{group}` is its group,
/// `{past}` has BYPASSRLS and the app for a member.
const GRANTS: &[(&str, Option<&str>)] = &[
    ("GRANT SELECT (id, body) ON notes TO {app}", Some("\"{app}\"")),
    ("GRANT UPDATE (body) ON notes TO {app}; GRANT SELECT ON notes TO {app}", Some("\"{app}\"")),
    ("GRANT SELECT ON notes TO {group}; GRANT {group} TO {app}", Some("\"{group}\"")),
    ("GRANT SELECT ON notes TO {past}; GRANT {past} TO {app}", Some("\"{past}\"")),
    ("GRANT SELECT ON notes TO reeve_app; GRANT reeve_app TO {app}", Some("\"reeve_app\"")),
    ("GRANT SELECT ON notes TO PUBLIC", Some("PUBLIC")),
    ("GRANT SELECT ON notes TO {app}, {group}", Some("\"{app}\", \"{group}\"")),
    // A policy for reading does not let it write.
    (
        "GRANT SELECT, DELETE ON notes TO {app}; CREATE POLICY app ON notes FOR SELECT TO {app} USING (true)",
        Some("\"{app}\""),
    ),
    // A policy for its group is one for it.
    ("GRANT {group} TO {app}; GRANT SELECT ON notes TO {app}; CREATE POLICY p ON notes TO {group} USING (true)", None),
    ("GRANT SELECT ON notes TO {app}; CREATE POLICY p ON notes FOR SELECT TO {app} USING (true)", None),
    // A member of the owner counts as the owner; what lets past policies is its own.
    ("GRANT SELECT ON notes TO {app}; GRANT reeve_test_owner TO {app}", None),
    ("GRANT SELECT ON notes TO {past}", None),
    ("GRANT SELECT ON notes TO reeve_worker", None),
];

#[tokio::test]
async fn each_role_that_would_be_locked_out_is_named_by_whatever_way_it_has_its_rights() {
    for (index, (grant, out)) in GRANTS.iter().enumerate() {
        let db = TestDatabase::new().await;
        let owner = owned(&db).await;
        run(&owner, TABLES).await;
        let of = |kind: &str| format!("{APP}_{kind}_{index}_{}", &db.name[db.name.len() - 12..]);
        let (app, group, past) = (of("a"), of("g"), of("p"));
        let named = |text: &str| text.replace("{app}", &app).replace("{group}", &group).replace("{past}", &past);
        let roles = "CREATE ROLE {app} LOGIN PASSWORD 'test'; CREATE ROLE {group}; CREATE ROLE {past} BYPASSRLS; ";
        run(&db.admin, &named(&format!("{roles}{grant}"))).await;
        let schema = introspect(&owner, false).await.expect("a schema");
        let said = rls::sql(&catalogue(), &schema);
        match (out, said) {
            (None, Ok(_)) => {}
            (Some(to), Err(error)) => {
                let said = error.to_string();
                let ways: Vec<_> = said.lines().map(str::trim).filter(|line| line.starts_with("CREATE")).collect();
                assert!(ways.len() == 1 && ways[0].contains(&named(&format!(" TO {to} USING"))), "{grant}: {said}");
                run(&owner, ways[0]).await;
            }
            (_, said) => panic!("{grant}: {said:?}"),
        }
        let schema = introspect(&owner, false).await.expect("a schema");
        for statement in statements(&rls::sql(&catalogue(), &schema).expect("a script after what it advised")) {
            run(&owner, &statement).await;
        }
        let reads = grant.contains("{app}") || grant.contains("PUBLIC");
        let mut app_login = PgConnection::connect_with(&db.options(&app)).await.expect("the app");
        let seen = app_login.fetch_all("SELECT id FROM notes").await;
        assert!(!reads || seen.is_ok_and(|rows| rows.len() == 3), "{grant}: the app reads what it read");
        drop(app_login);
        owner.close().await;
        let end = "DROP OWNED BY {app}, {group}, {past}; DROP ROLE {app}, {group}, {past}";
        run(&db.admin, &named(end)).await;
        db.drop_now().await;
    }
}

/// In a transaction that never ends well: who reads all tables is a matter of the whole cluster, and other tests run beside.
#[tokio::test]
async fn a_member_of_the_role_that_reads_all_tables_is_locked_out_without_any_grant() {
    let db = TestDatabase::new().await;
    run(&db.admin, TABLES).await;
    let mut admin = PgConnection::connect_with(db.admin_options()).await.expect("the administrator");
    let mut tx = admin.begin().await.expect("a transaction");
    let free = introspect(&mut *tx, false).await.expect("a schema");
    assert!(rls::sql(&catalogue(), &free).is_ok(), "nobody reads all");
    let reader = format!("CREATE ROLE {APP}_reader; GRANT pg_read_all_data TO {APP}_reader");
    tx.execute(sqlx::AssertSqlSafe(reader)).await.expect("a reader");
    let schema = introspect(&mut *tx, false).await.expect("a schema");
    let said = rls::sql(&catalogue(), &schema).expect_err("a refusal").to_string();
    assert_eq!(said.matches("TO \"pg_read_all_data\" USING (true)").count(), 2, "{said}");
    let way =
        said.lines().map(str::trim).filter(|line| line.starts_with("CREATE POLICY")).collect::<Vec<_>>().join("\n");
    tx.execute(sqlx::AssertSqlSafe(way)).await.expect("what was advised can be run");
    let schema = introspect(&mut *tx, false).await.expect("a schema");
    assert!(rls::sql(&catalogue(), &schema).is_ok(), "the group's policy admits its member");
    tx.rollback().await.expect("a rollback");
    drop(admin);
    db.drop_now().await;
}

#[tokio::test]
async fn a_restrictive_policy_for_every_role_is_refused_and_one_that_names_the_worker_binds_it() {
    let db = TestDatabase::new().await;
    let owner = owned(&db).await;
    run(&owner, TABLES).await;
    run(
        &owner,
        "ALTER TABLE notes ENABLE ROW LEVEL SECURITY; CREATE POLICY \"of's\" ON notes AS RESTRICTIVE USING (id < 3)",
    )
    .await;
    let schema = introspect(&owner, false).await.expect("a schema");
    let said = rls::sql(&catalogue(), &schema).expect_err("a refusal").to_string();
    assert!(said.contains("ALTER POLICY \"of's\" ON \"public\".\"notes\" TO \"reeve_test_owner\";"), "{said}");
    run(&owner, "ALTER POLICY \"of's\" ON notes TO reeve_worker").await;
    let schema = introspect(&owner, false).await.expect("a schema");
    for statement in statements(&rls::sql(&catalogue(), &schema).expect("a script")) {
        run(&owner, &statement).await;
    }
    let mut worker = PgConnection::connect_with(&db.options("reeve_worker")).await.expect("the worker");
    let mut tx = speak_for(&db, &mut worker, "2").await;
    assert_eq!(tx.fetch_all("SELECT id FROM notes").await.expect("rows").len(), 1, "both policies hold");
    // A serial key's sequence was granted with the table.
    tx.execute("INSERT INTO notes (team_id, body) VALUES (2, 'new')")
        .await
        .expect_err("id is 4, and the policy wants less");
    drop(tx);
    run(&owner, "DROP POLICY \"of's\" ON notes").await;
    let mut tx = speak_for(&db, &mut worker, "2").await;
    tx.execute("INSERT INTO notes (team_id, body) VALUES (2, 'new')").await.expect("its own row");
    drop(tx);
    owner.close().await;
    db.drop_now().await;
}

#[tokio::test]
async fn an_owner_who_may_not_use_reeves_schema_or_does_not_own_the_apps_is_told_before_anything_changes() {
    let db = TestDatabase::new().await;
    let owner = owned(&db).await;
    run(&owner, TABLES).await;
    let schema = introspect(&owner, false).await.expect("a schema");
    let script = rls::sql(&catalogue(), &schema).expect("a script");
    let stranger = format!("reeve_test_stranger_{}", &db.name[db.name.len() - 12..]);
    let make = "CREATE ROLE {s} LOGIN PASSWORD 'test'; ALTER TABLE notes OWNER TO {s}; ALTER TABLE teams OWNER TO {s};";
    run(&db.admin, &make.replace("{s}", &stranger)).await;
    let mut login = PgConnection::connect_with(&db.options(&stranger)).await.expect("the stranger");
    let script = statements(&script).remove(0);
    let said = login.execute(sqlx::AssertSqlSafe(script.clone())).await.expect_err("a refusal").to_string();
    assert!(said.contains(&format!("role {stranger} may not use schema reeve")), "{said}");
    login.execute("ROLLBACK").await.expect("a rollback");
    run(&db.admin, &format!("GRANT reeve_app TO {stranger}; REVOKE USAGE ON SCHEMA public FROM PUBLIC; GRANT USAGE ON SCHEMA public TO {stranger}"))
        .await;
    let said = login.execute(sqlx::AssertSqlSafe(script.clone())).await.expect_err("a refusal").to_string();
    assert!(said.contains("reeve_worker may not use schema public"), "{said}");
    login.execute("ROLLBACK").await.expect("a rollback");
    let policies: i64 = sqlx::query_scalar("SELECT count(*) FROM pg_policies WHERE schemaname = 'public'")
        .fetch_one(&db.admin)
        .await
        .expect("a count");
    assert_eq!(policies, 0, "nothing was changed");
    run(&db.admin, "GRANT USAGE ON SCHEMA public TO reeve_worker").await;
    login.execute(sqlx::AssertSqlSafe(script)).await.unwrap_or_else(|error| panic!("{error}"));
    drop(login);
    owner.close().await;
    run(&db.admin, &format!("DROP OWNED BY {stranger} CASCADE; DROP ROLE {stranger}")).await;
    db.drop_now().await;
}

//! Wrong catalogues on the command line: each mistake of an operator, and what is said of it.
use reeve_jobs::testing::TestDatabase;

use super::{count_all, reeve};

const RIGHT: &str = "[table.\"public.teams\"]\nscope = { column = \"id\" }\ncolumns = [\"id\"]
[table.\"public.people\"]\nscope = \"reference\"\ncolumns = [\"id\"]
[table.\"public.notes\"]\nscope = { column = \"team_id\" }\ncolumns = [\"id\", \"team_id\", \"body\"]
references = [{ columns = \"team_id\", table = \"public.teams\" }]
[table.\"public.lines\"]\nscope = { path = [[\"note_id\", \"public.notes\"]] }\ncolumns = [\"id\", \"note_id\", \"at\"]
references = [{ columns = \"note_id\", table = \"public.notes\" }]
[tenants]\ntable = \"public.teams\"\nkey = \"id\"\n";

/// A piece of the right catalogue, what stands there instead, the exit code, and what is said.
const MISTAKES: &[(&str, &str, u8, &str)] = &[
    ("", "", 0, ""),
    (
        "[table.\"public.people\"]",
        "[table.\"public.persons\"]",
        1,
        "catalogue.toml:1: table \"public.people\": is in the database",
    ),
    (
        "\"body\"]",
        "\"body\", \"extra\"]",
        1,
        "catalogue.toml:9: table \"public.notes\", column \"extra\": is in the catalogue",
    ),
    (", \"body\"]", "]", 1, "catalogue.toml:7: table \"public.notes\", column \"body\": is in the database and not"),
    (
        "{ column = \"team_id\" }",
        "{ column = \"body\" }",
        1,
        "catalogue.toml:9: table \"public.notes\", column \"body\": the tenant column is text, \"public.teams\".\"id\" is bigint",
    ),
    (
        "{ path = [[\"note_id\"",
        "{ path = [[\"at\"",
        1,
        "catalogue.toml:11: table \"public.lines\": the scope: column \"at\" is date",
    ),
    (
        "\"public.notes\"]] }",
        "\"public.people\"]] }",
        1,
        "catalogue.toml:11: table \"public.lines\": the scope: does not end at a tenant",
    ),
    (
        "{ column = \"team_id\" }",
        "{ column = \"x\\\"; DROP TABLE notes; --\" }",
        1,
        "column \"x\\\"; DROP TABLE notes; --\": the tenant column is not",
    ),
    ("\"public.notes\"]] }", "\"public.notes; DROP TABLE notes\"]] }", 1, "is not in the database"),
    ("scope = \"reference\"", "scope = \"?\"", 1, "catalogue.toml:4: table \"public.people\": scope = \"?\""),
    ("scope = \"reference\"", "scope = \"referenc\"", 2, "catalogue.toml:5: table \"public.people\": "),
    (
        "columns = [\"id\"]\n[table.\"public.people\"]",
        "columns = [\"id\", 7]\n[table.\"public.people\"]",
        2,
        "catalogue.toml:3: table \"public.teams\": ",
    ),
    (
        "[table.\"public.people\"]",
        "[table.\"people\"]",
        2,
        "catalogue.toml:4: table \"people\": \"people\" is no table's name",
    ),
    ("[table.\"public.people\"]", "[table.\"public.peo\\u0000ple\"]", 2, "is no table's name"),
];

/// Each with the place where it stands, by every verb that would act on it, and nothing is changed.
#[tokio::test]
async fn a_wrong_catalogue_is_refused_by_line_table_and_column_and_nothing_is_changed() {
    let db = TestDatabase::new().await;
    let tables = "CREATE TABLE teams (id bigint PRIMARY KEY);
        CREATE TABLE people (id bigint PRIMARY KEY);
        CREATE TABLE notes (id bigint PRIMARY KEY, team_id bigint NOT NULL REFERENCES teams, body text);
        CREATE TABLE lines (id bigint PRIMARY KEY, note_id bigint NOT NULL REFERENCES notes, at date);
        INSERT INTO teams VALUES (1); INSERT INTO notes VALUES (1, 1, 'x');";
    sqlx::raw_sql(tables).execute(&db.admin).await.expect("tables");
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("catalogue.toml").display().to_string();
    let state = "SELECT md5(string_agg(x::text, ',' ORDER BY x::text)) FROM (SELECT relname, relacl, relrowsecurity FROM pg_class
        WHERE relnamespace = 'public'::regnamespace) x";
    let before: String = sqlx::query_scalar(state).fetch_one(&db.admin).await.expect("a state");
    for (from, to, code, says) in MISTAKES {
        std::fs::write(&file, RIGHT.replacen(from, to, 1)).expect("the catalogue");
        let verb = async |verb: &[&str]| reeve(&db, &[&["catalogue", "--file", &file], verb].concat()).await;
        let checked = verb(&["check", "--rows"]).await;
        assert_eq!(checked.code, *code, "{to}: {}{}", checked.out, checked.messages);
        assert!(
            format!("{}{}", checked.out, checked.messages).contains(says),
            "{says}: {}{}",
            checked.out,
            checked.messages
        );
        for acts in [verb(&["rls"]).await, verb(&["plan-delete", "1"]).await] {
            assert_eq!(acts.code, *code, "{to}: {}", acts.messages);
            assert!(*code == 0 || acts.out.is_empty(), "{to}: {}", acts.out);
        }
        let after: String = sqlx::query_scalar(state).fetch_one(&db.admin).await.expect("a state");
        assert!(after == before && count_all(&db, "notes").await == 1, "{to}: nothing is changed");
    }
    db.drop_now().await;
}

#[tokio::test]
async fn where_no_table_of_tenants_is_known_by_its_name_the_likely_ones_are_told() {
    let db = TestDatabase::new().await;
    let tables = "CREATE TABLE guilds (id bigint PRIMARY KEY);
        CREATE TABLE boards (id bigint PRIMARY KEY, guild_id bigint NOT NULL REFERENCES guilds);
        CREATE TABLE cards (id bigint PRIMARY KEY, guild_id bigint NOT NULL REFERENCES guilds);";
    sqlx::raw_sql(tables).execute(&db.admin).await.expect("tables");
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("catalogue.toml").display().to_string();
    let init =
        async |more: &[&str]| reeve(&db, &[&["catalogue", "--file", &file, "init", "--force"], more].concat()).await;
    let said = init(&[]).await.out;
    assert!(said.contains("tenants: no table found; --tenants names one, perhaps of public.guilds\n"), "{said}");
    assert!(std::fs::read_to_string(&file).expect("a draft").contains("draft again with --tenants: public.guilds."));
    let told = init(&["--tenants", "public.guilds"]).await.out;
    assert!(told.contains("tenants: public.guilds\n") && !told.contains("to decide"), "{told}");
    db.drop_now().await;
}

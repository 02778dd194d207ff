//! The check against a schema with every kind of ownership, and against catalogues with one mistake each.
use super::{
    check::{Severity, check},
    fixtures::database,
    load, rls,
};

const SQL: &str = include_str!("fixtures/owners.sql");
const TOML: &str = include_str!("fixtures/owners.toml");

/// A piece of the right catalogue, what stands there instead, and what is said about it.
const MISTAKES: &[(&str, &str, &str)] = &[
    ("[table.\"app.plans\"]", "[table.\"app.Plans\"]", "is \"app.plans\" meant? case counts"),
    (
        "[table.\"app.plans\"]",
        "[table.\"app.Plans\"]",
        "table \"app.plans\": is in the database and not in the catalogue",
    ),
    ("\"theme\"]", "]", "table \"app.settings\", column \"theme\": is in the database and not"),
    ("\"theme\"]", "\"theme\", \"hue\"]", "table \"app.settings\", column \"hue\": is in the catalogue and not"),
    ("\"theme\"]", "\"theme\", \"x\\\"; DROP TABLE app.orgs; --\"]", "is in the catalogue and not in the database"),
    (
        "references = [{ columns = \"documentId\", table = \"app.documents\" }]",
        "",
        "add { columns = [\"documentId\"], table = \"app.documents\" }",
    ),
    (
        "columns = [\"id\", \"theme\"]",
        "columns = [\"id\", \"theme\"]\nreferences = [{ columns = \"id\", table = \"app.orgs\" }]",
        "is no foreign key in the database",
    ),
    (
        "{ path = [[\"folder_id\", \"app.folders\"]] }",
        "{ path = [[\"folder_id\", \"app.plans\"]] }",
        "these do not compare",
    ),
    (
        "[\"documentId\", \"app.documents\"], [\"folder_id\", \"app.folders\"]]",
        "[\"documentId\", \"app.documents\"]]",
        "does not end at a tenant",
    ),
    (
        "[\"documentId\", \"app.documents\"], [\"folder_id\"",
        "[\"documentid\", \"app.documents\"], [\"folder_id\"",
        "has no column \"documentid\"",
    ),
    ("also = [[\"recipient_id\", \"app.Recipients\"]]", "", "two routes lead to a tenant"),
    ("{ column = \"org_id\", null = \"everyone\" }", "{ column = \"org_id\" }", "may be NULL, and nothing says"),
    (
        "{ column = \"org_id\", null = \"everyone\" }",
        "{ column = \"id\" }",
        "the tenant column is bigint, \"app.orgs\".\"id\" is uuid",
    ),
    (
        "{ column = \"org_id\", null = \"everyone\" }",
        "{ column = \"team_id\" }",
        "the tenant column is not in the database",
    ),
    ("scope = \"reference\"", "scope = \"?\"", "a person must"),
    (
        "{ reverse = [[\"app.orgs\", \"settings_id\"]] }",
        "{ reverse = [[\"app.plans\", \"price_cents\"]] }",
        "belongs to nobody",
    ),
    (
        "scope = { shared = [[\"app.memberships\", \"person_id\"]] }",
        "scope = { shared = [[\"app.memberships\", \"x\"]] }",
        "has no column \"x\"",
    ),
    ("erase = \"anonymise\"", "erase = \"null\"", "NOT NULL"),
    (
        "column.body = { pii = \"free_text\" }",
        "column.body = { pii = { kind = \"name\", path = \"$.x\" } }",
        "`path` looks into json",
    ),
    ("columns = [\"code\"", "key = [\"price_cents\"]\ncolumns = [\"code\"", "is not unique"),
];

#[tokio::test]
async fn every_kind_of_ownership_can_be_declared() {
    let (db, schema) = database(SQL).await;
    let found = check(&load::text_of("catalogue.toml", TOML).expect("a catalogue"), &schema);
    let errors: Vec<_> = found.iter().filter(|f| f.severity == Severity::Error).map(ToString::to_string).collect();
    assert_eq!(errors, Vec::<String>::new());
    let warnings: Vec<_> = found.iter().map(ToString::to_string).collect();
    // strokes alone has neither a key nor an index on its foreign key.
    assert_eq!(warnings.len(), 2, "{warnings:#?}");
    let index = "CREATE INDEX CONCURRENTLY ON \"app\".\"strokes\" (\"field_id\");";
    assert!(warnings.iter().any(|w| w.ends_with(index)), "{warnings:#?}");
    assert!(warnings.iter().any(|w| w.contains("nothing tells its rows apart")), "{warnings:#?}");
    db.drop_now().await;
}

#[tokio::test]
async fn each_mistake_is_found_where_it_stands_and_says_what_to_do() {
    let (db, schema) = database(SQL).await;
    for (from, to, says) in MISTAKES {
        assert!(TOML.contains(*from), "{from}");
        let text = TOML.replacen(from, to, 1);
        let catalogue = load::text_of("catalogue.toml", &text).unwrap_or_else(|error| panic!("{error}"));
        let found: Vec<_> = check(&catalogue, &schema)
            .iter()
            .filter(|f| f.severity == Severity::Error)
            .map(ToString::to_string)
            .collect();
        assert!(found.iter().any(|f| f.starts_with("catalogue.toml:") && f.contains(says)), "{says}: {found:#?}");
    }
    db.drop_now().await;
}

#[tokio::test]
async fn a_route_that_the_worker_could_not_go_is_refused() {
    let sql = "CREATE TABLE teams (id int PRIMARY KEY, code int UNIQUE);
        CREATE TABLE steps (id int PRIMARY KEY, team_id int NOT NULL REFERENCES teams, body_id int, UNIQUE (id, team_id));
        CREATE TABLE bodies (id int PRIMARY KEY, step_id int NOT NULL REFERENCES steps);
        ALTER TABLE steps ADD FOREIGN KEY (body_id) REFERENCES bodies;
        CREATE TABLE marks (id int PRIMARY KEY, t int NOT NULL REFERENCES teams (id), FOREIGN KEY (t) REFERENCES teams (code));";
    let (db, schema) = database(sql).await;
    let toml = "[table.\"public.teams\"]\nscope = { column = \"id\" }\ncolumns = [\"id\", \"code\"]
[table.\"public.steps\"]\nscope = STEPS\ncolumns = [\"id\", \"team_id\", \"body_id\"]
references = [{ columns = \"team_id\", table = \"public.teams\" }, { columns = \"body_id\", table = \"public.bodies\" }]
[table.\"public.bodies\"]\nscope = BODIES\ncolumns = [\"id\", \"step_id\"]
references = [{ columns = \"step_id\", table = \"public.steps\" }]
[table.\"public.marks\"]\nscope = MARKS\ncolumns = [\"id\", \"t\"]\nreferences = [{ columns = \"t\", table = \"public.teams\" }]";
    let (column, over) =
        ("{ column = \"team_id\" }", "{ path = [[\"step_id\", \"public.steps\"], [\"team_id\", \"public.teams\"]] }");
    let named = "{ path = [[\"t\", \"public.teams\", \"id\"]] }";
    for (steps, bodies, marks, says) in [
        (column, over, named, None),
        // Each policy would read the other's table.
        (
            "{ reverse = [[\"public.bodies\", \"step_id\"]] }",
            over,
            named,
            Some("catalogue.toml:4: table \"public.steps\": the scope: goes in a circle"),
        ),
        (
            "{ ignored = \"old\" }",
            over,
            named,
            Some(
                "catalogue.toml:8: table \"public.bodies\": the scope: goes over \"public.steps\", which is not granted",
            ),
        ),
        ("\"shared\"", over, named, Some("goes over \"public.steps\", which is not granted")),
        (
            column,
            over,
            "{ path = [[\"t\", \"public.teams\"]] }",
            Some(
                "catalogue.toml:12: table \"public.marks\": the scope: joins t to \"public.teams\", and foreign keys of these columns point at different columns",
            ),
        ),
    ] {
        let text = toml.replace("STEPS", steps).replace("BODIES", bodies).replace("MARKS", marks);
        let catalogue = load::text_of("catalogue.toml", &text).unwrap_or_else(|error| panic!("{error}\n{text}"));
        let found = check(&catalogue, &schema);
        let errors: Vec<_> = found.iter().filter(|f| f.severity == Severity::Error).map(ToString::to_string).collect();
        let script = rls::sql(&catalogue, &schema);
        match says {
            None => assert!(errors.is_empty() && script.is_ok(), "{errors:#?} {script:?}"),
            Some(says) => {
                assert!(errors.iter().any(|error| error.contains(says)), "{says}: {errors:#?}");
                assert!(script.is_err(), "no script for {says}");
            }
        }
    }
    db.drop_now().await;
}

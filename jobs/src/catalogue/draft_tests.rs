//! What `init` drafts, on schemas of different habits: accepted by `check` but for what a person must decide.
use super::{
    Schema,
    check::{Severity, check},
    draft, draft_text,
    fixtures::{database, table},
    load,
    model::{PiiKind, Scope},
};
use crate::testing::TestDatabase;

async fn drafted(db: &TestDatabase, schema: &Schema) -> String {
    let samples = draft::sample(&db.admin, schema).await;
    draft_text::write(schema, &samples, &draft::scopes(schema, &samples, None))
}

fn errors(text: &str, schema: &Schema) -> Vec<String> {
    let catalogue = load::text_of("catalogue.toml", text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    check(&catalogue, schema).iter().filter(|f| f.severity == Severity::Error).map(ToString::to_string).collect()
}

#[tokio::test]
async fn a_draft_finds_column_path_reverse_and_polymorphic_owners_and_marks_the_rest() {
    let (db, schema) = database(include_str!("fixtures/owners.sql")).await;
    sqlx::raw_sql(
        "INSERT INTO app.settings VALUES (1); INSERT INTO app.comments VALUES (1, 'Document', 'x', ''), (2, 'Recipient', '1', '');
         INSERT INTO app.plans VALUES ('a@b.example', 1)",
    )
    .execute(&db.admin)
    .await
    .expect("rows");
    let text = drafted(&db, &schema).await;
    let catalogue = load::text_of("catalogue.toml", &text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    let scope = |name: &str| &catalogue.tables[&table(name)].scope;
    assert_eq!(catalogue.tenants.as_ref().expect("tenants").table, table("app.orgs"));
    assert!(matches!(scope("app.folders"), Scope::Column { column, null: None } if column == "org_id"));
    assert!(matches!(scope("app.strokes"), Scope::Path(steps) if steps.len() == 3), "{:?}", scope("app.strokes"));
    assert!(matches!(scope("app.settings"), Scope::Reverse(_)));
    assert!(matches!(scope("app.comments"), Scope::Polymorphic { of, .. } if of.len() == 2));
    assert!(text.contains("also = [[\"recipient_id\", \"app.Recipients\"]]"), "{text}");
    assert_eq!(catalogue.tables[&table("app.plans")].columns["code"].pii[0].kind, PiiKind::Email, "by its values");
    assert!(!text.contains("a@b.example"), "a sampled value was written");
    let errors = errors(&text, &schema);
    let undecided: Vec<_> = errors.iter().filter(|e| e.contains("a person must")).collect();
    assert_eq!((errors.len(), undecided.len()), (3, 3), "people, plans and migrations: {errors:#?}");
    assert!(
        text.contains("{ shared = [[\"app.memberships\", [\"person_id\"]]] }"),
        "the doubt names the likely answer"
    );
    db.drop_now().await;
}

#[tokio::test]
async fn a_draft_of_a_schema_in_the_habits_of_a_mapper_is_accepted() {
    let (db, schema) = database(include_str!("fixtures/mapper.sql")).await;
    let text = drafted(&db, &schema).await;
    assert_eq!(errors(&text, &schema), Vec::<String>::new(), "{text}");
    assert!(text.contains("[table.\"public.Team\"]") && text.contains("soft_delete = \"deletedAt\""), "{text}");
    assert!(text.contains("attachments = { column = \"storageKey\""), "{text}");
    assert!(text.contains("column.\"apiKey\" = { sealed = \"plain\" }"), "{text}");
    assert!(text.contains("null = \"nobody\""), "{text}");
    db.drop_now().await;
}

#[tokio::test]
async fn a_draft_without_any_foreign_key_goes_by_the_usual_column() {
    let (db, schema) = database(include_str!("fixtures/keyless.sql")).await;
    let text = drafted(&db, &schema).await;
    assert_eq!(errors(&text, &schema), Vec::<String>::new(), "{text}");
    assert_eq!(text.matches("scope = { column = \"company_id\" }").count(), 3, "{text}");
    db.drop_now().await;
}

#[tokio::test]
async fn of_the_shapes_only_what_has_no_owner_is_left_to_a_person() {
    let (db, schema) = database(include_str!("fixtures/shapes.sql")).await;
    let text = drafted(&db, &schema).await;
    let errors = errors(&text, &schema);
    assert_eq!(errors.len(), 1, "{errors:#?}\n{text}");
    assert!(errors[0].contains("public.guarded"), "{errors:#?}");
    db.drop_now().await;
}

#[tokio::test]
async fn a_name_made_to_break_out_of_the_draft_stays_a_name() {
    let sql = "CREATE TABLE teams (id int PRIMARY KEY);
        CREATE TABLE \"x\"\"]\n[tenants]\rscope = 'reference'\" (id int PRIMARY KEY, \"a\\b\" text);
        CREATE TABLE notes (id int PRIMARY KEY, team_id int NOT NULL REFERENCES teams, \"y\n\"\"z\" int REFERENCES \"x\"\"]\n[tenants]\rscope = 'reference'\")";
    let (db, schema) = database(sql).await;
    let text = drafted(&db, &schema).await;
    let errors = errors(&text, &schema);
    assert_eq!(errors.len(), 1, "{errors:#?}\n{text}");
    assert!(errors[0].contains("a person must"), "{errors:#?}");
    db.drop_now().await;
}

#[tokio::test]
async fn tenants_by_int_in_one_table_and_bigint_in_another_are_one_kind_and_text_is_not() {
    let sql = "CREATE TABLE accounts (id int PRIMARY KEY);
        CREATE TABLE a (id int PRIMARY KEY, account_id bigint NOT NULL);
        CREATE TABLE b (id int PRIMARY KEY, account_id smallint NOT NULL REFERENCES accounts);
        CREATE TABLE c (id int PRIMARY KEY, account_id text NOT NULL)";
    let (db, schema) = database(sql).await;
    let text = drafted(&db, &schema).await;
    assert_eq!(text.matches("scope = { column = \"account_id\" }").count(), 2, "{text}");
    assert_eq!(errors(&text, &schema).len(), 1, "the text one is left to a person: {text}");
    db.drop_now().await;
}

#[tokio::test]
async fn names_with_lines_controls_and_turned_text_stand_in_comments_as_one_line_that_reads_as_it_is() {
    let sql = "CREATE TABLE teams (id int PRIMARY KEY);
        CREATE TABLE \"doc\ns\r\u{202e}[tenants]\" (id int PRIMARY KEY, team_id int NOT NULL REFERENCES teams);
        CREATE TABLE people (id int PRIMARY KEY);
        CREATE TABLE sessions (id int PRIMARY KEY, people_id int NOT NULL REFERENCES people);
        ALTER TABLE \"doc\ns\r\u{202e}[tenants]\" ADD COLUMN \"of\nscope = 'reference'\u{200b}\" int REFERENCES people;
        CREATE TABLE \"ho\nst\u{202e}\" (id int PRIMARY KEY);
        CREATE TABLE hosted (team_id int NOT NULL REFERENCES teams, a int REFERENCES \"ho\nst\u{202e}\");
        CREATE TABLE hangs (id int PRIMARY KEY, on_id int NOT NULL REFERENCES \"ho\nst\u{202e}\");";
    let (db, schema) = database(sql).await;
    let text = drafted(&db, &schema).await;
    assert_eq!(errors(&text, &schema).len(), 4, "{text}");
    assert!(!text.contains(['\r', '\u{202e}', '\u{200b}']), "{text:?}");
    assert!(text.lines().any(|line| line.starts_with("# Rows of tenants") && line.contains("[tenants]")), "{text}");
    assert!(text.contains("# Its rows go with those of public.ho\n# st, which"), "{text}");
    assert_eq!(text.lines().filter(|line| line.starts_with("[tenants]")).count(), 1, "{text}");
    // The same where no table of tenants is found and the likely ones are listed.
    let none = draft::Guess { likely: vec![table("public.x\n[tenants]")], ..draft::Guess::default() };
    let text = draft_text::write(&schema, &Default::default(), &none);
    assert!(text.lines().filter(|line| !line.starts_with('#')).all(str::is_empty), "{text}");
    db.drop_now().await;
}

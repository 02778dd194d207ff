//! Reeve's own catalogue is complete against a migrated database, both ways; and the editors' schema is fresh.
use super::{Schema, check, check::Severity, editor, fixtures::table, introspect, load};
use crate::testing::TestDatabase;

fn errors(schema: &Schema) -> Vec<String> {
    let found = check::check(&load::own().expect("Reeve's own catalogue"), schema);
    found.iter().filter(|f| f.severity == Severity::Error).map(ToString::to_string).collect()
}

#[tokio::test]
async fn reeves_own_catalogue_is_complete_both_ways() {
    let db = TestDatabase::new().await;
    let schema = introspect(&db.admin, true).await.expect("a schema");
    assert_eq!(errors(&schema), Vec::<String>::new());
    let mut more = schema.clone();
    more.tables.get_mut(&table("reeve.jobs")).expect("a table").columns[0].name = "new_column".to_owned();
    assert_eq!(errors(&more).len(), 2, "one column too many, one too few");
    let mut less = schema.clone();
    less.tables.remove(&table("reeve.audit_log")).expect("a table");
    assert!(errors(&less)[0].starts_with("migrations/catalogue.toml:"), "{:?}", errors(&less));
    db.drop_now().await;
}

#[tokio::test]
async fn every_table_of_reeves_with_a_tenant_column_says_so() {
    let db = TestDatabase::new().await;
    let schema = introspect(&db.admin, true).await.expect("a schema");
    let own = load::own().expect("Reeve's own catalogue");
    for table in schema.tables.values().filter(|table| table.column("tenant_id").is_some()) {
        assert!(own.tables[&table.name].scope.is_owned(), "{}", table.name);
    }
    db.drop_now().await;
}

#[test]
fn the_editors_schema_is_fresh() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/catalogue/catalogue.schema.json");
    let fresh = format!("{:#}\n", editor::schema());
    if std::env::var_os("REEVE_REFRESH").is_some() {
        std::fs::write(path, &fresh).expect("the file");
    }
    let found = std::fs::read_to_string(path).unwrap_or_default();
    assert!(found == fresh, "{path} is stale; run this test with REEVE_REFRESH=1");
}

/// What serde says it expects is the truth about the format.
#[test]
fn the_editors_schema_names_the_fields_that_the_reader_takes() {
    let schema = editor::schema();
    for (text, pointer) in [
        ("nonsense = 1", "/properties"),
        ("[table.\"a.b\"]\nnonsense = 1", "/$defs/table/properties"),
        ("[table.\"a.b\"]\nscope = { nonsense = 1 }", "/$defs/scope_table/properties"),
        ("[table.\"a.b\"]\ncolumn.x = { nonsense = 1 }", "/$defs/column/properties"),
        ("[table.\"a.b\"]\nreferences = [{ nonsense = 1 }]", "/$defs/reference/properties"),
        ("[table.\"a.b\"]\ncolumn.x = { pii = { nonsense = 1 } }", "/$defs/pii_table/properties"),
    ] {
        let said = load::text_of("c", text).expect_err("an unknown field").to_string();
        let (_, expected) = said.split_once("expected ").expect("a list of fields");
        let mut expected: Vec<_> = expected.split('`').skip(1).step_by(2).collect();
        let known = schema.pointer(pointer).and_then(|p| p.as_object()).expect(pointer);
        let mut known: Vec<_> = known.keys().map(String::as_str).collect();
        expected.sort_unstable();
        known.sort_unstable();
        assert_eq!(known, expected, "{pointer}");
    }
}

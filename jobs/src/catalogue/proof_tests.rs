//! Schemas of the shapes that applications have, taken all the way. The shapes were seen in public applications' own SQL:
//! a conference planner's, a webhook sender's, an identity provider's, a starter kit's; the words here are ours.
use super::{
    fixtures::table,
    model::{PiiKind, Scope},
    proof::{Kind::*, Proof},
};

const FAIR: Proof = Proof {
    sql: include_str!("fixtures/fair.sql"),
    rows: include_str!("fixtures/fair_rows.sql"),
    tenants: ["1", "2"],
    told: Some("public.fair_fair"),
    decided: &[
        ("public.fair_host", "{ shared = [[\"public.fair_fair\", \"host_id\"]] }"),
        ("public.people_login", "{ shared = [[\"public.talk_speaker\", \"login_id\"]] }"),
        ("public.people_key", "\"shared\""),
        ("public.trade_fair_kind", "\"reference\""),
        ("public.sys_session", "{ ignored = \"the framework's own\" }"),
        ("public.talk_note_words", "{ ignored = \"too far; goes with its note\" }"),
    ],
    corrected: &[],
    refusals: 0,
    expected: &[
        ("public.fair_fair", Own, 1, 0, 0),
        ("public.fair_host", Shared, 1, 0, 1),
        ("public.people_login", Shared, 2, 0, 3),
        ("public.people_key", Kept, 0, 0, 1),
        ("public.talk_tag", Own, 2, 0, 0),
        ("public.talk_talk", Own, 1, 0, 0),
        ("public.talk_talk_tags", Own, 2, 0, 0),
        ("public.talk_speaker", Own, 2, 0, 0),
        ("public.talk_review", Own, 1, 0, 0),
        ("public.talk_review_files", Own, 1, 0, 0),
        ("public.talk_file_marks", Own, 2, 0, 0),
        ("public.talk_notes", Own, 2, 0, 0),
        ("public.talk_note_words", Kept, 0, 0, 0),
        ("public.mail_mail", Own, 1, 0, 1),
        ("public.trade_fair_kind", Same, 0, 2, 0),
        ("public.talk_kind", Own, 1, 0, 0),
        ("public.sys_session", Kept, 0, 0, 1),
        ("public.django_migrations", Kept, 0, 0, 0),
    ],
};

const RELAY: Proof = Proof {
    sql: include_str!("fixtures/relay.sql"),
    rows: include_str!("fixtures/relay_rows.sql"),
    tenants: ["00000000-0000-4000-8000-00000000000a", "00000000-0000-4000-8000-00000000000b"],
    told: None,
    decided: &[("feed.body_type", "\"reference\"")],
    corrected: &[],
    refusals: 0,
    expected: &[
        ("feed.company", Own, 1, 0, 0),
        ("feed.app", Own, 1, 0, 0),
        ("feed.noun", Own, 1, 0, 0),
        ("feed.verb", Own, 1, 0, 0),
        ("feed.kind", Own, 1, 0, 0),
        ("feed.token", Own, 1, 0, 0),
        ("feed.body_type", Same, 0, 1, 0),
        ("feed.happening", Own, 1, 0, 0),
        ("relay.listener", Own, 2, 0, 0),
        ("relay.answer", Reverse, 1, 0, 0),
        ("relay.attempt", Own, 2, 0, 0),
        ("relay.target", Own, 1, 0, 0),
        ("relay.target_http", Own, 1, 0, 0),
    ],
};

const VAULT: Proof = Proof {
    sql: include_str!("fixtures/vault.sql"),
    rows: include_str!("fixtures/vault_rows.sql"),
    tenants: ["alpha", "o''neil"],
    told: None,
    decided: &[("public.systems", "{ ignored = \"of the installation\" }")],
    corrected: &[],
    // Once for the column grant that no policy admits, once for the restrictive policies.
    refusals: 2,
    expected: &[
        ("public.tenants", Own, 1, 0, 0),
        ("public.users", Own, 2, 0, 0),
        ("public.organizations", Own, 1, 0, 0),
        ("public.organization_users", Own, 2, 0, 0),
        ("public.daily_counts", Own, 1, 0, 0),
        ("public.systems", Kept, 0, 0, 1),
    ],
};

const CREW: Proof = Proof {
    sql: include_str!("fixtures/crew.sql"),
    rows: include_str!("fixtures/crew_rows.sql"),
    tenants: ["w1", "w2"],
    told: None,
    decided: &[
        ("public.Person", "{ shared = [[\"public.WorkspacePerson\", \"personId\"]] }"),
        ("public.PersonLogin", "\"shared\""),
        ("public.PersonSession", "\"shared\""),
        ("public.OneTimeCode", "{ ignored = \"before anybody is signed in\" }"),
    ],
    corrected: &[],
    refusals: 0,
    expected: &[
        ("public.Workspace", Own, 1, 0, 0),
        ("public.Person", Shared, 2, 0, 3),
        ("public.PersonLogin", Kept, 0, 0, 1),
        ("public.PersonSession", Kept, 0, 0, 1),
        ("public.WorkspacePerson", Own, 2, 0, 0),
        ("public.Invite", Own, 1, 0, 0),
        ("public.OneTimeCode", Kept, 0, 0, 1),
    ],
};

const SHOP: Proof = Proof {
    sql: include_str!("fixtures/shop.sql"),
    rows: include_str!("fixtures/shop_rows.sql"),
    tenants: ["7", "77"],
    told: None,
    decided: &[("public.currencies", "\"reference\"")],
    corrected: &[("{ column = \"shop_id\", null = \"nobody\" }", "{ column = \"shop_id\", null = \"everyone\" }")],
    refusals: 0,
    expected: &[
        ("public.address_books", Reverse, 1, 0, 0),
        ("public.shops", Own, 1, 0, 0),
        ("public.buyers", Own, 2, 0, 0),
        ("public.counters", Own, 1, 0, 0),
        ("public.orders", Own, 2, 0, 0),
        ("public.order_lines", Own, 2, 0, 0),
        ("public.line_notes", Own, 2, 0, 0),
        ("public.visits", Own, 2, 0, 0),
        ("public.themes", Own, 1, 1, 0),
        ("public.pages", Own, 1, 0, 0),
        ("public.page_versions", Own, 2, 0, 0),
        ("public.labels", Own, 2, 0, 0),
        ("public.stock", Own, 1, 0, 0),
        ("public.stock_gone", Own, 1, 0, 0),
        ("public.currencies", Same, 0, 1, 0),
    ],
};

const OWNERS: Proof = Proof {
    sql: include_str!("fixtures/owners.sql"),
    rows: include_str!("fixtures/owners_rows.sql"),
    tenants: ["00000000-0000-0000-0000-00000000000a", "00000000-0000-0000-0000-00000000000b"],
    told: None,
    decided: &[
        ("app.people", "{ shared = [[\"app.memberships\", \"person_id\"]] }"),
        ("app.plans", "\"reference\""),
        ("app.migrations", "{ ignored = \"the migration tool's own\" }"),
    ],
    corrected: &[("{ column = \"org_id\", null = \"nobody\" }", "{ column = \"org_id\", null = \"everyone\" }")],
    refusals: 0,
    expected: &[
        ("app.orgs", Own, 1, 0, 0),
        ("app.settings", Reverse, 1, 0, 0),
        ("app.folders", Own, 2, 0, 0),
        ("app.documents", Own, 1, 0, 0),
        ("app.Recipients", Own, 1, 0, 0),
        ("app.fields", Own, 1, 0, 0),
        ("app.strokes", Own, 2, 0, 0),
        ("app.comments", Own, 2, 0, 0),
        ("app.people", Shared, 1, 0, 2),
        ("app.memberships", Own, 1, 0, 0),
        ("app.templates", Own, 1, 1, 0),
        ("app.plans", Same, 0, 1, 0),
        ("app.migrations", Kept, 0, 0, 1),
    ],
};

const MAPPER: Proof = Proof {
    sql: include_str!("fixtures/mapper.sql"),
    rows: include_str!("fixtures/mapper_rows.sql"),
    tenants: ["it''s", "b"],
    told: None,
    decided: &[],
    corrected: &[],
    refusals: 0,
    expected: &[
        ("public.Team", Own, 1, 0, 0),
        ("public.Member", Own, 1, 0, 0),
        ("public.Document", Own, 1, 0, 0),
        ("public.Version", Own, 2, 0, 0),
        ("public.Link", Own, 0, 0, 0),
        ("public._prisma_migrations", Kept, 0, 0, 0),
    ],
};

#[tokio::test]
async fn a_frameworks_schema_with_its_tenant_below_an_owner_and_keys_checked_at_the_end() {
    let proved = FAIR.run().await;
    let steps = |name: &str| match &proved.catalogue.tables[&table(name)].scope {
        Scope::Path(steps) => steps.len(),
        other => panic!("{name}: {other:?}"),
    };
    assert_eq!(
        [
            steps("public.talk_review"),
            steps("public.talk_review_files"),
            steps("public.talk_file_marks"),
            steps("public.talk_notes")
        ],
        [1, 2, 3, 4]
    );
    assert_eq!(steps("public.talk_kind"), 1, "its fair_id is no fair's");
    assert!(proved.draft.contains("# A tenant is 5 joins away, and a path goes over 4"), "{}", proved.draft);
    assert!(proved.draft.contains("Its rows go with those of public.people_login"), "{}", proved.draft);
    proved.faults(&[
        (
            "{ path = [[\"talk_id\", \"public.talk_talk\"]] }",
            "{ path = [[\"talk_id\", \"public.people_login\"]] }",
            "table \"public.talk_kind\": the scope: does not end at a tenant: \"public.people_login\"",
        ),
        (
            "[[\"files_id\", \"public.talk_review_files\"], [\"review_id\", \"public.talk_review\"], [\"talk_id\", \"public.talk_talk\"]]",
            "[[\"tags_id\", \"public.talk_talk_tags\"], [\"talk_id\", \"public.talk_talk\"]]",
            "which may be NULL: such rows reach no tenant",
        ),
        (
            "scope = { shared = [[\"public.talk_speaker\", \"login_id\"]] }",
            "scope = { reverse = [[\"public.people_key\", \"login_id\"]] }",
            "\"public.people_key\" belongs to nobody",
        ),
        ("{ column = \"fair_id\", null = \"nobody\" }", "{ column = \"fair_id\" }", "may be NULL, and nothing says whose"),
    ]);
    let none = super::draft::scopes(&proved.schema, &Default::default(), None);
    assert_eq!((none.tenants.is_none(), &none.likely[0]), (true, &table("public.talk_talk")), "{:?}", none.likely);
    assert!(none.likely.contains(&table("public.fair_fair")), "{:?}", none.likely);
}

#[tokio::test]
async fn a_senders_schemas_with_natural_keys_an_heir_and_rows_owned_by_what_points_at_them() {
    let proved = RELAY.run().await;
    assert!(matches!(proved.catalogue.tables[&table("relay.answer")].scope, Scope::Reverse(_)));
    let attempt = &proved.catalogue.tables[&table("relay.attempt")];
    proved.faults(&[
        (
            "{ reverse = [[\"relay.attempt\", \"answer__id\"]] }",
            "{ reverse = [[\"relay.attempt\", \"answer_id\"]] }",
            "\"relay.attempt\" has no column \"answer_id\"",
        ),
        (
            "[[\"target__id\", \"relay.listener\"], [\"app__id\", \"feed.app\"]]",
            "[[\"target__id\", \"relay.listener\"]]",
            "does not end at a tenant: \"relay.listener\"",
        ),
        (
            "columns = [\"app__id\", \"noun__name\"], table",
            "columns = [\"noun__name\", \"app__id\"], table",
            "is not declared",
        ),
        (
            "column.\"ip\" = { pii = \"ip\", erase = \"anonymise\" }",
            "column.\"ip\" = { pii = \"ip\", erase = \"null\" }",
            "column \"ip\": erase = \"null\", and the column is NOT NULL",
        ),
        (
            "\"verb__name\", \"kind__name\"]",
            "\"verb__name\"]\ncolumn.kind__name = { erase = \"null\" }",
            "a generated column cannot be written",
        ),
        (
            "[table.\"relay.target_http\"]",
            "[table.\"relay.target_https\"]",
            "table \"relay.target_http\": is in the database and not",
        ),
    ]);
    assert_eq!(attempt.also.len(), 1, "the answer is no second opinion about the attempt: {:?}", attempt.also);
}

#[tokio::test]
async fn a_providers_schema_with_policies_of_its_own_is_told_what_to_change_first() {
    let proved = VAULT.run().await;
    let [columns, policies] = proved.refused.as_slice() else { panic!("{:?}", proved.refused) };
    assert!(columns.contains("public.daily_counts: role \"reeve_test_app\" uses it"), "{columns}");
    assert_eq!(columns.matches("CREATE POLICY").count(), 1, "{columns}");
    assert_eq!(policies.matches("ALTER POLICY").count(), 2, "{policies}");
    assert!(
        policies.contains("ALTER POLICY \"users_tenant\" ON \"public\".\"users\" TO \"reeve_test_app\";"),
        "{policies}"
    );
    let users = &proved.catalogue.tables[&table("public.users")].columns;
    assert_eq!((users["primary_email"].pii[0].kind, users["profile"].pii[0].kind), (PiiKind::Email, PiiKind::Mixed));
}

#[tokio::test]
async fn a_starter_kits_people_belong_to_several_and_what_hangs_on_them_to_no_tenants_job() {
    let proved = CREW.run().await;
    let shared = "{ shared = [[\"public.Invite\", [\"invitedBy\"]], [\"public.WorkspacePerson\", [\"personId\"]]] }";
    assert!(proved.draft.contains(shared), "{}", proved.draft);
    proved.faults(&[
        (
            "[table.\"public.WorkspacePerson\"]",
            "[table.\"public.workspaceperson\"]",
            "is \"public.WorkspacePerson\" meant? case counts",
        ),
        (
            "{ column = \"workspaceId\" }",
            "{ path = [[\"invitedBy\", \"public.Person\"], [\"id\", \"public.PersonLogin\", \"personId\"]] }",
            "goes over \"public.PersonLogin\", which is not granted",
        ),
        (
            "\"refresh_token\" = { sealed = \"plain\" }",
            "\"Refresh_token\" = { sealed = \"plain\" }",
            "is \"refresh_token\" meant? case counts",
        ),
    ]);
    assert_eq!(proved.draft.matches("Its rows go with those of public.Person").count(), 2, "{}", proved.draft);
    assert!(proved.catalogue.tables[&table("public.PersonLogin")].columns["refresh_token"].sealed.is_some());
}

#[tokio::test]
async fn a_shop_by_integers_of_every_width_with_partitions_heirs_circles_and_labels_on_anything() {
    let proved = SHOP.run().await;
    let scope = |name: &str| &proved.catalogue.tables[&table(name)].scope;
    for name in ["counters", "buyers", "visits", "stock_gone"] {
        assert!(matches!(scope(&format!("public.{name}")), Scope::Column { .. }), "{name}");
    }
    assert!(
        matches!(scope("public.line_notes"), Scope::Path(steps) if steps.len() == 2 && steps[0].columns.len() == 2)
    );
    assert!(matches!(scope("public.labels"), Scope::Polymorphic { of, .. } if of.len() == 2));
    assert!(matches!(scope("public.busy_days"), Scope::Ignored(_)), "a materialized view");
    assert!(!proved.catalogue.tables.contains_key(&table("public.order_sums")), "a view has no rows");
    assert_eq!(proved.catalogue.tables[&table("public.orders")].soft_delete.as_deref(), Some("deleted_at"));
    let contact = &proved.catalogue.tables[&table("public.buyers")].columns["contact"];
    assert_eq!(contact.pii[0].kind, PiiKind::Mixed, "by its values and its name");
    proved.faults(&[
        ("\"labelable_type\", id_column", "\"labelable\", id_column", "has no column \"labelable\""),
        (
            "of = { \"Order\"",
            "of = { \"Currency\" = \"public.currencies\", \"Order\"",
            "\"public.currencies\" belongs to nobody",
        ),
        ("[[[\"order_id\", \"line\"], ", "[[[\"order_id\"], ", "whose key has 2 column(s)"),
        (
            "[table.\"public.counters\"]\nscope = { column = \"shop_id\" }",
            "[table.\"public.counters\"]\nscope = { column = \"day\" }",
            "column \"day\": the tenant column is date",
        ),
        ("scope = { reverse = [[\"public.shops\", \"address_book_id\"]] }", "scope = \"?\"", "a person must"),
        ("soft_delete = \"deleted_at\"", "soft_delete = \"deleted\"", "`soft_delete` names a column that is not"),
        ("[table.\"public.busy_days\"]", "[table.\"public.busy\"]", "\"public.busy_days\": is in the database and not"),
    ]);
    let shown = &proved.catalogue.tables[&table("public.orders")].columns["shown"];
    assert!(shown.erase.is_none(), "a generated column is not written");
}

#[tokio::test]
async fn a_schema_with_one_to_four_joins_two_routes_and_rows_for_all() {
    let proved = OWNERS.run().await;
    assert!(proved.draft.contains("also = [[\"recipient_id\", \"app.Recipients\"]]"), "{}", proved.draft);
}

#[tokio::test]
async fn a_mappers_schema_with_mixed_case_and_a_circle_whose_tenant_has_a_quote_in_its_id() {
    MAPPER.run().await;
}

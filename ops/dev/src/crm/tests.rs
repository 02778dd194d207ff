//! Against a real server: each test has a database of its own, dropped at its end, whatever the end.

use std::future::Future;

use reeve_jobs::testing::TestDatabase;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, Executor, PgPool};

use super::{
    APP_ROLE, AppClient, ContactChange, CrmError, GLOBAL_TABLES, MessageStatus, Shape, TENANT_TABLES,
    attachment_content, checksums, load,
};

const SMALL: Shape = Shape { tenants: 3, rows: 40, seed: 7 };

/// A database with Reeve's schema.
#[derive(Clone)]
struct Db {
    admin: PgPool,
    options: PgConnectOptions,
}

impl Db {
    async fn loaded(&self, shape: Shape) -> super::Loaded {
        load(&self.admin, shape).await.expect("the sample app loads")
    }

    /// The web app's pool. By session authorization, so that no test needs the role's password.
    async fn app(&self) -> PgPool {
        PgPoolOptions::new()
            .max_connections(2)
            .after_connect(|connection, _| {
                Box::pin(async move {
                    let become_app = AssertSqlSafe(format!("SET SESSION AUTHORIZATION {APP_ROLE}"));
                    connection.execute(become_app).await.map(|_| ())
                })
            })
            .connect_with(self.options.clone())
            .await
            .expect("the app's pool opens")
    }

    async fn number(&self, sql: &str) -> i64 {
        sqlx::query_scalar(AssertSqlSafe(sql.to_owned()))
            .fetch_one(&self.admin)
            .await
            .unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    async fn texts(&self, sql: &str) -> Vec<String> {
        sqlx::query_scalar(AssertSqlSafe(sql.to_owned()))
            .fetch_all(&self.admin)
            .await
            .unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// What Reeve needs before a webhook can become a job: an endpoint of each tenant.
    async fn with_endpoints(&self) {
        sqlx::raw_sql(
            "INSERT INTO reeve.webhook_endpoints (tenant_id, id, url)
             SELECT t.id, reeve.new_id(), 'https://hooks.example.net/' || t.id FROM reeve.tenants t",
        )
        .execute(&self.admin)
        .await
        .expect("the endpoints are made");
    }

    /// Rows of messages, events, deliveries and jobs.
    async fn traces(&self) -> [i64; 4] {
        [
            self.number("SELECT count(*) FROM crm.messages").await,
            self.number("SELECT count(*) FROM reeve.webhook_events").await,
            self.number("SELECT count(*) FROM reeve.webhook_deliveries").await,
            self.number("SELECT count(*) FROM reeve.jobs").await,
        ]
    }
}

/// Runs `body` on a fresh, migrated database, and drops it whatever the outcome.
async fn run_test<F, Fut>(body: F)
where
    F: FnOnce(Db) -> Fut,
    Fut: Future<Output = ()> + Send + 'static,
{
    let database = TestDatabase::new().await;
    let options = database.admin_options().clone();
    let outcome = tokio::spawn(body(Db { admin: database.admin.clone(), options })).await;
    database.drop_now().await;
    if let Err(failure) = outcome {
        std::panic::resume_unwind(failure.into_panic());
    }
}

/// The error code that the database gave, or a panic.
fn sqlstate<T: std::fmt::Debug>(result: Result<T, CrmError>) -> String {
    match result {
        Err(CrmError::Database(sqlx::Error::Database(error))) => error.code().unwrap_or_default().into_owned(),
        other => panic!("an error of the database was expected, not {other:?}"),
    }
}

#[tokio::test]
async fn same_seed_gives_same_rows_and_another_seed_others() {
    run_test(|first| async move {
        run_test(|second| async move {
            run_test(|third| async move {
                let loaded = first.loaded(SMALL).await;
                assert_eq!(loaded, second.loaded(SMALL).await);
                third.loaded(Shape { seed: 8, ..SMALL }).await;

                let sums = checksums(&first.admin).await.unwrap();
                assert_eq!(sums, checksums(&second.admin).await.unwrap());
                let others = checksums(&third.admin).await.unwrap();
                for table in TENANT_TABLES {
                    assert_ne!(sums[table], others[table], "{table} does not depend on the seed");
                    assert!(loaded.rows[table] >= 3, "{table} has too few rows: {}", loaded.rows[table]);
                }
            })
            .await;
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn second_load_changes_nothing_and_another_shape_is_refused() {
    run_test(|db| async move {
        let first = db.loaded(SMALL).await;
        assert!(first.fresh);
        let before = checksums(&db.admin).await.unwrap();
        let second = db.loaded(SMALL).await;
        assert!(!second.fresh);
        assert_eq!((&first.tenants, &first.rows), (&second.tenants, &second.rows));

        for other in [Shape { tenants: 4, ..SMALL }, Shape { rows: 41, ..SMALL }, Shape { seed: 8, ..SMALL }] {
            let refusal = load(&db.admin, other).await.unwrap_err();
            assert!(matches!(refusal, CrmError::LoadedOtherwise { .. }), "{refusal}");
            assert!(refusal.to_string().contains("3 tenants with 40 contacts each, seed 7"), "{refusal}");
        }
        assert_eq!(before, checksums(&db.admin).await.unwrap());
    })
    .await;
}

#[tokio::test]
async fn load_refuses_what_it_cannot_do_and_leaves_nothing() {
    run_test(|db| async move {
        let none = Shape { tenants: 0, ..SMALL };
        assert!(matches!(load(&db.admin, none).await, Err(CrmError::Shape(shape)) if shape == none));

        sqlx::raw_sql("CREATE SCHEMA crm").execute(&db.admin).await.unwrap();
        assert!(matches!(load(&db.admin, SMALL).await, Err(CrmError::ForeignSchema)));
        sqlx::raw_sql("DROP SCHEMA crm").execute(&db.admin).await.unwrap();

        db.loaded(SMALL).await;
        let refusal = load(&db.app().await, SMALL).await;
        assert!(matches!(&refusal, Err(CrmError::NotAdmin { role }) if role == APP_ROLE), "{refusal:?}");

        sqlx::raw_sql("DROP SCHEMA crm CASCADE; DROP SCHEMA reeve CASCADE").execute(&db.admin).await.unwrap();
        assert!(matches!(load(&db.admin, SMALL).await, Err(CrmError::NoReeve)));
        assert_eq!(db.number("SELECT count(*) FROM pg_namespace WHERE nspname = 'crm'").await, 0);
    })
    .await;
}

#[tokio::test]
async fn reeve_knows_every_loaded_tenant_and_the_apps_setting() {
    run_test(|db| async move {
        let loaded = db.loaded(SMALL).await;
        let ids: Vec<_> = loaded.tenants.iter().map(|tenant| tenant.id.clone()).collect();
        assert_eq!(ids, ["1", "2", "3"]);
        assert_eq!(db.texts("SELECT id FROM reeve.tenants ORDER BY id").await, ids);
        assert_eq!(db.texts("SELECT app_context_setting FROM reeve.settings").await, ["app.tenant_id"]);
    })
    .await;
}

#[tokio::test]
async fn every_table_but_the_global_ones_forces_row_level_security() {
    run_test(|db| async move {
        db.loaded(SMALL).await;
        let sorted = |tables: &[&str]| {
            let mut names: Vec<String> = tables.iter().map(|&table| table.to_owned()).collect();
            names.sort();
            names
        };
        let tables = "SELECT relname::text FROM pg_class c WHERE relnamespace = 'crm'::regnamespace AND relkind = 'r'";
        let forced = format!(
            "{tables} AND relrowsecurity AND relforcerowsecurity AND EXISTS (SELECT FROM pg_policies p
             WHERE p.schemaname = 'crm' AND p.tablename = c.relname AND p.roles = '{{crm_app}}') ORDER BY 1"
        );
        let open = format!("{tables} AND NOT relrowsecurity ORDER BY 1");
        assert_eq!(db.texts(&forced).await, sorted(TENANT_TABLES));
        assert_eq!(db.texts(&open).await, sorted(GLOBAL_TABLES));

        let owners = "SELECT DISTINCT relowner::regrole::text FROM pg_class WHERE relnamespace = 'crm'::regnamespace";
        assert_eq!(db.texts(owners).await, ["crm_owner"]);
        let unsafe_roles = "SELECT count(*) FROM pg_roles WHERE rolname IN ('crm_app', 'crm_owner')
             AND (rolsuper OR rolbypassrls OR rolcreaterole OR rolcanlogin <> (rolname = 'crm_app'))";
        assert_eq!(db.number(unsafe_roles).await, 0);
        assert_eq!(db.number("SELECT pg_has_role('crm_app', 'reeve_app', 'MEMBER')::int::bigint").await, 1);
        let definers = "SELECT count(*) FROM pg_proc WHERE pronamespace = 'crm'::regnamespace AND prosecdef";
        assert_eq!(db.number(definers).await, 0);
    })
    .await;
}

#[tokio::test]
async fn without_context_the_app_sees_no_row() {
    run_test(|db| async move {
        db.loaded(SMALL).await;
        let app = db.app().await;
        // The second time as after a transaction that had a context: the setting then reads ''.
        for _ in 0..2 {
            for table in TENANT_TABLES {
                let count: i64 = sqlx::query_scalar(AssertSqlSafe(format!("SELECT count(*) FROM crm.{table}")))
                    .fetch_one(&app)
                    .await
                    .unwrap();
                assert_eq!(count, 0, "{table}");
            }
            AppClient::new(app.clone()).in_tenant("1").await.unwrap().commit().await.unwrap();
        }
        assert!(sqlx::query("SELECT FROM crm.sample_load").execute(&app).await.is_err());
    })
    .await;
}

#[tokio::test]
async fn a_tenant_sees_all_its_rows_and_none_of_anothers() {
    run_test(|db| async move {
        db.loaded(SMALL).await;
        let app = AppClient::new(db.app().await);
        for tenant in ["1", "2", "3"] {
            let mut request = app.in_tenant(tenant).await.unwrap();
            for table in TENANT_TABLES {
                let own = match *table {
                    "workspaces" => format!("id = {tenant}"),
                    "invoice_lines" => {
                        format!("invoice_id IN (SELECT id FROM crm.invoices WHERE workspace_id = {tenant})")
                    }
                    _ => format!("workspace_id = {tenant}"),
                };
                let counts = format!("SELECT count(*) FILTER (WHERE {own}), count(*) FROM crm.{table}");
                let (seen_own, seen): (i64, i64) =
                    sqlx::query_as(AssertSqlSafe(counts.clone())).fetch_one(request.connection()).await.unwrap();
                let there = db.number(&format!("SELECT count(*) FROM crm.{table} WHERE {own}")).await;
                assert_eq!((seen_own, seen), (there, there), "{table} of tenant {tenant}");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_tenant_cannot_write_or_refer_to_anothers_rows() {
    run_test(|db| async move {
        db.loaded(SMALL).await;
        let app = AppClient::new(db.app().await);
        let foreign_contact = db.number("SELECT min(id) FROM crm.contacts WHERE workspace_id = 2").await;
        let foreign_invoice = db.number("SELECT min(id) FROM crm.invoices WHERE workspace_id = 2").await;
        for (attempt, code) in [
            ("INSERT INTO crm.companies (workspace_id, name) VALUES (2, 'x')".to_owned(), "42501"),
            (
                format!(
                    "INSERT INTO crm.invoice_lines (invoice_id, position, description, quantity, unit_cents)
                     VALUES ({foreign_invoice}, 99, 'x', 1, 1)"
                ),
                "42501",
            ),
            (
                format!("INSERT INTO crm.leads (workspace_id, contact_id, source) VALUES (1, {foreign_contact}, 'x')"),
                "23503",
            ),
            ("UPDATE crm.contacts SET workspace_id = 2".to_owned(), "42501"),
        ] {
            let mut request = app.in_tenant("1").await.unwrap();
            let result = request.connection().execute(AssertSqlSafe(attempt.clone())).await;
            assert_eq!(sqlstate(result.map_err(CrmError::from)), code, "{attempt}");
        }
        let mut request = app.in_tenant("1").await.unwrap();
        let erase = format!("UPDATE crm.contacts SET first_name = 'x' WHERE id = {foreign_contact}");
        assert_eq!(request.connection().execute(AssertSqlSafe(erase)).await.unwrap().rows_affected(), 0);
    })
    .await;
}

#[tokio::test]
async fn received_message_stands_with_its_event_delivery_and_job_or_not_at_all() {
    run_test(|db| async move {
        db.loaded(SMALL).await;
        db.with_endpoints().await;
        let app = AppClient::new(db.app().await);
        let before = db.traces().await;

        let mut request = app.in_tenant("2").await.unwrap();
        let conversation = request.open_conversations(1).await.unwrap()[0];
        request.receive_message(conversation, "never sent").await.unwrap();
        request.rollback().await.unwrap();
        assert_eq!(db.traces().await, before);

        let message = app.receive_message("2", conversation, "a private word").await.unwrap();
        assert_eq!(db.traces().await, before.map(|count| count + 1));
        let linked = format!(
            "SELECT count(*) FROM crm.messages m
             JOIN crm.conversations c ON c.id = m.conversation_id AND c.last_message_id = m.id
             JOIN reeve.webhook_events e ON e.tenant_id = m.workspace_id::text
             JOIN reeve.webhook_deliveries d ON d.tenant_id = e.tenant_id AND d.event_id = e.id
             JOIN reeve.jobs j ON j.tenant_id = d.tenant_id AND j.payload ->> 'delivery_id' = d.id::text
             WHERE m.id = {message} AND m.workspace_id = 2 AND m.body = 'a private word'
               AND e.event_type = 'message.received' AND (e.body::jsonb #>> '{{data,message_id}}')::bigint = m.id"
        );
        assert_eq!(db.number(&linked).await, 1);
        // One statement's xmin each: all four rows were written by one transaction.
        let transactions = format!(
            "SELECT count(DISTINCT x) FROM (SELECT xmin::text AS x FROM crm.messages WHERE id = {message}
             UNION ALL SELECT xmin::text FROM reeve.webhook_events UNION ALL SELECT xmin::text FROM reeve.webhook_deliveries
             UNION ALL SELECT xmin::text FROM reeve.jobs) rows"
        );
        assert_eq!(db.number(&transactions).await, 1);
    })
    .await;
}

#[tokio::test]
async fn each_change_emits_its_event_with_ids_only_and_no_change_emits_none() {
    run_test(|db| async move {
        db.loaded(SMALL).await;
        db.with_endpoints().await;
        let app = AppClient::new(db.app().await);
        let mut request = app.in_tenant("3").await.unwrap();
        let conversation = request.open_conversations(1).await.unwrap()[0];
        let contact = request.contacts(1).await.unwrap()[0];
        drop(request);
        let change =
            ContactChange { first_name: Some("Newname"), phone: Some("+44 7700 900123"), ..Default::default() };

        let message = app.receive_message("3", conversation, "a private word").await.unwrap();
        for expected in [true, false] {
            assert_eq!(app.message_status("3", message, MessageStatus::Read).await.unwrap(), expected);
            assert_eq!(app.update_contact("3", contact, change).await.unwrap(), expected);
            assert_eq!(app.end_conversation("3", conversation).await.unwrap(), expected);
        }
        let types = "SELECT event_type FROM reeve.webhook_events WHERE tenant_id = '3' ORDER BY 1";
        let all = ["contact.updated", "conversation.ended", "message.received", "message.status"];
        assert_eq!(db.texts(types).await, all);
        let values = "SELECT DISTINCT key || '=' || jsonb_typeof(value)
             FROM reeve.webhook_events e, jsonb_each(e.body::jsonb -> 'data') ORDER BY 1";
        let ids_only = ["contact_id=number", "conversation_id=number", "message_id=number", "status=string"];
        assert_eq!(db.texts(values).await, ids_only);
        let changed = format!(
            "SELECT count(*) FROM crm.contacts WHERE id = {contact} AND first_name = 'Newname'
             AND full_name LIKE 'Newname %' AND phone = '+44 7700 900123' AND email IS NOT NULL"
        );
        assert_eq!(db.number(&changed).await, 1);
        assert!(!format!("{change:?}").contains("7700"));
    })
    .await;
}

#[tokio::test]
async fn anothers_rows_do_not_exist_for_the_business_functions() {
    run_test(|db| async move {
        db.loaded(SMALL).await;
        db.with_endpoints().await;
        let app = AppClient::new(db.app().await);
        let before = (db.traces().await, checksums(&db.admin).await.unwrap());
        let conversation = db.number("SELECT min(id) FROM crm.conversations WHERE workspace_id = 2").await;
        let message = db.number("SELECT min(id) FROM crm.messages WHERE workspace_id = 2").await;
        let contact = db.number("SELECT min(id) FROM crm.contacts WHERE workspace_id = 2").await;
        let change = ContactChange { last_name: Some("x"), ..Default::default() };
        for tenant in ["1", ""] {
            assert_eq!(sqlstate(app.receive_message(tenant, conversation, "x").await), "P0002");
            assert_eq!(sqlstate(app.message_status(tenant, message, MessageStatus::Failed).await), "P0002");
            assert_eq!(sqlstate(app.end_conversation(tenant, conversation).await), "P0002");
            assert_eq!(sqlstate(app.update_contact(tenant, contact, change).await), "P0002");
        }
        assert_eq!(before, (db.traces().await, checksums(&db.admin).await.unwrap()));
    })
    .await;
}

#[tokio::test]
async fn new_workspace_is_registered_with_reeve_and_never_made_inside_another() {
    run_test(|db| async move {
        db.loaded(SMALL).await;
        let app = AppClient::new(db.app().await);
        let undeclared = app.create_workspace("مكتب جديد", Some("eu")).await;
        assert_eq!(sqlstate(undeclared), "RV031");
        db.admin.execute("SELECT reeve.declare_region('eu', true, 'test', 'to see')").await.unwrap();
        let made = app.create_workspace("مكتب جديد", Some("eu")).await.unwrap();
        assert_eq!(made, "5", "a number was spent on the one that was refused");
        let registered = "SELECT count(*) FROM reeve.tenants t JOIN crm.workspaces w ON w.id::text = t.id
             WHERE t.id = '5' AND t.name = 'مكتب جديد' AND w.name = t.name AND t.region = 'eu'";
        assert_eq!(db.number(registered).await, 1);

        let mut request = app.in_tenant("1").await.unwrap();
        let nested = request.connection().execute("SELECT crm.create_workspace('x')").await;
        assert_eq!(sqlstate(nested.map_err(CrmError::from)), "25001");
    })
    .await;
}

#[tokio::test]
async fn people_are_fictional_and_write_in_two_scripts() {
    run_test(|db| async move {
        db.loaded(SMALL).await;
        let phones = "SELECT count(*) FROM (SELECT phone FROM crm.contacts UNION ALL SELECT phone FROM crm.users
               UNION ALL SELECT jsonb_array_elements_text(profile -> 'phones') FROM crm.contacts) p
             WHERE phone !~ '^\\+1 ?[0-9]{3} ?555-?01[0-9]{2}$' AND phone !~ '^\\+44 7700 900[0-9]{3}$'";
        assert_eq!(db.number(phones).await, 0);
        let mails = "SELECT count(*) FROM (SELECT email FROM crm.contacts UNION ALL SELECT email FROM crm.users
               UNION ALL SELECT to_address FROM crm.email_history) m
             WHERE email !~ '^[a-z0-9.]+@example\\.(com|org|net)$'";
        assert_eq!(db.number(mails).await, 0);
        for script in ["[\u{600}-\u{6ff}]", "[A-Za-z]"] {
            let written = format!(
                "SELECT count(*) FROM crm.contacts c JOIN crm.conversations v ON v.contact_id = c.id
                 JOIN crm.messages m ON m.conversation_id = v.id WHERE c.full_name ~ '{script}' AND m.body ~ '{script}'"
            );
            assert!(db.number(&written).await > 0, "{script}");
        }
    })
    .await;
}

#[tokio::test]
async fn attachments_have_the_hash_and_size_of_their_content() {
    run_test(|db| async move {
        db.loaded(SMALL).await;
        let keys = db.texts("SELECT object_key FROM crm.attachments").await;
        assert!(keys.len() >= 3);
        for key in keys {
            let matching: i64 = sqlx::query_scalar(
                "SELECT count(*) FROM crm.attachments
                 WHERE object_key = $1 AND content_sha256 = sha256($2) AND size_bytes = octet_length($2)",
            )
            .bind(&key)
            .bind(attachment_content(&key))
            .fetch_one(&db.admin)
            .await
            .unwrap();
            assert_eq!(matching, 1, "{key}");
        }
    })
    .await;
}

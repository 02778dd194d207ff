//! The list of privileges is this build's, and each drift from it is found both ways.
use std::{collections::BTreeSet, path::Path};

use super::*;
use crate::service::doctor::privileges::{Line, check, compare, lines};

const HEAD: &str = "\
# All that decides who may do what in schema reeve, as this build's migrations make it: compared by `reeve doctor`.
# Made from a freshly migrated PostgreSQL 15 by `./ops/test privileges`: run that after a change of migrations, also after
# merging two, and read what changed. Never edited by hand.

";

/// What a freshly migrated database has. Also with `REEVE_TEST_WRITE_PRIVILEGES` set: then it is written down.
#[tokio::test]
async fn the_list_of_privileges_is_what_the_migrations_make() {
    let db = TestDatabase::new().await;
    let mut connection = connection(&db).await;
    connection.execute("SET LOCAL search_path = pg_catalog").await.expect("a setting");
    let found: Vec<_> = lines(&mut connection).await.expect("lines").into_iter().map(|line| line.line).collect();
    let text = format!("{HEAD}{}\n", found.join("\n"));
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../migrations/privileges.txt");
    if std::env::var_os("REEVE_TEST_WRITE_PRIVILEGES").is_some() {
        std::fs::write(&path, &text).expect("written");
    }
    let stored = std::fs::read_to_string(&path).expect("the list");
    assert!(stored == text, "migrations/privileges.txt is stale: run `./ops/test privileges` and read what it changes");
    assert!(found.len() > 200, "{} lines", found.len());
    drop(connection);
    db.drop_now().await;
}

/// What is changed, and the parts of what must be said and advised.
const DRIFT: &[(&str, &str, &str)] = &[
    (
        "GRANT UPDATE ON reeve.jobs TO reeve_app",
        "too much: GRANT UPDATE ON TABLE reeve.jobs TO reeve_app",
        "REVOKE UPDATE ON TABLE reeve.jobs FROM reeve_app;",
    ),
    (
        "GRANT SELECT (security_contact) ON reeve.tenants TO PUBLIC",
        "GRANT SELECT (security_contact) ON TABLE reeve.tenants TO PUBLIC",
        "REVOKE SELECT (security_contact) ON TABLE reeve.tenants FROM PUBLIC;",
    ),
    (
        "REVOKE SELECT ON reeve.tenants FROM reeve_worker",
        "missing: GRANT SELECT ON TABLE reeve.tenants TO reeve_worker",
        "GRANT SELECT ON TABLE reeve.tenants TO reeve_worker;",
    ),
    ("GRANT TRUNCATE ON reeve.jobs TO reeve_dispatch", "GRANT TRUNCATE ON TABLE reeve.jobs", "REVOKE TRUNCATE"),
    ("GRANT REFERENCES ON reeve.tenants TO reeve_app", "GRANT REFERENCES ON TABLE reeve.tenants", "REVOKE REFERENCES"),
    ("GRANT TRIGGER ON reeve.jobs TO reeve_worker", "GRANT TRIGGER ON TABLE reeve.jobs", "REVOKE TRIGGER"),
    ("CREATE ROLE doctor_odd; GRANT TRIGGER ON reeve.jobs TO doctor_odd", "GRANT TRIGGER", "REVOKE TRIGGER"),
    (
        "GRANT CREATE ON SCHEMA reeve TO reeve_worker",
        "GRANT CREATE ON SCHEMA reeve",
        "REVOKE CREATE ON SCHEMA reeve FROM",
    ),
    ("GRANT USAGE ON SCHEMA reeve TO PUBLIC", "GRANT USAGE ON SCHEMA reeve TO PUBLIC", "REVOKE USAGE ON SCHEMA reeve"),
    (
        "GRANT EXECUTE ON FUNCTION reeve.rescue(integer) TO reeve_app",
        "GRANT EXECUTE ON ROUTINE reeve.rescue(n integer) TO reeve_app",
        "REVOKE EXECUTE ON ROUTINE reeve.rescue(n integer) FROM reeve_app;",
    ),
    (
        "REVOKE EXECUTE ON FUNCTION reeve.rescue(integer) FROM reeve_scheduler",
        "missing: GRANT EXECUTE ON ROUTINE reeve.rescue(n integer)",
        "GRANT EXECUTE ON ROUTINE reeve.rescue(n integer) TO reeve_scheduler;",
    ),
    (
        "CREATE POLICY open ON reeve.jobs TO reeve_app USING (true)",
        "too much: CREATE POLICY open ON reeve.jobs AS PERMISSIVE FOR ALL TO reeve_app USING (true)",
        "DROP POLICY open ON reeve.jobs;",
    ),
    (
        "DROP POLICY own_row ON reeve.tenants",
        "missing: CREATE POLICY own_row ON reeve.tenants",
        "CREATE POLICY own_row",
    ),
    (
        "ALTER POLICY own_row ON reeve.tenants USING (true)",
        "too much: CREATE POLICY own_row ON reeve.tenants AS PERMISSIVE FOR SELECT TO reeve_app USING (true)",
        "DROP POLICY own_row ON reeve.tenants; CREATE POLICY own_row",
    ),
    ("ALTER POLICY own_row ON reeve.tenants TO PUBLIC", "FOR SELECT TO PUBLIC", "DROP POLICY own_row"),
    (
        "ALTER DEFAULT PRIVILEGES FOR ROLE reeve_dispatch GRANT EXECUTE ON FUNCTIONS TO PUBLIC",
        "ALTER DEFAULT PRIVILEGES FOR ROLE reeve_dispatch",
        "ALTER DEFAULT PRIVILEGES FOR ROLE reeve_dispatch REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;",
    ),
    (
        "ALTER DEFAULT PRIVILEGES FOR ROLE reeve_owner IN SCHEMA reeve GRANT SELECT ON TABLES TO reeve_app",
        "IN SCHEMA reeve GRANT SELECT ON TABLES TO reeve_app",
        "IN SCHEMA reeve REVOKE SELECT ON TABLES FROM reeve_app;",
    ),
    (
        "ALTER TABLE reeve.audit_log DISABLE TRIGGER append_only",
        "ALTER TABLE reeve.audit_log DISABLE TRIGGER append_only",
        "ALTER TABLE reeve.audit_log ENABLE TRIGGER append_only;",
    ),
    (
        "DROP TRIGGER append_only ON reeve.audit_log",
        "missing: CREATE TRIGGER append_only",
        "CREATE TRIGGER append_only",
    ),
    (
        "CREATE TRIGGER mine BEFORE INSERT ON reeve.doorbells EXECUTE FUNCTION reeve.refuse_change()",
        "too much: CREATE TRIGGER mine",
        "DROP TRIGGER mine ON reeve.doorbells;",
    ),
    (
        "ALTER FUNCTION reeve.tenant() IMMUTABLE",
        "another body of reeve.tenant() than this build's",
        "find out who replaced reeve.tenant()",
    ),
    (
        "CREATE OR REPLACE FUNCTION reeve.tenant() RETURNS text LANGUAGE sql STABLE PARALLEL SAFE RETURN 'acme'",
        "another body of reeve.tenant()",
        "find out who replaced reeve.tenant()",
    ),
    (
        "ALTER FUNCTION reeve.new_id() SECURITY DEFINER",
        "ALTER ROUTINE reeve.new_id() SECURITY DEFINER",
        "ALTER ROUTINE reeve.new_id() SECURITY INVOKER;",
    ),
    ("ALTER FUNCTION reeve.tenant() LEAKPROOF", "reeve.tenant() LEAKPROOF", "reeve.tenant() NOT LEAKPROOF;"),
    (
        "CREATE FUNCTION reeve.mine() RETURNS integer LANGUAGE sql RETURN 1",
        "reeve.mine() is not of this build",
        "DROP ROUTINE reeve.mine();",
    ),
    ("DROP FUNCTION reeve.stop_waiting(text, text)", "reeve.stop_waiting(", "restore it from this build's migrations"),
    ("ALTER TABLE reeve.kinds OWNER TO reeve_dispatch", "ALTER TABLE reeve.kinds OWNER TO", "OWNER TO reeve_owner;"),
];

#[tokio::test]
async fn each_drift_is_found_and_comes_with_what_undoes_it() {
    let db = TestDatabase::new().await;
    for (drift, found, fix) in DRIFT.iter().copied() {
        let check = after(&db, drift, "privileges").await;
        assert_eq!(check.status, Status::Fail, "{drift}: {check:?}");
        assert!(check.found.contains(found), "{drift}: {check:?}");
        assert!(check.fix.as_ref().is_some_and(|text| text.contains(fix)), "{drift}: {check:?}");
    }
    db.drop_now().await;
}

/// The advice is meant to be run: what it says undoes the drift.
#[tokio::test]
async fn the_fixes_mend_the_drift() {
    let db = TestDatabase::new().await;
    for drift in [
        "GRANT UPDATE ON reeve.jobs TO reeve_app WITH GRANT OPTION; GRANT SELECT (name) ON reeve.tenants TO PUBLIC",
        "REVOKE SELECT ON reeve.tenants FROM reeve_worker",
        "REVOKE EXECUTE ON FUNCTION reeve.rescue(integer) FROM reeve_scheduler",
        "ALTER POLICY own_row ON reeve.tenants TO PUBLIC USING (true)",
        "ALTER DEFAULT PRIVILEGES FOR ROLE reeve_owner IN SCHEMA reeve GRANT SELECT ON TABLES TO reeve_app",
        "DROP TRIGGER append_only ON reeve.audit_log; ALTER TABLE reeve.audit_bodies DISABLE TRIGGER append_only",
        "ALTER FUNCTION reeve.new_id() SECURITY DEFINER",
        "ALTER TABLE reeve.jobs NO FORCE ROW LEVEL SECURITY",
        "ALTER TABLE reeve.kinds OWNER TO reeve_dispatch",
    ] {
        let mut connection = connection(&db).await;
        connection.execute("SET LOCAL search_path = pg_catalog").await.expect("a setting");
        connection.execute(drift).await.unwrap_or_else(|error| panic!("{drift}: {error}"));
        let broken = check(&lines(&mut connection).await.expect("lines"));
        let fix = broken.fix.unwrap_or_else(|| panic!("{drift}: nothing found"));
        connection.execute(sqlx::AssertSqlSafe(fix.clone())).await.unwrap_or_else(|error| panic!("{fix}: {error}"));
        let mended = check(&lines(&mut connection).await.expect("lines"));
        assert_eq!(mended.status, Status::Ok, "{drift}: {fix}: {mended:?}");
    }
    db.drop_now().await;
}

#[tokio::test]
async fn a_role_that_reeve_does_not_know_is_a_warning() {
    let db = TestDatabase::new().await;
    let grant = "CREATE ROLE doctor_reports; GRANT USAGE ON SCHEMA reeve TO doctor_reports;
                 GRANT SELECT ON reeve.kinds TO doctor_reports";
    let check = after(&db, grant, "privileges").await;
    assert_eq!(check.status, Status::Warn, "{check:?}");
    assert!(check.found.contains("GRANT SELECT ON TABLE reeve.kinds TO doctor_reports"), "{check:?}");
    db.drop_now().await;
}

#[test]
fn a_privilege_that_passes_the_policies_is_refused_even_where_a_migration_grants_it() {
    let line = |privilege: &str| Line {
        line: format!("GRANT {privilege} ON TABLE reeve.jobs TO reeve_dispatch;"),
        grantee: Some("reeve_dispatch".to_owned()),
    };
    for privilege in ["TRUNCATE", "REFERENCES", "REFERENCES (id)", "TRIGGER"] {
        let line = line(privilege);
        let said = compare(&BTreeSet::from([line.line.as_str()]), std::slice::from_ref(&line));
        assert!(
            said.status == Status::Fail && said.found.contains(&format!("too much: GRANT {privilege}")),
            "{said:?}"
        );
    }
    let fine = line("SELECT");
    assert_eq!(compare(&BTreeSet::from([fine.line.as_str()]), std::slice::from_ref(&fine)).status, Status::Ok);
}

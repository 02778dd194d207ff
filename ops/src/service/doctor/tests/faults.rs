//! Faults of roles, tables, functions, views and settings: each found, with its fix.
use super::*;

/// A fault, the check that must find it, and a part of what it must say and advise.
const FAULTS: &[(&str, &str, &str, &str)] = &[
    ("ALTER ROLE reeve_worker BYPASSRLS", "roles", "reeve_worker bypasses", "ALTER ROLE reeve_worker NOBYPASSRLS;"),
    ("ALTER ROLE reeve_dispatch SUPERUSER", "roles", "reeve_dispatch is a superuser", "NOSUPERUSER"),
    (
        "ALTER TABLE reeve.doorbells OWNER TO reeve_worker",
        "ownership",
        "reeve_worker owns table doorbells",
        "reeve_owner",
    ),
    ("ALTER FUNCTION reeve.tenant() OWNER TO reeve_app", "ownership", "reeve_app owns function tenant", "reeve_owner"),
    ("ALTER SCHEMA reeve OWNER TO reeve_ops", "ownership", "reeve_ops owns schema reeve", "reeve_owner"),
    (
        "GRANT reeve_owner TO reeve_worker",
        "ownership",
        "member of reeve_owner",
        "REVOKE reeve_owner FROM reeve_worker;",
    ),
    ("ALTER TABLE reeve.jobs DISABLE ROW LEVEL SECURITY", "tenant tables", "jobs has no row-level", "jobs ENABLE"),
    (
        "ALTER TABLE reeve.tenants NO FORCE ROW LEVEL SECURITY",
        "tenant tables",
        "tenants does not force",
        "tenants FORCE",
    ),
    (
        "ALTER TABLE reeve.job_attempts ALTER tenant_id DROP NOT NULL",
        "tenant tables",
        "job_attempts allows",
        "SET NOT NULL",
    ),
    (
        "ALTER TABLE reeve.audit_stubs DROP CONSTRAINT audit_stubs_pkey",
        "tenant tables",
        "audit_stubs has no index",
        "ON reeve.audit_stubs (tenant_id)",
    ),
    ("CREATE TABLE reeve.extra (tenant_id text)", "tenant tables", "extra has no row-level", "extra ENABLE"),
    (
        "ALTER FUNCTION reeve.renew(uuid[], uuid[], double precision) RESET search_path",
        "functions",
        "no pinned",
        "ALTER FUNCTION reeve.renew",
    ),
    (
        "ALTER FUNCTION reeve.promote(integer) SET search_path = public, pg_temp",
        "functions",
        "no pinned",
        "reeve.promote",
    ),
    ("GRANT EXECUTE ON FUNCTION reeve.rescue(integer) TO PUBLIC", "functions", "called by everybody", "REVOKE EXECUTE"),
    (
        "UPDATE reeve.kinds SET attempts_max = 99 WHERE name = 'fleet.probe'",
        "kinds",
        "fleet.probe differs in attempts_max",
        "reeve migrate",
    ),
    ("DELETE FROM reeve.kinds WHERE name = 'fleet.probe'", "kinds", "fleet.probe is missing", "reeve migrate"),
    ("UPDATE reeve.schedules SET cron = '0 0 * * *'", "kinds", "webhook.prune differs in cadence", "reeve migrate"),
    ("UPDATE _reeve.migrations SET success = version < 9", "schema", "at migration 8", "reeve migrate"),
    ("ALTER ROLE reeve_scheduler CREATEROLE", "roles", "member of any role", "ALTER ROLE reeve_scheduler NOCREATEROLE;"),
    ("ALTER ROLE reeve_app REPLICATION", "roles", "log of all changes", "ALTER ROLE reeve_app NOREPLICATION;"),
    ("ALTER ROLE reeve_dispatch LOGIN", "roles", "can log in", "ALTER ROLE reeve_dispatch NOLOGIN;"),
    ("GRANT reeve_ops TO reeve_worker", "roles", "may become the role of another", "REVOKE reeve_ops FROM reeve_worker;"),
    (
        "CREATE ROLE doctor_above BYPASSRLS; GRANT doctor_above TO reeve_app",
        "ownership",
        "reeve_app is a member of doctor_above",
        "REVOKE doctor_above FROM reeve_app;",
    ),
    (
        "GRANT pg_read_server_files TO reeve_worker",
        "ownership",
        "member of pg_read_server_files",
        "REVOKE pg_read_server_files FROM reeve_worker;",
    ),
    (
        "ALTER FUNCTION reeve.promote(integer) OWNER TO CURRENT_USER",
        "functions",
        "reeve.promote(integer) acts with the rights of",
        "OWNER TO reeve_dispatch;",
    ),
    ("ALTER ROLE reeve_dispatch SUPERUSER", "functions", "acts with the rights of reeve_dispatch", "OWNER TO"),
    (
        "GRANT SELECT ON reeve.job_history_default TO reeve_app",
        "partitions",
        "reeve.job_history_default is granted to reeve_app",
        "REVOKE ALL ON reeve.job_history_default FROM reeve_app;",
    ),
    (
        "GRANT SELECT (payload) ON reeve.job_history_default TO PUBLIC",
        "partitions",
        "granted to PUBLIC",
        "REVOKE ALL ON reeve.job_history_default FROM PUBLIC;",
    ),
    (
        "ALTER ROLE reeve_breakglass_keeper LOGIN",
        "break-glass",
        "it can log in",
        "ALTER ROLE reeve_breakglass_keeper NOLOGIN",
    ),
    (
        "GRANT reeve_breakglass_keeper TO reeve_worker",
        "break-glass",
        "reeve_worker is a member of reeve_breakglass_keeper",
        "REVOKE reeve_breakglass_keeper FROM reeve_worker;",
    ),
    (
        "GRANT reeve_breakglass TO reeve_app",
        "break-glass",
        "reeve_app is a member of reeve_breakglass past",
        "REVOKE reeve_breakglass FROM reeve_app;",
    ),
    (
        "INSERT INTO reeve.breakglass_openings (id, tenant_id, state, minutes, reason, requested_by, requested_as, approved_by, login, valid_until)
         VALUES (gen_random_uuid(), 'a', 'open', 5, 'x', 'ann', 'ann', 'bob', 'reeve_bg_000000000000', now() - interval '1 hour')",
        "break-glass",
        "and still open",
        "start reeve-scheduler",
    ),
    (
        "CREATE POLICY all_of_it ON reeve.job_history_default USING (true)",
        "partitions",
        "a policy of its own, all_of_it",
        "DROP POLICY all_of_it ON reeve.job_history_default;",
    ),
    (
        "CREATE TABLE public.aside PARTITION OF reeve.job_history FOR VALUES FROM ('2000-01-01') TO ('2000-01-02')",
        "partitions",
        "public.aside is owned by",
        "ALTER TABLE public.aside OWNER TO reeve_owner;",
    ),
    (
        "CREATE TABLE public.aside PARTITION OF reeve.job_history FOR VALUES FROM ('2000-01-01') TO ('2000-01-02')",
        "partitions",
        "public.aside does not force",
        "ALTER TABLE public.aside ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;",
    ),
    ("CREATE TABLE public.heir () INHERITS (reeve.jobs)", "partitions", "public.heir inherits", "take public.heir out"),
    (
        "CREATE VIEW public.peek AS SELECT * FROM reeve.jobs; GRANT SELECT ON public.peek TO reeve_app",
        "views",
        "public.peek reads tenants' rows",
        "ALTER VIEW public.peek SET (security_invoker = true);",
    ),
    (
        "CREATE VIEW public.inner_peek AS SELECT * FROM reeve.jobs; CREATE VIEW public.peek AS SELECT id FROM public.inner_peek;
         GRANT SELECT (id) ON public.peek TO PUBLIC",
        "views",
        "public.peek reads tenants' rows",
        "security_invoker",
    ),
    (
        "CREATE MATERIALIZED VIEW public.kept AS SELECT * FROM reeve.jobs; GRANT SELECT ON public.kept TO reeve_worker",
        "views",
        "public.kept keeps copies",
        "REVOKE ALL ON public.kept FROM reeve_worker;",
    ),
    (
        "ALTER ROLE reeve_app SET reeve.tenant_id = 'acme'",
        "settings",
        "ROLE reeve_app: reeve.tenant_id = ...",
        "ALTER ROLE reeve_app RESET reeve.tenant_id;",
    ),
    (
        "ALTER ROLE reeve_worker SET session_replication_role = replica",
        "settings",
        "session_replication_role",
        "RESET session_replication_role;",
    ),
];

#[tokio::test]
async fn each_fault_is_found_and_comes_with_its_fix() {
    let db = TestDatabase::new().await;
    for (fault, name, found, fix) in FAULTS.iter().copied() {
        let check = after(&db, fault, name).await;
        assert_eq!(check.status, Status::Fail, "{fault}: {check:?}");
        assert!(check.found.contains(found), "{fault}: {check:?}");
        assert!(check.fix.as_ref().is_some_and(|text| text.contains(fix)), "{fault}: {check:?}");
    }
    db.drop_now().await;
}

#[tokio::test]
async fn what_needs_an_eye_is_a_warning() {
    let db = TestDatabase::new().await;
    for (fault, name, found) in [
        ("SET LOCAL synchronous_commit = off", "durability", "synchronous_commit = off"),
        ("ALTER ROLE reeve_worker SET synchronous_commit = off", "durability", "for reeve_worker"),
        ("INSERT INTO reeve.kinds VALUES ('later.kind', 'q', 1, 1, 64, true, true)", "kinds", "later.kind"),
        (
            "CREATE ROLE doctor_reports; CREATE MATERIALIZED VIEW public.kept AS SELECT * FROM reeve.jobs;
             GRANT SELECT ON public.kept TO doctor_reports",
            "views",
            "for doctor_reports",
        ),
        (
            "CREATE FUNCTION public.looks(text) RETURNS boolean LANGUAGE sql IMMUTABLE LEAKPROOF RETURN true",
            "leakproof",
            "public.looks(text)",
        ),
        ("ALTER ROLE reeve_worker SET row_security = off", "settings", "row_security = off"),
    ] {
        let check = after(&db, fault, name).await;
        assert_eq!(check.status, Status::Warn, "{fault}: {check:?}");
        assert!(check.found.contains(found) && check.fix.is_some(), "{fault}: {check:?}");
    }
    db.drop_now().await;
}

#[tokio::test]
async fn what_lies_beside_the_guards_and_harms_nobody_is_sound() {
    let db = TestDatabase::new().await;
    for (beside, name) in [
        ("CREATE VIEW public.peek AS SELECT * FROM reeve.jobs", "views"),
        (
            "CREATE VIEW public.peek WITH (security_invoker = true) AS SELECT * FROM reeve.jobs;
             GRANT SELECT ON public.peek TO reeve_app",
            "views",
        ),
        ("CREATE VIEW public.peek AS SELECT * FROM reeve.kinds; GRANT SELECT ON public.peek TO reeve_app", "views"),
        ("SELECT reeve.history_upkeep(2, 30)", "partitions"),
        ("SELECT reeve.history_upkeep(2, 30)", "privileges"),
        ("SELECT reeve.history_upkeep(2, 30)", "tenant tables"),
    ] {
        let check = after(&db, beside, name).await;
        assert_eq!(check.status, Status::Ok, "{beside}: {check:?}");
    }
    db.drop_now().await;
}

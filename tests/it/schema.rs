//! The schema's promises, read from PostgreSQL's own catalogue: what the migrations made, not what they say.
//!
//! Each check is a function that returns the violations it finds, each naming its object. One test asks that there are
//! none; another removes each guard, in a transaction that is rolled back, and asks that the check names it.
//!
//! It does not try what a role can reach: `isolation` does.
mod grants;

use std::collections::BTreeSet;

use futures::future::BoxFuture;
use reeve_jobs::{program::migrate, testing::TestDatabase};
use sqlx::{Acquire, PgConnection};

use self::grants::MAY_EXECUTE;

const PROGRAM_ROLES: [&str; 8] = [
    "reeve_app",
    "reeve_worker",
    "reeve_scheduler",
    "reeve_ops",
    "reeve_dispatch",
    "reeve_owner",
    "reeve_breakglass",
    "reeve_breakglass_keeper",
];
const LOGIN_ROLES: [&str; 4] = ["reeve_app", "reeve_worker", "reeve_scheduler", "reeve_ops"];

/// Functions that run as whoever migrates, who may be a superuser: each only reads what no other role can (the bookkeeping
/// table, other roles' sessions), and takes no argument.
const MIGRATORS_OWN: [&str; 2] = ["reeve.oldest_transaction()", "reeve.schema_version()"];

async fn strings(db: &mut PgConnection, sql: &'static str) -> Vec<String> {
    sqlx::query_scalar(sql).fetch_all(db).await.expect(sql)
}

/// [`strings`] of a statement whose `$1` is names of roles.
async fn strings_of(db: &mut PgConnection, sql: &'static str, roles: &[&str]) -> Vec<String> {
    let roles: Vec<_> = roles.iter().map(|role| (*role).to_owned()).collect();
    sqlx::query_scalar(sql).bind(roles).fetch_all(db).await.expect(sql)
}

/// Tables and partitions that hold tenants' rows: `reeve.tenants`, `reeve.flag_overrides`, and whatever has a `tenant_id`.
async fn unguarded_tables(db: &mut PgConnection) -> Vec<String> {
    strings(
        db,
        "WITH tenant_table AS (
          SELECT c.oid, c.relrowsecurity, c.relforcerowsecurity, a.attnum, a.attname, a.attnotnull
          FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND NOT a.attisdropped
          WHERE c.relnamespace = 'reeve'::regnamespace AND c.relkind IN ('r', 'p')
            AND (a.attname = 'tenant_id' OR (c.relname, a.attname) IN (('tenants', 'id'), ('flag_overrides', 'subject'))))
        SELECT t.oid::regclass || ': ' || fault FROM tenant_table t, LATERAL (VALUES
          (t.relrowsecurity, 'row-level security is off'),
          (t.relforcerowsecurity, 'row-level security is not forced on its owner'),
          (t.attnotnull, t.attname || ' may be NULL'),
          (EXISTS (SELECT FROM pg_index i WHERE i.indrelid = t.oid AND i.indisvalid AND t.attnum = ANY (i.indkey)),
           'no index has ' || t.attname)) AS v (holds, fault)
        WHERE NOT v.holds ORDER BY 1",
    )
    .await
}

/// Views run with their owner's rights and materialized ones have no policies: there are to be none.
async fn relations_without_policies(db: &mut PgConnection) -> Vec<String> {
    strings(
        db,
        "SELECT c.oid::regclass || ': neither a table, an index nor a sequence' FROM pg_class c
        WHERE c.relnamespace = 'reeve'::regnamespace AND c.relkind NOT IN ('r', 'p', 'i', 'I', 'S', 't', 'c')",
    )
    .await
}

async fn roles_above_the_policies(db: &mut PgConnection) -> Vec<String> {
    strings_of(
        db,
        "SELECT r || ': ' || CASE WHEN p.rolname IS NULL THEN 'no such role' WHEN p.rolsuper THEN 'a superuser'
                                  ELSE 'bypasses row-level security' END
        FROM unnest($1) r LEFT JOIN pg_roles p ON p.rolname = r
        WHERE p.rolname IS NULL OR p.rolsuper OR p.rolbypassrls ORDER BY 1",
        &PROGRAM_ROLES,
    )
    .await
}

/// What a program logs in as owns nothing (an owner may undo any guard), and borrows no other role's rights.
async fn login_roles_that_own_or_inherit(db: &mut PgConnection) -> Vec<String> {
    let mut found = strings_of(
        db,
        "SELECT r.rolname || ': owns ' || pg_describe_object(d.classid, d.objid, d.objsubid)
        FROM pg_shdepend d JOIN pg_roles r ON r.oid = d.refobjid AND d.refclassid = 'pg_authid'::regclass
        WHERE d.deptype = 'o' AND r.rolname = ANY ($1)
          AND d.dbid IN (0, (SELECT oid FROM pg_database WHERE datname = current_database())) ORDER BY 1",
        &LOGIN_ROLES,
    )
    .await;
    found.extend(
        strings_of(
            db,
            "SELECT m.member::regrole || ': a member of ' || m.roleid::regrole
            FROM pg_auth_members m JOIN pg_roles r ON r.oid = m.member WHERE r.rolname = ANY ($1) ORDER BY 1",
            &LOGIN_ROLES,
        )
        .await,
    );
    found
}

async fn careless_definer_functions(db: &mut PgConnection) -> Vec<String> {
    strings_of(
        db,
        "SELECT p.oid::regprocedure || ': SECURITY DEFINER, ' || fault FROM pg_proc p, LATERAL (VALUES
          ('search_path=pg_catalog, pg_temp' = ANY (coalesce(p.proconfig, '{}')), 'search_path is not pinned'),
          (p.proowner::regrole::text = ANY ($1) OR p.oid::regprocedure::text = ANY ($1),
           'owned by ' || p.proowner::regrole)) AS v (holds, fault)
        WHERE p.pronamespace = 'reeve'::regnamespace AND p.prosecdef AND NOT v.holds ORDER BY 1",
        &[&["reeve_dispatch", "reeve_owner", "reeve_breakglass_keeper"][..], &MIGRATORS_OWN].concat(),
    )
    .await
}

/// The keeper may create roles, and before PostgreSQL 16 alter any: it does so in a few functions and for nobody else. Of
/// the group only logins with a name of theirs are members.
async fn careless_keeper(db: &mut PgConnection) -> Vec<String> {
    strings(
        db,
        "SELECT format('%s: may become reeve_breakglass_keeper', m.member::regrole) FROM pg_auth_members m
        WHERE m.roleid = 'reeve_breakglass_keeper'::regrole
        UNION ALL
        SELECT format('%s: a member of reeve_breakglass', m.member::regrole) FROM pg_auth_members m
        JOIN pg_roles r ON r.oid = m.member
        WHERE m.roleid = 'reeve_breakglass'::regrole AND r.rolname !~ '^reeve_bg_[0-9a-f]{12}$'
          AND r.rolname <> 'reeve_breakglass_keeper'
        UNION ALL
        SELECT format('%s: logs in', r.rolname) FROM pg_roles r
        WHERE r.rolname IN ('reeve_breakglass', 'reeve_breakglass_keeper') AND r.rolcanlogin
        UNION ALL
        SELECT format('reeve_breakglass_keeper: a function %s', p.oid::regprocedure) FROM pg_proc p
        WHERE p.proowner = 'reeve_breakglass_keeper'::regrole AND p.proname NOT IN
          ('breakglass_make_login', 'breakglass_bar_login', 'breakglass_drop_login', 'breakglass_session_start')
        UNION ALL
        SELECT 'reeve_breakglass_keeper: may create in schema reeve'
        WHERE has_schema_privilege('reeve_breakglass_keeper', 'reeve', 'CREATE')
        ORDER BY 1",
    )
    .await
}

/// Break-glass reads, and only what the session's own opening is of.
async fn loose_breakglass(db: &mut PgConnection) -> Vec<String> {
    strings(
        db,
        "SELECT format('reeve.%s: policy %s for reeve_breakglass is not bound to its opening', p.tablename, p.policyname)
        FROM pg_policies p
        WHERE p.schemaname = 'reeve' AND 'reeve_breakglass' = ANY (p.roles)
          AND NOT (p.roles = ARRAY['reeve_breakglass']::name[] AND p.cmd = 'SELECT'
                   AND p.qual = format('(%s = ( SELECT reeve.breakglass_tenant() AS breakglass_tenant))',
                                       CASE p.tablename WHEN 'tenants' THEN 'id' ELSE 'tenant_id' END))
        UNION ALL
        SELECT format('%s: reeve_breakglass may %s', c.oid::regclass, a.privilege_type)
        FROM pg_class c, aclexplode(c.relacl) a
        WHERE c.relnamespace = 'reeve'::regnamespace AND a.grantee = 'reeve_breakglass'::regrole
          AND (a.privilege_type <> 'SELECT' OR NOT c.relrowsecurity)
        UNION ALL
        SELECT format('%s: reeve_breakglass reads sealed material', c.oid::regclass)
        FROM pg_class c JOIN pg_attribute t ON t.attrelid = c.oid AND t.attnum > 0 AND NOT t.attisdropped
        WHERE c.relnamespace = 'reeve'::regnamespace AND c.relkind IN ('r', 'p') AND t.attname ~ 'sealed|secret$'
          AND has_column_privilege('reeve_breakglass', c.oid, t.attnum, 'SELECT')
        ORDER BY 1",
    )
    .await
}

/// Both ways: a grant that [`MAY_EXECUTE`] does not have, and one of it that is not there.
async fn unexpected_execute_grants(db: &mut PgConnection) -> Vec<String> {
    let found: BTreeSet<_> = strings(
        db,
        "SELECT p.oid::regprocedure || ' by ' || CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END
        FROM pg_proc p, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
        WHERE p.pronamespace = 'reeve'::regnamespace AND a.grantee <> p.proowner",
    )
    .await
    .into_iter()
    .collect();
    let listed: BTreeSet<_> = MAY_EXECUTE
        .iter()
        .flat_map(|(function, roles)| roles.iter().map(move |role| format!("{function} by {role}")))
        .collect();
    let surplus = found.difference(&listed).map(|grant| format!("{grant}: granted, but not in the list"));
    surplus.chain(listed.difference(&found).map(|grant| format!("{grant}: in the list, but not granted"))).collect()
}

/// Rows of a partition are reached through its parent, whose policies judge them; a partition has none of its own.
async fn granted_partitions(db: &mut PgConnection) -> Vec<String> {
    strings(
        db,
        "SELECT c.oid::regclass || ': granted to ' || CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END
        FROM pg_class c, aclexplode(c.relacl) a
        WHERE c.relnamespace = 'reeve'::regnamespace AND c.relispartition AND c.relkind = 'r' AND a.grantee <> c.relowner
        UNION
        SELECT c.oid::regclass || '.' || t.attname || ': granted by column'
        FROM pg_class c JOIN pg_attribute t ON t.attrelid = c.oid AND t.attacl IS NOT NULL
        WHERE c.relnamespace = 'reeve'::regnamespace AND c.relispartition ORDER BY 1",
    )
    .await
}

/// Whoever speaks for a tenant is bound to it by every policy, or by a restrictive one beside it: a worker with proof, the app
/// by naming it. Others have a policy only
/// where nothing of theirs is reached by a caller's choice: reeve_dispatch behind its functions, reeve_ops to read.
async fn loose_policies(db: &mut PgConnection) -> Vec<String> {
    strings(
        db,
        "WITH policy AS (
          SELECT p.*, format(CASE WHEN 'reeve_worker' = ANY (p.roles) THEN '(%s = ( SELECT reeve.held_tenant() AS held_tenant))'
                                  ELSE '(%s = ( SELECT reeve.tenant() AS tenant))' END,
                             CASE p.tablename WHEN 'tenants' THEN 'id' ELSE 'tenant_id' END) AS guard
          FROM pg_policies p WHERE p.schemaname = 'reeve'),
        tenants_own AS (
          SELECT * FROM policy WHERE NOT roles <@ ARRAY['reeve_dispatch', 'reeve_ops', 'reeve_breakglass']::name[])
        SELECT format('reeve.%s: policy %s for %s is not bound to the tenant', p.tablename, p.policyname, p.roles)
        FROM tenants_own p CROSS JOIN LATERAL unnest(p.roles) AS m (role)
        WHERE NOT (coalesce(p.qual, p.guard) = p.guard AND coalesce(p.with_check, p.guard) = p.guard)
          AND NOT EXISTS (
            SELECT FROM tenants_own r WHERE r.tablename = p.tablename AND r.permissive = 'RESTRICTIVE' AND r.cmd = 'ALL'
              AND r.qual = r.guard AND r.with_check = r.guard AND m.role = ANY (r.roles))
        UNION ALL
        SELECT format('reeve.%s: policy %s is for %s, who has no business with rows', p.tablename, p.policyname, p.roles)
        FROM policy p WHERE NOT p.roles <@
          ARRAY['reeve_app', 'reeve_worker', 'reeve_dispatch', 'reeve_ops', 'reeve_breakglass']::name[]
        UNION ALL
        SELECT format('reeve.%s: policy %s lets reeve_ops write', p.tablename, p.policyname)
        FROM policy p WHERE 'reeve_ops' = ANY (p.roles) AND p.cmd <> 'SELECT'
        ORDER BY 1",
    )
    .await
}

/// The owner is forced under the policies; one that it inherits from another role would let it out again.
async fn owners_that_inherit_policies(db: &mut PgConnection) -> Vec<String> {
    strings(
        db,
        "SELECT DISTINCT p.polrelid::regclass || ': reeve_owner passes the policy of ' || r.role::regrole
        FROM pg_policy p, unnest(p.polroles) AS r (role) JOIN pg_class c ON c.relnamespace = 'reeve'::regnamespace
        WHERE c.oid = p.polrelid AND r.role <> 0 AND pg_has_role('reeve_owner', r.role, 'USAGE')
        ORDER BY 1",
    )
    .await
}

type Check = for<'a> fn(&'a mut PgConnection) -> BoxFuture<'a, Vec<String>>;

macro_rules! checks {
    ($( $check:ident ),+ $(,)?) => { &[ $( (stringify!($check), |db| Box::pin($check(db))) ),+ ] };
}

const CHECKS: &[(&str, Check)] = checks![
    unguarded_tables,
    relations_without_policies,
    roles_above_the_policies,
    login_roles_that_own_or_inherit,
    careless_definer_functions,
    unexpected_execute_grants,
    granted_partitions,
    loose_policies,
    careless_keeper,
    loose_breakglass,
];

/// A migrated database that also has partitions of days.
async fn database() -> TestDatabase {
    let db = TestDatabase::new().await;
    let made: i32 = sqlx::query_scalar("SELECT made FROM reeve.history_upkeep(2, 30)")
        .fetch_one(&db.admin)
        .await
        .expect("partitions");
    assert_eq!(made, 3);
    db
}

#[tokio::test]
async fn the_schema_keeps_its_promises() {
    let db = database().await;
    let mut admin = db.admin.acquire().await.expect("a connection");
    for (name, check) in CHECKS {
        let violations = check(&mut admin).await;
        assert!(violations.is_empty(), "{name}:\n{}", violations.join("\n"));
    }
}

/// What undoes a guard, the check that sees it, and what it says. `{day}` is a day's partition.
const BREACHES: &[(&str, &str, &str)] = &[
    ("ALTER TABLE reeve.jobs NO FORCE ROW LEVEL SECURITY", "unguarded_tables", "reeve.jobs: row-level security is not"),
    (
        "ALTER TABLE reeve.tenants DISABLE ROW LEVEL SECURITY",
        "unguarded_tables",
        "reeve.tenants: row-level security is off",
    ),
    (
        "ALTER TABLE reeve.flag_overrides NO FORCE ROW LEVEL SECURITY",
        "unguarded_tables",
        "reeve.flag_overrides: row-level security is not",
    ),
    ("ALTER TABLE {day} NO FORCE ROW LEVEL SECURITY", "unguarded_tables", "{day}: row-level security is not forced"),
    ("ALTER TABLE {day} DISABLE ROW LEVEL SECURITY", "unguarded_tables", "{day}: row-level security is off"),
    (
        "ALTER TABLE reeve.job_attempts ALTER tenant_id DROP NOT NULL",
        "unguarded_tables",
        "reeve.job_attempts: tenant_id may be",
    ),
    (
        "ALTER TABLE reeve.audit_stubs DROP CONSTRAINT audit_stubs_pkey",
        "unguarded_tables",
        "reeve.audit_stubs: no index has tenant_id",
    ),
    ("CREATE TABLE reeve.notes (tenant_id text)", "unguarded_tables", "reeve.notes: row-level security is off"),
    ("CREATE VIEW reeve.peek AS SELECT * FROM reeve.jobs", "relations_without_policies", "reeve.peek: neither a table"),
    ("ALTER ROLE reeve_worker BYPASSRLS", "roles_above_the_policies", "reeve_worker: bypasses"),
    ("ALTER ROLE reeve_owner SUPERUSER", "roles_above_the_policies", "reeve_owner: a superuser"),
    (
        "ALTER TABLE reeve.doorbells OWNER TO reeve_worker",
        "login_roles_that_own_or_inherit",
        "reeve_worker: owns table",
    ),
    (
        "GRANT CREATE ON SCHEMA public TO reeve_app; SET LOCAL ROLE reeve_app; CREATE TABLE public.mine (); RESET ROLE",
        "login_roles_that_own_or_inherit",
        "reeve_app: owns table mine",
    ),
    ("GRANT reeve_dispatch TO reeve_ops", "login_roles_that_own_or_inherit", "reeve_ops: a member of reeve_dispatch"),
    (
        "ALTER FUNCTION reeve.promote(integer) RESET search_path",
        "careless_definer_functions",
        "reeve.promote(integer): SECURITY DEFINER, search_path is not pinned",
    ),
    (
        "ALTER FUNCTION reeve.promote(integer) SET search_path = public",
        "careless_definer_functions",
        "reeve.promote(integer): SECURITY DEFINER, search_path is not pinned",
    ),
    (
        "ALTER FUNCTION reeve.promote(integer) OWNER TO CURRENT_USER",
        "careless_definer_functions",
        "reeve.promote(integer): SECURITY DEFINER, owned by",
    ),
    (
        "GRANT EXECUTE ON FUNCTION reeve.rescue(integer) TO PUBLIC",
        "unexpected_execute_grants",
        "reeve.rescue(integer) by PUBLIC: granted, but",
    ),
    (
        "CREATE FUNCTION reeve.fresh() RETURNS int LANGUAGE sql RETURN 1",
        "unexpected_execute_grants",
        "reeve.fresh() by PUBLIC: granted, but",
    ),
    (
        "GRANT EXECUTE ON FUNCTION reeve.cancel_job(uuid, text, text) TO reeve_app",
        "unexpected_execute_grants",
        "reeve.cancel_job(uuid,text,text) by reeve_app: granted, but",
    ),
    (
        "DROP FUNCTION reeve.delivery_is_foreign(uuid)",
        "unexpected_execute_grants",
        "reeve.delivery_is_foreign(uuid) by reeve_worker: in the list, but",
    ),
    ("GRANT SELECT ON {day} TO reeve_app", "granted_partitions", "{day}: granted to reeve_app"),
    (
        "GRANT SELECT (id) ON reeve.job_history_default TO reeve_app",
        "granted_partitions",
        "job_history_default.id: granted",
    ),
    (
        "ALTER POLICY own_rows ON reeve.jobs USING (tenant_id = reeve.tenant())",
        "loose_policies",
        "reeve.jobs: policy own_rows for",
    ),
    (
        "ALTER POLICY held_rows ON reeve.jobs USING (tenant_id = (SELECT reeve.tenant()))",
        "loose_policies",
        "reeve.jobs: policy held_rows for",
    ),
    (
        "ALTER POLICY own_rows ON reeve.jobs TO reeve_app, reeve_worker",
        "loose_policies",
        "reeve.jobs: policy own_rows for",
    ),
    ("ALTER POLICY own_row ON reeve.tenants USING (true)", "loose_policies", "reeve.tenants: policy own_row for"),
    (
        "DROP POLICY tenant_guard ON reeve.webhook_secrets",
        "loose_policies",
        "reeve.webhook_secrets: policy tenant_rows for",
    ),
    (
        "DROP POLICY held_guard ON reeve.webhook_events",
        "loose_policies",
        "reeve.webhook_events: policy tenant_rows for",
    ),
    (
        "ALTER POLICY tenant_guard ON reeve.webhook_events WITH CHECK (true)",
        "loose_policies",
        "reeve.webhook_events: policy tenant_guard for",
    ),
    ("ALTER POLICY dispatch ON reeve.jobs TO PUBLIC", "loose_policies", "reeve.jobs: policy dispatch for {public}"),
    ("ALTER POLICY ops_read ON reeve.jobs TO reeve_scheduler", "loose_policies", "reeve.jobs: policy ops_read is for"),
    ("CREATE POLICY fix ON reeve.jobs TO reeve_ops USING (true)", "loose_policies", "policy fix lets reeve_ops write"),
    ("GRANT reeve_breakglass_keeper TO reeve_owner", "careless_keeper", "reeve_owner: may become"),
    ("GRANT reeve_breakglass TO reeve_ops", "careless_keeper", "reeve_ops: a member of reeve_breakglass"),
    ("ALTER ROLE reeve_breakglass_keeper LOGIN", "careless_keeper", "reeve_breakglass_keeper: logs in"),
    (
        "ALTER FUNCTION reeve.breakglass_tenant() OWNER TO reeve_breakglass_keeper",
        "careless_keeper",
        "a function reeve.b",
    ),
    ("GRANT CREATE ON SCHEMA reeve TO reeve_breakglass_keeper", "careless_keeper", "may create in schema"),
    ("ALTER POLICY breakglass ON reeve.jobs USING (true)", "loose_breakglass", "reeve.jobs: policy breakglass for"),
    (
        "ALTER POLICY breakglass ON reeve.jobs TO reeve_breakglass, reeve_app",
        "loose_breakglass",
        "reeve.jobs: policy break",
    ),
    ("CREATE POLICY w ON reeve.jobs TO reeve_breakglass USING (true)", "loose_breakglass", "reeve.jobs: policy w for"),
    ("GRANT UPDATE ON reeve.jobs TO reeve_breakglass", "loose_breakglass", "reeve.jobs: reeve_breakglass may UPDATE"),
    ("GRANT SELECT ON reeve.kinds TO reeve_breakglass", "loose_breakglass", "reeve.kinds: reeve_breakglass may SELECT"),
    (
        "GRANT SELECT (sealed) ON reeve.webhook_secrets TO reeve_breakglass",
        "loose_breakglass",
        "webhook_secrets: reeve_b",
    ),
];

#[tokio::test]
async fn each_check_names_the_guard_that_was_removed() {
    let db = database().await;
    let mut admin = db.admin.acquire().await.expect("a connection");
    let day: String = sqlx::query_scalar(
        "SELECT min(inhrelid::regclass::text) FROM pg_inherits
        WHERE inhparent = 'reeve.job_history'::regclass AND inhrelid <> 'reeve.job_history_default'::regclass",
    )
    .fetch_one(&mut *admin)
    .await
    .expect("a day");
    let mut broken = BTreeSet::new();
    for (breach, name, expected) in BREACHES {
        let (breach, expected) = (breach.replace("{day}", &day), expected.replace("{day}", &day));
        let (_, check) = CHECKS.iter().find(|(check, _)| check == name).expect("a check of this name");
        let mut tx = admin.begin().await.expect("begin");
        sqlx::raw_sql(sqlx::AssertSqlSafe(breach.clone())).execute(&mut *tx).await.expect(&breach);
        let violations = check(&mut tx).await;
        tx.rollback().await.expect("rolled back");
        assert!(violations.iter().any(|v| v.contains(&expected)), "{breach}: {name} says {violations:?}");
        broken.insert(*name);
    }
    let all: BTreeSet<_> = CHECKS.iter().map(|(name, _)| *name).collect();
    assert_eq!(broken, all, "each check is tried");
}

#[tokio::test]
async fn the_owner_passes_no_policy() {
    let db = database().await;
    let mut admin = db.admin.acquire().await.expect("a connection");
    assert_eq!(owners_that_inherit_policies(&mut admin).await, Vec::<String>::new());
}

/// Every catalogue row of the schema with the transaction that wrote it, and the rows that a migration copies.
async fn state(db: &mut PgConnection) -> Vec<String> {
    strings(
        db,
        "SELECT 'relation ' || oid || ' ' || relname || ' ' || xmin FROM pg_class WHERE relnamespace = 'reeve'::regnamespace
        UNION ALL SELECT 'column ' || attrelid || ' ' || attname || ' ' || a.xmin
          FROM pg_attribute a JOIN pg_class c ON c.oid = attrelid WHERE relnamespace = 'reeve'::regnamespace
        UNION ALL SELECT 'function ' || oid || ' ' || proname || ' ' || xmin FROM pg_proc
          WHERE pronamespace = 'reeve'::regnamespace
        UNION ALL SELECT 'policy ' || oid || ' ' || polname || ' ' || xmin FROM pg_policy
        UNION ALL SELECT 'schema ' || oid || ' ' || xmin FROM pg_namespace WHERE nspname = 'reeve'
        UNION ALL SELECT 'migration ' || version || ' ' || xmin FROM _reeve.migrations
        UNION ALL SELECT 'kind ' || to_jsonb(k)::text FROM reeve.kinds k
        UNION ALL SELECT 'schedule ' || to_jsonb(s)::text FROM reeve.schedules s
        UNION ALL SELECT 'flag ' || to_jsonb(f)::text FROM reeve.flags f
        UNION ALL SELECT 'settings ' || to_jsonb(s)::text FROM reeve.settings s
        ORDER BY 1",
    )
    .await
}

#[tokio::test]
async fn migrating_again_changes_nothing_not_even_what_operators_set() {
    let db = database().await;
    let mut admin = db.admin.acquire().await.expect("a connection");
    for change in [
        "UPDATE reeve.schedules SET paused = true, cron_override = '5 4 * * *'",
        // The override voids the slot; this one is as the scheduler would leave it.
        "UPDATE reeve.schedules SET next_at = now(), last_slot_at = now()",
        "UPDATE reeve.settings SET app_context_setting = 'app.tenant_id'",
    ] {
        let changed = sqlx::query(change).execute(&mut *admin).await.expect("set").rows_affected();
        assert!(changed > 0, "{change}");
    }
    let before = state(&mut admin).await;
    let migrated = reeve_jobs::testing::database::migrate(&mut admin).await;
    assert_eq!(migrated, migrate::Migrated { from: migrate::VERSION, to: migrate::VERSION });
    assert_eq!(state(&mut admin).await, before);
}

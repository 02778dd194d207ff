//! Ways around row-level security that lie outside schema `reeve`: views, and functions that PostgreSQL trusts too much.
use sqlx::PgConnection;

use super::Check;

#[derive(Debug, sqlx::FromRow)]
struct View {
    name: String,
    is_copy: bool,
    owner: String,
    /// Reads with its owner's rights, and no policy binds that owner.
    is_above: bool,
    /// Who may read it beside its owner.
    readers: Vec<String>,
}

/// A view reads with its owner's rights; a materialized one keeps rows that no policy covers. Those that read tenants' rows
/// past the policies are for their owners' eyes only.
pub(super) async fn views(connection: &mut PgConnection) -> sqlx::Result<Check> {
    let views: Vec<View> = sqlx::query_as(
        "-- doctor.views
        WITH RECURSIVE reads AS (
          SELECT DISTINCT w.ev_class AS view, d.refobjid AS relation
          FROM pg_rewrite w JOIN pg_class v ON v.oid = w.ev_class AND v.relkind IN ('v', 'm')
          JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = w.oid
            AND d.refclassid = 'pg_class'::regclass AND d.refobjid <> w.ev_class),
        -- Views upon views: what any of them reads, all above it read.
        reach AS (SELECT r.view, r.relation FROM reads r UNION
                  SELECT h.view, r.relation FROM reach h JOIN reads r ON r.view = h.relation)
        SELECT format('%I.%I', n.nspname, c.relname) AS name, c.relkind = 'm' AS is_copy, o.rolname::text AS owner,
               (o.rolsuper OR o.rolbypassrls OR o.rolname = 'reeve_dispatch')
                 AND NOT coalesce(c.reloptions && '{security_invoker=true,security_invoker=on,security_invoker=1}', false)
                 AS is_above,
               ARRAY(SELECT DISTINCT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(a.grantee)::text END
                     FROM (SELECT x.grantee FROM aclexplode(c.relacl) x WHERE x.privilege_type = 'SELECT'
                           UNION ALL SELECT x.grantee FROM pg_attribute t, aclexplode(t.attacl) x
                           WHERE t.attrelid = c.oid AND x.privilege_type = 'SELECT') a
                     WHERE a.grantee <> c.relowner ORDER BY 1) AS readers
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_roles o ON o.oid = c.relowner
        WHERE c.oid IN (SELECT h.view FROM reach h JOIN pg_class t ON t.oid = h.relation
                        WHERE t.relnamespace = 'reeve'::regnamespace
                          AND (t.relrowsecurity OR EXISTS (SELECT FROM pg_policy p WHERE p.polrelid = t.oid)))
        ORDER BY 1",
    )
    .fetch_all(connection)
    .await?;
    Ok(verdict(&views))
}

fn verdict(views: &[View]) -> Check {
    const NAME: &str = "views";
    let (mut open, mut odd, mut fixes) = (Vec::new(), Vec::new(), Vec::new());
    for view in views.iter().filter(|view| (view.is_copy || view.is_above) && !view.readers.is_empty()) {
        let View { name, readers, owner, .. } = view;
        let what = match view.is_copy {
            true => "keeps copies of tenants' rows".to_owned(),
            false => format!("reads tenants' rows with the rights of {owner}, whom no policy binds"),
        };
        let is_open = readers.iter().any(|role| role == "PUBLIC" || role.starts_with("reeve_"));
        let said = format!("{name} {what}, for {}", readers.join(", "));
        if is_open { &mut open } else { &mut odd }.push(said);
        fixes.push(match view.is_copy {
            true => format!("REVOKE ALL ON {name} FROM {};", readers.join(", ")),
            false => format!("ALTER VIEW {name} SET (security_invoker = true);"),
        });
    }
    let found = open.iter().chain(&odd).map(String::as_str).collect::<Vec<_>>().join("; ");
    match (open.is_empty(), odd.is_empty()) {
        (true, true) => Check::ok(NAME, "none shows tenants' rows past the policies"),
        (true, false) => Check::warn(NAME, found, fixes.join(" ")),
        (false, _) => Check::fail(NAME, found, fixes.join(" ")),
    }
}

/// A condition on a function marked LEAKPROOF may be tried on rows before the policies hide them.
pub(super) async fn leakproof(connection: &mut PgConnection) -> sqlx::Result<Check> {
    const NAME: &str = "leakproof";
    let found: Vec<String> = sqlx::query_scalar(
        "-- doctor.leakproof
        SELECT p.oid::regprocedure::text FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
        WHERE p.proleakproof AND n.nspname NOT IN ('pg_catalog', 'information_schema')
          AND NOT EXISTS (SELECT FROM pg_depend d
                          WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e') ORDER BY 1",
    )
    .fetch_all(connection)
    .await?;
    if found.is_empty() {
        return Ok(Check::ok(NAME, "no function but the server's and extensions' own is marked so"));
    }
    let fixes: Vec<_> = found.iter().map(|name| format!("ALTER FUNCTION {name} NOT LEAKPROOF;")).collect();
    let said = format!("sees rows before the policies hide them: {}", found.join("; "));
    Ok(Check::warn(NAME, said, fixes.join(" ")))
}

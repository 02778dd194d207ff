//! Tables that hold tenants' rows, and their partitions.
use reeve_jobs::program::soundness::Fault;
use sqlx::PgConnection;

use super::Check;

#[derive(Debug, sqlx::FromRow)]
struct TenantTable {
    name: String,
    column: String,
    not_null: bool,
    indexed: bool,
}

/// Every table with a tenant column is guarded: row-level security enabled and forced, the column NOT NULL and indexed.
pub(super) async fn tenant_tables(connection: &mut PgConnection, faults: &[Fault]) -> sqlx::Result<Check> {
    let tables: Vec<TenantTable> = sqlx::query_as(
        "-- doctor.tenant_tables
        SELECT c.relname::text AS name, a.attname::text AS column, a.attnotnull AS not_null,
               EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisvalid AND i.indkey[0] = a.attnum) AS indexed
        FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND NOT a.attisdropped
        WHERE c.relnamespace = 'reeve'::regnamespace AND c.relkind IN ('r', 'p')
          AND (a.attname = 'tenant_id' OR (c.relname, a.attname) IN (('tenants', 'id'), ('flag_overrides', 'subject')))
        ORDER BY 1",
    )
    .fetch_all(connection)
    .await?;
    let open = faults.iter().filter(|fault| matches!(fault, Fault::Unguarded { .. }));
    let (mut wrong, mut fixes): (Vec<_>, Vec<_>) = open.map(|fault| (fault.to_string(), fault.fix())).unzip();
    for TenantTable { name, column, not_null, indexed } in &tables {
        let rules = [
            (
                not_null,
                "allows rows of no tenant",
                format!("ALTER TABLE reeve.{name} ALTER COLUMN {column} SET NOT NULL;"),
            ),
            (indexed, "has no index by tenant", format!("CREATE INDEX CONCURRENTLY ON reeve.{name} ({column});")),
        ];
        for (_, what, fix) in rules.into_iter().filter(|(holds, ..)| !**holds) {
            wrong.push(format!("{name} {what}"));
            fixes.push(fix);
        }
    }
    if wrong.is_empty() {
        return Ok(Check::ok("tenant tables", format!("{} tables, each guarded and indexed by tenant", tables.len())));
    }
    Ok(Check::fail("tenant tables", wrong.join("; "), fixes.join(" ")))
}

/// Rows of a partition are reached through its parent, whose policies judge them. Read directly it has none, so nobody may;
/// and a child by inheritance takes rows out of the parent's reach. Wherever they are: not only in schema reeve.
pub(super) async fn partitions(connection: &mut PgConnection) -> sqlx::Result<Check> {
    const NAME: &str = "partitions";
    let (total, found): (i64, sqlx::types::Json<Vec<(String, String)>>) = sqlx::query_as(
        "-- doctor.partitions
        WITH RECURSIVE child AS (
          SELECT i.inhrelid AS oid, p.relowner AS parents FROM pg_inherits i JOIN pg_class p ON p.oid = i.inhparent
          WHERE p.relnamespace = 'reeve'::regnamespace AND p.relkind IN ('r', 'p')
          UNION SELECT i.inhrelid, c.parents FROM pg_inherits i JOIN child c ON c.oid = i.inhparent),
        partition AS (
          SELECT c.*, x.parents, format('%I.%I', n.nspname, c.relname) AS name FROM child x
          JOIN pg_class c ON c.oid = x.oid JOIN pg_namespace n ON n.oid = c.relnamespace),
        wrong AS (
          SELECT DISTINCT format('%s is granted to %s', p.name, g.name) AS what, format('REVOKE ALL ON %s FROM %s;', p.name, g.name) AS fix
          FROM partition p,
               LATERAL (SELECT a.grantee FROM aclexplode(p.relacl) a
                        UNION SELECT a.grantee FROM pg_attribute t, aclexplode(t.attacl) a WHERE t.attrelid = p.oid) a,
               LATERAL (SELECT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END) g (name)
          WHERE a.grantee <> p.relowner
          UNION ALL
          SELECT format('%s has a policy of its own, %I', p.name, y.polname), format('DROP POLICY %I ON %s;', y.polname, p.name)
          FROM partition p JOIN pg_policy y ON y.polrelid = p.oid
          UNION ALL
          SELECT format('%s is owned by %I', p.name, pg_get_userbyid(p.relowner)),
                 format('ALTER TABLE %s OWNER TO %I;', p.name, pg_get_userbyid(p.parents))
          FROM partition p WHERE p.relowner <> p.parents
          UNION ALL
          SELECT format('%s inherits from a table of Reeve''s', p.name), format('take %s out of the inheritance;', p.name)
          FROM partition p WHERE NOT p.relispartition AND p.relkind IN ('r', 'f')
          UNION ALL
          SELECT format('%s does not force row-level security', p.name),
                 format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;', p.name)
          FROM partition p JOIN pg_class r ON r.oid = pg_partition_root(p.oid)
          WHERE r.relrowsecurity AND p.relkind IN ('r', 'p') AND NOT (p.relrowsecurity AND p.relforcerowsecurity))
        SELECT (SELECT count(*) FROM partition p WHERE p.relkind IN ('r', 'p', 'f')),
               coalesce((SELECT jsonb_agg(jsonb_build_array(w.what, w.fix) ORDER BY w.what) FROM wrong w), '[]')",
    )
    .fetch_one(connection)
    .await?;
    if found.0.is_empty() {
        return Ok(Check::ok(NAME, format!("{total}, none of them granted to anybody")));
    }
    let (wrong, fixes): (Vec<_>, Vec<_>) = found.0.into_iter().unzip();
    Ok(Check::fail(NAME, wrong.join("; "), fixes.join(" ")))
}

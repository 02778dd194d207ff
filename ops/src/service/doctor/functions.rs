//! Functions that act with their owner's rights.
use reeve_jobs::program::soundness::Fault;
use sqlx::PgConnection;

use super::{Check, privileges};

#[derive(Debug, sqlx::FromRow)]
struct Definer {
    signature: String,
    /// As `migrations/privileges.txt` has it.
    full: String,
    is_public: bool,
    owner: String,
    /// The owner cannot log in and stands under the policies.
    is_harmless: bool,
}

/// A SECURITY DEFINER function acts with its owner's rights for whoever calls it: its names must be pinned, so that no
/// caller's schema can stand in, only named roles may call it, and its owner is one of the roles that are for this. A few
/// only read what no such role can, and belong to whoever migrates: those, this build's migrations name.
pub(super) async fn functions(connection: &mut PgConnection, faults: &[Fault]) -> sqlx::Result<Check> {
    let definers: Vec<Definer> = sqlx::query_as(
        "-- doctor.functions
        SELECT p.oid::regprocedure::text AS signature,
               format('reeve.%I(%s)', p.proname, pg_get_function_identity_arguments(p.oid)) AS full,
               has_function_privilege('public', p.oid, 'EXECUTE') AS is_public, o.rolname::text AS owner,
               starts_with(o.rolname, 'reeve_') AND NOT (o.rolcanlogin OR o.rolsuper OR o.rolbypassrls) AS is_harmless
        FROM pg_proc p JOIN pg_roles o ON o.oid = p.proowner
        WHERE p.pronamespace = 'reeve'::regnamespace AND p.prosecdef ORDER BY 1",
    )
    .fetch_all(connection)
    .await?;
    let open = faults.iter().filter(|fault| matches!(fault, Fault::Unpinned { .. }));
    let (mut wrong, mut fixes): (Vec<_>, Vec<_>) = open.map(|fault| (fault.to_string(), fault.fix())).unzip();
    for definer in &definers {
        let Definer { signature, full, owner, .. } = definer;
        if definer.is_public {
            wrong.push(format!("{signature} may be called by everybody"));
            fixes.push(format!("REVOKE EXECUTE ON FUNCTION {signature} FROM PUBLIC;"));
        }
        if !definer.is_harmless && !privileges::is_migrators(full) {
            wrong.push(format!("{signature} acts with the rights of {owner}"));
            fixes.push(format!("ALTER FUNCTION {signature} OWNER TO reeve_dispatch;"));
        }
    }
    if wrong.is_empty() {
        let found =
            format!("{} SECURITY DEFINER functions, each pinned, closed to PUBLIC, of an owner for it", definers.len());
        return Ok(Check::ok("functions", found));
    }
    Ok(Check::fail("functions", wrong.join("; "), fixes.join(" ")))
}

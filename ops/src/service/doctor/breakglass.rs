//! Break-glass: that nobody can reach its logins but by the way of two persons, and that what was opened is closed in time.
//!
//! Roles belong to the cluster, openings to this database: a login without an opening here may be another database's, and is
//! not judged; without one it is shown nothing here.
use sqlx::PgConnection;

use super::{Check, Status};

const NAME: &str = "break-glass";

/// What is wrong, how badly, and what to do.
type Fault = (bool, String, String);

pub(super) async fn breakglass(connection: &mut PgConnection) -> sqlx::Result<Check> {
    let faults: Vec<Fault> = sqlx::query_as(
        "-- doctor.breakglass
        WITH keeper AS (SELECT * FROM pg_roles WHERE rolname = 'reeve_breakglass_keeper'),
        fault (fails, found, fix) AS (
          SELECT true, 'reeve_breakglass_keeper is not what its functions need, or is more: '
                 || concat_ws(', ', CASE WHEN k.rolcanlogin THEN 'it can log in' END, CASE WHEN k.rolsuper THEN 'a superuser' END,
                              CASE WHEN k.rolbypassrls THEN 'it bypasses row-level security' END,
                              CASE WHEN NOT k.rolcreaterole THEN 'it cannot make roles' END),
                 'ALTER ROLE reeve_breakglass_keeper NOLOGIN NOSUPERUSER NOBYPASSRLS CREATEROLE;'
          FROM keeper k WHERE k.rolcanlogin OR k.rolsuper OR k.rolbypassrls OR NOT k.rolcreaterole
          UNION ALL
          SELECT true, format('%s is a member of reeve_breakglass_keeper and may alter any role', m.rolname),
                 format('REVOKE reeve_breakglass_keeper FROM %I;', m.rolname)
          FROM pg_auth_members a JOIN pg_roles m ON m.oid = a.member JOIN keeper k ON k.oid = a.roleid
          -- Who migrates is an administrator, and may as such.
          WHERE NOT m.rolsuper AND NOT m.rolcreaterole
          UNION ALL
          SELECT true, format('%s is a member of reeve_breakglass past its two persons', m.rolname),
                 format('REVOKE reeve_breakglass FROM %I;', m.rolname)
          FROM pg_auth_members a JOIN pg_roles m ON m.oid = a.member
          WHERE a.roleid = 'reeve_breakglass'::regrole AND m.rolname !~ '^reeve_bg_[0-9a-f]{12}$'
            AND m.rolname <> 'reeve_breakglass_keeper'
          UNION ALL
          SELECT true, format('opening %s is over since %s and still %s', o.id, o.valid_until, o.state),
                 'no scheduler is running: start reeve-scheduler'
          FROM reeve.breakglass_openings o
          WHERE o.state IN ('open', 'closing') AND o.valid_until < now() - interval '2 minutes'
          UNION ALL
          SELECT false, format('login %s is barred but could not be dropped', o.login),
                 format('as an administrator, where it owns something: DROP OWNED BY %I; then DROP ROLE %I;', o.login, o.login)
          FROM reeve.breakglass_openings o JOIN pg_roles r ON r.rolname = o.login WHERE o.login_left)
        SELECT fails, found, fix FROM fault ORDER BY fails DESC, found",
    )
    .fetch_all(connection)
    .await?;
    if faults.is_empty() {
        return Ok(Check::ok(NAME, "its logins come by two persons only, and none is open past its time"));
    }
    let join = |texts: Vec<&str>, with| texts.join(with);
    Ok(Check {
        name: NAME,
        status: if faults.iter().any(|(fails, ..)| *fails) { Status::Fail } else { Status::Warn },
        found: join(faults.iter().map(|(_, found, _)| found.as_str()).collect(), "; "),
        fix: Some(join(faults.iter().map(|(.., fix)| fix.as_str()).collect(), " ")),
    })
}

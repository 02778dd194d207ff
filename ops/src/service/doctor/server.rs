//! The server itself: its version, clock and settings, and who holds it up.
use chrono::{DateTime, Utc};
use reeve_jobs::{clock::Clock, program::soundness::LOGIN_ROLES};
use sqlx::PgConnection;

use super::Check;

/// PostgreSQL 15, as `server_version_num` counts.
const SERVER_VERSION_MIN: i32 = 150_000;

pub(super) async fn server(connection: &mut PgConnection) -> sqlx::Result<Check> {
    let (number, version): (i32, String) = sqlx::query_as(
        "-- doctor.server
        SELECT current_setting('server_version_num')::integer, current_setting('server_version')",
    )
    .fetch_one(connection)
    .await?;
    Ok(server_verdict(number, &version))
}

pub(super) fn server_verdict(number: i32, version: &str) -> Check {
    let found = format!("PostgreSQL {version}");
    if number >= SERVER_VERSION_MIN {
        return Check::ok("server", found);
    }
    Check::fail("server", found, "upgrade the server: Reeve needs PostgreSQL 15 or later")
}

/// A committed job must survive a crash of the server. Settings of Reeve's roles count as well as the server's.
pub(super) async fn durability(connection: &mut PgConnection) -> sqlx::Result<Check> {
    let off: Vec<String> = sqlx::query_scalar(
        "-- doctor.durability
        SELECT s.name || ' = off' FROM pg_settings s WHERE s.name IN ('fsync', 'synchronous_commit') AND s.setting = 'off'
        UNION ALL
        SELECT 'synchronous_commit = off for ' || r.rolname FROM pg_roles r
        WHERE r.rolname = ANY ($1) AND 'synchronous_commit=off' = ANY (r.rolconfig) ORDER BY 1",
    )
    .bind(LOGIN_ROLES.map(str::to_owned).to_vec())
    .fetch_all(connection)
    .await?;
    if off.is_empty() {
        return Ok(Check::ok("durability", "commits are flushed"));
    }
    let fix = "set it to on: a crash of the server can lose committed jobs";
    Ok(Check::warn("durability", off.join("; "), fix))
}

const TRANSACTION_SECS_MAX: f64 = 300.0;

/// Claims slow down while an old snapshot keeps dead rows from being cleaned.
pub(super) async fn oldest_transaction(connection: &mut PgConnection) -> sqlx::Result<Check> {
    let (holder, secs, unseen, owner): (Option<String>, Option<f64>, i64, String) = sqlx::query_as(
        "-- doctor.oldest_transaction
        SELECT o.holder, o.age_secs, o.unseen,
               (SELECT pg_get_userbyid(p.proowner)::text FROM pg_proc p WHERE p.oid = 'reeve.oldest_transaction'::regproc)
        FROM reeve.oldest_transaction() o",
    )
    .fetch_one(connection)
    .await?;
    Ok(transaction_verdict(holder.zip(secs), unseen, &owner))
}

pub(super) fn transaction_verdict(oldest: Option<(String, f64)>, unseen: i64, looks_as: &str) -> Check {
    const NAME: &str = "oldest transaction";
    match oldest {
        Some((holder, secs)) if secs > TRANSACTION_SECS_MAX => Check::warn(
            NAME,
            format!("{:.0} min: {holder}", secs / 60.0),
            "end it, or give its role idle_in_transaction_session_timeout: it slows every claim",
        ),
        _ if unseen > 0 => Check::warn(
            NAME,
            format!("cannot tell: sessions hidden from {looks_as}: {unseen}"),
            format!("GRANT pg_read_all_stats TO {looks_as};"),
        ),
        None => Check::ok(NAME, "no other is open"),
        Some((_, secs)) => Check::ok(NAME, format!("{secs:.0} s")),
    }
}

const SKEW_WARN_SECS: f64 = 2.0;
const SKEW_FAIL_SECS: f64 = 60.0;

/// The database's clock decides when a job is due; this machine's stands in signatures that others check against theirs.
pub(super) async fn clock(connection: &mut PgConnection, clock: &dyn Clock) -> sqlx::Result<Check> {
    let before = clock.now();
    let there: DateTime<Utc> =
        sqlx::query_scalar("-- doctor.clock\nSELECT clock_timestamp()").fetch_one(connection).await?;
    Ok(clock_verdict(before, there, clock.now()))
}

/// The database told its time at some instant between the two looks at ours: what lies between them is no skew.
pub(super) fn clock_verdict(before: DateTime<Utc>, there: DateTime<Utc>, after: DateTime<Utc>) -> Check {
    const NAME: &str = "clock";
    let (behind, ahead) = ((before - there).as_seconds_f64(), (there - after).as_seconds_f64());
    let (skew, word) = if ahead > behind { (ahead, "ahead of") } else { (behind, "behind") };
    let found = format!("the database's clock is {:.1} s {word} this machine's", skew.max(0.0));
    let fix = "let both machines follow a time server (chrony, systemd-timesyncd)";
    match skew {
        _ if skew > SKEW_FAIL_SECS => Check::fail(NAME, found, fix),
        _ if skew > SKEW_WARN_SECS => Check::warn(NAME, found, fix),
        _ if skew <= 0.0 => Check::ok(NAME, "the database's clock agrees with this machine's"),
        _ => Check::ok(NAME, found),
    }
}

/// Settings kept with a role or the database apply before anybody asks: a tenant's context among them would be everybody's.
pub(super) async fn settings(connection: &mut PgConnection) -> sqlx::Result<Check> {
    const NAME: &str = "settings";
    let rows: Vec<(String, String, String, bool)> = sqlx::query_as(
        "-- doctor.settings
        SELECT format('%s = %s', split_part(c, '=', 1), CASE WHEN x.harms THEN '...' ELSE split_part(c, '=', 2) END),
               w.whose, format('ALTER %s RESET %s;', w.whose, split_part(c, '=', 1)), x.harms
        FROM pg_db_role_setting s, unnest(s.setconfig) c,
             LATERAL (SELECT split_part(c, '=', 1) IN ('reeve.tenant_id', 'reeve.audit_removal')
                 OR split_part(c, '=', 1) IS NOT DISTINCT FROM (SELECT t.app_context_setting FROM reeve.settings t)
                 OR c = 'session_replication_role=replica') x (harms),
             LATERAL (SELECT CASE WHEN s.setrole = 0 THEN format('DATABASE %I', current_database())
                                  ELSE format('ROLE %I', pg_get_userbyid(s.setrole))
                                    || CASE WHEN s.setdatabase = 0 THEN '' ELSE format(' IN DATABASE %I', current_database()) END
                             END) w (whose)
        WHERE s.setdatabase IN (0, (SELECT d.oid FROM pg_database d WHERE d.datname = current_database()))
          AND (x.harms OR c = 'row_security=off' OR split_part(c, '=', 1) = 'role' AND s.setrole = ANY (
                 SELECT r.oid FROM pg_roles r WHERE r.rolname = ANY ($1))) ORDER BY 2, 1",
    )
    .bind(LOGIN_ROLES.map(str::to_owned).to_vec())
    .fetch_all(connection)
    .await?;
    if rows.is_empty() {
        return Ok(Check::ok(NAME, "none that presets a tenant or lifts a guard"));
    }
    let found: Vec<_> = rows.iter().map(|(setting, whose, ..)| format!("{whose}: {setting}")).collect();
    let fixes: Vec<_> = rows.iter().map(|(.., fix, _)| fix.as_str()).collect();
    let harms = rows.iter().any(|(.., harms)| *harms);
    let check = if harms { Check::fail } else { Check::warn };
    Ok(check(NAME, found.join("; "), fixes.join(" ")))
}

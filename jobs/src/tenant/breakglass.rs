//! Break-glass as operators and the scheduler see it: calls of the functions in `migrations/0015_breakglass.sql`, which hold
//! all logic and write the audit log.
//!
//! Who acts is the login of the pool, authenticated by the server; the actor given here is only written down beside it. The
//! look itself is not here: it is taken with psql, under the policies that the migration and `reeve catalogue rls` make.
use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{FromRow, PgPool};
use uuid::Uuid;

use super::TenantId;
use crate::{program::scram::Password, queue::operate::Act};

/// An opening, from its request to its end.
#[derive(Debug, Clone, Serialize, FromRow)]
pub struct Opening {
    pub id: Uuid,
    pub tenant_id: String,
    /// `requested`, `approved`, `open`, `closing` or `closed`.
    pub state: String,
    pub minutes: i32,
    pub reason: String,
    /// `…_by` is the login; `…_as` what its command line called itself.
    pub requested_by: String,
    pub requested_as: String,
    pub requested_at: DateTime<Utc>,
    /// The next step must be taken before.
    pub lapses_at: DateTime<Utc>,
    pub approved_by: Option<String>,
    pub approved_as: Option<String>,
    pub approved_at: Option<DateTime<Utc>>,
    pub approval_reason: Option<String>,
    pub login: Option<String>,
    pub opened_at: Option<DateTime<Utc>>,
    pub valid_until: Option<DateTime<Utc>>,
    /// Sessions that have said what they look for.
    pub sessions: i64,
    pub closed_by: Option<String>,
    pub closed_as: Option<String>,
    pub closed_at: Option<DateTime<Utc>>,
    pub close_reason: Option<String>,
    /// The role could not be dropped; it is barred.
    pub login_left: bool,
}

/// The newest first; of one tenant, or one alone.
pub async fn list(
    pool: &PgPool,
    tenant: Option<&TenantId>,
    opening: Option<Uuid>,
    limit: i64,
) -> sqlx::Result<Vec<Opening>> {
    sqlx::query_as(
        "-- breakglass.list
        SELECT o.*, (SELECT count(*) FROM reeve.breakglass_sessions s
                     WHERE s.tenant_id = o.tenant_id AND s.opening_id = o.id) AS sessions
        FROM reeve.breakglass_openings o
        WHERE ($1::text IS NULL OR o.tenant_id = $1) AND ($2::uuid IS NULL OR o.id = $2)
        ORDER BY o.requested_at DESC, o.id LIMIT $3",
    )
    .bind(tenant.map(TenantId::as_str))
    .bind(opening)
    .bind(limit)
    .fetch_all(pool)
    .await
}

/// Asks for an opening. Returns its id.
pub async fn request(pool: &PgPool, tenant: &TenantId, minutes: i32, act: Act<'_>) -> sqlx::Result<Uuid> {
    sqlx::query_scalar("-- breakglass.request\nSELECT reeve.breakglass_request($1, $2, $3, $4)")
        .bind(tenant.as_str())
        .bind(minutes)
        .bind(act.actor)
        .bind(act.reason)
        .fetch_one(pool)
        .await
}

/// What came of an approval. A refusal is no error of the database, since it is audited there and so must commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Approval {
    NoOpening,
    Approved,
    Refused { code: String, message: String, hint: Option<String> },
}

pub async fn approve(pool: &PgPool, opening: Uuid, act: Act<'_>) -> sqlx::Result<Approval> {
    let said: Option<(Option<String>, Option<String>, Option<String>)> = sqlx::query_as(
        "-- breakglass.approve
        SELECT code, message, hint FROM reeve.breakglass_approve($1, $2, $3)",
    )
    .bind(opening)
    .bind(act.actor)
    .bind(act.reason)
    .fetch_optional(pool)
    .await?;
    Ok(match said {
        None => Approval::NoOpening,
        Some((Some(code), message, hint)) => Approval::Refused { code, message: message.unwrap_or_default(), hint },
        Some((None, ..)) => Approval::Approved,
    })
}

/// A login, made just now. The password is nowhere else.
#[derive(Debug)]
pub struct Login {
    pub user: String,
    pub password: Password,
    pub valid_until: DateTime<Utc>,
}

/// Makes the login of an approved opening. `None`: there is no such opening.
pub async fn login(pool: &PgPool, opening: Uuid, actor: &str) -> sqlx::Result<Option<Login>> {
    let password = Password::generate();
    let made: Option<(String, DateTime<Utc>)> = sqlx::query_as(
        "-- breakglass.login
        SELECT login, valid_until FROM reeve.breakglass_login($1, $2, $3)",
    )
    .bind(opening)
    .bind(password.verifier())
    .bind(actor)
    .fetch_optional(pool)
    .await?;
    Ok(made.map(|(user, valid_until)| Login { user, password, valid_until }))
}

/// Ends an opening: nobody gets in any more and sessions are cut. [`finish`] is to be called next. Its former state; `closed`
/// when it was over already, `None` when there is no such opening.
pub async fn close(pool: &PgPool, opening: Uuid, act: Act<'_>) -> sqlx::Result<Option<String>> {
    sqlx::query_scalar("-- breakglass.close\nSELECT reeve.breakglass_close($1, $2, $3)")
        .bind(opening)
        .bind(act.actor)
        .bind(act.reason)
        .fetch_one(pool)
        .await
}

/// Ends all whose time is over, as [`close`] does; each is a transaction of its own. Returns how many.
pub async fn expire(pool: &PgPool) -> sqlx::Result<u64> {
    let mut expired = 0;
    loop {
        let one: Option<Uuid> =
            sqlx::query_scalar("-- breakglass.expire\nSELECT reeve.breakglass_expire()").fetch_one(pool).await?;
        if one.is_none() {
            return Ok(expired);
        }
        expired += 1;
    }
}

/// An opening that is over.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct Finished {
    pub opening: Uuid,
    /// Its role is barred and could not be dropped.
    pub login_left: bool,
}

/// Drops the logins of all that are closing, and audits their end; each is a transaction of its own.
pub async fn finish(pool: &PgPool) -> sqlx::Result<Vec<Finished>> {
    let mut all = Vec::new();
    loop {
        let one = sqlx::query_as("-- breakglass.finish\nSELECT opening, login_left FROM reeve.breakglass_finish()")
            .fetch_optional(pool)
            .await?;
        match one {
            Some(one) => all.push(one),
            None => return Ok(all),
        }
    }
}

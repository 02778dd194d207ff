//! Flags as operators see and set them: calls of the audited functions in `migrations/0012_flags.sql`, which hold all logic.
//!
//! Runs as `reeve_ops`. What an app or a duty asks is `SELECT reeve.flag(name)` in its tenant's own context; the claim heeds
//! the flags of kinds by itself.
use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use sqlx::{FromRow, PgPool};

use super::TenantId;
use crate::queue::operate::Act;

/// For whom a flag is set. A tenant's comes before its plan's, and that before the default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Level {
    Default,
    Plan(String),
    Tenant(TenantId),
}

impl Level {
    /// As the table has it: level and subject.
    fn parts(&self) -> (&'static str, Option<&str>) {
        match self {
            Self::Default => ("default", None),
            Self::Plan(plan) => ("plan", Some(plan)),
            Self::Tenant(tenant) => ("tenant", Some(tenant.as_str())),
        }
    }
}

/// A flag's value somewhere, and who decided.
#[derive(Debug, Clone, Serialize, FromRow)]
pub struct FlagRow {
    pub name: String,
    pub description: String,
    /// `bool`, `int` or `text`.
    pub value_type: String,
    pub value: Value,
    /// `declared` (with the flag itself), `default`, `plan` or `tenant`.
    pub level: String,
    /// The plan or tenant.
    pub subject: Option<String>,
    pub set_by: Option<String>,
    pub reason: Option<String>,
    pub set_at: Option<DateTime<Utc>>,
}

/// Every flag as declared, each followed by its overrides.
pub async fn list(pool: &PgPool) -> sqlx::Result<Vec<FlagRow>> {
    sqlx::query_as(
        "-- flags.list
        SELECT f.name, f.description, f.value_type, v.*
        FROM reeve.flags f CROSS JOIN LATERAL (
          SELECT f.default_value AS value, 'declared' AS level, NULL AS subject, NULL AS set_by, NULL AS reason,
                 NULL::timestamptz AS set_at
          UNION ALL
          SELECT o.value, o.level, nullif(o.subject, ''), o.set_by, o.reason, o.set_at
          FROM reeve.flag_overrides o WHERE o.name = f.name) v
        ORDER BY f.name, array_position(ARRAY['declared', 'default', 'plan', 'tenant'], v.level), v.subject",
    )
    .fetch_all(pool)
    .await
}

/// Every flag as it is in force for one tenant; of a tenant that is not registered, those by default.
pub async fn of_tenant(pool: &PgPool, tenant: &TenantId) -> sqlx::Result<Vec<FlagRow>> {
    sqlx::query_as(
        "-- flags.of_tenant
        SELECT name, description, value_type, value, level, nullif(subject, '') AS subject, set_by, reason, set_at
        FROM reeve.flags_in_force($1, (SELECT t.plan FROM reeve.tenants t WHERE t.id = $1)) ORDER BY name",
    )
    .bind(tenant.as_str())
    .fetch_all(pool)
    .await
}

/// `bool`, `int` or `text`; `None` for a flag that nobody declared.
pub async fn value_type(pool: &PgPool, name: &str) -> sqlx::Result<Option<String>> {
    sqlx::query_scalar("-- flags.value_type\nSELECT value_type FROM reeve.flags WHERE name = $1")
        .bind(name)
        .fetch_optional(pool)
        .await
}

/// How many tenants are on a plan.
pub async fn tenants_on(pool: &PgPool, plan: &str) -> sqlx::Result<i64> {
    sqlx::query_scalar("-- flags.tenants_on\nSELECT count(*) FROM reeve.tenants WHERE plan = $1")
        .bind(plan)
        .fetch_one(pool)
        .await
}

/// A flag of the app's own, to be made known.
#[derive(Debug, Clone, Copy)]
pub struct Declaration<'a> {
    pub name: &'a str,
    /// `bool`, `int` or `text`; fixed once declared.
    pub value_type: &'a str,
    pub default: &'a Value,
    pub description: &'a str,
}

/// Makes a flag known, or changes its default and description. Whether it is new.
pub async fn declare(pool: &PgPool, flag: Declaration<'_>, act: Act<'_>) -> sqlx::Result<bool> {
    sqlx::query_scalar("-- flags.declare\nSELECT reeve.declare_flag($1, $2, $3, $4, $5, $6)")
        .bind(flag.name)
        .bind(flag.value_type)
        .bind(flag.default)
        .bind(flag.description)
        .bind(act.actor)
        .bind(act.reason)
        .fetch_one(pool)
        .await
}

/// Sets a flag at one level. The former value there, or `None` when there was none.
pub async fn set(pool: &PgPool, name: &str, level: &Level, value: &Value, act: Act<'_>) -> sqlx::Result<Option<Value>> {
    let (level, subject) = level.parts();
    sqlx::query_scalar("-- flags.set\nSELECT reeve.set_flag($1, $2, $3, $4, $5, $6)")
        .bind(name)
        .bind(value)
        .bind(level)
        .bind(subject)
        .bind(act.actor)
        .bind(act.reason)
        .fetch_one(pool)
        .await
}

/// Takes a flag's value at one level away. What it was, or `None` when there was none.
pub async fn clear(pool: &PgPool, name: &str, level: &Level, act: Act<'_>) -> sqlx::Result<Option<Value>> {
    let (level, subject) = level.parts();
    sqlx::query_scalar("-- flags.clear\nSELECT reeve.clear_flag($1, $2, $3, $4, $5)")
        .bind(name)
        .bind(level)
        .bind(subject)
        .bind(act.actor)
        .bind(act.reason)
        .fetch_one(pool)
        .await
}

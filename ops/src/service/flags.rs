//! Flags as operators see and handle them: list, declare, set, clear.
use reeve_jobs::{
    TenantId,
    queue::operate::Act,
    tenant::flags::{self, Declaration, FlagRow, Level},
};
use serde::Serialize;
use serde_json::Value;
use sqlx::PgPool;

use super::{ServiceError, require_tenant};

/// What an act did to a flag at one level.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Changed {
    pub name: String,
    /// For whom, in words: `tenant acme`, `plan pro`, `default`.
    pub of: String,
    /// `None` where nothing was set: a lower level decided.
    pub was: Option<Value>,
    pub now: Option<Value>,
    /// What an operator should know of it.
    pub note: Option<String>,
}

fn words(level: &Level) -> String {
    match level {
        Level::Default => "default".to_owned(),
        Level::Plan(plan) => format!("plan {plan}"),
        Level::Tenant(tenant) => format!("tenant {tenant}"),
    }
}

/// All flags with all their overrides, or each as it is in force for one tenant.
pub async fn list(pool: &PgPool, tenant: Option<&TenantId>) -> Result<Vec<FlagRow>, ServiceError> {
    let Some(tenant) = tenant else { return Ok(flags::list(pool).await?) };
    require_tenant(pool, tenant).await?;
    Ok(flags::of_tenant(pool, tenant).await?)
}

/// The text as a value of this type. What cannot be read as one stays text, which the database refuses with what it takes.
fn value(value_type: Option<&str>, text: &str) -> Value {
    match value_type {
        Some("bool") => text.parse().map(Value::Bool).ok(),
        Some("int") => text.parse::<i64>().map(Value::from).ok(),
        _ => None,
    }
    .unwrap_or_else(|| Value::String(text.to_owned()))
}

pub async fn set(pool: &PgPool, name: &str, text: &str, level: &Level, act: Act<'_>) -> Result<Changed, ServiceError> {
    let value = value(flags::value_type(pool, name).await?.as_deref(), text);
    let was = flags::set(pool, name, level, &value, act).await?;
    let note = match level {
        Level::Plan(plan) if flags::tenants_on(pool, plan).await? == 0 => {
            Some(format!("no tenant is on plan \"{plan}\" yet"))
        }
        _ => None,
    };
    Ok(Changed { name: name.to_owned(), of: words(level), was, now: Some(value), note })
}

pub async fn clear(pool: &PgPool, name: &str, level: &Level, act: Act<'_>) -> Result<Changed, ServiceError> {
    match flags::clear(pool, name, level, act).await? {
        Some(was) => Ok(Changed { name: name.to_owned(), of: words(level), was: Some(was), now: None, note: None }),
        None => Err(ServiceError::NoFlagValue { name: name.to_owned(), of: words(level) }),
    }
}

/// Makes a flag of the app's own known, or changes its default and description.
pub async fn declare(
    pool: &PgPool,
    name: &str,
    value_type: &str,
    default: &str,
    description: &str,
    act: Act<'_>,
) -> Result<Changed, ServiceError> {
    let default = value(Some(value_type), default);
    let is_new = flags::declare(pool, Declaration { name, value_type, default: &default, description }, act).await?;
    let note = (!is_new).then(|| "it was declared before".to_owned());
    Ok(Changed { name: name.to_owned(), of: "declared".to_owned(), was: None, now: Some(default), note })
}

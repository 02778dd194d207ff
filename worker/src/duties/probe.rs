//! `fleet.probe`: opens the tenant's scope and reads that it sees this tenant and no other. Changes nothing.
use std::time::Duration;

use reeve_jobs::{
    TenantContext,
    job::Outcome,
    kinds::ProbeFleet,
    tenant::{Scope, ScopeError, TenantRow},
};

use crate::environment::Environment;

#[derive(sqlx::FromRow)]
struct Tenant {
    id: String,
}

impl TenantRow for Tenant {
    fn tenant_id(&self) -> &str {
        &self.id
    }
}

pub async fn run(env: &Environment, context: &TenantContext, probe: &ProbeFleet) -> Result<Outcome, ScopeError> {
    let mut scope = Scope::open(&env.directory, context).await?;
    // No WHERE: row-level security must leave this one row, and the scope refuses any other.
    let seen: Vec<Tenant> = scope.fetch_all(sqlx::query_as("-- probe.tenants\nSELECT id FROM reeve.tenants")).await?;
    if seen.len() != 1 {
        return Ok(Outcome::dead(format!("the tenant's own row was read {} times", seen.len())));
    }
    drop(scope);
    tokio::time::sleep(Duration::from_millis(probe.sleep_ms)).await;
    Ok(Outcome::Done)
}

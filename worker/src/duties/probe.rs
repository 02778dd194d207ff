//! `fleet.probe`: opens the tenant's scope, in its own database and in the control database, and reads that each shows this
//! tenant and no other. Changes nothing.
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
    for mut scope in [Scope::open(&env.directory, context).await?, Scope::open_control(&env.directory, context).await?]
    {
        // No WHERE: row-level security must leave this one row, and the scope refuses any other.
        let all = sqlx::query_as("-- probe.tenants\nSELECT id FROM reeve.tenants");
        let seen: Vec<Tenant> = scope.fetch_all(all).await?;
        if seen.len() != 1 {
            return Ok(Outcome::dead(format!("the tenant's own row was read {} times", seen.len())));
        }
    }
    tokio::time::sleep(Duration::from_millis(probe.sleep_ms)).await;
    Ok(Outcome::Done)
}

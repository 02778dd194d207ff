//! `fleet.probe`: opens the tenant's scope, in its own database and in the control database where that is another, and reads
//! that each shows this tenant and no other. Changes nothing.
use std::time::Duration;

use reeve_jobs::{
    TenantContext,
    job::Outcome,
    kinds::ProbeFleet,
    tenant::{Placement, Scope, ScopeError, TenantRow},
};

use crate::{environment::Environment, runtime::Progress};

#[derive(sqlx::FromRow)]
struct Tenant {
    id: String,
}

impl TenantRow for Tenant {
    fn tenant_id(&self) -> &str {
        &self.id
    }
}

/// The pieces of its sleep, after each of which it reports.
const PIECES: u64 = 20;

pub async fn run(
    env: &Environment,
    context: &TenantContext,
    probe: &ProbeFleet,
    progress: &Progress,
) -> Result<Outcome, ScopeError> {
    // One after the other: a job that holds one connection while it waits for a second starves its peers.
    let mut seen = vec![own_rows(Scope::open(&env.directory, context).await?).await?];
    if env.directory.entry(&context.tenant).await?.placement != Placement::Shared {
        seen.push(own_rows(Scope::open_control(&env.directory, context).await?).await?);
    }
    if let Some(wrong) = seen.into_iter().find(|rows| *rows != 1) {
        return Ok(Outcome::dead(format!("the tenant's own row was read {wrong} times")));
    }
    if probe.sleep_ms > 0 {
        progress.step("sleeping", Some(PIECES));
        for _ in 0..PIECES {
            tokio::time::sleep(Duration::from_micros(probe.sleep_ms.saturating_mul(1_000 / PIECES))).await;
            progress.advance();
        }
    }
    Ok(Outcome::Done)
}

/// No WHERE: row-level security must leave the tenant's one row, and the scope refuses any other.
async fn own_rows(mut scope: Scope) -> Result<usize, ScopeError> {
    let seen: Vec<Tenant> = scope.fetch_all(sqlx::query_as("-- probe.tenants\nSELECT id FROM reeve.tenants")).await?;
    Ok(seen.len())
}

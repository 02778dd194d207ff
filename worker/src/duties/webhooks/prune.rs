//! `webhook.prune`: deletes this tenant's ended deliveries, with their attempts, and then events that no delivery needs,
//! once they are past the keep time. Small transactions, so that no delivery waits long; runs again safely.
use reeve_jobs::{
    TenantContext,
    job::Outcome,
    tenant::{Rows, Scope, ScopeError},
};

use crate::environment::Environment;

const BATCH: u64 = 1_000;

/// `$1` days, `$2` rows. Pending deliveries stay, however old: their jobs still run.
const STATEMENTS: [&str; 2] = [
    "-- webhook_prune.deliveries
    DELETE FROM reeve.webhook_deliveries d WHERE d.id = ANY (ARRAY(
      SELECT x.id FROM reeve.webhook_deliveries x WHERE x.ended_at < now() - make_interval(days => $1) LIMIT $2))",
    "-- webhook_prune.events
    DELETE FROM reeve.webhook_events e WHERE e.id = ANY (ARRAY(
      SELECT x.id FROM reeve.webhook_events x WHERE x.created_at < now() - make_interval(days => $1)
        AND NOT EXISTS (SELECT FROM reeve.webhook_deliveries d WHERE d.tenant_id = x.tenant_id AND d.event_id = x.id)
      LIMIT $2))",
];

pub async fn run(env: &Environment, context: &TenantContext) -> Result<Outcome, ScopeError> {
    for statement in STATEMENTS {
        loop {
            let mut scope = Scope::open(&env.directory, context).await?;
            let delete = sqlx::query(statement).bind(i32::from(env.webhook_keep_days)).bind(BATCH.cast_signed());
            let deleted = scope.execute(delete, Rows::AtMost(BATCH)).await?;
            scope.commit().await?;
            if deleted < BATCH {
                break;
            }
        }
    }
    Ok(Outcome::Done)
}

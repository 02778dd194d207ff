//! `webhook.prune`: deletes this tenant's ended deliveries, with their attempts, and then events that no delivery needs,
//! once they are past the keep time. A delivery that is pending although no job is left to make it (its job was
//! cancelled, quarantined, or died before it could say so) is failed first. Small transactions, so that no delivery waits
//! long; runs again safely.
use reeve_jobs::{
    TenantContext,
    job::Outcome,
    tenant::{Rows, Scope, ScopeError},
};

use crate::environment::Environment;

const BATCH: u64 = 1_000;

/// Each with `$1` the tenant, `$2` days and `$3` rows.
const STATEMENTS: [&str; 3] = [
    "-- webhook_prune.orphans
    UPDATE reeve.webhook_deliveries d SET state = 'failed', ended_at = now()
    WHERE d.tenant_id = $1 AND d.id = ANY (ARRAY(
      SELECT x.id FROM reeve.webhook_deliveries x
      WHERE x.tenant_id = $1 AND x.state = 'pending' AND x.created_at < now() - least(make_interval(days => $2), interval '1 hour')
        AND NOT EXISTS (SELECT FROM reeve.jobs j WHERE j.tenant_id = x.tenant_id AND j.kind = 'webhook.deliver'
                        AND j.unique_key = 'delivery:' || x.id
                        AND j.state IN ('scheduled', 'available', 'running', 'retryable'))
      LIMIT $3)) RETURNING d.tenant_id",
    "-- webhook_prune.deliveries
    DELETE FROM reeve.webhook_deliveries d WHERE d.tenant_id = $1 AND d.id = ANY (ARRAY(
      SELECT x.id FROM reeve.webhook_deliveries x
      WHERE x.tenant_id = $1 AND x.ended_at < now() - make_interval(days => $2) LIMIT $3)) RETURNING d.tenant_id",
    "-- webhook_prune.events
    DELETE FROM reeve.webhook_events e WHERE e.tenant_id = $1 AND e.id = ANY (ARRAY(
      SELECT x.id FROM reeve.webhook_events x
      WHERE x.tenant_id = $1 AND x.created_at < now() - make_interval(days => $2)
        AND NOT EXISTS (SELECT FROM reeve.webhook_deliveries d WHERE d.tenant_id = x.tenant_id AND d.event_id = x.id)
      LIMIT $3)) RETURNING e.tenant_id",
];

pub async fn run(env: &Environment, context: &TenantContext) -> Result<Outcome, ScopeError> {
    for statement in STATEMENTS {
        loop {
            let mut scope = Scope::open_control(&env.directory, context).await?;
            let step = sqlx::query_scalar(statement)
                .bind(context.tenant.as_str().to_owned())
                .bind(i32::from(env.webhook_keep_days))
                .bind(BATCH.cast_signed());
            let changed = scope.write(step, Rows::AtMost(BATCH)).await?;
            scope.commit().await?;
            if changed < BATCH {
                break;
            }
        }
    }
    Ok(Outcome::Done)
}

//! An operator's way into one tenant's rows without a job: asked for on the operators' login, recorded with who and why, and
//! good for minutes. What comes back is proof for the worker's login; alone, neither login reaches a row.
use sqlx::PgPool;

use super::{Proof, TenantId};
use crate::queue::operate::Act;

/// How long a session's proof holds.
const MINUTES: i32 = 5;

/// Runs as `reeve_ops`. Refused for a tenant that is not registered or closed, and without a reason.
pub async fn open(ops: &PgPool, tenant: &TenantId, act: Act<'_>) -> sqlx::Result<Proof> {
    let text: String = sqlx::query_scalar("-- session.open\nSELECT reeve.open_session($1, $2, $3, $4)")
        .bind(tenant.as_str())
        .bind(act.actor)
        .bind(act.reason)
        .bind(MINUTES)
        .fetch_one(ops)
        .await?;
    Ok(Proof::new(&text))
}

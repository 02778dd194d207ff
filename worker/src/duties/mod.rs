//! The duties, and which of them does which kind of job. The match has no wildcard: a kind without a handler does not
//! compile.
pub mod probe;
pub mod rekey;
pub mod webhooks;

use reeve_jobs::{
    TenantContext,
    job::{ClaimedJob, Outcome},
    kinds::{Payload, RotateTenantKey, Work},
    tenant::ScopeError,
};

use crate::{
    environment::Environment,
    runtime::{Handler, Progress},
};

/// Does jobs for real.
#[derive(Debug, Clone)]
pub struct Duties {
    pub environment: Environment,
}

impl Handler for Duties {
    async fn handle(&self, job: &ClaimedJob, context: TenantContext, work: Work, progress: &Progress) -> Outcome {
        let env = &self.environment;
        match work {
            Work::WebhookDeliver(payload) => webhooks::deliver::run(env, job, &context, &payload).await,
            Work::WebhookPrune(_) => webhooks::prune::run(env, &context).await,
            Work::KeyRotateTenant(payload) => {
                let rotation = rekey::Rotation {
                    directory: &env.directory,
                    keyring: &env.keyring,
                    catalogue: &env.catalogue,
                    settings: env.rekey,
                    budget: RotateTenantKey::KIND.spec().budget(),
                };
                rotation.run(job, &context, payload.new_version, progress).await
            }
            Work::FleetProbe(payload) => probe::run(env, &context, &payload, progress).await,
        }
        .unwrap_or_else(ScopeError::into_outcome)
    }
}

//! From an outcome to what is stored: the retry delay of the kind, and an error text that is safe to keep.
use std::time::Duration;

use reeve_jobs::{
    job::{ClaimedJob, LeaseToken, Outcome},
    kinds::Kind,
    queue::{ERROR_CHARS_MAX, Settlement},
};

use super::backoff::RetryPolicy;
use crate::duties::webhooks::schedule::RETRY_POLICY;

/// Checked when this is compiled, so a bad policy does not build.
const ORDINARY: RetryPolicy = match RetryPolicy::new(Duration::from_secs(2), 2.0, Duration::from_secs(600)) {
    Ok(policy) => policy,
    Err(_) => panic!("the ordinary retry policy is out of its bounds"),
};

/// How a kind's failures are spaced.
fn policy(kind: Option<Kind>) -> RetryPolicy {
    match kind {
        Some(Kind::WebhookDeliver) => RETRY_POLICY,
        Some(Kind::WebhookPrune | Kind::KeyRotateTenant | Kind::FleetProbe) | None => ORDINARY,
    }
}

/// What is stored for this end of an attempt. `entropy` in [0, 1) spreads retries.
pub fn settlement(job: &ClaimedJob, token: LeaseToken, outcome: &Outcome, entropy: f64) -> Settlement {
    let delay = match outcome {
        Outcome::Retry { after: Some(after), .. } | Outcome::Snooze { after, .. } => *after,
        Outcome::Retry { after: None, .. } => {
            policy(job.kind.parse().ok()).delay(u32::try_from(job.attempt).unwrap_or(1), entropy)
        }
        _ => Duration::ZERO,
    };
    let error = outcome.why().map(|why| why.chars().filter(|c| !c.is_control()).take(ERROR_CHARS_MAX).collect());
    Settlement { job: job.id, token, outcome: outcome.as_str(), delay, error }
}

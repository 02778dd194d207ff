//! From an outcome to what is stored: the retry delay of the kind, and an error text that is safe to keep.
use std::time::Duration;

use reeve_jobs::{
    job::{ClaimedJob, LeaseToken, Outcome},
    kinds::Kind,
    queue::{ERROR_CHARS_MAX, Settlement},
};

use super::backoff::RetryPolicy;

/// A receiver may be down for days: with jitter at its midpoint, twelve attempts span some three of them.
const WEBHOOK: RetryPolicy = checked(RetryPolicy::new(Duration::from_secs(5), 4.0, Duration::from_secs(24 * 3600)));
const ORDINARY: RetryPolicy = checked(RetryPolicy::new(Duration::from_secs(2), 2.0, Duration::from_secs(600)));

/// Evaluated when this is compiled, so a bad policy does not build.
const fn checked(policy: Result<RetryPolicy, super::backoff::RetryPolicyInvalid>) -> RetryPolicy {
    match policy {
        Ok(policy) => policy,
        Err(_) => panic!("a built-in retry policy is invalid"),
    }
}

/// How a kind's failures are spaced.
fn policy(kind: Option<Kind>) -> RetryPolicy {
    match kind {
        Some(Kind::WebhookDeliver) => WEBHOOK,
        Some(Kind::WebhookPrune | Kind::FleetProbe) | None => ORDINARY,
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

//! When a failed delivery is tried again.
//!
//! Flow: the number of the attempt that failed, fresh entropy and what the endpoint asked for (`Retry-After`) go in, the
//! delay comes out. Twelve attempts last about three days, as long as the list that Standard Webhooks recommends.
//!
//! Deliberately absent: the cap on `Retry-After` (the outbound door puts it on before anybody sees the value), and
//! holding the whole endpoint rather than one message.

use std::time::Duration;

use crate::runtime::backoff::RetryPolicy;

/// Attempts at one delivery before it counts as failed.
pub const ATTEMPTS_MAX: u32 = 12;

/// 5 s, then eight times as much, up to a day. With full jitter the mean delay is half of that, so the multiplier is what
/// makes [`ATTEMPTS_MAX`] attempts span three days at the mean: with 4 they would span two.
pub const RETRY_POLICY: RetryPolicy =
    match RetryPolicy::new(Duration::from_secs(5), 8.0, Duration::from_secs(24 * 3_600)) {
        Ok(policy) => policy,
        Err(_) => panic!("the webhook retry policy is out of its bounds"),
    };

/// The delay after attempt `attempt` (1 is the first) of a delivery failed; `entropy` in `[0, 1)`.
///
/// What the endpoint asked for is a floor, never shortened by jitter. It does not shorten our own delay either: an
/// endpoint that always says "now" would otherwise burn all its attempts in seconds.
pub fn delay(policy: &RetryPolicy, attempt: u32, entropy: f64, retry_after: Option<Duration>) -> Duration {
    policy.delay(attempt, entropy).max(retry_after.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twelve_attempts_span_three_days_at_the_mean() {
        let span: Duration = (1..ATTEMPTS_MAX).map(|attempt| delay(&RETRY_POLICY, attempt, 0.5, None)).sum();
        assert!(span >= Duration::from_secs(3 * 86_400), "{span:?}");
        assert!(span <= Duration::from_secs(4 * 86_400), "{span:?}");
    }

    #[test]
    fn no_delay_of_ours_is_longer_than_a_day() {
        for attempt in 0..200 {
            assert!(delay(&RETRY_POLICY, attempt, 0.999_999, None) <= Duration::from_secs(86_400));
        }
    }

    #[test]
    fn retry_after_is_a_floor_whatever_the_entropy() {
        let asked = Duration::from_secs(30);
        for attempt in 1..=ATTEMPTS_MAX {
            for step in 0..100 {
                let entropy = f64::from(step) / 100.0;
                let ours = delay(&RETRY_POLICY, attempt, entropy, None);
                let theirs = delay(&RETRY_POLICY, attempt, entropy, Some(asked));
                assert!(theirs >= asked && theirs >= ours);
                assert!(theirs == asked || theirs == ours, "honoured exactly, or our own longer delay");
            }
        }
    }

    #[test]
    fn an_endpoint_that_says_now_does_not_shorten_the_delay() {
        assert_eq!(delay(&RETRY_POLICY, 6, 0.5, Some(Duration::ZERO)), delay(&RETRY_POLICY, 6, 0.5, None));
    }
}

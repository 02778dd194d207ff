//! How long to wait before the next attempt: an exponential interval from the crate `backoff`, with full jitter.
//!
//! Flow: a [`RetryPolicy`] (checked when it is made) is asked for the delay after attempt `n`; the crate's interval maths
//! gives the exponential part, and the caller's entropy picks a point between zero and it. So the spread grows with the
//! delay, and many jobs that failed together do not come back together.
//!
//! The crate would draw its randomness itself, from the thread's generator. Its randomisation is therefore switched off
//! and entropy is passed in, which makes a delay a pure function that a test can pin down.
//!
//! Deliberately absent: counting attempts, sleeping, and giving up. The queue counts, the database waits, and a kind's
//! `attempts_max` ends it. This is the only module that names the crate.

use std::time::Duration;

use ::backoff::{SystemClock, backoff::Backoff, exponential::ExponentialBackoff};

/// An exponential policy: `initial`, then `multiplier` times as much for each further attempt, never over `max`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RetryPolicy {
    initial: Duration,
    multiplier: f64,
    max: Duration,
}

/// Why a [`RetryPolicy`] was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RetryPolicyInvalid {
    #[error("the initial retry delay is shorter than 1 ms: give at least 1 ms")]
    InitialTooShort,
    #[error("the longest retry delay is shorter than the initial one: raise it, or lower the initial one")]
    MaxBelowInitial,
    #[error("the longest retry delay is over 30 days: give at most 30 days")]
    MaxTooLong,
    #[error(
        "the retry multiplier must lie between 1.1 and 100; for a constant delay set the longest delay to the initial one"
    )]
    Multiplier,
}

impl RetryPolicy {
    /// Makes a policy; `const`, so that a built-in one is checked when it is compiled.
    ///
    /// # Errors
    /// `initial` under 1 ms or over `max`, `max` over 30 days, or `multiplier` outside 1.1 to 100.
    pub const fn new(initial: Duration, multiplier: f64, max: Duration) -> Result<Self, RetryPolicyInvalid> {
        if initial.as_millis() < 1 {
            return Err(RetryPolicyInvalid::InitialTooShort);
        }
        if max.as_nanos() < initial.as_nanos() {
            return Err(RetryPolicyInvalid::MaxBelowInitial);
        }
        if max.as_secs() > 30 * 86_400 {
            return Err(RetryPolicyInvalid::MaxTooLong);
        }
        // Negated, so that NaN is refused too. The floor bounds the steps that `ceiling` can take.
        if !(multiplier >= 1.1 && multiplier <= 100.0) {
            return Err(RetryPolicyInvalid::Multiplier);
        }
        Ok(Self { initial, multiplier, max })
    }

    /// The longest delay after attempt `attempt` (1 is the first): `min(max, initial * multiplier^(attempt - 1))`.
    pub fn ceiling(&self, attempt: u32) -> Duration {
        let mut exponential = ExponentialBackoff::<SystemClock> {
            current_interval: self.initial,
            initial_interval: self.initial,
            randomization_factor: 0.0,
            multiplier: self.multiplier,
            max_interval: self.max,
            max_elapsed_time: None,
            ..ExponentialBackoff::default()
        };
        // The returned interval can be a nanosecond off (the crate adds a random fraction of one even with its factor at
        // zero), so each step is taken for its effect on `current_interval`, which is exact.
        for _ in 1..attempt {
            if exponential.current_interval >= self.max {
                break;
            }
            let _ = exponential.next_backoff();
        }
        exponential.current_interval.min(self.max)
    }

    /// The delay after attempt `attempt` (1 is the first): full jitter, `entropy` in `[0, 1)` times [`Self::ceiling`].
    ///
    /// Entropy outside that range is brought back into it: a bad generator may cost spread, never a panic.
    pub fn delay(&self, attempt: u32, entropy: f64) -> Duration {
        let share = if entropy.is_nan() { 1.0 } else { entropy.clamp(0.0, 1.0) };
        self.ceiling(attempt).mul_f64(share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policies() -> Vec<RetryPolicy> {
        let mut made = Vec::new();
        for initial_ms in [1, 7, 1_000, 5_000, 60_000] {
            for multiplier in [1.1, 1.5, 2.0, 3.7, 8.0, 100.0] {
                for max_secs in [60, 3_600, 86_400, 30 * 86_400] {
                    made.push(
                        RetryPolicy::new(Duration::from_millis(initial_ms), multiplier, Duration::from_secs(max_secs))
                            .unwrap(),
                    );
                }
            }
        }
        made
    }

    #[test]
    fn the_delay_is_the_same_for_the_same_entropy() {
        for policy in policies() {
            for attempt in [1, 2, 5, 13, 200] {
                let first = policy.delay(attempt, 0.37);
                for _ in 0..50 {
                    assert_eq!(policy.delay(attempt, 0.37), first, "{policy:?} attempt {attempt}");
                }
            }
        }
    }

    #[test]
    fn the_ceiling_starts_at_initial_grows_by_the_multiplier_and_stops_at_max() {
        for policy in policies() {
            assert_eq!(policy.ceiling(0), policy.initial);
            assert_eq!(policy.ceiling(1), policy.initial);
            for attempt in 1..300 {
                let (now, next) = (policy.ceiling(attempt), policy.ceiling(attempt + 1));
                assert!(next >= now && next <= policy.max, "{policy:?} attempt {attempt}: {now:?} then {next:?}");
                if next < policy.max {
                    let ratio = next.as_secs_f64() / now.as_secs_f64();
                    assert!((ratio - policy.multiplier).abs() < 1e-4, "{policy:?} attempt {attempt}: {ratio}");
                }
            }
            assert_eq!(policy.ceiling(u32::MAX), policy.max);
        }
    }

    #[test]
    fn the_jitter_is_full_and_grows_with_the_delay() {
        for policy in policies() {
            let mut spread_before = Duration::ZERO;
            for attempt in 1..40 {
                let ceiling = policy.ceiling(attempt);
                let (low, high) = (policy.delay(attempt, 0.0), policy.delay(attempt, 0.999_999));
                assert_eq!(low, Duration::ZERO);
                assert!(high < ceiling && high >= ceiling.mul_f64(0.999_99), "{policy:?} attempt {attempt}: {high:?}");
                assert!(high >= spread_before);
                spread_before = high;
                let mut last = Duration::ZERO;
                for step in 0..100 {
                    let delay = policy.delay(attempt, f64::from(step) / 100.0);
                    assert!(delay >= last && delay < ceiling);
                    last = delay;
                }
            }
        }
    }

    #[test]
    fn entropy_out_of_range_neither_panics_nor_passes_the_ceiling() {
        let policy = RetryPolicy::new(Duration::from_secs(5), 8.0, Duration::from_secs(86_400)).unwrap();
        for entropy in [-1.0, 1.0, 2.0, f64::INFINITY, f64::NEG_INFINITY, f64::NAN] {
            assert!(policy.delay(4, entropy) <= policy.ceiling(4), "{entropy}");
        }
    }

    #[test]
    fn a_policy_that_makes_no_sense_is_refused() {
        let (second, day) = (Duration::from_secs(1), Duration::from_secs(86_400));
        for (made, refused) in [
            (RetryPolicy::new(Duration::ZERO, 2.0, day), RetryPolicyInvalid::InitialTooShort),
            (RetryPolicy::new(day, 2.0, second), RetryPolicyInvalid::MaxBelowInitial),
            (RetryPolicy::new(second, 2.0, day * 31), RetryPolicyInvalid::MaxTooLong),
            (RetryPolicy::new(second, 1.0, day), RetryPolicyInvalid::Multiplier),
            (RetryPolicy::new(second, f64::NAN, day), RetryPolicyInvalid::Multiplier),
            (RetryPolicy::new(second, f64::INFINITY, day), RetryPolicyInvalid::Multiplier),
        ] {
            assert_eq!(made, Err(refused));
        }
        assert!(RetryPolicy::new(second, 2.0, second).is_ok());
    }
}

//! When to stop asking a database that does not answer.
//!
//! ```text
//!   closed ──[3 failures in a row]──► open ──[its delay is over]──► one trial ──► closed
//!                                      ▲                               │
//!                                      └──[it fails: the delay doubles]┘
//! ```
//! A plain value that is told the time: it reads no clock, waits for nothing and connects nowhere. A trial that is never
//! answered for (its job was cancelled) is followed by another when its time is up, so nothing is stuck half-way.
use std::time::Duration;

use tokio::time::Instant;

/// Failures in a row that open it.
pub const FAILURES: u32 = 3;
/// The first delay; each further failure doubles it.
pub const DELAY_FIRST: Duration = Duration::from_secs(1);
pub const DELAY_MAX: Duration = Duration::from_secs(60);

/// See the module's head.
#[derive(Debug, Default)]
pub struct Breaker {
    failures: u32,
    failed_at: Option<Instant>,
    /// Nothing is admitted before; `None` while closed.
    until: Option<Instant>,
    /// In place of [`DELAY_MAX`].
    delay_max: Option<Duration>,
}

impl Breaker {
    /// One that stays away no longer than this.
    pub fn bounded(delay_max: Duration) -> Self {
        Self { delay_max: Some(delay_max), ..Self::default() }
    }

    /// How long nothing is admitted any more; `None` when something would be now.
    pub fn shut_for(&self, now: Instant) -> Option<Duration> {
        self.until.and_then(|until| until.checked_duration_since(now)).filter(|left| !left.is_zero())
    }

    /// Lets an attempt pass, or says how long to stay away. An attempt that passes after a delay is the one trial: for
    /// `trial`, which is as long as it may take, no other passes.
    pub fn admit(&mut self, now: Instant, trial: Duration) -> Result<(), Duration> {
        match self.shut_for(now) {
            Some(left) => Err(left),
            None => {
                if self.until.is_some() {
                    self.until = Some(now + trial);
                }
                Ok(())
            }
        }
    }

    pub fn succeeded(&mut self) {
        *self = Self { delay_max: self.delay_max, ..Self::default() };
    }

    /// `entropy` in [0, 1) spreads the delay over its upper half, so that workers do not come back all at once. Returns the
    /// delay when this failure opened it, or opened it again.
    pub fn failed(&mut self, now: Instant, entropy: f64) -> Option<Duration> {
        self.failures = self.failures.saturating_add(1);
        self.failed_at = Some(now);
        let doublings = self.failures.checked_sub(FAILURES)?;
        let delay =
            DELAY_FIRST.saturating_mul(2_u32.saturating_pow(doublings)).min(self.delay_max.unwrap_or(DELAY_MAX));
        let delay = delay.mul_f64(0.5 + entropy.clamp(0.0, 1.0) / 2.0);
        self.until = Some(now + delay);
        Some(delay)
    }

    /// Whether forgetting it would change nothing, or nobody has asked for so long that it may start anew.
    pub fn is_forgettable(&self, now: Instant) -> bool {
        self.failed_at.max(self.until).is_none_or(|last| now.duration_since(last) > DELAY_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRIAL: Duration = Duration::from_secs(5);

    fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    /// With three failures behind it, at `now`.
    fn opened(now: Instant) -> Breaker {
        let mut breaker = Breaker::default();
        for n in 1..=FAILURES {
            assert_eq!(breaker.admit(now, TRIAL), Ok(()), "before failure {n}");
            assert_eq!(breaker.failed(now, 1.0), (n == FAILURES).then_some(secs(1)));
        }
        breaker
    }

    #[test]
    fn three_failures_in_a_row_open_it_and_a_success_between_them_does_not() {
        let now = Instant::now();
        let mut breaker = Breaker::default();
        for _ in 0..5 {
            breaker.failed(now, 0.0);
            breaker.failed(now, 0.0);
            breaker.succeeded();
        }
        assert_eq!(breaker.admit(now, TRIAL), Ok(()));
        assert_eq!(opened(now).admit(now, TRIAL), Err(secs(1)));
    }

    #[test]
    fn after_its_delay_one_trial_passes_and_decides() {
        let start = Instant::now();
        let mut breaker = opened(start);
        let later = start + secs(1);
        assert_eq!(breaker.admit(later, TRIAL), Ok(()));
        assert_eq!(breaker.admit(later, TRIAL), Err(TRIAL), "one at a time");
        breaker.succeeded();
        assert_eq!(breaker.admit(later, TRIAL), Ok(()));
        assert_eq!(breaker.admit(later, TRIAL), Ok(()), "closed again");
    }

    #[test]
    fn a_trial_that_is_never_answered_for_is_followed_by_another() {
        let start = Instant::now();
        let mut breaker = opened(start);
        assert_eq!(breaker.admit(start + secs(1), TRIAL), Ok(()));
        assert_eq!(breaker.admit(start + secs(1) + TRIAL, TRIAL), Ok(()));
    }

    #[test]
    fn each_failed_trial_doubles_the_delay_up_to_a_minute() {
        let mut now = Instant::now();
        let mut breaker = opened(now);
        let mut delays = Vec::new();
        for _ in 0..8 {
            now += DELAY_MAX;
            assert_eq!(breaker.admit(now, TRIAL), Ok(()));
            delays.extend(breaker.failed(now, 1.0));
        }
        assert_eq!(delays, [2, 4, 8, 16, 32, 60, 60, 60].map(secs));
        // Spread over the upper half, whatever entropy comes.
        for entropy in [0.0, 0.5, 0.999, -1.0, 7.0] {
            let delay = breaker.failed(now, entropy).expect("open");
            assert!((secs(30)..=secs(60)).contains(&delay), "{delay:?}");
        }
    }

    #[test]
    fn a_bounded_one_stays_away_no_longer_also_after_a_success() {
        let now = Instant::now();
        let mut breaker = Breaker::bounded(secs(3));
        for _ in 0..2 {
            let delays: Vec<_> = (0..10).filter_map(|_| breaker.failed(now, 1.0)).collect();
            assert_eq!((delays[0], delays.iter().max()), (secs(1), Some(&secs(3))));
            breaker.succeeded();
        }
    }

    #[test]
    fn it_is_forgotten_only_when_closed_or_long_unasked() {
        let now = Instant::now();
        assert!(Breaker::default().is_forgettable(now));
        let breaker = opened(now);
        assert!(!breaker.is_forgettable(now + secs(30)));
        assert!(breaker.is_forgettable(now + secs(90)));
        let mut once = Breaker::default();
        once.failed(now, 0.0);
        assert!(!once.is_forgettable(now + secs(30)), "it counts towards the third");
        assert!(once.is_forgettable(now + secs(61)));
    }
}

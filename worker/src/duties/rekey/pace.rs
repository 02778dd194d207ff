//! How fast a sweep may go: so that replicas keep up, and so that vacuum can clear away what it leaves behind.
//!
//! ```text
//!   a batch is written ──► Readings (replication lag, dead rows) ──► Pace::pause ──► how long to sleep before the next
//! ```
//! A pause is bounded, so that no reading stops a sweep for good: with a replica that is down, or a vacuum that is held
//! back, it crawls and is seen to. What a database does not show (the lag, to a login that may not see other sessions)
//! slows nothing. Nothing here reads a clock or a database.
use std::time::Duration;

/// The longest pause between two batches.
pub const PAUSE_MAX: Duration = Duration::from_secs(5);
/// What a table with too many dead rows waits.
const DEAD_PAUSE: Duration = Duration::from_secs(1);

/// The limits; see the module's head.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pace {
    /// At most so many rows a second; `None`: as many as there are.
    pub rows_per_sec_max: Option<u32>,
    /// Replicas may be so far behind.
    pub lag_max: Duration,
    /// So large a share of a table's rows may be dead. Autovacuum begins at a fifth.
    pub dead_share_max: f64,
    /// Fewer dead rows than this never matter.
    pub dead_floor: u32,
}

impl Default for Pace {
    fn default() -> Self {
        Self { rows_per_sec_max: None, lag_max: Duration::from_secs(2), dead_share_max: 0.4, dead_floor: 20_000 }
    }
}

/// What the database said last.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Readings {
    /// Of the replica that is furthest behind. `None`: there is none, or it is not shown.
    pub lag: Option<Duration>,
    pub live: f64,
    pub dead: f64,
}

impl Pace {
    /// How long to sleep after a batch of `rows` that took `took`.
    #[must_use]
    pub fn pause(&self, readings: &Readings, rows: usize, took: Duration) -> Duration {
        self.by_rate(rows, took).max(self.by_lag(readings)).max(self.by_dead(readings)).min(PAUSE_MAX)
    }

    fn by_rate(&self, rows: usize, took: Duration) -> Duration {
        let Some(rate) = self.rows_per_sec_max else { return Duration::ZERO };
        let rows = u32::try_from(rows).unwrap_or(u32::MAX);
        (Duration::from_secs(u64::from(rows)) / rate.max(1)).saturating_sub(took)
    }

    /// As long as the replica is too far behind: it needs about that to catch up.
    fn by_lag(&self, readings: &Readings) -> Duration {
        readings.lag.unwrap_or_default().saturating_sub(self.lag_max)
    }

    fn by_dead(&self, readings: &Readings) -> Duration {
        let (dead, all) = (readings.dead, readings.live + readings.dead);
        let many = dead > f64::from(self.dead_floor) && dead > self.dead_share_max * all;
        if many { DEAD_PAUSE } else { Duration::ZERO }
    }
}

/// A batch grows from few rows to `max` and shrinks where rows are large, so that it holds about so many bytes.
pub const BATCH_BYTES: usize = 4 << 20;
/// The first batch of a sweep, before it is known how large its rows are.
pub const BATCH_FIRST: usize = 16;

/// How many rows the next batch has, after one of `rows` with `bytes` of sealed values.
#[must_use]
pub fn next_batch(rows: usize, bytes: usize, max: usize) -> usize {
    let fit = BATCH_BYTES / (bytes / rows.max(1)).max(1);
    fit.min(rows.max(1).saturating_mul(2)).clamp(1, max.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn without_a_reason_it_goes_on_at_once() {
        assert_eq!(Pace::default().pause(&Readings::default(), 500, Duration::ZERO), Duration::ZERO);
    }

    #[test]
    fn a_ceiling_of_rows_waits_for_what_the_batch_did_not_take() {
        let pace = Pace { rows_per_sec_max: Some(250), ..Pace::default() };
        assert_eq!(pace.pause(&Readings::default(), 500, SECOND / 2), SECOND * 3 / 2);
        assert_eq!(pace.pause(&Readings::default(), 500, SECOND * 3), Duration::ZERO);
        let none = Pace { rows_per_sec_max: Some(0), ..Pace::default() };
        assert_eq!(none.pause(&Readings::default(), 500, SECOND), PAUSE_MAX, "no division by nothing");
    }

    #[test]
    fn a_replica_that_is_behind_is_waited_for_and_never_for_long() {
        let pace = Pace::default();
        let behind = |lag| pace.pause(&Readings { lag: Some(lag), ..Readings::default() }, 500, Duration::ZERO);
        assert_eq!(behind(pace.lag_max), Duration::ZERO);
        assert_eq!(behind(pace.lag_max + SECOND), SECOND);
        assert_eq!(behind(Duration::from_secs(86_400)), PAUSE_MAX);
    }

    #[test]
    fn dead_rows_slow_it_once_they_are_many_and_a_large_share() {
        let pace = Pace::default();
        let with = |live, dead| pace.pause(&Readings { live, dead, lag: None }, 500, Duration::ZERO);
        assert_eq!(with(1_000_000.0, 100_000.0), Duration::ZERO, "a tenth");
        assert_eq!(with(100.0, 10_000.0), Duration::ZERO, "few");
        assert_eq!(with(100_000.0, 90_000.0), DEAD_PAUSE);
    }

    #[test]
    fn a_batch_grows_by_twos_and_shrinks_with_the_size_of_rows() {
        assert_eq!(next_batch(BATCH_FIRST, BATCH_FIRST * 100, 500), 32);
        assert_eq!(next_batch(400, 40_000, 500), 500);
        assert_eq!(next_batch(16, 16 << 20, 500), 4, "rows of a megabyte");
        assert_eq!(next_batch(1, 64 << 20, 500), 1);
        assert_eq!(next_batch(0, 0, 500), 2, "an empty batch divides by nothing");
    }
}

//! Where a lane's claims have got to, so that they need not pass by what is over.
//!
//! Rows that are over stay in the index of ready jobs until they are vacuumed, before the ready ones of their tenant; a
//! held snapshot keeps all of them. When a claim passed by much, the next ones of this process name the tenants it
//! served and since when what it brought is due (`migrations/0029_claim_marks.sql`), and nothing older is looked at. That
//! misses whoever is not among them, and what became ready late with an older time. So it goes on for [`REST`] times what
//! looking at everything took; for less where a claim does not bring all that was asked for; and not a claim longer where
//! one brings nothing.
//!
//! A mark is a hint about where to look. What may start, and whether it is still there, the claim decides as ever.
use std::{collections::BTreeMap, time::Duration};

use chrono::{DateTime, Utc};
use tokio::time::Instant;

/// Who was served, and the earliest time that a job of theirs was due.
pub(super) type Served = BTreeMap<String, DateTime<Utc>>;

/// Everything is looked at again after this many times what it took: a tenth of the time, at most, goes there.
const REST: u32 = 10;
const REST_MAX: Duration = Duration::from_secs(10);

/// Of one lane, in one process.
#[derive(Debug, Default)]
pub(super) struct Marks {
    known: Served,
    until: Option<Instant>,
    /// Where the claims since did not bring all that was asked for: after as long as looking at everything took, so that it
    /// takes half of the time.
    soon: Option<Instant>,
}

impl Marks {
    /// Whom to claim for and since when, beginning behind `cursor`; `None` where everything is to be looked at.
    pub(super) fn hint(&self, cursor: &str, now: Instant, limit: usize) -> Option<(Vec<String>, Vec<DateTime<Utc>>)> {
        if self.until.is_none_or(|until| now >= until) {
            return None;
        }
        let behind = self.known.iter().filter(|(tenant, _)| tenant.as_str() > cursor);
        let before = self.known.iter().filter(|(tenant, _)| tenant.as_str() <= cursor);
        Some(behind.chain(before).take(limit).map(|(tenant, since)| (tenant.clone(), *since)).unzip())
    }

    /// After a claim that looked at everything and spent `looking` on it. It names whom it served where it passed by much.
    pub(super) fn looked(&mut self, served: Option<Served>, full: bool, looking: Duration, now: Instant) {
        let slow = served.filter(|_| full);
        self.until = slow.as_ref().map(|_| now + (looking * REST).min(REST_MAX));
        self.soon = slow.as_ref().map(|_| now + looking);
        self.known = slow.unwrap_or_default();
    }

    /// After a claim by a hint that brought `got` jobs of `limit`.
    pub(super) fn went_on(&mut self, served: Option<Served>, got: usize, limit: usize) {
        if got == 0 {
            self.until = None;
        } else if got < limit {
            self.until = self.until.min(self.soon);
        }
        self.known.extend(served.unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn served(tenants: &[&str]) -> Option<Served> {
        Some(tenants.iter().map(|tenant| ((*tenant).to_owned(), DateTime::UNIX_EPOCH)).collect())
    }

    fn whom(marks: &Marks, cursor: &str, now: Instant) -> Option<Vec<String>> {
        marks.hint(cursor, now, 2).map(|(tenants, _)| tenants)
    }

    #[test]
    fn marks_hold_for_ten_times_what_looking_took_and_ten_seconds_at_most() {
        let now = Instant::now();
        let mut marks = Marks::default();
        assert_eq!(whom(&marks, "", now), None);
        marks.looked(None, true, Duration::from_secs(1), now);
        assert_eq!(whom(&marks, "", now), None, "looking was quick");
        marks.looked(served(&["a"]), false, Duration::from_secs(1), now);
        assert_eq!(whom(&marks, "", now), None, "there was no more");
        for (looking, holds) in [(20, 200), (3_000, 10_000)] {
            marks.looked(served(&["a"]), true, Duration::from_millis(looking), now);
            assert!(whom(&marks, "", now + Duration::from_millis(holds - 1)).is_some());
            assert_eq!(whom(&marks, "", now + Duration::from_millis(holds)), None);
        }
    }

    #[test]
    fn the_round_of_the_known_goes_on_behind_the_cursor() {
        let now = Instant::now();
        let mut marks = Marks::default();
        marks.looked(served(&["a", "b", "c"]), true, Duration::from_secs(1), now);
        for (cursor, expected) in [("", ["a", "b"]), ("a", ["b", "c"]), ("b", ["c", "a"]), ("c", ["a", "b"])] {
            assert_eq!(whom(&marks, cursor, now), Some(expected.map(String::from).to_vec()), "behind {cursor:?}");
        }
    }

    #[test]
    fn claims_by_marks_that_fall_short_end_them_soon_and_one_in_vain_at_once() {
        let now = Instant::now();
        let soon = now + Duration::from_secs(1);
        let mut marks = Marks::default();
        marks.looked(served(&["a"]), true, Duration::from_secs(1), now);
        marks.went_on(served(&["a"]), 10, 10);
        assert!(whom(&marks, "", soon).is_some(), "all is well");
        marks.went_on(served(&["a"]), 9, 10);
        assert!(whom(&marks, "", now).is_some(), "short once, and looked only just now");
        assert_eq!(whom(&marks, "", soon), None);
        marks.looked(served(&["a"]), true, Duration::from_secs(1), now);
        assert!(whom(&marks, "", soon).is_some());
        marks.went_on(None, 0, 10);
        assert_eq!(whom(&marks, "", now), None);
    }
}

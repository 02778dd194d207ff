//! When a cadence has its slots, and which of the missed ones still counts: pure functions of a cron expression, an IANA
//! time zone and an instant.
//!
//! Expressions have five fields (minute, hour, day of month, month, day of week) or are a nickname such as `@daily`. No
//! field for seconds or years: a schedule makes a job for every tenant.
//!
//! **When the zone's clock is put forward or back**, an expression with one fixed time a day (`30 2 * * *`) has one slot
//! that day all the same: a time that does not exist is moved to the first instant after the gap (02:30 → 03:00), and one
//! that comes twice counts at its first coming. Every other expression follows the wall clock: what falls into the gap
//! does not happen, what is repeated happens again. Those two slots are different instants, so their jobs have different
//! keys. Who wants none of this keeps `UTC`, the default.
//!
//! Nothing here reads a clock; `now` is always the database's.
use std::cmp::max;

use chrono::{DateTime, SubsecRound, Utc};
use chrono_tz::Tz;
use croner::{
    Cron,
    parser::{CronParser, Seconds, Year},
};

/// Under [`CatchUp::Skip`] a slot this many seconds old still fires: a scheduler looks every `slots_secs`, at most 30.
pub const SKIP_GRACE_SECS: i64 = 60;

/// Why a schedule cannot be followed. An operator reads this.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SlotError {
    #[error("{cron:?} is not a cron expression of five fields (minute hour day month weekday): {why}")]
    Cron { cron: String, why: String },
    #[error("{zone:?} is not an IANA time zone (such as Europe/Berlin or UTC)")]
    TimeZone { zone: String },
    #[error("{cron:?} never comes due: {why}")]
    Never { cron: String, why: String },
    #[error("{policy:?} is not a catch-up policy; policies are latest and skip")]
    CatchUp { policy: String },
}

/// What becomes of slots that passed while no scheduler ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CatchUp {
    /// The last missed one fires, once.
    Latest,
    /// None of them.
    Skip,
}

impl std::str::FromStr for CatchUp {
    type Err = SlotError;
    fn from_str(policy: &str) -> Result<Self, SlotError> {
        match policy {
            "latest" => Ok(Self::Latest),
            "skip" => Ok(Self::Skip),
            _ => Err(SlotError::CatchUp { policy: policy.to_owned() }),
        }
    }
}

/// A cron expression in a time zone.
#[derive(Debug, Clone)]
pub struct Cadence {
    cron: Cron,
    zone: Tz,
}

/// How a schedule moves on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// The slot that fires now, if any.
    pub slot: Option<DateTime<Utc>>,
    /// The next one to wait for: later than now.
    pub following: DateTime<Utc>,
}

impl Cadence {
    pub fn parse(cron: &str, zone: &str) -> Result<Self, SlotError> {
        let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
        let parsed =
            parser.parse(cron).map_err(|error| SlotError::Cron { cron: cron.to_owned(), why: error.to_string() })?;
        let zone = zone.parse().map_err(|_| SlotError::TimeZone { zone: zone.to_owned() })?;
        Ok(Self { cron: parsed, zone })
    }

    /// The first slot strictly after `now`.
    pub fn next_after(&self, now: DateTime<Utc>) -> Result<DateTime<Utc>, SlotError> {
        // Slots lie on whole seconds, so the fraction changes nothing but must not end up in the answer.
        let from = now.trunc_subsecs(0).with_timezone(&self.zone);
        self.cron
            .find_next_occurrence(&from, false)
            .map(|slot| slot.with_timezone(&Utc))
            .map_err(|error| SlotError::Never { cron: self.cron.as_str().to_owned(), why: error.to_string() })
    }

    /// The last slot at or before `now`, if there ever was one.
    fn last_until(&self, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let from = now.trunc_subsecs(0).with_timezone(&self.zone);
        self.cron.find_previous_occurrence(&from, true).map(|slot| slot.with_timezone(&Utc)).ok()
    }

    /// Decides for a schedule that waits for `next_at` (`None`: it was never looked at, and starts with the next slot).
    pub fn step(
        &self,
        next_at: Option<DateTime<Utc>>,
        now: DateTime<Utc>,
        catch_up: CatchUp,
    ) -> Result<Step, SlotError> {
        let following = self.next_after(now)?;
        let Some(next_at) = next_at else { return Ok(Step { slot: None, following }) };
        // Never before what was waited for: that one had its turn, or belonged to another cadence.
        let last = self.last_until(now).map_or(next_at, |slot| max(slot, next_at));
        let fires = match catch_up {
            CatchUp::Latest => true,
            CatchUp::Skip => (now - last).num_seconds() <= SKIP_GRACE_SECS,
        };
        Ok(Step { slot: fires.then_some(last), following })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().expect("an instant")
    }

    fn slots(cron: &str, zone: &str, from: &str, n: usize) -> Vec<String> {
        let cadence = Cadence::parse(cron, zone).expect("valid");
        let mut now = at(from);
        (0..n)
            .map(|_| {
                now = cadence.next_after(now).expect("a slot");
                now.format("%dT%H:%MZ").to_string()
            })
            .collect()
    }

    #[test]
    fn a_fixed_time_in_the_gap_moves_to_its_end_and_is_not_lost() {
        // 2026-03-29: 02:00 CET becomes 03:00 CEST (01:00 UTC). 02:30 does not exist.
        assert_eq!(
            slots("30 2 * * *", "Europe/Berlin", "2026-03-27T12:00:00Z", 3),
            ["28T01:30Z", "29T01:00Z", "30T00:30Z"]
        );
    }

    #[test]
    fn a_fixed_time_that_comes_twice_is_one_slot() {
        // 2026-10-25: 03:00 CEST becomes 02:00 CET (01:00 UTC). 02:30 comes at 00:30 UTC and at 01:30 UTC.
        assert_eq!(
            slots("30 2 * * *", "Europe/Berlin", "2026-10-23T12:00:00Z", 3),
            ["24T00:30Z", "25T00:30Z", "26T01:30Z"]
        );
        // Also for a scheduler that starts between the two.
        assert_eq!(slots("30 2 * * *", "Europe/Berlin", "2026-10-25T00:45:00Z", 1), ["26T01:30Z"]);
    }

    #[test]
    fn several_times_a_day_follow_the_wall_clock() {
        let twice = "30 2,14 * * *";
        assert_eq!(slots(twice, "Europe/Berlin", "2026-03-28T14:00:00Z", 2), ["29T12:30Z", "30T00:30Z"]);
        assert_eq!(slots(twice, "Europe/Berlin", "2026-10-24T14:00:00Z", 3), ["25T00:30Z", "25T01:30Z", "25T13:30Z"]);
    }

    #[test]
    fn in_utc_nothing_moves() {
        assert_eq!(slots("30 2 * * *", "UTC", "2026-03-28T02:30:00Z", 2), ["29T02:30Z", "30T02:30Z"]);
    }

    #[test]
    fn the_next_slot_is_strictly_later_whatever_the_fraction() {
        let cadence = Cadence::parse("*/5 * * * *", "UTC").expect("valid");
        for now in ["2026-01-01T00:05:00Z", "2026-01-01T00:05:00.000001Z", "2026-01-01T00:09:59.999999Z"] {
            assert_eq!(cadence.next_after(at(now)), Ok(at("2026-01-01T00:10:00Z")), "{now}");
        }
    }

    #[test]
    fn first_sight_computes_and_does_not_fire() {
        let cadence = Cadence::parse("0 * * * *", "UTC").expect("valid");
        let step = cadence.step(None, at("2026-01-01T05:00:01Z"), CatchUp::Latest).expect("a step");
        assert_eq!(step, Step { slot: None, following: at("2026-01-01T06:00:00Z") });
    }

    #[test]
    fn of_missed_slots_latest_takes_the_last_and_skip_none() {
        let cadence = Cadence::parse("0 * * * *", "UTC").expect("valid");
        let (due, following) = (Some(at("2026-01-01T02:00:00Z")), at("2026-01-01T06:00:00Z"));
        let now = at("2026-01-01T05:10:00Z");
        let latest = cadence.step(due, now, CatchUp::Latest).expect("a step");
        assert_eq!(latest, Step { slot: Some(at("2026-01-01T05:00:00Z")), following });
        let skip = cadence.step(due, now, CatchUp::Skip).expect("a step");
        assert_eq!(skip, Step { slot: None, following });
        // Just come due: skip fires as well.
        let now = at("2026-01-01T05:00:02.5Z");
        let skip = cadence.step(due, now, CatchUp::Skip).expect("a step");
        assert_eq!(skip, Step { slot: Some(at("2026-01-01T05:00:00Z")), following });
    }

    #[test]
    fn a_slot_of_a_former_cadence_never_moves_back() {
        let cadence = Cadence::parse("0 0 1 * *", "UTC").expect("valid");
        let due = at("2026-01-15T08:00:00Z");
        let step = cadence.step(Some(due), at("2026-01-15T08:00:01Z"), CatchUp::Latest).expect("a step");
        assert_eq!(step.slot, Some(due));
    }

    #[test]
    fn what_cannot_be_followed_is_named() {
        let said = |cron, zone| Cadence::parse(cron, zone).unwrap_err().to_string();
        for cron in ["nonsense", "61 * * * *", "* * * *", "* * * * * *", ""] {
            assert!(said(cron, "UTC").contains(&format!("{cron:?}")), "{cron}");
        }
        assert!(said("* * * * *", "Europe/Atlantis").contains("Europe/Atlantis"));
        let never = Cadence::parse("0 0 30 2 *", "UTC").expect("it parses");
        assert!(matches!(never.next_after(at("2026-01-01T00:00:00Z")), Err(SlotError::Never { .. })));
    }
}

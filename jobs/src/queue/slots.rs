//! When a cadence has its slots, and which of the missed ones still count: pure functions of a cron expression, an IANA
//! time zone and an instant. The scheduler follows them, and the operators' commands show and check them.
//!
//! Expressions have five fields (minute, hour, day of month, month, day of week) or are a nickname such as `@daily`. No
//! field for seconds or years: a schedule makes a job for every tenant.
//!
//! **When the zone's clock is put forward or back**
//!
//! - an expression that names hours (`30 2 * * *`, `0 */6 * * *`) has each of its times once that day: one that does not
//!   exist is moved to the first instant after the gap (02:30 → 03:00), and merges with what is due then; one that comes
//!   twice counts at its first coming, so that no day is longer than 25 hours for it, and whoever waits for it waits least;
//! - one of every hour (`*` as hour, `@hourly`) runs on: what falls into the gap is left out, for no time passed in it, and
//!   what is repeated happens again.
//!
//! Slots are instants, all different; their jobs have different keys. Who wants none of this keeps `UTC`, the default.
//!
//! croner reads the expression and finds its wall-clock times; from those to instants is done here, for croner tells
//! expressions apart by other rules (one with two hours a day would lose the one in the gap).
//!
//! Nothing here reads a clock; `now` is always the database's.
use std::cmp::max;

use chrono::{DateTime, Days, NaiveDateTime, Offset, SubsecRound, TimeDelta, TimeZone, Timelike, Utc};
use chrono_tz::{TZ_VARIANTS, Tz};
use croner::{
    Cron,
    parser::{CronParser, Seconds, Year},
};

/// Under [`CatchUp::Skip`] a slot this many seconds old still fires: a scheduler looks every `slots_secs`, at most 30.
pub const SKIP_GRACE_SECS: i64 = 60;

/// Under [`CatchUp::All`] at most so many slots fire at a time, the oldest first; the others at the next looks.
pub const CATCH_UP_SLOTS_MAX: usize = 1_000;

/// No clock is put forward or back by more than this, save where a country changes the side of the date line.
const SHIFT_MAX: TimeDelta = TimeDelta::hours(3);
const MINUTE: TimeDelta = TimeDelta::minutes(1);

/// Why a schedule cannot be followed. An operator reads this.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SlotError {
    #[error(
        "{cron:?} is not a cron expression of five fields (minute hour day month weekday, such as \"17 3 * * *\") or a nickname such as @daily: {why}"
    )]
    Cron { cron: String, why: String },
    #[error("{zone:?} is not an IANA time zone{}", meant(.zone))]
    TimeZone { zone: String },
    #[error("{cron:?} never comes due: {why}")]
    Never { cron: String, why: String },
    #[error("{policy:?} is not a catch-up policy; policies are skip, latest and all")]
    CatchUp { policy: String },
}

fn meant(zone: &str) -> String {
    match TZ_VARIANTS.iter().find(|known| known.name().eq_ignore_ascii_case(&zone.trim().replace(' ', "_"))) {
        Some(known) => format!("; it is written {}", known.name()),
        None => " (such as Europe/Berlin or UTC)".to_owned(),
    }
}

/// What becomes of slots that passed while no scheduler ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CatchUp {
    /// None of them.
    Skip,
    /// The last missed one fires, once.
    Latest,
    /// Each of them, the oldest first.
    All,
}

impl CatchUp {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Skip => "skip",
            Self::Latest => "latest",
            Self::All => "all",
        }
    }
}

impl std::str::FromStr for CatchUp {
    type Err = SlotError;
    fn from_str(policy: &str) -> Result<Self, SlotError> {
        [Self::Skip, Self::Latest, Self::All]
            .into_iter()
            .find(|known| known.as_str() == policy)
            .ok_or_else(|| SlotError::CatchUp { policy: policy.to_owned() })
    }
}

/// A cron expression in a time zone.
#[derive(Debug, Clone)]
pub struct Cadence {
    cron: Cron,
    zone: Tz,
    every_hour: bool,
}

/// How a schedule moves on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The slots that fire now, the oldest first.
    pub slots: Vec<DateTime<Utc>>,
    /// The next one to wait for: later than now, unless [`CatchUp::All`] has more to catch up with.
    pub following: DateTime<Utc>,
}

impl Cadence {
    pub fn parse(cron: &str, zone: &str) -> Result<Self, SlotError> {
        let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
        let read = |text: &str| {
            parser.parse(text).map_err(|error| SlotError::Cron { cron: cron.to_owned(), why: error.to_string() })
        };
        let parsed = read(cron)?;
        let zone = zone.parse().map_err(|_| SlotError::TimeZone { zone: zone.to_owned() })?;
        let every_hour = match cron.split_whitespace().nth(1) {
            None => cron.trim().eq_ignore_ascii_case("@hourly"),
            Some(hours) => {
                let hours = read(&format!("0 {hours} * * *"))?;
                let day = NaiveDateTime::default();
                (0..24).all(|hour| hours.is_time_matching(&(day + TimeDelta::hours(hour)).and_utc()).unwrap_or(false))
            }
        };
        Ok(Self { cron: parsed, zone, every_hour })
    }

    /// The first slot strictly after `now`.
    pub fn next_after(&self, now: DateTime<Utc>) -> Result<DateTime<Utc>, SlotError> {
        // Slots lie on whole seconds, so the fraction changes nothing but must not end up in the answer.
        let now = now.trunc_subsecs(0);
        let mut from = now;
        if self.every_hour && self.shifts_near(now) {
            let minutes = self.minutes_from(now, 1).take_while(|at| *at <= now + SHIFT_MAX * 2);
            for at in minutes {
                if self.comes_due(at) {
                    return Ok(at);
                }
                from = at;
            }
        }
        let mut wall = self.wall(from);
        loop {
            wall = self.wall_after(wall)?;
            if let Some(slot) = self.instant(wall)
                && slot > now
            {
                return Ok(slot);
            }
        }
    }

    /// The last slot at or before `now`, if there ever was one.
    fn last_until(&self, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let now = now.trunc_subsecs(0);
        if self.every_hour && self.shifts_near(now) {
            let found =
                self.minutes_from(now, -1).take_while(|at| *at >= now - SHIFT_MAX * 2).find(|at| self.comes_due(*at));
            if found.is_some() {
                return found;
            }
        }
        let mut wall = self.cron.find_previous_occurrence(&self.wall(now).and_utc(), true).ok()?.naive_utc();
        while self.instant(wall).is_none_or(|slot| slot > now) {
            wall = self.cron.find_previous_occurrence(&wall.and_utc(), false).ok()?.naive_utc();
        }
        let mut last = self.instant(wall)?;
        // The clock was put back: wall-clock times ahead of this one have had their turn.
        while let Ok(ahead) = self.wall_after(wall)
            && let Some(slot) = self.instant(ahead).filter(|slot| *slot <= now)
        {
            (wall, last) = (ahead, slot);
        }
        Some(last)
    }

    /// Decides for a schedule that waits for `next_at` (`None`: it was never looked at, and starts with the next slot).
    /// `slots_max` bounds what is made up for at a time.
    pub fn step(
        &self,
        next_at: Option<DateTime<Utc>>,
        now: DateTime<Utc>,
        catch_up: CatchUp,
        slots_max: usize,
    ) -> Result<Step, SlotError> {
        let Some(next_at) = next_at else { return Ok(Step { slots: vec![], following: self.next_after(now)? }) };
        if catch_up == CatchUp::All {
            let (mut slots, mut following) = (vec![], next_at);
            while following <= now && slots.len() < slots_max.clamp(1, CATCH_UP_SLOTS_MAX) {
                slots.push(following);
                following = self.next_after(following)?;
            }
            return Ok(Step { slots, following });
        }
        // Never before what was waited for: that one had its turn, or belonged to another cadence.
        let last = self.last_until(now).map_or(next_at, |slot| max(slot, next_at));
        let fires = catch_up == CatchUp::Latest || (now - last).num_seconds() <= SKIP_GRACE_SECS;
        Ok(Step { slots: fires.then_some(last).into_iter().collect(), following: self.next_after(now)? })
    }

    /// What the zone's clocks show.
    pub fn wall(&self, at: DateTime<Utc>) -> NaiveDateTime {
        at.with_timezone(&self.zone).naive_local()
    }

    fn wall_after(&self, wall: NaiveDateTime) -> Result<NaiveDateTime, SlotError> {
        self.cron
            .find_next_occurrence(&wall.and_utc(), false)
            .map(|next| next.naive_utc())
            .map_err(|error| SlotError::Never { cron: self.cron.as_str().to_owned(), why: error.to_string() })
    }

    /// When a wall-clock time comes, first. In a gap: at its end, or for what runs every hour not at all.
    fn instant(&self, wall: NaiveDateTime) -> Option<DateTime<Utc>> {
        let first = |wall: &NaiveDateTime| self.zone.from_local_datetime(wall).earliest();
        if let Some(slot) = first(&wall) {
            return Some(slot.with_timezone(&Utc));
        }
        if self.every_hour {
            return None;
        }
        let end = wall.checked_add_days(Days::new(2))?;
        let mut minutes = std::iter::successors(Some(wall.with_second(0)?), |at| at.checked_add_signed(MINUTE));
        minutes.by_ref().take_while(|at| *at < end).find_map(|at| first(&at)).map(|slot| slot.with_timezone(&Utc))
    }

    fn comes_due(&self, at: DateTime<Utc>) -> bool {
        self.cron.is_time_matching(&self.wall(at).and_utc()).unwrap_or(false)
    }

    /// Whole minutes after (or, backwards, at and before) this moment.
    fn minutes_from(&self, now: DateTime<Utc>, step: i32) -> impl Iterator<Item = DateTime<Utc>> {
        let minute = now - TimeDelta::seconds(i64::from(now.second()));
        let first = if step > 0 { minute + MINUTE } else { minute };
        std::iter::successors(Some(first), move |at| at.checked_add_signed(MINUTE * step))
    }

    /// Whether the clock is put forward or back so near that wall-clock times may be out of order.
    fn shifts_near(&self, now: DateTime<Utc>) -> bool {
        let offset = |at: DateTime<Utc>| self.zone.offset_from_utc_datetime(&at.naive_utc()).fix();
        offset(now - SHIFT_MAX) != offset(now + SHIFT_MAX)
    }
}

#[cfg(test)]
#[path = "slots_tests.rs"]
mod tests;

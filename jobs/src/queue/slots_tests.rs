//! Slots over a year of real zones, and the policies of catching up.
use super::*;
use crate::kinds::Kind;

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
fn several_times_a_day_come_once_each() {
    let twice = "30 2,14 * * *";
    assert_eq!(slots(twice, "Europe/Berlin", "2026-03-28T14:00:00Z", 3), ["29T01:00Z", "29T12:30Z", "30T00:30Z"]);
    assert_eq!(slots(twice, "Europe/Berlin", "2026-10-24T14:00:00Z", 3), ["25T00:30Z", "25T13:30Z", "26T01:30Z"]);
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
    let step = cadence.step(None, at("2026-01-01T05:00:01Z"), CatchUp::Latest, 1).expect("a step");
    assert_eq!(step, Step { slots: vec![], following: at("2026-01-01T06:00:00Z") });
}

#[test]
fn of_missed_slots_latest_takes_the_last_and_skip_none() {
    let cadence = Cadence::parse("0 * * * *", "UTC").expect("valid");
    let (due, following) = (Some(at("2026-01-01T02:00:00Z")), at("2026-01-01T06:00:00Z"));
    let now = at("2026-01-01T05:10:00Z");
    let latest = cadence.step(due, now, CatchUp::Latest, 1).expect("a step");
    assert_eq!(latest, Step { slots: vec![at("2026-01-01T05:00:00Z")], following });
    let skip = cadence.step(due, now, CatchUp::Skip, 1).expect("a step");
    assert_eq!(skip, Step { slots: vec![], following });
    // Just come due: skip fires as well.
    let now = at("2026-01-01T05:00:02.5Z");
    let skip = cadence.step(due, now, CatchUp::Skip, 1).expect("a step");
    assert_eq!(skip, Step { slots: vec![at("2026-01-01T05:00:00Z")], following });
}

#[test]
fn a_slot_of_a_former_cadence_never_moves_back() {
    let cadence = Cadence::parse("0 0 1 * *", "UTC").expect("valid");
    let due = at("2026-01-15T08:00:00Z");
    let step = cadence.step(Some(due), at("2026-01-15T08:00:01Z"), CatchUp::Latest, 1).expect("a step");
    assert_eq!(step.slots, [due]);
}

#[test]
fn what_cannot_be_followed_is_named() {
    let said = |cron, zone| Cadence::parse(cron, zone).unwrap_err().to_string();
    for cron in ["nonsense", "61 * * * *", "* * * *", "* * * * * *", ""] {
        assert!(said(cron, "UTC").contains(&format!("{cron:?}")), "{cron}");
    }
    assert!(said("* * * * *", "Europe/Atlantis").contains("\"Europe/Atlantis\" is not an IANA time zone (such as"));
    assert!(said("* * * * *", "europe/berlin").ends_with("it is written Europe/Berlin"));
    assert!("often".parse::<CatchUp>().unwrap_err().to_string().contains("skip, latest and all"));
    let never = Cadence::parse("0 0 30 2 *", "UTC").expect("it parses");
    assert!(matches!(never.next_after(at("2026-01-01T00:00:00Z")), Err(SlotError::Never { .. })));
}

#[test]
fn all_takes_every_missed_slot_oldest_first_and_so_many_at_a_time() {
    let cadence = Cadence::parse("0 * * * *", "UTC").expect("valid");
    let now = at("2026-01-01T05:10:00Z");
    let step = cadence.step(Some(at("2026-01-01T02:00:00Z")), now, CatchUp::All, 1000).expect("a step");
    let hours = |range: std::ops::RangeInclusive<u32>| range.map(|h| at(&format!("2026-01-01T{h:02}:00:00Z")));
    assert_eq!(step, Step { slots: hours(2..=5).collect(), following: at("2026-01-01T06:00:00Z") });
    let step = cadence.step(Some(at("2026-01-01T02:00:00Z")), now, CatchUp::All, 3).expect("a step");
    assert_eq!(step, Step { slots: hours(2..=4).collect(), following: at("2026-01-01T05:00:00Z") });
    // Whatever is asked for: never more than a thousand, never none.
    let old = Some(at("2020-01-01T00:00:00Z"));
    for (asked, taken) in [(0, 1), (usize::MAX, CATCH_UP_SLOTS_MAX)] {
        assert_eq!(cadence.step(old, now, CatchUp::All, asked).expect("a step").slots.len(), taken);
    }
}

#[test]
fn the_cadence_of_every_kind_can_be_followed() {
    for (kind, cadence) in Kind::ALL.iter().filter_map(|kind| Some((kind, kind.spec().cadence?))) {
        let parsed = Cadence::parse(cadence.cron, "UTC").unwrap_or_else(|error| panic!("{kind}: {error}"));
        parsed.next_after(at("2026-01-01T00:00:00Z")).unwrap_or_else(|error| panic!("{kind}: {error}"));
        assert!((0..=86_400).contains(&cadence.window_secs), "{kind}");
    }
}

const ZONES: [&str; 6] = [
    "Europe/Berlin",
    "America/New_York",
    // Half an hour.
    "Australia/Lord_Howe",
    // Back for Ramadan, and its change of summer is the other way about.
    "Africa/Casablanca",
    // Never, and 45 minutes past the hour.
    "Asia/Kathmandu",
    // At midnight.
    "America/Havana",
];

/// The days, by UTC, on which the clocks are put.
const SHIFTS: [(&str, [&str; 2]); 5] = [
    ("Europe/Berlin", ["2026-03-29", "2026-10-25"]),
    ("America/New_York", ["2026-03-08", "2026-11-01"]),
    ("Australia/Lord_Howe", ["2026-04-04", "2026-10-03"]),
    ("Africa/Casablanca", ["2026-02-15", "2026-03-22"]),
    ("America/Havana", ["2026-03-08", "2026-11-01"]),
];

/// Every slot from one instant to another; each later than the one before, and each also the last one until it.
fn walk(cron: &str, zone: &str, from: DateTime<Utc>, to: DateTime<Utc>) -> Vec<DateTime<Utc>> {
    let cadence = Cadence::parse(cron, zone).expect("valid");
    let (mut now, mut found) = (from, vec![]);
    loop {
        let slot = cadence.next_after(now).expect("a slot");
        assert!(slot > now, "{cron} {zone}: {slot} after {now}");
        assert_eq!(cadence.last_until(slot), Some(slot), "{cron} {zone}");
        if let Some(before) = found.last() {
            assert_eq!(cadence.last_until(slot - TimeDelta::seconds(1)), Some(*before), "{cron} {zone} before {slot}");
        }
        if slot >= to {
            return found;
        }
        found.push(slot);
        now = slot;
    }
}

fn a_year() -> (DateTime<Utc>, DateTime<Utc>) {
    (at("2026-01-01T12:00:00Z"), at("2027-01-01T12:00:00Z"))
}

#[test]
fn a_daily_cadence_has_one_slot_on_each_day_of_the_zone() {
    let (from, to) = a_year();
    for zone in ZONES {
        for minute in [0, 30, 60, 90, 105, 120, 150, 180, 1410] {
            let cron = format!("{} {} * * *", minute % 60, minute / 60);
            let cadence = Cadence::parse(&cron, zone).expect("valid");
            let days: Vec<_> = walk(&cron, zone, from, to).iter().map(|slot| cadence.wall(*slot).date()).collect();
            for pair in days.windows(2) {
                assert_eq!(pair[0].succ_opt(), Some(pair[1]), "{cron} {zone}");
            }
            assert!((364..=366).contains(&days.len()), "{cron} {zone}: {}", days.len());
        }
    }
}

#[test]
fn hourly_and_minutely_cadences_run_on() {
    let (from, to) = a_year();
    for zone in ZONES {
        for cron in ["@hourly", "45 0-23 * * *"] {
            for pair in walk(cron, zone, from, to).windows(2) {
                // Half an hour more or less, where the clock is put by so much.
                let minutes = (pair[1] - pair[0]).num_minutes();
                let expected = if zone == "Australia/Lord_Howe" { 30..=90 } else { 60..=60 };
                assert!(expected.contains(&minutes), "{cron} {zone}: {} then {}", pair[0], pair[1]);
            }
        }
    }
    for (zone, days) in SHIFTS {
        for day in days {
            let from = at(&format!("{day}T00:00:00Z"));
            let slots = walk("* * * * *", zone, from, from + TimeDelta::hours(24));
            assert_eq!(slots.len(), 24 * 60 - 1, "{zone} around {day}");
        }
    }
}

/// Against the definition, minute by minute: hours that are named, in every zone.
#[test]
fn each_named_time_comes_once_a_day_wherever_the_clock_is_put() {
    for (zone, day) in SHIFTS.iter().flat_map(|(zone, days)| days.map(|day| (*zone, day))) {
        let from = at(&format!("{day}T00:00:00Z")) - TimeDelta::hours(36);
        let to = from + TimeDelta::hours(96);
        for cron in ["30 2 * * *", "0 */2 * * *", "*/20 1-3 * * *", "* 2 * * *", "15 0,2,23 * * SUN"] {
            let plain = Cadence::parse(cron, "UTC").expect("valid");
            let cadence = Cadence::parse(cron, zone).expect("valid");
            let named = (0..=(to - from).num_minutes() + 2880)
                .map(|n| cadence.wall(from) - TimeDelta::days(1) + TimeDelta::minutes(n))
                .filter(|wall| plain.comes_due(wall.and_utc()))
                .filter_map(|wall| match cadence.zone.from_local_datetime(&wall) {
                    chrono::LocalResult::None => {
                        // The first instant after the gap: offsets differ before and after.
                        let before = cadence.zone.offset_from_utc_datetime(&(wall - TimeDelta::days(1))).fix();
                        let mut at = Utc.from_utc_datetime(&(wall - before));
                        while cadence.zone.offset_from_utc_datetime(&(at - MINUTE).naive_utc()).fix() != before {
                            at -= MINUTE;
                        }
                        Some(at)
                    }
                    found => found.earliest().map(|slot| slot.with_timezone(&Utc)),
                });
            let mut expected: Vec<_> = named.filter(|slot| *slot > from && *slot < to).collect();
            expected.dedup();
            assert_eq!(walk(cron, zone, from, to), expected, "{cron} {zone}");
        }
    }
}

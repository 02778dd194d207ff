//! Reading `Retry-After`: seconds, or a date in any of the three forms of HTTP.

use std::time::Duration;

use chrono::{DateTime, Utc};

/// How long the receiver asks to be left alone, at most `max`. A date that has passed is no wait at all.
///
/// `now` is when the answer came. `None` if `value` is neither whole seconds nor a date.
pub fn parse(value: &str, now: DateTime<Utc>, max: Duration) -> Option<Duration> {
    let value = value.trim();
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        // All digits, so it fails only by being too large: the cap is what was asked for, and more.
        return Some(value.parse().map_or(max, |secs| Duration::from_secs(secs).min(max)));
    }
    let until = DateTime::<Utc>::from(httpdate::parse_http_date(value).ok()?);
    Some((until - now).to_std().unwrap_or_default().min(max))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: Duration = Duration::from_secs(3_600);

    fn parsed(value: &str) -> Option<u64> {
        parse(value, "1994-11-06T08:49:07Z".parse().unwrap(), MAX).map(|wait| wait.as_secs())
    }

    #[test]
    fn seconds_are_read_exactly_up_to_the_cap() {
        for (value, secs) in [("0", 0), ("30", 30), (" 120 ", 120), ("3600", 3_600), ("3601", 3_600)] {
            assert_eq!(parsed(value), Some(secs), "{value}");
        }
        assert_eq!(parsed("99999999999999999999999999"), Some(3_600));
    }

    #[test]
    fn dates_in_each_form_are_measured_from_now() {
        for value in ["Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"] {
            assert_eq!(parsed(value), Some(30), "{value}");
        }
        assert_eq!(parsed("Sun, 06 Nov 1994 23:00:00 GMT"), Some(3_600), "capped");
        assert_eq!(parsed("Sun, 06 Nov 1994 08:00:00 GMT"), Some(0), "passed");
        assert_eq!(parsed("Fri, 31 Dec 9999 23:59:59 GMT"), Some(3_600), "as late as can be");
    }

    #[test]
    fn anything_else_asks_for_nothing() {
        for value in ["", " ", "-1", "+1", "1.5", "1e3", "soon", "30s", "1994-11-06T08:49:37Z", "٣"] {
            assert_eq!(parsed(value), None, "{value}");
        }
    }
}

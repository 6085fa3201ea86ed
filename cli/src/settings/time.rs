//! Times as people write them, on the command line and in files.

use std::time::Duration;

use kage_core::time::Timestamp;
use serde::{Deserialize, Deserializer};

/// Reads a limit: `90s`, `10m`, `1h30m`, `1d` (24 hours), `500ms`, or a number of seconds. More than
/// zero.
pub(crate) fn limit(text: &str) -> Result<Duration, String> {
    match wait(text)? {
        Duration::ZERO => Err("the time must be more than zero".to_owned()),
        time => Ok(time),
    }
}

/// Reads how long to wait, which may be no time at all.
pub(crate) fn wait(text: &str) -> Result<Duration, String> {
    let time = match text.parse() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds).ok(),
        Err(_) => text
            .parse::<jiff::Span>()
            .and_then(|time| time.to_duration(jiff::SpanRelativeTo::days_are_24_hours()))
            .ok()
            .and_then(|time| Duration::try_from(time).ok()),
    };
    time.ok_or_else(|| format!("{text:?} is not a time such as 90s, 10m, 1h30m or 1d"))
}

/// Reads a moment: how long ago it is (`90m`, `2h`, `1d`), or a day or a time of this machine's zone.
pub(crate) fn moment(text: &str, now: Timestamp) -> Result<Timestamp, String> {
    if let Ok(ago) = wait(text) {
        let at = Duration::from_millis(now.as_millis()).saturating_sub(ago);
        return Ok(Timestamp::from_millis(0) + at);
    }
    let at = text.parse::<jiff::Timestamp>().or_else(|_| {
        let local: jiff::civil::DateTime = text.parse()?;
        local
            .to_zoned(jiff::tz::TimeZone::system())
            .map(|zoned| zoned.timestamp())
    });
    let millis = at.ok().map(|at| u64::try_from(at.as_millisecond()).unwrap_or_default());
    millis
        .map(Timestamp::from_millis)
        .ok_or_else(|| format!("{text:?} is neither a time such as 90m, 2h or 1d nor a day such as 2026-11-30"))
}

/// The same in a file, where it is text.
pub(crate) fn written<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(from)?;
    wait(&text).map(Some).map_err(serde::de::Error::custom)
}

/// A limit in a file.
pub(crate) fn written_limit<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(from)?;
    limit(&text).map(Some).map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_some_time_ago_or_on_a_day() {
        let now = Timestamp::from_millis(200_000_000);
        let at = |text: &str| moment(text, now).map(Timestamp::as_millis).ok();
        assert_eq!(at("1d"), Some(200_000_000 - 86_400_000));
        assert_eq!(at("1h30m"), Some(200_000_000 - 5_400_000));
        assert_eq!(at("9999h"), Some(0));
        assert_eq!(at("1970-01-02T00:00:00Z"), Some(86_400_000));
        assert!(at("2026-11-30").is_some() && at("2026-11-30T10:00").is_some());
        assert_eq!((at("yesterday-ish"), at("")), (None, None));
    }

    #[test]
    fn reads_times() {
        for (text, millis) in [
            ("90", 90_000),
            ("0.5", 500),
            ("10m", 600_000),
            ("2h", 7_200_000),
            ("1.5h", 5_400_000),
            ("1h 30m", 5_400_000),
            ("1h30m", 5_400_000),
            ("1d", 86_400_000),
            ("1d 2h", 93_600_000),
            ("2w", 1_209_600_000),
            ("500ms", 500),
        ] {
            assert_eq!(limit(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "m", "0", "0s", "1mo", "-1d", "-5s", "-5", "inf", "nan", "1x"] {
            assert!(limit(text).is_err(), "{text}");
        }
        assert_eq!(wait("0"), Ok(Duration::ZERO));
        assert!(wait("soon").unwrap_err().contains("such as 90s"));
    }
}

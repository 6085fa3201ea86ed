//! Time as it is stored and sent. Drivers read clocks; core only compares times.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Milliseconds since the Unix epoch, by the coordinator's clock unless said otherwise.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The instant this many milliseconds after the epoch.
    #[must_use]
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// Milliseconds since the epoch.
    #[must_use]
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// Time from `earlier` to `self`; zero when `earlier` is later, as after a clock jump.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// The minute, for people: "14:05 UTC", with its date when that is not the one of `now`.
    #[must_use]
    pub fn to_minute(self, now: Self) -> String {
        let (at, now) = (self.utc(), now.utc());
        if at.date() == now.date() {
            format!("{:02}:{:02} UTC", at.hour(), at.minute())
        } else {
            self.to_date_and_minute()
        }
    }

    /// The minute with its date, for people: "2026-11-30 14:05 UTC".
    #[must_use]
    pub fn to_date_and_minute(self) -> String {
        let at = self.utc();
        format!("{} {:02}:{:02} UTC", at.date(), at.hour(), at.minute())
    }

    fn utc(self) -> jiff::Zoned {
        let millis = i64::try_from(self.0).unwrap_or(i64::MAX);
        let at = jiff::Timestamp::from_millisecond(millis).unwrap_or(jiff::Timestamp::MAX);
        at.to_zoned(jiff::tz::TimeZone::UTC)
    }
}

/// A time with a machine's offset from UTC: programs on it print times without a zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalTime {
    /// The time.
    pub now: Timestamp,
    /// How far the machine's clocks are ahead of UTC.
    pub utc_offset_seconds: i32,
}

impl LocalTime {
    /// On a machine whose clocks show UTC.
    #[must_use]
    pub const fn utc(now: Timestamp) -> Self {
        Self {
            now,
            utc_offset_seconds: 0,
        }
    }
}

/// A wait for people: "12 s", "5 min". Rounded up, so that "0 s" never appears.
#[must_use]
pub fn in_words(wait: Duration) -> String {
    const MINUTE: u128 = 60;
    const HOUR: u128 = 60 * MINUTE;
    const DAY: u128 = 24 * HOUR;
    let seconds = wait.as_millis().div_ceil(1000);
    if seconds < 2 * MINUTE {
        format!("{seconds} s")
    } else if seconds < 3 * HOUR {
        format!("{} min", seconds.div_ceil(MINUTE))
    } else if seconds < 3 * DAY {
        format!("{} h", seconds.div_ceil(HOUR))
    } else {
        format!("{} days", seconds.div_ceil(DAY))
    }
}

impl std::ops::Add<Duration> for Timestamp {
    type Output = Self;

    fn add(self, rhs: Duration) -> Self {
        let millis = u64::try_from(rhs.as_millis()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(millis))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = i64::try_from(self.0).unwrap_or(i64::MAX);
        match jiff::Timestamp::from_millisecond(millis) {
            Ok(at) => write!(f, "{at:.3}"),
            Err(_) => write!(f, "{}ms", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_and_minutes_are_for_people() {
        let cases = [
            (1, "1 s"),
            (118_001, "119 s"),
            (120_001, "3 min"),
            (900_000, "15 min"),
            (4 * 3_600_000, "4 h"),
            (8 * 24 * 3_600_000, "8 days"),
        ];
        for (millis, words) in cases {
            assert_eq!(in_words(Duration::from_millis(millis)), words);
        }
        let now = Timestamp::from_millis(14 * 3_600_000 + 5 * 60_000);
        assert_eq!(now.to_minute(now), "14:05 UTC");
        let later = now + Duration::from_secs(10 * 3600);
        assert_eq!(later.to_minute(now), "1970-01-02 00:05 UTC");
        let never = Timestamp::from_millis(u64::MAX);
        assert!(never.to_minute(now).ends_with("22:00 UTC"), "{}", never.to_minute(now));
    }
}

//! Times and durations: core counts milliseconds, the wire has the well-known types. Values outside
//! of the other side's range become the nearest possible value.

use std::time::Duration;

use kage_core::time::Timestamp;
/// The well-known types, by their names here.
pub use prost_types::{Duration as Span, Timestamp as Stamp};

use super::InvalidField;

/// Ten thousand years: the longest duration that the well-known type is defined for.
const LONGEST: Duration = Duration::from_secs(315_576_000_000);

/// A time on the wire.
#[must_use]
pub fn stamp(at: Timestamp) -> Stamp {
    let millis = at.as_millis();
    Stamp {
        seconds: i64::try_from(millis / 1000).unwrap_or(i64::MAX),
        nanos: i32::try_from(millis % 1000 * 1_000_000).unwrap_or_default(),
    }
}

/// A time of the wire, to the millisecond.
#[must_use]
pub fn time(stamp: Stamp) -> Timestamp {
    let (Ok(seconds), Ok(nanos)) = (u64::try_from(stamp.seconds), u64::try_from(stamp.nanos)) else {
        return Timestamp::default();
    };
    Timestamp::from_millis(seconds.saturating_mul(1000).saturating_add(nanos / 1_000_000))
}

/// A duration on the wire.
#[must_use]
pub fn span(duration: Duration) -> Span {
    let duration = duration.min(LONGEST);
    Span {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or_default(),
    }
}

/// A duration of the wire. A negative one becomes zero.
#[must_use]
pub fn duration(span: Span) -> Duration {
    let (Ok(seconds), Ok(nanos)) = (u64::try_from(span.seconds), u32::try_from(span.nanos)) else {
        return Duration::ZERO;
    };
    Duration::from_secs(seconds)
        .saturating_add(Duration::from_nanos(nanos.into()))
        .min(LONGEST)
}

/// An optional limit.
///
/// # Errors
/// When it is not more than zero.
pub fn limit(field: &str, span: Option<Span>) -> Result<Option<Duration>, InvalidField> {
    let Some(limit) = span.map(duration) else {
        return Ok(None);
    };
    if limit.is_zero() {
        return Err(InvalidField::new(field, "must be more than zero"));
    }
    Ok(Some(limit))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_the_domain_has_survives_the_wire(millis: u64, seconds in 0..315_576_000_000_u64, nanos in 0..1_000_000_000_u32) {
            let at = Timestamp::from_millis(millis);
            prop_assert_eq!(time(stamp(at)), at);
            let wait = Duration::new(seconds, nanos);
            prop_assert_eq!(duration(span(wait)), wait);
        }

        #[test]
        fn what_a_peer_sends_is_read_as_what_can_be_said(seconds: i64, nanos: i32) {
            let at = time(Stamp { seconds, nanos });
            prop_assert_eq!(time(stamp(at)), at);
            let wait = duration(Span { seconds, nanos });
            prop_assert_eq!(duration(span(wait)), wait);
        }
    }

    #[test]
    fn a_limit_is_absent_or_more_than_zero() {
        let limit = |seconds| limit("timeout", Some(Span { seconds, nanos: 0 }));
        assert_eq!(super::limit("timeout", None), Ok(None));
        assert_eq!(limit(3), Ok(Some(Duration::from_secs(3))));
        for wrong in [0, -1] {
            assert_eq!(limit(wrong).unwrap_err().to_string(), "timeout: must be more than zero");
        }
    }
}

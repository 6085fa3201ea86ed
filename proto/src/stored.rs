//! Events as agents keep them in their outboxes: written as they are sent, and read as this or an
//! earlier version wrote them. Field numbers of events are never used again, so that a field with a
//! new form has a new number; what a file has in the old one is moved here.
//!
//! The first form had times and durations as milliseconds in integers.

use std::time::Duration;

use kage_core::time::Timestamp;
use prost::{DecodeError, Message};

use crate::convert::time::{Span, span, stamp};
use crate::v1;
use crate::v1::event::Body;
use crate::v1::finished::Outcome;

/// Reads an event of an outbox.
///
/// # Errors
/// When the bytes are no event.
pub fn event(bytes: &[u8]) -> Result<v1::Event, DecodeError> {
    let mut event = v1::Event::decode(bytes)?;
    if event.at.is_none() {
        // No event of today is without its time.
        EventInMillis::decode(bytes)?.fill(&mut event);
    }
    Ok(event)
}

/// The fields of an event that were milliseconds.
#[derive(Clone, PartialEq, Message)]
struct EventInMillis {
    #[prost(uint64, tag = "2")]
    at: u64,
    #[prost(message, optional, tag = "6")]
    call_retried: Option<CallRetriedInMillis>,
    #[prost(message, optional, tag = "11")]
    finished: Option<FinishedInMillis>,
}

#[derive(Clone, PartialEq, Message)]
struct CallRetriedInMillis {
    #[prost(message, optional, tag = "1")]
    failure: Option<FailureInMillis>,
    #[prost(uint64, tag = "2")]
    delay: u64,
}

#[derive(Clone, PartialEq, Message)]
struct FinishedInMillis {
    #[prost(message, optional, tag = "2")]
    verdict: Option<VerdictInMillis>,
    #[prost(message, optional, tag = "3")]
    failure: Option<FailureInMillis>,
}

#[derive(Clone, PartialEq, Message)]
struct VerdictInMillis {
    #[prost(uint64, tag = "4")]
    duration: u64,
}

#[derive(Clone, PartialEq, Message)]
struct FailureInMillis {
    #[prost(uint64, optional, tag = "3")]
    retry_after: Option<u64>,
}

impl EventInMillis {
    fn fill(self, event: &mut v1::Event) {
        event.at = Some(stamp(Timestamp::from_millis(self.at)));
        if let Some(Body::CallRetried(retried)) = &mut event.body {
            let old = self.call_retried.unwrap_or_default();
            retried.delay = Some(millis(old.delay));
            FailureInMillis::fill(old.failure, retried.failure.as_mut());
        } else if let Some(Body::Finished(v1::Finished { outcome })) = &mut event.body {
            let old = self.finished.unwrap_or_default();
            match outcome {
                Some(Outcome::Verdict(verdict)) => {
                    verdict.duration = Some(millis(old.verdict.unwrap_or_default().duration));
                }
                Some(Outcome::Failure(failure)) => FailureInMillis::fill(old.failure, Some(failure)),
                Some(Outcome::Claimed(_)) | None => {}
            }
        }
    }
}

impl FailureInMillis {
    fn fill(old: Option<Self>, failure: Option<&mut v1::Failure>) {
        if let (Some(old), Some(failure)) = (old, failure) {
            failure.retry_after = old.retry_after.map(millis);
        }
    }
}

fn millis(millis: u64) -> Span {
    span(Duration::from_millis(millis))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_are_an_event_with_a_time_or_refused(bytes: Vec<u8>) {
            if let Ok(event) = event(&bytes) {
                prop_assert!(event.at.is_some());
                prop_assert_eq!(&super::event(&event.encode_to_vec()).unwrap(), &event);
            }
        }
    }
}

//! How long what a session writes to its provider's prompt cache has to live. An entry lives for five minutes from
//! the start of the last request that used it, or for an hour at a higher price of writing. It owns the decision
//! between the two; the dialect says it to the provider. Pure.
//!
//! What a session did is what is expected of it: as long as its calls come within five minutes, the cheaper entry
//! is always found again. A session that once paused for longer (a build, a queue of its account, a person) had to
//! write everything anew, and would have to after the next pause too; from then on its entries live for an hour.

use std::time::Duration;

use tokio::time::Instant;

/// How long a provider keeps what a request writes to its cache.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum CacheLife {
    #[default]
    FiveMinutes,
    OneHour,
}

/// The shorter life.
const SHORT: Duration = Duration::from_secs(5 * 60);

/// The pauses between the calls of a session.
#[derive(Debug, Default)]
pub(super) struct Pauses {
    last: Option<Instant>,
    was_long: bool,
}

impl Pauses {
    /// A call begins: how long what it writes has to live.
    pub(super) fn call(&mut self, now: Instant) -> CacheLife {
        let before = self.last.replace(now);
        self.was_long |= before.is_some_and(|before| now.saturating_duration_since(before) >= SHORT);
        if self.was_long {
            CacheLife::OneHour
        } else {
            CacheLife::FiveMinutes
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_live_for_an_hour_once_a_pause_was_longer_than_five_minutes() {
        let (mut pauses, start) = (Pauses::default(), Instant::now());
        let mut call = |seconds| pauses.call(start + Duration::from_secs(seconds));
        assert_eq!(call(0), CacheLife::FiveMinutes);
        assert_eq!(call(299), CacheLife::FiveMinutes);
        assert_eq!(call(500), CacheLife::FiveMinutes);
        assert_eq!(call(800), CacheLife::OneHour);
        assert_eq!(call(801), CacheLife::OneHour);
    }
}

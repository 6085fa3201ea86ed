//! In which tier of containment a session worked: the lowest of its attempts, because its result is the
//! work of all of them, and of the session that it was forked from.

use super::Session;
use crate::contain::Tier;

impl Session {
    /// Notes the tier of the attempt that just started.
    pub fn works_in(&mut self, tier: Tier) {
        self.contained = Some(match self.contained {
            Some(lowest) => lowest.min(tier),
            // Its earlier attempts were started by a version that recorded none.
            None if self.attempts > 1 => Tier::T0,
            None => tier,
        });
    }

    /// The tier that the files of a fork of it come from.
    pub(super) fn contained_so_far(&self) -> Option<Tier> {
        self.contained.or((self.attempts > 0).then_some(Tier::T0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{SessionId, TaskId};

    fn session(attempts: u32, contained: Option<Tier>) -> Session {
        let (name, adapter) = ("one".parse().unwrap(), "codex".parse().unwrap());
        let mut session = Session::new(SessionId::from_random(1), TaskId::from_random(2), name, adapter, None);
        (session.attempts, session.contained) = (attempts, contained);
        session
    }

    #[test]
    fn the_lowest_tier_of_its_attempts_counts() {
        use Tier::{T0, T1, T2};
        // Attempts with the one that starts now, what was recorded of those before, its tier.
        let cases = [
            (1, None, T2, T2),
            (2, Some(T2), T1, T1),
            (3, Some(T1), T2, T1),
            // Its first attempt was one of an earlier version.
            (2, None, T2, T0),
            // A fork, whose first attempt goes on from files that were made in a lower one.
            (1, Some(T1), T2, T1),
        ];
        for (attempts, before, tier, expected) in cases {
            let mut session = session(attempts, before);
            session.works_in(tier);
            assert_eq!(session.contained, Some(expected), "{attempts} {before:?} {tier}");
        }
    }

    #[test]
    fn a_fork_begins_in_what_was_recorded() {
        assert_eq!(session(0, None).contained_so_far(), None);
        assert_eq!(session(2, None).contained_so_far(), Some(Tier::T0));
        assert_eq!(session(2, Some(Tier::T2)).contained_so_far(), Some(Tier::T2));
    }

    #[test]
    fn a_session_that_was_stored_before_has_none() {
        let session = session(2, None);
        let stored = serde_json::to_value(&session).unwrap();
        assert!(stored.get("contained").is_none());
        assert_eq!(serde_json::from_value::<Session>(stored).unwrap(), session);
    }
}

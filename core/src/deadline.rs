//! How long an attempt may be live, whatever its agent does. The agent ends an attempt that takes
//! too long, and stops when it is told to. An agent that only reports that it is there does
//! neither, and would hold the job forever. So the coordinator waits a while longer than the agent
//! should take, and then takes the attempt's authority away.

use std::time::Duration;

use crate::attempt::EndReason;
use crate::job::JobKind;
use crate::task::Policy;
use crate::time::Timestamp;

/// An attempt's time besides its task's limit: for fetching before, for committing and sending
/// afterwards, and for programs that do not end when they are told to. As much as the limit again,
/// within these bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slack {
    /// At least.
    pub least: Duration,
    /// At most.
    pub most: Duration,
}

impl Default for Slack {
    fn default() -> Self {
        Self {
            least: Duration::from_secs(60),
            most: Duration::from_secs(10 * 60),
        }
    }
}

/// How long an agent has to answer an order to stop: longer than it takes to end unwilling programs
/// and to keep their work.
pub const STOP_ANSWER: Duration = Duration::from_secs(60);

/// How long to wait for agents that do not act.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// An attempt's time besides its task's limit.
    pub slack: Slack,
    /// How long an order to stop may go unanswered.
    pub stop_answer: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            slack: Slack::default(),
            stop_answer: STOP_ANSWER,
        }
    }
}

/// The longest wait, whatever the limit: times stay within what clocks and rows can hold.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

impl Slack {
    /// How long an attempt at a job of this kind may be live; `own` is the limit of its session alone.
    #[must_use]
    pub fn allowed(self, kind: &JobKind, policy: &Policy, own: Option<Duration>) -> Duration {
        let limit = kind.limit(policy, own);
        limit.saturating_add(self.of(limit)).min(LONGEST)
    }

    fn of(self, limit: Duration) -> Duration {
        limit.min(self.most).max(self.least)
    }

    /// How long an agent may commit and send what a session with this limit has done, when the limit
    /// leaves less. It is half of the slack: the agent's own end, which says what took so long, comes
    /// before the coordinator's.
    #[must_use]
    pub fn finishing(self, limit: Duration) -> Duration {
        self.of(limit) / 2
    }
}

/// The deadline of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Term {
    /// When it began.
    pub started_at: Timestamp,
    /// When it has taken too long; moved by the time without a lease.
    pub ends_by: Timestamp,
    /// When its agent was first told to stop it.
    pub stop_asked: Option<Timestamp>,
}

impl Term {
    /// The reason that ends it if nothing else does, and the time until then. A clock that was set
    /// back makes it wait no longer than its whole time.
    #[must_use]
    pub fn left(self, stop_answer: Duration, now: Timestamp) -> (EndReason, Duration) {
        let all = self.ends_by.since(self.started_at);
        let limit = (EndReason::Overdue, self.ends_by.since(now).min(all));
        let stop = self.stop_asked.map(|asked| {
            let left = (asked + stop_answer).since(now).min(stop_answer);
            (EndReason::StopUnanswered, left)
        });
        match stop {
            Some(stop) if stop.1 <= limit.1 => stop,
            Some(_) | None => limit,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::VerifyPolicy;

    const fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn an_attempt_gets_its_limit_once_more_within_bounds() {
        let cases = [
            (secs(3), secs(63)),
            (secs(60), secs(120)),
            (secs(300), secs(600)),
            (secs(3600), secs(4200)),
            (Duration::MAX, LONGEST),
        ];
        let commit: crate::id::Oid = "b".repeat(40).parse().unwrap();
        for (limit, allowed) in cases {
            let other = secs(7);
            let of = |timeout, verify| Policy {
                timeout,
                verify: VerifyPolicy {
                    timeout: verify,
                    ..VerifyPolicy::default()
                },
                ..Policy::default()
            };
            let slack = Slack::default();
            assert_eq!(slack.allowed(&JobKind::Session, &of(limit, other), None), allowed);
            let commit = commit.clone();
            let verify = JobKind::Verify { commit: commit.clone() };
            assert_eq!(slack.allowed(&verify, &of(other, limit), Some(other)), allowed);
            assert_eq!(
                slack.allowed(&JobKind::Session, &of(other, other), Some(limit)),
                allowed
            );
        }
    }

    #[test]
    fn committing_and_sending_have_half_of_the_slack() {
        let cases = [(3, 30), (60, 30), (300, 150), (3600, 300)];
        for (limit, finishing) in cases {
            assert_eq!(Slack::default().finishing(secs(limit)), secs(finishing), "{limit}");
        }
    }

    #[test]
    fn what_comes_first_ends_it() {
        use EndReason::{Overdue, StopUnanswered};
        let at = |seconds: u64| Timestamp::from_millis(1_000_000 + seconds * 1000);
        // Started at 0, ends by 100.
        let cases = [
            (None, at(0), (Overdue, secs(100))),
            (None, at(99), (Overdue, secs(1))),
            (None, at(100), (Overdue, secs(0))),
            (None, at(5000), (Overdue, secs(0))),
            (Some(at(10)), at(10), (StopUnanswered, secs(60))),
            (Some(at(10)), at(69), (StopUnanswered, secs(1))),
            (Some(at(10)), at(70), (StopUnanswered, secs(0))),
            (Some(at(90)), at(90), (Overdue, secs(10))),
            // As at a restart, when both have passed.
            (Some(at(90)), at(5000), (StopUnanswered, secs(0))),
            // The clock was set back.
            (None, Timestamp::from_millis(0), (Overdue, secs(100))),
            (Some(at(10)), Timestamp::from_millis(0), (StopUnanswered, secs(60))),
        ];
        for (stop_asked, now, expected) in cases {
            let term = Term {
                started_at: at(0),
                ends_by: at(100),
                stop_asked,
            };
            assert_eq!(term.left(STOP_ANSWER, now), expected, "{stop_asked:?} {now}");
        }
    }
}

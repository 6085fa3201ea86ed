//! Attempts: leased executions of a job, and the one place where stale writes are refused.

use serde::{Deserialize, Serialize};

use crate::contain::Tier;
use crate::id::{AgentId, AttemptId, BootId, Digest, JobId, SessionId, TaskId};
use crate::time::Timestamp;
use crate::words::words;

words! {
    /// Why an attempt lost its authority.
    pub enum EndReason: "a reason why an attempt ended" {
        /// Its last event was accepted.
        Finished = "finished",
        /// Its agent's daemon restarted.
        AgentRestarted = "agent_restarted",
        /// Its agent closed the connection and did not return in time.
        AgentGone = "agent_gone",
        /// Its agent was silent for too long.
        AgentSilent = "agent_silent",
        /// A person sent the session back to a checkpoint.
        Restored = "restored",
        /// A person's message made the session go on: what it checked is not the result any more.
        Superseded = "superseded",
        /// Its agent did not end it, although its time limit had long passed.
        Overdue = "overdue",
        /// Its agent did not stop it, although it was told to.
        StopUnanswered = "stop_unanswered",
    }
}

/// Whether an attempt may write.
///
/// ```text
///   Live --Finished event--------------> Ended
///     \---agent restarted/gone/silent--> Ended
///     \---session restored-------------> Ended
///     \---message during verify--------> Ended
///     \---too late, or not stopped-----> Ended
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttemptState {
    /// Its writes are accepted.
    Live,
    /// Its writes are refused.
    Ended {
        /// The reason.
        reason: EndReason,
        /// The time of the end.
        at: Timestamp,
    },
}

/// A leased execution of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// Its id.
    pub id: AttemptId,
    /// The job it executes.
    pub job: JobId,
    /// The session that the job is about, or that the check of the base is listed with.
    pub session: SessionId,
    /// The task of that session.
    pub task: TaskId,
    /// The epoch, from 1. A session's later job continues the count of the one before; every verify
    /// job begins at 1.
    pub number: u32,
    /// Hash of the token that its writes must carry.
    pub token_hash: Digest,
    /// The agent that executes it.
    pub agent: AgentId,
    /// The start of that agent to which it was granted.
    pub boot: BootId,
    /// The tier that the start of that agent had proved; it may have another one after its next start.
    #[serde(default, skip_serializing_if = "Tier::is_lowest")]
    pub contained: Tier,
    /// The end of the time in which its agent may act without an answer from the coordinator.
    pub lease_until: Timestamp,
    /// The time at which it has taken too long; see [`crate::deadline`].
    pub ends_by: Timestamp,
    /// When its agent was first told to stop it.
    pub stop_asked: Option<Timestamp>,
    /// Why it is stopped, when its program has used more than a budget allows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub over_budget: Option<String>,
    /// When its agent last reported that it runs, by the coordinator's clock.
    pub heard_at: Timestamp,
    /// Number of the last event that was stored.
    pub acked_seq: u64,
    /// Whether it may write.
    pub state: AttemptState,
}

/// What to do with a batch of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Admission {
    /// Store all but the first `skip` events, which are stored already.
    Accept {
        /// Number of events to leave out.
        skip: usize,
    },
    /// Events are missing before this batch; the sender resumes after `acked_seq`.
    Gap {
        /// The last event that was stored.
        acked_seq: u64,
    },
    /// The writer has no authority.
    Stale(StaleWriter),
}

/// Why a writer has no authority over an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StaleWriter {
    /// The token is not the attempt's.
    #[error("the token is not that of the attempt")]
    WrongToken,
    /// The attempt was granted to another agent.
    #[error("the attempt was given to another agent")]
    WrongAgent,
    /// The attempt ended.
    #[error("the attempt has ended")]
    Ended,
}

impl Attempt {
    /// Checks that this agent, with this token, may write.
    ///
    /// # Errors
    /// When it may not; the writer must stop.
    pub fn authorise(&self, token_hash: &Digest, agent: AgentId) -> Result<(), StaleWriter> {
        self.identify(token_hash, agent)?;
        match self.state {
            AttemptState::Live => Ok(()),
            AttemptState::Ended { .. } => Err(StaleWriter::Ended),
        }
    }

    /// Decides on a batch of `count` events that begins with number `first`.
    ///
    /// A batch that was stored whole is accepted again even after the attempt ended: its sender
    /// never got the acknowledgement.
    pub fn admit(&self, token_hash: &Digest, agent: AgentId, first: u64, count: usize) -> Admission {
        if let Err(stale) = self.identify(token_hash, agent) {
            return Admission::Stale(stale);
        }
        let last = first.saturating_add(count as u64).saturating_sub(1);
        if last <= self.acked_seq {
            return Admission::Accept { skip: count };
        }
        if let Err(stale) = self.authorise(token_hash, agent) {
            return Admission::Stale(stale);
        }
        if first == 0 || first > self.acked_seq + 1 {
            return Admission::Gap {
                acked_seq: self.acked_seq,
            };
        }
        Admission::Accept {
            skip: usize::try_from(self.acked_seq + 1 - first).unwrap_or(usize::MAX),
        }
    }

    fn identify(&self, token_hash: &Digest, agent: AgentId) -> Result<(), StaleWriter> {
        if self.token_hash != *token_hash {
            return Err(StaleWriter::WrongToken);
        }
        if self.agent != agent {
            return Err(StaleWriter::WrongAgent);
        }
        Ok(())
    }

    /// Renews the lease after a message of its agent. A lease is never shortened, and the deadline
    /// moves by the time without a lease: nothing can go on in it.
    pub fn renew(&mut self, lease_until: Timestamp, now: Timestamp) {
        if self.lease_until < lease_until {
            self.ends_by = self.ends_by + now.since(self.lease_until);
            self.lease_until = lease_until;
        }
    }

    /// Notes that its agent is told to stop it; the first time counts.
    pub fn ask_to_stop(&mut self, now: Timestamp) {
        self.stop_asked.get_or_insert(now);
    }

    /// The time until which it is known to have run, if it ends now. The time of the agent's last
    /// event counts if it lies between the last message before and now; without it, the attempt ran
    /// until the last message.
    #[must_use]
    pub fn ran_until(&self, said: Option<Timestamp>, now: Timestamp) -> Timestamp {
        let latest = now.max(self.heard_at);
        said.map_or(self.heard_at, |said| said.clamp(self.heard_at, latest))
    }

    /// Notes that its agent reported that it runs. False when that was known.
    pub fn hear(&mut self, now: Timestamp) -> bool {
        let new = self.heard_at < now;
        self.heard_at = self.heard_at.max(now);
        new
    }

    /// Takes the attempt's authority away. False when it had none.
    pub fn end(&mut self, reason: EndReason, now: Timestamp) -> bool {
        match self.state {
            AttemptState::Live => {
                self.state = AttemptState::Ended { reason, at: now };
                true
            }
            AttemptState::Ended { .. } => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::AttemptToken;

    fn attempt(acked_seq: u64, state: AttemptState) -> Attempt {
        Attempt {
            id: AttemptId::from_random(1),
            job: JobId::from_random(2),
            session: SessionId::from_random(3),
            task: TaskId::from_random(4),
            number: 1,
            token_hash: AttemptToken::from_random(5).hash(),
            agent: AgentId::from_random(6),
            boot: BootId::from_random(7),
            contained: Tier::T0,
            lease_until: Timestamp::from_millis(1000),
            ends_by: Timestamp::from_millis(9000),
            stop_asked: None,
            over_budget: None,
            heard_at: Timestamp::from_millis(100),
            acked_seq,
            state,
        }
    }

    #[test]
    fn admits_by_token_authority_and_sequence() {
        let token = AttemptToken::from_random(5).hash();
        let other = AttemptToken::from_random(6).hash();
        let ended = AttemptState::Ended {
            reason: EndReason::AgentSilent,
            at: Timestamp::from_millis(5),
        };
        let live = AttemptState::Live;
        let agent = AgentId::from_random(6);
        let cases = [
            (0, live, &token, 1, 3, Admission::Accept { skip: 0 }),
            (2, live, &token, 1, 3, Admission::Accept { skip: 2 }),
            (3, live, &token, 1, 3, Admission::Accept { skip: 3 }),
            (3, live, &token, 5, 1, Admission::Gap { acked_seq: 3 }),
            (0, live, &token, 0, 1, Admission::Accept { skip: 1 }),
            (0, live, &token, 0, 2, Admission::Gap { acked_seq: 0 }),
            (0, live, &other, 1, 1, Admission::Stale(StaleWriter::WrongToken)),
            (3, ended, &token, 1, 3, Admission::Accept { skip: 3 }),
            (3, ended, &token, 4, 1, Admission::Stale(StaleWriter::Ended)),
        ];
        for (acked, state, token, first, count, expected) in cases {
            assert_eq!(
                attempt(acked, state).admit(token, agent, first, count),
                expected,
                "acked {acked} first {first} count {count}"
            );
        }
    }

    #[test]
    fn time_without_a_lease_is_given_back() {
        let at = Timestamp::from_millis;
        let mut attempt = attempt(0, AttemptState::Live);
        // The lease ends at 1000, the attempt at 9000.
        for (now, lease, expected) in [
            (900, 1900, 9000),
            (1900, 2900, 9000),
            (3400, 4400, 9500),
            (3500, 4000, 9500),
        ] {
            attempt.renew(at(lease), at(now));
            assert_eq!(attempt.ends_by, at(expected), "heard at {now}");
        }
        assert_eq!(attempt.lease_until, at(4400), "never shortened");
        attempt.ask_to_stop(at(5));
        attempt.ask_to_stop(at(6));
        assert_eq!(attempt.stop_asked, Some(at(5)));
    }

    #[test]
    fn it_ran_until_its_end_or_until_it_was_last_heard_of() {
        let at = Timestamp::from_millis;
        let mut attempt = attempt(0, AttemptState::Live);
        let cases = [
            // Its agent reported the end, and the coordinator was there.
            (Some(150), 151, 150),
            // Its agent was lost with everything, and found dead half a minute later.
            (None, 30_000, 100),
            // Its agent's clock is wrong: not before the last message, not after now.
            (Some(7), 151, 100),
            (Some(9_000_000), 151, 151),
            // The coordinator's clock was set back.
            (Some(90), 50, 100),
            (None, 50, 100),
        ];
        for (said, now, expected) in cases {
            assert_eq!(attempt.ran_until(said.map(at), at(now)), at(expected), "{said:?} {now}");
        }
        assert!(attempt.hear(at(120)) && !attempt.hear(at(120)) && !attempt.hear(at(110)));
        assert_eq!(attempt.ran_until(None, at(500)), at(120));
    }

    #[test]
    fn one_that_was_stored_without_a_tier_ran_in_the_lowest() {
        let attempt = attempt(0, AttemptState::Live);
        let stored = serde_json::to_value(&attempt).unwrap();
        assert!(stored.get("contained").is_none());
        assert_eq!(serde_json::from_value::<Attempt>(stored).unwrap(), attempt);
    }

    #[test]
    fn refuses_another_agent_even_with_the_token() {
        let token = AttemptToken::from_random(5).hash();
        let live = attempt(3, AttemptState::Live);
        let stranger = AgentId::from_random(60);
        assert_eq!(live.authorise(&token, stranger), Err(StaleWriter::WrongAgent));
        assert_eq!(
            live.admit(&token, stranger, 1, 3),
            Admission::Stale(StaleWriter::WrongAgent)
        );
    }
}

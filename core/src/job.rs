//! Jobs: the unit that is placed and leased, and every transition of a job and its session.
//!
//! ```text
//!   Later (its session's turn has not come)
//!     v
//!   Queued --start--> Leased --finish--> Done
//!     ^                 |
//!     \----- retry -----/  (a failure worth repeating, or a lost agent)
//! ```

use serde::{Deserialize, Serialize};

use crate::attempt::EndReason;
use crate::checkpoint::{Points, Safety};
use crate::event::{AttemptOutcome, ResultCommit, Verdict, VerdictKind};
use crate::failure::{Failure, FailureKind};
use crate::id::{AgentId, AttemptId, JobId, Oid, TaskId};
use crate::recovery::{self, Jitter};
use crate::session::{Climbed, Questions, Session, SessionState, Unclaimed};
use crate::task::Policy;
use crate::time::{Timestamp, in_words};

mod baseline;
mod failing;
mod kind;
#[cfg(test)]
mod tests;

pub use kind::{Affinity, JobKind, JobType, Subject};

/// The state of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum JobState {
    /// It may be offered to an agent.
    Queued {
        /// Not before this time.
        not_before: Timestamp,
    },
    /// It is not its session's turn yet (see [`Course`](crate::task::Course)).
    Later {
        /// The position of its session in the task: the smallest is the next.
        position: u32,
    },
    /// An attempt is live.
    Leased {
        /// The live attempt.
        attempt: AttemptId,
    },
    /// It will not be attempted again.
    Done,
}

/// The unit that is placed and leased.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Its id.
    pub id: JobId,
    /// Its task.
    pub task: TaskId,
    /// Its subject.
    pub subject: Subject,
    /// The kind of its work.
    pub kind: JobKind,
    /// Its state.
    pub state: JobState,
    /// Attempts started.
    pub started: u32,
    /// Attempts that ended by a failure of their own.
    pub failed: u32,
    /// Attempts whose agent was lost.
    pub lost: u32,
    /// Attempts that reached a used-up limit.
    #[serde(default)]
    pub held: u32,
    /// Attempts whose access token ended while they ran.
    #[serde(default, skip_serializing_if = "is_none_yet")]
    pub expired: u32,
    /// Preferences for the next attempt's agent.
    pub affinity: Affinity,
}

/// Whether there were none, so that rows of most jobs stay as they are.
const fn is_none_yet(count: &u32) -> bool {
    *count == 0
}

/// Why a job cannot be started now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CannotStart {
    /// It is not its session's turn.
    #[error("the job waits for another session")]
    Later,
    /// It has a live attempt.
    #[error("the job is being worked on")]
    Leased,
    /// It is over.
    #[error("the job is over")]
    Done,
}

/// The transition of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Moved {
    /// The job waits again.
    Requeued,
    /// The job is over.
    Over,
}

/// That a result failed verify, in the same words whoever produced the message.
fn failed(verdict: &Verdict) -> String {
    let message = verdict.message.trim();
    if message.starts_with("verify failed") {
        return message.to_owned();
    }
    let code = verdict.exit_code.map(|code| format!(" with exit code {code}"));
    format!("verify failed{}: {message}", code.unwrap_or_default())
}

/// What has to be stored and done after an attempt finished.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Finish {
    /// The job moved; nothing else follows.
    Moved(Moved),
    /// The job is over, and this result has to be checked.
    Verify(Oid),
    /// The job is over, and the session continues by a [`Job::again`], not before this time.
    Rework(Timestamp),
    /// The job is over, with this verdict on the task's base.
    Base(Verdict),
}

/// The facts by which the end of an attempt is judged.
#[derive(Debug, Clone, Copy)]
pub struct Circumstances<'a> {
    /// The task's limits and rules.
    pub policy: &'a Policy,
    /// The points to which the session can go back.
    pub points: &'a Points,
    /// What is known about the task's base.
    pub base: Safety,
    /// The agent of the attempt.
    pub agent: AgentId,
    /// The random part of waits.
    pub jitter: Jitter,
    /// The present time.
    pub now: Timestamp,
}

impl Job {
    /// A waiting job.
    #[must_use]
    pub const fn new(id: JobId, task: TaskId, subject: Subject, kind: JobKind, now: Timestamp) -> Self {
        Self {
            id,
            task,
            subject,
            kind,
            state: JobState::Queued { not_before: now },
            started: 0,
            failed: 0,
            lost: 0,
            held: 0,
            expired: 0,
            affinity: Affinity {
                prefer: None,
                avoid: None,
            },
        }
    }

    /// The job of a session whose turn comes later.
    #[must_use]
    pub fn for_later(self, position: u32) -> Self {
        Self {
            state: JobState::Later { position },
            ..self
        }
    }

    /// Now it is its session's turn, which is told why the one before was rejected. False when it
    /// did not wait for that.
    pub fn take_turn(&mut self, session: &mut Session, climbed: Climbed, now: Timestamp) -> bool {
        if !matches!(self.state, JobState::Later { .. }) {
            return false;
        }
        self.state = JobState::Queued { not_before: now };
        session.climbed = Some(Box::new(climbed));
        true
    }

    /// A job by which a session continues after its last one was over. The count of attempts
    /// continues.
    #[must_use]
    pub const fn again(id: JobId, session: &Session, not_before: Timestamp) -> Self {
        let subject = Subject::Session(session.id);
        let mut job = Self::new(id, session.task, subject, JobKind::Session, not_before);
        job.started = session.attempts;
        job
    }

    /// Its work and subject in one word.
    #[must_use]
    pub const fn type_of(&self) -> JobType {
        JobType::of(self.subject, &self.kind)
    }

    /// Gives the job to an attempt, whose number is [`Job::started`] afterwards.
    ///
    /// # Errors
    /// When it is not waiting.
    pub fn start(
        &mut self,
        attempt: AttemptId,
        session: &mut Session,
        agent: &str,
        now: Timestamp,
    ) -> Result<(), CannotStart> {
        match self.state {
            JobState::Queued { .. } => {}
            JobState::Later { .. } => return Err(CannotStart::Later),
            JobState::Leased { .. } => return Err(CannotStart::Leased),
            JobState::Done => return Err(CannotStart::Done),
        }
        self.state = JobState::Leased { attempt };
        self.started += 1;
        match (self.subject, &self.kind) {
            (Subject::Base, _) => {}
            (Subject::Session(_), JobKind::Session) => {
                session.started_at = session.started_at.or(Some(now));
                session.worked.start(now);
                session.agent = Some(agent.to_owned());
                session.attempts = self.started;
                session.calls.before_attempt = session.calls.answered;
                session.pending_result = None;
                let from = session.checkpoints.head.as_ref().map_or(0, |head| head.number);
                session.messages.give(self.started, from);
                session.questions = Questions::default();
                session.state = SessionState::Running { attempt };
            }
            (Subject::Session(_), JobKind::Verify { .. }) => {
                session.worked.start(now);
                if let Some(result) = session.state.result().cloned() {
                    session.state = SessionState::Verifying { result, attempt };
                }
            }
        }
        Ok(())
    }

    /// Ends a live attempt by its own last event.
    pub fn finish(&mut self, session: &mut Session, outcome: &AttemptOutcome, around: Circumstances<'_>) -> Finish {
        let now = around.now;
        self.affinity = Affinity::default();
        if self.subject == Subject::Base {
            return self.finish_base(outcome, around.agent, now);
        }
        let moved = match (outcome, &self.kind) {
            (AttemptOutcome::Failed(failure), _) => self.fail(session, failure, around),
            _ if session.cancel_requested => self.cancelled(session, around.points, now),
            (AttemptOutcome::Claimed, JobKind::Session) => {
                match (session.pending_result.take(), &around.policy.verify.verify) {
                    (Some(result), Some(_)) => {
                        let commit = result.commit.clone();
                        session.follow_messages();
                        session.rework = None;
                        session.stands = None;
                        session.state = SessionState::Claimed { result };
                        if session.messages.waits() {
                            self.affinity.prefer = Some(around.agent);
                            return Finish::Moved(self.go_on(session, now));
                        }
                        self.state = JobState::Done;
                        return Finish::Verify(commit);
                    }
                    (None, Some(_)) => {
                        let failure = Failure::new(
                            FailureKind::NoChange,
                            "the session said it was done, and sent no result",
                        );
                        self.fail(session, &failure, around)
                    }
                    (result, None) => {
                        session.follow_messages();
                        self.over(session, SessionState::Unverified { result, verdict: None }, now)
                    }
                }
            }
            (AttemptOutcome::Verdict(verdict), JobKind::Verify { .. }) => {
                let Some(result) = session.state.result().cloned() else {
                    return Finish::Moved(self.over(session, session.state.clone(), now));
                };
                let verdict = verdict.clone();
                if let (Some(end), true) = (session.ended_as.clone(), verdict.kind != VerdictKind::Errored) {
                    let state = end.with(Some(result), Some(verdict.without_output()));
                    return Finish::Moved(self.over(session, state, now));
                }
                match verdict.kind {
                    VerdictKind::Passed => {
                        let verdict = verdict.without_output();
                        self.over(session, SessionState::Verified { result, verdict }, now)
                    }
                    VerdictKind::Failed => return self.reject(session, result, verdict, around),
                    VerdictKind::Errored => {
                        self.failed += 1;
                        let words = format!("verify came to no decision: {}", verdict.message);
                        let failure = Failure::new(FailureKind::Unknown, words);
                        let decision = recovery::decide_errored(self.failed, now);
                        let undecided = undecided(session, result, verdict.without_output());
                        self.follow(session, failure, decision, undecided, around)
                    }
                }
            }
            (AttemptOutcome::Claimed, JobKind::Verify { .. }) | (AttemptOutcome::Verdict(_), JobKind::Session) => {
                let failure = Failure::new(
                    FailureKind::Unknown,
                    "the agent reported an outcome of another kind of job",
                );
                self.fail(session, &failure, around)
            }
        };
        Finish::Moved(moved)
    }

    /// Ends a live attempt that lost its authority.
    pub fn lose(&mut self, session: &mut Session, reason: EndReason, around: Circumstances<'_>) -> Moved {
        self.affinity.prefer = Some(around.agent);
        if self.subject == Subject::Base {
            return self.lose_base(reason, around);
        }
        let lost = |why| Failure::new(FailureKind::AgentLost, why);
        let failure = match reason {
            EndReason::AgentRestarted => lost("the agent was restarted"),
            EndReason::AgentGone => lost("the agent closed its connection and did not come back"),
            EndReason::AgentSilent => lost("the agent was silent for too long"),
            EndReason::Restored => lost("the session was sent back to a checkpoint"),
            EndReason::Superseded => lost("a message made the session go on"),
            EndReason::Finished => lost("the attempt ended"),
            EndReason::StopUnanswered => {
                self.avoid(around.agent);
                lost("the agent did not answer the order to stop")
            }
            EndReason::Overdue => {
                self.avoid(around.agent);
                let limit = in_words(self.kind.limit(around.policy, session.timeout));
                let why = format!("its time limit of {limit} passed, and the agent did not end it");
                Failure::new(FailureKind::Timeout, why)
            }
        };
        self.fail(session, &failure, around)
    }

    /// Stops a session's job without a live attempt. False when there is one: its agent has to be
    /// told. `points` are those of the session.
    pub fn cancel(&mut self, session: &mut Session, points: &Points, now: Timestamp) -> bool {
        let waits = match self.state {
            JobState::Queued { .. } | JobState::Later { .. } => true,
            JobState::Leased { .. } | JobState::Done => false,
        };
        if waits {
            let (Moved::Over | Moved::Requeued) = self.cancelled(session, points, now);
        }
        waits
    }

    /// Ends a job without changing its session: another job takes its place.
    pub const fn replace(&mut self) {
        self.state = JobState::Done;
    }

    fn requeue(&mut self, session: &mut Session, not_before: Timestamp) -> Moved {
        self.state = JobState::Queued { not_before };
        session.state = match (&self.kind, session.state.result().cloned()) {
            (JobKind::Verify { .. }, Some(result)) => SessionState::Claimed { result },
            (JobKind::Verify { .. } | JobKind::Session, _) => SessionState::Queued,
        };
        Moved::Requeued
    }

    /// The job waits again, because its session goes on with what a person said meanwhile. Failures so
    /// far say nothing about that.
    fn go_on(&mut self, session: &mut Session, now: Timestamp) -> Moved {
        session.go_on();
        self.state = JobState::Queued { not_before: now };
        (self.failed, self.lost, self.held, self.expired) = (0, 0, 0, 0);
        Moved::Requeued
    }

    /// Ends a session that was stopped.
    fn cancelled(&mut self, session: &mut Session, points: &Points, now: Timestamp) -> Moved {
        let state = unclaimed(session, Unclaimed::Cancelled, points);
        self.close(session, state, now)
    }

    /// Ends the session, unless a person said something that it has not been told.
    fn over(&mut self, session: &mut Session, state: SessionState, now: Timestamp) -> Moved {
        if self.kind == JobKind::Session && session.messages.waits() {
            session.state = state;
            return self.go_on(session, now);
        }
        self.close(session, state, now)
    }

    fn close(&mut self, session: &mut Session, state: SessionState, now: Timestamp) -> Moved {
        self.state = JobState::Done;
        session.state = state;
        session.rework = None;
        session.stands = None;
        session.ended_as = None;
        session.ended_at = session.state.is_terminal().then_some(now);
        Moved::Over
    }
}

/// The state of a session that claims nothing any more: that which stands, or else its work is saved
/// first, if there is any.
fn unclaimed(session: &Session, end: Unclaimed, points: &Points) -> SessionState {
    if let Some(stands) = &session.stands {
        (**stands).clone()
    } else if points.changed {
        SessionState::Saving { end }
    } else {
        end.with(None, None)
    }
}

/// The state of a session whose result verify could not decide about.
fn undecided(session: &Session, result: ResultCommit, verdict: Verdict) -> SessionState {
    match session.ended_as.clone() {
        Some(end) => end.with(Some(result), Some(verdict)),
        None => SessionState::Unverified {
            result: Some(result),
            verdict: Some(verdict),
        },
    }
}

//! Jobs: the unit that is placed and leased, and every transition of a job and its session.
//!
//! ```text
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
use crate::recovery::{self, Action, Decision, History, Incident, Jitter, Rejection};
use crate::session::{Session, SessionState, Setback, Unclaimed};
use crate::task::Policy;
use crate::time::{Timestamp, in_words};

mod baseline;
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
    /// Preferences for the next attempt's agent.
    pub affinity: Affinity,
}

/// Why a job cannot be started now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CannotStart {
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
            affinity: Affinity {
                prefer: None,
                avoid: None,
            },
        }
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
            _ if session.cancel_requested => self.end(session, Unclaimed::Cancelled, around.points, now),
            (AttemptOutcome::Claimed, JobKind::Session) => {
                match (session.pending_result.take(), &around.policy.verify.verify) {
                    (Some(result), Some(_)) => {
                        self.state = JobState::Done;
                        let commit = result.commit.clone();
                        session.rework = None;
                        session.state = SessionState::Claimed { result };
                        return Finish::Verify(commit);
                    }
                    (None, Some(_)) => {
                        let failure = Failure::new(
                            FailureKind::NoChange,
                            "the session said it was done, and sent no result",
                        );
                        self.fail(session, &failure, around)
                    }
                    (result, None) => self.over(session, SessionState::Unverified { result, verdict: None }, now),
                }
            }
            (AttemptOutcome::Verdict(verdict), JobKind::Verify { .. }) => {
                let Some(result) = session.state.result().cloned() else {
                    return Finish::Moved(self.over(session, session.state.clone(), now));
                };
                let verdict = verdict.clone();
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
                        let unverified = SessionState::Unverified {
                            result: Some(result),
                            verdict: Some(verdict.without_output()),
                        };
                        self.follow(session, failure, decision, unverified, around)
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
            EndReason::Finished => lost("the attempt ended"),
            EndReason::StopUnanswered => {
                self.avoid(around.agent);
                lost("the agent did not answer the order to stop")
            }
            EndReason::Overdue => {
                self.avoid(around.agent);
                let limit = in_words(self.kind.limit(around.policy));
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
            JobState::Queued { .. } => true,
            JobState::Leased { .. } | JobState::Done => false,
        };
        if waits {
            let (Moved::Over | Moved::Requeued) = self.end(session, Unclaimed::Cancelled, points, now);
        }
        waits
    }

    /// Ends a job without changing its session: another job takes its place.
    pub const fn replace(&mut self) {
        self.state = JobState::Done;
    }

    /// Decides about a result that failed verify.
    fn reject(
        &mut self,
        session: &mut Session,
        result: ResultCommit,
        verdict: Verdict,
        around: Circumstances<'_>,
    ) -> Finish {
        let now = around.now;
        let rejection = Rejection {
            reworked: session.reworks,
            max_reworks: around.policy.max_reworks,
            resumes: around.points.talked && session.resumes.can(0),
            last: around.points.newest.as_ref().map(|head| head.number),
            base_fails: around.base == Safety::Unsafe,
        };
        let decision = recovery::decide_rejected(rejection, now);
        let (Action::Rework { at, .. }, Some(last)) = (decision.action, around.points.newest.clone()) else {
            let verdict = verdict.without_output();
            return Finish::Moved(self.over(session, SessionState::Rejected { result, verdict }, now));
        };
        self.state = JobState::Done;
        session.note(Incident {
            at: now,
            verify: true,
            attempt: self.started,
            agent: None,
            failure: Failure::new(FailureKind::LogicError, failed(&verdict)),
            decision,
        });
        session.work_on(last, result, verdict);
        Finish::Rework(at)
    }

    fn history(&self, session: &Session, around: Circumstances<'_>) -> History {
        // Verify's workspace is not the session's: going back would not mend it.
        let own = matches!(self.kind, JobKind::Session);
        History {
            failed: self.failed,
            lost: self.lost,
            held: self.held,
            max_attempts: around.policy.max_attempts,
            turn_limits: session.turn_limits(),
            settled: own && around.points.settled.is_some(),
            half_done: own && around.points.half_done(),
            safe: own && around.points.safe.is_some(),
            reworked: session.reworks,
            max_reworks: around.policy.max_reworks.unwrap_or(0),
            fallback: self.kind == JobKind::Session && !session.fallbacks.is_empty(),
        }
    }

    fn fail(&mut self, session: &mut Session, failure: &Failure, around: Circumstances<'_>) -> Moved {
        let Circumstances { jitter, now, .. } = around;
        if session.cancel_requested || failure.kind == FailureKind::Cancelled {
            return self.end(session, Unclaimed::Cancelled, around.points, now);
        }
        // The first two say nothing about the work.
        let counter = if failure.kind == FailureKind::AgentLost {
            &mut self.lost
        } else if failure.kind == FailureKind::QuotaExhausted {
            &mut self.held
        } else {
            &mut self.failed
        };
        *counter += 1;
        let decision = recovery::decide(self.history(session, around), failure, jitter, now);
        let given_up = match (&self.kind, session.state.result().cloned()) {
            // A check that never ran says nothing about the work.
            (JobKind::Verify { .. }, Some(result)) => SessionState::Unverified {
                result: Some(result),
                verdict: Some(Verdict::errored(failure.to_string())),
            },
            (JobKind::Verify { .. } | JobKind::Session, _) => match &session.rework {
                // The result that the session reworked is still there, and was rejected.
                Some(rework) => SessionState::Rejected {
                    result: rework.result.clone(),
                    verdict: rework.verdict.clone().without_output(),
                },
                None => unclaimed(
                    Unclaimed::Failed {
                        failure: failure.clone(),
                    },
                    around.points,
                ),
            },
        };
        self.follow(session, failure.clone(), decision, given_up, around)
    }

    /// Carries out the decision about a failure, and records it with the session.
    fn follow(
        &mut self,
        session: &mut Session,
        failure: Failure,
        decision: Decision,
        given_up: SessionState,
        around: Circumstances<'_>,
    ) -> Moved {
        let Circumstances { agent, now, .. } = around;
        let (action, kind) = (decision.action, failure.kind);
        let verify = self.kind != JobKind::Session;
        let wrong = Setback::wrong(&failure);
        let mut decision = decision;
        if let Action::SwitchAdapter { .. } = action {
            let before = session.adapter.clone();
            if let Some(next) = session.hand_over() {
                decision.reason = format!("{next} takes over from {before}: {}", decision.reason);
            }
            session.setback = Some(Setback::HandedOver);
            // Failures so far say nothing about another adapter.
            (self.failed, self.held) = (0, 0);
        }
        session.note(Incident {
            at: now,
            verify,
            attempt: self.started,
            agent: session.agent.clone().filter(|_| !verify),
            failure,
            decision,
        });
        match action {
            Action::RetryCurrent { at } | Action::HoldUntil { at } | Action::SwitchAdapter { at } => {
                self.requeue(session, at)
            }
            Action::RollbackLast { at } => {
                session.checkpoints.head.clone_from(&around.points.settled);
                session.setback = Some(Setback::Unfinished);
                // This machine may have caused it.
                if kind == FailureKind::CorruptedState || self.failed > 1 {
                    self.avoid(agent);
                }
                self.requeue(session, at)
            }
            Action::RollbackSafe { at } => {
                session.checkpoints.head.clone_from(&around.points.safe);
                session.setback = Some(wrong);
                session.reworks = session.reworks.saturating_add(1);
                self.requeue(session, at)
            }
            Action::MoveAgent { at } => {
                self.avoid(agent);
                self.requeue(session, at)
            }
            // `Rework` follows only a verdict, which is not a failure of an attempt.
            Action::Rework { .. } | Action::Escalate => self.over(session, given_up, now),
        }
    }

    const fn avoid(&mut self, agent: AgentId) {
        self.affinity = Affinity {
            prefer: None,
            avoid: Some(agent),
        };
    }

    fn requeue(&mut self, session: &mut Session, not_before: Timestamp) -> Moved {
        self.state = JobState::Queued { not_before };
        session.state = match (&self.kind, session.state.result().cloned()) {
            (JobKind::Verify { .. }, Some(result)) => SessionState::Claimed { result },
            (JobKind::Verify { .. } | JobKind::Session, _) => SessionState::Queued,
        };
        Moved::Requeued
    }

    /// Ends a session that claims nothing.
    fn end(&mut self, session: &mut Session, end: Unclaimed, points: &Points, now: Timestamp) -> Moved {
        self.over(session, unclaimed(end, points), now)
    }

    fn over(&mut self, session: &mut Session, state: SessionState, now: Timestamp) -> Moved {
        self.state = JobState::Done;
        session.state = state;
        session.rework = None;
        session.ended_at = session.state.is_terminal().then_some(now);
        Moved::Over
    }
}

/// The state of a session that claims nothing any more: its work is saved first, if there is any.
fn unclaimed(end: Unclaimed, points: &Points) -> SessionState {
    if points.changed {
        SessionState::Saving { end }
    } else {
        end.with(None)
    }
}

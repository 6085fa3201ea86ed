//! What a failure, or a result that failed verify, does to a job and its session: the decision of
//! recovery is carried out, and put on record.

use super::{Affinity, Circumstances, Finish, Job, JobKind, JobState, Moved, failed, unclaimed, undecided};
use crate::checkpoint::Safety;
use crate::event::{ResultCommit, Verdict};
use crate::failure::{Failure, FailureKind};
use crate::id::AgentId;
use crate::recovery::{self, Action, Decision, History, Incident, Rejection};
use crate::session::{Session, SessionState, Setback, Unclaimed};

impl Job {
    /// Decides about a result that failed verify.
    pub(super) fn reject(
        &mut self,
        session: &mut Session,
        result: ResultCommit,
        verdict: Verdict,
        around: Circumstances<'_>,
    ) -> Finish {
        let now = around.now;
        if session.stands.is_some() {
            // Somebody asked for a verdict, not for more work.
            let verdict = verdict.without_output();
            return Finish::Moved(self.over(session, SessionState::Rejected { result, verdict }, now));
        }
        let rejection = Rejection {
            reworked: session.reworked(),
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
            expired: self.expired,
            max_attempts: around.policy.max_attempts,
            turn_limits: session.turn_limits(),
            settled: own && around.points.settled.is_some(),
            half_done: own && around.points.half_done(),
            safe: own && around.points.safe.is_some(),
            reworked: session.reworked(),
            max_reworks: around.policy.max_reworks.unwrap_or(0),
            fallback: self.kind == JobKind::Session && !session.fallbacks.is_empty(),
        }
    }

    pub(super) fn fail(&mut self, session: &mut Session, failure: &Failure, around: Circumstances<'_>) -> Moved {
        let Circumstances { jitter, now, .. } = around;
        if session.cancel_requested || failure.kind == FailureKind::Cancelled {
            return self.cancelled(session, around.points, now);
        }
        // The first three say nothing about the work.
        let counter = if matches!(failure.kind, FailureKind::AgentLost | FailureKind::MachineBusy) {
            &mut self.lost
        } else if failure.is_held() {
            &mut self.held
        } else if failure.kind == FailureKind::TokenExpired {
            &mut self.expired
        } else {
            &mut self.failed
        };
        *counter += 1;
        let decision = recovery::decide(self.history(session, around), failure, jitter, now);
        let given_up = match (&self.kind, session.state.result().cloned()) {
            // A check that never ran says nothing about the work.
            (JobKind::Verify { .. }, Some(result)) => undecided(session, result, Verdict::errored(failure.to_string())),
            (JobKind::Verify { .. } | JobKind::Session, _) => match &session.rework {
                // The result that the session reworked is still there, and was rejected.
                Some(rework) => SessionState::Rejected {
                    result: rework.result.clone(),
                    verdict: rework.verdict.clone().without_output(),
                },
                None => {
                    let end = Unclaimed::Failed {
                        failure: failure.clone(),
                    };
                    unclaimed(session, end, around.points)
                }
            },
        };
        self.follow(session, failure.clone(), decision, given_up, around)
    }

    /// Carries out the decision about a failure, and records it with the session.
    pub(super) fn follow(
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
            (self.failed, self.held, self.expired) = (0, 0, 0);
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
                let to = session.checkpoints.head.as_ref().map_or(0, |head| head.number);
                session.messages.reopen(to);
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

    pub(super) const fn avoid(&mut self, agent: AgentId) {
        self.affinity = Affinity {
            prefer: None,
            avoid: Some(agent),
        };
    }
}

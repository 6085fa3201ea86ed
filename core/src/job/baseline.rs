//! The job that verifies the base of a task, once: the result for the files that every session
//! starts from. It belongs to no session, and changes none.
//!
//! ```text
//!   Queued --start--> Leased --verdict, or tried enough--> Done
//!     ^                 |
//!     \-----------------/  (no decision, or a lost agent)
//! ```

use super::{Circumstances, Finish, Job, JobState, Moved};
use crate::attempt::EndReason;
use crate::event::{AttemptOutcome, Verdict, VerdictKind};
use crate::failure::FailureKind;
use crate::id::AgentId;
use crate::recovery::{MAX_ERRORED_VERDICTS, MAX_LOST};
use crate::time::Timestamp;

impl Job {
    /// Ends a live attempt to verify the base by its own last event.
    pub(super) fn finish_base(&mut self, outcome: &AttemptOutcome, agent: AgentId, now: Timestamp) -> Finish {
        let verdict = match outcome {
            AttemptOutcome::Verdict(verdict) => verdict.clone().without_output(),
            AttemptOutcome::Failed(failure) if failure.kind == FailureKind::Cancelled => {
                self.state = JobState::Done;
                return Finish::Moved(Moved::Over);
            }
            AttemptOutcome::Failed(failure) => Verdict::errored(failure.to_string()),
            AttemptOutcome::Claimed => {
                Verdict::errored("the agent reported an outcome of another kind of job".to_owned())
            }
        };
        if verdict.kind == VerdictKind::Errored {
            self.failed += 1;
            if self.failed < MAX_ERRORED_VERDICTS {
                // Another agent may have what this one lacked.
                self.avoid(agent);
                self.state = JobState::Queued { not_before: now };
                return Finish::Moved(Moved::Requeued);
            }
        }
        self.state = JobState::Done;
        Finish::Base(verdict)
    }

    /// Ends a live attempt to verify the base after it lost its authority.
    pub(super) fn lose_base(&mut self, reason: EndReason, around: Circumstances<'_>) -> Moved {
        let goes_on = match reason {
            // It is only stopped when its verdict is not needed any more.
            EndReason::StopUnanswered => false,
            EndReason::Overdue => {
                self.failed += 1;
                self.avoid(around.agent);
                self.failed < MAX_ERRORED_VERDICTS
            }
            EndReason::AgentRestarted
            | EndReason::AgentGone
            | EndReason::AgentSilent
            | EndReason::Restored
            | EndReason::Superseded
            | EndReason::Finished => {
                self.lost += 1;
                self.lost <= MAX_LOST
            }
        };
        if !goes_on {
            self.state = JobState::Done;
            return Moved::Over;
        }
        self.state = JobState::Queued { not_before: around.now };
        Moved::Requeued
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::{Points, Safety};
    use crate::failure::Failure;
    use crate::id::{AttemptId, JobId, SessionId, TaskId};
    use crate::job::{JobKind, Subject};
    use crate::recovery::Jitter;
    use crate::session::Session;
    use crate::task::Policy;

    const NOW: Timestamp = Timestamp::from_millis(7);

    fn agent() -> AgentId {
        AgentId::from_random(9)
    }

    fn leased() -> (Job, Session) {
        let (task, session) = (TaskId::from_random(1), SessionId::from_random(2));
        let commit = "b".repeat(40).parse().unwrap();
        let mut session = Session::new(session, task, "a".parse().unwrap(), "adapter".parse().unwrap(), None);
        let kind = JobKind::Verify { commit };
        let mut job = Job::new(JobId::from_random(3), task, Subject::Base, kind, NOW);
        job.start(AttemptId::from_random(4), &mut session, "agent", NOW)
            .unwrap();
        (job, session)
    }

    fn verdict(kind: VerdictKind) -> AttemptOutcome {
        AttemptOutcome::Verdict(Verdict {
            kind,
            ..Verdict::errored("it ran".to_owned())
        })
    }

    fn lost(job: &mut Job, reason: EndReason) -> Moved {
        let around = Circumstances {
            policy: &Policy::default(),
            points: &Points::default(),
            base: Safety::Unknown,
            agent: agent(),
            jitter: Jitter::NONE,
            now: NOW,
        };
        job.lose_base(reason, around)
    }

    #[test]
    fn an_agent_that_does_not_act_is_avoided_and_one_that_does_not_stop_ends_it() {
        let (mut job, mut session) = leased();
        assert_eq!(lost(&mut job, EndReason::Overdue), Moved::Requeued);
        assert_eq!(job.affinity.avoid, Some(agent()));
        job.start(AttemptId::from_random(5), &mut session, "agent", NOW)
            .unwrap();
        assert_eq!(lost(&mut job, EndReason::Overdue), Moved::Over);
        let (mut job, _) = leased();
        assert_eq!(lost(&mut job, EndReason::StopUnanswered), Moved::Over);
        assert_eq!(job.state, JobState::Done);
    }

    #[test]
    fn a_session_does_not_notice_that_the_base_is_checked() {
        let (_, session) = leased();
        let untouched = Session::new(
            session.id,
            session.task,
            session.name.clone(),
            session.adapter.clone(),
            None,
        );
        assert_eq!(session, untouched);
    }

    #[test]
    fn the_first_decision_counts_and_what_is_none_is_tried_elsewhere_once() {
        for kind in [VerdictKind::Passed, VerdictKind::Failed] {
            let (mut job, _) = leased();
            let Finish::Base(found) = job.finish_base(&verdict(kind), agent(), NOW) else {
                panic!("{kind:?} is a decision");
            };
            assert_eq!((found.kind, job.state), (kind, JobState::Done));
        }
        let crashed = AttemptOutcome::Failed(Failure::new(FailureKind::DiskFull, "no room"));
        for undecided in [verdict(VerdictKind::Errored), crashed, AttemptOutcome::Claimed] {
            let (mut job, mut session) = leased();
            assert_eq!(
                job.finish_base(&undecided, agent(), NOW),
                Finish::Moved(Moved::Requeued)
            );
            assert_eq!(job.affinity.avoid, Some(agent()));
            job.start(AttemptId::from_random(5), &mut session, "agent", NOW)
                .unwrap();
            let Finish::Base(found) = job.finish_base(&undecided, agent(), NOW) else {
                panic!("it was tried enough");
            };
            assert_eq!((found.kind, job.state), (VerdictKind::Errored, JobState::Done));
        }
    }

    #[test]
    fn a_stopped_check_says_nothing_and_a_lost_one_is_repeated_a_few_times() {
        let (mut job, _) = leased();
        let stopped = AttemptOutcome::Failed(Failure::new(FailureKind::Cancelled, "stopped"));
        assert_eq!(job.finish_base(&stopped, agent(), NOW), Finish::Moved(Moved::Over));
        let (mut job, mut session) = leased();
        for n in 0..MAX_LOST {
            assert_eq!(lost(&mut job, EndReason::AgentGone), Moved::Requeued);
            job.start(AttemptId::from_random(u128::from(n)), &mut session, "agent", NOW)
                .unwrap();
        }
        assert_eq!(lost(&mut job, EndReason::AgentGone), Moved::Over);
        assert_eq!(job.state, JobState::Done);
    }
}

//! The consequences of an attempt's end for its job, its session and its task.

use kage_core::attempt::{Attempt, EndReason};
use kage_core::base_verdict::{self, BaseKey, KeptVerdict};
use kage_core::checkpoint::Safety;
use kage_core::event::{AttemptOutcome, Verdict, VerdictKind};
use kage_core::id::JobId;
use kage_core::job::{Affinity, Circumstances, Finish, Job, JobKind, Moved, Subject};
use kage_core::recovery::Jitter;
use kage_core::session::{Session, SessionStateKind};
use kage_core::time::Timestamp;

use super::{calls, points_of, settle, turns};
use crate::store::rows::{Failed, JobRow, Rows, TaskHead};

/// The rows that the end of an attempt concerns.
pub(super) struct End<'a> {
    pub(super) attempt: &'a mut Attempt,
    pub(super) row: &'a mut JobRow,
    pub(super) session: &'a mut Session,
    pub(super) before: SessionStateKind,
    pub(super) head: &'a mut TaskHead,
}

impl End<'_> {
    /// Ends the attempt by its own last event, whose time is `said`.
    pub(super) fn finish(
        mut self,
        rows: &mut dyn Rows,
        (outcome, said): (&AttemptOutcome, Timestamp),
        next_job: JobId,
        jitter: Jitter,
        now: Timestamp,
    ) -> Result<(), Failed> {
        self.attempt.end(EndReason::Finished, now);
        self.stop_clock(Some(said), now);
        self.close_calls(rows, now)?;
        let agent = self.attempt.agent;
        self.judge(rows, outcome)?;
        let points = points_of(rows, self.session)?;
        let around = Circumstances {
            policy: &self.head.policy,
            points: &points,
            base: self.head.base_safety(),
            agent,
            jitter,
            now,
        };
        let next = match self.row.job.finish(self.session, outcome, around) {
            Finish::Moved(moved) => return self.moved(rows, moved, said_by(outcome), now),
            Finish::Verify(commit) => {
                let kind = JobKind::Verify { commit };
                let mut job = Job::new(next_job, self.head.id, Subject::Session(self.session.id), kind, now);
                // The agent that did the work should not judge it.
                job.affinity = Affinity {
                    prefer: None,
                    avoid: Some(agent),
                };
                job
            }
            Finish::Rework(at) => Job::again(next_job, self.session, at),
            Finish::Base(verdict) => {
                self.judge_base(rows, verdict, now)?;
                return self.moved(rows, Moved::Over, None, now);
            }
        };
        let next = JobRow::of(next, self.session, &self.head.policy, now);
        rows.insert_job(&next)?;
        self.moved(rows, Moved::Over, None, now)
    }

    /// True when the job is about the session, which otherwise is none of its business.
    fn of_session(&self) -> bool {
        self.row.job.subject != Subject::Base
    }

    /// Adds the time that the attempt ran to that of its session, unless it was a check of the base.
    fn stop_clock(&mut self, said: Option<Timestamp>, now: Timestamp) {
        if self.of_session() {
            self.session.worked.stop(self.attempt.ran_until(said, now));
        }
    }

    /// Books the calls that nothing more is heard of.
    fn close_calls(&mut self, rows: &mut dyn Rows, now: Timestamp) -> Result<(), Failed> {
        if !self.of_session() {
            return Ok(());
        }
        calls::close(rows, self.head, self.attempt, self.session, now)
    }

    /// Saves the verdict with the checkpoints that have the files of the checked result.
    fn judge(&self, rows: &mut dyn Rows, outcome: &AttemptOutcome) -> Result<(), Failed> {
        let result = self.session.state.result().filter(|_| self.of_session());
        let tree = result.and_then(|result| result.tree.as_ref());
        if let (AttemptOutcome::Verdict(verdict), JobKind::Verify { .. }, Some(tree)) =
            (outcome, &self.row.job.kind, tree)
            && verdict.kind != VerdictKind::Errored
        {
            rows.save_safety(self.head.id, tree, verdict.kind.safety())?;
        }
        Ok(())
    }

    /// Saves the verdict on the base, also with the checkpoints that have its files, and for later
    /// tasks.
    fn judge_base(&mut self, rows: &mut dyn Rows, verdict: Verdict, now: Timestamp) -> Result<(), Failed> {
        let safety = verdict.kind.safety();
        if let Some(base) = &self.head.base {
            let key = BaseKey::of(
                &self.head.project,
                base,
                self.head.names.as_ref(),
                &self.head.policy.verify,
            );
            if let Some(kept) = KeptVerdict::of(key, self.attempt.agent, &verdict, now) {
                rows.put_base_verdict(&kept)?;
                rows.forget_base_verdicts(base_verdict::useless_before(now))?;
            }
        }
        self.head.baseline = Some(verdict);
        let Some(base) = self.head.base.as_ref().filter(|_| safety != Safety::Unknown) else {
            return Ok(());
        };
        for tree in rows.base_trees(self.head.id, base)? {
            rows.save_safety(self.head.id, &tree, safety)?;
        }
        Ok(())
    }

    /// Ends the attempt because its agent lost its authority.
    pub(super) fn lose(mut self, rows: &mut dyn Rows, reason: EndReason, now: Timestamp) -> Result<(), Failed> {
        self.stop_clock(None, now);
        self.close_calls(rows, now)?;
        let points = points_of(rows, self.session)?;
        let around = Circumstances {
            policy: &self.head.policy,
            points: &points,
            base: self.head.base_safety(),
            agent: self.attempt.agent,
            // They are tried again at once: there is no wait to spread.
            jitter: Jitter::NONE,
            now,
        };
        let moved = self.row.job.lose(self.session, reason, around);
        self.moved(rows, moved, None, now)
    }

    /// `said` is the verdict by which it ended.
    fn moved(
        &mut self,
        rows: &mut dyn Rows,
        moved: Moved,
        said: Option<&Verdict>,
        now: Timestamp,
    ) -> Result<(), Failed> {
        if moved == Moved::Requeued {
            if self.of_session() {
                // Another one may have taken over.
                self.row.adapter.clone_from(&self.session.adapter);
            }
            self.row.queued_at = now;
        }
        rows.save_job(self.row)?;
        if !self.of_session() {
            return Ok(());
        }
        rows.save_session(self.session)?;
        self.head.session_moved(self.before, self.session.state.kind());
        if self.session.state.is_terminal() {
            turns::after(rows, self.head, self.session, said, now)?;
            settle(rows, self.head, now)?;
        }
        Ok(())
    }
}

const fn said_by(outcome: &AttemptOutcome) -> Option<&Verdict> {
    match outcome {
        AttemptOutcome::Verdict(verdict) => Some(verdict),
        AttemptOutcome::Claimed | AttemptOutcome::Failed(_) => None,
    }
}

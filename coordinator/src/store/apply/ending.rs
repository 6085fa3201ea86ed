//! What the end of an attempt means for its job, its session and its task.

use kage_core::attempt::{Attempt, EndReason};
use kage_core::event::AttemptOutcome;
use kage_core::id::JobId;
use kage_core::job::{Affinity, Finish, Job, Moved};
use kage_core::recovery::Jitter;
use kage_core::session::Session;
use kage_core::time::Timestamp;

use super::{settle, waiting};
use crate::store::command::{Changes, EndedAttempt};
use crate::store::rows::{Failed, JobRow, Rows, TaskHead};

/// The rows that the end of an attempt concerns.
pub(super) struct End<'a> {
    pub(super) attempt: &'a mut Attempt,
    pub(super) row: &'a mut JobRow,
    pub(super) session: &'a mut Session,
    pub(super) head: &'a mut TaskHead,
}

impl End<'_> {
    /// Ends the attempt by its own last event.
    pub(super) fn finish(
        mut self,
        rows: &mut dyn Rows,
        outcome: &AttemptOutcome,
        next_job: JobId,
        jitter: Jitter,
        now: Timestamp,
        changes: &mut Changes,
    ) -> Result<(), Failed> {
        self.attempt.end(EndReason::Finished, now);
        let agent = self.attempt.agent;
        let finish = self
            .row
            .job
            .finish(&self.head.policy, self.session, outcome, agent, jitter, now);
        match finish {
            Finish::Moved(moved) => self.moved(rows, moved, EndReason::Finished, now, changes),
            Finish::Then(kind) => {
                let mut job = Job::new(next_job, self.head.id, self.session.id, kind, now);
                // Whoever did the work had best not judge it.
                job.affinity = Affinity {
                    prefer: None,
                    avoid: Some(agent),
                };
                let next = JobRow {
                    job,
                    adapter: self.row.adapter.clone(),
                    requirements: self.row.requirements.clone(),
                    priority: self.row.priority,
                    queued_at: now,
                };
                rows.insert_job(&next)?;
                changes.queued.extend(waiting(&next, &self.head.project));
                self.moved(rows, Moved::Over, EndReason::Finished, now, changes)
            }
        }
    }

    /// Ends the attempt because its agent lost its authority.
    pub(super) fn lose(
        mut self,
        rows: &mut dyn Rows,
        reason: EndReason,
        now: Timestamp,
        changes: &mut Changes,
    ) -> Result<(), Failed> {
        let agent = self.attempt.agent;
        let moved = self.row.job.lose(&self.head.policy, self.session, reason, agent, now);
        self.moved(rows, moved, reason, now, changes)
    }

    fn moved(
        &mut self,
        rows: &mut dyn Rows,
        moved: Moved,
        reason: EndReason,
        now: Timestamp,
        changes: &mut Changes,
    ) -> Result<(), Failed> {
        changes.ended.push(EndedAttempt {
            attempt: self.attempt.id,
            agent: self.attempt.agent,
            reason,
        });
        if moved == Moved::Requeued {
            self.row.queued_at = now;
            changes.queued.extend(waiting(self.row, &self.head.project));
        }
        rows.save_job(self.row)?;
        rows.save_session(self.session)?;
        if self.session.state.is_terminal() {
            settle(rows, self.head, now)?;
        }
        Ok(())
    }
}

//! Checkpoints: going back to one, requesting one, and the result that is made of the last one.

use kage_core::attempt::EndReason;
use kage_core::checkpoint::{Head, WorktreeChoice};
use kage_core::id::{SessionId, TaskId};
use kage_core::job::{Job, JobState, Subject};
use kage_core::task::TaskState;
use kage_core::time::Timestamp;

use super::{Command, attempt_of, calls, earlier_reply, not_found, remember, settle, turns};
use crate::store::command::{PrepareRestore, Request, RequestCheckpoint, RestorePrepared, RestoreSession, SaveWork};
use crate::store::error::EngineError;
use crate::store::rows::{Failed, JobRow, Rows};
use crate::store::unit::Key;

const RESTORE_SESSION: &str = "restore_session";
const PREPARE_RESTORE: &str = "prepare_restore";
const CREATE_CHECKPOINT: &str = "create_checkpoint";

impl Command for RestoreSession {
    type Outcome = ();

    fn reads(&self) -> Vec<Key> {
        vec![
            Key::request(RESTORE_SESSION, &self.request),
            Key::Session(self.task, self.session),
            Key::Checkpoints(self.task, self.session),
            Key::OpenJobs(self.task),
        ]
    }

    fn apply(self, rows: &mut dyn Rows) -> Result<(), Failed> {
        if earlier_reply(rows, RESTORE_SESSION, &self.request)?.is_some() {
            return Ok(());
        }
        let mut head = rows.task(self.task)?.ok_or_else(|| not_found("task", self.task))?;
        let session = rows.session(self.task, self.session)?;
        let mut session = session.ok_or_else(|| not_found("session", self.session))?;
        let checkpoints = rows.checkpoints(self.task, self.session)?;
        let target = checkpoints.iter().find(|found| found.number == self.checkpoint);
        let mut target = Head::of(target.ok_or_else(|| not_found("checkpoint", self.checkpoint))?);
        let mut prefer = None;

        for mut row in rows.open_jobs(self.task)? {
            if row.job.subject != Subject::Session(self.session) {
                continue;
            }
            match row.job.state {
                JobState::Queued { .. } | JobState::Later { .. } | JobState::Done => {}
                JobState::Leased { attempt } => {
                    let mut attempt = attempt_of(rows, attempt, &row.job)?;
                    attempt.end(EndReason::Restored, self.now);
                    session.worked.stop(attempt.ran_until(None, self.now));
                    calls::close(rows, &head, &attempt, &mut session, self.now)?;
                    rows.save_attempt(&attempt)?;
                    // Its worktree is there.
                    prefer = Some(attempt.agent);
                    target.worktree = if self.complete {
                        WorktreeChoice::PreviousCleaned
                    } else {
                        WorktreeChoice::Previous
                    };
                }
            }
            row.job.replace();
            rows.save_job(&row)?;
        }
        let before = session.state.kind();
        session.send_back(target);
        let mut job = Job::again(self.next_job, &session, self.now);
        job.affinity.prefer = prefer;
        let next = JobRow::of(job, &session, &head.policy, self.now);
        rows.insert_job(&next)?;
        rows.save_session(&session)?;
        head.session_moved(before, session.state.kind());
        head.state = TaskState::Running;
        head.ended_at = None;
        // What was selected is no result of it any more.
        head.selection.take_if(|selection| selection.session == self.session);
        rows.save_task(&head)?;
        remember(rows, RESTORE_SESSION, self.request, String::new(), self.now)
    }
}

impl Command for SaveWork {
    type Outcome = ();

    fn reads(&self) -> Vec<Key> {
        vec![Key::Session(self.task, self.session), Key::OpenJobs(self.task)]
    }

    fn apply(self, rows: &mut dyn Rows) -> Result<(), Failed> {
        let (Some(mut head), Some(mut session)) = (rows.task(self.task)?, rows.session(self.task, self.session)?)
        else {
            return Ok(());
        };
        let (before, stands) = (session.state.kind(), session.checkpoints.head.as_ref());
        // It was sent back meanwhile, and may even have ended again since.
        if stands.map(|stands| &stands.commit) != Some(&self.of) {
            return Ok(());
        }
        let unfinished = match self.made {
            Ok(unfinished) => unfinished,
            Err(why) => {
                let text = format!("warning: no result could be made of its unfinished work: {why}");
                session.activity = Some((text, self.now));
                None
            }
        };
        if !session.saved(unfinished, self.now) {
            return Ok(());
        }
        rows.save_session(&session)?;
        head.session_moved(before, session.state.kind());
        turns::after(rows, &mut head, &session, None, self.now)?;
        settle(rows, &mut head, self.now)?;
        rows.save_task(&head)
    }
}

impl Command for PrepareRestore {
    type Outcome = RestorePrepared;

    fn reads(&self) -> Vec<Key> {
        vec![
            Key::request(RESTORE_SESSION, &self.request),
            Key::request(PREPARE_RESTORE, &self.request),
            Key::Session(self.task, self.session),
        ]
    }

    fn apply(self, rows: &mut dyn Rows) -> Result<RestorePrepared, Failed> {
        if earlier_reply(rows, RESTORE_SESSION, &self.request)?.is_some() {
            return Ok(RestorePrepared::Done);
        }
        let after = last_checkpoint(rows, PREPARE_RESTORE, self.request, (self.task, self.session), self.now)?;
        Ok(RestorePrepared::Saves { after })
    }
}

impl Command for RequestCheckpoint {
    type Outcome = u32;

    fn reads(&self) -> Vec<Key> {
        vec![
            Key::request(CREATE_CHECKPOINT, &self.request),
            Key::Session(self.task, self.session),
        ]
    }

    fn apply(self, rows: &mut dyn Rows) -> Result<u32, Failed> {
        last_checkpoint(
            rows,
            CREATE_CHECKPOINT,
            self.request,
            (self.task, self.session),
            self.now,
        )
    }
}

/// The number of the session's last checkpoint when this call came for the first time.
fn last_checkpoint(
    rows: &mut dyn Rows,
    method: &'static str,
    request: Request,
    (task, session): (TaskId, SessionId),
    now: Timestamp,
) -> Result<u32, Failed> {
    if let Some(reply) = earlier_reply(rows, method, &request)? {
        return reply.parse().map_err(|source| {
            Failed::Engine(EngineError::Corrupt {
                what: "reply",
                source: Box::new(source),
            })
        });
    }
    let found = rows.session(task, session)?;
    let last = found.ok_or_else(|| not_found("session", session))?.checkpoints.taken;
    remember(rows, method, request, last.to_string(), now)?;
    Ok(last)
}

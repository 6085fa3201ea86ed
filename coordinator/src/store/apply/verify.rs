//! Verify of a result that nothing checked, because somebody asks for it: a job as after a claim, for
//! a session that had ended. Its task runs until there is a verdict.

use kage_core::job::{Job, JobKind, Subject};
use kage_core::task::TaskState;

use super::{Command, earlier_reply, not_found, remember};
use crate::store::command::VerifyResult;
use crate::store::error::StoreError;
use crate::store::rows::{Failed, JobRow, Rows};
use crate::store::unit::Key;

const VERIFY_RESULT: &str = "verify_result";

impl Command for VerifyResult {
    type Outcome = ();

    fn reads(&self) -> Vec<Key> {
        vec![
            Key::request(VERIFY_RESULT, &self.request),
            Key::Task(self.task),
            Key::Session(self.task, self.session),
        ]
    }

    fn apply(self, rows: &mut dyn Rows) -> Result<(), Failed> {
        if earlier_reply(rows, VERIFY_RESULT, &self.request)?.is_some() {
            return Ok(());
        }
        let mut head = rows.task(self.task)?.ok_or_else(|| not_found("task", self.task))?;
        let session = rows.session(self.task, self.session)?;
        let mut session = session.ok_or_else(|| not_found("session", self.session))?;
        if head.policy.verify.verify.is_none() {
            return Err(Failed::Refused(StoreError::NoVerify { task: self.task }));
        }
        let before = session.state.kind();
        let commit = session.verify_when_asked().map_err(|why| {
            let session = session.name.clone();
            Failed::Refused(StoreError::CannotVerify { session, why })
        })?;
        let subject = Subject::Session(session.id);
        let job = Job::new(self.next_job, self.task, subject, JobKind::Verify { commit }, self.now);
        rows.insert_job(&JobRow::of(job, &session, &head.policy, self.now))?;
        rows.save_session(&session)?;
        head.session_moved(before, session.state.kind());
        head.state = TaskState::Running;
        head.ended_at = None;
        rows.save_task(&head)?;
        remember(rows, VERIFY_RESULT, self.request, String::new(), self.now)
    }
}

//! What people say to sessions: messages, and forks that go on from a session's files.

use kage_core::attempt::EndReason;
use kage_core::checkpoint::Checkpoint;
use kage_core::fallback::NobodyCan;
use kage_core::id::SessionId;
use kage_core::job::{Job, JobKind, JobState, Subject};
use kage_core::session::{CannotAnswer, Sent, Session, Setback};
use kage_core::task::{MAX_SESSIONS, TaskState};
use kage_core::time::Timestamp;

use super::{Command, attempt_of, earlier_reply, not_found, remember};
use crate::store::command::{AnswerQuestion, ForkSession, SendMessage};
use crate::store::error::{EngineError, StoreError};
use crate::store::rows::{Failed, JobRow, Rows, TaskHead};
use crate::store::unit::Key;

const SEND_MESSAGE: &str = "send_message";
const FORK_SESSION: &str = "fork_session";

impl Command for SendMessage {
    /// The number of the message.
    type Outcome = u32;

    fn reads(&self) -> Vec<Key> {
        vec![
            Key::request(SEND_MESSAGE, &self.request),
            Key::Session(self.task, self.session),
            Key::OpenJobs(self.task),
        ]
    }

    fn apply(self, rows: &mut dyn Rows) -> Result<u32, Failed> {
        if let Some(reply) = earlier_reply(rows, SEND_MESSAGE, &self.request)? {
            return read(&reply);
        }
        let mut head = rows.task(self.task)?.ok_or_else(|| not_found("task", self.task))?;
        let session = rows.session(self.task, self.session)?;
        let mut session = session.ok_or_else(|| not_found("session", self.session))?;
        let before = session.state.kind();
        let by = self.request.principal.clone();
        let (number, sent) = session
            .send(self.text, by, self.now)
            .map_err(|cannot| Failed::Refused(StoreError::CannotSend(cannot)))?;
        match sent {
            Sent::AfterAttempt => {}
            Sent::WithNextAttempt => {
                let open = rows.open_jobs(self.task)?;
                for mut row in open.into_iter().filter(|row| is_of(row, self.session)) {
                    // As it waited, but no offer of it counts any more.
                    let next = JobRow {
                        job: Job {
                            id: self.next_job,
                            ..row.job.clone()
                        },
                        ..row.clone()
                    };
                    row.job.replace();
                    rows.save_job(&row)?;
                    rows.insert_job(&next)?;
                }
            }
            Sent::GoesOn => {
                end_jobs(rows, &mut session, self.now)?;
                let job = Job::again(self.next_job, &session, self.now);
                rows.insert_job(&JobRow::of(job, &session, &head.policy, self.now))?;
            }
        }
        rows.save_session(&session)?;
        if sent == Sent::GoesOn {
            head.session_moved(before, session.state.kind());
            reopen(&mut head);
            // What was selected is no result of it any more.
            head.selection.take_if(|selection| selection.session == self.session);
        }
        // Whoever watches the task sees what was said.
        rows.save_task(&head)?;
        remember(rows, SEND_MESSAGE, self.request, number.to_string(), self.now)?;
        Ok(number)
    }
}

impl Command for AnswerQuestion {
    /// The session with the answer.
    type Outcome = Box<Session>;

    fn reads(&self) -> Vec<Key> {
        vec![Key::Task(self.task), Key::Session(self.task, self.session)]
    }

    fn apply(self, rows: &mut dyn Rows) -> Result<Box<Session>, Failed> {
        let head = rows.task(self.task)?.ok_or_else(|| not_found("task", self.task))?;
        let session = rows.session(self.task, self.session)?;
        let mut session = session.ok_or_else(|| not_found("session", self.session))?;
        let number = self.number;
        let answered = match session.open_questions() {
            [] => Err(CannotAnswer::NotOpen(number)),
            [_, ..] => session.questions.answer(number, self.answer),
        };
        answered.map_err(|cannot| Failed::Refused(StoreError::CannotAnswer(cannot)))?;
        rows.save_session(&session)?;
        rows.save_task(&head)?;
        Ok(Box::new(session))
    }
}

impl Command for ForkSession {
    /// The id of the new session.
    type Outcome = SessionId;

    fn reads(&self) -> Vec<Key> {
        vec![
            Key::request(FORK_SESSION, &self.request),
            Key::Task(self.task),
            Key::Session(self.task, self.session),
            Key::Checkpoints(self.task, self.session),
        ]
    }

    fn apply(self, rows: &mut dyn Rows) -> Result<SessionId, Failed> {
        if let Some(reply) = earlier_reply(rows, FORK_SESSION, &self.request)? {
            return read(&reply);
        }
        let mut head = rows.task(self.task)?.ok_or_else(|| not_found("task", self.task))?;
        let from = rows.session(self.task, self.session)?;
        let from = from.ok_or_else(|| not_found("session", self.session))?;
        let sessions: u32 = head.standing.values().sum();
        let sessions = sessions as usize;
        if sessions != self.beside {
            return Err(Failed::Refused(StoreError::SessionsChanged { task: self.task }));
        }
        if sessions >= MAX_SESSIONS {
            return Err(Failed::Refused(StoreError::TooManySessions { task: self.task }));
        }
        let run = self.lacks.of_all().map(|lacks| NobodyCan::Run {
            session: self.next.name.clone(),
            lacks: lacks.to_owned(),
        });
        let verify = self.lacks_verify.map(|lacks| NobodyCan::Verify { lacks });
        if let (Some(nobody), false) = (run.or(verify), self.waits_for_agent) {
            return Err(Failed::Refused(StoreError::NoAgent(nobody)));
        }
        let all = rows.checkpoints(self.task, self.session)?;
        let at = begins_at(&from, &all, self.checkpoint)?;
        let by = self.request.principal.clone();
        let (mut fork, own) = from.fork(at, &all, self.next, self.now);
        for _ in 0..self.lacks.passed_over() {
            fork.hand_over();
            fork.setback = Some(Setback::HandedOver);
        }
        if let Some(text) = self.text {
            let (_, Sent::AfterAttempt | Sent::WithNextAttempt | Sent::GoesOn) = fork
                .send(text, by, self.now)
                .map_err(|cannot| Failed::Refused(StoreError::CannotSend(cannot)))?;
        }
        rows.insert_session(&fork, sessions)?;
        for checkpoint in &own {
            rows.insert_checkpoint(self.task, checkpoint)?;
        }
        let job = Job::again(self.next_job, &fork, self.now);
        rows.insert_job(&JobRow::of(job, &fork, &head.policy, self.now))?;
        *head.standing.entry(fork.state.kind()).or_default() += 1;
        reopen(&mut head);
        rows.save_task(&head)?;
        remember(rows, FORK_SESSION, self.request, fork.id.to_string(), self.now)?;
        Ok(fork.id)
    }
}

/// The checkpoint of this number, or the one that the session stands on.
fn begins_at<'a>(from: &Session, all: &'a [Checkpoint], asked: Option<u32>) -> Result<&'a Checkpoint, Failed> {
    let stands = from.checkpoints.head.as_ref().map(|head| head.number);
    let Some(number) = asked.or(stands) else {
        return Err(Failed::Refused(StoreError::NothingToForkFrom {
            session: from.name.clone(),
        }));
    };
    let found = all.iter().find(|checkpoint| checkpoint.number == number);
    found.ok_or_else(|| not_found("checkpoint", number))
}

/// Ends the jobs of a session that goes on: what was to be verified is not its result any more.
fn end_jobs(rows: &mut dyn Rows, session: &mut Session, now: Timestamp) -> Result<(), Failed> {
    let open = rows.open_jobs(session.task)?;
    for mut row in open.into_iter().filter(|row| is_of(row, session.id)) {
        match row.job.state {
            JobState::Queued { .. } | JobState::Later { .. } | JobState::Done => {}
            JobState::Leased { attempt } => {
                let mut attempt = attempt_of(rows, attempt, &row.job)?;
                attempt.end(EndReason::Superseded, now);
                session.worked.stop(attempt.ran_until(None, now));
                rows.save_attempt(&attempt)?;
            }
        }
        debug_assert!(row.job.kind != JobKind::Session, "a session that goes on does not run");
        row.job.replace();
        rows.save_job(&row)?;
    }
    Ok(())
}

fn is_of(row: &JobRow, session: SessionId) -> bool {
    row.job.subject == Subject::Session(session)
}

/// A session of the task waits again.
fn reopen(head: &mut TaskHead) {
    head.state = TaskState::Running;
    head.ended_at = None;
}

/// What an earlier call was told.
fn read<T: std::str::FromStr>(reply: &str) -> Result<T, Failed>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    reply.parse().map_err(|source: T::Err| {
        Failed::Engine(EngineError::Corrupt {
            what: "reply",
            source: Box::new(source),
        })
    })
}

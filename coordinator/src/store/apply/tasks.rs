//! Tasks: created with their sessions and jobs, and cancelled.

use kage_core::base_verdict::{self, BaseKey, KeptVerdict};
use kage_core::contain::Tier;
use kage_core::id::{Digest, TokenId};
use kage_core::job::{Job, JobKind, JobState, Subject};
use kage_core::task::Selection;
use kage_core::time::Timestamp;

use super::{Command, contexts, drop_baseline, earlier_reply, not_found, remember, settle, turns};
use crate::store::command::{CancelTask, CreateTask, Created, DropTask, SelectResult};
use crate::store::error::{EngineError, StoreError};
use crate::store::rows::{Failed, JobRow, Rows, TaskHead};
use crate::store::unit::Key;

/// How principals are named: see `Principal::name` of the door.
const OWNER: &str = "owner";
const TOKEN: &str = "token:";

const CREATE_TASK: &str = "create_task";
const DROP_TASK: &str = "drop_task";
const CANCEL_TASK: &str = "cancel_task";
const SELECT_RESULT: &str = "select_result";

impl Command for CreateTask {
    type Outcome = Created;

    fn reads(&self) -> Vec<Key> {
        let context = self.spec.context_base.clone();
        let context = context.map(|digest| Key::Context(self.spec.project.clone(), digest));
        let request = Key::request(CREATE_TASK, &self.request);
        let kept = self.base_key().map(Key::BaseVerdicts);
        let token = token_of(&self.request.principal).map(Key::PersonToken);
        context.into_iter().chain(kept).chain(token).chain([request]).collect()
    }

    fn apply(self, rows: &mut dyn Rows) -> Result<Created, Failed> {
        let sessions = self.begun();
        let mut task = self.new_task();
        let base_key = self.base_key();
        let principal = self.request.principal.clone();
        let Self {
            request,
            task: id,
            spec: _,
            origin: _,
            sessions: ids,
            baseline,
            machines,
            lacks,
            waits_for_agent,
            queue_full,
            project_full,
            now,
        } = self;
        if let Some(reply) = earlier_reply(rows, CREATE_TASK, &request)? {
            let task = reply.parse().map_err(|source| EngineError::Corrupt {
                what: "reply",
                source: Box::new(source),
            })?;
            return Ok(Created {
                task,
                repeated: true,
                baseline: None,
            });
        }
        if let Some(waiting) = queue_full {
            let project = task.spec.project;
            return Err(Failed::Refused(StoreError::QueueFull { project, waiting }));
        }
        if let Some(words) = project_full {
            return Err(Failed::Refused(StoreError::ProjectFull { words }));
        }
        if let (Some(nobody), false) = (task.spec.nobody_can(&lacks), waits_for_agent) {
            return Err(Failed::Refused(StoreError::NoAgent(nobody)));
        }
        let (Some(first), true) = (sessions.first(), ids.len() == task.spec.assignments.len()) else {
            return Err(Failed::Refused(StoreError::SessionCount {
                task: id,
                assignments: task.spec.assignments.len(),
                sessions: ids.len(),
            }));
        };
        let kept = match &base_key {
            Some(key) => {
                let least = task.spec.policy.contain;
                kept_verdict(rows, key, (least, &machines), now)?
            }
            None => None,
        };
        if let Some(kept) = &kept {
            kept.take(&mut task);
        }
        let head = TaskHead {
            person: person(rows, &principal)?,
            ..TaskHead::new(&task, first.id, &sessions)
        };
        rows.insert_task(&head, &task.spec)?;
        contexts::count_use(rows, &task)?;
        for (position, (session, (_, job))) in sessions.iter().zip(ids).enumerate() {
            rows.insert_session(session, position)?;
            let work = Job::new(job, id, Subject::Session(session.id), JobKind::Session, now);
            let work = match task.spec.policy.course.waits_for_turn(position) {
                true => work.for_later(u32::try_from(position).unwrap_or(u32::MAX)),
                false => work,
            };
            let row = JobRow::of(work, session, &task.spec.policy, now);
            rows.insert_job(&row)?;
        }
        let check = baseline.filter(|_| kept.is_none());
        if let (Some(job), Some(commit)) = (check, task.spec.checked_base().cloned()) {
            let check = Job::new(job, id, Subject::Base, JobKind::Verify { commit }, now);
            let row = JobRow::of(check, first, &task.spec.policy, now);
            rows.insert_job(&row)?;
        }
        remember(rows, CREATE_TASK, request, id.to_string(), now)?;
        Ok(Created {
            task: id,
            repeated: false,
            baseline: kept,
        })
    }
}

/// The verdict on a base that a new task takes. What an agent said that is shut out now is not
/// believed, and what ran in a lower tier than the task demands is none for it.
fn kept_verdict(
    rows: &mut dyn Rows,
    key: &BaseKey,
    (least, machines): (Tier, &[Digest]),
    now: Timestamp,
) -> Result<Option<KeptVerdict>, Failed> {
    let mut believed = Vec::new();
    for kept in rows.base_verdicts(key)? {
        let enrolment = rows.enrolment(kept.agent)?;
        let is_believed = enrolment.is_none_or(|agent| agent.revoked_at.is_none());
        if is_believed && kept.verdict.contained >= least {
            believed.push(kept);
        }
    }
    Ok(base_verdict::usable(believed, machines, now))
}

impl Command for DropTask {
    type Outcome = ();

    fn reads(&self) -> Vec<Key> {
        let request = self.request.iter().map(|request| Key::request(DROP_TASK, request));
        request.chain([Key::OpenJobs(self.task)]).collect()
    }

    fn apply(self, rows: &mut dyn Rows) -> Result<(), Failed> {
        if let Some(request) = &self.request
            && earlier_reply(rows, DROP_TASK, request)?.is_some()
        {
            return Ok(());
        }
        let head = rows.task(self.task)?.ok_or_else(|| not_found("task", self.task))?;
        let open = rows.open_jobs(self.task)?;
        // The check of its base may still wait for a slot, which does not matter.
        let worked_on =
            |row: &JobRow| row.job.subject != Subject::Base || matches!(row.job.state, JobState::Leased { .. });
        if !head.state.is_terminal() || open.iter().any(worked_on) {
            return Err(Failed::Refused(StoreError::TaskOpen { task: self.task }));
        }
        rows.remove_task(self.task)?;
        if let Some(request) = self.request {
            remember(rows, DROP_TASK, request, String::new(), self.now)?;
        }
        Ok(())
    }
}

/// The token that a principal is.
fn token_of(principal: &str) -> Option<TokenId> {
    principal.strip_prefix(TOKEN)?.parse().ok()
}

/// The name of the person to whom the token of a principal was given. `None`: it has none, or one that would be
/// taken for another principal.
fn person(rows: &mut dyn Rows, principal: &str) -> Result<Option<String>, Failed> {
    let Some(token) = token_of(principal) else {
        return Ok(None);
    };
    let name = rows.person_token(token)?.map(|token| token.name);
    Ok(name.filter(|name| !name.is_empty() && name != OWNER && !name.starts_with(TOKEN)))
}

impl Command for CancelTask {
    type Outcome = ();

    fn reads(&self) -> Vec<Key> {
        vec![Key::request(CANCEL_TASK, &self.request), Key::OpenJobs(self.task)]
    }

    fn apply(self, rows: &mut dyn Rows) -> Result<(), Failed> {
        if earlier_reply(rows, CANCEL_TASK, &self.request)?.is_some() {
            return Ok(());
        }
        let mut head = rows.task(self.task)?.ok_or_else(|| not_found("task", self.task))?;
        let mut moved = false;
        for row in rows.open_jobs(self.task)? {
            if row.job.subject != Subject::Base {
                moved |= turns::stop_session(rows, &mut head, row, None, self.now)?;
            }
        }
        let settled = settle(rows, &mut head, self.now)?;
        if !settled {
            drop_baseline(rows, self.task, self.now)?;
        }
        if settled || moved {
            rows.save_task(&head)?;
        }
        remember(rows, CANCEL_TASK, self.request, String::new(), self.now)
    }
}

impl Command for SelectResult {
    type Outcome = ();

    fn reads(&self) -> Vec<Key> {
        let session = self.session.map(|session| Key::Session(self.task, session));
        let request = Key::request(SELECT_RESULT, &self.request);
        [request, Key::Task(self.task)].into_iter().chain(session).collect()
    }

    fn apply(self, rows: &mut dyn Rows) -> Result<(), Failed> {
        if earlier_reply(rows, SELECT_RESULT, &self.request)?.is_some() {
            return Ok(());
        }
        let mut head = rows.task(self.task)?.ok_or_else(|| not_found("task", self.task))?;
        let mut selection = None;
        if let Some(id) = self.session {
            let session = rows.session(self.task, id)?.ok_or_else(|| not_found("session", id))?;
            if !session.state.is_terminal() || session.state.result().is_none() {
                return Err(Failed::Refused(StoreError::NoResult {
                    session: session.name,
                    state: session.state.kind().as_str(),
                }));
            }
            selection = Some(Selection {
                session: id,
                name: session.name,
                by: self.request.principal.clone(),
                at: self.now,
            });
        }
        let word = |selection: &Option<Selection>| selection.as_ref().map(|said| (said.session, said.by.clone()));
        if word(&head.selection) != word(&selection) {
            head.selection = selection;
            rows.save_task(&head)?;
        }
        remember(rows, SELECT_RESULT, self.request, String::new(), self.now)
    }
}

//! Base contexts: put, used by sessions, sent to agents.

use kage_core::task::Task;

use super::{Command, earlier_reply, not_found, remember};
use crate::store::command::{ContextPut, PutContext, RecordContextSent};
use crate::store::rows::{ContextRow, Failed, Rows};
use crate::store::unit::Key;

const CREATED: &str = "created";

const PUT_CONTEXT: &str = "put_context";

impl Command for PutContext {
    type Outcome = ContextPut;

    fn reads(&self) -> Vec<Key> {
        vec![
            Key::request(PUT_CONTEXT, &self.request),
            Key::Context(self.project.clone(), self.digest.clone()),
        ]
    }

    fn apply(self, rows: &mut dyn Rows) -> Result<ContextPut, Failed> {
        if let Some(reply) = earlier_reply(rows, PUT_CONTEXT, &self.request)? {
            return Ok(ContextPut {
                created: reply == CREATED,
            });
        }
        let known = rows.context(&self.project, &self.digest)?;
        let row = ContextRow {
            size: self.size,
            times_put: known.map_or(0, |row| row.times_put) + 1,
            sessions: known.map_or(0, |row| row.sessions),
            delta_bytes: known.map_or(0, |row| row.delta_bytes),
        };
        rows.put_context(&self.project, &self.digest, &row)?;
        let created = known.is_none();
        let reply = if created { CREATED } else { "" };
        remember(rows, PUT_CONTEXT, self.request, reply.to_owned(), self.now)?;
        Ok(ContextPut { created })
    }
}

impl Command for RecordContextSent {
    type Outcome = ();

    fn reads(&self) -> Vec<Key> {
        vec![Key::Context(self.project.clone(), self.digest.clone())]
    }

    fn apply(self, rows: &mut dyn Rows) -> Result<(), Failed> {
        if rows.context(&self.project, &self.digest)?.is_none() {
            return Err(not_found("context", &self.digest));
        }
        rows.add_context_sent(&self.project, &self.digest, self.agent, self.bytes)
    }
}

/// Counts the sessions of a new task with its base context.
pub(super) fn count_use(rows: &mut dyn Rows, task: &Task) -> Result<(), Failed> {
    let Some(digest) = &task.spec.context_base else {
        return Ok(());
    };
    let project = &task.spec.project;
    let mut row = rows
        .context(project, digest)?
        .ok_or_else(|| not_found("context", digest))?;
    for assignment in &task.spec.assignments {
        row.sessions += 1;
        row.delta_bytes += assignment.context_delta.as_ref().map_or(0, |delta| delta.len() as u64);
    }
    rows.put_context(project, digest, &row)
}

//! The store in memory: the reference for the databases, and the store of simulations. It forgets
//! everything when dropped. `rows` has the loads and saves of commands, `reads` the reads.

use kage_core::attempt::{Attempt, AttemptState};
use kage_core::base_verdict::{BaseKey, KeptVerdict};
use kage_core::checkpoint::Checkpoint;
use kage_core::event::Event;
use kage_core::fleet::Agent;
use kage_core::id::{AgentId, AttemptId, CallId, Digest, JobId, ProjectId, SessionId, TaskId, TokenId};
use kage_core::ledger::{CallRow, Reservation};
use kage_core::session::Session;
use kage_core::task::TaskSpec;

use super::admission::{Enrolment, JoinTokenRow, PersonToken};
use super::query::{AttemptView, TaskView};
use super::rows::{AttemptNote, ContextRow, JobRow, RequestKey, RequestRow, TaskHead};

mod reads;
mod rows;
mod table;

use table::Table;

/// A task and its place in the order of creation.
#[derive(Debug, Clone)]
struct TaskRow {
    order: u64,
    head: TaskHead,
    spec: TaskSpec,
}

#[derive(Debug, Clone)]
struct AttemptRow {
    order: u64,
    attempt: Attempt,
    note: AttemptNote,
}

#[derive(Debug, Default)]
pub(super) struct Model {
    tasks: Table<TaskId, TaskRow>,
    task_order: Table<u64, TaskId>,
    sessions: Table<(TaskId, SessionId), (usize, Session)>,
    jobs: Table<(TaskId, JobId), JobRow>,
    attempts: Table<AttemptId, AttemptRow>,
    events: Table<(TaskId, u64), (AttemptId, Event)>,
    checkpoints: Table<(TaskId, SessionId, u32), Checkpoint>,
    base_verdicts: Table<(BaseKey, Digest), KeptVerdict>,
    calls: Table<u64, CallRow>,
    call_names: Table<(AttemptId, String), u64>,
    reservations: Table<(AttemptId, CallId), Reservation>,
    agents: Table<AgentId, Agent>,
    join_tokens: Table<TokenId, JoinTokenRow>,
    enrolments: Table<AgentId, Enrolment>,
    person_tokens: Table<TokenId, PersonToken>,
    contexts: Table<(ProjectId, Digest), ContextRow>,
    sent: Table<(ProjectId, Digest, AgentId), (u64, u64)>,
    requests: Table<RequestKey, (u64, RequestRow)>,
    request_order: Table<u64, RequestKey>,
}

macro_rules! each_table {
    ($model:ident, $action:ident) => {
        $model.tasks.$action();
        $model.task_order.$action();
        $model.sessions.$action();
        $model.jobs.$action();
        $model.attempts.$action();
        $model.events.$action();
        $model.checkpoints.$action();
        $model.base_verdicts.$action();
        $model.calls.$action();
        $model.call_names.$action();
        $model.reservations.$action();
        $model.agents.$action();
        $model.join_tokens.$action();
        $model.enrolments.$action();
        $model.person_tokens.$action();
        $model.contexts.$action();
        $model.sent.$action();
        $model.requests.$action();
        $model.request_order.$action();
    };
}

impl Model {
    /// Keeps the writes since the last decision.
    pub(super) fn keep(&mut self) {
        each_table!(self, keep);
    }

    /// Undoes the change.
    pub(super) fn take_back(&mut self) {
        each_table!(self, take_back);
    }

    fn session_rows(&self, task: TaskId) -> impl Iterator<Item = &(usize, Session)> {
        let first = (task, SessionId::from_random(0));
        let last = (task, SessionId::from_random(u128::MAX));
        self.sessions.rows.range(first..=last).map(|(_, row)| row)
    }

    fn sessions_of(&self, task: TaskId) -> Vec<&Session> {
        let mut sessions: Vec<_> = self.session_rows(task).collect();
        sessions.sort_by_key(|(position, _)| *position);
        sessions.into_iter().map(|(_, session)| session).collect()
    }

    fn view(&self, row: &TaskRow) -> TaskView {
        TaskView {
            task: row.head.with(row.spec.clone()),
            sessions: self.sessions_of(row.head.id).into_iter().cloned().collect(),
            last_event: row.head.last_event,
        }
    }

    fn checkpoints_of(&self, task: TaskId, session: SessionId) -> impl Iterator<Item = &Checkpoint> {
        let all = (task, session, 0)..=(task, session, u32::MAX);
        self.checkpoints.rows.range(all).map(|(_, checkpoint)| checkpoint)
    }

    fn live(&self) -> Vec<&Attempt> {
        self.live_rows().into_iter().map(|row| &row.attempt).collect()
    }

    fn live_rows(&self) -> Vec<&AttemptRow> {
        let mut live: Vec<_> = self
            .attempts
            .rows
            .values()
            .filter(|row| row.attempt.state == AttemptState::Live)
            .collect();
        live.sort_by_key(|row| row.order);
        live
    }
}

impl AttemptRow {
    fn view(&self) -> AttemptView {
        AttemptView::of(self.attempt.clone(), self.note.clone())
    }
}

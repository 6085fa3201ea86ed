//! Tasks and agents as clients see them: rows of the store, with money from the price
//! table and what only the board knows (why a session waits, who is connected).

use kage_core::fleet::Agent;
use kage_core::price::session_money;
use kage_core::session::{Session, SessionStateKind};
use kage_proto::convert::session::session as shown;
use kage_proto::convert::time::stamp;
use kage_proto::{convert, v1};
use tokio::time::Instant;

use crate::coordinator::Coordinator;
use crate::store::TaskView;

/// How much is shown of a task: of its prompt, its sessions' own contexts and the paths that
/// their results change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Prompt {
    /// All of it.
    Whole,
    /// A beginning, no contexts and no paths: lists and updates would otherwise repeat megabytes.
    Short,
}

/// The length of a short prompt, in bytes.
const SHORT_PROMPT: usize = 4 << 10;

/// A task and its sessions.
pub(crate) fn task(coordinator: &Coordinator, view: TaskView, prompt: Prompt) -> v1::Task {
    let mut sessions: Vec<_> = view.sessions.iter().map(|row| session(coordinator, row)).collect();
    let mut task = view.task;
    if prompt == Prompt::Short {
        for result in sessions.iter_mut().filter_map(|session| session.result.as_mut()) {
            result.paths.clear();
            result.deleted.clear();
        }
        shorten(&mut task.spec.prompt);
        for assignment in &mut task.spec.assignments {
            assignment.context_delta = None;
        }
    }
    convert::task::task(task, sessions)
}

/// A session.
pub(crate) fn session(coordinator: &Coordinator, row: &Session) -> v1::Session {
    let now = coordinator.now();
    let money = session_money(&row.usage, &coordinator.prices, row.started_at.unwrap_or(now));
    let waiting = match row.state.kind() {
        SessionStateKind::Queued | SessionStateKind::Claimed => {
            let held = row.incidents.last().and_then(|incident| incident.waiting(now));
            held.or_else(|| coordinator.board().why_waiting(row.id, now, Instant::now()))
        }
        SessionStateKind::Running | SessionStateKind::Verifying => coordinator.board().why_not_going_on(row.id),
        SessionStateKind::Verified
        | SessionStateKind::Rejected
        | SessionStateKind::Unverified
        | SessionStateKind::Failed
        | SessionStateKind::Cancelled => None,
    };
    shown(row, money, waiting, row.worked.until(now))
}

fn shorten(text: &mut String) {
    let end = text.floor_char_boundary(SHORT_PROMPT);
    text.truncate(end);
}

/// An agent, connected or not.
pub(crate) fn agent(coordinator: &Coordinator, stored: Agent) -> v1::Agent {
    let board = coordinator.board();
    let presence = board.presence(stored.id);
    let agent = board.agent(stored.id).cloned().unwrap_or(stored);
    drop(board);
    v1::Agent {
        id: agent.id.to_string(),
        name: agent.name,
        state: presence.state.into(),
        slots: agent.slots,
        busy: presence.busy,
        labels: agent.labels.into_iter().collect(),
        adapters: agent.adapters.into_iter().map(Into::into).collect(),
        pid: agent.pid,
        version: agent.version,
        last_seen_at: Some(stamp(agent.seen_at)),
        cordoned: agent.cordoned,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_prompt_ends_between_characters() {
        let mut text = "ä".repeat(SHORT_PROMPT);
        shorten(&mut text);
        assert_eq!(text.len(), SHORT_PROMPT);
        let mut odd = format!("a{}", "ä".repeat(SHORT_PROMPT));
        shorten(&mut odd);
        assert_eq!(odd.len(), SHORT_PROMPT - 1);
        let mut small = "small".to_owned();
        shorten(&mut small);
        assert_eq!(small, "small");
    }
}

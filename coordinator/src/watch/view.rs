//! Tasks and agents as clients see them: rows of the store, and what only the board knows (why a
//! session waits, who is connected).

use kage_core::fleet::Agent;
use kage_core::id::AgentId;
use kage_core::placement::Lane;
use kage_core::session::{Session, SessionStateKind};
use kage_proto::convert::session::session as shown;
use kage_proto::convert::task::TaskDetail;
use kage_proto::convert::time::stamp;
use kage_proto::{convert, v1};
use tokio::time::Instant;

use crate::coordinator::Coordinator;
use crate::door::auth::Principal;
use crate::store::TaskView;

pub(crate) fn task(coordinator: &Coordinator, view: TaskView, detail: TaskDetail) -> v1::Task {
    let sessions: Vec<_> = view.sessions.iter().map(|row| session(coordinator, row)).collect();
    convert::task::task(view.task, sessions, detail)
}

pub(crate) fn session(coordinator: &Coordinator, row: &Session) -> v1::Session {
    let now = coordinator.now();
    let waiting = match row.state.kind() {
        SessionStateKind::Queued | SessionStateKind::Claimed => {
            let held = row.incidents.last().and_then(|incident| incident.waiting(now));
            held.or_else(|| coordinator.board().why_waiting(row.id, now, Instant::now()))
        }
        SessionStateKind::Running | SessionStateKind::Verifying => coordinator.board().why_not_going_on(row.id),
        SessionStateKind::Saving => Some("what it had done is being saved".to_owned()),
        SessionStateKind::Verified
        | SessionStateKind::Rejected
        | SessionStateKind::Unverified
        | SessionStateKind::Failed
        | SessionStateKind::Cancelled => None,
    };
    shown(row, waiting, row.worked.until(now))
}

/// Whether an agent works for a project that the caller sees.
pub(crate) fn works_for(coordinator: &Coordinator, caller: &Principal, agent: AgentId) -> bool {
    match (caller.bound_to(), coordinator.identities.enrolled(agent)) {
        (Some(own), Some(enrolled)) => enrolled.project == *own,
        (None, _) | (Some(_), None) => true,
    }
}

/// An agent, connected or not.
pub(crate) fn agent(coordinator: &Coordinator, stored: Agent) -> v1::Agent {
    let board = coordinator.board();
    let presence = board.presence(stored.id);
    let agent = board.agent(stored.id).cloned().unwrap_or(stored);
    drop(board);
    let adapters = agent.adapters.iter().map(|adapter| {
        let lane = Lane::of(Some(&adapter.name), &agent.adapters);
        v1::AdapterInfo {
            busy: if lane == Lane::SLOTS { 0 } else { presence.busy(lane) },
            ..adapter.clone().into()
        }
    });
    let adapters = adapters.collect();
    v1::Agent {
        id: agent.id.to_string(),
        name: agent.name,
        state: presence.state.into(),
        slots: agent.slots,
        busy: presence.busy(Lane::SLOTS),
        labels: agent.labels.into_iter().collect(),
        adapters,
        pid: agent.pid,
        version: agent.version,
        last_seen_at: Some(stamp(agent.seen_at)),
        cordoned: agent.cordoned,
        can: convert::agent::can(agent.admittance.can),
        contained: Some(agent.contained.into()),
    }
}

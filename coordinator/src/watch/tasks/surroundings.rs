//! What is around the tasks of a watcher: the agents, and which sessions wait and why. Neither is
//! told of when it changes - an agent falls silent, a time is reached - so both are looked at again
//! and again, and what differs from the last look is sent.

use std::collections::{BTreeMap, HashSet};

use kage_core::id::{AgentId, ProjectId, SessionId, TaskId};
use kage_core::time::Timestamp;
use kage_proto::convert::time::stamp;
use kage_proto::status::ApiError;
use kage_proto::v1;
use kage_proto::v1::watch_tasks_response::Item;
use tokio::time::Instant;

use crate::board::Waits;
use crate::coordinator::Coordinator;
use crate::door::auth::Principal;
use crate::refusals::read_error;
use crate::watch::view;

/// How many waiting sessions are looked at: the first of the queue. Finding out why one waits looks
/// at every agent.
const MOST_HOLDS: usize = 1000;

/// What a client was sent.
#[derive(Debug)]
pub(super) struct Surroundings {
    agents: Option<BTreeMap<AgentId, v1::Agent>>,
    holds: Option<BTreeMap<SessionId, Hold>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Hold {
    task: TaskId,
    name: String,
    waiting: String,
    /// When its time comes; before, only that decides.
    until: Option<Timestamp>,
}

impl Surroundings {
    pub(super) fn new(agents: bool, holds: bool) -> Self {
        Self {
            agents: agents.then(BTreeMap::new),
            holds: holds.then(BTreeMap::new),
        }
    }

    pub(super) const fn are_wanted(&self) -> bool {
        self.agents.is_some() || self.holds.is_some()
    }

    /// What differs from the last look.
    pub(super) async fn look(
        &mut self,
        coordinator: &Coordinator,
        caller: &Principal,
        project: &ProjectId,
        known: &HashSet<TaskId>,
    ) -> Result<Vec<Item>, ApiError> {
        let mut items = Vec::new();
        if let Some(sent) = &mut self.agents {
            for stored in coordinator.store.agents().await.map_err(read_error)? {
                let id = stored.id;
                if !view::works_for(coordinator, caller, id) {
                    continue;
                }
                let agent = view::agent(coordinator, stored);
                // It is heard of all the time.
                let shown = v1::Agent {
                    last_seen_at: None,
                    ..agent.clone()
                };
                if sent.get(&id) != Some(&shown) {
                    sent.insert(id, shown);
                    items.push(Item::Agent(Box::new(agent)));
                }
            }
        }
        if let Some(sent) = &mut self.holds {
            let now = holds(coordinator, project, known, sent).await?;
            let ended = sent.iter().filter(|(session, _)| !now.contains_key(session));
            items.extend(ended.map(|(session, hold)| shown(*session, hold, "")));
            let new = now.iter().filter(|(session, hold)| sent.get(session) != Some(*hold));
            items.extend(new.map(|(session, hold)| shown(*session, hold, &hold.waiting)));
            *sent = now;
        }
        Ok(items)
    }
}

/// The sessions that wait now, as far as the client has their tasks.
async fn holds(
    coordinator: &Coordinator,
    project: &ProjectId,
    known: &HashSet<TaskId>,
    sent: &BTreeMap<SessionId, Hold>,
) -> Result<BTreeMap<SessionId, Hold>, ApiError> {
    let now = coordinator.now();
    let waits = coordinator
        .board()
        .waits(project, known, now, Instant::now(), MOST_HOLDS);
    let mut holds = BTreeMap::new();
    for Waits {
        task,
        session,
        until,
        why,
    } in waits
    {
        let before = sent.get(&session);
        let held = why.is_none();
        // While it is held for the same time, it is for the same reason; its text tells how long.
        if let Some(before) = before.filter(|before| held && before.until == until) {
            holds.insert(session, before.clone());
            continue;
        }
        let name = before.map(|before| before.name.clone());
        let (name, waiting) = match (name, why) {
            (Some(name), Some(why)) => (name, why),
            (_, why) => {
                let Some(view) = coordinator.store.task(task).await.map_err(read_error)? else {
                    continue;
                };
                let Some(row) = view.sessions.into_iter().find(|row| row.id == session) else {
                    continue;
                };
                let incident = row.incidents.last().and_then(|incident| incident.waiting(now));
                let waiting = why.or(incident).unwrap_or_else(|| "waits for its time".to_owned());
                (row.name.to_string(), waiting)
            }
        };
        let hold = Hold {
            task,
            name,
            waiting,
            until,
        };
        holds.insert(session, hold);
    }
    Ok(holds)
}

fn shown(session: SessionId, hold: &Hold, waiting: &str) -> Item {
    Item::Hold(v1::Hold {
        task_id: hold.task.to_string(),
        session_id: session.to_string(),
        session: hold.name.clone(),
        waiting: waiting.to_owned(),
        until: hold.until.filter(|_| !waiting.is_empty()).map(stamp),
    })
}

//! The agents, listed by what a job may need, so that placing looks at candidates and not at the
//! whole fleet. It holds numbers and the order; the caller holds the descriptions of the agents.
//!
//! An agent is listed under each of its adapters and labels, and once as itself, for jobs without
//! needs; each time under the project that it is bound to, if any. A job uses the shortest of the
//! lists that it needs. A list is ordered by free slots, so that agents without free slots are
//! skipped too.

use std::cmp::Reverse;
use std::collections::hash_map::Entry as Slot;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::{AgentView, Availability, Waiting};
use crate::id::{AdapterName, AgentId, ProjectId};

/// What a job may need and an agent has.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Asset {
    Itself,
    Adapter(AdapterName),
    Label(String, String),
}

/// The key of a list.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Heading {
    /// The project that the agents are bound to; `None`: none.
    project: Option<ProjectId>,
    asset: Asset,
}

/// The most free slots first, then by id.
type Rank = (Reverse<u32>, AgentId);

#[derive(Debug, PartialEq, Eq)]
struct RosterEntry {
    headings: Vec<Arc<Heading>>,
    /// Zero also for an agent that takes no work.
    free_slots: u32,
    placed: u64,
}

impl RosterEntry {
    const fn rank(&self, agent: AgentId) -> Rank {
        (Reverse(self.free_slots), agent)
    }
}

/// The index of agents by what jobs may need.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Roster {
    entries: HashMap<AgentId, RosterEntry>,
    lists: HashMap<Arc<Heading>, BTreeSet<Rank>>,
    /// Number of agents with free slots.
    roomy: usize,
}

impl Roster {
    /// Lists an agent, or lists it again with other adapters, labels or another project.
    pub fn list(&mut self, view: &AgentView<'_>) {
        self.strike(view.id);
        let adapters = view.adapters.iter().cloned().map(Asset::Adapter);
        let labels = view
            .labels
            .iter()
            .map(|(key, value)| Asset::Label(key.clone(), value.clone()));
        let assets = std::iter::once(Asset::Itself).chain(adapters).chain(labels);
        let mut entry = RosterEntry {
            headings: Vec::with_capacity(1 + view.adapters.len() + view.labels.len()),
            free_slots: free_slots(view),
            placed: view.placed,
        };
        let rank = entry.rank(view.id);
        for asset in assets {
            let heading = Arc::new(Heading {
                project: view.project.cloned(),
                asset,
            });
            // Agents with the same heading share it.
            let heading = match self.lists.entry(heading) {
                Slot::Occupied(mut list) => {
                    list.get_mut().insert(rank);
                    Arc::clone(list.key())
                }
                Slot::Vacant(list) => {
                    let heading = Arc::clone(list.key());
                    list.insert(BTreeSet::from([rank]));
                    heading
                }
            };
            entry.headings.push(heading);
        }
        self.roomy += usize::from(entry.free_slots > 0);
        self.entries.insert(view.id, entry);
    }

    /// Records the free slots and placements of a listed agent.
    pub fn note(&mut self, view: &AgentView<'_>) {
        self.set(view.id, free_slots(view), view.placed);
    }

    /// True when some agent could take a job now, whatever its needs.
    #[must_use]
    pub const fn has_room(&self) -> bool {
        self.roomy > 0
    }

    /// The candidates for a job: every agent that could do it, those with the most free slots
    /// first, and some that lack another need of the job.
    pub fn candidates<'r>(&'r self, job: &Waiting<'_>) -> impl Iterator<Item = AgentId> + use<'r> {
        self.ranked(job).map(|(_, agent)| agent)
    }

    /// The candidates that have free slots.
    pub(super) fn with_room<'r>(&'r self, job: &Waiting<'_>) -> impl Iterator<Item = AgentId> + use<'r> {
        self.ranked(job)
            .take_while(|(Reverse(free_slots), _)| *free_slots > 0)
            .map(|(_, agent)| agent)
    }

    pub(super) fn is_full(&self, agent: AgentId) -> bool {
        self.entries.get(&agent).is_none_or(|entry| entry.free_slots == 0)
    }

    /// Jobs that an agent was given so far.
    pub(super) fn placed(&self, agent: AgentId) -> u64 {
        self.entries.get(&agent).map_or(0, |entry| entry.placed)
    }

    /// Places one more job on an agent with a free slot.
    pub(super) fn give(&mut self, agent: AgentId) {
        if let Some(entry) = self.entries.get(&agent) {
            let (free_slots, placed) = (entry.free_slots, entry.placed);
            self.set(agent, free_slots.saturating_sub(1), placed.wrapping_add(1));
        }
    }

    fn ranked<'r>(&'r self, job: &Waiting<'_>) -> impl Iterator<Item = Rank> + use<'r> {
        let adapter = job.adapter.cloned().map(Asset::Adapter);
        let labels = job
            .requirements
            .iter()
            .map(|(key, value)| Asset::Label(key.clone(), value.clone()));
        let lists = |asset: Asset| {
            let unbound = Heading { project: None, asset };
            let bound = Heading {
                project: Some(job.project.clone()),
                asset: unbound.asset.clone(),
            };
            [self.lists.get(&unbound), self.lists.get(&bound)]
        };
        let length =
            |lists: &[Option<&BTreeSet<Rank>>; 2]| lists.iter().flatten().map(|list| list.len()).sum::<usize>();
        let shortest = adapter.into_iter().chain(labels).map(lists).min_by_key(length);
        let [unbound, bound] = shortest.unwrap_or_else(|| lists(Asset::Itself));
        let mut unbound = unbound.into_iter().flatten().copied().peekable();
        let mut bound = bound.into_iter().flatten().copied().peekable();
        std::iter::from_fn(move || match (unbound.peek(), bound.peek()) {
            (Some(first), Some(second)) if second < first => bound.next(),
            (Some(_), _) => unbound.next(),
            (None, _) => bound.next(),
        })
    }

    fn set(&mut self, agent: AgentId, free_slots: u32, placed: u64) {
        let Some(entry) = self.entries.get_mut(&agent) else {
            return;
        };
        entry.placed = placed;
        if entry.free_slots == free_slots {
            return;
        }
        let old = entry.rank(agent);
        self.roomy -= usize::from(entry.free_slots > 0);
        self.roomy += usize::from(free_slots > 0);
        entry.free_slots = free_slots;
        for heading in &entry.headings {
            if let Some(list) = self.lists.get_mut(heading) {
                list.remove(&old);
                list.insert(entry.rank(agent));
            }
        }
    }

    fn strike(&mut self, agent: AgentId) {
        let Some(entry) = self.entries.remove(&agent) else {
            return;
        };
        self.roomy -= usize::from(entry.free_slots > 0);
        for heading in &entry.headings {
            if let Some(list) = self.lists.get_mut(heading) {
                list.remove(&entry.rank(agent));
                if list.is_empty() {
                    self.lists.remove(heading);
                }
            }
        }
    }
}

const fn free_slots(view: &AgentView<'_>) -> u32 {
    match view.availability {
        Availability::Open => view.free_slots,
        Availability::Cordoned | Availability::Draining | Availability::Away => 0,
    }
}

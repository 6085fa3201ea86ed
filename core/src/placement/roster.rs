//! The agents, listed by what a job may need, so that placing looks at candidates and not at the
//! whole fleet. It holds numbers and the order; the caller holds the descriptions of the agents.
//!
//! Each lane of an agent is listed under its adapters and the agent's labels, and its slots once as
//! itself, for jobs without needs, if it may do them: those are checks; each time under the project
//! that it is bound to, if any. A job uses the shortest of the
//! lists that it needs. A list is ordered by free slots, so that agents without free slots are
//! skipped too.

use std::cmp::Reverse;
use std::collections::hash_map::Entry as Slot;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::{AgentView, Availability, Lane, Seat, Waiting};
use crate::access::Capability;
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
type Rank = (Reverse<u32>, Seat);

#[derive(Debug, PartialEq, Eq)]
struct RosterEntry {
    headings: Vec<Arc<Heading>>,
    /// Zero also for an agent that takes no work.
    free_slots: u32,
    placed: u64,
}

impl RosterEntry {
    const fn rank(&self, seat: Seat) -> Rank {
        (Reverse(self.free_slots), seat)
    }
}

/// The index of agents by what jobs may need.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Roster {
    entries: HashMap<Seat, RosterEntry>,
    lists: HashMap<Arc<Heading>, BTreeSet<Rank>>,
    /// Number of lanes with free slots.
    roomy: usize,
}

impl Roster {
    /// Lists all lanes of an agent, or lists them again with other adapters, labels, capabilities or
    /// another project.
    pub fn list<'v>(&mut self, agent: AgentId, lanes: impl IntoIterator<Item = AgentView<'v>>) {
        for seat in self.seats(agent).collect::<Vec<_>>() {
            self.strike(seat);
        }
        for view in lanes {
            self.list_lane(&view);
        }
    }

    fn list_lane(&mut self, view: &AgentView<'_>) {
        let adapters = view.adapters.iter().cloned().map(Asset::Adapter);
        let labels = view
            .labels
            .iter()
            .map(|(key, value)| Asset::Label(key.clone(), value.clone()));
        // Only checks need neither an adapter nor a label.
        let checks = view.lane == Lane::SLOTS && view.can.has(Capability::Verify);
        let itself = checks.then_some(Asset::Itself);
        let assets = itself.into_iter().chain(adapters).chain(labels);
        let mut entry = RosterEntry {
            headings: Vec::with_capacity(1 + view.adapters.len() + view.labels.len()),
            free_slots: free_slots(view),
            placed: view.placed,
        };
        let rank = entry.rank(view.seat());
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
        self.entries.insert(view.seat(), entry);
    }

    /// Records the free slots and placements of a listed lane.
    pub fn note(&mut self, view: &AgentView<'_>) {
        self.set(view.seat(), free_slots(view), view.placed);
    }

    /// The listed lanes of an agent.
    pub(super) fn seats(&self, agent: AgentId) -> impl Iterator<Item = Seat> {
        let lanes = std::iter::successors(Some(Lane::SLOTS), |lane| Some(lane.next()));
        let seats = lanes.map(move |lane| Seat { agent, lane });
        seats.take_while(|seat| self.entries.contains_key(seat))
    }

    /// True when some agent could take a job now, whatever its needs.
    #[must_use]
    pub const fn has_room(&self) -> bool {
        self.roomy > 0
    }

    /// The candidates for a job: every lane that could do it, those with the most free slots
    /// first, and some that lack another need of the job.
    pub fn candidates<'r>(&'r self, job: &Waiting<'_>) -> impl Iterator<Item = Seat> + use<'r> {
        self.ranked(job).map(|(_, seat)| seat)
    }

    /// The candidates that have free slots.
    pub(super) fn with_room<'r>(&'r self, job: &Waiting<'_>) -> impl Iterator<Item = Seat> + use<'r> {
        self.ranked(job)
            .take_while(|(Reverse(free_slots), _)| *free_slots > 0)
            .map(|(_, seat)| seat)
    }

    pub(super) fn is_full(&self, seat: Seat) -> bool {
        self.entries.get(&seat).is_none_or(|entry| entry.free_slots == 0)
    }

    /// Jobs that a lane was given so far.
    pub(super) fn placed(&self, seat: Seat) -> u64 {
        self.entries.get(&seat).map_or(0, |entry| entry.placed)
    }

    /// Places one more job on a lane with a free slot.
    pub(super) fn give(&mut self, seat: Seat) {
        if let Some(entry) = self.entries.get(&seat) {
            let (free_slots, placed) = (entry.free_slots, entry.placed);
            self.set(seat, free_slots.saturating_sub(1), placed.wrapping_add(1));
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

    fn set(&mut self, seat: Seat, free_slots: u32, placed: u64) {
        let Some(entry) = self.entries.get_mut(&seat) else {
            return;
        };
        entry.placed = placed;
        if entry.free_slots == free_slots {
            return;
        }
        let old = entry.rank(seat);
        self.roomy -= usize::from(entry.free_slots > 0);
        self.roomy += usize::from(free_slots > 0);
        entry.free_slots = free_slots;
        for heading in &entry.headings {
            if let Some(list) = self.lists.get_mut(heading) {
                list.remove(&old);
                list.insert(entry.rank(seat));
            }
        }
    }

    fn strike(&mut self, seat: Seat) {
        let Some(entry) = self.entries.remove(&seat) else {
            return;
        };
        self.roomy -= usize::from(entry.free_slots > 0);
        for heading in &entry.headings {
            if let Some(list) = self.lists.get_mut(heading) {
                list.remove(&entry.rank(seat));
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

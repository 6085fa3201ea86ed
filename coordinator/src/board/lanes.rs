//! The lanes of one agent: how many slots each has, how many of them are taken, and by whose jobs. Jobs
//! are counted by the adapter that they need, so that an agent may come back with other lanes while
//! jobs of it run.

use std::collections::{BTreeMap, BTreeSet};

use kage_core::fleet::Agent;
use kage_core::id::AdapterName;
use kage_core::placement::Lane;

/// The lanes of an agent.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    lanes: BTreeMap<Lane, CountedLane>,
    /// In which lane the jobs of an adapter are; the others are in the agent's slots.
    own: BTreeMap<AdapterName, Lane>,
    /// Jobs that are offered, started or running, by the adapter that they need.
    taken: BTreeMap<Option<AdapterName>, u32>,
}

/// One lane, with its numbers.
#[derive(Debug, Default)]
pub(super) struct CountedLane {
    slots: u32,
    /// Slots that are taken.
    pub(super) busy: u32,
    /// Number of offers so far.
    pub(super) placed: u64,
    /// Its adapters that work.
    pub(super) usable: BTreeSet<AdapterName>,
}

impl CountedLane {
    pub(super) const fn free(&self) -> u32 {
        self.slots.saturating_sub(self.busy)
    }
}

impl Lanes {
    pub(super) fn of(agent: &Agent) -> Self {
        let mut lanes = Self::default();
        lanes.describe(agent);
        lanes
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Lane, &CountedLane)> {
        self.lanes.iter().map(|(lane, counted)| (*lane, counted))
    }

    /// Takes over what an agent says of itself now. What is taken stays taken.
    pub(super) fn describe(&mut self, agent: &Agent) {
        let before = std::mem::take(&mut self.lanes);
        let own = Lane::with_own(&agent.adapters);
        self.own = own.map(|(lane, adapter)| (adapter.name.clone(), lane)).collect();
        let slots = Lane::with_own(&agent.adapters).map(|(lane, adapter)| (lane, adapter.slots));
        for (lane, slots) in slots.chain([(Lane::SLOTS, agent.slots)]) {
            let placed = before.get(&lane).map_or(0, |before| before.placed);
            let counted = CountedLane {
                slots,
                placed,
                ..CountedLane::default()
            };
            self.lanes.insert(lane, counted);
        }
        for adapter in agent.adapters.iter().filter(|adapter| adapter.unavailable.is_none()) {
            if let Some(counted) = self.lane(Some(&adapter.name)) {
                counted.usable.insert(adapter.name.clone());
            }
        }
        for (adapter, taken) in self.taken.clone() {
            if let Some(counted) = self.lane(adapter.as_ref()) {
                counted.busy += taken;
            }
        }
    }

    /// A job was given to the agent: it takes a slot, and counts as placed.
    pub(super) fn place(&mut self, adapter: Option<&AdapterName>) {
        self.take(adapter);
        if let Some(counted) = self.lane(adapter) {
            counted.placed = counted.placed.wrapping_add(1);
        }
    }

    /// A job takes a slot.
    pub(super) fn take(&mut self, adapter: Option<&AdapterName>) {
        *self.taken.entry(adapter.cloned()).or_default() += 1;
        if let Some(counted) = self.lane(adapter) {
            counted.busy += 1;
        }
    }

    /// The slot of a job becomes free.
    pub(super) fn release(&mut self, adapter: Option<&AdapterName>) {
        let adapter = adapter.cloned();
        let Some(taken) = self.taken.get_mut(&adapter) else {
            return;
        };
        *taken -= 1;
        if *taken == 0 {
            self.taken.remove(&adapter);
        }
        if let Some(counted) = self.lane(adapter.as_ref()) {
            counted.busy -= 1;
        }
    }

    fn lane(&mut self, adapter: Option<&AdapterName>) -> Option<&mut CountedLane> {
        let own = adapter.and_then(|adapter| self.own.get(adapter));
        self.lanes.get_mut(own.unwrap_or(&Lane::SLOTS))
    }
}

//! The slots of an agent: those that its work shares, and those of adapters that have their own.

use std::collections::BTreeMap;
use std::sync::Arc;

use kage_core::fleet::AdapterInfo;
use kage_core::id::AdapterName;
use tokio::sync::Semaphore;

#[derive(Debug)]
pub(super) struct Slots {
    shared: Arc<Semaphore>,
    own: BTreeMap<AdapterName, (u32, Arc<Semaphore>)>,
}

impl Slots {
    pub(super) fn new(shared: u32) -> Self {
        Self {
            shared: Arc::new(Semaphore::new(shared as usize)),
            own: BTreeMap::new(),
        }
    }

    /// Gives each adapter the slots of its own that it has now.
    pub(super) fn update(&mut self, adapters: &[AdapterInfo]) {
        let with_own = || adapters.iter().filter(|adapter| adapter.slots > 0);
        self.own
            .retain(|name, _| with_own().any(|adapter| adapter.name == *name));
        for adapter in with_own() {
            let known = self.own.get(&adapter.name);
            if known.is_none_or(|(slots, _)| *slots != adapter.slots) {
                // With another number the sessions that run are not counted.
                let slots = Arc::new(Semaphore::new(adapter.slots as usize));
                self.own.insert(adapter.name.clone(), (adapter.slots, slots));
            }
        }
    }

    /// The slots that work of this adapter takes; `None`: it is verify.
    pub(super) fn of(&self, adapter: Option<&AdapterName>) -> Arc<Semaphore> {
        let own = adapter.and_then(|name| self.own.get(name));
        Arc::clone(own.map_or(&self.shared, |(_, own)| own))
    }
}

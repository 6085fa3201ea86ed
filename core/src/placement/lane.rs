//! What of an agent an attempt takes. An agent has slots, for whatever its machine computes: programs
//! and checks. An adapter whose sessions mostly wait for a network may have slots of its own. Each of
//! these is a lane, and for placement a lane is like an agent: it has its adapters and its free slots.

use crate::fleet::AdapterInfo;
use crate::id::{AdapterName, AgentId};

/// A lane of an agent: its slots, or those of one of its adapters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lane(u16);

impl Lane {
    /// The agent's slots. Jobs that need no adapter take these.
    pub const SLOTS: Self = Self(0);

    /// The lane of a job with this adapter, on an agent with these.
    #[must_use]
    pub fn of(adapter: Option<&AdapterName>, adapters: &[AdapterInfo]) -> Self {
        let Some(adapter) = adapter else {
            return Self::SLOTS;
        };
        let own = Self::with_own(adapters).find(|(_, info)| info.name == *adapter);
        own.map_or(Self::SLOTS, |(lane, _)| lane)
    }

    /// The lanes of adapters that have slots of their own, in the order of the adapters.
    pub fn with_own(adapters: &[AdapterInfo]) -> impl Iterator<Item = (Self, &AdapterInfo)> {
        let own = adapters.iter().filter(|adapter| adapter.slots > 0);
        (1..).map(Self).zip(own)
    }

    pub(super) const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

/// A lane of one agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seat {
    /// The agent.
    pub agent: AgentId,
    /// Its lane.
    pub lane: Lane,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Resumes;

    #[test]
    fn an_adapter_without_slots_of_its_own_takes_those_of_the_agent() {
        let name = |text: &str| text.parse::<AdapterName>().unwrap();
        let adapter = |text: &str, slots| AdapterInfo {
            name: name(text),
            version: String::new(),
            unavailable: None,
            resumes: Resumes::None,
            access: None,
            slots,
            hears: false,
        };
        let adapters = [adapter("a-api", 8), adapter("cli", 0), adapter("b-api", 2)];
        let of = |text: &str| Lane::of(Some(&name(text)), &adapters);
        assert_eq!(Lane::of(None, &adapters), Lane::SLOTS);
        assert_eq!((of("cli"), of("unknown")), (Lane::SLOTS, Lane::SLOTS));
        assert_eq!((of("a-api"), of("b-api")), (Lane(1), Lane(2)));
        let own: Vec<_> = Lane::with_own(&adapters)
            .map(|(lane, info)| (lane, info.slots))
            .collect();
        assert_eq!(own, [(Lane(1), 8), (Lane(2), 2)]);
    }
}

//! Which hosts the programs of attempts may reach. It owns the settings, the list of what may be reached,
//! and the decision, which has two steps: by name before the name is resolved, by address after it. Who
//! listens, resolves and connects is the agent's door; it connects to the addresses that were decided about.

use serde::Deserialize;

use crate::words::words;

mod address;
mod destination;
mod list;
mod registries;
mod rule;

pub use address::{AddressKind, AddressRange};
pub use destination::{Destination, DomainName, Host, InvalidDestination};
pub use list::{AllowList, Refused, decide};
pub use registries::{Registry, registries};
pub use rule::{AllowRule, InvalidRule};

/// The port, on the loopback address of a box, at which programs find the door. Nothing else listens there:
/// a box has a loopback of its own.
pub const DOOR_PORT: u16 = 19_128;

/// The most ports that are forwarded out of one box.
pub const MOST_FORWARDS: usize = 32;

words! {
    /// What of the network programs have.
    #[derive(Default)]
    pub enum NetworkPolicy: "a policy for the network (none, gateway or open)" {
        /// The loopback of their box.
        None = "none",
        /// What is on the list, through the agent.
        #[default]
        Gateway = "gateway",
        /// The machine's.
        Open = "open",
    }
}

/// `[network]` of an agent's settings.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NetworkSettings {
    /// For sessions, and for the setup command.
    pub sessions: NetworkPolicy,
    /// For verify.
    pub verify: NetworkPolicy,
    /// What may be reached beside the provider of the session's adapter.
    pub allow: Vec<AllowRule>,
    /// Whether the hosts of package managers may be reached.
    pub registries: bool,
}

impl Default for NetworkSettings {
    fn default() -> Self {
        Self {
            sessions: NetworkPolicy::Gateway,
            verify: NetworkPolicy::Gateway,
            allow: Vec::new(),
            registries: true,
        }
    }
}

impl NetworkSettings {
    /// What may be reached by a program whose adapter needs `provider`; empty for verify.
    #[must_use]
    pub fn list(&self, provider: &[AllowRule]) -> AllowList {
        let shipped = self.registries.then(|| registries().iter().flat_map(|one| &one.hosts));
        let rules = self.allow.iter().chain(provider).chain(shipped.into_iter().flatten());
        rules.cloned().collect()
    }
}

#[cfg(test)]
mod tests;

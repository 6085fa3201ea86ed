//! How well an agent keeps programs apart from its machine: the tiers of containment, and what an
//! agent proved of them. What a tier is built of is the agent's.

use serde::{Deserialize, Serialize};

use crate::words::words;

words! {
    /// A tier of containment. Each holds what those before it hold.
    #[derive(PartialOrd, Ord, Default)]
    pub enum Tier: "a tier of containment" {
        /// Clean environment, own HOME and TMPDIR, an ended process tree, bounded output, masked keys.
        #[default]
        T0 = "T0",
        /// Programs write to places of their own only, and reach no process outside.
        T1 = "T1",
        /// All namespaces: the machine's state, sockets and homes are hidden, the network has a policy.
        T2 = "T2",
        /// Another kernel.
        T3 = "T3",
    }
}

/// What an agent proved when it started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Containment {
    /// The tier whose probes all failed to get out.
    pub tier: Tier,
    /// Why it is no higher one, in words for people; empty when it is the highest that was asked for.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub short_of: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_higher_tier_holds_what_a_lower_one_holds() {
        assert!(Tier::ALL.is_sorted());
        assert!("T2".parse::<Tier>().is_ok_and(|tier| tier > Tier::T1));
        assert!("t4".parse::<Tier>().is_err());
        assert_eq!(Containment::default().tier, Tier::T0);
    }
}

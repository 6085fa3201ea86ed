//! The adapters that take over a session when its adapter cannot continue, and the one that begins.

use serde::{Deserialize, Serialize};

use crate::id::{AdapterName, SessionName};

/// The most adapters that one session may fall back to.
pub const MAX_FALLBACKS: usize = 8;

/// An adapter that may take over a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fallback {
    /// The adapter.
    pub adapter: AdapterName,
    /// `None`: the adapter's default.
    pub model: Option<String>,
}

/// What every known agent lacks for the adapters that may work on a session: its own, then its
/// fallbacks in their order. `None`: some agent could run that one. Empty: nobody looked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AdapterLacks(pub Vec<Option<String>>);

impl AdapterLacks {
    /// How many adapters are passed over, because no agent could run one before: none, too, when no
    /// agent could run any.
    #[must_use]
    pub fn passed_over(&self) -> usize {
        self.0.iter().position(Option::is_none).unwrap_or_default()
    }

    /// What is lacking for the session's own adapter, when no agent could run any.
    #[must_use]
    pub fn of_all(&self) -> Option<&str> {
        let own = self.0.first()?.as_deref()?;
        self.0.iter().all(Option::is_some).then_some(own)
    }
}

/// Why a task waits for ever as the fleet is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NobodyCan {
    /// No agent could run one of its sessions.
    #[error("no agent can run the session {session}: {lacks}")]
    Run {
        /// The first such session.
        session: SessionName,
        /// What all agents lack for its own adapter.
        lacks: String,
    },
    /// No agent could check what its sessions make.
    #[error("its results could not be checked: {lacks}")]
    Verify {
        /// What all agents lack.
        lacks: String,
    },
}

/// What all known agents lack for new sessions of a task.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TaskLacks {
    /// For each session, in their order; nothing where it is shorter.
    pub sessions: Vec<AdapterLacks>,
    /// For the check of a result; `None`: some agent could do it, or there is nothing to do.
    pub verify: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_adapter_that_somebody_has_begins() {
        let lack = |what: &str| Some(what.to_owned());
        let cases = [
            (vec![], 0, None),
            (vec![None, None], 0, None),
            (vec![None, lack("b")], 0, None),
            (vec![lack("a"), None], 1, None),
            (vec![lack("a"), lack("b"), None], 2, None),
            (vec![lack("a")], 0, Some("a")),
            (vec![lack("a"), lack("b")], 0, Some("a")),
        ];
        for (lacks, passed, all) in cases {
            let lacks = AdapterLacks(lacks);
            assert_eq!((lacks.passed_over(), lacks.of_all()), (passed, all), "{lacks:?}");
        }
    }
}

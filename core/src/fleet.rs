//! Agents as the coordinator knows them: their identity and what they offer. Whether one is
//! connected now is not stored; the board knows that.

use serde::{Deserialize, Serialize};

use crate::access::Admittance;
use crate::checkpoint::Resumes;
use crate::contain::Containment;
use crate::id::{AdapterName, AgentId, BootId, Digest};
use crate::login::LoginState;
use crate::task::Labels;
use crate::time::Timestamp;

/// An adapter on an agent, usable or not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdapterInfo {
    /// Its name.
    pub name: AdapterName,
    /// The program's own output of its version; empty when it is not a program.
    pub version: String,
    /// `None`: usable; otherwise why not, and what to do.
    pub unavailable: Option<String>,
    /// Whether it can continue a session's conversation.
    #[serde(default)]
    pub resumes: Resumes,
    /// What lets its program in at its provider; `None`: it says nothing about that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access: Option<AdapterAccess>,
    /// How many sessions of it may run at once beside the agent's slots, because they wait for a
    /// network; 0: each of them takes one of the agent's slots.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub slots: u32,
    /// Whether a session of it takes what a person says while it works.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hears: bool,
}

/// What lets an adapter's program in at its provider.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "snake_case")]
pub enum AdapterAccess {
    /// A variable of the agent's environment, such as a key. It wins over a login.
    Variable {
        /// Its name.
        name: String,
    },
    /// A login that a person made with the program.
    Login(LoginState),
}

impl AdapterAccess {
    /// "by `ANTHROPIC_API_KEY`", or the login's words.
    #[must_use]
    pub fn words(&self, now: Timestamp) -> String {
        match self {
            Self::Variable { name } => format!("by {name}"),
            Self::Login(state) => state.words(now),
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
const fn is_zero(slots: &u32) -> bool {
    *slots == 0
}

/// One worker machine's daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agent {
    /// Its id, which stays the same across restarts.
    pub id: AgentId,
    /// Its name, for people.
    pub name: String,
    /// Its last start.
    pub boot: BootId,
    /// What tasks may require.
    pub labels: Labels,
    /// Its adapters.
    pub adapters: Vec<AdapterInfo>,
    /// Attempts it runs at once, besides those of adapters that have slots of their own.
    pub slots: u32,
    /// Process id on its machine.
    pub pid: u32,
    /// Version of its program.
    pub version: String,
    /// True when it asked for no new work.
    pub draining: bool,
    /// True when a person excluded it from new work until further notice.
    pub cordoned: bool,
    /// What its machine brings to a check of a base, as [`Verdict::machine`] has it; `None`: it did
    /// not say.
    ///
    /// [`Verdict::machine`]: crate::event::Verdict::machine
    pub machine: Option<Digest>,
    /// How well it keeps programs apart from its machine, as it proved when it started.
    pub contained: Containment,
    /// What let it in, and what it may be given to do.
    pub admittance: Admittance,
    /// When its last message came.
    pub seen_at: Timestamp,
}

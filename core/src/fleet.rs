//! Agents as the coordinator knows them: who they are and what they offer. Whether one is
//! connected now is not stored; a driver knows that.

use serde::{Deserialize, Serialize};

use crate::checkpoint::Resumes;
use crate::id::{AdapterName, AgentId, BootId};
use crate::task::Labels;
use crate::time::Timestamp;

/// An adapter that an agent has, or has not and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdapterInfo {
    /// Its name.
    pub name: AdapterName,
    /// What the program itself printed; empty when it is not a program.
    pub version: String,
    /// `None` = usable; otherwise why not, and what to do.
    pub unavailable: Option<String>,
    /// Whether it can go on with a session's conversation.
    #[serde(default)]
    pub resumes: Resumes,
}

/// One worker machine's daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agent {
    /// Its id, which outlives restarts.
    pub id: AgentId,
    /// Its name, for people.
    pub name: String,
    /// Its last start.
    pub boot: BootId,
    /// What tasks may require.
    pub labels: Labels,
    /// How it can work.
    pub adapters: Vec<AdapterInfo>,
    /// Attempts it runs at once.
    pub slots: u32,
    /// Process id on its machine.
    pub pid: u32,
    /// Version of its program.
    pub version: String,
    /// True when it is to take no new work.
    pub draining: bool,
    /// True when somebody said that it is to take no new work until they say otherwise.
    pub cordoned: bool,
    /// When it was last heard of.
    pub seen_at: Timestamp,
}

//! Labels of agents, and what tasks require of them.

use std::collections::BTreeMap;

/// Keys, each with its value.
pub type Labels = BTreeMap<String, String>;

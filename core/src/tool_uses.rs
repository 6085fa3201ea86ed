//! Calls of tools, counted by the tool's name. Names come from models and programs: only so many are
//! kept apart, and each is cut.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// How many tools are counted apart. The sum is written with every event of its session.
pub const MAX_TOOLS: usize = 64;
/// The name that tools beyond [`MAX_TOOLS`] are counted under.
pub const OTHER_TOOLS: &str = "other tools";
/// The longest name of a tool, in bytes.
pub const MAX_TOOL_NAME: usize = 128;

/// How often each tool was called.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ToolUses(BTreeMap<String, u64>);

impl ToolUses {
    /// Counts calls of a tool.
    pub fn add(&mut self, tool: &str, calls: u64) {
        if calls == 0 {
            return;
        }
        let name = &tool[..tool.floor_char_boundary(MAX_TOOL_NAME)];
        let others = self.0.len() - usize::from(self.0.contains_key(OTHER_TOOLS));
        let name = match self.0.contains_key(name) || others < MAX_TOOLS {
            true => name,
            false => OTHER_TOOLS,
        };
        let count = self.0.entry(name.to_owned()).or_default();
        *count = count.saturating_add(calls);
    }

    /// Counts these calls as well.
    pub fn extend(&mut self, more: &Self) {
        for (tool, calls) in more.iter() {
            self.add(tool, calls);
        }
    }

    /// Each tool with its calls, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u64)> {
        self.0.iter().map(|(tool, calls)| (tool.as_str(), *calls))
    }
}

impl<'a> FromIterator<&'a str> for ToolUses {
    /// One call of each.
    fn from_iter<T: IntoIterator<Item = &'a str>>(tools: T) -> Self {
        let mut uses = Self::default();
        tools.into_iter().for_each(|tool| uses.add(tool, 1));
        uses
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_of_a_tool_add_up() {
        let mut uses: ToolUses = ["bash", "edit", "bash"].into_iter().collect();
        uses.extend(&["edit"].into_iter().collect());
        uses.add("never", 0);
        assert_eq!(uses.iter().collect::<Vec<_>>(), [("bash", 2), ("edit", 2)]);
        uses.add("bash", u64::MAX);
        assert_eq!(uses.iter().next(), Some(("bash", u64::MAX)));
    }

    #[test]
    fn tools_that_a_model_makes_up_are_counted_together() {
        let mut uses = ToolUses::default();
        for n in 0..200 {
            uses.add(&format!("t{n}"), 1);
        }
        uses.add("t0", 1);
        let long = "ü".repeat(MAX_TOOL_NAME);
        uses.add(&long, 1);
        assert_eq!(uses.iter().count(), MAX_TOOLS + 1);
        let count = |tool: &str| uses.iter().find(|(name, _)| *name == tool).map(|(_, calls)| calls);
        assert_eq!(count("t0"), Some(2));
        assert_eq!(count(OTHER_TOOLS), Some(200 - MAX_TOOLS as u64 + 1));
        let mut one = ToolUses::default();
        one.add(&long, 1);
        assert_eq!(one.iter().map(|(name, _)| name.len()).max(), Some(MAX_TOOL_NAME));
    }
}

//! `[adapter.NAME]` of a person's settings: the limits of the adapters that are part of this
//! program. What a program of somebody else takes is in its manifest.

use std::num::NonZeroU32;

use serde::Deserialize;

/// `[adapter]`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdapterSettings {
    /// `[adapter.claude-api]`
    #[serde(rename = "claude-api")]
    pub claude_api: ClaudeApiSettings,
}

/// `[adapter.claude-api]`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClaudeApiSettings {
    /// Calls of the model in one attempt, repetitions not counted.
    pub max_turns: Option<NonZeroU32>,
    /// Tokens of one answer, thinking included.
    pub max_output_tokens: Option<NonZeroU32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct File {
        adapter: AdapterSettings,
    }

    #[test]
    fn only_what_there_is_can_be_set_and_only_to_what_makes_sense() {
        let read = |text: &str| toml::from_str::<File>(text).map(|file| file.adapter);
        let text = "[run]\nverify = 'x'\n[adapter.claude-api]\nmax_turns = 3\nmax_output_tokens = 64000\n";
        let set = read(text).unwrap().claude_api;
        assert_eq!(set.max_turns.map(NonZeroU32::get), Some(3));
        assert_eq!(set.max_output_tokens.map(NonZeroU32::get), Some(64_000));
        assert_eq!(read("[adapter]").unwrap(), AdapterSettings::default());

        for wrong in [
            "[adapter.claude-api]\nmax_turns = 0",
            "[adapter.claude-api]\nmax_turns = -1",
            "[adapter.claude-api]\nmax_turns = 'many'",
            "[adapter.claude-api]\nmax_turnz = 5",
            "[adapter.claude-appi]\nmax_turns = 5",
            "[adapter",
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}

//! `[adapter.NAME]` of a person's settings: the limits of the adapters that are part of this
//! program. What a program of somebody else takes is in its manifest.

use std::num::NonZeroU32;
use std::path::Path;

use serde::Deserialize;

use super::LoadError;

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

/// Reads `[adapter]` of a settings file, and nothing else of it: the rest is for the program `kage`.
/// A file that is not there sets nothing.
///
/// # Errors
/// When the file cannot be read, is not TOML, or sets what there is not.
pub fn read_settings(path: &Path) -> Result<AdapterSettings, LoadError> {
    #[derive(Deserialize)]
    struct File {
        #[serde(default)]
        adapter: AdapterSettings,
    }
    match std::fs::read_to_string(path) {
        Ok(text) => match toml::from_str::<File>(&text) {
            Ok(file) => Ok(file.adapter),
            Err(source) => Err(LoadError::Settings {
                path: path.to_owned(),
                source: Box::new(source),
            }),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(AdapterSettings::default()),
        Err(source) => Err(LoadError::SettingsFile {
            path: path.to_owned(),
            source,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_there_is_can_be_set_and_only_to_what_makes_sense() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.toml");
        assert_eq!(read_settings(&file).unwrap(), AdapterSettings::default());

        std::fs::write(
            &file,
            "[run]\nverify = 'x'\n[adapter.claude-api]\nmax_turns = 3\nmax_output_tokens = 64000\n",
        )
        .unwrap();
        let read = read_settings(&file).unwrap().claude_api;
        assert_eq!(read.max_turns.map(NonZeroU32::get), Some(3));
        assert_eq!(read.max_output_tokens.map(NonZeroU32::get), Some(64_000));

        for wrong in [
            "[adapter.claude-api]\nmax_turns = 0",
            "[adapter.claude-api]\nmax_turns = -1",
            "[adapter.claude-api]\nmax_turns = 'many'",
            "[adapter.claude-api]\nmax_turnz = 5",
            "[adapter.claude-appi]\nmax_turns = 5",
            "[adapter",
        ] {
            std::fs::write(&file, wrong).unwrap();
            let error = read_settings(&file).unwrap_err();
            assert!(matches!(error, LoadError::Settings { .. }), "{wrong}: {error:?}");
        }
    }
}

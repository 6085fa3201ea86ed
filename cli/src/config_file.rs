//! The file that `--config` gives a coordinator or an agent, and the error for an unknown key, in
//! this and every other settings file.

use std::fmt::Display;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

/// Below this likeness a name is not suggested; clap uses the same value.
const ALIKE: f64 = 0.7;

/// Why a configuration file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigFileError {
    #[error("the configuration file {path} cannot be read")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the configuration file {path} cannot be used{hint}", hint = meant(.source))]
    Invalid {
        path: PathBuf,
        #[source]
        source: Box<toml::de::Error>,
    },
}

/// Reads a file of options; without a file there are none.
///
/// # Errors
/// When the file cannot be read, is not TOML, or has a key that there is not.
pub(crate) fn read<T: DeserializeOwned + Default>(path: Option<&Path>) -> Result<T, ConfigFileError> {
    let Some(path) = path else {
        return Ok(T::default());
    };
    let text = std::fs::read_to_string(path).map_err(|source| ConfigFileError::Read {
        path: path.to_owned(),
        source,
    })?;
    toml::from_str(&text).map_err(|source| ConfigFileError::Invalid {
        path: path.to_owned(),
        source: Box::new(source),
    })
}

/// ` (did you mean ...?)` for an error about an unknown key that is like a known one. Every format
/// of serde has the same wording: the unknown key first, then the known keys.
pub(crate) fn meant(error: &impl Display) -> String {
    let said = error.to_string();
    let Some((_, names)) = said.split_once("unknown field ") else {
        return String::new();
    };
    let mut names = names.split('`').skip(1).step_by(2);
    let Some(key) = names.next() else {
        return String::new();
    };
    let alike = names.map(|name| (strsim::jaro(key, name), name));
    match alike.max_by(|(one, _), (other, _)| one.total_cmp(other)) {
        Some((likeness, name)) if likeness > ALIKE => format!(" (did you mean `{name}`?)"),
        Some(_) | None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use clap::{Args, Command};

    use super::*;
    use crate::args::{AgentOptions, CoordinatorOptions};

    const OPERATIONS: &str = include_str!("../../docs/operations.md");

    /// The example of a file in the documents: the block after its name.
    fn example(name: &str) -> &'static str {
        let after = OPERATIONS.split_once(&format!("# {name}\n")).unwrap().1;
        after.split_once("\n```").unwrap().0
    }

    fn flags<T: Args>() -> BTreeSet<String> {
        let command = T::augment_args(Command::new("x"));
        let names = command.get_arguments().filter_map(|argument| argument.get_long());
        names.map(|name| name.replace('-', "_")).collect()
    }

    fn keys(text: &str) -> BTreeSet<String> {
        text.parse::<toml::Table>()
            .unwrap()
            .into_iter()
            .map(|(key, _)| key)
            .collect()
    }

    #[test]
    fn the_documents_show_every_key_and_the_defaults_that_there_are() {
        let text = example("coordinator.toml");
        let mut expected = flags::<CoordinatorOptions>();
        expected.extend(["limits", "budgets"].map(str::to_owned));
        assert_eq!(keys(text), expected);
        let shown: CoordinatorOptions = toml::from_str(text).unwrap();
        assert_eq!(shown.token_agents, Some(kage_core::access::Capabilities::RUN));
        assert_eq!(shown.limits.limits(), kage_coordinator::CallerLimits::default());
        let usual = kage_coordinator::Timings::default();
        let patience = kage_core::deadline::Patience::default();
        assert_eq!(
            [
                shown.heartbeat,
                shown.lease_ttl,
                shown.lost_after,
                shown.grace,
                shown.max_detached,
                shown.limit_slack,
                shown.stop_answer
            ],
            [
                usual.heartbeat,
                usual.lease_ttl,
                usual.lost_after,
                usual.grace,
                usual.max_detached,
                patience.slack.least,
                patience.stop_answer
            ]
            .map(Some)
        );
        let kept = kage_core::retention::Limits::of(shown.keep_days, shown.keep_gib);
        assert_eq!(kept, kage_core::retention::Limits::default());

        let text = example("agent.toml");
        let mut expected = flags::<AgentOptions>();
        expected.extend(["disk", "contain", "network", "adapter"].map(str::to_owned));
        assert_eq!(keys(text), expected);
        let shown: AgentOptions = toml::from_str(text).unwrap();
        let usual = kage_agent::Limits::default();
        assert_eq!((shown.drain, shown.disk.limits()), (Some(usual.drain), usual));
        assert_eq!(
            shown.network,
            Some(kage_core::network::NetworkSettings {
                allow: shown.network.iter().flat_map(|network| network.allow.clone()).collect(),
                ..Default::default()
            })
        );
        assert!(shown.adapter.of("claude-api").max_turns.is_some());
    }

    #[test]
    fn a_flag_wins_over_the_file() {
        let file: CoordinatorOptions =
            toml::from_str("listen = '127.0.0.1:1'\ntls = true\npublic_name = ['a', 'b']\ngrace = '0'").unwrap();
        let flags = CoordinatorOptions {
            tls: Some(false),
            public_name: vec!["c".to_owned()],
            heartbeat: Some(Duration::from_secs(1)),
            ..CoordinatorOptions::default()
        };
        let both = flags.clone().or(file.clone());
        let expected = CoordinatorOptions {
            listen: file.listen,
            grace: Some(Duration::ZERO),
            ..flags
        };
        assert_eq!(both, expected);
    }

    #[test]
    fn a_key_that_there_is_not_is_refused_with_the_nearest_name() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("agent.toml");
        for (text, nearest) in [
            ("slot = 3", Some("slots")),
            ("token-file = 'x'", Some("token_file")),
            ("[disk]\nmirror_mib = 5", Some("mirrors_mib")),
            ("[adapter.claude-api]\nmax_turnz = 5", Some("max_turns")),
            ("[adapter.claude_api]\nmax_turns = 5", Some("claude-api")),
            ("zzz = 5", None),
            ("slots = 'many'", None),
            ("slots", None),
        ] {
            std::fs::write(&file, text).unwrap();
            let error = read::<AgentOptions>(Some(&file)).unwrap_err();
            let said = error.to_string();
            match nearest {
                Some(name) => assert!(said.ends_with(&format!("(did you mean `{name}`?)")), "{said}"),
                None => assert!(said.ends_with("cannot be used"), "{said}"),
            }
        }
        let missing = read::<AgentOptions>(Some(&dir.path().join("none")));
        assert!(matches!(missing, Err(ConfigFileError::Read { .. })));
        assert_eq!(read::<AgentOptions>(None).unwrap(), AgentOptions::default());
    }
}

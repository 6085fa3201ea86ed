//! `[adapter]` of the settings: a section for each built-in adapter, and one for each adapter of the
//! person's own that is like one of them (`kind`). Other programs have their settings in their
//! manifests.

use std::collections::BTreeMap;
use std::path::Path;

use kage_core::id::{AdapterName, InvalidId};
use serde::Deserialize;

use super::api::PROVIDERS;
use super::settings::ApiSettings;

/// `[adapter]`: settings by the adapter's name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "BTreeMap<String, ApiSettings>")]
pub struct AdapterSettings(BTreeMap<String, ApiSettings>);

/// Why a section of `[adapter]` cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSection {
    /// No adapter has this name, and the section makes none.
    // In serde's wording, from which the nearest name is suggested.
    #[error("unknown field `{name}`, expected one of `{}`", names().join("`, `"))]
    Unknown { name: String },
    /// Its kind is none.
    #[error("kind of [adapter.{name}] is one of {}, {ACP}, not {kind}", names().join(", "))]
    Kind { name: String, kind: String },
    /// A built-in adapter is of its own kind.
    #[error("[adapter.{name}] is the built-in adapter; give a section with another kind a name of its own")]
    BuiltIn { name: String },
    /// It is an agent that speaks ACP.
    #[error(
        "[adapter.{name}] of the kind {ACP} has command, a list that begins with a program, and may have \
         key_variable; the agent itself has other settings"
    )]
    Agent { name: String },
    #[error("command is a setting of the kind {ACP}, and [adapter.{name}] is another one")]
    Command { name: String },
    #[error("a section of [adapter] has a wrong name: {0}")]
    Name(InvalidId),
    #[error("context is a setting of ollama, and [adapter.{name}] is another adapter")]
    Context { name: String },
}

/// The adapters that are told how much room there is.
const WITH_CONTEXT: &str = "ollama";

/// The kind of agents that speak the Agent Client Protocol: programs instead of APIs.
pub(super) const ACP: &str = "acp";

/// An agent that speaks ACP, under a name of its own.
fn check_agent(name: &str, settings: &ApiSettings) -> Result<(), InvalidSection> {
    name.parse::<AdapterName>().map_err(InvalidSection::Name)?;
    let others = ApiSettings {
        kind: None,
        command: None,
        key_variable: None,
        ..settings.clone()
    };
    let command = settings.command.as_deref().unwrap_or_default();
    let named = command.first().is_some_and(|program| !program.trim().is_empty());
    match named && others == ApiSettings::default() {
        true => Ok(()),
        false => Err(InvalidSection::Agent { name: name.to_owned() }),
    }
}

fn check(name: &str, settings: &ApiSettings) -> Result<(), InvalidSection> {
    let name_of = || name.to_owned();
    let built_in = names().contains(&name);
    let kind = match &settings.kind {
        None if built_in => name,
        None => return Err(InvalidSection::Unknown { name: name_of() }),
        Some(kind) if built_in && kind != name => return Err(InvalidSection::BuiltIn { name: name_of() }),
        Some(kind) if kind == ACP => return check_agent(name, settings),
        Some(kind) if !names().contains(&kind.as_str()) => {
            let kind = kind.clone();
            return Err(InvalidSection::Kind { name: name_of(), kind });
        }
        Some(kind) => kind,
    };
    name.parse::<AdapterName>().map_err(InvalidSection::Name)?;
    if settings.command.is_some() {
        return Err(InvalidSection::Command { name: name_of() });
    }
    if settings.context.is_some() && kind != WITH_CONTEXT {
        return Err(InvalidSection::Context { name: name_of() });
    }
    Ok(())
}

fn names() -> Vec<&'static str> {
    PROVIDERS.iter().map(|provider| provider.name).collect()
}

impl TryFrom<BTreeMap<String, ApiSettings>> for AdapterSettings {
    type Error = InvalidSection;

    fn try_from(settings: BTreeMap<String, ApiSettings>) -> Result<Self, InvalidSection> {
        settings
            .iter()
            .try_for_each(|(name, settings)| check(name, settings))
            .map(|()| Self(settings))
    }
}

impl AdapterSettings {
    /// The settings of an adapter.
    #[must_use]
    pub fn of(&self, name: &str) -> ApiSettings {
        self.0.get(name).cloned().unwrap_or_default()
    }

    /// The sections with names of their own.
    pub(super) fn own(&self) -> impl Iterator<Item = (&str, &ApiSettings)> {
        let all = self.0.iter().map(|(name, settings)| (name.as_str(), settings));
        all.filter(|(name, _)| !names().contains(name))
    }

    /// These settings; where they are unset, the others.
    #[must_use]
    pub fn or(self, others: &Self) -> Self {
        let mut all = others.clone();
        for (name, own) in self.0 {
            let other = others.of(&name);
            all.0.insert(name, own.or(other));
        }
        all
    }

    /// The files with keys.
    pub fn key_files(&self) -> impl Iterator<Item = &Path> {
        self.0.values().filter_map(|settings| settings.key_file.as_deref())
    }

    /// The keys of `[adapter]` whose values are lists.
    pub fn list_keys() -> impl Iterator<Item = String> {
        names().into_iter().map(|name| format!("{name}.models"))
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use kage_core::price::Effort;

    use super::super::settings::BaseUrl;
    use super::*;

    fn read(text: &str) -> Result<ApiSettings, toml::de::Error> {
        #[derive(Deserialize)]
        struct File {
            #[serde(default)]
            adapter: AdapterSettings,
        }
        toml::from_str::<File>(text).map(|file| file.adapter.of("claude-api"))
    }

    #[test]
    fn everything_can_be_set_and_nothing_need_be() {
        assert_eq!(read("[run]\nverify = 'x'\n").unwrap(), ApiSettings::default());
        let all = read(
            "[run]\nverify = 'x'\n[adapter.claude-api]\nmax_turns = 3\nmax_output_tokens = 64000\n\
             base_url = 'https://gateway/claude/'\nkey_file = '/key'\neffort = 'xhigh'\nmodels = ['a', 'b']\n",
        )
        .unwrap();
        assert_eq!(all.max_turns.map(NonZeroU32::get), Some(3));
        assert_eq!(all.max_output_tokens.map(NonZeroU32::get), Some(64_000));
        assert_eq!(
            all.base_url.as_ref().map(BaseUrl::as_str),
            Some("https://gateway/claude")
        );
        assert_eq!(all.key_file.as_deref(), Some(std::path::Path::new("/key")));
        assert_eq!(all.effort, Some(Effort::Xhigh));
        let models = all.models.unwrap();
        assert_eq!(models.first(), "a");
        assert!(models.contain("b") && !models.contain("c"));
    }

    #[test]
    fn what_is_not_set_in_one_place_is_taken_from_the_other() {
        let read = |text| toml::from_str::<AdapterSettings>(text).unwrap();
        let user = read("[claude-api]\nmax_turns = 3\neffort = 'low'");
        let agent = read("[claude-api]\nmax_turns = 7\nmodels = ['a']");
        let both = agent.or(&user).of("claude-api");
        assert_eq!(both.max_turns.map(NonZeroU32::get), Some(7));
        assert_eq!(both.effort, Some(Effort::Low));
        assert_eq!(both.models.map(|models| models.to_string()).as_deref(), Some("a"));
        assert_eq!(AdapterSettings::default().or(&user), user);
    }

    #[test]
    fn a_section_with_a_kind_is_an_adapter_of_its_own() {
        let read = |text| toml::from_str::<AdapterSettings>(text).map_err(|error| error.to_string());
        let all = read(
            "[vllm]\nkind = 'openai-chat'\nbase_url = 'http://gpu/v1/'\nkey_variable = 'VLLM_KEY'\nfree = true\n\
             headers = { 'X-Team' = 'blue' }\n[ollama]\nkind = 'ollama'\ncontext = 65536\n[claude-api]\nmax_turns = 1",
        )
        .unwrap();
        let own: Vec<_> = all.own().collect();
        assert_eq!(own.len(), 1);
        let (name, settings) = own[0];
        assert_eq!(
            (name, settings.kind.as_deref(), settings.free),
            ("vllm", Some("openai-chat"), Some(true))
        );
        assert_eq!(settings.base_url.as_ref().map(BaseUrl::as_str), Some("http://gpu/v1"));
        let header = settings.headers.iter().next().unwrap();
        assert_eq!((header.0.as_str(), header.1.as_str()), ("X-Team", "blue"));

        // A section of another kind has nothing that this one lacks.
        let other = read("[vllm]\nkind = 'claude-api'\nmax_turns = 3").unwrap();
        assert_eq!(other.clone().or(&all).of("vllm"), other.of("vllm"));

        for (wrong, words) in [
            ("[vllm]\nfree = true", "unknown field `vllm`"),
            ("[vllm]\nkind = 'openai'\nkind2 = 1", "kind2"),
            ("[vllm]\nkind = 'vllm'", "kind of [adapter.vllm] is one of claude-api, "),
            ("[goose]\nkind = 'acp'", "has command, a list"),
            ("[goose]\nkind = 'acp'\ncommand = []", "has command, a list"),
            (
                "[goose]\nkind = 'acp'\ncommand = ['goose']\nmax_turns = 3",
                "may have key_variable",
            ),
            ("[Goose]\nkind = 'acp'\ncommand = ['goose']", "an adapter name"),
            (
                "[vllm]\nkind = 'openai'\ncommand = ['x']",
                "command is a setting of the kind acp",
            ),
            (
                "[ollama]\nkind = 'openai-chat'",
                "[adapter.ollama] is the built-in adapter",
            ),
            ("[\"Big One\"]\nkind = 'ollama'", "an adapter name"),
            (
                "[vllm]\nkind = 'openai-chat'\ncontext = 5",
                "context is a setting of ollama",
            ),
            ("[ollama]\ncontext = 0", "context"),
            (
                "[ollama]\nheaders = { 'a b' = 'c' }",
                "names and values that HTTP allows",
            ),
        ] {
            let said = read(wrong).unwrap_err();
            assert!(said.contains(words), "{wrong}: {said}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_key_and_what_can_be() {
        for (wrong, words) in [
            ("max_turns = 0", &["max_turns", "nonzero"][..]),
            ("max_turns = -1", &["max_turns", "nonzero"]),
            ("max_turns = 'many'", &["max_turns", "nonzero"]),
            ("max_turnz = 5", &["max_turnz", "`max_turns`", "`effort`", "`models`"]),
            ("effort = 'huge'", &["effort", "low, medium, high, xhigh or max"]),
            ("base_url = 'gateway'", &["base_url", "http://", "https://"]),
            ("base_url = 'ftp://gateway'", &["base_url", "http://", "https://"]),
            ("base_url = 'https://gateway?key=1'", &["base_url", "without a query"]),
            ("models = []", &["models", "at least one"]),
            ("models = ['']", &["models", "none of them empty"]),
        ] {
            let error = read(&format!("[adapter.claude-api]\n{wrong}")).unwrap_err();
            let said = error.to_string();
            assert!(words.iter().all(|word| said.contains(word)), "{wrong}: {said}");
        }
        for (wrong, word) in [("[adapter.claude-appi]\nmax_turns = 5", "claude-api"), ("[adapter", "")] {
            let error = read(wrong).unwrap_err();
            assert!(error.to_string().contains(word), "{wrong}: {error}");
        }
    }
}

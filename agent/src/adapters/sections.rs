//! `[adapter]` of the settings: a section for each built-in adapter. Other programs have their
//! settings in their manifests.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::api::PROVIDERS;
use super::settings::ApiSettings;

/// `[adapter]`: settings by the adapter's name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "BTreeMap<String, ApiSettings>")]
pub struct AdapterSettings(BTreeMap<String, ApiSettings>);

/// An unknown adapter, or one without settings.
// In serde's wording, from which the nearest name is suggested.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown field `{name}`, expected one of `{}`", names().join("`, `"))]
pub struct UnknownAdapter {
    name: String,
}

fn names() -> Vec<&'static str> {
    PROVIDERS.iter().map(|provider| provider.name).collect()
}

impl TryFrom<BTreeMap<String, ApiSettings>> for AdapterSettings {
    type Error = UnknownAdapter;

    fn try_from(settings: BTreeMap<String, ApiSettings>) -> Result<Self, UnknownAdapter> {
        match settings.keys().find(|name| !names().contains(&name.as_str())) {
            Some(name) => Err(UnknownAdapter { name: name.clone() }),
            None => Ok(Self(settings)),
        }
    }
}

impl AdapterSettings {
    /// The settings of an adapter.
    #[must_use]
    pub fn of(&self, name: &str) -> ApiSettings {
        self.0.get(name).cloned().unwrap_or_default()
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

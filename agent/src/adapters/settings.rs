//! `[adapter.NAME]` of the settings: the limits of the built-in adapters. Other programs have their
//! settings in their manifests.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::PathBuf;

use kage_core::price::Effort;
use reqwest::Url;
use serde::Deserialize;

use super::api::PROVIDERS;

/// `[adapter]`: settings by the adapter's name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "BTreeMap<String, ApiSettings>")]
pub struct AdapterSettings(BTreeMap<String, ApiSettings>);

/// `[adapter.NAME]` of an adapter for a provider's API.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ApiSettings {
    /// Model calls of one attempt, without retries; 200 by default. The limit ends a model that
    /// loops while no budget bounds its cost.
    pub max_turns: Option<NonZeroU32>,
    /// Tokens of one answer, thinking included. The default is the model's maximum by the price
    /// table, or 32000 for an unknown model. Never more than the model's maximum.
    pub max_output_tokens: Option<NonZeroU32>,
    /// Where requests go, before the provider's variable (`ANTHROPIC_BASE_URL`) and address.
    pub base_url: Option<BaseUrl>,
    /// A file with the key, used when the provider's variable (`ANTHROPIC_API_KEY`) is not set.
    pub key_file: Option<PathBuf>,
    /// How much the model does for an answer: `low`, `medium`, `high`, `xhigh` or `max`, as far as
    /// it has the level. Unless set, it is the model's own default.
    pub effort: Option<Effort>,
    /// The models that tasks may name; the first is the default. Unset: any model.
    pub models: Option<Models>,
}

impl ApiSettings {
    fn or(self, other: Self) -> Self {
        Self {
            max_turns: self.max_turns.or(other.max_turns),
            max_output_tokens: self.max_output_tokens.or(other.max_output_tokens),
            base_url: self.base_url.or(other.base_url),
            key_file: self.key_file.or(other.key_file),
            effort: self.effort.or(other.effort),
            models: self.models.or(other.models),
        }
    }
}

/// Names of models, at least one.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Vec<String>")]
pub struct Models(Vec<String>);

impl Models {
    /// The default model.
    pub(super) fn first(&self) -> &str {
        self.0.first().map_or("", String::as_str)
    }

    pub(super) fn contain(&self, model: &str) -> bool {
        self.0.iter().any(|known| known == model)
    }
}

impl std::fmt::Display for Models {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.join(", "))
    }
}

/// The address of a provider, without a `/` at its end.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct BaseUrl(String);

impl BaseUrl {
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

/// Why a value of `[adapter]` cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSetting {
    /// An unknown adapter, or one without settings.
    // In serde's wording, from which the nearest name is suggested.
    #[error("unknown field `{name}`, expected one of `{}`", names().join("`, `"))]
    Adapter { name: String },
    /// No request can be sent there.
    #[error("base_url is {url:?}; it is an address that begins with http:// or https://, without a query")]
    BaseUrl { url: String },
    #[error("models is a list of at least one name, none of them empty")]
    Models,
}

fn names() -> Vec<&'static str> {
    PROVIDERS.iter().map(|provider| provider.name).collect()
}

impl TryFrom<BTreeMap<String, ApiSettings>> for AdapterSettings {
    type Error = InvalidSetting;

    fn try_from(settings: BTreeMap<String, ApiSettings>) -> Result<Self, InvalidSetting> {
        match settings.keys().find(|name| !names().contains(&name.as_str())) {
            Some(name) => Err(InvalidSetting::Adapter { name: name.clone() }),
            None => Ok(Self(settings)),
        }
    }
}

impl TryFrom<Vec<String>> for Models {
    type Error = InvalidSetting;

    fn try_from(names: Vec<String>) -> Result<Self, InvalidSetting> {
        let empty = names.is_empty() || names.iter().any(|name| name.trim().is_empty());
        if empty {
            Err(InvalidSetting::Models)
        } else {
            Ok(Self(names))
        }
    }
}

impl TryFrom<String> for BaseUrl {
    type Error = InvalidSetting;

    fn try_from(url: String) -> Result<Self, InvalidSetting> {
        let fits = |parsed: Url| {
            let http = matches!(parsed.scheme(), "http" | "https");
            http && parsed.query().is_none() && parsed.fragment().is_none()
        };
        if Url::parse(&url).is_ok_and(fits) {
            Ok(Self(url.trim_end_matches('/').to_owned()))
        } else {
            Err(InvalidSetting::BaseUrl { url })
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

//! `[adapter.NAME]` of the settings: the limits of an adapter for a provider's API. [`super::sections`]
//! has those of all.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::PathBuf;

use kage_core::price::Effort;
use reqwest::Url;
use reqwest::header::{HeaderName, HeaderValue};
use serde::Deserialize;

/// `[adapter.NAME]` of an adapter for a provider's API.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ApiSettings {
    /// The adapter that this one is like, for a section with a name of its own: the name of a
    /// built-in adapter for an API.
    pub kind: Option<String>,
    /// The program and its arguments, for the kind `acp`: an agent that speaks the Agent Client Protocol. They may
    /// have the placeholders of manifests.
    pub command: Option<Vec<String>>,
    /// Model calls of one attempt, without retries; 200 by default. The limit ends a model that
    /// loops while no budget bounds its cost.
    pub max_turns: Option<NonZeroU32>,
    /// Tokens of one answer, thinking included. The default is the model's maximum by the price
    /// table, or 32000 for an unknown model. Never more than the model's maximum.
    pub max_output_tokens: Option<NonZeroU32>,
    /// Where requests go, before the provider's variable (`ANTHROPIC_BASE_URL`) and address.
    pub base_url: Option<BaseUrl>,
    /// A file with the key, used when the provider's variable (`ANTHROPIC_API_KEY`) is not set. With a
    /// `base_url` here, only `claude-api` reads that variable.
    pub key_file: Option<PathBuf>,
    /// The variable with the key, instead of the provider's. An adapter with a name of its own reads
    /// no variable unless this is set.
    pub key_variable: Option<String>,
    /// Headers of every request, for gateways; they replace the dialect's own of the same name. No place
    /// for keys.
    pub headers: BTreeMap<HeaderKey, HeaderText>,
    /// How much the model does for an answer: `low`, `medium`, `high`, `xhigh` or `max`, as far as
    /// it has the level. Unless set, it is the model's own default.
    pub effort: Option<Effort>,
    /// Sessions that may run at the same time beside the agent's slots; 32 by default. 0: each takes one
    /// of the agent's slots.
    pub slots: Option<u32>,
    /// The models that tasks may name; the first is the default. Unset: any model.
    pub models: Option<Models>,
    /// Tokens that prompt and answer have room in, for `ollama`, which is told and otherwise would cut
    /// the prompt without a word; 32768 by default.
    pub context: Option<NonZeroU32>,
    /// True when its calls cost nothing, as those of a server of one's own. The default is true for
    /// models that `ollama` runs itself and not at ollama.com, and false otherwise.
    pub free: Option<bool>,
}

impl ApiSettings {
    /// These settings; where they are unset, the others.
    pub(super) fn or(self, other: Self) -> Self {
        if self.kind.is_some() && other.kind.is_some() && self.kind != other.kind {
            // They are of different servers.
            return self;
        }
        Self {
            kind: self.kind.or(other.kind),
            command: self.command.or(other.command),
            max_turns: self.max_turns.or(other.max_turns),
            max_output_tokens: self.max_output_tokens.or(other.max_output_tokens),
            base_url: self.base_url.or(other.base_url),
            key_file: self.key_file.or(other.key_file),
            key_variable: self.key_variable.or(other.key_variable),
            headers: if self.headers.is_empty() {
                other.headers
            } else {
                self.headers
            },
            effort: self.effort.or(other.effort),
            slots: self.slots.or(other.slots),
            models: self.models.or(other.models),
            context: self.context.or(other.context),
            free: self.free.or(other.free),
        }
    }
}

/// The name of a header.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct HeaderKey(String);

impl HeaderKey {
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for HeaderKey {
    type Error = InvalidSetting;

    fn try_from(name: String) -> Result<Self, InvalidSetting> {
        match HeaderName::try_from(&name) {
            Ok(_) => Ok(Self(name)),
            Err(_) => Err(InvalidSetting::Header),
        }
    }
}

/// The value of a header.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct HeaderText(String);

impl HeaderText {
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for HeaderText {
    type Error = InvalidSetting;

    fn try_from(value: String) -> Result<Self, InvalidSetting> {
        match HeaderValue::try_from(&value) {
            Ok(_) => Ok(Self(value)),
            Err(_) => Err(InvalidSetting::Header),
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
    /// No request can be sent there.
    #[error("base_url is {url:?}; it is an address that begins with http:// or https://, without a query")]
    BaseUrl { url: String },
    #[error("models is a list of at least one name, none of them empty")]
    Models,
    #[error("headers are names and values that HTTP allows")]
    Header,
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

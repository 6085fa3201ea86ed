//! How a program's calls of models can go through the agent: which variables say where its provider is, and with
//! which key. Without a key in a variable there is no gateway: a login's token is for the provider's own program.

use serde::{Deserialize, Deserializer, de};
use url::Url;

use super::EnvRule;
use crate::adapters::metered::MeteredWire;
use crate::process::AgentEnvironment;

/// A provider that the program can be given another address for.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GatewayRule {
    pub wire: MeteredWire,
    /// The variable with the provider's address.
    pub base_url: String,
    /// The variable with its key.
    pub key: String,
    /// The address when that variable is not set.
    #[serde(deserialize_with = "address")]
    pub provider: Url,
    /// What names of models begin with that are this provider's; empty: all are.
    #[serde(default)]
    pub models: String,
}

fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Url, D::Error> {
    let text = String::deserialize(deserializer)?;
    Url::parse(&text).map_err(de::Error::custom)
}

impl GatewayRule {
    pub(super) fn check(&self, env: &EnvRule) -> Result<(), String> {
        let is_in = |list: &[String], name: &String| list.contains(name);
        if !is_in(&env.inherit, &self.base_url) {
            return Err(format!(
                "[[gateway]] base_url needs {:?} in [env] inherit",
                self.base_url
            ));
        }
        if !is_in(&env.secret, &self.key) {
            return Err(format!("[[gateway]] key needs {:?} in [env] secret", self.key));
        }
        Ok(())
    }

    /// Address and key of a session with this model, where this rule is for it: the key is set, and the address
    /// can be called.
    #[must_use]
    pub fn target(&self, model: Option<&str>, agent: &AgentEnvironment) -> Option<(Url, String)> {
        if !self.models.is_empty() && !model.is_some_and(|model| model.starts_with(&self.models)) {
            return None;
        }
        let key = agent.text(&self.key)?;
        let set = agent.text(&self.base_url);
        let address = set.map_or_else(|| Ok(self.provider.clone()), Url::parse).ok()?;
        let is_web = matches!(address.scheme(), "http" | "https") && address.host_str().is_some();
        is_web.then(|| (address, key.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(variables: &[(&str, &str)]) -> AgentEnvironment {
        let variables = variables.iter().map(|(name, value)| (name.into(), value.into()));
        AgentEnvironment::new(variables.collect())
    }

    #[test]
    fn a_key_in_a_variable_makes_a_gateway_and_nothing_else_does() {
        let rule: GatewayRule = toml::from_str(
            "wire = 'chat'\nbase_url = 'B'\nkey = 'K'\nprovider = 'https://api.example/v1'\nmodels = 'compatible/'",
        )
        .unwrap();
        let address = |model, variables: &[(&str, &str)]| {
            let (address, _key) = rule.target(model, &agent(variables))?;
            Some(address.to_string())
        };
        let model = Some("compatible/m");
        assert_eq!(address(model, &[("K", "k")]).as_deref(), Some("https://api.example/v1"));
        let set = [("K", "k"), ("B", "http://127.0.0.1:9/x")];
        assert_eq!(address(model, &set).as_deref(), Some("http://127.0.0.1:9/x"));
        for (model, variables) in [
            (model, vec![]),
            (model, vec![("K", " ")]),
            (Some("openai/m"), vec![("K", "k")]),
            (None, vec![("K", "k")]),
            (model, vec![("K", "k"), ("B", "nowhere")]),
            (model, vec![("K", "k"), ("B", "unix:/run/x")]),
        ] {
            assert_eq!(address(model, &variables), None, "{model:?} {variables:?}");
        }
    }
}

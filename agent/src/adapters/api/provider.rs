//! Providers with a built-in adapter, and the adapters that the settings make of them: one under
//! each provider's own name, and any number under names of a person's own (`kind`).

use kage_core::id::AdapterName;

use super::super::settings::{ApiSettings, BaseUrl};
use super::super::{AdapterConfig, AdapterSettings, LoadError};
use super::wire::Wire;

/// A provider with a built-in adapter.
#[derive(Debug)]
pub(in crate::adapters) struct Provider {
    /// The adapter's name in tasks, and `kind` of those with a name of their own.
    pub(in crate::adapters) name: &'static str,
    /// The default address of requests.
    pub(super) base_url: &'static str,
    /// The environment variable that replaces the default address.
    pub(super) base_url_variable: &'static str,
    /// What the value of that variable means as an address.
    pub(super) address: fn(&str) -> String,
    pub(super) key_variable: &'static str,
    pub(super) key: KeyRule,
    /// The program without which nothing is at the default address.
    pub(super) program: Option<&'static str>,
    /// The model when neither the task nor the settings name one; `None`: one must be named.
    pub(super) model: Option<&'static str>,
    /// True when calls of a model at an address cost nothing.
    pub(super) free: fn(base_url: &str, model: &str) -> bool,
    /// The hosts that take the prices of the price table: what another address takes for a model of the
    /// same name, nobody knows. `None`: whatever answers, its models have the table's prices, since an
    /// address of one's own is a gateway to the provider.
    pub(super) sellers: Option<&'static [&'static str]>,
    /// Whether servers of this dialect elsewhere have models of many makers.
    pub(super) many_makers: bool,
    /// A path that every server answers, where one may not be running.
    pub(super) probe: Option<&'static str>,
    pub(super) wire: &'static Wire,
}

/// Where calls need a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KeyRule {
    Always,
    /// Always, and the key of the usual variable also goes to an address of the settings: that is how
    /// gateways are set up.
    AlwaysTheUsual,
    /// At the default address. A server elsewhere says itself when it wants one.
    AtDefaultAddress,
    Never,
}

/// For [`Provider::address`]: the value as it is.
pub(super) fn as_given(value: &str) -> String {
    value.to_owned()
}

/// For [`Provider::free`]: every call is on the bill.
pub(super) fn never_free(_base_url: &str, _model: &str) -> bool {
    false
}

/// An adapter that the settings make of a provider.
#[derive(Debug, Clone)]
pub(in crate::adapters) struct Instance {
    pub(in crate::adapters) name: AdapterName,
    pub(super) provider: &'static Provider,
    pub(in crate::adapters) settings: ApiSettings,
    /// True for a name of the person's own. Keys and addresses in the provider's variables are not
    /// meant for it: its server is another one.
    own: bool,
}

/// All adapters for APIs, in the order of their names' origin: shipped ones first.
pub(in crate::adapters) fn instances(settings: &AdapterSettings) -> Vec<Instance> {
    let shipped = super::PROVIDERS.iter().map(|provider| Instance {
        name: provider.name.parse().expect("the name is a literal that fits"),
        provider,
        settings: settings.of(provider.name),
        own: false,
    });
    let own = settings.own().filter_map(|(name, settings)| {
        let kind = settings.kind.as_deref()?;
        Some(Instance {
            name: name.parse().ok()?,
            provider: super::PROVIDERS.iter().find(|provider| provider.name == kind)?,
            settings: settings.clone(),
            own: true,
        })
    });
    shipped.chain(own).collect()
}

impl Instance {
    /// True for a name of the person's own.
    pub(in crate::adapters) const fn is_own(&self) -> bool {
        self.own
    }

    /// Whether the key of the provider's usual variable is meant for it. It is not for another server that
    /// the settings name; where the environment names one, it is of the same person as the key.
    fn has_usual_key(&self) -> bool {
        let set = self.settings.base_url.as_ref().map(BaseUrl::as_str);
        let elsewhere = set.is_some_and(|url| url != self.provider.base_url);
        !self.own && (!elsewhere || self.provider.key == KeyRule::AlwaysTheUsual)
    }

    /// The variable with its key.
    pub(super) fn key_variable(&self) -> Option<&str> {
        let usual = self.has_usual_key().then_some(self.provider.key_variable);
        self.settings.key_variable.as_deref().or(usual)
    }

    /// The variables that it reads.
    pub(in crate::adapters) fn variables(&self) -> impl Iterator<Item = &str> {
        let address = (!self.own).then_some(self.provider.base_url_variable);
        self.key_variable().into_iter().chain(address)
    }

    /// Its key.
    ///
    /// # Errors
    /// When the key file that was named cannot be read.
    pub(super) fn read_key(&self, config: &AdapterConfig) -> Result<Option<String>, LoadError> {
        let given = self.key_variable().and_then(|name| config.agent.text(name));
        match (given, &self.settings.key_file) {
            (Some(key), _) => Ok(Some(key.to_owned())),
            (None, Some(path)) => {
                let key = std::fs::read_to_string(path).map_err(|source| LoadError::KeyFile {
                    path: path.clone(),
                    source,
                })?;
                Ok(Some(key.trim().to_owned()).filter(|key| !key.is_empty()))
            }
            (None, None) => Ok(None),
        }
    }

    /// Where requests go; `None`: to the default address.
    fn set_base_url(&self, config: &AdapterConfig) -> Option<String> {
        let set = self.settings.base_url.as_ref().map(BaseUrl::as_str).map(str::to_owned);
        set.or_else(|| {
            let variable = (!self.own).then_some(self.provider.base_url_variable)?;
            config.agent.text(variable).map(self.provider.address)
        })
    }

    /// Where requests go, without a `/` at its end.
    pub(super) fn base_url(&self, config: &AdapterConfig) -> String {
        let set = self.set_base_url(config);
        let url = set.as_deref().unwrap_or(self.provider.base_url);
        url.trim_end_matches('/').to_owned()
    }

    /// What stands before a model's name where its price is looked up: nobody knows what the server
    /// at another address takes for it, unless a person's own table says so. `None`: nothing.
    pub(super) fn seller(&self, base_url: &str) -> Option<AdapterName> {
        let sellers = self.provider.sellers?;
        let url = reqwest::Url::parse(base_url).ok()?;
        let known = url.host_str().is_some_and(|host| sellers.contains(&host));
        (!known).then(|| self.name.clone())
    }

    /// Under which names a model's parameters are looked up in the price table, the best first. A person's
    /// own row of this adapter says most. The name alone says nothing where a server has models of many
    /// makers.
    pub(super) fn described_as(&self, base_url: &str, model: &str) -> Vec<String> {
        match self.seller(base_url) {
            None => vec![model.to_owned()],
            Some(seller) if self.provider.many_makers => vec![format!("{seller}/{model}")],
            Some(seller) => vec![format!("{seller}/{model}"), model.to_owned()],
        }
    }

    /// Why it cannot be used on this machine, and what to do; `None`: it can.
    pub(super) fn lacks(&self, key: Option<&str>, config: &AdapterConfig) -> Option<String> {
        let elsewhere = self.set_base_url(config).is_some();
        let needs_key = match self.provider.key {
            KeyRule::Always | KeyRule::AlwaysTheUsual => true,
            KeyRule::AtDefaultAddress => !elsewhere,
            KeyRule::Never => false,
        };
        if needs_key && key.is_none() {
            return Some(self.no_key());
        }
        let program = self.provider.program.filter(|_| !elsewhere)?;
        let why = config.program(program).err()?;
        let name = &self.name;
        Some(format!(
            "{why}; install it, or set [adapter.{name}] base_url to the address of a machine that has it"
        ))
    }

    fn no_key(&self) -> String {
        let name = &self.name;
        let address = match self.provider.key {
            KeyRule::AtDefaultAddress => format!(", or [adapter.{name}] base_url for a server that needs none"),
            KeyRule::Always | KeyRule::AlwaysTheUsual | KeyRule::Never => String::new(),
        };
        match self.key_variable() {
            Some(variable) => format!(
                "set {variable} in the shell of `kage run` or, on another machine, where its agent starts; or set \
                 [adapter.{name}] key_file{address}"
            ),
            None => format!("set [adapter.{name}] key_variable or key_file{address}"),
        }
    }

    /// What of the machine decides how it comes out, as text.
    pub(in crate::adapters) fn facts(&self, config: &AdapterConfig) -> String {
        let key = self.settings.key_file.as_ref().map(std::fs::read);
        let program = self.provider.program.map(|program| config.program(program));
        format!("{:?} {program:?}\n", key.and_then(Result::ok))
    }
}

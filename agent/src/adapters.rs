//! Makes the adapters of an agent from its configuration: plain data in, a registry out.
//!
//! Three families: the loop over providers' APIs ([`api`]), programs described by manifests ([`cli`]),
//! and those of them that are talked to ([`acp`]). An adapter that cannot be used on this machine stays in the registry, with the
//! reason.

pub mod metered;
pub mod session_file;
pub mod steps;
pub mod hearing;
pub mod mcp;
pub mod port;
mod tools;
mod settings;
pub mod api;
mod sections;
pub mod cli;
mod acp;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::future::join_all;
use kage_core::failure_table::{FailureTable, InvalidRules};
use kage_core::id::{AdapterName, Digest};
use kage_core::price::PriceTable;
use kage_core::time::{LocalTime, Timestamp};
use kage_git::executable::{Executable, search_folders};

use crate::adapters::port::{Adapter, Registry};
use crate::logins::{LoginParts, Logins};
use crate::process::{AgentEnvironment, Runner};
use acp::AcpAdapter;
use api::{ApiAdapter, CallRules, Instance, instances};
use cli::CliAdapter;
use cli::manifest::{self, Manifest, ManifestError};

pub use sections::{AdapterSettings, InvalidSection};
pub use settings::{ApiSettings, InvalidSetting};

/// The manifests that come with the program.
const BUILTIN: &[(&str, &str)] = &[
    ("aider.toml", include_str!("../data/aider.toml")),
    ("claude-code.toml", include_str!("../data/claude-code.toml")),
    ("cline.toml", include_str!("../data/cline.toml")),
    ("codex.toml", include_str!("../data/codex.toml")),
    ("copilot.toml", include_str!("../data/copilot.toml")),
    ("gemini.toml", include_str!("../data/gemini.toml")),
    ("gemini-acp.toml", include_str!("../data/gemini-acp.toml")),
    ("kimi.toml", include_str!("../data/kimi.toml")),
    ("opencode.toml", include_str!("../data/opencode.toml")),
    ("opencode-acp.toml", include_str!("../data/opencode-acp.toml")),
    ("qwen.toml", include_str!("../data/qwen.toml")),
];

/// How to make the adapters of an agent.
#[derive(Debug, Clone, Default)]
pub struct AdapterConfig {
    /// The agent's environment: where programs, keys and base URLs are found.
    pub agent: AgentEnvironment,
    /// Folders with the user's manifests; a missing folder is empty.
    pub manifest_dirs: Vec<PathBuf>,
    /// The user's rules for failure messages; they come before the built-in rules.
    pub failures: FailureTable,
    /// Folders in which sessions write; no program is run from them.
    pub kept_out: Vec<PathBuf>,
    pub runner: Runner,
    /// Settings of the built-in adapters.
    pub settings: AdapterSettings,
    /// Facts about models, prices included.
    pub prices: PriceTable,
    /// How calls of APIs are repeated.
    pub calls: CallRules,
    /// The logins of this machine, which have one owner each; `None`: its own ones.
    pub logins: Option<Logins>,
}

impl AdapterConfig {
    /// The configuration of an agent with this environment.
    #[must_use]
    pub fn new(agent: AgentEnvironment, runner: Runner) -> Self {
        Self {
            agent,
            manifest_dirs: Vec::new(),
            failures: FailureTable::default(),
            kept_out: Vec::new(),
            runner,
            settings: AdapterSettings::default(),
            prices: PriceTable::builtin().clone(),
            calls: CallRules::default(),
            logins: None,
        }
    }

    /// Finds the program of an adapter, or says why it cannot be used.
    fn program(&self, command: &str) -> Result<Executable, String> {
        let folders = search_folders(self.agent.path(), &self.kept_out);
        let found = Executable::find(OsStr::new(command), &folders)
            .ok_or_else(|| format!("the program {command:?} is not installed, or not in the agent's PATH"))?;
        match self.kept_out.iter().find(|folder| found.is_inside(folder)) {
            None => Ok(found),
            Some(folder) => Err(format!(
                "the program {} is in {}, where sessions write: install it elsewhere",
                found.path().display(),
                folder.display()
            )),
        }
    }

    /// Removes folders from PATH in which programs must not be searched.
    fn clean_path(&mut self) {
        let folders = search_folders(self.agent.path(), &self.kept_out);
        // No folder has a separator in its name: it came out of a PATH.
        let path = std::env::join_paths(folders).unwrap_or_default();
        self.agent = std::mem::take(&mut self.agent).with_path(path);
    }
}

/// Whether the agent itself makes the calls of an adapter, so that each is reserved before it is made. What
/// others use is known when their programs tell it.
#[must_use]
pub fn is_metered(name: &AdapterName, settings: &AdapterSettings) -> bool {
    api::instances(settings).iter().any(|instance| instance.name == *name)
}

/// Why the adapters could not be made.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("cannot load an adapter manifest")]
    Manifest(#[source] ManifestError),
    /// Two manifests define the same adapter.
    #[error("there are two adapters named {name}; the second is from {source_name}")]
    Duplicate {
        name: AdapterName,
        /// The file that was read second.
        source_name: String,
    },
    /// The user's failure table cannot be read.
    #[error("cannot read the failure table {path}")]
    FailureFile {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// The user's failure table is wrong.
    #[error("the failure table {path} is wrong")]
    Failures {
        path: PathBuf,
        #[source]
        source: InvalidRules,
    },
    /// No HTTP client can be made.
    #[error("cannot prepare the HTTP client")]
    Http(#[source] reqwest::Error),
    /// The model key's file cannot be read.
    #[error("cannot read the key file {path}")]
    KeyFile {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// Reads the user's rules for failure messages; a missing file has no rules.
///
/// # Errors
/// When the file cannot be read or is no failure table.
pub fn read_failures(path: &Path) -> Result<FailureTable, LoadError> {
    match std::fs::read_to_string(path) {
        Ok(text) => FailureTable::parse(&text).map_err(|source| LoadError::Failures {
            path: path.to_owned(),
            source,
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(FailureTable::default()),
        Err(source) => Err(LoadError::FailureFile {
            path: path.to_owned(),
            source,
        }),
    }
}

/// The present time with this machine's zone, because programs print times without a zone.
pub(crate) fn local_time() -> LocalTime {
    let now = jiff::Zoned::now();
    LocalTime {
        now: Timestamp::from_millis(u64::try_from(now.timestamp().as_millisecond()).unwrap_or_default()),
        utc_offset_seconds: now.offset().seconds(),
    }
}

/// The logins of this machine, none of which is known yet.
///
/// # Errors
/// When no HTTP client can be made.
pub fn logins() -> Result<Logins, LoadError> {
    Ok(Logins::new(LoginParts {
        client: api::client().map_err(LoadError::Http)?,
        clock: Arc::new(|| local_time().now),
    }))
}

/// The names of the variables that adapters are given from the agent's environment. Blocks.
///
/// # Errors
/// When a manifest cannot be read or is wrong.
pub fn variables(config: &AdapterConfig) -> Result<BTreeSet<String>, LoadError> {
    let mut names = BTreeSet::new();
    let manifests = manifests(config)?;
    for instance in api_instances(config, &manifests) {
        names.extend(instance.variables().map(str::to_owned));
    }
    for manifest in manifests {
        let env = manifest.env;
        names.extend([env.inherit, env.secret, env.require].concat());
        names.extend(manifest.login.and_then(|login| login.folder));
    }
    Ok(names)
}

/// A digest of everything that decides which adapters there are and whether they can be used: they come
/// out the same as long as it is the same. Blocks.
///
/// # Errors
/// When a manifest cannot be read or is wrong.
pub(crate) fn fingerprint(config: &AdapterConfig) -> Result<Digest, LoadError> {
    let mut text = format!("{:?}\n{:?}\n{:?}\n", config.settings, config.failures, config.prices);
    for name in variables(config)?.iter().map(String::as_str).chain(["PATH"]) {
        text += &format!("{name}={:?}\n", config.agent.get(name));
    }
    let manifests = manifests(config)?;
    for instance in api_instances(config, &manifests) {
        text += &instance.facts(config);
    }
    for manifest in manifests {
        text += &format!("{manifest:?}\n{:?}\n", config.program(&manifest.program()));
    }
    Ok(Digest::of(text.as_bytes()))
}

/// The manifests that come with the program, the user's, and those that the settings make. One of the user's replaces the one of the
/// same name that comes with the program.
fn manifests(config: &AdapterConfig) -> Result<Vec<Manifest>, LoadError> {
    let mut users = Vec::new();
    for dir in &config.manifest_dirs {
        users.extend(manifest::read_folder(dir).map_err(LoadError::Manifest)?);
    }
    for (name, settings) in config.settings.own() {
        if let (Some(sections::ACP), Some(command)) = (settings.kind.as_deref(), &settings.command) {
            let agent = Manifest::of_agent(name, command, settings.key_variable.as_deref());
            users.push(agent.map_err(LoadError::Manifest)?);
        }
    }
    let shipped = BUILTIN.iter().map(|(name, text)| Manifest::parse(text, name.as_ref()));
    let mut manifests: Vec<Manifest> = shipped.collect::<Result<_, _>>().map_err(LoadError::Manifest)?;
    for own in &mut users {
        manifests.iter().for_each(|shipped| own.with_rules_of(shipped));
    }
    manifests.retain(|shipped| users.iter().all(|own| own.name != shipped.name));
    manifests.extend(users);
    Ok(manifests)
}

/// An adapter, and where it comes from.
#[derive(Debug, Clone)]
pub struct Described {
    pub name: AdapterName,
    pub origin: Origin,
    /// The program that it runs; `None`: it calls an API itself.
    pub program: Option<String>,
    /// The text of its manifest, if it has one.
    pub manifest: Option<String>,
}

/// Where an adapter comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    BuiltIn,
    /// A section of the settings.
    Settings,
    /// The file of its manifest.
    File(PathBuf),
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::BuiltIn => f.write_str("built in"),
            Self::Settings => f.write_str("settings"),
            Self::File(path) => write!(f, "{}", path.display()),
        }
    }
}

/// Every adapter of this configuration, by name. Blocks.
///
/// # Errors
/// When a manifest cannot be read or is wrong.
pub fn described(config: &AdapterConfig) -> Result<Vec<Described>, LoadError> {
    let manifests = manifests(config)?;
    let apis = api_instances(config, &manifests).into_iter().map(|instance| Described {
        origin: if instance.is_own() {
            Origin::Settings
        } else {
            Origin::BuiltIn
        },
        name: instance.name,
        program: None,
        manifest: None,
    });
    let mut all: Vec<_> = apis.collect();
    for manifest in &manifests {
        let built_in = BUILTIN.iter().find(|(name, _)| Path::new(name) == manifest.source);
        let section = format!("[adapter.{}]", manifest.name);
        let (origin, text) = match built_in {
            Some((_, text)) => (Origin::BuiltIn, Some((*text).to_owned())),
            None if manifest.source == Path::new(&section) => (Origin::Settings, None),
            None => {
                let path = manifest.source.clone();
                let read = std::fs::read_to_string(&path);
                let text = read.map_err(|source| ManifestError::Read {
                    path: path.clone(),
                    source,
                });
                (Origin::File(path), Some(text.map_err(LoadError::Manifest)?))
            }
        };
        all.push(Described {
            name: manifest.name.clone(),
            origin,
            program: Some(manifest.program()),
            manifest: text,
        });
    }
    all.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(all)
}

/// The adapters for APIs. A manifest replaces a built-in one of its name, and not one of the settings.
fn api_instances(config: &AdapterConfig, manifests: &[Manifest]) -> Vec<Instance> {
    let mut all = instances(&config.settings);
    all.retain(|instance| instance.is_own() || manifests.iter().all(|manifest| manifest.name != instance.name));
    all
}

/// Makes every adapter. Programs are asked for their versions, all at the same time.
///
/// # Errors
/// When a manifest is wrong or names clash. A program that is missing is no error.
pub async fn load(mut config: AdapterConfig) -> Result<Registry, LoadError> {
    config.clean_path();
    let manifests = manifests(&config)?;

    let mut registry = Registry::new();
    for instance in api_instances(&config, &manifests) {
        let api = ApiAdapter::new(instance, &config)?;
        registry.insert(api.info().name, Arc::new(api));
    }
    let logins = config.logins.clone().map_or_else(logins, Ok)?;
    let sources: Vec<String> = manifests.iter().map(|m| m.source.display().to_string()).collect();
    let adapters = join_all(
        manifests
            .into_iter()
            .map(|manifest| CliAdapter::new(manifest, &config, &logins)),
    )
    .await;
    for (adapter, source_name) in adapters.into_iter().zip(sources) {
        let name = adapter.info().name;
        let adapter: Arc<dyn Adapter> = match adapter.manifest().acp.clone() {
            Some(rule) => Arc::new(AcpAdapter::new(adapter, rule)),
            None => Arc::new(adapter),
        };
        if registry.insert(name.clone(), adapter).is_some() {
            return Err(LoadError::Duplicate { name, source_name });
        }
    }
    Ok(registry)
}

#[cfg(test)]
mod tests {
    use kage_core::failure::FailureKind;

    use super::*;

    #[test]
    fn a_failure_table_need_not_be_there_and_must_be_right() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("failures.toml");
        let classify = || read_failures(&file).map(|table| table.kind("x", "the hamster is tired"));
        assert_eq!(classify().unwrap(), None);

        std::fs::write(&file, "[[rule]]\npattern = 'hamster'\nkind = 'overloaded'\n").unwrap();
        assert_eq!(classify().unwrap(), Some(FailureKind::Overloaded));

        std::fs::write(&file, "[[rule]]\npattern = '('\nkind = 'overloaded'\n").unwrap();
        assert!(matches!(classify(), Err(LoadError::Failures { .. })));
    }
}

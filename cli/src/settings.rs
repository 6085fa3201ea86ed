//! Settings from files and the environment, read once into types.
//!
//! Later sources win: `kage.toml` of the project, `config.toml` of the user, `KAGE__SECTION__KEY`,
//! flags. A project's file may only have `[run]`, `[env]`, `[home]` and `[context]`: it comes with the repository,
//! and must not decide where tokens are sent.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use config::{Environment, File, FileFormat, ValueKind};
use kage_agent::Limits;
use kage_agent::adapters::{self, AdapterSettings, LoadError};
use kage_agent::contain::AskedTier;
use kage_coordinator::config::{UnusablePrices, prices_with};
use kage_core::caches::CacheSettings;
use kage_core::failure_table::FailureTable;
use kage_core::id::ProjectId;
use kage_core::network::NetworkSettings;
use kage_core::price::PriceTable;
use kage_core::task::TaskEnvironment;
use serde::Deserialize;

use crate::config_file::meant;

pub(crate) mod money;
pub(crate) mod time;
mod budgets;
mod callers;
pub(crate) mod coordinators;
mod run;
mod environment;
mod context;

use coordinators::Logins;

pub use budgets::BudgetSettings;
pub use callers::CallerSettings;
pub use context::ContextSettings;
pub use environment::{EnvironmentSettings, HomeSettings};
pub use run::RunOptions;
pub(crate) use run::either;

/// Everything that can be set outside the command line.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The coordinator; unset: the daemon of this machine.
    pub coordinator: CoordinatorSettings,
    /// What `kage run` takes as flags.
    pub run: RunOptions,
    pub agent: AgentSettings,
    /// Variables of the programs of every task.
    pub env: EnvironmentSettings,
    /// Files of the home folder for the programs of every task.
    pub home: HomeSettings,
    /// Fields of contexts with a place of their own.
    pub context: ContextSettings,
    /// Limits of the adapters of that agent.
    pub adapter: AdapterSettings,
    /// What of the network programs have in boxes of that agent.
    pub network: NetworkSettings,
}

/// `[coordinator]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CoordinatorSettings {
    /// `https://HOST:7443`, or `http://` on loopback.
    pub url: Option<String>,
    pub token_file: Option<PathBuf>,
    /// File with the certificate of the coordinator's CA, for https.
    pub ca_file: Option<PathBuf>,
    /// The project of the tasks; unset: the default project. A token may be for one project only.
    pub project: Option<ProjectId>,
    /// True when the settings name it, and not a login.
    #[serde(skip)]
    pub is_named_by_settings: bool,
}

/// `[agent]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AgentSettings {
    /// Sessions that may run at the same time.
    pub slots: Option<u32>,
    /// Further folders of adapter manifests, besides the user's own.
    pub adapters: Vec<PathBuf>,
    /// How much it may keep on its disk.
    pub disk: DiskSettings,
    pub caches: CachesSettings,
    /// How its programs are kept apart from the machine.
    pub contain: BoxSettings,
}

/// `[agent.contain]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BoxSettings {
    /// The tier of containment to have. One that cannot be proved ends the agent's start; `best` is the highest
    /// that can be, `usual` is T1 or else T0.
    pub tier: Option<AskedTier>,
    /// Folders to which programs may write besides their attempt's own; `~/` is the home folder.
    pub write: Option<Vec<String>>,
}

/// `[agent.caches]`: caches of package managers that attempts get copies of.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CachesSettings {
    /// Folders below the home folder; unset: those of the package managers that are known.
    pub share: Option<Vec<String>>,
    /// How many MiB are copied where the file system cannot share the content of files.
    pub copy_mib: Option<u64>,
}

impl CachesSettings {
    /// What an agent with these does.
    #[must_use]
    pub fn caches(&self) -> CacheSettings {
        let usual = CacheSettings::usual();
        CacheSettings {
            share: self.share.clone().unwrap_or(usual.share),
            most_copied: self
                .copy_mib
                .map_or(usual.most_copied, |mib| mib.saturating_mul(1 << 20)),
        }
    }
}

/// `[agent.disk]`, in MiB.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DiskSettings {
    /// Undelivered output; above it, programs wait.
    pub outbox_mib: Option<u64>,
    /// Mirrors; above it, unused ones are deleted.
    pub mirrors_mib: Option<u64>,
    /// Checkpoints of ended sessions; above it, the oldest are deleted.
    pub checkpoints_mib: Option<u64>,
    /// Base contexts; above it, the least recently used are deleted.
    pub contexts_mib: Option<u64>,
    /// Worktrees; above it, the agent takes no work.
    pub worktrees_mib: Option<u64>,
}

impl DiskSettings {
    /// These settings; where they are unset, the others.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            outbox_mib: self.outbox_mib.or(other.outbox_mib),
            mirrors_mib: self.mirrors_mib.or(other.mirrors_mib),
            checkpoints_mib: self.checkpoints_mib.or(other.checkpoints_mib),
            contexts_mib: self.contexts_mib.or(other.contexts_mib),
            worktrees_mib: self.worktrees_mib.or(other.worktrees_mib),
        }
    }

    /// The limits of an agent with these.
    #[must_use]
    pub fn limits(self) -> Limits {
        let usual = Limits::default();
        let bytes = |mib: Option<u64>, usual: u64| mib.map_or(usual, |mib| mib.saturating_mul(1 << 20));
        Limits {
            undelivered_output: bytes(self.outbox_mib, usual.undelivered_output),
            mirrors: bytes(self.mirrors_mib, usual.mirrors),
            checkpoints: bytes(self.checkpoints_mib, usual.checkpoints),
            contexts: bytes(self.contexts_mib, usual.contexts),
            worktrees: bytes(self.worktrees_mib, usual.worktrees),
            ..usual
        }
    }
}

/// The sections that a project's file may have.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProjectSettings {
    pub run: RunOptions,
    pub env: EnvironmentSettings,
    pub home: HomeSettings,
    pub context: ContextSettings,
    /// The keys of `[run]` that are set there, with their values in words.
    #[serde(skip)]
    pub said: BTreeMap<String, String>,
}

impl Settings {
    /// What a project's file, the person's settings and flags say of a task's environment together.
    #[must_use]
    pub fn environment(&self, project: Option<&ProjectSettings>, flags: &RunOptions) -> TaskEnvironment {
        let project = project.map(|project| (&project.env, &project.home, project.run.env.as_slice()));
        let person = (&self.env, &self.home, self.run.env.as_slice());
        let mut all = environment::together(project.into_iter().chain([person]));
        environment::add(&mut all, &flags.env);
        all
    }
}

/// Why settings could not be read.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error("the project's settings in {path} are wrong (only the sections [run], [env], [home] and [context] are allowed there){hint}", hint = meant(.source))]
    Project {
        path: PathBuf,
        #[source]
        source: config::ConfigError,
    },
    /// The user's file or the environment is wrong.
    #[error("the settings in {path} or in KAGE__* variables are wrong{hint}", hint = meant(.source))]
    User {
        path: PathBuf,
        #[source]
        source: config::ConfigError,
    },
    /// The login in use cannot be read.
    #[error("the login in use cannot be read; `kage login use local` leaves it")]
    Login(#[source] coordinators::LoginsError),
    /// The user's failure table cannot be used.
    #[error("the user's failure table cannot be used")]
    Failures(#[source] LoadError),
}

/// The folder of the user's settings, if the user has a home.
#[must_use]
pub fn user_dir() -> Option<PathBuf> {
    directories::BaseDirs::new().map(|base| base.config_dir().join("kage"))
}

/// The folder of the user's own adapter manifests, if the user has a home.
#[must_use]
pub fn user_adapters() -> Option<PathBuf> {
    user_dir().map(|dir| dir.join("adapters"))
}

/// Where copies of what repositories bring are, to which the user agreed.
#[must_use]
pub fn agreed_folder() -> Option<PathBuf> {
    user_dir().map(|dir| dir.join("agreed"))
}

/// The user's rules for error messages of programs: this file, or else `failures.toml` beside
/// `config.toml`.
///
/// # Errors
/// When the file cannot be read or is no failure table.
pub fn failures(file: Option<&Path>) -> Result<FailureTable, SettingsError> {
    let file = file
        .map(Path::to_owned)
        .or_else(|| Some(user_dir()?.join("failures.toml")));
    file.map_or_else(|| Ok(FailureTable::default()), |file| adapters::read_failures(&file))
        .map_err(SettingsError::Failures)
}

/// `KAGE__SECTION__KEY`. A list has one entry per line. `KAGE__ADAPTER__CLAUDE_API__KEY` stands for
/// `[adapter.claude-api]`, because shells allow no `-` in a name.
fn variables(all: impl IntoIterator<Item = (String, String)>) -> Environment {
    let named = |(name, value): (String, String)| match name.strip_prefix("KAGE__ADAPTER__") {
        Some(rest) => {
            let end = rest.find("__").unwrap_or(rest.len());
            let (adapter, key) = rest.split_at(end);
            (format!("KAGE__ADAPTER__{}{key}", adapter.replace('_', "-")), value)
        }
        None => (name, value),
    };
    let environment = Environment::with_prefix("KAGE")
        .source(Some(all.into_iter().map(named).collect()))
        .prefix_separator("__")
        .separator("__")
        .try_parsing(true)
        .list_separator("\n")
        .with_list_parse_key("env.pass")
        .with_list_parse_key("home.copy")
        .with_list_parse_key("context.base")
        .with_list_parse_key("context.tail")
        .with_list_parse_key("agent.adapters")
        .with_list_parse_key("network.allow");
    let of_run = RunOptions::LISTS.iter().map(|key| format!("run.{key}"));
    let of_adapters = AdapterSettings::list_keys().map(|key| format!("adapter.{key}"));
    of_run
        .chain(of_adapters)
        .fold(environment, |environment, key| environment.with_list_parse_key(&key))
}

/// The variables of this process, as far as they are text.
fn from_environment() -> impl Iterator<Item = (String, String)> {
    let text = |(name, value): (OsString, OsString)| Some((name.into_string().ok()?, value.into_string().ok()?));
    std::env::vars_os().filter_map(text)
}

/// The prices of model tokens: the built-in ones, overridden by this file, or else by `prices.toml`
/// beside `config.toml`.
///
/// # Errors
/// When the file is there and cannot be read, or is no price table.
pub fn prices(file: Option<&Path>) -> Result<PriceTable, UnusablePrices> {
    let usual = || Some(user_dir()?.join("prices.toml")).filter(|file| file.exists());
    let file = file.map(Path::to_owned).or_else(usual);
    file.map_or_else(|| Ok(PriceTable::builtin().clone()), |file| prices_with(&file))
}

/// The name of a project's file.
pub const PROJECT_FILE: &str = "kage.toml";

/// Reads the user's file and the environment.
///
/// # Errors
/// Names the wrong file, and the place in it.
pub fn load() -> Result<Settings, SettingsError> {
    let settings = written_and_set()?;
    if settings.coordinator.url.is_some() {
        let coordinator = CoordinatorSettings {
            is_named_by_settings: true,
            ..settings.coordinator
        };
        return Ok(Settings {
            coordinator,
            ..settings
        });
    }
    let asked = std::env::var("KAGE_LOGIN").ok().filter(|name| !name.is_empty());
    let login = Logins::of_user().map_or(Ok(None), |logins| logins.in_use(asked.as_deref()));
    Ok(match login.map_err(SettingsError::Login)? {
        None => settings,
        Some(login) => Settings {
            coordinator: CoordinatorSettings {
                project: settings.coordinator.project.or(login.project),
                ..login
            },
            ..settings
        },
    })
}

fn written_and_set() -> Result<Settings, SettingsError> {
    let user_file = user_dir().unwrap_or_default().join("config.toml");
    config::Config::builder()
        .add_source(File::from(user_file.clone()).format(FileFormat::Toml).required(false))
        .add_source(variables(from_environment()))
        .build()
        .and_then(config::Config::try_deserialize)
        .map_err(|source| SettingsError::User {
            path: user_file,
            source,
        })
}

/// Reads a project's file.
///
/// # Errors
/// Names the file, and the place in it.
pub fn project(file: &Path) -> Result<ProjectSettings, SettingsError> {
    let read = || {
        let read = config::Config::builder()
            .add_source(File::from(file.to_owned()).format(FileFormat::Toml))
            .build()?;
        let said = read.get_table("run").unwrap_or_default();
        let settings: ProjectSettings = read.try_deserialize()?;
        Ok(ProjectSettings {
            said: said.into_iter().map(|(key, value)| shown(&key, value)).collect(),
            ..settings
        })
    };
    read().map_err(|source| SettingsError::Project {
        path: file.to_owned(),
        source,
    })
}

/// A key and its value as people are told them; what may be long or run as a command is quoted.
fn shown(key: &str, value: config::Value) -> (String, String) {
    let said = match value.kind {
        ValueKind::Array(list) => list.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        ValueKind::String(text) => format!("`{text}`"),
        other => other.to_string(),
    };
    (key.to_owned(), said)
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    fn read(file: &str, set: &[(&str, &str)]) -> Result<Settings, config::ConfigError> {
        let set = set
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        config::Config::builder()
            .add_source(File::from_str(file, FileFormat::Toml))
            .add_source(variables(set))
            .build()
            .and_then(config::Config::try_deserialize)
    }

    #[test]
    fn variables_set_numbers_texts_and_lists() {
        let set = [
            ("KAGE__RUN__VERIFY", "make test"),
            ("KAGE__RUN__PROTECT", "tests/**\nmy file"),
            ("KAGE__RUN__REWORK", "2"),
            ("KAGE__AGENT__SLOTS", "4"),
            ("KAGE__AGENT__ADAPTERS", "/one"),
            ("KAGE__AGENT__DISK__CONTEXTS_MIB", "5"),
            ("KAGE__ADAPTER__CLAUDE_API__MAX_TURNS", "7"),
            ("KAGE__ADAPTER__CLAUDE_API__EFFORT", "max"),
            ("KAGE__ADAPTER__CLAUDE_API__MODELS", "a\nb"),
        ];
        let settings = read("[adapter.claude-api]\nmax_turns = 5\nmax_output_tokens = 9", &set).unwrap();
        assert_eq!(settings.run.verify.as_deref(), Some("make test"));
        assert_eq!(settings.run.protect, ["tests/**", "my file"]);
        assert_eq!(settings.run.rework, Some(2));
        assert_eq!(settings.agent.slots, Some(4));
        assert_eq!(settings.agent.adapters, [PathBuf::from("/one")]);
        assert_eq!(settings.agent.disk.limits().contexts, 5 << 20);
        let limits = settings.adapter.of("claude-api");
        assert_eq!(limits.effort.map(|effort| effort.as_str()), Some("max"));
        assert_eq!(limits.models.map(|models| models.to_string()).as_deref(), Some("a, b"));
        let limits = [limits.max_turns, limits.max_output_tokens].map(|limit| limit.map(NonZeroU32::get));
        assert_eq!(limits, [Some(7), Some(9)]);
    }

    #[test]
    fn limits_of_adapters_that_there_are_not_are_refused() {
        for (text, set) in [
            ("[adapter.claude-api]\nmax_turnz = 5", ("KAGE__RUN__VERIFY", "x")),
            ("[adapter.claude-api]\nmax_turns = 0", ("KAGE__RUN__VERIFY", "x")),
            ("[adapter.codexx]\nmax_turns = 5", ("KAGE__RUN__VERIFY", "x")),
            ("", ("KAGE__ADAPTER__CLAUDE_API__MAX_TURNS", "0")),
            ("", ("KAGE__ADAPTER__CLAUDE_API__MAX_TURNZ", "5")),
            ("", ("KAGE__ADAPTER__CLAUDE_API", "5")),
        ] {
            assert!(read(text, &[set]).is_err(), "{text} {set:?}");
        }
        let wrong = ("KAGE__ADAPTER__CLAUDE_API__EFFORT", "huge");
        let said = read("", &[wrong]).unwrap_err().to_string();
        assert!(
            said.contains("effort") && said.contains("low, medium, high, xhigh or max"),
            "{said}"
        );
    }

    #[test]
    fn a_project_decides_about_runs_only() {
        let top = tempfile::tempdir().unwrap();
        let file = top.path().join("kage.toml");
        std::fs::write(&file, "[run]\nverify = \"make test\"\nrework = 0\n").unwrap();
        let run = project(&file).unwrap().run;
        assert_eq!((run.verify.as_deref(), run.rework), (Some("make test"), Some(0)));

        let more = "[env]\npass = [\"DATABASE_URL\"]\nset = { RUST_LOG = \"debug\" }\n[home]\ncopy = [\".npmrc\"]\n";
        std::fs::write(&file, more).unwrap();
        let environment = Settings::default().environment(Some(&project(&file).unwrap()), &RunOptions::default());
        assert_eq!(environment.set.get("RUST_LOG").map(String::as_str), Some("debug"));
        assert!(environment.pass.contains("DATABASE_URL") && environment.home.contains(".npmrc"));

        std::fs::write(&file, "[coordinator]\nurl = \"http://elsewhere\"\n").unwrap();
        assert!(matches!(project(&file), Err(SettingsError::Project { .. })));
    }
}

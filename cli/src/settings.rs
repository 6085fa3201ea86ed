//! Settings from files and the environment, read once into types.
//!
//! Later wins: `kage.toml` of the project, `config.toml` of the user, `KAGE__SECTION__KEY`,
//! flags. A project's file may only hold `[run]`: it comes with the repository, and must
//! not decide where tokens are sent.

use std::path::{Path, PathBuf};

use config::{Environment, File, FileFormat};
use kage_core::failure_table::{FailureTable, InvalidRules};
use kage_core::id::ProjectId;
use serde::Deserialize;

/// Everything that can be set outside the command line.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Which coordinator to use; without one, the daemon of this machine.
    pub coordinator: CoordinatorSettings,
    /// Defaults of `kage run`.
    pub run: RunSettings,
    /// The agent on this machine.
    pub agent: AgentSettings,
}

/// `[coordinator]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CoordinatorSettings {
    /// `https://HOST:7443`, or `http://` on loopback.
    pub url: Option<String>,
    /// File that holds the token.
    pub token_file: Option<PathBuf>,
    /// File with the certificate of the coordinator's CA, for https.
    pub ca_file: Option<PathBuf>,
    /// Whose tasks these are; without it, the default project. A token may be for one only.
    pub project: Option<ProjectId>,
}

/// `[run]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RunSettings {
    /// As `--verify`.
    pub verify: Option<String>,
    /// As `--setup`.
    pub setup: Option<String>,
    /// As `--protect`.
    pub protect: Vec<String>,
}

/// `[agent]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AgentSettings {
    /// Sessions that may run at the same time.
    pub slots: Option<u32>,
    /// Folders of adapter manifests, besides the user's own.
    pub adapters: Vec<PathBuf>,
}

/// What may stand in a project's file.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ProjectSettings {
    run: RunSettings,
}

/// Why settings could not be read.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The project's file is wrong.
    #[error("the project's settings in {path} are wrong (only the [run] section may stand there)")]
    Project {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: config::ConfigError,
    },
    /// The user's file or the environment is wrong.
    #[error("the settings in {path} or in KAGE__* variables are wrong")]
    User {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: config::ConfigError,
    },
    /// The user's failure table is wrong.
    #[error("the failure table {path} is wrong")]
    Failures {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: InvalidRules,
    },
    /// A file cannot be read.
    #[error("cannot read {path}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
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

/// What the user knows of the words of failures: `failures.toml`, beside `config.toml`.
///
/// # Errors
/// When the file cannot be read or is no failure table.
pub fn failures() -> Result<FailureTable, SettingsError> {
    match user_dir() {
        Some(dir) => read_failures(&dir.join("failures.toml")),
        None => Ok(FailureTable::default()),
    }
}

/// What `failures.toml` says; one that is not there says nothing.
fn read_failures(path: &Path) -> Result<FailureTable, SettingsError> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(FailureTable::default()),
        Err(source) => {
            return Err(SettingsError::Unreadable {
                path: path.to_owned(),
                source,
            });
        }
    };
    FailureTable::parse(&text).map_err(|source| SettingsError::Failures {
        path: path.to_owned(),
        source,
    })
}

/// Reads every source. `project` is the top of the repository, for commands that have one.
///
/// # Errors
/// Says which file is wrong, and where.
pub fn load(project: Option<&Path>) -> Result<Settings, SettingsError> {
    let user_file = user_dir().unwrap_or_default().join("config.toml");
    let mut settings: Settings = config::Config::builder()
        .add_source(File::from(user_file.clone()).format(FileFormat::Toml).required(false))
        .add_source(
            Environment::with_prefix("KAGE")
                .prefix_separator("__")
                .separator("__")
                .try_parsing(true),
        )
        .build()
        .and_then(config::Config::try_deserialize)
        .map_err(|source| SettingsError::User {
            path: user_file,
            source,
        })?;
    if let Some(top) = project {
        let path = top.join("kage.toml");
        let project: ProjectSettings = config::Config::builder()
            .add_source(File::from(path.clone()).format(FileFormat::Toml).required(false))
            .build()
            .and_then(config::Config::try_deserialize)
            .map_err(|source| SettingsError::Project { path, source })?;
        settings.run.verify = settings.run.verify.or(project.run.verify);
        settings.run.setup = settings.run.setup.or(project.run.setup);
        if settings.run.protect.is_empty() {
            settings.run.protect = project.run.protect;
        }
    }
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use kage_core::failure::FailureKind;

    use super::*;

    #[test]
    fn a_failure_table_need_not_be_there_and_must_be_right() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("failures.toml");
        assert_eq!(
            read_failures(&file).unwrap().classify("x", "the hamster is tired"),
            None
        );

        std::fs::write(&file, "[[rule]]\npattern = 'hamster'\nkind = 'overloaded'\n").unwrap();
        let found = read_failures(&file).unwrap().classify("x", "the hamster is tired");
        assert_eq!(found.map(|failure| failure.kind), Some(FailureKind::Overloaded));

        std::fs::write(&file, "[[rule]]\npattern = '('\nkind = 'overloaded'\n").unwrap();
        assert!(matches!(read_failures(&file), Err(SettingsError::Failures { .. })));
    }

    #[test]
    fn a_project_decides_about_runs_only() {
        let top = tempfile::tempdir().unwrap();
        let file = top.path().join("kage.toml");
        std::fs::write(&file, "[run]\nverify = \"make test\"\n").unwrap();
        assert_eq!(load(Some(top.path())).unwrap().run.verify.as_deref(), Some("make test"));

        std::fs::write(&file, "[coordinator]\nurl = \"http://elsewhere\"\n").unwrap();
        assert!(matches!(load(Some(top.path())), Err(SettingsError::Project { .. })));
    }
}

//! Where Kage keeps its state on this machine.

use std::path::{Path, PathBuf};

use kage_agent::identity::state::not_ones_own;

/// The folders and files of one state directory.
#[derive(Debug, Clone)]
pub struct StateDir(PathBuf);

/// Why there is no place for state.
#[derive(Debug, thiserror::Error)]
pub enum NoStateDir {
    /// None was asked for, and the user has no home.
    #[error("no home directory is known; set KAGE_STATE_DIR to a folder that Kage may write")]
    NoHome,
    /// A person's own files are there.
    #[error("{path} cannot hold Kage's state: it is {what}; choose a separate folder")]
    Unfit { path: PathBuf, what: &'static str },
}

impl StateDir {
    /// The directory asked for, or the user's own.
    ///
    /// # Errors
    /// When none was asked for and the user has no home, or it is the home itself or `/`.
    pub fn resolve(asked: Option<&Path>) -> Result<Self, NoStateDir> {
        if let Some(dir) = asked {
            if let Some(what) = not_ones_own(dir) {
                return Err(NoStateDir::Unfit {
                    path: dir.to_owned(),
                    what,
                });
            }
            return Ok(Self(std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned())));
        }
        let base = directories::BaseDirs::new().ok_or(NoStateDir::NoHome)?;
        let state = base
            .state_dir()
            .map_or_else(|| base.data_local_dir().to_owned(), Path::to_owned);
        Ok(Self(state.join("kage")))
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    #[must_use]
    pub fn coordinator(&self) -> PathBuf {
        self.0.join("coordinator")
    }

    /// The coordinator's database: where it is, something was run.
    #[must_use]
    pub fn database(&self) -> PathBuf {
        self.coordinator().join("kage.db")
    }

    /// The id of this machine, where the system keeps none.
    #[must_use]
    pub fn machine_id(&self) -> PathBuf {
        self.0.join("machine-id")
    }

    /// Which store the coordinator's data is of: it is there also when the database was moved away.
    #[must_use]
    pub fn store_mark(&self) -> PathBuf {
        self.coordinator().join("store-id")
    }

    /// Held by the coordinator while it runs.
    #[must_use]
    pub fn coordinator_lock(&self) -> PathBuf {
        self.coordinator().join("lock")
    }

    /// The file with the address of the running coordinator.
    #[must_use]
    pub fn endpoint(&self) -> PathBuf {
        self.coordinator().join("endpoint")
    }

    /// Mode 0600.
    #[must_use]
    pub fn token(&self) -> PathBuf {
        self.coordinator().join("token")
    }

    /// The certificate of the coordinator's CA, when it speaks TLS.
    #[must_use]
    pub fn ca(&self) -> PathBuf {
        self.coordinator().join("tls").join("ca.pem")
    }

    #[must_use]
    pub fn agent(&self) -> PathBuf {
        self.0.join("agent")
    }

    /// The bare repositories that results are fetched into.
    #[must_use]
    pub fn results(&self) -> PathBuf {
        self.0.join("results")
    }

    /// Copies of the base contexts that were sent from here.
    #[must_use]
    pub fn contexts(&self) -> PathBuf {
        self.0.join("contexts")
    }

    /// Which files of settings results have changed, and to what.
    #[must_use]
    pub fn settings_of_results(&self) -> PathBuf {
        self.0.join("settings-of-results")
    }

    #[must_use]
    pub fn daemon_log(&self) -> PathBuf {
        self.0.join("daemon.log")
    }

    /// Held by the daemon while it runs, with its process id in it.
    #[must_use]
    pub fn daemon_lock(&self) -> PathBuf {
        self.0.join("daemon.lock")
    }

    /// Held by every command that uses the daemon, and by the daemon while it ends.
    #[must_use]
    pub fn use_lock(&self) -> PathBuf {
        self.0.join("use.lock")
    }

    /// Held while a daemon is being started, so that two commands start only one.
    #[must_use]
    pub fn start_lock(&self) -> PathBuf {
        self.0.join("start.lock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn home_and_root_hold_no_state() {
        let Some(home) = std::env::var_os("HOME").filter(|home| Path::new(home).is_dir()) else {
            eprintln!("SKIPPED: no HOME");
            return;
        };
        for asked in [Path::new("/"), Path::new(&home)] {
            let resolved = StateDir::resolve(Some(asked));
            assert!(matches!(resolved, Err(NoStateDir::Unfit { .. })), "{}", asked.display());
        }
        assert!(StateDir::resolve(Some(&Path::new(&home).join("kage"))).is_ok());
    }
}

//! git as the person would type it: with their whole environment, their settings and the programs
//! that these name. Only for what they asked for by name: their hooks, and a push to their remote.

use std::env;
use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::Stdio;

use tokio::process::Command;

use super::neutral::OF_REPOSITORY;
use super::{GitCommand, failure, found};
use crate::error::GitError;
use crate::executable::Executable;

impl GitCommand {
    /// `git <operation>` in the repository of this folder.
    pub(crate) fn typed(operation: &'static str, folder: &Path) -> Self {
        let (found, _) = found();
        let git = found.as_ref().map(Executable::to_run);
        let program = git.as_ref().and_then(|git| git.as_ref().ok());
        let mut command = Command::new(program.copied().unwrap_or(Path::new("git")));
        for name in OF_REPOSITORY {
            command.env_remove(name);
        }
        command.arg(operation).current_dir(folder).kill_on_drop(true);
        let mut git = Self::of(operation, command, git);
        // The settings that the person's shell gives to every git.
        let count = env::var("GIT_CONFIG_COUNT").unwrap_or_default();
        for number in 0..count.parse::<u16>().unwrap_or(0) {
            let value = |what: &str| env::var(format!("GIT_CONFIG_{what}_{number}"));
            if let (Ok(key), Ok(value)) = (value("KEY"), value("VALUE")) {
                git = git.config(&key, &value);
            }
        }
        git
    }

    /// Runs git to its end. All that it and its programs say goes to the standard error of this
    /// process, as it is said; every exit code but 0 is an error.
    pub(crate) async fn run_openly(mut self) -> Result<(), GitError> {
        let operation = self.operation;
        let failed = |source| GitError::Spawn { operation, source };
        let said = || io::stderr().as_fd().try_clone_to_owned().map(Stdio::from);
        self.command.stdin(Stdio::null());
        self.command.stdout(said().map_err(failed)?);
        self.command.stderr(said().map_err(failed)?);
        let mut group = self.start_patiently().await?;
        let status = group.child.wait().await.map_err(failed)?;
        if status.success() {
            Ok(())
        } else {
            Err(failure(operation, status, &[]))
        }
    }
}

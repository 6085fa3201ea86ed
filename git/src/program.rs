//! The `git` program of this machine, and whether it can be trusted with what is given to it.

use std::path::{Path, PathBuf};

use crate::command::{GitCommand, found};
use crate::error::GitError;

/// The oldest git, as major and minor number, that heeds every safeguard: settings that
/// come through the environment (2.31), `core.fsync` (2.36), `safe.bareRepository` (2.38).
/// Older ones ignore them without a word.
pub const OLDEST: (u32, u32) = (2, 38);

/// Says why this machine's git cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// It cannot be run.
    #[error("git {}.{} or newer is needed", OLDEST.0, OLDEST.1)]
    Missing(#[source] GitError),
    /// It ignores safeguards.
    #[error("git {found} is too old; {}.{} or newer is needed", OLDEST.0, OLDEST.1)]
    TooOld {
        /// What it says it is.
        found: String,
    },
    /// It is where sessions write.
    #[error("{} is in {}, where sessions write: put another git before it in PATH, and start again", path.display(), folder.display())]
    WithinReach {
        /// The program.
        path: PathBuf,
        /// The folder.
        folder: PathBuf,
    },
}

/// Makes sure that git is not in a folder in which sessions write.
///
/// # Errors
/// When it is.
pub fn is_out_of_reach(of: &Path) -> Result<(), ProgramError> {
    match found().0 {
        Some(git) if git.is_inside(of) => Err(ProgramError::WithinReach {
            path: git.path().to_owned(),
            folder: of.to_owned(),
        }),
        Some(_) | None => Ok(()),
    }
}

/// What `git --version` says, without its first words: `2.47.3`.
///
/// # Errors
/// When git cannot be run.
pub async fn version() -> Result<String, GitError> {
    let printed = GitCommand::new("version").run().await?;
    let text = String::from_utf8_lossy(&printed);
    Ok(text.trim().trim_start_matches("git version ").to_owned())
}

/// Makes sure that git heeds what it is told, before it is run on anybody's files.
///
/// # Errors
/// When git cannot be run, or is older than [`OLDEST`].
pub async fn check() -> Result<(), ProgramError> {
    let found = version().await.map_err(ProgramError::Missing)?;
    if is_new_enough(&found) {
        Ok(())
    } else {
        Err(ProgramError::TooOld { found })
    }
}

fn is_new_enough(version: &str) -> bool {
    let mut numbers = version.split(['.', ' ']).map(str::parse::<u32>);
    matches!((numbers.next(), numbers.next()), (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= OLDEST)
}

#[cfg(test)]
mod tests {
    #[tokio::test]
    async fn this_machines_git_is_told_and_good() {
        let version = super::version().await.unwrap();
        assert!(version.starts_with(|c: char| c.is_ascii_digit()), "{version}");
        super::check().await.unwrap();
    }

    #[test]
    fn a_git_that_ignores_safeguards_is_too_old() {
        for (version, good) in [
            ("2.38.0", true),
            ("2.47.3", true),
            ("2.39.5 (Apple Git-154)", true),
            ("2.45.1.windows.1", true),
            ("3.0.0", true),
            ("2.100", true),
            ("2.37.7", false),
            ("1.99.0", false),
            ("2", false),
            ("unknown", false),
        ] {
            assert_eq!(super::is_new_enough(version), good, "{version}");
        }
    }
}

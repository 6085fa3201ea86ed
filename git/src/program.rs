//! The `git` program of this machine, and whether it is safe to use.

use std::path::{Path, PathBuf};

use crate::command::{GitCommand, found};
use crate::error::GitError;

/// The oldest git, as major and minor number, that obeys every safeguard: settings from the
/// environment (2.31), `core.fsync` (2.36), `safe.bareRepository` (2.38). Older versions ignore
/// them silently.
pub const OLDEST: (u32, u32) = (2, 38);

/// Why this machine's git cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    #[error("git {}.{} or newer is needed", OLDEST.0, OLDEST.1)]
    Missing(#[source] GitError),
    /// An old git silently ignores safeguards.
    #[error("git {found} is too old; {}.{} or newer is needed", OLDEST.0, OLDEST.1)]
    TooOld { found: String },
    /// It is in a folder that sessions can write to.
    #[error("{} is in {}, where sessions write: put another git before it in PATH, and start again", path.display(), folder.display())]
    WithinReach { path: PathBuf, folder: PathBuf },
}

/// Checks that git is outside the folder `of`, in which sessions write.
pub fn is_out_of_reach(of: &Path) -> Result<(), ProgramError> {
    match found().0 {
        Some(git) if git.is_inside(of) => Err(ProgramError::WithinReach {
            path: git.path().to_owned(),
            folder: of.to_owned(),
        }),
        Some(_) | None => Ok(()),
    }
}

/// The version in the output of `git --version`: `2.47.3`.
///
pub async fn version() -> Result<String, GitError> {
    let printed = GitCommand::new("version").run().await?;
    let text = String::from_utf8_lossy(&printed);
    Ok(text.trim().trim_start_matches("git version ").to_owned())
}

/// Checks that git obeys the safeguards, before it runs on anybody's files.
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

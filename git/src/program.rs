//! The `git` program of this machine.

use crate::command::GitCommand;
use crate::error::GitError;

/// What `git --version` says, without its first words: `2.47.3`.
///
/// # Errors
/// When git cannot be run.
pub async fn version() -> Result<String, GitError> {
    let printed = GitCommand::new("version").run().await?;
    let text = String::from_utf8_lossy(&printed);
    Ok(text.trim().trim_start_matches("git version ").to_owned())
}

#[cfg(test)]
mod tests {
    #[tokio::test]
    async fn tells_a_number() {
        let version = super::version().await.unwrap();
        assert!(version.starts_with(|c: char| c.is_ascii_digit()), "{version}");
    }
}

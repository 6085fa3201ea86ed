//! What of a worktree becomes a part of checkpoints and results, and what the last look left out.

use std::fs;
use std::sync::PoisonError;

use kage_core::left_out::LeftOut;
use kage_core::task::ResultRules;

use super::Worktree;
use crate::error::{GitError, blocking};

impl Worktree {
    /// Sets what becomes a part of checkpoints and results. The excludes count as the person's own do
    /// for them: for Kage, above the session's, and for git in the session's repository, which may
    /// change its own.
    ///
    /// # Errors
    /// When the file system refuses.
    pub async fn set_rules(&mut self, rules: ResultRules) -> Result<(), GitError> {
        let folders = [self.shadow.git_dir().join("info"), self.path.join(".git/info")];
        let excludes = rules.excludes.clone();
        blocking("setting the excludes of a worktree", move || {
            for folder in folders {
                let path = folder.join("exclude");
                fs::write(&path, &excludes).map_err(GitError::io("write", &path))?;
            }
            Ok::<_, GitError>(())
        })
        .await?;
        self.rules = rules;
        Ok(())
    }

    /// What becomes a part of checkpoints and results.
    #[must_use]
    pub const fn rules(&self) -> &ResultRules {
        &self.rules
    }

    /// What the last checkpoint or result left out although nothing ignores it.
    #[must_use]
    pub fn left_out(&self) -> Vec<LeftOut> {
        self.left_out.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

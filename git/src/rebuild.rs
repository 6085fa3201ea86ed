//! Gives a session a worktree with the files of a checkpoint: a new worktree, in which the base is
//! checked out and the checkpoint's files are put over it byte for byte, or the one that the
//! session has. It owns no state; [`crate::restore`] owns how files are restored.

use std::path::PathBuf;

use kage_core::id::Oid;

use crate::mirror::{Expected, Mirror};
use crate::restore::{Foreign, RestoreError, RestoreOptions, Restored};
use crate::worktree::Worktree;

impl Worktree {
    /// Makes a worktree of `base` at `path` with the files of `checkpoint`, which is in the mirror
    /// and is kept there by a reference from now on. The final commit has the base as its parent.
    ///
    /// # Errors
    /// When one of the commits is not in the mirror or the file system refuses.
    pub async fn rebuild(
        mirror: &Mirror,
        path: impl Into<PathBuf>,
        base: &Oid,
        checkpoint: &Oid,
    ) -> Result<Self, RestoreError> {
        let worktree = Self::create(mirror, path, base).await?;
        worktree.go_back(checkpoint, false).await?;
        Ok(worktree)
    }

    /// Gives a worktree that no session uses any more the files of `checkpoint`, which is in the
    /// mirror and is kept there by a reference from now on. Differences from its last checkpoint
    /// are saved in another checkpoint first. `complete` is that of [`RestoreOptions`].
    ///
    /// # Errors
    /// As [`Worktree::restore`], but for foreign changes and deletions.
    pub async fn go_back(&self, checkpoint: &Oid, complete: bool) -> Result<Restored, RestoreError> {
        let name = self.shadow.git_dir().file_name().unwrap_or_default();
        let reference = format!("refs/kage/checkpoints/{}/{checkpoint}", name.to_string_lossy());
        self.mirror
            .update_ref(&reference, checkpoint, &Expected::Anything)
            .await?;
        let options = RestoreOptions {
            // Only a session writes to its worktree, and git (line endings, for example): no change
            // here is a stranger's.
            foreign: Foreign::Save,
            complete,
            most_deletions: usize::MAX,
            ..RestoreOptions::default()
        };
        self.restore(checkpoint, &options).await
    }
}

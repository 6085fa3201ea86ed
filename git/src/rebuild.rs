//! A worktree made anew from a checkpoint that came from elsewhere: the packs are taken in,
//! the base is checked out, and the checkpoint's files are put over it byte for byte. It
//! owns no state; how files are restored is [`crate::restore`]'s.

use std::path::PathBuf;

use kage_core::id::Oid;

use crate::mirror::{Expected, Mirror};
use crate::restore::{Foreign, RestoreError, RestoreOptions};
use crate::worktree::Worktree;

impl Worktree {
    /// Makes a worktree of `base` at `path` with the files of `checkpoint`, which is in the
    /// mirror and is kept there by a reference from now on. What is committed in the end
    /// follows the base.
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
        let name = worktree.shadow.git_dir().file_name().unwrap_or_default();
        let reference = format!("refs/kage/checkpoints/{}/{checkpoint}", name.to_string_lossy());
        mirror.update_ref(&reference, checkpoint, &Expected::Anything).await?;
        let options = RestoreOptions {
            // Nobody has worked in it: what differs from the base is git's own doing, such
            // as line endings.
            foreign: Foreign::Save,
            most_deletions: usize::MAX,
            ..RestoreOptions::default()
        };
        worktree.restore(checkpoint, &options).await?;
        Ok(worktree)
    }
}

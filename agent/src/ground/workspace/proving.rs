//! The checkout of a verify job, with every file proved by hash: a verdict on files that differ from the
//! commit would mean nothing. Programs of sessions can write where an agent keeps mirrors and checkouts,
//! unless the machine keeps them apart, and a disk can fail. `kage_git` owns the comparison.

use kage_core::cause::chain;
use kage_core::id::Oid;
use kage_git::{GitError, Mirror, Worktree};

use super::{MirrorGround, WorkspaceError, complete};
use crate::ground::port::GroundAttempt;

impl MirrorGround {
    /// A worktree with the files of `commit`, whose objects were checked, and with those that the task's
    /// person sent beside it.
    pub(super) async fn proved(
        &self,
        mirror: &Mirror,
        of: &GroundAttempt,
        commit: &Oid,
    ) -> Result<Worktree, WorkspaceError> {
        let path = self.paths.worktree(of.attempt);
        let kept = self.pool.worktree(mirror, &path, commit).await;
        let mut tree = kept.map_err(WorkspaceError::Create)?;
        if let Err(error) = tree.prove().await {
            if !matches!(error, GitError::NotAsCommitted { .. }) {
                return Err(WorkspaceError::Create(error));
            }
            tracing::warn!(path = %path.display(), error = chain(&error), "a checkout is made anew");
            let text = format!("{}; it was thrown away and made anew, before verify ran", chain(&error));
            of.warnings.tell(text).await;
            Worktree::remove(mirror, &path).await.map_err(WorkspaceError::Create)?;
            let made = Worktree::create(mirror, &path, commit).await;
            tree = made.map_err(WorkspaceError::Create)?;
            tree.prove().await.map_err(WorkspaceError::Create)?;
        }
        // Included files are hashed as they are read, and put where nothing is.
        complete(&tree, of).await?;
        if let Some(names) = &of.repository.names {
            let proved = tree.prove_submodules(names).await;
            proved.map_err(WorkspaceError::Create)?;
        }
        Ok(tree)
    }
}

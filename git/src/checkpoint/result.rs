//! The result of a session: a commit of all files on top of the base, as git would store them.
//! Where no attribute applies that is what a checkpoint holds, byte for byte, so the scan for the
//! last checkpoint serves the result too; else git puts the files into an index, with its line
//! endings and the filters that it has itself.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use git2::Oid as Id;
use kage_core::cause::chain;
use kage_core::event::ResultCommit;
use kage_core::id::Oid;

use super::{LockedWorktree, Look};
use crate::diff;
use crate::error::{GitError, blocking};
use crate::objects::{Objects, Unflushed, id_of, mode, oid_of};
use crate::staging::Changes;
use crate::submodules;
use crate::worktree::Worktree;

const ATTRIBUTES: &str = ".gitattributes";

/// What became of the files.
enum Committed {
    /// Nothing differs from the base.
    Nothing,
    As {
        commit: Id,
        tree: Id,
    },
    /// Only git can tell what it would store.
    AskGit,
}

impl Worktree {
    /// Commits all files (untracked ones too, ignored ones not) to the mirror with the base as the
    /// only parent, whatever the session did with its own index and branches; `None` when nothing
    /// differs. Files of nested repositories are included as plain files; of a submodule only its
    /// commit id, and of one that was filled the base's.
    ///
    /// # Errors
    /// When any file could not be taken; there is no partial result.
    pub async fn commit_result(&self, message: &str) -> Result<Option<ResultCommit>, GitError> {
        let text = message.to_owned();
        let committed = self.owned("committing a result", move |worktree| {
            worktree.finish_restore()?;
            let mut look = worktree.look()?;
            let committed = look.result(worktree, &text)?;
            look.keep(worktree);
            Ok::<_, GitError>(committed)
        });
        let found = match committed.await {
            Ok(Committed::AskGit) => None,
            Ok(committed) => Some(self.described(committed).await),
            Err(error) => Some(Err(error)),
        };
        match found {
            Some(Ok(result)) => Ok(result),
            // What the scan takes for stored may be lost with a damaged mirror; git looks again.
            Some(Err(error)) => {
                tracing::debug!(error = chain(&error), "git takes the result");
                self.described(self.commit_by_git(message).await?).await
            }
            None => self.described(self.commit_by_git(message).await?).await,
        }
    }

    /// What a commit changed, which also shows that its objects are there.
    async fn described(&self, committed: Committed) -> Result<Option<ResultCommit>, GitError> {
        let Committed::As { commit, tree } = committed else {
            return Ok(None);
        };
        let (repository, base) = (self.mirror.path().to_owned(), self.base.clone());
        blocking("comparing a result", move || {
            let (commit, tree) = (oid_of(commit)?, oid_of(tree)?);
            let difference = diff::between(&repository, &base, &commit)?;
            Ok(Some(ResultCommit {
                tree: Some(tree),
                ..difference.describe(commit)
            }))
        })
        .await
    }

    async fn commit_by_git(&self, message: &str) -> Result<Committed, GitError> {
        let index = self.index_copy().await?;
        let git = |operation| self.shadow.git(operation).env("GIT_INDEX_FILE", &*index);
        let mut changes = Changes::tracked(git).await?;
        changes.untracked = self.untracked().await?;
        // Nobody else has the commits that a session made in a submodule.
        let filled = submodules::filled(&self.shadow)?;
        let is_filled = |path: &Vec<u8>| filled.contains(Path::new(OsStr::from_bytes(path)));
        changes.modified.retain(|path| !is_filled(path));
        changes.stage(&self.path, git).await?;
        let tree: Oid = git("write-tree").run_for_oid().await?;
        let (mirror, base, message) = (self.mirror.clone(), id_of(&self.base)?, message.to_owned());
        blocking("committing a result", move || {
            let mut objects = Objects::open(mirror.path(), Unflushed::default())?;
            commit(&mut objects, base, id_of(&tree)?, &message)
        })
        .await
    }
}

impl Look {
    fn result(&mut self, worktree: &LockedWorktree, message: &str) -> Result<Committed, GitError> {
        if !self.is_as_git_stores_it(worktree)? {
            return Ok(Committed::AskGit);
        }
        let tree = self.top.write(&mut self.objects)?;
        commit(&mut self.objects, worktree.base, tree, message)
    }

    /// Whether git's result would hold the files that were found, with the content they have.
    fn is_as_git_stores_it(&self, worktree: &LockedWorktree) -> Result<bool, GitError> {
        let is_attributes = |path: &Path| path.file_name() == Some(OsStr::new(ATTRIBUTES));
        let special = |name: &OsStr, kind| name == ATTRIBUTES || kind == mode::SUBMODULE;
        if self.ignored.iter().any(|path| is_attributes(path)) || self.top.has(&|name, entry| special(name, entry.mode))
        {
            return Ok(false);
        }
        let failed = "compare the files with the base";
        let base = self.objects.tree_of(worktree.base).map_err(GitError::library(failed))?;
        let differences = self.top.differences(self.objects.repository(), base);
        let mut added: Vec<PathBuf> = Vec::new();
        for (path, difference) in differences.map_err(GitError::library(failed))? {
            match (difference.before, difference.after) {
                (_, Some(before)) if is_attributes(&path) || before.mode == mode::SUBMODULE => return Ok(false),
                // Ignored, or nothing that is stored: git still has it in its index.
                (None, Some(_)) if fs::symlink_metadata(worktree.root.join(&path)).is_ok_and(|meta| !meta.is_dir()) => {
                    return Ok(false);
                }
                // A checkpoint keeps what an earlier one had, also when it is ignored by now.
                (Some(_), None) => added.push(path),
                (Some(_) | None, Some(_)) | (None, None) => {}
            }
        }
        Ok(added.is_empty() || worktree.ignored(&added)?.is_empty())
    }
}

/// Commits a tree on top of the base. It survives a power cut when this returns.
fn commit(objects: &mut Objects, base: Id, tree: Id, message: &str) -> Result<Committed, GitError> {
    let before = objects.tree_of(base).map_err(GitError::library("read the base"))?;
    if before == tree {
        return Ok(Committed::Nothing);
    }
    let commit = objects.commit(tree, &[base], message)?;
    objects.flush([])?;
    Ok(Committed::As { commit, tree })
}

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
use kage_core::event::{MAX_ODD_FILES, ResultCommit};
use kage_core::id::Oid;

use super::{LockedWorktree, Look};
use crate::diff;
use crate::error::{GitError, blocking};
use crate::left_out::{NewFiles, NotTaken, really_gone, takeable};
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
    /// When the file system refuses, or there are more new files than the rules allow; there is no
    /// partial result but for what [`Worktree::left_out`] names.
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
            Some(Err(error @ GitError::TooMuch { .. })) => Err(error),
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
        let mut left_out = self.left_out();
        left_out.retain(|file| file.reason.may_be_missed());
        left_out.truncate(MAX_ODD_FILES);
        blocking("comparing a result", move || {
            let (commit, tree) = (oid_of(commit)?, oid_of(tree)?);
            let difference = diff::between(&repository, &base, &commit)?;
            Ok(Some(ResultCommit {
                tree: Some(tree),
                left_out,
                ..difference.describe(commit)
            }))
        })
        .await
    }

    async fn commit_by_git(&self, message: &str) -> Result<Committed, GitError> {
        let index = self.index_copy().await?;
        let git = |operation| self.shadow.git(operation).env("GIT_INDEX_FILE", &*index);
        // First: it finds what would hold git up.
        let (new, not_taken) = self.new_files().await?;
        let mut changes = Changes::tracked(git).await?;
        changes.untracked = new;
        // Nobody else has the commits that a session made in a submodule.
        let filled = submodules::filled(&self.shadow)?;
        let is_filled = |path: &Vec<u8>| filled.contains(Path::new(OsStr::from_bytes(path)));
        changes.modified.retain(|path| !is_filled(path));
        let mut large = self.unchanged_large(&changes.modified).await?;
        large.extend(self.moved_large(&changes.untracked).await?);
        for paths in [&mut changes.modified, &mut changes.untracked] {
            paths.retain(|path| !large.contains_key(Path::new(OsStr::from_bytes(path))));
        }
        let mut as_pointers = Vec::new();
        for (path, (file, is_program)) in large {
            let mode = if is_program { mode::PROGRAM } else { mode::FILE };
            as_pointers.extend_from_slice(format!("{mode:06o} {}\t", file.pointer).as_bytes());
            as_pointers.extend_from_slice(&[path.as_os_str().as_bytes(), b"\0"].concat());
        }
        if !as_pointers.is_empty() {
            let update = git("update-index").args(["--add", "-z", "--index-info"]);
            update.stdin(as_pointers).run().await?;
        }
        let changes = self.without_left_out(changes, not_taken).await?;
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

impl Worktree {
    /// The changes that git can take and may have.
    async fn without_left_out(&self, changes: Changes, mut not_taken: NotTaken) -> Result<Changes, GitError> {
        self.owned("looking at changed files", move |worktree| {
            let objects = Objects::open(worktree.mirror.path(), Unflushed::default())?;
            let base = objects
                .tree_of(worktree.base)
                .map_err(GitError::library("read the base"))?;
            let large = worktree.large()?;
            let mut sort = |paths: &[Vec<u8>]| {
                let base = (objects.repository(), base, &large);
                takeable(base, &worktree.rules, &worktree.root, paths, &mut not_taken)
            };
            let modified = sort(&changes.modified)?;
            let untracked = sort(&changes.untracked)?;
            let gone = really_gone(&worktree.root, changes.gone, &mut not_taken);
            worktree.tell(not_taken);
            Ok(Changes {
                gone,
                modified,
                untracked,
            })
        })
        .await
    }
}

impl Look {
    fn result(&mut self, worktree: &LockedWorktree, message: &str) -> Result<Committed, GitError> {
        if !self.is_as_git_stores_it(worktree)? {
            return Ok(Committed::AskGit);
        }
        self.check_new_files(worktree)?;
        let tree = self.top.write(&mut self.objects)?;
        commit(&mut self.objects, worktree.base, tree, message)
    }

    /// Refuses more new files than the rules allow, also when they came one by one.
    fn check_new_files(&self, worktree: &LockedWorktree) -> Result<(), GitError> {
        let failed = "compare the files with the base";
        let base = self.objects.tree_of(worktree.base).map_err(GitError::library(failed))?;
        let differences = self.top.differences(self.objects.repository(), base);
        let mut new = NewFiles::default();
        for (path, difference) in differences.map_err(GitError::library(failed))? {
            if let (Some(_), None) = (difference.before, difference.after) {
                let found = fs::symlink_metadata(worktree.root.join(&path));
                new.add(&worktree.rules, &path, found.map_or(0, |found| found.len()))?;
            }
        }
        Ok(())
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
                // Nothing that is stored, or left out: git still has it in its index.
                (None, Some(_)) if fs::symlink_metadata(worktree.root.join(&path)).is_ok_and(|meta| !meta.is_dir()) => {
                    return Ok(false);
                }
                // A checkpoint keeps what an earlier one had, also when it is ignored by now.
                (Some(_), None) => added.push(path),
                (Some(_) | None, Some(_)) | (None, None) => {}
            }
        }
        Ok(added.is_empty() || worktree.ignored(&added, base)?.is_empty())
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

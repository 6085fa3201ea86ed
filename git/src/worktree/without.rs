//! A checkout of a result without what the result changes: for a check that has to notice.

use std::path::Path;

use git2::Repository;
use kage_core::id::Oid;

use super::{Worktree, paths_of};
use crate::beneath::{Beneath, Parent};
use crate::error::{GitError, blocking};
use crate::staging::DIFF;

impl Worktree {
    /// Gives every path that `result` changes the content that it has in `base`, but for those that stay;
    /// what the base lacks is deleted. Nothing else is touched, such as what programs built. Never follows
    /// a symbolic link. Returns the paths that were different, sorted.
    ///
    /// # Errors
    /// When git or the file system fails.
    pub async fn take_out(&self, base: &Oid, result: &Oid, stays: fn(&str) -> bool) -> Result<Vec<String>, GitError> {
        let index = self.index_copy().await?;
        let git = |operation| self.shadow.git(operation).env("GIT_INDEX_FILE", &*index);
        git("read-tree")
            .args(["--reset", "--end-of-options", base.as_str()])
            .run()
            .await?;
        let listed = git("diff-tree")
            .args(DIFF)
            .args(["-r", "--name-only", "--end-of-options"])
            .args([base.as_str(), result.as_str()])
            .run()
            .await?;
        let mut paths = paths_of(&listed);
        paths.retain(|path| !path.to_str().is_some_and(stays));
        let differing = git("diff").args(DIFF).arg("--name-only").run().await?;
        let differing = paths_of(&differing);
        let (root, mirror, base) = (self.path.clone(), self.mirror.path().to_owned(), base.clone());
        let (put_back, mut changed) = blocking("taking a change out", move || {
            let in_base = tree(&mirror, &base).map_err(GitError::library("read the base"))?;
            let beneath = Beneath::open(&root).map_err(GitError::io("open", &root))?;
            let (mut put_back, mut changed) = (Vec::new(), Vec::new());
            for path in paths {
                if in_base(&path) {
                    if differing.contains(&path) {
                        put_back.push(path);
                    }
                } else if delete(&beneath, &path).map_err(GitError::io("delete", &root.join(&path)))? {
                    changed.push(path);
                }
            }
            Ok::<_, GitError>((put_back, changed))
        })
        .await?;
        self.write_indexed(&index, &put_back).await?;
        self.refill_large(true).await?;
        changed.extend(put_back);
        let mut shown: Vec<String> = changed.iter().map(|path| path.to_string_lossy().into_owned()).collect();
        shown.sort();
        Ok(shown)
    }
}

/// Whether a commit has something at a path.
fn tree(mirror: &Path, commit: &Oid) -> Result<impl Fn(&Path) -> bool, git2::Error> {
    let repository = Repository::open_bare(mirror)?;
    let id = git2::Oid::from_str(commit.as_str())?;
    let tree = repository.find_commit(id)?.tree_id();
    Ok(move |path: &Path| repository.find_tree(tree).is_ok_and(|tree| tree.get_path(path).is_ok()))
}

/// Deletes a file; false = there was none.
fn delete(beneath: &Beneath, path: &Path) -> std::io::Result<bool> {
    use rustix::fs::{AtFlags, unlinkat};
    use rustix::io::Errno;
    let Parent::Open(parent, name) = beneath.parent(path, false)? else {
        return Ok(false);
    };
    match unlinkat(&parent, name, AtFlags::empty()) {
        Ok(()) => Ok(true),
        // A program made something else of it, which is not the result's.
        Err(Errno::NOENT | Errno::ISDIR | Errno::PERM) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

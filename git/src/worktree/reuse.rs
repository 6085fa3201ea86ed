//! Checkouts that are used again. A worktree that no session needs any more is set aside: what is
//! not of its commit is deleted, its index stays beside it. Later it becomes the worktree of
//! another commit by changing what differs. Making and deleting a whole checkout is the most
//! expensive thing that an agent does to a disk: ext4 without a journal looks at every inode that
//! was freed in the last minutes before it takes one (`recently_deleted` in fs/ext4/ialloc.c).
//!
//! ```text
//! <folder>/files     the checkout; no session's .git is in it
//! <folder>/commit    what was checked out
//! <folder>/index     git's record of it; written last: without it the folder is no checkout
//! ```
//!
//! Nothing that a session left is taken for the commit's: names that the commit does not have are
//! deleted, and git compares every file's stat with its index, as for any checkout.

use std::fs;
use std::path::{Path, PathBuf};

use git2::Repository;
use kage_core::id::Oid;
use rustix::fs::AtFlags;
use rustix::io::Errno;

use crate::beneath::{Beneath, Parent};
use crate::error::{GitError, blocking};
use crate::large::{self, FilledFiles};
use crate::lock;
use crate::loose::compared::{Compared, prove_compared, tree_of};
use crate::mirror::Mirror;
use crate::objects::id_of;
use crate::removal::remove_folder;
use crate::shadow::Shadow;

use super::extras::{Permissions, remove_extras};
use super::{KAGE_CONFIG, Worktree, private_dir};

/// A checkout that waits in a folder for its next use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetAside {
    folder: PathBuf,
    commit: Oid,
}

impl SetAside {
    /// The checkout in `folder`; `None` when setting it aside was not finished.
    #[must_use]
    pub fn open(folder: &Path) -> Option<Self> {
        if !folder.join("index").is_file() {
            return None;
        }
        let commit = fs::read_to_string(folder.join("commit")).ok()?;
        Some(Self {
            folder: folder.to_owned(),
            commit: commit.trim().parse().ok()?,
        })
    }

    /// What was checked out.
    #[must_use]
    pub fn commit(&self) -> &Oid {
        &self.commit
    }

    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn files(&self) -> PathBuf {
        self.folder.join("files")
    }

    fn index(&self) -> PathBuf {
        self.folder.join("index")
    }
}

impl Worktree {
    /// Sets the worktree at `path` aside in `folder`, which does not exist and is on the same file
    /// system. The caller has the result, or a last checkpoint, and no program uses the worktree.
    /// Waits for a running checkpoint or restore.
    ///
    /// # Errors
    /// When something in it cannot be deleted, which the error names, or the file system refuses.
    /// Then both `path` and `folder` may have a part of it; [`Worktree::remove`] and
    /// [`remove_folder`] clear them.
    pub async fn set_aside(mirror: &Mirror, path: &Path, commit: &Oid, folder: &Path) -> Result<SetAside, GitError> {
        let given = path.to_owned();
        let real = blocking("setting a worktree aside", move || {
            fs::canonicalize(&given).map_err(GitError::io("resolve", &given))
        })
        .await?;
        let private = private_dir(mirror, &real);
        let lock = lock::acquire(&private).await?;
        let aside = SetAside {
            folder: folder.to_owned(),
            commit: commit.clone(),
        };
        let large = large::filled(&Shadow::new(&private, &real, None))?;
        blocking("setting a worktree aside", move || {
            fs::create_dir_all(&aside.folder).map_err(GitError::io("create", &aside.folder))?;
            let note = aside.folder.join("commit");
            fs::write(&note, format!("{}\n", aside.commit)).map_err(GitError::io("write", &note))?;
            let usual = Permissions::like(&note, &aside.folder)?;
            let files = aside.files();
            fs::rename(&real, &files).map_err(GitError::io("move", &real))?;
            let index = private.join("index");
            remove_contents(&files, &large)?;
            remove_extras(&files, &index, usual)?;
            fs::rename(&index, aside.index()).map_err(GitError::io("move", &index))?;
            remove_folder(&private)?;
            drop(lock);
            Ok(aside)
        })
        .await
    }

    /// Makes the worktree of `commit` at `path`, which does not exist, from a checkout that was set
    /// aside. `None` when that checkout cannot become one of `commit` by changing what differs:
    /// other attributes apply to files whose content is the same, or its own commit is gone. Then
    /// it is as it was.
    ///
    /// # Errors
    /// When the commit is not in the mirror or the file system refuses. [`Worktree::remove`] clears
    /// what is at `path`, [`remove_folder`] what is left of the checkout.
    pub async fn reuse(
        mirror: &Mirror,
        aside: &SetAside,
        path: impl Into<PathBuf>,
        commit: &Oid,
    ) -> Result<Option<Self>, GitError> {
        let (mirror, path, base, aside) = (mirror.clone(), path.into(), commit.clone(), aside.clone());
        let moved = blocking("taking a worktree", move || {
            if !has_same_attributes(&mirror, &aside.commit, &base)? {
                return Ok(None);
            }
            let parent = path.parent().unwrap_or(&path);
            fs::create_dir_all(parent).map_err(GitError::io("create", parent))?;
            fs::rename(aside.files(), &path).map_err(GitError::io("move", &path))?;
            let path = fs::canonicalize(&path).map_err(GitError::io("resolve", &path))?;
            let private = private_dir(&mirror, &path);
            let shadow = Shadow::new(&private, &path, Some(mirror.objects()));
            shadow.make(&base, KAGE_CONFIG, &[])?;
            fs::rename(aside.index(), shadow.index()).map_err(GitError::io("move", &aside.index()))?;
            remove_folder(&aside.folder)?;
            Ok::<_, GitError>(Some(Self::at(mirror, path, base, shadow)))
        })
        .await?;
        let Some(worktree) = moved else { return Ok(None) };
        worktree.check_out().await?;
        Ok(Some(worktree))
    }
}

/// Deletes the files that have a content in place of a pointer, whatever they are by now: git takes the
/// content for what its index says, and the next commit may have the pointer alone.
fn remove_contents(root: &Path, large: &FilledFiles) -> Result<(), GitError> {
    let beneath = Beneath::open(root).map_err(GitError::io("open", root))?;
    for path in large.keys() {
        let failed = |error| GitError::io("delete", &root.join(path))(error);
        if let Parent::Open(folder, name) = beneath.parent(path, false).map_err(failed)? {
            match rustix::fs::unlinkat(&folder, name, AtFlags::empty()) {
                // A folder is deleted as what the commit does not have.
                Ok(()) | Err(Errno::NOENT | Errno::ISDIR | Errno::PERM | Errno::ACCESS) => {}
                Err(error) => return Err(failed(error.into())),
            }
        }
    }
    Ok(())
}

/// Whether git treats files of the same content alike in both commits: no `.gitattributes` differs.
fn has_same_attributes(mirror: &Mirror, one: &Oid, other: &Oid) -> Result<bool, GitError> {
    if one == other {
        return Ok(true);
    }
    let repository = Repository::open_bare(mirror.path()).map_err(GitError::library("open a mirror"))?;
    let tree = |commit: &Oid| tree_of(&repository, id_of(commit)?).map_err(GitError::library("read a commit"));
    let Ok(old) = tree(one) else { return Ok(false) };
    let new = tree(other)?;
    let difference = prove_compared(&repository, &old, &new, Compared::NAMES)
        .and_then(|()| repository.diff_tree_to_tree(Some(&old), Some(&new), None))
        .map_err(GitError::library("compare two commits"))?;
    let is_attributes =
        |file: git2::DiffFile<'_>| file.path_bytes().is_some_and(|path| path.ends_with(b".gitattributes"));
    Ok(!difference
        .deltas()
        .any(|delta| is_attributes(delta.old_file()) || is_attributes(delta.new_file())))
}

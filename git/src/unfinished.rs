//! The result of a session that claimed none, made in a mirror from its checkpoints alone: what
//! changed between two of them, as a commit on the base. No worktree is needed, so a lost agent
//! does not matter. Checkpoints hold the bytes of files; a result holds what git stores of them, so
//! the changed files, and every file with attributes, are put into a folder for git to read.
//!
//! ```text
//! <mirror>/objects/incoming-*/    git directory, index and changed files; deleted at the end
//! ```

use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use git2::{DiffOptions, ObjectType, Oid as Id, Repository, Tree, TreeWalkMode, TreeWalkResult};
use kage_core::event::ResultCommit;
use kage_core::id::Oid;
use rustix::fs::{Mode, OFlags};
use tempfile::TempDir;

use crate::beneath::{Beneath, Parent};
use crate::diff;
use crate::error::{GitError, blocking};
use crate::loose::compared::{Compared, prove_compared, tree_of};
use crate::mirror::Mirror;
use crate::objects::{Objects, Unflushed, id_of, mode};
use crate::shadow::Shadow;
use crate::staging::Changes;
use crate::worktree::KAGE_CONFIG;

const ATTRIBUTES: &[u8] = b".gitattributes";

impl Mirror {
    /// Commits the changes from checkpoint `from` to checkpoint `to` on top of `base`: `None` when
    /// they come to nothing. `from` has the files that a session began with, which are the base's
    /// but for what git makes of them on a disk. All three are in the mirror.
    ///
    /// # Errors
    /// When an object is missing or damaged, or the file system refuses. There is no partial result.
    pub async fn commit_unfinished(
        &self,
        base: &Oid,
        from: &Oid,
        to: &Oid,
        message: &str,
    ) -> Result<Option<ResultCommit>, GitError> {
        let (mirror, ids) = (self.clone(), [base.clone(), from.clone(), to.clone()]);
        let laid_out = blocking("laying out unfinished work", move || LaidOut::of(&mirror, &ids)).await?;
        let shadow = &laid_out.shadow;
        shadow
            .git("read-tree")
            .args(["--end-of-options", base.as_str()])
            .run()
            .await?;
        laid_out
            .changes
            .stage(&laid_out.files, |operation| shadow.git(operation))
            .await?;
        if !laid_out.submodules.is_empty() {
            let index_info = shadow.git("update-index").args(["-z", "--index-info"]);
            index_info.stdin(laid_out.submodules.clone()).run().await?;
        }
        let tree = shadow.git("write-tree").run_for_oid().await?;
        let of_base = self.tree_of(base).await?;
        if of_base.as_ref() == Some(&tree) {
            return Ok(None);
        }
        let commit = shadow.commit_tree(&tree, &[base], message).await?;
        let (repository, base) = (self.path().to_owned(), base.clone());
        blocking("comparing a result", move || {
            drop(laid_out);
            let difference = diff::between(&repository, &base, &commit)?;
            Ok(Some(ResultCommit {
                tree: Some(tree),
                ..difference.describe(commit)
            }))
        })
        .await
    }
}

/// The changed files in a folder, for git to stage.
struct LaidOut {
    shadow: Shadow,
    files: PathBuf,
    changes: Changes,
    /// Submodules that changed, in the form of `update-index --index-info`.
    submodules: Vec<u8>,
    _folder: TempDir,
}

impl LaidOut {
    fn of(mirror: &Mirror, [base, from, to]: &[Oid; 3]) -> Result<Self, GitError> {
        let objects = mirror.objects();
        // A name that is swept after a crash.
        let folder = tempfile::Builder::new().prefix("incoming-").tempdir_in(&objects);
        let folder = folder.map_err(GitError::io("make a folder in", &objects))?;
        let (private, files) = (folder.path().join("git"), folder.path().join("files"));
        fs::create_dir(&files).map_err(GitError::io("create", &files))?;
        let shadow = Shadow::new(&private, &files, Some(objects));
        shadow.make(base, KAGE_CONFIG, &[])?;
        let store = Objects::open(mirror.path(), Unflushed::default())?;
        let mut out = Self {
            shadow,
            files,
            changes: Changes::default(),
            submodules: Vec::new(),
            _folder: folder,
        };
        let repository = store.repository();
        let tree = |commit: &Oid| {
            tree_of(repository, id_of(commit)?).map_err(GitError::library("read the files of a checkpoint"))
        };
        let (base, from, to) = (tree(base)?, tree(from)?, tree(to)?);
        let changed = out.sort(repository, &base, &from, &to)?;
        let beneath = Beneath::open(&out.files).map_err(GitError::io("open", &out.files))?;
        for (path, mode, id) in changed.into_iter().chain(attributes(&to)?) {
            put(&store, &beneath, &out.files.join(&path), &path, (mode, id))?;
        }
        Ok(out)
    }

    /// Notes what is to be staged, and returns the files for that.
    fn sort(
        &mut self,
        repository: &Repository,
        base: &Tree<'_>,
        from: &Tree<'_>,
        to: &Tree<'_>,
    ) -> Result<Vec<(PathBuf, u32, Id)>, GitError> {
        let failed = || GitError::library("compare two checkpoints");
        let mut options = DiffOptions::new();
        options.include_typechange(true).skip_binary_check(true);
        let diff = prove_compared(repository, from, to, Compared::NAMES)
            .and_then(|()| repository.diff_tree_to_tree(Some(from), Some(to), Some(&mut options)));
        let diff = diff.map_err(failed())?;
        let mut files = Vec::new();
        for delta in diff.deltas() {
            let (old, new) = (delta.old_file(), delta.new_file());
            let Some(bytes) = new.path_bytes().or_else(|| old.path_bytes()) else {
                continue;
            };
            let path = Path::new(std::ffi::OsStr::from_bytes(bytes));
            // Of a submodule a result has the commit id only, whatever its folder holds.
            if path.ancestors().skip(1).any(|folder| is_submodule(base, folder)) {
                continue;
            }
            let kind = u32::from(new.mode());
            if !new.exists() {
                if !(is_submodule(base, path) && to.get_path(path).is_ok()) {
                    self.changes.gone.push(bytes.to_vec());
                }
            } else if kind == mode::SUBMODULE {
                self.submodules
                    .extend_from_slice(format!("{kind:o} {}\t", new.id()).as_bytes());
                self.submodules.extend_from_slice(bytes);
                self.submodules.push(0);
            } else {
                self.changes.untracked.push(bytes.to_vec());
                files.push((path.to_owned(), kind, new.id()));
            }
        }
        Ok(files)
    }
}

fn is_submodule(tree: &Tree<'_>, path: &Path) -> bool {
    path != Path::new("")
        && tree
            .get_path(path)
            .is_ok_and(|entry| u32::try_from(entry.filemode()) == Ok(mode::SUBMODULE))
}

/// The files that say what git makes of other files.
fn attributes(tree: &Tree<'_>) -> Result<Vec<(PathBuf, u32, Id)>, GitError> {
    let mut found = Vec::new();
    let walked = tree.walk(TreeWalkMode::PreOrder, |folder, entry| {
        if entry.name_bytes() == ATTRIBUTES && entry.kind() == Some(ObjectType::Blob) {
            let name = Path::new(std::ffi::OsStr::from_bytes(entry.name_bytes()));
            let mode = u32::try_from(entry.filemode()).unwrap_or(mode::FILE);
            found.push((Path::new(folder).join(name), mode, entry.id()));
        }
        TreeWalkResult::Ok
    });
    walked.map_err(GitError::library("read the files of a checkpoint"))?;
    Ok(found)
}

/// Puts a file or link where nothing is; the same one may be there already.
fn put(store: &Objects, beneath: &Beneath, full: &Path, path: &Path, (mode, id): (u32, Id)) -> Result<(), GitError> {
    let failed = |error| GitError::io("write", full)(error);
    let (parent, name) = match beneath.parent(path, true).map_err(failed)? {
        Parent::Open(parent, name) => (parent, name),
        // On a disk that ignores case, one name of the session's may hide another.
        Parent::Absent | Parent::Blocked(_) => {
            return Err(GitError::NotTaken {
                path: path.to_string_lossy().into_owned(),
            });
        }
    };
    let made = if mode == mode::LINK {
        let target = store.read(id)?;
        rustix::fs::symlinkat(target.as_slice(), &parent, name)
    } else {
        let permissions = if mode == mode::PROGRAM { 0o777 } else { 0o666 };
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(&parent, name, flags, Mode::from_raw_mode(permissions)) {
            Ok(file) => return store.copy_to(id, &File::from(file), full),
            Err(error) => Err(error),
        }
    };
    match made {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(error) => Err(failed(error.into())),
    }
}

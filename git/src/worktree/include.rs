//! Included files in a worktree: placed where nothing is.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use git2::{Repository, TreeWalkMode, TreeWalkResult};
use kage_core::id::Oid;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::Worktree;
use crate::beneath::{Beneath, Parent};
use crate::error::{GitError, blocking};
use crate::included::names_file;
use crate::objects::{id_of, mode};
use crate::staging::lines;

impl Worktree {
    /// Puts the files of a commit of included files into the worktree, where nothing is at their
    /// paths. From then on no checkpoint and no result of this worktree takes a file at these paths.
    ///
    /// # Errors
    /// When the commit is not in the mirror or the file system refuses.
    pub async fn include(&self, commit: &Oid) -> Result<(), GitError> {
        let (mirror, root, commit) = (self.mirror.path().to_owned(), self.path.clone(), commit.clone());
        let names = names_file(&self.shadow);
        blocking("including files", move || {
            let library = || GitError::library("read included files");
            let repository = Repository::open_bare(&mirror).map_err(library())?;
            let tree = repository.find_commit(id_of(&commit)?).and_then(|commit| commit.tree());
            let mut files = Vec::new();
            let walked = tree.map_err(library())?.walk(TreeWalkMode::PreOrder, |folder, entry| {
                let kind = u32::try_from(entry.filemode()).unwrap_or_default();
                if matches!(kind, mode::FILE | mode::PROGRAM) {
                    let path = [folder.as_bytes(), entry.name_bytes()].concat();
                    files.push((path, entry.id(), kind == mode::PROGRAM));
                }
                TreeWalkResult::Ok
            });
            walked.map_err(library())?;
            let beneath = Beneath::open(&root).map_err(GitError::io("open", &root))?;
            let mut placed = Vec::new();
            for (path, id, executable) in files {
                let blob = repository.find_blob(id).map_err(library())?;
                let full = root.join(OsStr::from_bytes(&path));
                let place = place(
                    &beneath,
                    Path::new(OsStr::from_bytes(&path)),
                    blob.content(),
                    executable,
                );
                if place.map_err(GitError::io("write", &full))? {
                    placed.push(path);
                }
            }
            std::fs::write(&names, lines(&placed)).map_err(GitError::io("write", &names))
        })
        .await
    }
}

/// Writes a file where nothing is; false when something is there, or in the way.
fn place(beneath: &Beneath, path: &Path, content: &[u8], executable: bool) -> io::Result<bool> {
    if path.iter().any(|name| name.eq_ignore_ascii_case(".git")) {
        return Ok(false);
    }
    let Parent::Open(folder, name) = beneath.parent(path, true)? else {
        return Ok(false);
    };
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let permissions = Mode::from_raw_mode(if executable { 0o700 } else { 0o600 });
    match rustix::fs::openat(&folder, name, flags, permissions) {
        Ok(file) => File::from(file).write_all(content).map(|()| true),
        Err(Errno::EXIST) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

//! Deletes what is in a checkout and not of its commit: untracked and ignored files, nested
//! repositories, what stands where the commit has something else, the session's `.git`. So are files
//! with other permissions than a checkout gives, which git does not compare; git writes them anew.
//! Content of tracked files is git's matter.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use git2::Index;
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::error::GitError;
use crate::objects::mode;
use crate::removal::{entries, open_folder, remove};

/// What a commit has at a name.
#[derive(Debug)]
enum Tracked {
    File,
    /// A file that may be executed.
    Program,
    Link,
    /// The folder of a submodule, which is empty in a checkout.
    Submodule,
    Folder(HashMap<OsString, Tracked>),
}

/// The permissions that this process gives to what it makes: its umask decides.
#[derive(Debug, Clone, Copy)]
pub(super) struct Permissions {
    file: Mode,
    /// Of folders and programs.
    folder: Mode,
}

impl Permissions {
    /// Those of a file and a folder that this process has just made.
    pub(super) fn like(file: &Path, folder: &Path) -> Result<Self, GitError> {
        let of = |path: &Path| {
            let stat = rustix::fs::lstat(path).map_err(|error| GitError::io("look at", path)(error.into()))?;
            Ok::<_, GitError>(Mode::from_raw_mode(stat.st_mode))
        };
        Ok(Self {
            file: of(file)?,
            folder: of(folder)?,
        })
    }
}

/// Deletes everything below `root` that is not as `index` names it, and gives folders their usual
/// permissions back.
///
/// # Errors
/// Names the first path that cannot be deleted.
pub(super) fn remove_extras(root: &Path, index: &Path, usual: Permissions) -> Result<(), GitError> {
    let tracked = tracked(index)?;
    let opened = rustix::fs::open(
        root,
        OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    );
    let opened = opened.map_err(|error| GitError::io("open", root)(error.into()))?;
    clear(&opened, root, &tracked, usual)
}

fn tracked(index: &Path) -> Result<HashMap<OsString, Tracked>, GitError> {
    let index = Index::open(index).map_err(GitError::library("read an index"))?;
    let mut top = HashMap::new();
    for entry in index.iter() {
        let mut folder = &mut top;
        let mut parts = entry.path.split(|byte| *byte == b'/').peekable();
        while let Some(part) = parts.next() {
            let name = OsStr::from_bytes(part).to_owned();
            if parts.peek().is_none() {
                let what = match entry.mode {
                    mode::SUBMODULE => Tracked::Submodule,
                    mode::LINK => Tracked::Link,
                    mode::PROGRAM => Tracked::Program,
                    _ => Tracked::File,
                };
                folder.insert(name, what);
                break;
            }
            let inner = folder.entry(name).or_insert_with(|| Tracked::Folder(HashMap::new()));
            let Tracked::Folder(inner) = inner else { break };
            folder = inner;
        }
    }
    Ok(top)
}

fn clear(
    folder: &OwnedFd,
    path: &Path,
    tracked: &HashMap<OsString, Tracked>,
    usual: Permissions,
) -> Result<(), GitError> {
    let failed = |action, path: &Path| {
        let path = path.to_owned();
        move |error: Errno| GitError::io(action, &path)(error.into())
    };
    let now = rustix::fs::fstat(folder).map_err(failed("look at", path))?;
    if Mode::from_raw_mode(now.st_mode) != usual.folder {
        rustix::fs::fchmod(folder, usual.folder).map_err(failed("change the permissions of", path))?;
    }
    let nothing = HashMap::new();
    for (name, kind) in entries(folder).map_err(failed("list", path))? {
        let full = path.join(&name);
        let inner = match (tracked.get(&name), kind) {
            (Some(Tracked::Link), FileType::Symlink) => continue,
            (Some(what @ (Tracked::File | Tracked::Program)), FileType::RegularFile) => {
                let stat = rustix::fs::statat(folder, &name, AtFlags::SYMLINK_NOFOLLOW);
                let mode = Mode::from_raw_mode(stat.map_err(failed("look at", &full))?.st_mode);
                let wanted = if matches!(what, Tracked::Program) {
                    usual.folder
                } else {
                    usual.file
                };
                if mode != wanted {
                    remove(folder.as_fd(), &name, &full)?;
                }
                continue;
            }
            (Some(Tracked::Folder(inner)), FileType::Directory) => inner,
            (Some(Tracked::Submodule), FileType::Directory) => &nothing,
            _ => {
                remove(folder.as_fd(), &name, &full)?;
                continue;
            }
        };
        let opened = open_folder(folder.as_fd(), &name).map_err(failed("open", &full))?;
        clear(&opened, &full, inner, usual)?;
    }
    Ok(())
}

//! The files of a worktree that its base does not have. Kage lists them itself: git would read the rules
//! of every folder, also of those that it never stores, and a pipe in the place of rules would hold it
//! up for ever. Git is asked only which of the new names it ignores, a level of folders at a time.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use git2::Index;
use kage_core::left_out::LeftOutReason;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::Worktree;
use crate::beneath::{Beneath, Parent};
use crate::error::{GitError, blocking};
use crate::ignored::ignored;
use crate::included;
use crate::left_out::{NotTaken, by_path, holds_git_up};
use crate::objects::mode;

impl Worktree {
    /// Files that the base does not have and that are not ignored, as bytes, and what else is no part
    /// of a result.
    ///
    /// # Errors
    /// When the file system refuses, or a pipe is in the place of git's rules; the next checkpoint
    /// removes it.
    pub(crate) async fn new_files(&self) -> Result<(Vec<Vec<u8>>, NotTaken), GitError> {
        let (root, index) = (self.path.clone(), self.shadow.index());
        let mut listing = blocking("listing files", move || {
            let beneath = Beneath::open(&root).map_err(GitError::io("open", &root))?;
            let mut listing = Listing {
                base: Base::read(&index)?,
                root,
                beneath,
                unknown: Vec::new(),
                not_taken: NotTaken::default(),
            };
            listing.below(PathBuf::new())?;
            Ok::<_, GitError>(listing)
        })
        .await?;
        let mut found = Vec::new();
        while !listing.unknown.is_empty() {
            let names = std::mem::take(&mut listing.unknown);
            let paths: Vec<&[u8]> = names.iter().map(|name| name.path.as_os_str().as_bytes()).collect();
            let ignored = ignored(&self.shadow, &self.path, &paths).await?;
            let mut folders = Vec::new();
            for Name { path, is_folder } in names {
                if ignored.contains(path.as_os_str().as_bytes()) {
                    continue;
                }
                if !is_folder {
                    found.push(path.into_os_string().into_encoded_bytes());
                } else if let Some(reason) = by_path(&path) {
                    listing.not_taken.add(&path, reason);
                } else {
                    folders.push(path);
                }
            }
            listing = blocking("listing files", move || {
                for folder in folders {
                    listing.below(folder)?;
                }
                Ok::<_, GitError>(listing)
            })
            .await?;
        }
        let included = included::names(&self.shadow)?;
        found.retain(|path| !included.contains(Path::new(OsStr::from_bytes(path))));
        Ok((found, listing.not_taken))
    }
}

/// The names that the base has.
struct Base {
    files: HashSet<Vec<u8>>,
    folders: HashSet<Vec<u8>>,
    submodules: HashSet<Vec<u8>>,
}

impl Base {
    fn read(index: &Path) -> Result<Self, GitError> {
        let index = Index::open(index).map_err(GitError::library("read an index"))?;
        let mut base = Self {
            files: HashSet::with_capacity(index.len()),
            folders: HashSet::new(),
            submodules: HashSet::new(),
        };
        for entry in index.iter() {
            let mut above = entry.path.as_slice();
            while let Some(end) = above.iter().rposition(|byte| *byte == b'/') {
                above = &above[..end];
                if !base.folders.insert(above.to_owned()) {
                    break;
                }
            }
            let names = if entry.mode == mode::SUBMODULE {
                &mut base.submodules
            } else {
                &mut base.files
            };
            names.insert(entry.path);
        }
        Ok(base)
    }
}

/// A name that the base does not have.
struct Name {
    path: PathBuf,
    is_folder: bool,
}

struct Listing {
    base: Base,
    root: PathBuf,
    beneath: Beneath,
    unknown: Vec<Name>,
    not_taken: NotTaken,
}

impl Listing {
    /// Lists a folder and those below it that the base has.
    fn below(&mut self, top: PathBuf) -> Result<(), GitError> {
        let mut folders = vec![top];
        while let Some(folder) = folders.pop() {
            let failed = |error: Errno| GitError::io("list", &self.root.join(&folder))(error.into());
            let here = match self.open(&folder) {
                Ok(here) => here,
                // It vanished or became something else meanwhile.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                Err(Errno::ACCESS | Errno::PERM) => {
                    self.not_taken.add(&folder, LeftOutReason::Unreadable);
                    continue;
                }
                Err(error) => return Err(failed(error)),
            };
            for item in Dir::read_from(&here).map_err(failed)? {
                let item = item.map_err(failed)?;
                let name = OsStr::from_bytes(item.file_name().to_bytes());
                if name == "." || name == ".." || name == ".git" {
                    continue;
                }
                let kind = match item.file_type() {
                    FileType::Unknown => match rustix::fs::statat(&here, name, AtFlags::SYMLINK_NOFOLLOW) {
                        Ok(stat) => FileType::from_raw_mode(stat.st_mode),
                        Err(_) => continue,
                    },
                    known => known,
                };
                let path = folder.join(name);
                if holds_git_up(name, kind) {
                    let blocked = io::Error::new(io::ErrorKind::InvalidData, "it is a pipe or a device");
                    return Err(GitError::io("read git's rules in", &self.root.join(path))(blocked));
                }
                let bytes = path.as_os_str().as_bytes();
                let is_folder = kind == FileType::Directory;
                if is_folder && self.base.folders.contains(bytes) {
                    folders.push(path);
                } else if is_folder && self.base.submodules.contains(bytes) {
                    // Its content is a matter of its own.
                } else if is_folder
                    || (matches!(kind, FileType::RegularFile | FileType::Symlink) && !self.base.files.contains(bytes))
                {
                    self.unknown.push(Name { path, is_folder });
                }
            }
        }
        Ok(())
    }

    fn open(&self, folder: &Path) -> rustix::io::Result<OwnedFd> {
        const FOLDER: OFlags = OFlags::DIRECTORY
            .union(OFlags::NOFOLLOW)
            .union(OFlags::CLOEXEC)
            .union(OFlags::RDONLY);
        if folder == Path::new("") {
            return rustix::fs::open(&self.root, FOLDER, Mode::empty());
        }
        match self.beneath.parent(folder, false) {
            Ok(Parent::Open(parent, name)) => rustix::fs::openat(&parent, name, FOLDER, Mode::empty()),
            Ok(Parent::Absent) => Err(Errno::NOENT),
            Ok(Parent::Blocked(_)) => Err(Errno::NOTDIR),
            Err(error) => Err(Errno::from_io_error(&error).unwrap_or(Errno::IO)),
        }
    }
}

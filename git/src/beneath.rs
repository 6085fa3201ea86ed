//! Opens paths in a folder without following a symbolic link out of it: every parent is opened
//! without following links, in one system call or name by name. The caller decides what to do at
//! the path.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// A folder that no access through this type leaves.
#[derive(Debug)]
pub(crate) struct Beneath {
    root: OwnedFd,
}

impl Beneath {
    pub(crate) fn open(root: &Path) -> io::Result<Self> {
        let root = rustix::fs::open(
            root,
            OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY,
            Mode::empty(),
        )?;
        Ok(Self { root })
    }

    /// Opens the folder that `path` is in, without following a link.
    pub(crate) fn parent<'a>(&self, path: &'a Path, create: bool) -> io::Result<Parent<'a>> {
        let mut names = Vec::new();
        for component in path.components() {
            match component {
                Component::Normal(name) => names.push(name),
                _ => return Err(io::Error::from(io::ErrorKind::InvalidInput)),
            }
        }
        let Some(last) = names.pop() else {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        };
        if let Some(folder) = self.open_at_once(path.parent()) {
            return Ok(Parent::Open(folder, last));
        }
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
        let mut folder = self.root.try_clone()?;
        let mut walked = PathBuf::new();
        for name in names {
            walked.push(name);
            let mut opened = rustix::fs::openat(&folder, name, flags, Mode::empty());
            if create && matches!(opened, Err(Errno::NOENT)) {
                match rustix::fs::mkdirat(&folder, name, Mode::from_raw_mode(0o777)) {
                    // Another process created it meanwhile.
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(error.into()),
                }
                opened = rustix::fs::openat(&folder, name, flags, Mode::empty());
            }
            folder = match opened {
                Err(Errno::NOENT) => return Ok(Parent::Absent),
                Err(Errno::NOTDIR | Errno::LOOP) => return Ok(Parent::Blocked(walked)),
                other => other?,
            };
        }
        Ok(Parent::Open(folder, last))
    }

    /// Opens a folder in one call where the system can refuse links. `None`: the system cannot, or
    /// the path is blocked and opening name by name finds out where.
    #[cfg(target_os = "linux")]
    fn open_at_once(&self, folder: Option<&Path>) -> Option<OwnedFd> {
        use rustix::fs::{ResolveFlags, openat2};
        let folder = folder.filter(|folder| *folder != Path::new(""))?;
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        openat2(&self.root, folder, flags, Mode::empty(), resolve).ok()
    }

    #[cfg(not(target_os = "linux"))]
    fn open_at_once(&self, _folder: Option<&Path>) -> Option<OwnedFd> {
        None
    }
}

/// The folder that holds a path's last name.
pub(crate) enum Parent<'a> {
    Open(OwnedFd, &'a OsStr),
    /// Nowhere: a parent is missing.
    Absent,
    /// A parent is not a folder; this is its path.
    Blocked(PathBuf),
}

/// The permissions of a file after setting its executable bit.
pub(crate) fn new_mode(old: Option<u32>, executable: bool) -> u32 {
    match (old, executable) {
        (None, true) => 0o777,
        (None, false) => 0o666,
        // Everybody who may read may also execute, as in git.
        (Some(mode), true) => mode | ((mode & 0o444) >> 2),
        (Some(mode), false) => mode & !0o111,
    }
}

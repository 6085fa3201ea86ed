//! Opens files in a folder, and never a file outside it.
//!
//! The kernel resolves each path (`openat2` with `RESOLVE_BENEATH`), so a symbolic link that leads
//! out is refused, however nested, and nothing can be exchanged between check and use. Without
//! `openat2` no symbolic link is followed. Git's own folder is out of bounds, by its name in any
//! case and by the resolved path.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, fchmod, fstat, mkdirat, openat, renameat, statat, unlinkat};
use rustix::io::Errno;

use super::Refused;

/// An open folder that bounds every path.
#[derive(Debug)]
pub(in crate::adapters) struct Root {
    fd: OwnedFd,
    /// The folder in it from which paths count.
    start: PathBuf,
}

/// A path that was checked as text: relative, and without a name that is out of bounds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::adapters) struct Relative(PathBuf);

impl Relative {
    pub(in crate::adapters) fn parse(text: &str) -> Result<Self, Refused> {
        if text.contains('\0') {
            return Err(Refused::new("a path cannot contain a NUL"));
        }
        let mut path = PathBuf::new();
        for component in Path::new(text).components() {
            match component {
                Component::CurDir => {}
                Component::Normal(name) if is_git(name) => {
                    return Err(Refused::new(format!("{text}: git's own files are out of bounds")));
                }
                Component::Normal(name) => path.push(name),
                // Left to the kernel, which knows where a link before it leads.
                Component::ParentDir => path.push(".."),
                Component::RootDir | Component::Prefix(_) => {
                    return Err(Refused::new(format!(
                        "{text}: paths are relative to the working folder"
                    )));
                }
            }
        }
        Ok(Self(path))
    }

    pub(in crate::adapters) fn as_path(&self) -> &Path {
        if self.0.as_os_str().is_empty() {
            Path::new(".")
        } else {
            &self.0
        }
    }
}

/// True for names that a file system may take for `.git`: in any case, and with the
/// characters that HFS+ ignores.
pub(super) fn is_git(name: &OsStr) -> bool {
    let plain: String = name
        .to_string_lossy()
        .chars()
        .filter(
            |c| !matches!(c, '\u{200c}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'),
        )
        .collect();
    plain.eq_ignore_ascii_case(".git")
}

/// Explains the system's refusal to the model.
fn refused(path: &Path, error: Errno) -> Refused {
    let path = path.display();
    Refused::new(match error {
        Errno::XDEV => format!("{path}: leads out of the worktree"),
        Errno::LOOP => format!("{path}: a symbolic link that is not followed"),
        Errno::NOENT => format!("{path}: there is no such file or folder"),
        Errno::NOTDIR => format!("{path}: a part of the path is not a folder"),
        Errno::ISDIR => format!("{path}: is a folder"),
        other => format!("{path}: {other}"),
    })
}

impl Root {
    /// `start` is a relative path in the folder, or empty.
    pub(in crate::adapters) fn open(folder: &Path, start: &str) -> std::io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self {
            fd: rustix::fs::open(folder, flags, Mode::empty())?,
            start: PathBuf::from(start),
        })
    }

    fn open_from_start(&self, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        open_beneath(self.fd.as_fd(), &self.start.join(path), flags)
    }

    fn beneath(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Refused> {
        let fd = self
            .open_from_start(path, flags)
            .map_err(|error| refused(path, error))?;
        if self.leads_to_git(&fd, path) {
            return Err(Refused::new(format!(
                "{}: git's own files are out of bounds",
                path.display()
            )));
        }
        Ok(fd)
    }

    /// Where an open file really is, from the top of the worktree; `path` is how it was named.
    #[cfg(target_os = "linux")]
    pub(super) fn place(&self, fd: &OwnedFd, _path: &Path) -> Option<PathBuf> {
        use std::os::fd::AsRawFd as _;
        let real = |fd: &OwnedFd| std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).ok();
        real(fd)?.strip_prefix(real(&self.fd)?).ok().map(Path::to_owned)
    }

    /// Elsewhere links are not followed, so the path's own names are enough.
    #[cfg(not(target_os = "linux"))]
    pub(super) fn place(&self, _fd: &OwnedFd, path: &Path) -> Option<PathBuf> {
        Some(self.start.join(path))
    }

    /// True when the open file is really inside a `.git`, reached through a link. What cannot be
    /// checked, without /proc, is not allowed.
    fn leads_to_git(&self, fd: &OwnedFd, path: &Path) -> bool {
        self.place(fd, path).is_none_or(|place| place.iter().any(is_git))
    }

    /// The top of the worktree.
    pub(super) fn top(&self) -> rustix::io::Result<OwnedFd> {
        open_beneath(self.fd.as_fd(), Path::new("."), OFlags::RDONLY | OFlags::DIRECTORY)
    }

    /// The rules of what is ignored that are in no file of the worktree.
    pub(super) fn git_exclude(&self) -> Option<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
        open_beneath(self.fd.as_fd(), Path::new(".git/info/exclude"), flags).ok()
    }

    pub(in crate::adapters) fn folder(&self, path: &Relative) -> Result<OwnedFd, Refused> {
        self.beneath(path.as_path(), OFlags::RDONLY | OFlags::DIRECTORY)
    }

    /// Whether nothing is there, not even something that may not be opened.
    pub(super) fn is_absent(&self, path: &Relative) -> bool {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::NOFOLLOW;
        let opened = self.open_from_start(path.as_path(), flags);
        matches!(opened, Err(Errno::NOENT))
    }

    /// Opens a regular file for reading.
    pub(super) fn file(&self, path: &Relative) -> Result<(File, Stat), Refused> {
        // Without NONBLOCK, opening a FIFO would wait for a writer.
        let fd = self.beneath(path.as_path(), OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)?;
        let stat = fstat(&fd).map_err(|error| refused(path.as_path(), error))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Ok((File::from(fd), stat)),
            FileType::Directory => Err(refused(path.as_path(), Errno::ISDIR)),
            FileType::Symlink
            | FileType::Fifo
            | FileType::Socket
            | FileType::CharacterDevice
            | FileType::BlockDevice
            | FileType::Unknown => Err(Refused::new(format!(
                "{}: is not a regular file",
                path.as_path().display()
            ))),
        }
    }

    /// Puts these bytes in a file's place at once, keeping its mode. Folders on the way are made.
    pub(in crate::adapters) fn replace(&self, path: &Relative, bytes: &[u8]) -> Result<(), Refused> {
        let full = path.as_path();
        let Some(name) = full.file_name() else {
            return Err(Refused::new(format!("{}: is a folder", full.display())));
        };
        let folder = self.make_folder(full.parent().unwrap_or(Path::new("")))?;
        let failed = |error| refused(full, error);
        let mode = match statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => {
                writable(full, &stat)?;
                Some(Mode::from_raw_mode(stat.st_mode & 0o7777))
            }
            Err(Errno::NOENT) => None,
            Err(error) => return Err(failed(error)),
        };

        let temporary = OsString::from(format!(".kage-{:016x}.tmp", rand::random::<u64>()));
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(&folder, &temporary, flags, Mode::from_raw_mode(0o666)).map_err(failed)?;
        let written = (|| {
            if let Some(mode) = mode {
                fchmod(&fd, mode)?;
            }
            File::from(fd).write_all(bytes)?;
            renameat(&folder, &temporary, &folder, name)?;
            std::io::Result::Ok(())
        })();
        written.map_err(|error| {
            if let Err(left) = unlinkat(&folder, &temporary, AtFlags::empty()) {
                tracing::warn!(error = %left, "a temporary file is left in the worktree");
            }
            Refused::new(format!("{}: {error}", full.display()))
        })
    }

    /// Opens a folder and creates its missing levels one at a time.
    fn make_folder(&self, path: &Path) -> Result<OwnedFd, Refused> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let mut done = PathBuf::from(".");
        let mut folder = self.beneath(&done, flags)?;
        for part in path.components() {
            done.push(part);
            folder = match self.open_from_start(&done, flags) {
                Ok(_) => self.beneath(&done, flags)?,
                Err(Errno::NOENT) => {
                    match mkdirat(&folder, part.as_os_str(), Mode::from_raw_mode(0o777)) {
                        Ok(()) | Err(Errno::EXIST) => {}
                        Err(error) => return Err(refused(&done, error)),
                    }
                    self.beneath(&done, flags)?
                }
                Err(error) => return Err(refused(&done, error)),
            };
        }
        Ok(folder)
    }
}

/// Refuses to replace anything but a plain file with a single link.
fn writable(path: &Path, stat: &Stat) -> Result<(), Refused> {
    let path = path.display();
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile if stat.st_nlink > 1 => Err(Refused::new(format!(
            "{path}: has {} hard links, so it may be a file outside of the worktree too",
            stat.st_nlink
        ))),
        FileType::RegularFile => Ok(()),
        FileType::Directory => Err(Refused::new(format!("{path}: is a folder"))),
        FileType::Symlink => Err(Refused::new(format!(
            "{path}: is a symbolic link; write to the file that it points to"
        ))),
        FileType::Fifo | FileType::Socket | FileType::CharacterDevice | FileType::BlockDevice | FileType::Unknown => {
            Err(Refused::new(format!("{path}: is not a regular file")))
        }
    }
}

#[cfg(target_os = "linux")]
fn open_beneath(root: impl AsFd, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    use rustix::fs::{ResolveFlags, openat2};
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    // The kernel answers EAGAIN when a rename raced with `..`; trying again is the remedy.
    for _ in 0..16 {
        match openat2(root.as_fd(), path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Err(Errno::AGAIN) => {}
            Err(Errno::NOSYS) => return open_without_links(root, path, flags),
            other => return other,
        }
    }
    Err(Errno::AGAIN)
}

#[cfg(not(target_os = "linux"))]
fn open_beneath(root: impl AsFd, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    open_without_links(root, path, flags)
}

/// Opens the path name by name without following links; `..` is refused.
fn open_without_links(root: impl AsFd, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let step = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let mut folder = openat(root.as_fd(), ".", step, Mode::empty())?;
    let mut names = path.components().filter(|part| *part != Component::CurDir).peekable();
    while let Some(part) = names.next() {
        let Component::Normal(name) = part else {
            return Err(Errno::XDEV);
        };
        if names.peek().is_none() {
            return openat(&folder, name, flags, Mode::empty());
        }
        folder = openat(&folder, name, step, Mode::empty())?;
    }
    Ok(folder)
}

/// A folder's names with their types, sorted by bytes, without git's own.
pub(super) fn entries(folder: &OwnedFd) -> rustix::io::Result<Vec<(OsString, FileType)>> {
    let mut found = Vec::new();
    for entry in rustix::fs::Dir::read_from(folder)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes()).to_owned();
        if name == "." || name == ".." || is_git(&name) {
            continue;
        }
        let kind = match entry.file_type() {
            // Some file systems do not report the type.
            FileType::Unknown => match statat(folder, &name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => FileType::from_raw_mode(stat.st_mode),
                Err(_) => continue,
            },
            kind => kind,
        };
        found.push((name, kind));
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(found)
}

/// Opens a folder's own entry, never through a link.
pub(super) fn open_entry(folder: &OwnedFd, name: &OsStr, directory: bool) -> rustix::io::Result<OwnedFd> {
    let kind = if directory {
        OFlags::DIRECTORY
    } else {
        OFlags::NONBLOCK | OFlags::NOCTTY
    };
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | kind;
    openat(folder, name, flags, Mode::empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_portable_way_follows_no_link() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("real")).unwrap();
        std::fs::write(folder.path().join("real/file"), "x").unwrap();
        std::os::unix::fs::symlink("real", folder.path().join("link")).unwrap();
        std::os::unix::fs::symlink("real/file", folder.path().join("direct")).unwrap();
        let root = rustix::fs::open(folder.path(), OFlags::DIRECTORY, Mode::empty()).unwrap();
        let open = |path: &str| open_without_links(root.as_fd(), Path::new(path), OFlags::RDONLY).map(drop);
        assert_eq!(open("real/file"), Ok(()));
        assert_eq!(open("."), Ok(()));
        assert_eq!(open("real/../real/file"), Err(Errno::XDEV));
        assert!(open("link/file").is_err());
        assert_eq!(open("direct"), Err(Errno::LOOP));
    }
}

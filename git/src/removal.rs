//! Removes a folder with all its content, also where a program took the permissions that this
//! needs: tools make their caches read-only (Go's module cache, for one), and a session may do so
//! in order to stay. Links are removed, never followed.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::error::GitError;

const FOLDER: OFlags = OFlags::DIRECTORY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC)
    .union(OFlags::RDONLY);

/// A deeper folder is moved to the top of what is removed first. A folder is open on each level, and a
/// program can nest more of them than this process can have open files, or frames on its stack.
const DEEPEST: u32 = 100;

/// Removes a folder; it may be gone already.
///
/// # Errors
/// Names the first path that cannot be removed. Everything else is.
pub fn remove_folder(path: &Path) -> Result<(), GitError> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(GitError::io("delete", path)(io::ErrorKind::InvalidInput.into()));
    };
    let parent = if parent == Path::new("") {
        Path::new(".")
    } else {
        parent
    };
    match rustix::fs::open(parent, FOLDER & !OFlags::NOFOLLOW, Mode::empty()) {
        Ok(parent) => remove(parent.as_fd(), name, path),
        Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(GitError::io("delete", path)(error.into())),
    }
}

/// Removes `name` in a folder, whatever it is. `path` is only for the error.
pub(crate) fn remove(parent: BorrowedFd<'_>, name: &OsStr, path: &Path) -> Result<(), GitError> {
    let failed = |error: Errno| GitError::io("delete", path)(error.into());
    match unlink(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        // Linux says EISDIR, POSIX EPERM.
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(failed(error)),
    }
    let top = open_folder(parent, name).map_err(failed)?;
    let mut removal = Removal { top: &top, moved: 0 };
    loop {
        let before = removal.moved;
        removal.empty(&top, path, 1)?;
        if removal.moved == before {
            break;
        }
    }
    match unlink(parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(failed(error)),
    }
}

struct Removal<'a> {
    top: &'a OwnedFd,
    /// How many deep folders were moved to the top.
    moved: u32,
}

impl Removal<'_> {
    /// Removes what is in a folder, as far as it can be.
    fn empty(&mut self, folder: &OwnedFd, path: &Path, depth: u32) -> Result<(), GitError> {
        let mut left = Ok(());
        let inner = entries(folder).map_err(|error| GitError::io("delete", path)(error.into()))?;
        for (name, kind) in inner {
            let path = path.join(&name);
            let removed = if kind == FileType::Directory {
                self.folder(folder, &name, &path, depth)
            } else {
                match unlink(folder.as_fd(), &name, AtFlags::empty()) {
                    Ok(()) | Err(Errno::NOENT) => Ok(()),
                    Err(error) => Err(GitError::io("delete", &path)(error.into())),
                }
            };
            left = left.and(removed);
        }
        left
    }

    fn folder(&mut self, parent: &OwnedFd, name: &OsStr, path: &Path, depth: u32) -> Result<(), GitError> {
        let failed = |error: Errno| GitError::io("delete", path)(error.into());
        if depth >= DEEPEST {
            return self.lift(parent, name).map_err(failed);
        }
        let opened = match open_folder(parent.as_fd(), name) {
            Ok(opened) => opened,
            Err(Errno::NOENT) => return Ok(()),
            Err(error) => return Err(failed(error)),
        };
        self.empty(&opened, path, depth + 1)?;
        match unlink(parent.as_fd(), name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(failed(error)),
        }
    }

    /// Moves a folder to the top, where a later round removes it.
    fn lift(&mut self, parent: &OwnedFd, name: &OsStr) -> rustix::io::Result<()> {
        let mut permitted = false;
        loop {
            self.moved += 1;
            let place = format!(".removed-{}", self.moved);
            match rustix::fs::renameat(parent, name, self.top, place) {
                Ok(()) | Err(Errno::NOENT) => return Ok(()),
                // A program may have made one of that name.
                Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => {}
                Err(Errno::ACCESS) if !permitted => {
                    permitted = true;
                    rustix::fs::fchmod(parent, Mode::RWXU)?;
                    rustix::fs::chmodat(parent, name, Mode::RWXU, AtFlags::empty())?;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// Unlinks; takes the permission to do so from the folder's owner, which this user is, if need be.
fn unlink(parent: BorrowedFd<'_>, name: &OsStr, flags: AtFlags) -> rustix::io::Result<()> {
    match rustix::fs::unlinkat(parent, name, flags) {
        Err(Errno::ACCESS) => {
            rustix::fs::fchmod(parent, Mode::RWXU)?;
            rustix::fs::unlinkat(parent, name, flags)
        }
        other => other,
    }
}

/// Opens a folder that may lack every permission.
pub(crate) fn open_folder(parent: BorrowedFd<'_>, name: &OsStr) -> rustix::io::Result<OwnedFd> {
    match rustix::fs::openat(parent, name, FOLDER, Mode::empty()) {
        Err(Errno::ACCESS) => {
            // It is a folder and no link: anything else fails otherwise.
            let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                return Err(Errno::NOTDIR);
            }
            rustix::fs::chmodat(parent, name, Mode::RWXU, AtFlags::empty())?;
            rustix::fs::openat(parent, name, FOLDER, Mode::empty())
        }
        other => other,
    }
}

/// The names in a folder, and what each is, if the file system says so.
pub(crate) fn entries(folder: &OwnedFd) -> rustix::io::Result<Vec<(OsString, FileType)>> {
    let mut found = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name == "." || name == ".." {
            continue;
        }
        let kind = match entry.file_type() {
            FileType::Unknown => {
                let stat = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
                FileType::from_raw_mode(stat.st_mode)
            }
            known => known,
        };
        found.push((name.to_owned(), kind));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn folders_without_permissions_and_links_go_and_what_links_point_at_stays() {
        let folder = tempfile::tempdir().unwrap();
        let (doomed, other) = (folder.path().join("doomed"), folder.path().join("other"));
        fs::create_dir_all(doomed.join("cache/deep")).unwrap();
        fs::create_dir_all(doomed.join("closed")).unwrap();
        fs::create_dir(&other).unwrap();
        fs::write(other.join("kept"), "").unwrap();
        fs::write(doomed.join("cache/deep/file"), "").unwrap();
        symlink(&other, doomed.join("link")).unwrap();
        symlink("nowhere", doomed.join("cache/dangling")).unwrap();
        chmod(&doomed.join("cache/deep"), 0o500);
        chmod(&doomed.join("cache"), 0o555);
        chmod(&doomed.join("closed"), 0);
        remove_folder(&doomed).unwrap();
        assert!(!doomed.exists() && other.join("kept").exists());
        remove_folder(&doomed).unwrap();
    }

    #[test]
    fn folders_deeper_than_a_path_can_be_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let doomed = folder.path().join("doomed");
        fs::create_dir(&doomed).unwrap();
        // Named as those that are moved, and deeper than open files and paths go.
        fs::create_dir_all(doomed.join(".removed-1/kept")).unwrap();
        let mut here = rustix::fs::open(&doomed, FOLDER, Mode::empty()).unwrap();
        for _ in 0..3000 {
            rustix::fs::mkdirat(&here, "d", Mode::RWXU).unwrap();
            here = rustix::fs::openat(&here, "d", FOLDER, Mode::empty()).unwrap();
        }
        rustix::fs::openat(&here, "file", OFlags::CREATE | OFlags::WRONLY, Mode::RUSR).unwrap();
        rustix::fs::fchmod(&here, Mode::empty()).unwrap();
        remove_folder(&doomed).unwrap();
        assert!(!doomed.exists());
    }
}

//! Reads the entry at a path without following a link, and places a file only where nothing is.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use git2::ObjectType;
use rustix::fs::{AtFlags, CWD, FileType, RenameFlags};
use rustix::io::Errno;

use crate::error::GitError;
use crate::known::KnownEntry;
use crate::objects::{hash_open_file, mode, open_file};

pub(super) fn rename_to_free(from: &Path, parent: &OwnedFd, name: &OsStr) -> Result<(), Errno> {
    match rustix::fs::renameat_with(CWD, from, parent, name, RenameFlags::NOREPLACE) {
        // The file system cannot promise it; nothing was there a moment ago.
        Err(Errno::INVAL | Errno::NOSYS) => rustix::fs::renameat(CWD, from, parent, name),
        other => other,
    }
}

pub(super) fn kind_at(parent: &OwnedFd, name: &OsStr) -> io::Result<Option<FileType>> {
    match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The file or link at a path of Kage's own.
pub(super) fn entry_at(path: &Path) -> Result<Option<KnownEntry>, GitError> {
    let failed = |error| GitError::io("read", path)(error);
    let folder = match File::open(path.parent().unwrap_or(path)) {
        Ok(folder) => OwnedFd::from(folder),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    read_entry(&folder, path.file_name().unwrap_or_default()).map_err(failed)
}

/// `None`: nothing, or neither file nor link.
pub(super) fn read_entry(parent: &OwnedFd, name: &OsStr) -> io::Result<Option<KnownEntry>> {
    let stat = match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {
            let id = hash_open_file(&open_file(parent, name)?)?;
            let executable = stat.st_mode & 0o100 != 0;
            Ok(Some(KnownEntry::new(
                if executable { mode::PROGRAM } else { mode::FILE },
                id,
            )))
        }
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(parent, name, Vec::new())?;
            let id = git2::Oid::hash_object(ObjectType::Blob, target.as_bytes()).map_err(io::Error::other)?;
            Ok(Some(KnownEntry::new(mode::LINK, id)))
        }
        _ => Ok(None),
    }
}

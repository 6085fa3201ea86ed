//! Files of loose objects: whether one has the object of its name. Where such a file has no end, libgit2 does
//! not come to one either, so it is read here first. A file that the machine cannot read is not damaged.

use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::path::Path;

use flate2::read::ZlibDecoder;
use git2::{ErrorClass, ErrorCode, Oid as Id};
use kage_core::id::Oid;
use sha1::{Digest as _, Sha1};

use crate::error::GitError;

pub(crate) mod compared;

/// Hashes the file of an object that is not in a pack, if there is one. To be done before libgit2 reads the
/// object: where such a file has no end, libgit2 does not come to one either.
pub(crate) fn check_loose(mirror: &Path, id: Id) -> Result<(), GitError> {
    let text = id.to_string();
    let oid: Oid = text
        .parse()
        .map_err(|_| GitError::unexpected("hash-object", text.as_bytes()))?;
    let (folder, name) = oid.as_str().split_at(2);
    let path = mirror.join("objects").join(folder).join(name);
    if kind_of(&path)?.is_none() || is_sound(&path, &oid)? {
        return Ok(());
    }
    let text = format!("the file of object {oid} has another content");
    let wrong = git2::Error::new(ErrorCode::GenericError, ErrorClass::Odb, text);
    Err(GitError::library("read an object")(wrong))
}

/// The kind of the entry at `path`, links not followed; `None` if it does not exist.
pub(crate) fn kind_of(path: &Path) -> Result<Option<Metadata>, GitError> {
    match fs::symlink_metadata(path) {
        Ok(meta) => Ok(Some(meta)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(GitError::io("look at", path)(error)),
    }
}

/// An error of the machine, after which nothing is known of the file.
pub(crate) fn is_machines(error: &io::Error) -> bool {
    let code = error.raw_os_error().map(rustix::io::Errno::from_raw_os_error);
    error.kind() == io::ErrorKind::OutOfMemory
        || matches!(
            code,
            Some(rustix::io::Errno::MFILE | rustix::io::Errno::NFILE | rustix::io::Errno::NOMEM)
        )
}

/// Judges a file by its content; unreadable content is not sound.
pub(crate) fn judged(path: &Path, read: io::Result<bool>) -> Result<bool, GitError> {
    match read {
        Ok(sound) => Ok(sound),
        Err(error) if is_machines(&error) => Err(GitError::io("read", path)(error)),
        // Deleted meanwhile.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(_) => Ok(false),
    }
}

/// True if a loose object file has the object of its name.
pub(crate) fn is_sound(path: &Path, id: &Oid) -> Result<bool, GitError> {
    judged(
        path,
        hash_of_loose(path).map(|hash| hash.as_deref() == Some(id.as_str())),
    )
}

/// The hash of the object in a loose object file; `None` if it has no single object.
pub(crate) fn hash_of_loose(path: &Path) -> io::Result<Option<String>> {
    let mut content = ZlibDecoder::new(File::open(path)?);
    let mut hasher = Sha1::new();
    let mut header = Vec::new();
    let mut stated: Option<u64> = None;
    let mut size = 0;
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = content.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        let mut piece = &buffer[..count];
        hasher.update(piece);
        if stated.is_none() {
            let end = piece.iter().position(|byte| *byte == 0);
            header.extend_from_slice(&piece[..end.unwrap_or(count)]);
            let Some(end) = end else {
                if header.len() > 64 {
                    return Ok(None);
                }
                continue;
            };
            let text = std::str::from_utf8(&header).unwrap_or_default();
            let Some((_, length)) = text.split_once(' ') else {
                return Ok(None);
            };
            let Ok(length) = length.parse() else {
                return Ok(None);
            };
            stated = Some(length);
            piece = &piece[end + 1..];
        }
        size += piece.len() as u64;
    }
    let hash: String = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok((stated == Some(size)).then_some(hash))
}

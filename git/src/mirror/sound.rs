//! Whether a file of a mirror is as git would have written it: by its kind, its checksum, or the
//! hash of its content. A file that the machine cannot read is not damaged.

use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use flate2::read::ZlibDecoder;
use kage_core::id::Oid;
use sha1::{Digest as _, Sha1};

use crate::error::GitError;

/// Bytes of the checksum at the end of git's own files.
const CHECKSUM: u64 = 20;

/// The kind of the entry at `path`, links not followed; `None` if it does not exist.
pub(super) fn kind_of(path: &Path) -> Result<Option<Metadata>, GitError> {
    match fs::symlink_metadata(path) {
        Ok(meta) => Ok(Some(meta)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(GitError::io("look at", path)(error)),
    }
}

/// The entries of a folder, links not followed; none if it does not exist.
pub(super) fn entries(folder: &Path) -> Result<Vec<(PathBuf, Metadata)>, GitError> {
    let found = match fs::read_dir(folder) {
        Ok(found) => found,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        Err(error) => return Err(GitError::io("list", folder)(error)),
    };
    let mut all = Vec::new();
    for entry in found {
        let path = entry.map_err(GitError::io("list", folder))?.path();
        // It may have been deleted meanwhile.
        if let Some(meta) = kind_of(&path)? {
            all.push((path, meta));
        }
    }
    all.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(all)
}

pub(super) fn extension(path: &Path) -> &str {
    path.extension().and_then(OsStr::to_str).unwrap_or("")
}

pub(super) fn is_oid(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_ok_and(|text| text.parse::<Oid>().is_ok())
}

/// Whether it is a file of packed references: a header, `id name` lines, `^id` lines.
pub(super) fn are_packed_refs(bytes: &[u8]) -> bool {
    let is_line = |line: &[u8]| match line {
        [b'#', ..] => true,
        [b'^', id @ ..] => is_oid(id),
        line => {
            let mut parts = line.splitn(2, |byte| *byte == b' ');
            parts.next().is_some_and(is_oid) && parts.next().is_some_and(|name| name.starts_with(b"refs/"))
        }
    };
    bytes
        .strip_suffix(b"\n")
        .is_some_and(|all| all.split(|byte| *byte == b'\n').all(is_line))
}

/// An error of the machine, after which nothing is known of the file.
pub(super) fn is_machines(error: &io::Error) -> bool {
    let code = error.raw_os_error().map(rustix::io::Errno::from_raw_os_error);
    error.kind() == io::ErrorKind::OutOfMemory
        || matches!(
            code,
            Some(rustix::io::Errno::MFILE | rustix::io::Errno::NFILE | rustix::io::Errno::NOMEM)
        )
}

/// Judges a file by its content; unreadable content is not sound.
pub(super) fn judged(path: &Path, read: io::Result<bool>) -> Result<bool, GitError> {
    match read {
        Ok(sound) => Ok(sound),
        Err(error) if is_machines(&error) => Err(GitError::io("read", path)(error)),
        // Deleted meanwhile.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(_) => Ok(false),
    }
}

/// True if a loose object file has the object of its name.
pub(super) fn is_sound(path: &Path, id: &Oid) -> Result<bool, GitError> {
    judged(
        path,
        hash_of_loose(path).map(|hash| hash.as_deref() == Some(id.as_str())),
    )
}

/// The hash of the object in a loose object file; `None` if it has no single object.
pub(super) fn hash_of_loose(path: &Path) -> io::Result<Option<String>> {
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

/// True if a file of git's ends with the checksum of its content.
pub(super) fn ends_with_checksum(path: &Path) -> Result<bool, GitError> {
    let check = || {
        let mut file = File::open(path)?;
        let Some(length) = file.metadata()?.len().checked_sub(CHECKSUM) else {
            return Ok(false);
        };
        let mut hasher = Sha1::new();
        let mut content = (&mut file).take(length);
        let mut buffer = vec![0; 64 << 10];
        loop {
            let count = content.read(&mut buffer)?;
            if count == 0 {
                break;
            }
            hasher.update(&buffer[..count]);
        }
        let mut stated = Vec::new();
        file.read_to_end(&mut stated)?;
        Ok(hasher.finalize().as_slice() == stated)
    };
    judged(path, check())
}

//! Whether a file of a mirror is as git would have written it: by its kind, its checksum, or the
//! hash of its content. A file that the machine cannot read is not damaged.

use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use kage_core::id::Oid;
use sha1::{Digest as _, Sha1};

use crate::error::GitError;
use crate::loose::{judged, kind_of};

/// Bytes of the checksum at the end of git's own files.
const CHECKSUM: u64 = 20;

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

//! What a restore needs to be resumed from any point: its target, the safety commit, and what is
//! moved aside. The steps follow from the two commits. It owns the file.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::PathBuf;

use git2::Oid as Id;

use crate::checkpoint::LockedWorktree;
use crate::durable::Prepared;
use crate::error::GitError;
use crate::staging::{lines, split};

const FIRST_WORDS: &str = "kage-restore 1";

/// A decided restore, to be finished after a crash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Journal {
    pub(super) target: Id,
    /// The commit that the worktree equalled exactly.
    pub(super) safety: Id,
    /// Unique among the restores of the worktree.
    pub(super) name: String,
    pub(super) asides: BTreeSet<PathBuf>,
}

impl Journal {
    /// The journal of an interrupted restore.
    pub(super) fn read(worktree: &LockedWorktree) -> Result<Option<Self>, GitError> {
        let path = worktree.private("restore");
        match fs::read(&path) {
            Ok(bytes) => Self::parse(&bytes)
                .map(Some)
                .ok_or_else(|| GitError::unexpected("the journal of a restore", &bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(GitError::io("read", &path)(error)),
        }
    }

    /// The restore is certain to happen once this is in place and its folder is flushed.
    pub(super) fn prepare(&self, worktree: &LockedWorktree) -> Result<Prepared, GitError> {
        Prepared::new(&worktree.private("restore"), &self.to_bytes())
    }

    /// Ends the restore, once the folder is flushed.
    pub(super) fn delete(&self, worktree: &LockedWorktree) -> Result<(), GitError> {
        let path = worktree.private("restore");
        fs::remove_file(&path).map_err(GitError::io("delete", &path))
    }

    fn to_bytes(&self) -> Vec<u8> {
        let asides: Vec<&[u8]> = self.asides.iter().map(|path| path.as_os_str().as_bytes()).collect();
        let (target, safety, name) = (self.target, self.safety, &self.name);
        let mut bytes = format!("{FIRST_WORDS} {target} {safety} {name}\n").into_bytes();
        bytes.extend_from_slice(&lines(&asides));
        bytes
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let end = bytes.iter().position(|byte| *byte == b'\n')?;
        let line = std::str::from_utf8(bytes.get(..end)?).ok()?;
        let mut words = line.strip_prefix(FIRST_WORDS)?.split_whitespace();
        let target = Id::from_str(words.next()?).ok()?;
        let safety = Id::from_str(words.next()?).ok()?;
        let name = words.next()?;
        if !name.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let path = |bytes: &[u8]| PathBuf::from(OsString::from_vec(bytes.to_vec()));
        Some(Self {
            target,
            safety,
            name: name.to_owned(),
            asides: split(bytes.get(end + 1..)?).map(path).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_read_as_it_was_written() {
        let journal = Journal {
            target: Id::from_str("1111111111111111111111111111111111111111").unwrap(),
            safety: Id::from_str("2222222222222222222222222222222222222222").unwrap(),
            name: "17".to_owned(),
            asides: [b"a b".as_slice(), b"new\nline", b"latin-\xe9/x"]
                .map(|path| PathBuf::from(OsString::from_vec(path.to_vec())))
                .into(),
        };
        let bytes = journal.to_bytes();
        assert_eq!(Journal::parse(&bytes), Some(journal));
        assert_eq!(Journal::parse(bytes.get(..40).unwrap()), None);
        assert_eq!(Journal::parse(b""), None);
    }
}

//! Files of submodules that go along with a base: what is sent of them, as a commit beside the base,
//! and which folders of a worktree are filled with them.
//!
//! ```text
//! refs/kage/bases/<commit of names>
//!   └─ a parent      file `submodules`: the text below
//!                    folder `t0`, `t1`, ...: the files of each, which are trees of its repository
//!                    file `c0`, `c1`, ...: its commit, which alone of its history is sent
//!
//! <commit> NUL <path> NUL ...                  one inside of another comes after it
//! <private>/submodules                         the folders that are filled in a worktree
//! ```

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

use kage_core::id::Oid;

use crate::error::GitError;
use crate::objects::is_plain;
use crate::shadow::Shadow;
use crate::staging::split;

/// The file with the text.
pub(crate) const SUBMODULES: &str = "submodules";

/// Each one costs a git process where it is taken and where it is filled.
pub(crate) const MAX_SUBMODULES: usize = 500;

/// A commit with more is not one of a repository that people work in.
pub(crate) const MAX_COMMIT_BYTES: usize = 1 << 20;

/// The names of the entries of a submodule: its files, and its commit.
pub(crate) fn entries_of(number: usize) -> (String, String) {
    (format!("t{number}"), format!("c{number}"))
}

pub(crate) fn to_text<'a>(all: impl Iterator<Item = (&'a Oid, &'a str)>) -> String {
    all.map(|(commit, path)| format!("{commit}\0{path}\0")).collect()
}

/// The commits and paths of a text of anybody; what is not usable has no path.
pub(crate) fn read(text: &[u8]) -> Vec<(Oid, Option<PathBuf>)> {
    let mut found = Vec::new();
    let mut parts = split(text);
    while let (Some(commit), Some(path)) = (parts.next(), parts.next()) {
        let commit = std::str::from_utf8(commit).ok().and_then(|commit| commit.parse().ok());
        let Some(commit) = commit.filter(|_| found.len() < MAX_SUBMODULES) else {
            break;
        };
        let path = PathBuf::from(OsString::from_vec(path.to_vec()));
        found.push((commit, Some(path).filter(|path| is_plain(path))));
    }
    found
}

/// The tree that a commit object names.
pub(crate) fn tree_of_commit(content: &[u8]) -> Option<&str> {
    let line = content.split(|byte| *byte == b'\n').next()?.strip_prefix(b"tree ")?;
    std::str::from_utf8(line).ok()
}

/// Whether a commit object has a parent.
pub(crate) fn has_parent(content: &[u8]) -> bool {
    let second = content.split(|byte| *byte == b'\n').nth(1);
    second.is_some_and(|line| line.starts_with(b"parent "))
}

/// The file that says which folders of a worktree are filled.
pub(crate) fn filled_file(shadow: &Shadow) -> PathBuf {
    shadow.git_dir().join(SUBMODULES)
}

/// The folders of submodules in a worktree that have their files. These are no part of a checkpoint
/// or a result, whatever a session makes of them.
pub(crate) fn filled(shadow: &Shadow) -> Result<HashSet<PathBuf>, GitError> {
    let path = filled_file(shadow);
    match fs::read(&path) {
        Ok(list) => Ok(split(&list)
            .map(|path| OsString::from_vec(path.to_vec()).into())
            .collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(HashSet::new()),
        Err(error) => Err(GitError::io("read", &path)(error)),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn what_was_written_is_read_and_odd_paths_are_none() {
        let id = |digit: &str| digit.repeat(40).parse::<Oid>().unwrap();
        let all = [
            (id("1"), "a"),
            (id("2"), "a/b c"),
            (id("3"), "../x"),
            (id("4"), "/x"),
            (id("5"), "a/.GIT/x"),
        ];
        let text = to_text(all.iter().map(|(commit, path)| (commit, *path)));
        let found = read(text.as_bytes());
        let paths: Vec<_> = found
            .iter()
            .map(|(_, path)| path.as_deref().and_then(Path::to_str))
            .collect();
        assert_eq!(paths, [Some("a"), Some("a/b c"), None, None, None]);
        assert_eq!(found[1].0, id("2"));
        for cut in 0..text.len() {
            read(&text.as_bytes()[..cut]);
        }
        assert_eq!(read(b"nonsense\0a\0"), []);
    }

    #[test]
    fn a_commit_says_its_tree_and_whether_it_is_the_first() {
        let first = b"tree 12\nauthor x\n\nparent \n";
        assert_eq!((tree_of_commit(first), has_parent(first)), (Some("12"), false));
        assert!(has_parent(b"tree 12\nparent 34\nauthor x\n\n"));
        assert_eq!(tree_of_commit(b""), None);
    }
}

//! Files that git ignores and that a person includes: chosen in the person's repository, kept as a
//! commit of their own beside the base, put into worktrees, and never taken from one again.
//!
//! ```text
//! <person's>/.worktreeinclude     what is included, in the syntax of .gitignore
//! refs/kage/bases/<commit>        the files, byte for byte; its parent is the person's HEAD, so that a
//!                                 push finds out for all of its commits at once what is there
//! <private>/included              their paths in a worktree, whatever git ignores there by now
//! ```

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use kage_core::id::Oid;

use crate::error::GitError;
use crate::shadow::{IDENTITY, Shadow};
use crate::staging::split;

/// The file at the top of a repository that names what is included.
pub const INCLUDE_FILE: &str = ".worktreeinclude";

/// The most bytes of all included files together.
pub const MAX_INCLUDED_BYTES: u64 = 16 << 20;

/// Ignored files that go with a base.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Included {
    /// The commit that has them.
    pub commit: Oid,
    /// Relative to the repository's top; bytes that are not UTF-8 are shown as U+FFFD.
    pub paths: Vec<String>,
}

/// Why ignored files cannot be included.
#[derive(Debug, thiserror::Error)]
pub enum IncludeError {
    /// They would be sent to every machine.
    #[error(
        "the ignored files to include have {bytes} bytes, and at most {MAX_INCLUDED_BYTES} are sent; the largest is \
         {largest} with {size} bytes; name less in {INCLUDE_FILE} or with --include"
    )]
    TooLarge {
        /// All of them together.
        bytes: u64,
        /// The path of the largest.
        largest: String,
        /// Its size.
        size: u64,
    },
    #[error("could not read the ignored files to include")]
    Git(#[from] GitError),
}

/// Makes the commit of those ignored files below `root` that its include file or `patterns` name.
/// `None`: there are none. Links and other things than files are left out.
pub(crate) async fn choose(
    shadow: &Shadow,
    root: &Path,
    head: &Oid,
    patterns: &[String],
) -> Result<Option<Included>, IncludeError> {
    let by_file = fs::symlink_metadata(root.join(INCLUDE_FILE)).is_ok_and(|found| found.is_file());
    let patterns: Vec<_> = patterns.iter().filter(|pattern| !pattern.is_empty()).collect();
    if !by_file && patterns.is_empty() {
        return Ok(None);
    }
    let mut list = shadow.git("ls-files").args(["--others", "--ignored", "-z"]);
    if by_file {
        list = list.arg("--exclude-from").arg(INCLUDE_FILE);
    }
    for pattern in patterns {
        list = list.arg("--exclude").arg(pattern);
    }
    let all = list.run().await?;
    let named: Vec<&[u8]> = split(&all).collect();
    // What git does not ignore is in the base.
    let listed = shadow.git("ls-files").args(["--others", "--exclude-standard", "-z"]);
    let listed = listed.run().await?;
    let of_base: HashSet<&[u8]> = split(&listed).collect();
    let mut files = Vec::new();
    for path in named.into_iter().filter(|path| !of_base.contains(path)) {
        // A newline would end the name in what git is told below.
        let usual = std::str::from_utf8(path).is_ok_and(|path| !path.contains('\n'));
        let found = fs::symlink_metadata(root.join(OsStr::from_bytes(path))).ok();
        if let Some(found) = found.filter(|found| usual && found.is_file()) {
            files.push((path.to_owned(), found));
        }
    }
    let bytes: u64 = files.iter().map(|(_, found)| found.len()).sum();
    let Some((largest, found)) = files.iter().max_by_key(|(_, found)| found.len()) else {
        return Ok(None);
    };
    if bytes > MAX_INCLUDED_BYTES {
        return Err(IncludeError::TooLarge {
            bytes,
            largest: shown(largest),
            size: found.len(),
        });
    }
    let commit = commit(shadow, head, &files).await?;
    let paths = files.iter().map(|(path, _)| shown(path)).collect();
    Ok(Some(Included { commit, paths }))
}

/// The same files have the same commit at the same HEAD, at any time.
async fn commit(shadow: &Shadow, head: &Oid, files: &[(Vec<u8>, fs::Metadata)]) -> Result<Oid, GitError> {
    let paths: Vec<u8> = files
        .iter()
        .flat_map(|(path, _)| [path.as_slice(), &b"\n"[..]].concat())
        .collect();
    let hashed = shadow.git("hash-object").args(["-w", "--no-filters", "--stdin-paths"]);
    let hashed = hashed.stdin(paths).run().await?;
    let ids: Vec<&[u8]> = hashed
        .split(|byte| *byte == b'\n')
        .filter(|id| !id.is_empty())
        .collect();
    if ids.len() != files.len() {
        return Err(GitError::unexpected("hash-object", &hashed));
    }
    let mut entries = Vec::new();
    for ((path, found), id) in files.iter().zip(ids) {
        let executable = found.permissions().mode() & 0o100 != 0;
        entries.extend_from_slice(if executable { b"100755 " } else { b"100644 " });
        entries.extend_from_slice(id);
        entries.extend_from_slice(&[&b"\t"[..], path.as_slice(), &b"\0"[..]].concat());
    }
    let index = shadow.git_dir().join("included-index");
    let git = |operation| shadow.git(operation).env("GIT_INDEX_FILE", &index);
    git("update-index")
        .args(["-z", "--index-info"])
        .stdin(entries)
        .run()
        .await?;
    let tree = git("write-tree").run_for_oid().await?;
    let (name, email) = IDENTITY;
    shadow
        .git("commit-tree")
        .args(["-p", head.as_str(), tree.as_str()])
        .env("GIT_AUTHOR_NAME", name)
        .env("GIT_AUTHOR_EMAIL", email)
        .env("GIT_AUTHOR_DATE", "@0 +0000")
        .env("GIT_COMMITTER_NAME", name)
        .env("GIT_COMMITTER_EMAIL", email)
        .env("GIT_COMMITTER_DATE", "@0 +0000")
        .stdin("Ignored files\n\nIncluded by kage run beside the base of a task.\n")
        .run_for_oid()
        .await
}

fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

/// The file with the paths of the included files of the worktree that `shadow` is of.
pub(crate) fn names_file(shadow: &Shadow) -> PathBuf {
    shadow.git_dir().join("included")
}

/// The paths of the included files of the worktree that `shadow` is of.
pub(crate) fn names(shadow: &Shadow) -> Result<HashSet<PathBuf>, GitError> {
    let path = names_file(shadow);
    match fs::read(&path) {
        Ok(list) => Ok(split(&list)
            .map(|path| OsString::from_vec(path.to_vec()).into())
            .collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(HashSet::new()),
        Err(error) => Err(GitError::io("read", &path)(error)),
    }
}

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
use std::io::{self, Read as _};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path, PathBuf};

use git2::{Oid as Id, Repository};
use kage_core::id::Oid;
use kage_core::left_out::{LeftOut, LeftOutReason, shown};
use rustix::io::Errno;

use crate::beneath::{Beneath, Parent};
use crate::error::{GitError, blocking};
use crate::left_out::by_path;
use crate::objects::open_file;
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
    /// Relative to the repository's top, as people can read them.
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

/// What was made of the patterns.
#[derive(Debug, Default)]
pub(crate) struct Chosen {
    /// `None`: there are no such files.
    pub(crate) included: Option<Included>,
    /// Files that were named and do not go along.
    pub(crate) left_out: Vec<LeftOut>,
    /// Patterns for which there is no file at all.
    pub(crate) unmatched: Vec<String>,
}

/// Makes the commit of those ignored files below `root` that its include file or `patterns` name, and
/// says which of them do not go along.
pub(crate) async fn choose(
    shadow: &Shadow,
    root: &Path,
    head: &Oid,
    patterns: &[String],
) -> Result<Chosen, IncludeError> {
    let by_file = fs::symlink_metadata(root.join(INCLUDE_FILE)).is_ok_and(|found| found.is_file());
    let patterns: Vec<_> = patterns.iter().filter(|pattern| !pattern.is_empty()).collect();
    if !by_file && patterns.is_empty() {
        return Ok(Chosen::default());
    }
    let mut list = shadow.git("ls-files").args(["--others", "--ignored", "-z"]);
    if by_file {
        list = list.arg("--exclude-from").arg(INCLUDE_FILE);
    }
    for pattern in &patterns {
        list = list.arg("--exclude").arg(pattern);
    }
    let all = list.run().await?;
    let named: Vec<&[u8]> = split(&all).collect();
    // What git does not ignore is in the base.
    let listed = shadow.git("ls-files").args(["--others", "--exclude-standard", "-z"]);
    let listed = listed.run().await?;
    let of_base: HashSet<&[u8]> = split(&listed).collect();
    let named: Vec<Vec<u8>> = named
        .into_iter()
        .filter(|path| !of_base.contains(path))
        .map(<[u8]>::to_owned)
        .collect();
    let mut unmatched = Vec::new();
    for pattern in &patterns {
        if !has_any(shadow, root, pattern).await? {
            unmatched.push((*pattern).clone());
        }
    }
    let lines = by_file.then(|| fs::read_to_string(root.join(INCLUDE_FILE)).unwrap_or_default());
    let mut literal: Vec<String> = lines.iter().flat_map(|text| text.lines()).map(str::to_owned).collect();
    literal.extend(patterns.into_iter().cloned());
    let (git_dir, root) = (shadow.git_dir().to_owned(), root.to_owned());
    let chosen = blocking("reading the ignored files to include", move || {
        Ok::<_, GitError>(read(&git_dir, &root, named, &literal))
    });
    let (files, left_out) = chosen.await??;
    let included = if files.is_empty() {
        None
    } else {
        let commit = commit(shadow, head, &files).await?;
        let paths = files.iter().map(|file| shown(&file.path)).collect();
        Some(Included { commit, paths })
    };
    Ok(Chosen {
        included,
        left_out,
        unmatched,
    })
}

/// Whether a pattern has any file: also one that git tracks, whose content behind Git LFS may be meant, and
/// one that git does not even list.
async fn has_any(shadow: &Shadow, root: &Path, pattern: &str) -> Result<bool, GitError> {
    let literal = root.join(pattern.trim_start_matches('/').trim_end());
    if fs::symlink_metadata(literal).is_ok() {
        return Ok(true);
    }
    let list = shadow.git("ls-files").args(["--cached", "--others", "--ignored", "-z"]);
    let found = list.arg("--exclude").arg(pattern).run().await?;
    Ok(!found.is_empty())
}

/// A file that goes along, whose content is stored.
struct IncludedFile {
    path: Vec<u8>,
    is_program: bool,
    id: Id,
}

/// Stores the content of the named files. `literal` are the patterns: a name among them may be that of
/// something that git does not even list.
fn read(
    git_dir: &Path,
    root: &Path,
    named: Vec<Vec<u8>>,
    literal: &[String],
) -> Result<(Vec<IncludedFile>, Vec<LeftOut>), IncludeError> {
    let mut left_out = Vec::new();
    let mut leave_out = |path: &[u8], reason| {
        let path = shown(path);
        left_out.push(LeftOut { path, reason });
    };
    let mut found = Vec::new();
    for path in named {
        let relative = Path::new(OsStr::from_bytes(&path));
        // It vanished since it was listed, or is an empty repository.
        let Ok(meta) = fs::symlink_metadata(root.join(relative)) else {
            continue;
        };
        match by_path(relative) {
            Some(reason) => leave_out(&path, reason),
            None if meta.is_file() => found.push((path, meta)),
            None if meta.is_symlink() => leave_out(&path, LeftOutReason::Link),
            None if meta.is_dir() => leave_out(&path, LeftOutReason::NestedRepository),
            None => leave_out(&path, LeftOutReason::NotAFile),
        }
    }
    for name in literal {
        let name = name.trim_start_matches('/').trim_end();
        let is_plain = Path::new(name)
            .components()
            .all(|part| matches!(part, Component::Normal(_)));
        let meta = fs::symlink_metadata(root.join(name));
        let is_odd = |meta: fs::Metadata| !(meta.is_file() || meta.is_dir() || meta.is_symlink());
        if is_plain && !name.is_empty() && meta.is_ok_and(is_odd) {
            leave_out(name.as_bytes(), LeftOutReason::NotAFile);
        }
    }
    let bytes: u64 = found.iter().map(|(_, meta)| meta.len()).sum();
    let largest = found.iter().max_by_key(|(_, meta)| meta.len());
    if let Some((largest, meta)) = largest.filter(|_| bytes > MAX_INCLUDED_BYTES) {
        return Err(IncludeError::TooLarge {
            bytes,
            largest: shown(largest),
            size: meta.len(),
        });
    }
    let beneath = Beneath::open(root).map_err(GitError::io("open", root))?;
    let library = || GitError::library("store an ignored file");
    let repository = Repository::open_bare(git_dir).map_err(library())?;
    let mut files = Vec::new();
    for (path, meta) in found {
        let relative = Path::new(OsStr::from_bytes(&path));
        let content = match content(&beneath, relative, meta.len()) {
            Ok(Some(content)) => content,
            Ok(None) => continue,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                leave_out(&path, LeftOutReason::Unreadable);
                continue;
            }
            Err(error) => return Err(GitError::io("read", &root.join(relative))(error).into()),
        };
        files.push(IncludedFile {
            id: repository.blob(&content).map_err(library())?,
            is_program: meta.permissions().mode() & 0o100 != 0,
            path,
        });
    }
    Ok((files, left_out))
}

/// The content of a file, as much as it had; `None` when it vanished.
fn content(beneath: &Beneath, path: &Path, size: u64) -> io::Result<Option<Vec<u8>>> {
    let Parent::Open(folder, name) = beneath.parent(path, false)? else {
        return Ok(None);
    };
    let file = match open_file(&folder, name) {
        Ok(file) => file,
        Err(Errno::NOENT | Errno::LOOP) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let mut content = Vec::new();
    file.take(size).read_to_end(&mut content)?;
    Ok(Some(content))
}

/// The same files have the same commit at the same HEAD, at any time.
async fn commit(shadow: &Shadow, head: &Oid, files: &[IncludedFile]) -> Result<Oid, GitError> {
    let mut entries = Vec::new();
    for file in files {
        entries.extend_from_slice(if file.is_program { b"100755 " } else { b"100644 " });
        entries.extend_from_slice(file.id.to_string().as_bytes());
        entries.extend_from_slice(&[&b"\t"[..], file.path.as_slice(), &b"\0"[..]].concat());
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

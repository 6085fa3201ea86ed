//! Which files of a worktree are not taken into a checkpoint or a result although nothing ignores
//! them, and why. Every look at the files judges by this, whether this crate takes them or git does.
//! It looks at what it is given; who asks tells people.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use git2::{ObjectType, Oid as Id, Repository};
use kage_core::left_out::{LeftOut, LeftOutReason, shown};
use kage_core::task::ResultRules;
use rustix::fs::FileType;

use crate::error::GitError;
use crate::large::FilledFiles;
use crate::objects::is_storable;
use crate::secrets::FileWithSecret;

/// The longest path, in bytes: with the folder of a worktree before it, systems take 4,096.
const MOST_BYTES: usize = 3500;
/// The deepest path, in names: a walk keeps a folder open for each.
const MOST_NAMES: usize = 128;
/// The longest path that is told, in bytes.
const MOST_SHOWN: usize = 500;
/// The most files that are told of one look.
const MOST_TOLD: usize = 1000;

/// Files that are not taken, without repetition. Of very many, some.
#[derive(Debug, Default)]
pub(crate) struct NotTaken {
    told: BTreeSet<LeftOut>,
    /// Paths whose file differs from what is kept of them: an earlier content stands in for it.
    stood_in: BTreeSet<PathBuf>,
    /// Files that have a secret.
    with_secrets: BTreeSet<FileWithSecret>,
}

impl NotTaken {
    pub(crate) fn add(&mut self, path: &Path, reason: LeftOutReason) {
        if self.told.len() >= MOST_TOLD {
            return;
        }
        let mut path = shown(path.as_os_str().as_bytes());
        shorten(&mut path);
        self.told.insert(LeftOut { path, reason });
    }

    /// Notes that an earlier content of the path is kept instead.
    pub(crate) fn stand_in(&mut self, path: &Path) {
        self.stood_in.insert(path.to_owned());
    }

    /// The paths for which an earlier content stands in.
    pub(crate) fn take_stood_in(&mut self) -> BTreeSet<PathBuf> {
        std::mem::take(&mut self.stood_in)
    }

    /// Notes a file that is not taken because it has a secret. An earlier content is kept instead.
    pub(crate) fn hold(&mut self, path: &Path, mut file: FileWithSecret) {
        self.stand_in(path);
        if self.with_secrets.len() < MOST_TOLD {
            shorten(&mut file.path);
            self.with_secrets.insert(file);
        }
    }

    /// The files that are left out, and those that have a secret.
    pub(crate) fn into_lists(self) -> (Vec<LeftOut>, Vec<FileWithSecret>) {
        (self.told.into_iter().collect(), self.with_secrets.into_iter().collect())
    }
}

fn shorten(path: &mut String) {
    if path.len() > MOST_SHOWN {
        path.truncate(path.floor_char_boundary(MOST_SHOWN));
        path.push('…');
    }
}

/// Why no file at a path is taken, whatever it is.
pub(crate) fn by_path(path: &Path) -> Option<LeftOutReason> {
    if path.as_os_str().len() > MOST_BYTES || path.iter().count() > MOST_NAMES {
        return Some(LeftOutReason::LongPath);
    }
    let has_odd_name = path.iter().any(|name| !is_storable(name, false));
    has_odd_name.then_some(LeftOutReason::Name)
}

/// Whether git would wait for ever for somebody at the other end: it opens the files that hold its rules
/// whatever they are.
pub(crate) fn holds_git_up(name: &OsStr, kind: FileType) -> bool {
    let is_rules = name == ".gitignore" || name == ".gitattributes";
    is_rules && matches!(kind, FileType::Fifo | FileType::CharacterDevice | FileType::BlockDevice)
}

/// Why a file of that size is not taken. `before` is the size of what the base has at its path.
pub(crate) fn by_size(rules: &ResultRules, before: impl FnOnce() -> Option<u64>, size: u64) -> Option<LeftOutReason> {
    if size <= rules.max_file_bytes {
        return None;
    }
    let before = before();
    (size > rules.most(before)).then_some(LeftOutReason::Large { size })
}

/// The size of a blob.
pub(crate) fn size_of(repository: &Repository, id: Id) -> Option<u64> {
    let (size, kind) = repository.odb().ok()?.read_header(id).ok()?;
    (kind == ObjectType::Blob).then_some(size as u64)
}

/// The entry of a tree at a path, with its mode.
pub(crate) fn entry_in(repository: &Repository, tree: Id, path: &Path) -> Option<(u32, Id)> {
    let entry = repository.find_tree(tree).ok()?.get_path(path).ok()?;
    Some((u32::try_from(entry.filemode()).ok()?, entry.id()))
}

/// Files that are about to be given to git, without those that it would fail on or must not have. They
/// are below `root`, and differ from the base with the tree `base`. Of `large` files the base has a
/// pointer, whose size says nothing.
///
/// # Errors
/// [`GitError::TooMuch`].
pub(crate) fn takeable(
    (repository, base, large): (&Repository, Id, &FilledFiles),
    rules: &ResultRules,
    root: &Path,
    paths: &[Vec<u8>],
    not_taken: &mut NotTaken,
) -> Result<Vec<Vec<u8>>, GitError> {
    let mut taken = Vec::new();
    let mut new = NewFiles::default();
    for bytes in paths {
        let path = Path::new(OsStr::from_bytes(bytes));
        let full = root.join(path);
        // What vanished, or a link: git looks at it once more.
        let found = fs::symlink_metadata(&full);
        if is_closed(&found) {
            not_taken.add(path, LeftOutReason::Unreadable);
            continue;
        }
        let found = found.ok();
        let size = found.as_ref().filter(|found| found.is_file()).map(fs::Metadata::len);
        let in_base = || entry_in(repository, base, path);
        let is_link = found.as_ref().is_some_and(fs::Metadata::is_symlink);
        let is_odd_link = is_link && path.file_name().is_some_and(|name| !is_storable(name, true));
        let reason = by_path(path)
            .or(is_odd_link.then_some(LeftOutReason::Name))
            .or_else(|| {
                let size = size?;
                let closed = |error: io::Error| error.kind() == io::ErrorKind::PermissionDenied;
                let unreadable = || fs::File::open(&full).is_err_and(closed);
                let before = || {
                    let content = large.get(path).map(|filled| filled.size);
                    content.or_else(|| size_of(repository, in_base()?.1))
                };
                by_size(rules, before, size).or_else(|| unreadable().then_some(LeftOutReason::Unreadable))
            });
        if let Some(reason) = reason {
            not_taken.add(path, reason);
            continue;
        }
        if in_base().is_none() {
            new.add(rules, path, size.unwrap_or(0))?;
        }
        taken.push(bytes.clone());
    }
    Ok(taken)
}

/// Whether a path cannot be looked at because a folder above it does not allow it.
fn is_closed(found: &io::Result<fs::Metadata>) -> bool {
    found
        .as_ref()
        .is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
}

/// The paths below `root` that are gone, without those that only cannot be seen.
pub(crate) fn really_gone(root: &Path, paths: Vec<Vec<u8>>, not_taken: &mut NotTaken) -> Vec<Vec<u8>> {
    let mut gone = Vec::new();
    for bytes in paths {
        let path = Path::new(OsStr::from_bytes(&bytes));
        if is_closed(&fs::symlink_metadata(root.join(path))) {
            not_taken.add(path, LeftOutReason::Unreadable);
        } else {
            gone.push(bytes);
        }
    }
    gone
}

/// Files that the base does not have, as they are found.
#[derive(Debug, Default)]
pub(crate) struct NewFiles {
    files: u64,
    bytes: u64,
    /// By their first name.
    tops: BTreeMap<OsString, (u64, u64)>,
}

impl NewFiles {
    /// Counts one.
    ///
    /// # Errors
    /// [`GitError::TooMuch`] when there are more than the rules allow.
    pub(crate) fn add(&mut self, rules: &ResultRules, path: &Path, size: u64) -> Result<(), GitError> {
        let top = path.iter().next().unwrap_or_default();
        let of_top = self.tops.entry(top.to_owned()).or_default();
        *of_top = (of_top.0 + 1, of_top.1.saturating_add(size));
        self.files += 1;
        self.bytes = self.bytes.saturating_add(size);
        if !rules.is_too_much(self.files, self.bytes) {
            return Ok(());
        }
        let by_number = self.files > rules.max_new_files;
        let weight = |(_, (files, bytes)): &(&OsString, &(u64, u64))| if by_number { *files } else { *bytes };
        let most = self.tops.iter().max_by_key(weight);
        Err(GitError::TooMuch {
            most_files: rules.max_new_files,
            most_bytes: rules.max_new_bytes,
            mostly: most.map(|(top, _)| shown(top.as_bytes())).unwrap_or_default(),
        })
    }
}

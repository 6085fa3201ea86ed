//! Files that a person may have renamed in the working tree, without a commit. git finds the
//! renames; this file decides which files it compares.

use std::collections::{BTreeSet, HashSet};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use super::present::IndexEntries;
use super::tree::Changed;
use crate::error::{GitError, blocking};
use crate::snapshot::{MAX_UNTRACKED_BYTES, filters_of};
use crate::staging::split;
use crate::user_repo::{UserRepo, UserShadow};

/// With more new files than this, renames are not searched: each new file would have to be read and
/// compared.
const MOST_NEW_FILES: usize = 2000;

/// The traces of a rename: deleted files of the base, and new files.
#[derive(Debug, Default)]
pub(super) struct Moved {
    pub(super) gone: Vec<PathBuf>,
    pub(super) new: Vec<PathBuf>,
}

/// Searches for renames. If neither side deleted a file, nothing was renamed, and new files are not
/// searched.
pub(super) async fn moved(
    repository: &UserRepo,
    store: &UserShadow,
    index: &IndexEntries,
    base: git2::Oid,
    changed: &Changed,
) -> Result<Moved, GitError> {
    let listed = store
        .shadow
        .git("ls-tree")
        .args(["-r", "-z", "--full-tree", "--name-only"])
        .arg(base.to_string())
        .run()
        .await?;
    let known: HashSet<PathBuf> = split(&listed).map(path_of).collect();
    let root = repository.root().to_owned();
    let (gone, known) = blocking("looking for renamed files", {
        let root = root.clone();
        move || {
            let is_gone = |path: &&PathBuf| fs::symlink_metadata(root.join(path)).is_err();
            let gone: Vec<PathBuf> = known.iter().filter(is_gone).cloned().collect();
            Ok::<_, GitError>((gone, known))
        }
    })
    .await?;
    let gone: Vec<PathBuf> = gone.into_iter().filter(|path| !index.is_not_on_disk(path)).collect();
    if gone.is_empty() && changed.values().all(|change| change.after.is_some()) {
        return Ok(Moved::default());
    }
    let untracked = store
        .shadow
        .git("ls-files")
        .args(["--others", "--exclude-standard", "-z"])
        .run()
        .await?;
    let mut new: BTreeSet<PathBuf> = split(&untracked).map(path_of).chain(index.paths().cloned()).collect();
    // What is where the result has a folder is in the way, wherever it comes from.
    for folder in changed.keys().flat_map(|path| path.ancestors().skip(1)) {
        new.remove(folder);
    }
    let new = blocking("looking for new files", move || {
        let is_small = |meta: fs::Metadata| meta.is_symlink() || meta.is_file() && meta.len() <= MAX_UNTRACKED_BYTES;
        new.retain(|path| !known.contains(path) && fs::symlink_metadata(root.join(path)).is_ok_and(is_small));
        Ok::<_, GitError>(new)
    })
    .await?;
    if new.len() > MOST_NEW_FILES {
        return Ok(Moved::default());
    }
    let names: Vec<Vec<u8>> = new.iter().map(|path| path.as_os_str().as_bytes().to_owned()).collect();
    let filters = filters_of(|operation| store.shadow.git(operation), &names).await?;
    let is_plain = |path: &PathBuf| {
        let filter = filters.get(path.as_os_str().as_bytes());
        filter.is_none_or(|filter| !repository.has_filter(filter))
    };
    let new = new.into_iter().filter(is_plain).collect();
    Ok(Moved { gone, new })
}

fn path_of(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(bytes))
}

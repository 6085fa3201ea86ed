//! The merge of two commits by libgit2, in a private git directory: the merged tree, or the
//! conflicts and the files that show them. It writes nothing that a person can see.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use git2::{FileFavor, IndexConflict, IndexEntry, MergeFileInput, MergeFileOptions, MergeOptions, Repository};
use kage_core::id::Oid;

use super::tree::{Change, Changed, Entry, difference};
use super::{LandingError, Obstacle, Strategy, shown};
use crate::error::GitError;

/// The bits of an index entry's flags that hold its stage.
const STAGE: u16 = 0x3000;

/// A merge in a private git directory.
pub(super) struct Outcome {
    /// From HEAD to what the files will be, conflicted ones included.
    pub(super) changed: Changed,
    /// Base, ours and theirs of conflicts that are left to the person.
    pub(super) conflicts: BTreeMap<PathBuf, [Option<Entry>; 3]>,
    /// The merged tree; `None` when conflicts are left.
    pub(super) tree: Option<git2::Oid>,
}

/// Merges; `None` = the branch has the result already.
pub(super) fn compute(
    git_dir: &Path,
    head: &Oid,
    result: &Oid,
    strategy: Strategy,
) -> Result<Option<Outcome>, LandingError> {
    let failed = |error| LandingError::from(GitError::library("merge two commits")(error));
    let repository = Repository::open_bare(git_dir).map_err(failed)?;
    let commit = |id: &Oid| repository.find_commit(git2::Oid::from_str(id.as_str())?);
    let (ours, theirs) = (commit(head).map_err(failed)?, commit(result).map_err(failed)?);
    match repository.merge_base(ours.id(), theirs.id()) {
        Ok(base) if base == theirs.id() => return Ok(None),
        Ok(_) => {}
        Err(error) if error.code() == git2::ErrorCode::NotFound => return Err(LandingError::Unrelated),
        Err(error) => return Err(failed(error)),
    }
    let mut options = MergeOptions::new();
    if strategy == Strategy::Theirs {
        options.file_favor(FileFavor::Theirs);
    }
    let merge = || {
        let mut index = repository.merge_commits(&ours, &theirs, Some(&options))?;
        let conflicts = index.conflicts()?.collect::<Result<Vec<IndexConflict>, _>>()?;
        let mut left = Vec::new();
        for conflict in conflicts {
            let entries = [&conflict.ancestor, &conflict.our, &conflict.their];
            let paths: BTreeSet<PathBuf> = entries.into_iter().flatten().map(path_of).collect();
            for path in paths {
                index.conflict_remove(&path)?;
            }
            // While it is undecided the tree has our side, which is what is there now.
            let kept = match strategy {
                Strategy::Theirs => &conflict.their,
                Strategy::Auto | Strategy::Manual => &conflict.our,
            };
            if let Some(entry) = kept {
                index.add(&unstaged(entry))?;
            }
            if strategy != Strategy::Theirs {
                left.push(conflict);
            }
        }
        let tree = index.write_tree_to(&repository)?;
        let changed = difference(&repository, &ours.tree()?, &repository.find_tree(tree)?)?;
        Ok((left, tree, changed))
    };
    let (left, tree, mut changed) = merge().map_err(failed)?;
    if strategy == Strategy::Auto && !left.is_empty() {
        let conflicts = left.iter().filter_map(|conflict| {
            let path = [&conflict.our, &conflict.their, &conflict.ancestor]
                .into_iter()
                .flatten()
                .next()?;
            Some(Obstacle {
                path: shown(&path_of(path)),
                reason: describe(conflict),
            })
        });
        return Err(LandingError::Conflicts {
            conflicts: conflicts.collect(),
        });
    }
    let tree = left.is_empty().then_some(tree);
    let mut conflicts: BTreeMap<PathBuf, [Option<Entry>; 3]> = BTreeMap::new();
    for conflict in &left {
        let sides = [&conflict.ancestor, &conflict.our, &conflict.their];
        for (stage, entry) in sides.into_iter().enumerate() {
            if let Some(entry) = entry {
                conflicts.entry(path_of(entry)).or_default()[stage] = Some(entry_of(entry));
            }
        }
    }
    for (path, [base, our, their]) in &conflicts {
        let after = marked(&repository, *base, *our, *their).map_err(failed)?;
        changed.insert(path.clone(), Change { before: *our, after });
    }
    Ok(Some(Outcome {
        changed,
        conflicts,
        tree,
    }))
}

fn describe(conflict: &IndexConflict) -> &'static str {
    match (&conflict.ancestor, &conflict.our, &conflict.their) {
        (_, Some(_), None) => "the result deletes it and your branch changed it",
        (_, None, Some(_)) => "your branch deleted it and the result changed it",
        (None, _, _) => "both added it with different content",
        (Some(_), _, _) => "both changed the same part of it",
    }
}

/// The file that shows a conflict: both sides between markers, or the side that is left.
fn marked(
    repository: &Repository,
    base: Option<Entry>,
    our: Option<Entry>,
    their: Option<Entry>,
) -> Result<Option<Entry>, git2::Error> {
    let (Some(ours), Some(theirs)) = (our, their) else {
        return Ok(our.or(their));
    };
    if !ours.is_file() || !theirs.is_file() {
        return Ok(our);
    }
    let (our_blob, their_blob) = (repository.find_blob(ours.id)?, repository.find_blob(theirs.id)?);
    if our_blob.is_binary() || their_blob.is_binary() {
        return Ok(our);
    }
    let base_blob = match base.filter(|entry| entry.is_file()) {
        Some(entry) => Some(repository.find_blob(entry.id)?),
        None => None,
    };
    let (mut ancestor, mut mine, mut other) = (MergeFileInput::new(), MergeFileInput::new(), MergeFileInput::new());
    ancestor.content(base_blob.as_ref().map_or(b"".as_slice(), |blob| blob.content()));
    mine.content(our_blob.content());
    other.content(their_blob.content());
    let mut options = MergeFileOptions::new();
    options.our_label("HEAD").their_label("result");
    let merged = git2::merge_file(&ancestor, &mine, &other, Some(&mut options))?;
    let id = repository.blob(merged.content())?;
    Ok(Some(Entry::file(id, ours.is_executable())))
}

fn path_of(entry: &IndexEntry) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(&entry.path))
}

fn entry_of(entry: &IndexEntry) -> Entry {
    Entry {
        mode: entry.mode,
        id: entry.id,
    }
}

/// The same entry as one that is decided.
fn unstaged(entry: &IndexEntry) -> IndexEntry {
    IndexEntry {
        ctime: entry.ctime,
        mtime: entry.mtime,
        dev: entry.dev,
        ino: entry.ino,
        mode: entry.mode,
        uid: entry.uid,
        gid: entry.gid,
        file_size: entry.file_size,
        id: entry.id,
        flags: entry.flags & !STAGE,
        flags_extended: 0,
        path: entry.path.clone(),
    }
}

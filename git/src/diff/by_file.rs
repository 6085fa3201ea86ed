//! The difference between two commits file by file, for whoever shows it: renames found, each
//! file with its lines counted and its patch up to a limit. One file is in memory at a time.

use std::ops::ControlFlow;
use std::path::Path;

use git2::{Delta, Diff, DiffDelta, DiffFindOptions, DiffOptions, Patch, Repository};
use kage_core::id::Oid;

use super::PathEntry;
use crate::error::GitError;
use crate::loose::compared::{Compared, prove_compared, tree_of};
use crate::objects::oid_of;

/// The largest version of a file that is compared line by line. A session may write files of any
/// size, and comparing takes several times their size in memory.
pub const MAX_COMPARED: usize = 4 << 20;
/// The most lines of a file that is compared line by line: each takes about 100 bytes.
pub const MAX_LINES: usize = 200_000;
/// Up to so many pairs of a file that went and one that came are looked at for similar content;
/// of more, only files of the same content are renames.
const MAX_PAIRS: usize = 250_000;

/// What is asked of a comparison.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiffScope {
    /// Files and folders to compare, as they are in the repository; empty: everything.
    pub paths: Vec<Vec<u8>>,
    /// The most bytes of one file's patch; 0: no patches.
    pub file_bytes: usize,
    /// The most bytes of all patches together.
    pub total_bytes: usize,
}

/// What became of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileStatus {
    Added,
    /// It has other content or another mode.
    Modified,
    /// It is not there any more.
    Deleted,
    /// It is at another path, with the same or similar content.
    Renamed,
}

/// What can be said of a file's lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileLines {
    /// So many were added and removed.
    Counted {
        added: u64,
        removed: u64,
    },
    Binary,
    /// One of its versions has more than [`MAX_COMPARED`] bytes or [`MAX_LINES`] lines.
    TooLarge,
}

/// One file of a difference. A file that becomes a link is two: a deletion and an addition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileDiff {
    /// Where it is or, of a deleted one, was.
    pub path: Vec<u8>,
    /// Of a renamed one: where it was.
    pub old_path: Option<Vec<u8>>,
    pub status: FileStatus,
    /// Its version before; `None`: it was not there.
    pub before: Option<PathEntry>,
    /// Its version after; `None`: it is not there any more.
    pub after: Option<PathEntry>,
    pub lines: FileLines,
    /// The beginning of its patch for `git apply`, whole lines of it.
    pub patch: Vec<u8>,
    /// The patch is longer than that.
    pub truncated: bool,
}

/// Compares two commits of the repository at `repository`, in the order of paths, and gives `each`
/// file until it breaks off, which is what it then returns. This function blocks.
pub fn by_file(
    repository: &Path,
    from: &Oid,
    to: &Oid,
    scope: &DiffScope,
    mut each: impl FnMut(FileDiff) -> ControlFlow<()>,
) -> Result<ControlFlow<()>, GitError> {
    let failed = GitError::library("compare two commits");
    let mut left = scope.total_bytes;
    let mut compare = || {
        let repository = Repository::open_bare(repository)?;
        let old = tree_of(&repository, git2::Oid::from_str(from.as_str())?)?;
        let new = tree_of(&repository, git2::Oid::from_str(to.as_str())?)?;
        let compared = Compared {
            content: true,
            paths: &scope.paths,
        };
        prove_compared(&repository, &old, &new, compared)?;
        let mut options = DiffOptions::new();
        options
            .id_abbrev(40)
            .max_size(i64::try_from(MAX_COMPARED).unwrap_or(i64::MAX));
        // Names, not patterns.
        options.disable_pathspec_match(true);
        for path in &scope.paths {
            options.pathspec(path.as_slice());
        }
        let mut diff = repository.diff_tree_to_tree(Some(&old), Some(&new), Some(&mut options))?;
        find_renames(&repository, &mut diff)?;
        // A renamed file stands where it is now; what becomes a link goes before it comes.
        let place = |delta: &DiffDelta<'_>| (super::path_of(delta).to_vec(), delta.status() != Delta::Deleted);
        let mut order: Vec<_> = diff.deltas().map(|delta| place(&delta)).zip(0..).collect();
        order.sort();
        for (_, number) in order {
            let most = (scope.file_bytes > 0).then(|| scope.file_bytes.min(left));
            let Some(file) = file(&repository, &diff, number, most)? else {
                continue;
            };
            left -= file.patch.len();
            if each(file).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    };
    compare().map_err(failed)
}

/// Joins what went and what came elsewhere. Content is compared only where that has a bound.
fn find_renames(repository: &Repository, diff: &mut Diff<'_>) -> Result<(), git2::Error> {
    let (mut gone, mut come, mut large) = (0_usize, 0_usize, false);
    for delta in diff.deltas() {
        match delta.status() {
            Delta::Deleted => gone += 1,
            Delta::Added => come += 1,
            _ => continue,
        }
        large |= is_large(repository, &delta);
    }
    if gone == 0 || come == 0 {
        return Ok(());
    }
    let exact = large || gone.saturating_mul(come) > MAX_PAIRS;
    let mut options = DiffFindOptions::new();
    options.renames(true).exact_match_only(exact).rename_limit(gone);
    diff.find_similar(Some(&mut options))
}

/// True when a version of the file is too large to be read for a comparison.
fn is_large(repository: &Repository, delta: &DiffDelta<'_>) -> bool {
    let Ok(objects) = repository.odb() else {
        return false;
    };
    // The commit of a submodule is not here; what is damaged, reading it will say.
    let size = |id| objects.read_header(id).map_or(0, |(size, _)| size);
    [delta.old_file(), delta.new_file()]
        .into_iter()
        .any(|file| file.exists() && size(file.id()) > MAX_COMPARED)
}

/// True when a version of the file, none of which is large, has too many lines.
fn has_many_lines(repository: &Repository, delta: &DiffDelta<'_>) -> bool {
    [delta.old_file(), delta.new_file()].into_iter().any(|file| {
        let blob = file.exists().then(|| repository.find_blob(file.id()));
        blob.is_some_and(|blob| {
            blob.is_ok_and(|blob| {
                let text = blob.content();
                text.len() > MAX_LINES && text.iter().filter(|byte| **byte == b'\n').count() > MAX_LINES
            })
        })
    })
}

fn file(
    repository: &Repository,
    diff: &Diff<'_>,
    number: usize,
    most: Option<usize>,
) -> Result<Option<FileDiff>, git2::Error> {
    let Some(delta) = diff.get_delta(number) else {
        return Ok(None);
    };
    let status = match delta.status() {
        Delta::Added => FileStatus::Added,
        Delta::Deleted => FileStatus::Deleted,
        Delta::Renamed => FileStatus::Renamed,
        _ => FileStatus::Modified,
    };
    let entry = |file: git2::DiffFile<'_>| {
        let entry = || {
            Ok::<_, git2::Error>(PathEntry {
                mode: u32::from(file.mode()),
                id: oid_of(file.id()).map_err(|error| git2::Error::from_str(&error.to_string()))?,
            })
        };
        file.exists().then(entry).transpose()
    };
    let mut found = FileDiff {
        path: super::path_of(&delta).to_vec(),
        old_path: match status {
            FileStatus::Renamed => delta.old_file().path_bytes().map(<[u8]>::to_vec),
            FileStatus::Added | FileStatus::Modified | FileStatus::Deleted => None,
        },
        status,
        before: entry(delta.old_file())?,
        after: entry(delta.new_file())?,
        lines: FileLines::Binary,
        patch: Vec::new(),
        truncated: false,
    };
    if is_large(repository, &delta) || has_many_lines(repository, &delta) {
        found.lines = FileLines::TooLarge;
        found.truncated = most.is_some();
        return Ok(Some(found));
    }
    let Some(mut patch) = Patch::from_diff(diff, number)? else {
        return Ok(Some(found));
    };
    // Known only now that its content was read.
    let binary = patch.delta().flags().is_binary();
    if !binary {
        let (_, added, removed) = patch.line_stats()?;
        found.lines = FileLines::Counted {
            added: added as u64,
            removed: removed as u64,
        };
    }
    let Some(most) = most else {
        return Ok(Some(found));
    };
    let (text, truncated) = (&mut found.patch, &mut found.truncated);
    patch.print(&mut |_, _, line| {
        let sign = matches!(line.origin(), '+' | '-' | ' ');
        *truncated |= text.len() + usize::from(sign) + line.content().len() > most;
        if !*truncated {
            super::push_line(text, &line);
        }
        true
    })?;
    Ok(Some(found))
}

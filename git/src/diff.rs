//! Differences between two commits of a mirror, for people and reports, computed by libgit2 alone:
//! no pager, external diff or textconv can run. These functions block.
//! [`by_file`](by_file()) is for whoever shows a difference, the others for whoever decides on it.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use git2::{Delta, DiffFormat, DiffOptions, Repository};
use kage_core::event::{
    ChangeKind, DiffStat, FileChange, LARGE_BYTES, LargeFile, MAX_ODD_FILES, MAX_RESULT_PATHS, ResultCommit,
};
use kage_core::id::Oid;

use crate::error::GitError;
use crate::loose::compared::{Compared, prove_compared, tree_of};
use crate::objects::{mode, oid_of};

mod by_file;

pub use by_file::{DiffScope, FileDiff, FileLines, FileStatus, MAX_COMPARED, MAX_LINES, by_file};

/// Lines of larger files are not counted.
const MAX_COUNTED: u64 = 16 << 20;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Difference {
    pub stat: DiffStat,
    /// Every changed path with its counts, in git's order. Renames are a deletion and an addition.
    pub files: Vec<FileChange>,
    /// The added and changed ones from [`LARGE_BYTES`] on, the largest first; the first of many.
    pub large: Vec<LargeFile>,
}

impl Difference {
    /// The result that a session reports for a commit with this difference.
    #[must_use]
    pub fn describe(&self, commit: Oid) -> ResultCommit {
        let listed = self.files.get(..MAX_RESULT_PATHS).unwrap_or(&self.files);
        let gone = listed.iter().filter(|file| file.kind == ChangeKind::Deleted);
        ResultCommit {
            commit,
            tree: None,
            diff: self.stat,
            paths: listed.iter().map(|file| file.path.clone()).collect(),
            deleted: gone.map(|file| file.path.clone()).collect(),
            large: self.large.clone(),
            left_out: Vec::new(),
        }
    }
}

/// The changes from `base` to `commit` in the repository at `repository`.
pub fn between(repository: &Path, base: &Oid, commit: &Oid) -> Result<Difference, GitError> {
    with_diff(repository, base, commit, |repository, diff| {
        let mut difference = Difference::default();
        let mut places: HashMap<Vec<u8>, usize> = HashMap::new();
        for (number, delta) in diff.deltas().enumerate() {
            let kind = match delta.status() {
                Delta::Added => ChangeKind::Added,
                Delta::Deleted => ChangeKind::Deleted,
                _ => ChangeKind::Modified,
            };
            let path = path_of(&delta);
            let size = large(repository, &delta);
            if let Some(bytes) = size {
                let path = String::from_utf8_lossy(path).into_owned();
                difference.large.push(LargeFile { path, bytes });
            }
            let patch = match size {
                // Comparing such files line by line takes longer than everything else.
                Some(bytes) if bytes > MAX_COUNTED => None,
                Some(_) | None => git2::Patch::from_diff(diff, number)?,
            };
            // No patch: binary or a submodule, so there are no lines to count.
            let (_, added, removed) = match patch {
                Some(patch) => patch.line_stats()?,
                None => (0, 0, 0),
            };
            let (added, removed) = (added as u64, removed as u64);
            difference.stat.added += added;
            difference.stat.removed += removed;
            // A file that becomes a link counts as a deletion and an addition.
            let half = places.get(path).and_then(|place| difference.files.get_mut(*place));
            if let Some(file) = half {
                file.kind = ChangeKind::Modified;
                file.added += added;
                file.removed += removed;
                continue;
            }
            places.insert(path.to_vec(), difference.files.len());
            difference.stat.files = difference.stat.files.saturating_add(1);
            difference.files.push(FileChange {
                path: String::from_utf8_lossy(path).into_owned(),
                kind,
                added,
                removed,
            });
        }
        difference
            .large
            .sort_by(|a, b| (b.bytes, &a.path).cmp(&(a.bytes, &b.path)));
        difference.large.truncate(MAX_ODD_FILES);
        Ok(difference)
    })
}

/// The same as a unified patch for `git apply`.
pub fn patch(repository: &Path, base: &Oid, commit: &Oid) -> Result<Vec<u8>, GitError> {
    with_diff(repository, base, commit, |_, diff| {
        let mut text = Vec::new();
        diff.print(DiffFormat::Patch, |_, _, line| {
            push_line(&mut text, &line);
            true
        })?;
        Ok(text)
    })
}

/// Adds a line of a patch, as git writes it.
fn push_line(text: &mut Vec<u8>, line: &git2::DiffLine<'_>) {
    if matches!(line.origin(), '+' | '-' | ' ') {
        text.push(line.origin() as u8);
    }
    text.extend_from_slice(line.content());
}

/// The content of a path in a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathEntry {
    /// The mode in git's tree: 0o100644, 0o100755, 0o120000 or 0o160000.
    pub mode: u32,
    pub id: Oid,
}

/// A path that differs between two commits. A rename is two of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathChange {
    pub path: Vec<u8>,
    /// `None`: the path does not exist.
    pub before: Option<PathEntry>,
    pub after: Option<PathEntry>,
}

type Side = Option<(u32, git2::Oid)>;

/// The id that git gives a file with this content.
pub fn file_id(content: &[u8]) -> Result<Oid, GitError> {
    let id = git2::Oid::hash_object(git2::ObjectType::Blob, content).map_err(GitError::library("hash a file"))?;
    oid_of(id)
}

/// Every path that differs from `before` to `after` in the repository at `repository`, in byte
/// order.
pub fn paths(repository: &Path, before: &Oid, after: &Oid) -> Result<Vec<PathChange>, GitError> {
    let sides = with_diff(repository, before, after, |_, diff| {
        let side = |file: git2::DiffFile<'_>| file.exists().then(|| (u32::from(file.mode()), file.id()));
        let mut sides: BTreeMap<Vec<u8>, (Side, Side)> = BTreeMap::new();
        for delta in diff.deltas() {
            // Here too, a rename is a deletion and an addition.
            let (before, after) = sides.entry(path_of(&delta).to_vec()).or_default();
            *before = before.or_else(|| side(delta.old_file()));
            *after = after.or_else(|| side(delta.new_file()));
        }
        Ok(sides)
    })?;
    let entry = |side: Side| {
        side.map(|(mode, id)| Ok::<_, GitError>(PathEntry { mode, id: oid_of(id)? }))
            .transpose()
    };
    let change = |(path, (before, after))| {
        Ok(PathChange {
            path,
            before: entry(before)?,
            after: entry(after)?,
        })
    };
    sides.into_iter().map(change).collect()
}

fn path_of<'a>(delta: &git2::DiffDelta<'a>) -> &'a [u8] {
    let path = delta.new_file().path_bytes().or(delta.old_file().path_bytes());
    path.unwrap_or_default()
}

/// The size of the file after a change, when it is large.
fn large(repository: &Repository, delta: &git2::DiffDelta<'_>) -> Option<u64> {
    let file = delta.new_file();
    if !file.exists() || u32::from(file.mode()) == mode::SUBMODULE {
        return None;
    }
    let (size, _) = repository.odb().ok()?.read_header(file.id()).ok()?;
    (size as u64 >= LARGE_BYTES).then_some(size as u64)
}

fn with_diff<T>(
    repository: &Path,
    base: &Oid,
    commit: &Oid,
    read: impl FnOnce(&Repository, &git2::Diff<'_>) -> Result<T, git2::Error>,
) -> Result<T, GitError> {
    let compare = || {
        let repository = Repository::open_bare(repository)?;
        let old = tree_of(&repository, git2::Oid::from_str(base.as_str())?)?;
        let new = tree_of(&repository, git2::Oid::from_str(commit.as_str())?)?;
        prove_compared(&repository, &old, &new, Compared::ALL)?;
        let mut options = DiffOptions::new();
        options.show_binary(true).id_abbrev(40);
        let diff = repository.diff_tree_to_tree(Some(&old), Some(&new), Some(&mut options))?;
        read(&repository, &diff)
    };
    compare().map_err(GitError::library("compare two commits"))
}

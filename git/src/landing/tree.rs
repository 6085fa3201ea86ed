//! Trees beside a person's files: differences between two trees, a tree with some paths replaced,
//! which paths may be written at all, and which files git would write for them. Everything happens
//! in a private git directory.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use git2::{DiffOptions, FileMode, Index, IndexEntry, IndexTime, Repository};
use kage_core::id::Oid;

use super::files::{Target, read_own};
use super::submodules::Submodules;
use super::{LandingError, Obstacle, ObstacleKind, shown};
use crate::error::{GitError, blocking};
use crate::large::FILTER;
use crate::loose::compared::{self, Compared, folder, prove_compared};
use crate::snapshot::filters_of;
use crate::user_repo::{UserRepo, UserShadow};

/// A tree's entry at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) mode: u32,
    pub(super) id: git2::Oid,
}

impl Entry {
    pub(super) fn is_file(self) -> bool {
        self.mode == u32::from(FileMode::Blob) || self.is_executable()
    }

    pub(super) fn is_submodule(self) -> bool {
        self.mode == u32::from(FileMode::Commit)
    }

    pub(super) fn is_executable(self) -> bool {
        self.mode == u32::from(FileMode::BlobExecutable)
    }

    pub(super) fn file(id: git2::Oid, executable: bool) -> Self {
        let mode = if executable {
            FileMode::BlobExecutable
        } else {
            FileMode::Blob
        };
        Self { mode: mode.into(), id }
    }
}

/// The two sides of a changed path.
#[derive(Debug, Clone, Copy)]
pub(super) struct Change {
    pub(super) before: Option<Entry>,
    pub(super) after: Option<Entry>,
}

impl Change {
    pub(super) fn sides(&self) -> impl Iterator<Item = Entry> {
        [self.before, self.after].into_iter().flatten()
    }

    /// True if there was a submodule, or there is going to be one.
    pub(super) fn is_of_submodule(&self) -> bool {
        self.sides().any(Entry::is_submodule)
    }
}

/// Changes in the order of their paths.
pub(super) type Changed = BTreeMap<PathBuf, Change>;

/// The difference of two trees. Renames are deletions and additions.
pub(super) fn difference(repository: &Repository, before: git2::Oid, after: git2::Oid) -> Result<Changed, git2::Error> {
    let mut options = DiffOptions::new();
    options.include_typechange(true);
    let (before, after) = (folder(repository, before)?, folder(repository, after)?);
    prove_compared(repository, &before, &after, Compared::NAMES)?;
    let diff = repository.diff_tree_to_tree(Some(&before), Some(&after), Some(&mut options))?;
    let entry = |file: &git2::DiffFile<'_>| {
        (file.mode() != FileMode::Unreadable).then(|| Entry {
            mode: file.mode().into(),
            id: file.id(),
        })
    };
    let mut changed = Changed::new();
    for delta in diff.deltas() {
        let path = delta.new_file().path_bytes().or(delta.old_file().path_bytes());
        let path = PathBuf::from(OsStr::from_bytes(path.unwrap_or_default()));
        let change = Change {
            before: entry(&delta.old_file()),
            after: entry(&delta.new_file()),
        };
        changed.insert(path, change);
    }
    Ok(changed)
}

pub(super) fn tree_of(repository: &Repository, commit: &Oid) -> Result<git2::Oid, git2::Error> {
    Ok(compared::tree_of(repository, git2::Oid::from_str(commit.as_str())?)?.id())
}

/// A tree's entry at a path; folders do not count.
pub(super) fn entry_at(repository: &Repository, tree: git2::Oid, path: &Path) -> Result<Option<Entry>, git2::Error> {
    match repository.find_tree(tree)?.get_path(path) {
        Ok(found) if found.kind() == Some(git2::ObjectType::Tree) => Ok(None),
        Ok(found) => Ok(Some(Entry {
            mode: u32::try_from(found.filemode()).unwrap_or_default(),
            id: found.id(),
        })),
        Err(error) if error.code() == git2::ErrorCode::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// A tree with these paths replaced; `None` = without it.
pub(super) fn replaced<'a>(
    repository: &Repository,
    tree: git2::Oid,
    paths: impl IntoIterator<Item = (&'a Path, Option<Entry>)>,
) -> Result<git2::Oid, git2::Error> {
    let mut index = Index::new()?;
    index.read_tree(&repository.find_tree(tree)?)?;
    let mut added = Vec::new();
    for (path, entry) in paths {
        match index.remove(path, 0) {
            Err(error) if error.code() != git2::ErrorCode::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        added.extend(entry.map(|entry| (path, entry)));
    }
    for (path, Entry { mode, id }) in added {
        index.add(&IndexEntry {
            ctime: IndexTime::new(0, 0),
            mtime: IndexTime::new(0, 0),
            dev: 0,
            ino: 0,
            mode,
            uid: 0,
            gid: 0,
            file_size: 0,
            id,
            flags: 0,
            flags_extended: 0,
            path: path.as_os_str().as_bytes().to_vec(),
        })?;
    }
    index.write_tree_to(repository)
}

/// Refuses paths that must not be written; the obstacles are submodules that cannot land so.
pub(super) fn check_names(changed: &Changed, submodules: Submodules) -> Result<Vec<Obstacle>, LandingError> {
    let mut obstacles = Vec::new();
    for (path, change) in changed {
        let odd = |part: &OsStr| {
            let name = part.to_string_lossy().to_lowercase();
            name == ".git" || name == "git~1" || name == ".." || name == "."
        };
        if path.iter().any(odd) || path.is_absolute() {
            return Err(GitError::UnsafePath { path: shown(path) }.into());
        }
        if !submodules.land(changed, path, change) {
            obstacles.push(Obstacle {
                path: shown(path),
                reason: "it is a submodule",
                kind: ObstacleKind::Content,
            });
        }
    }
    Ok(obstacles)
}

/// Refuses paths that must not be written, and files that only a filter program could convert.
pub(super) async fn check_paths(
    repository: &UserRepo,
    store: &UserShadow,
    changed: &Changed,
    submodules: Submodules,
) -> Result<(), LandingError> {
    let mut obstacles = check_names(changed, submodules)?;
    let paths: Vec<Vec<u8>> = changed
        .keys()
        .map(|path| path.as_os_str().as_bytes().to_owned())
        .collect();
    let filters = filters_of(|operation| store.shadow.git(operation), &paths).await?;
    for (path, filter) in filters {
        // Files of Git LFS are pointers in trees by now.
        if filter != FILTER && repository.has_filter(&filter) {
            obstacles.push(Obstacle {
                path: String::from_utf8_lossy(&path).into_owned(),
                reason: "it goes through a filter program, which is not run",
                kind: ObstacleKind::Content,
            });
        }
    }
    if obstacles.is_empty() {
        return Ok(());
    }
    obstacles.sort_by(|a, b| a.path.cmp(&b.path));
    Err(LandingError::Unsupported { paths: obstacles })
}

/// Whether two entries are the same to this person.
pub(super) fn same(one: Option<Entry>, other: Option<Entry>, trusts_mode: bool) -> bool {
    match (one, other) {
        // Where the executable bit means nothing, it makes no difference either.
        (Some(one), Some(other)) if !trusts_mode && one.is_file() && other.is_file() => one.id == other.id,
        (one, other) => one == other,
    }
}

/// True if all files below `path` are deleted, so that a file may take the folder's place.
pub(super) fn makes_room(changed: &Changed, path: &Path) -> bool {
    let mut below = changed.range(path.to_owned()..).skip_while(|(other, _)| *other == path);
    below
        .next()
        .is_some_and(|(other, change)| other.starts_with(path) && change.after.is_none())
}

/// The files that git would write for these entries, with the person's line endings.
pub(super) async fn rendered(
    store: &UserShadow,
    entries: &[(PathBuf, Entry)],
) -> Result<HashMap<PathBuf, Target>, GitError> {
    let (index, out) = (store.folder.path().join("render"), store.folder.path().join("out"));
    fs::create_dir_all(&out).map_err(GitError::io("create", &out))?;
    let git = |operation| store.shadow.git(operation).env("GIT_INDEX_FILE", &index);
    let mut lines = Vec::new();
    for (path, entry) in entries {
        lines.extend_from_slice(format!("{:06o} {}\t", entry.mode, entry.id).as_bytes());
        lines.extend_from_slice(path.as_os_str().as_bytes());
        lines.push(0);
    }
    git("update-index")
        .args(["-z", "--index-info"])
        .stdin(lines)
        .run()
        .await?;
    let prefix = format!("--prefix={}/", out.display());
    git("checkout-index")
        .args(["--all", "--force", "--quiet", &prefix])
        .run()
        .await?;
    let paths: Vec<PathBuf> = entries.iter().map(|(path, _)| path.clone()).collect();
    blocking("reading rendered files", move || {
        let read = |path: PathBuf| {
            let full = out.join(&path);
            let target = read_own(&full).map_err(GitError::io("read", &full))?;
            Ok((path, target))
        };
        paths.into_iter().map(read).collect()
    })
    .await
}

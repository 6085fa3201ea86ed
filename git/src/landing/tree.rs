//! A person's files beside the commits that are to change them: what differs between two
//! trees, what git would store for the files as they are, and what files git would write
//! for what it stores. All of it happens in a private git directory.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use git2::{DiffOptions, FileMode, Repository, Tree};

use super::files::{Seen, Target, read_own};
use super::{LandingError, Obstacle, shown};
use crate::beneath::Beneath;
use crate::error::{GitError, blocking};
use crate::snapshot::filters_of;
use crate::user_repo::{UserRepo, UserShadow};

/// What a tree has at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) mode: u32,
    pub(super) id: git2::Oid,
}

impl Entry {
    pub(super) fn is_file(self) -> bool {
        self.mode == u32::from(FileMode::Blob) || self.is_executable()
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

/// What a person has at a path, on the disk and as git would store it.
#[derive(Debug, Clone)]
pub(super) struct Present {
    pub(super) seen: Seen,
    /// `None` for what git does not store: nothing, folders, devices.
    pub(super) entry: Option<Entry>,
}

/// Changed paths in order.
pub(super) type Changed = BTreeMap<PathBuf, Change>;

/// The difference of two trees. Renames are deletions and additions.
pub(super) fn difference(repository: &Repository, before: &Tree<'_>, after: &Tree<'_>) -> Result<Changed, git2::Error> {
    let mut options = DiffOptions::new();
    options.include_typechange(true);
    let diff = repository.diff_tree_to_tree(Some(before), Some(after), Some(&mut options))?;
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

/// Refuses paths that must not be written, and those that only a program could convert.
pub(super) async fn check_paths(
    repository: &UserRepo,
    store: &UserShadow,
    changed: &Changed,
) -> Result<(), LandingError> {
    let mut obstacles = Vec::new();
    for (path, change) in changed {
        let odd = |part: &OsStr| {
            let name = part.to_string_lossy().to_lowercase();
            name == ".git" || name == "git~1" || name == ".." || name == "."
        };
        if path.iter().any(odd) || path.is_absolute() {
            return Err(GitError::UnsafePath { path: shown(path) }.into());
        }
        let link = u32::from(FileMode::Commit);
        if [change.before, change.after]
            .into_iter()
            .flatten()
            .any(|entry| entry.mode == link)
        {
            obstacles.push(Obstacle {
                path: shown(path),
                reason: "it is a submodule",
            });
        }
    }
    let paths: Vec<Vec<u8>> = changed
        .keys()
        .map(|path| path.as_os_str().as_bytes().to_owned())
        .collect();
    let filters = filters_of(|operation| store.shadow.git(operation), &paths).await?;
    for (path, filter) in filters {
        if repository.has_filter(&filter) {
            obstacles.push(Obstacle {
                path: String::from_utf8_lossy(&path).into_owned(),
                reason: "it goes through a filter program, which is not run",
            });
        }
    }
    if obstacles.is_empty() {
        return Ok(());
    }
    obstacles.sort_by(|a, b| a.path.cmp(&b.path));
    Err(LandingError::Conflicts { conflicts: obstacles })
}

/// What the person has at these paths.
pub(super) async fn present(
    repository: &UserRepo,
    store: &UserShadow,
    paths: Vec<PathBuf>,
) -> Result<HashMap<PathBuf, Present>, GitError> {
    let root = repository.root().to_owned();
    let seen = blocking("looking at files", move || {
        let beneath = Beneath::open(&root).map_err(GitError::io("open", &root))?;
        let look = |path: PathBuf| {
            let seen = beneath.look(&path).map_err(GitError::io("read", &path))?;
            Ok((path, seen))
        };
        paths.into_iter().map(look).collect::<Result<Vec<_>, GitError>>()
    })
    .await?;
    let files = seen.iter().filter(|(_, seen)| matches!(seen, Seen::File { .. }));
    let names: Vec<u8> = files.clone().flat_map(|(path, _)| quoted(path)).collect();
    let ids = store
        .shadow
        .git("hash-object")
        .args(["-w", "--stdin-paths"])
        .stdin(names)
        .run()
        .await?;
    let text = std::str::from_utf8(&ids).map_err(|_| GitError::unexpected("hash-object", &ids))?;
    let mut stored = HashMap::new();
    for ((path, _), line) in files.zip(text.lines()) {
        let id = git2::Oid::from_str(line).map_err(GitError::library("read an object id"))?;
        stored.insert(path.clone(), id);
    }
    let mut present = HashMap::with_capacity(seen.len());
    for (path, seen) in seen {
        let entry = match &seen {
            Seen::File { executable, .. } => {
                let id = stored
                    .get(&path)
                    .ok_or_else(|| GitError::unexpected("hash-object", &ids))?;
                Some(Entry::file(*id, *executable))
            }
            Seen::Link(target) => {
                let id = git2::Oid::hash_object(git2::ObjectType::Blob, target);
                let id = id.map_err(GitError::library("name a link"))?;
                Some(Entry {
                    mode: FileMode::Link.into(),
                    id,
                })
            }
            Seen::Absent | Seen::Folder | Seen::Special | Seen::Beyond(_) => None,
        };
        present.insert(path, Present { seen, entry });
    }
    Ok(present)
}

/// Whether two entries are the same to this person.
pub(super) fn same(one: Option<Entry>, other: Option<Entry>, trusts_mode: bool) -> bool {
    match (one, other) {
        // Where the executable bit means nothing, it makes no difference either.
        (Some(one), Some(other)) if !trusts_mode && one.is_file() && other.is_file() => one.id == other.id,
        (one, other) => one == other,
    }
}

/// Whether files below `path` go away, so that a folder there may become a file.
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

/// A path on a line of its own, as git unquotes it.
fn quoted(path: &Path) -> Vec<u8> {
    let mut line = vec![b'"'];
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'"' | b'\\' => line.extend_from_slice(&[b'\\', *byte]),
            b' '..=b'~' => line.push(*byte),
            other => line.extend_from_slice(format!("\\{other:03o}").as_bytes()),
        }
    }
    line.extend_from_slice(b"\"\n");
    line
}

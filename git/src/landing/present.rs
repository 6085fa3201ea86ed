//! The person's version of some paths: in the index, on the disk, and as git would store the disk's
//! content. Everything is read through a private git directory.

use std::collections::{HashMap, HashSet};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use git2::{FileMode, Repository};
use kage_core::id::Digest;

use super::files::Seen;
use super::merge_tree::parse_stage;
use super::shown;
use super::tree::Entry;
use crate::beneath::Beneath;
use crate::command::GitCommand;
use crate::error::{GitError, blocking};
use crate::large::{FILTER, Pointer, stored_as};
use crate::snapshot::filters_of;
use crate::staging::{lines, split};
use crate::user_repo::{UserRepo, UserShadow};

/// The person's version of a path, on the disk and as git would store it.
#[derive(Debug, Clone)]
pub(super) struct Present {
    pub(super) seen: Seen,
    /// `None` for anything that git does not store: missing files, folders, devices.
    pub(super) entry: Option<Entry>,
    /// It is in the index alone, and stays there.
    pub(super) not_on_disk: bool,
}

/// The index's version of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Indexed {
    Entry(Entry),
    /// Conflicts that are not resolved.
    Unmerged,
}

/// Entries of the index by path.
#[derive(Debug, Default)]
pub(super) struct IndexEntries {
    entries: HashMap<PathBuf, Indexed>,
    /// Paths that the person keeps off the disk (skip-worktree): only the index has them.
    not_on_disk: HashSet<PathBuf>,
}

impl IndexEntries {
    /// Reads the copy of the person's index.
    pub(super) async fn read(store: &UserShadow) -> Result<Self, GitError> {
        Self::list(store.shadow.git("ls-files")).await
    }

    async fn list(command: GitCommand) -> Result<Self, GitError> {
        let listed = command.args(["--stage", "-t", "-z"]).run().await?;
        let (mut entries, mut not_on_disk) = (HashMap::new(), HashSet::new());
        for line in split(&listed) {
            let unexpected = || GitError::unexpected("ls-files", line);
            let [tag, b' ', staged @ ..] = line else {
                return Err(unexpected());
            };
            let (path, stage, entry) = parse_stage(staged).ok_or_else(unexpected)?;
            // S = skip-worktree, in either case of the letter.
            if tag.eq_ignore_ascii_case(&b'S') {
                not_on_disk.insert(path.clone());
            }
            let indexed = if stage == 0 {
                Indexed::Entry(entry)
            } else {
                Indexed::Unmerged
            };
            entries.insert(path, indexed);
        }
        Ok(Self { entries, not_on_disk })
    }

    pub(super) fn get(&self, path: &Path) -> Option<Indexed> {
        self.entries.get(path).copied()
    }

    pub(super) fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        self.entries.keys()
    }

    /// Whether a path is not to be on the disk, as outside a sparse checkout.
    pub(super) fn is_not_on_disk(&self, path: &Path) -> bool {
        self.not_on_disk.contains(path)
    }
}

/// Reads the person's version of these paths.
pub(super) async fn present(
    repository: &UserRepo,
    store: &UserShadow,
    index: &IndexEntries,
    paths: Vec<PathBuf>,
) -> Result<HashMap<PathBuf, Present>, GitError> {
    let (root, git_dir) = (repository.root().to_owned(), store.shadow.git_dir().to_owned());
    let seen = blocking("looking at files", move || {
        let beneath = Beneath::open(&root).map_err(GitError::io("open", &root))?;
        let objects = Repository::open_bare(&git_dir).map_err(GitError::library("open a git directory"))?;
        let look = |path: PathBuf| {
            let seen = beneath.look(&path).map_err(GitError::io("read", &path))?;
            let link = match &seen {
                Seen::Link(target) => Some(objects.blob(target).map_err(GitError::library("store a link"))?),
                Seen::Absent | Seen::File { .. } | Seen::Folder | Seen::Special | Seen::Beyond(_) => None,
            };
            Ok((path, seen, link))
        };
        paths.into_iter().map(look).collect::<Result<Vec<_>, GitError>>()
    })
    .await?;
    let files = seen.iter().filter(|(_, seen, _)| matches!(seen, Seen::File { .. }));
    let files: Vec<&Path> = files.map(|(path, _, _)| path.as_path()).collect();
    let large = stored_large(repository, store, index, &seen).await?;
    let plain: Vec<&Path> = files.into_iter().filter(|path| !large.contains_key(*path)).collect();
    let mut stored = stored(store, index, &plain).await?;
    let large = large.into_iter().map(|(path, entry)| (path, Indexed::Entry(entry)));
    stored.entries.extend(large);
    let mut present = HashMap::with_capacity(seen.len());
    for (path, seen, link) in seen {
        let not_on_disk = seen == Seen::Absent && index.is_not_on_disk(&path);
        let entry = match &seen {
            Seen::Absent if not_on_disk => match index.get(&path) {
                Some(Indexed::Entry(entry)) => Some(entry),
                Some(Indexed::Unmerged) | None => None,
            },
            Seen::File { .. } => match stored.get(&path) {
                Some(Indexed::Entry(entry)) => Some(entry),
                Some(Indexed::Unmerged) | None => return Err(GitError::NotTaken { path: shown(&path) }),
            },
            Seen::Link(_) | Seen::Absent | Seen::Folder | Seen::Special | Seen::Beyond(_) => link.map(|id| Entry {
                mode: FileMode::Link.into(),
                id,
            }),
        };
        present.insert(
            path,
            Present {
                seen,
                entry,
                not_on_disk,
            },
        );
    }
    Ok(present)
}

/// The entries that `git add` would make of these files. It starts from their index entries,
/// because line endings and, where the executable bit means nothing, the mode depend on them. It
/// removes the data by which git would skip reading a file.
async fn stored(store: &UserShadow, index: &IndexEntries, files: &[&Path]) -> Result<IndexEntries, GitError> {
    if files.is_empty() {
        return Ok(IndexEntries::default());
    }
    let own = store.folder.path().join("present");
    // A remainder of an earlier call.
    if own.exists() {
        std::fs::remove_file(&own).map_err(GitError::io("delete", &own))?;
    }
    let git = |operation| {
        let command = store.shadow.git(operation).env("GIT_INDEX_FILE", &own);
        command.config("core.splitIndex", "false")
    };
    let mut known = Vec::new();
    for path in files {
        if let Some(Indexed::Entry(entry)) = index.get(path) {
            known.extend_from_slice(format!("{:06o} {}\t", entry.mode, entry.id).as_bytes());
            known.extend_from_slice(path.as_os_str().as_bytes());
            known.push(0);
        }
    }
    git("update-index")
        .args(["-z", "--index-info"])
        .stdin(known)
        .run()
        .await?;
    let names: Vec<&[u8]> = files.iter().map(|path| path.as_os_str().as_bytes()).collect();
    git("update-index")
        .args(["--add", "--replace", "-z", "--stdin"])
        .stdin(lines(&names))
        .run()
        .await?;
    IndexEntries::list(git("ls-files")).await
}

/// The entries of files behind Git LFS: pointers, as git-lfs makes them. Where the index has the content
/// itself, somebody added it without git-lfs, and it is unchanged.
async fn stored_large(
    repository: &UserRepo,
    store: &UserShadow,
    index: &IndexEntries,
    seen: &[(PathBuf, Seen, Option<git2::Oid>)],
) -> Result<HashMap<PathBuf, Entry>, GitError> {
    if !repository.has_filter(FILTER) {
        return Ok(HashMap::new());
    }
    let file = |(path, seen, _): &(PathBuf, Seen, Option<git2::Oid>)| match seen {
        Seen::File { content, executable } => Some((path.clone(), content.clone(), *executable)),
        Seen::Absent | Seen::Link(_) | Seen::Folder | Seen::Special | Seen::Beyond(_) => None,
    };
    let files: Vec<_> = seen.iter().filter_map(file).collect();
    let names: Vec<Vec<u8>> = files
        .iter()
        .map(|(path, ..)| path.as_os_str().as_bytes().to_vec())
        .collect();
    let filters = filters_of(|operation| store.shadow.git(operation), &names).await?;
    let is_large = |path: &Path| {
        let filter = filters.get(path.as_os_str().as_bytes());
        filter.is_some_and(|filter| filter == FILTER)
    };
    let files: Vec<_> = files
        .into_iter()
        .filter(|(path, ..)| is_large(path))
        .map(|(path, content, executable)| (index.get(&path), path, content, executable))
        .collect();
    if files.is_empty() {
        return Ok(HashMap::new());
    }
    let (root, git_dir) = (repository.root().to_owned(), store.shadow.git_dir().to_owned());
    blocking("looking at files of Git LFS", move || {
        let objects = Repository::open_bare(&git_dir).map_err(GitError::library("open a git directory"))?;
        let library = || GitError::library("store a file of Git LFS");
        let mut entries = HashMap::new();
        for (indexed, path, digest, executable) in files {
            let full = root.join(&path);
            let content = std::fs::read(&full).map_err(GitError::io("read", &full))?;
            if Digest::of(&content) != digest {
                return Err(GitError::NotTaken { path: shown(&path) });
            }
            let as_it_is = git2::Oid::hash_object(git2::ObjectType::Blob, &content).map_err(library())?;
            let before = match indexed {
                Some(Indexed::Entry(entry)) => Some(entry.id),
                Some(Indexed::Unmerged) | None => None,
            };
            let known = before.filter(|before| {
                let text = objects.find_blob(*before);
                *before == as_it_is
                    || text.is_ok_and(|text| Pointer::read(text.content()).is_some_and(|it| it.is_of(&content)))
            });
            let id = match (known, stored_as(&content)) {
                (Some(known), _) => known,
                (None, Some(pointer)) => objects.blob(pointer.to_text().as_bytes()).map_err(library())?,
                (None, None) => objects.blob(&content).map_err(library())?,
            };
            entries.insert(path, Entry::file(id, executable));
        }
        Ok(entries)
    })
    .await
}

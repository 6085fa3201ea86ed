//! Proves by hash that the files of a worktree are those of a commit, before a verdict is made on them:
//! neither what git wrote down of them, nor an object's file in the mirror, nor what a checkout that was kept
//! had in it is believed. It owns the comparison; whoever makes a worktree decides when it is worth it.
//!
//! ```text
//! the commit's id ─hash─▶ its trees ─▶ every name below the folder ─hash─▶ the id that the tree has for it
//!                                                  │
//!                      other bytes (line endings): the object, hashed, and written once more by git
//! ```

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use git2::{ObjectType, Oid as Id, Repository};
use kage_core::id::Oid;
use rustix::fs::FileType;
use rustix::io::Errno;
use tempfile::TempDir;

use super::submodules::filled_at;
use super::{Worktree, listed};
use crate::beneath::{Beneath, Parent};
use crate::error::{GitError, blocking};
use crate::loose::check_loose;
use crate::mirror::in_threads;
use crate::objects::{hash_open_file, id_of, mode, open_file};
use crate::removal::{entries, open_folder};
use crate::shadow::Shadow;

/// What is proved.
struct Subject {
    tree: Id,
    /// The paths that are proved, and others may be there; `None`: all, and no others.
    only: Option<HashSet<PathBuf>>,
    /// Folders of submodules that have their files, relative to the top: they are subjects of their own.
    filled: HashSet<PathBuf>,
}

/// Names, and what each may be.
type Entries = HashMap<OsString, Vec<(u32, Id)>>;

/// A folder of a tree.
struct Folder {
    /// Relative to the top.
    path: PathBuf,
    /// What is to be compared in it.
    entries: Entries,
    /// Whether other names may be there too.
    open: bool,
}

/// A file with other bytes than its object.
#[derive(Debug)]
struct Unlike {
    path: PathBuf,
    id: Id,
}

impl Worktree {
    /// Proves that the files are exactly those of the commit that the worktree was made of. Submodules are
    /// empty folders yet, and nothing was included.
    ///
    /// # Errors
    /// [`GitError::NotAsCommitted`] names the first path that differs, is missing or should not be there.
    /// Other errors when an object of the commit is damaged, or the file system refuses.
    pub async fn prove(&self) -> Result<(), GitError> {
        let (mirror, base) = (self.mirror.path().to_owned(), self.base.clone());
        let tree = blocking("proving files", move || tree_of(&mirror, &base)).await?;
        let all = Subject {
            tree,
            only: None,
            filled: HashSet::new(),
        };
        self.prove_folder(&self.shadow, &self.path, all).await
    }

    /// Proves the same of the folders of submodules that were filled from a commit of names.
    ///
    /// # Errors
    /// As [`Worktree::prove`].
    pub async fn prove_submodules(&self, names: &Oid) -> Result<(), GitError> {
        let all = filled_at(self, names).await?;
        for filled in &all {
            let folder = self.path.join(&filled.path);
            let shadow = Shadow::new(&filled.git_dir, &folder, Some(self.mirror.objects()));
            let inside = all
                .iter()
                .filter_map(|other| other.path.strip_prefix(&filled.path).ok());
            let subject = Subject {
                tree: id_of(&filled.tree)?,
                only: None,
                filled: inside.map(Path::to_owned).collect(),
            };
            let proved = self.prove_folder(&shadow, &folder, subject).await;
            proved.map_err(|error| match error {
                GitError::NotAsCommitted { path } => differs(&filled.path.join(path)),
                error => error,
            })?;
        }
        Ok(())
    }

    /// Proves that these paths have the content that they have in `base`.
    pub(super) async fn prove_paths(&self, base: &Oid, paths: &HashSet<PathBuf>) -> Result<(), GitError> {
        if paths.is_empty() {
            return Ok(());
        }
        let (mirror, base) = (self.mirror.path().to_owned(), base.clone());
        let tree = blocking("proving files", move || tree_of(&mirror, &base)).await?;
        let some = Subject {
            tree,
            only: Some(paths.clone()),
            filled: HashSet::new(),
        };
        self.prove_folder(&self.shadow, &self.path, some).await
    }

    /// Writes these paths as `base` has them, whatever git takes what is there for.
    pub(super) async fn write_again(&self, base: &Oid, paths: &HashSet<PathBuf>) -> Result<(), GitError> {
        let folder = folder_beside(&self.shadow).await?;
        let index = folder.path().join("index");
        self.shadow
            .git("read-tree")
            .env("GIT_INDEX_FILE", &index)
            .arg(base.as_str())
            .run()
            .await?;
        self.write_indexed(&index, paths).await
    }

    /// Proves the files below `folder`, which `shadow` is over.
    async fn prove_folder(&self, shadow: &Shadow, folder: &Path, subject: Subject) -> Result<(), GitError> {
        let (mirror, top, tree) = (self.mirror.path().to_owned(), folder.to_owned(), subject.tree);
        let unlike = blocking("proving files", move || {
            let folders = folders_of(&mirror, &top, &subject)?;
            let unlike = compare(&top, &folders, &subject.filled)?;
            check_objects(&mirror, &unlike)?;
            Ok::<_, GitError>(unlike)
        })
        .await?;
        if unlike.is_empty() {
            return Ok(());
        }
        let again = WrittenAgain::of(shadow, tree, &unlike).await?;
        let top = folder.to_owned();
        blocking("proving files", move || again.compare(&top, &unlike)).await
    }
}

fn tree_of(mirror: &Path, commit: &Oid) -> Result<Id, GitError> {
    let failed = || GitError::library("read the files of a commit");
    let repository = Repository::open_bare(mirror).map_err(failed())?;
    check_loose(mirror, id_of(commit)?)?;
    let commit = repository.find_commit(id_of(commit)?).map_err(failed())?;
    Ok(commit.tree_id())
}

/// The folders of a tree that have something to compare.
fn folders_of(mirror: &Path, top: &Path, subject: &Subject) -> Result<Vec<Folder>, GitError> {
    let failed = || GitError::library("read the files of a commit");
    let repository = Repository::open_bare(mirror).map_err(failed())?;
    let ignores_case = fs::symlink_metadata(top.join(".GIT")).is_ok();
    let is_meant = |path: &Path| subject.only.as_ref().is_none_or(|only| only.contains(path));
    let open = subject.only.is_some();
    let mut found = Vec::new();
    let mut waiting = vec![(PathBuf::new(), subject.tree)];
    while let Some((path, id)) = waiting.pop() {
        check_loose(mirror, id)?;
        let tree = repository.find_tree(id).map_err(failed())?;
        let mut entries: Entries = HashMap::new();
        for entry in &tree {
            let name = OsString::from_vec(entry.name_bytes().to_vec());
            let kind = u32::try_from(entry.filemode()).unwrap_or_default();
            let full = path.join(&name);
            let is_folder = kind == mode::FOLDER;
            if (open && (is_folder || kind == mode::SUBMODULE)) || !(is_folder || is_meant(&full)) {
                // Not compared itself.
            } else {
                // Some histories have a name twice: then the file is one of the two.
                entries.entry(name).or_default().push((kind, entry.id()));
            }
            if is_folder {
                waiting.push((full, entry.id()));
            }
        }
        if ignores_case {
            join_twins(&mut entries);
        }
        if !(open && entries.is_empty()) {
            found.push(Folder { path, entries, open });
        }
    }
    drop_empty(&mut found);
    Ok(found)
}

/// Drops folders without a file in them, which no checkout has.
fn drop_empty(found: &mut Vec<Folder>) {
    let is_folder = |(kind, _): &(u32, Id)| *kind == mode::FOLDER;
    let mut kept = HashSet::from([PathBuf::new()]);
    for folder in &*found {
        if !folder.entries.values().flatten().all(is_folder) {
            kept.extend(folder.path.ancestors().map(Path::to_owned));
        }
    }
    found.retain(|folder| kept.contains(&folder.path));
    for Folder { path, entries, .. } in found {
        entries.retain(|name, wanted| !wanted.iter().all(is_folder) || kept.contains(&path.join(name)));
    }
}

/// Where the disk takes two names of a commit for one, the file is one of the two.
fn join_twins(entries: &mut Entries) {
    let folded = |name: &OsString| name.to_string_lossy().to_lowercase();
    let mut twins: HashMap<String, Vec<(u32, Id)>> = HashMap::new();
    for (name, wanted) in &*entries {
        twins.entry(folded(name)).or_default().extend(wanted);
    }
    for (name, wanted) in entries {
        wanted.clone_from(&twins[&folded(name)]);
    }
}

/// Compares all folders with what is on the disk; returns the files with other bytes.
fn compare(top: &Path, folders: &[Folder], filled: &HashSet<PathBuf>) -> Result<Vec<Unlike>, GitError> {
    let beneath = Beneath::open(top).map_err(GitError::io("open", top))?;
    let next = AtomicUsize::new(0);
    let files = folders.iter().map(|folder| folder.entries.len()).sum();
    let work = || {
        let mut unlike = Vec::new();
        while let Some(folder) = folders.get(next.fetch_add(1, Ordering::Relaxed)) {
            compare_folder(&beneath, top, (folder, filled), &mut unlike)?;
        }
        Ok(unlike)
    };
    let found = in_threads(files, work)?;
    Ok(found.into_iter().flatten().collect())
}

fn compare_folder(
    beneath: &Beneath,
    top: &Path,
    (folder, filled): (&Folder, &HashSet<PathBuf>),
    unlike: &mut Vec<Unlike>,
) -> Result<(), GitError> {
    let below = folder.path.join("x");
    let failed = |error: io::Error| GitError::io("open", &top.join(&folder.path))(error);
    let Parent::Open(opened, _) = beneath.parent(&below, false).map_err(failed)? else {
        return Err(differs(&folder.path));
    };
    let mut missing: HashSet<&OsString> = folder.entries.keys().collect();
    for (name, kind) in entries(&opened).map_err(|error| failed(error.into()))? {
        let path = folder.path.join(&name);
        let Some(wanted) = folder.entries.get(&name) else {
            let is_own = name == ".git" && folder.path == Path::new("");
            if folder.open || is_own {
                continue;
            }
            return Err(differs(&path));
        };
        missing.remove(&name);
        if kind == FileType::Directory && filled.contains(&path) {
            continue;
        }
        let same = compare_entry(&opened, &path, kind, wanted, unlike);
        if !same.map_err(GitError::io("read", &top.join(&path)))? {
            return Err(differs(&path));
        }
    }
    missing.retain(|name| {
        let wanted = &folder.entries[*name];
        let is_submodule = wanted.iter().all(|(kind, _)| *kind == mode::SUBMODULE);
        // Of two names that are one on this disk, one is listed.
        let is_twin = wanted.len() > 1;
        !is_submodule && !is_twin
    });
    match missing.into_iter().next() {
        Some(name) => Err(differs(&folder.path.join(name))),
        None => Ok(()),
    }
}

/// Whether what is at a name can be what a tree has there. A file with other bytes is noted.
fn compare_entry(
    folder: &OwnedFd,
    path: &Path,
    kind: FileType,
    wanted: &[(u32, Id)],
    unlike: &mut Vec<Unlike>,
) -> io::Result<bool> {
    let name = path.file_name().unwrap_or_default();
    let ids = |is: fn(u32) -> bool| wanted.iter().filter(move |(mode, _)| is(*mode)).map(|(_, id)| *id);
    match kind {
        FileType::Directory if ids(|kind| kind == mode::FOLDER).next().is_some() => Ok(true),
        FileType::Directory => {
            let inside = entries(&open_folder(folder.as_fd(), name)?)?;
            Ok(inside.is_empty() && ids(|kind| kind == mode::SUBMODULE).next().is_some())
        }
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(folder, name, Vec::new())?;
            let id = Id::hash_object(ObjectType::Blob, target.as_bytes()).map_err(io::Error::other)?;
            Ok(ids(|kind| kind == mode::LINK).any(|wanted| wanted == id))
        }
        FileType::RegularFile => {
            let mut files = ids(|kind| !matches!(kind, mode::LINK | mode::FOLDER | mode::SUBMODULE));
            let file = match open_file(folder, name) {
                Ok(file) => file,
                // It became something else meanwhile.
                Err(Errno::NOENT | Errno::LOOP) => return Ok(false),
                Err(error) => return Err(error.into()),
            };
            let id = hash_open_file(&file)?;
            let Some(first) = files.next() else { return Ok(false) };
            if first != id && !files.any(|other| other == id) {
                unlike.push(Unlike {
                    path: path.to_owned(),
                    id: first,
                });
            }
            Ok(true)
        }
        _ => Ok(false),
    }
}

fn differs(path: &Path) -> GitError {
    GitError::NotAsCommitted { path: path.to_owned() }
}

/// Hashes the objects that git is about to write once more.
fn check_objects(mirror: &Path, unlike: &[Unlike]) -> Result<(), GitError> {
    if unlike.is_empty() {
        return Ok(());
    }
    let failed = || GitError::library("read the files of a commit");
    let repository = Repository::open_bare(mirror).map_err(failed())?;
    let objects = repository.odb().map_err(failed())?;
    for file in unlike {
        check_loose(mirror, file.id)?;
        objects.read(file.id).map_err(failed())?;
    }
    Ok(())
}

/// A temporary folder for an index of its own, in the git directory.
async fn folder_beside(shadow: &Shadow) -> Result<TempDir, GitError> {
    let git_dir = shadow.git_dir().to_owned();
    blocking("proving files", move || {
        let folder = tempfile::Builder::new().prefix("proof-").tempdir_in(&git_dir);
        folder.map_err(GitError::io("make a folder in", &git_dir))
    })
    .await
}

/// Files as git writes them for these attributes, in a folder of their own.
struct WrittenAgain {
    files: PathBuf,
    _folder: TempDir,
}

impl WrittenAgain {
    async fn of(shadow: &Shadow, tree: Id, unlike: &[Unlike]) -> Result<Self, GitError> {
        let folder = folder_beside(shadow).await?;
        let (index, files) = (folder.path().join("index"), folder.path().join("files"));
        let git = |operation| shadow.git(operation).env("GIT_INDEX_FILE", &index);
        git("read-tree").arg(tree.to_string()).run().await?;
        let mut prefix = OsString::from("--prefix=");
        prefix.push(&files);
        prefix.push("/");
        git("checkout-index")
            .arg(prefix)
            .args(["--quiet", "-z", "--stdin"])
            .stdin(listed(unlike.iter().map(|file| &file.path)))
            .run()
            .await?;
        Ok(Self { files, _folder: folder })
    }

    fn compare(&self, top: &Path, unlike: &[Unlike]) -> Result<(), GitError> {
        let beneath = Beneath::open(top).map_err(GitError::io("open", top))?;
        for Unlike { path, .. } in unlike {
            let full = top.join(path);
            let hash = |file: &fs::File| hash_open_file(file).map_err(GitError::io("read", &full));
            let again = fs::File::open(self.files.join(path)).map_err(|_| differs(path))?;
            let Parent::Open(folder, name) = beneath.parent(path, false).map_err(GitError::io("open", &full))? else {
                return Err(differs(path));
            };
            let file = open_file(&folder, name).map_err(|_| differs(path))?;
            if hash(&file)? != hash(&again)? {
                return Err(differs(path));
            }
        }
        Ok(())
    }
}

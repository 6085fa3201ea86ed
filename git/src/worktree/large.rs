//! Files behind Git LFS in a worktree: where the commit of names has the content that a pointer names, the
//! file has that content, as `git lfs checkout` leaves it. The indexes say of the file what they say of
//! the pointer, so that git finds nothing changed. What is not so any more is the session's change.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::time::{Duration, SystemTime};

use git2::{Index, IndexTime, ObjectType, Repository};
use kage_core::id::Oid;
use rustix::fs::{Mode, OFlags};

use super::Worktree;
use crate::beneath::{Beneath, Parent};
use crate::error::{GitError, blocking};
use crate::large::{self, Filled, FilledFiles, LARGE, Pointer, entry_of, record, unchanged};
use crate::left_out::entry_in;
use crate::mirror::FIRST_BESIDE;
use crate::objects::{hash_open_file, id_of, mode, open_file};

/// How old the written files are made: git reads a file again that is as new as the index that has it, and
/// would find that it is no pointer.
const AGE: Duration = Duration::from_secs(10);

impl Worktree {
    /// Gives files that are pointers their content, as far as a commit of names has it. From then on a
    /// file with its content counts as the pointer in checkpoints and results of this worktree.
    ///
    /// # Errors
    /// When the commit is not in the mirror, or the file system refuses.
    pub async fn fill_large(&self, commit: &Oid) -> Result<(), GitError> {
        let (mirror, base, commit) = (self.mirror.path().to_owned(), self.base.clone(), commit.clone());
        let shadow = self.shadow.clone();
        let all = blocking("reading files of Git LFS", move || {
            let all = known(&mirror, &base, &commit)?;
            // Before the first is written: from then on it must not be taken for a change.
            if !all.is_empty() {
                record(&shadow, &all)?;
            }
            Ok::<_, GitError>(all)
        });
        let all = all.await?;
        self.write_contents(all, true).await
    }

    /// The same after files were put back, of which git has the pointers.
    /// `anew`: the index of the worktree's own repository still has the entries of its base.
    pub(crate) async fn refill_large(&self, anew: bool) -> Result<(), GitError> {
        self.write_contents(large::filled(&self.shadow)?, anew).await
    }

    /// Those of `paths` that have the content of their pointer still, and whether each may be executed.
    pub(crate) async fn unchanged_large(
        &self,
        paths: &[impl AsRef<[u8]>],
    ) -> Result<HashMap<PathBuf, (Filled, bool)>, GitError> {
        let files = large::filled(&self.shadow)?;
        let path = |path: &[u8]| Path::new(OsStr::from_bytes(path)).to_owned();
        let mut paths: Vec<PathBuf> = paths.iter().map(|bytes| path(bytes.as_ref())).collect();
        paths.retain(|path| files.contains_key(path));
        if paths.is_empty() {
            return Ok(HashMap::new());
        }
        let root = self.path.clone();
        blocking("reading files of Git LFS", move || {
            unchanged(&root, &files, paths.iter().map(PathBuf::as_path))
        })
        .await
    }

    /// Those of the new `paths` that are too large for a result and have the content of a pointer, because
    /// its file was moved or copied, and whether each may be executed.
    pub(crate) async fn moved_large(
        &self,
        paths: &[impl AsRef<[u8]>],
    ) -> Result<HashMap<PathBuf, (Filled, bool)>, GitError> {
        let files = large::filled(&self.shadow)?;
        let most = self.rules.max_file_bytes;
        if files.values().all(|filled| filled.size <= most) {
            return Ok(HashMap::new());
        }
        let path = |path: &[u8]| Path::new(OsStr::from_bytes(path)).to_owned();
        let paths: Vec<PathBuf> = paths.iter().map(|bytes| path(bytes.as_ref())).collect();
        let root = self.path.clone();
        blocking("reading files of Git LFS", move || {
            let mut found = HashMap::new();
            for path in paths {
                let size = fs::symlink_metadata(root.join(&path)).map_or(0, |found| found.len());
                for filled in files.values().filter(|filled| filled.size == size && size > most) {
                    let one = FilledFiles::from([(path.clone(), *filled)]);
                    let same = unchanged(&root, &one, std::iter::once(path.as_path()))?;
                    if !same.is_empty() {
                        found.extend(same);
                        break;
                    }
                }
            }
            Ok(found)
        })
        .await
    }

    /// Writes the contents where the pointers are. `anew`: the session's own index is fresh, too.
    async fn write_contents(&self, files: FilledFiles, anew: bool) -> Result<(), GitError> {
        if files.is_empty() {
            return Ok(());
        }
        let (mirror, root, private) = (
            self.mirror.path().to_owned(),
            self.path.clone(),
            self.shadow.git_dir().to_owned(),
        );
        let index = self.shadow.index();
        blocking("writing files of Git LFS", move || {
            let repository = Repository::open_bare(&mirror).map_err(GitError::library("open a mirror"))?;
            let beneath = Beneath::open(&root).map_err(GitError::io("open", &root))?;
            let mut written = HashSet::new();
            for (path, filled) in &files {
                let write = || write(&beneath, &repository, &private, path, filled);
                if write().map_err(GitError::io("write", &root.join(path)))? {
                    written.insert(path.clone());
                }
            }
            let own = root.join(".git/index");
            for index in [Some(&index), anew.then_some(&own)].into_iter().flatten() {
                note(index, &root, &files, &written)?;
            }
            Ok::<_, GitError>(())
        })
        .await?;
        // What is known of the files is loaded with the index.
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = None;
        Ok(())
    }
}

/// Those files of a commit of names that are pointers to these contents in the base.
fn known(mirror: &Path, base: &Oid, commit: &Oid) -> Result<FilledFiles, GitError> {
    let library = || GitError::library("read the files of Git LFS of a base");
    let repository = Repository::open_bare(mirror).map_err(library())?;
    let named = repository.find_commit(id_of(commit)?).map_err(library())?;
    let base = repository.find_commit(id_of(base)?).map_err(library())?.tree_id();
    let odb = repository.odb().map_err(library())?;
    let mut files = FilledFiles::new();
    for parent in named.parents().skip(FIRST_BESIDE) {
        let tree = parent.tree().map_err(library())?;
        let Some(list) = tree
            .get_name(LARGE)
            .filter(|list| list.kind() == Some(ObjectType::Blob))
        else {
            continue;
        };
        let list = repository.find_blob(list.id()).map_err(library())?;
        for (digest, path) in large::read(list.content()) {
            let Some((mode::FILE | mode::PROGRAM, pointer)) = entry_in(&repository, base, &path) else {
                continue;
            };
            let Some(text) = repository.find_blob(pointer).ok() else {
                continue;
            };
            let Some(said) = Pointer::read(text.content()) else {
                continue;
            };
            let Some(content) = tree.get_name(&entry_of(&digest)) else {
                continue;
            };
            let header = odb.read_header(content.id());
            let is_it = header.is_ok_and(|(size, kind)| kind == ObjectType::Blob && size as u64 == said.size);
            if said.digest == digest && !said.has_extensions && is_it {
                let (content, size) = (content.id(), said.size);
                files.insert(path, Filled { pointer, content, size });
            }
        }
    }
    Ok(files)
}

/// Writes a content where its pointer is; false when something else is there.
fn write(beneath: &Beneath, repository: &Repository, private: &Path, path: &Path, filled: &Filled) -> io::Result<bool> {
    let Parent::Open(folder, name) = beneath.parent(path, false)? else {
        return Ok(false);
    };
    let Ok(file) = open_file(&folder, name) else {
        return Ok(false);
    };
    let meta = file.metadata()?;
    if !meta.is_file() || meta.len() >= large::MAX_POINTER_BYTES as u64 || hash_open_file(&file)? != filled.pointer {
        return Ok(false);
    }
    let content = repository.find_blob(filled.content).map_err(io::Error::other)?;
    let text = repository.find_blob(filled.pointer).map_err(io::Error::other)?;
    // What a peer says a content is, it is only if it has the digest.
    if !Pointer::read(text.content()).is_some_and(|pointer| pointer.is_of(content.content())) {
        return Ok(false);
    }
    let then = SystemTime::now() - AGE;
    let part = private.join("lfs-part");
    let fill = |mut file: File| {
        file.write_all(content.content())?;
        file.set_permissions(meta.permissions())?;
        file.set_modified(then)
    };
    fill(File::create(&part)?)?;
    if rustix::fs::renameat(rustix::fs::CWD, &part, &folder, name).is_ok() {
        return Ok(true);
    }
    // Kage's own files are on another file system.
    fs::remove_file(&part)?;
    let flags = OFlags::WRONLY | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    fill(File::from(rustix::fs::openat(&folder, name, flags, Mode::empty())?))?;
    Ok(true)
}

/// Says in an index of the pointers that the files are unchanged.
fn note(path: &Path, root: &Path, files: &FilledFiles, written: &HashSet<PathBuf>) -> Result<(), GitError> {
    if written.is_empty() {
        return Ok(());
    }
    let library = || GitError::library("write an index");
    let mut index = Index::open(path).map_err(library())?;
    for file in written {
        let Some(mut entry) = index.get_path(file, 0) else {
            continue;
        };
        let Some(filled) = files.get(file).filter(|filled| filled.pointer == entry.id) else {
            continue;
        };
        let Ok(meta) = fs::symlink_metadata(root.join(file)) else {
            continue;
        };
        if !meta.is_file() || meta.len() != filled.size {
            continue;
        }
        let time = |seconds: i64, nanoseconds: i64| {
            // git keeps the lower half of large numbers, too.
            IndexTime::new(low(seconds).cast_signed(), low(nanoseconds))
        };
        entry.ctime = time(meta.ctime(), meta.ctime_nsec());
        entry.mtime = time(meta.mtime(), meta.mtime_nsec());
        (entry.dev, entry.ino) = (low(meta.dev()), low(meta.ino()));
        (entry.uid, entry.gid) = (meta.uid(), meta.gid());
        entry.file_size = low(meta.len());
        index.add(&entry).map_err(library())?;
    }
    index.write().map_err(library())
}

/// The lower half of a number.
fn low(number: impl TryInto<i128>) -> u32 {
    let number = number.try_into().unwrap_or_default();
    u32::try_from(number & i128::from(u32::MAX)).unwrap_or_default()
}

//! Checkpoints of a worktree: all of its files as a commit, byte for byte. Nothing of the session's
//! own repository is read or changed, except its exclude file, which is read.
//!
//! What is taken: files that the base or the checkpoint before had, and those that are not ignored;
//! nested repositories as plain files. What cannot or must not be taken is left out and named
//! ([`crate::left_out`]). A submodule stays a commit id while its folder holds
//! no files. Line endings and filters are not applied, since a restore must give back the
//! bytes that were there. Not kept: empty folders, permissions other than the executable
//! bit, owners, and `.git` folders.
//!
//! ```text
//! <mirror>/refs/kage/checkpoints/<worktree>/<commit>   keeps it until it is deleted
//! <private>/last                                       what the worktree was last known to be
//! <private>/ignored/<commit>                           what was ignored then, names only
//! <private>/restore                                    a restore under way (crate::restore)
//! ```

use std::collections::{BTreeSet, HashSet};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use git2::Oid as Id;
use kage_core::id::{Digest, Oid};
use kage_core::left_out::LeftOut;
use kage_core::task::ResultRules;
use tokio::runtime::Handle;

use crate::beneath::Beneath;
use crate::durable::{Prepared, flush_all};
use crate::error::{GitError, blocking};
use crate::ignored::ignored;
use crate::included;
use crate::known::scan::{Judged, Scan};
use crate::known::{KnownFiles, KnownFolder, Stats, stats_of_index};
use crate::large::{self, FilledFiles};
use crate::left_out::{NotTaken, entry_in};
use crate::lock::{self, RepositoryLock};
use crate::mirror::Mirror;
use crate::objects::{Objects, Unflushed, id_of, oid_of};
use crate::secrets::{FileWithSecret, Secrets};
use crate::shadow::Shadow;
use crate::staging::{lines, split};
use crate::submodules;
use crate::worktree::Worktree;

mod result;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    pub commit: Oid,
    /// The tree of `commit`; equal trees have equal files.
    pub tree: Oid,
    /// Number of paths that differ from the parent.
    pub files_changed: u64,
}

impl Worktree {
    /// Commits the whole worktree to the mirror with `parent` as its only parent, also when
    /// nothing differs. When this returns, the commit survives a power cut and a reference
    /// keeps it. An interrupted restore is finished first.
    ///
    /// # Errors
    /// When the file system refuses, or there are more new files than the rules allow; there is no
    /// partial checkpoint but for what [`Worktree::left_out`] names.
    pub async fn checkpoint(&self, parent: &Oid, message: impl Into<String>) -> Result<Checkpoint, GitError> {
        let (parent, message) = (parent.clone(), message.into());
        self.owned("taking a checkpoint", move |worktree| {
            worktree.finish_restore()?;
            let mut look = worktree.look()?;
            let taken = look.commit(worktree, id_of(&parent)?, &message)?;
            look.keep(worktree);
            Ok(taken)
        })
        .await
    }

    /// As [`Worktree::checkpoint`], but the parent itself is the checkpoint when no file
    /// differs from it.
    ///
    /// # Errors
    /// As [`Worktree::checkpoint`].
    pub async fn checkpoint_changes(&self, parent: &Oid, message: impl Into<String>) -> Result<Checkpoint, GitError> {
        let (parent, message) = (parent.clone(), message.into());
        self.owned("taking a checkpoint", move |worktree| {
            worktree.finish_restore()?;
            let mut look = worktree.look()?;
            let parent = id_of(&parent)?;
            let taken = match look.unchanged(parent)? {
                Some(same) => same,
                None => look.commit(worktree, parent, &message)?,
            };
            look.keep(worktree);
            Ok(taken)
        })
        .await
    }

    /// Runs `work` with exclusive use of the worktree, to its end even if the future is dropped.
    pub(crate) async fn owned<T, E>(
        &self,
        action: &'static str,
        work: impl FnOnce(&LockedWorktree) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<GitError> + Send + 'static,
    {
        let lock = lock::acquire(self.shadow.git_dir()).await?;
        let worktree = LockedWorktree {
            mirror: self.mirror.clone(),
            root: self.path.clone(),
            base: id_of(&self.base)?,
            shadow: self.shadow.clone(),
            known: Arc::clone(&self.known),
            rules: self.rules.clone(),
            left_out: Arc::clone(&self.left_out),
            secrets: self.sought(),
            with_secrets: Arc::clone(&self.with_secrets),
            runtime: Handle::current(),
            _lock: lock,
        };
        blocking(action, move || work(&worktree)).await
    }
}

/// A worktree whose lock is held, for use on a thread that may block.
pub(crate) struct LockedWorktree {
    pub(crate) mirror: Mirror,
    pub(crate) root: PathBuf,
    pub(crate) base: Id,
    shadow: Shadow,
    known: Arc<Mutex<Option<KnownFiles>>>,
    pub(crate) rules: ResultRules,
    left_out: Arc<Mutex<Vec<LeftOut>>>,
    /// What no file may have.
    pub(crate) secrets: Secrets,
    with_secrets: Arc<Mutex<Vec<FileWithSecret>>>,
    runtime: Handle,
    _lock: RepositoryLock,
}

/// A worktree's files as they are now.
pub(crate) struct Look {
    pub(crate) objects: Objects,
    pub(crate) last: Id,
    pub(crate) top: KnownFolder,
    pub(crate) ignored: Vec<PathBuf>,
    pub(crate) beneath: Beneath,
    /// Paths whose file differs from the entry in `top`, which is of an earlier content.
    pub(crate) stood_in: BTreeSet<PathBuf>,
    /// Files that have a content in place of a pointer.
    large: FilledFiles,
    rules: ResultRules,
    secrets: Secrets,
    /// The tree of the base.
    base: Id,
}

impl LockedWorktree {
    /// Path of a file or folder of Kage's own about this worktree.
    pub(crate) fn private(&self, name: &str) -> PathBuf {
        self.shadow.git_dir().join(name)
    }

    /// The commit that the worktree was last known to equal.
    pub(crate) fn last(&self) -> Result<Id, GitError> {
        let path = self.private("last");
        match fs::read_to_string(&path) {
            Ok(text) => Id::from_str(text.trim()).map_err(GitError::library("read the last checkpoint's id")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(self.base),
            Err(error) => Err(GitError::io("read", &path)(error)),
        }
    }

    /// The files that have a content in place of a pointer.
    pub(crate) fn large(&self) -> Result<FilledFiles, GitError> {
        large::filled(&self.shadow)
    }

    /// Prepares the record that the worktree equals `commit`.
    pub(crate) fn prepare_last(&self, commit: Id) -> Result<Prepared, GitError> {
        Prepared::new(&self.private("last"), format!("{commit}\n").as_bytes())
    }

    /// Scans all files. When this fails, the cached knowledge of them is dropped.
    pub(crate) fn look(&self) -> Result<Look, GitError> {
        let last = self.last()?;
        let seen = self.known.lock().unwrap_or_else(PoisonError::into_inner).take();
        let seen = match seen.filter(|seen| seen.last == last) {
            Some(seen) => seen,
            None => self.load(last)?,
        };
        let objects = Objects::open(self.mirror.path(), seen.unflushed)?;
        let base = objects.tree_of(self.base).map_err(GitError::library("read the base"))?;
        let mut not_taken = NotTaken::default();
        let mut look = Look {
            objects,
            base,
            rules: self.rules.clone(),
            secrets: self.secrets.clone(),
            last,
            top: seen.top,
            ignored: Vec::new(),
            stood_in: BTreeSet::new(),
            large: self.large()?,
            beneath: Beneath::open(&self.root).map_err(GitError::io("open", &self.root))?,
        };
        let filled = submodules::filled(&self.shadow)?;
        let judged = Judged {
            rules: &self.rules,
            base,
            filled: &filled,
            large: &look.large,
            secrets: &self.secrets,
            not_taken: &mut not_taken,
        };
        let scan = Scan::new(&mut look.objects, &self.root, &look.beneath, judged);
        look.ignored = scan.run(&mut look.top, |paths| self.ignored(paths, base))?;
        look.stood_in = not_taken.take_stood_in();
        self.tell(not_taken);
        look.top.write(&mut look.objects)?;
        Ok(look)
    }

    fn load(&self, last: Id) -> Result<KnownFiles, GitError> {
        let objects = Objects::open(self.mirror.path(), Unflushed::default())?;
        let stats: Stats = stats_of_index(&self.shadow.index());
        let load = || KnownFolder::load(objects.repository(), objects.tree_of(last)?, &stats);
        let top = load().map_err(GitError::library("read the last checkpoint"))?;
        Ok(KnownFiles {
            last,
            top,
            unflushed: Unflushed::default(),
        })
    }

    /// Puts on record what a look left out.
    pub(crate) fn tell(&self, not_taken: NotTaken) {
        let (left_out, with_secrets) = not_taken.into_lists();
        *self.left_out.lock().unwrap_or_else(PoisonError::into_inner) = left_out;
        *self.with_secrets.lock().unwrap_or_else(PoisonError::into_inner) = with_secrets;
    }

    /// The ones of `paths` that git ignores, as git itself decides: nothing that the base, which has
    /// the tree `base`, has at that path.
    pub(crate) fn ignored(&self, paths: &[PathBuf], base: Id) -> Result<HashSet<PathBuf>, GitError> {
        let list: Vec<&[u8]> = paths.iter().map(|path| path.as_os_str().as_bytes()).collect();
        let ignored = self.runtime.block_on(ignored(&self.shadow, &self.root, &list))?;
        let path = |bytes| PathBuf::from(OsString::from_vec(bytes));
        let mut ignored: HashSet<PathBuf> = ignored.into_iter().map(path).collect();
        if !ignored.is_empty() {
            let objects = Objects::open(self.mirror.path(), Unflushed::default())?;
            ignored.retain(|path| entry_in(objects.repository(), base, path).is_none());
        }
        // A session may have changed what is ignored.
        ignored.extend(included::names(&self.shadow)?);
        Ok(ignored)
    }

    fn record_of_ignored(&self, commit: Id) -> PathBuf {
        self.private("ignored").join(commit.to_string())
    }

    /// What was ignored when a checkpoint was taken; `None` when there is no whole record.
    pub(crate) fn ignored_at(&self, commit: Id) -> Option<Vec<PathBuf>> {
        let bytes = fs::read(self.record_of_ignored(commit)).ok()?;
        let end = bytes.iter().position(|byte| *byte == b'\n')?;
        let (digest, list) = (bytes.get(..end)?, bytes.get(end + 1..)?);
        // The record is not flushed, so a power cut may have left only a part of it.
        if Digest::of(list).as_str().as_bytes() != digest {
            return None;
        }
        Some(
            split(list)
                .map(|path| PathBuf::from(OsString::from_vec(path.to_vec())))
                .collect(),
        )
    }

    fn record_ignored(&self, commit: Id, ignored: &[PathBuf]) -> Result<(), GitError> {
        let path = self.record_of_ignored(commit);
        let list: Vec<&[u8]> = ignored.iter().map(|path| path.as_os_str().as_bytes()).collect();
        let list = lines(&list);
        let mut bytes = format!("{}\n", Digest::of(&list)).into_bytes();
        bytes.extend_from_slice(&list);
        let folder = self.private("ignored");
        fs::create_dir_all(&folder).map_err(GitError::io("create", &folder))?;
        fs::write(&path, bytes).map_err(GitError::io("write", &path))
    }

    /// The folder of the references to this worktree's checkpoints.
    fn references(&self) -> PathBuf {
        let worktree = self.shadow.git_dir().file_name().unwrap_or_default();
        self.mirror.path().join("refs/kage/checkpoints").join(worktree)
    }
}

impl Look {
    /// `commit` as the checkpoint, when its files are exactly those that were scanned.
    fn unchanged(&mut self, commit: Id) -> Result<Option<Checkpoint>, GitError> {
        let tree = self.top.write(&mut self.objects)?;
        let its = self.objects.tree_of(commit);
        if its.map_err(GitError::library("read the parent of a checkpoint"))? != tree {
            return Ok(None);
        }
        Ok(Some(Checkpoint {
            commit: oid_of(commit)?,
            tree: oid_of(tree)?,
            files_changed: 0,
        }))
    }

    pub(crate) fn commit(
        &mut self,
        worktree: &LockedWorktree,
        parent: Id,
        message: &str,
    ) -> Result<Checkpoint, GitError> {
        let tree = self.top.write(&mut self.objects)?;
        let parent_tree = self.objects.tree_of(parent);
        let parent_tree = parent_tree.map_err(GitError::library("read the parent of a checkpoint"))?;
        let changed = self.top.differences(self.objects.repository(), parent_tree);
        let changed = changed.map_err(GitError::library("compare two checkpoints"))?;
        let commit = self.objects.commit(tree, &[parent], message)?;
        worktree.record_ignored(commit, &self.ignored)?;
        let references = worktree.references();
        let reference = Prepared::new(&references.join(commit.to_string()), format!("{commit}\n").as_bytes())?;
        let last = worktree.prepare_last(commit)?;
        // A reference to an object that a power cut took would damage the mirror, so the reference
        // is written after the flush.
        self.objects.flush([reference.path(), last.path()])?;
        reference.place()?;
        last.place()?;
        // Up to refs/kage, since the folders between may be new.
        let mut folders: Vec<PathBuf> = references.ancestors().take(3).map(Path::to_owned).collect();
        folders.push(worktree.private(""));
        flush_all(&folders)?;
        self.last = commit;
        Ok(Checkpoint {
            commit: oid_of(commit)?,
            tree: oid_of(tree)?,
            files_changed: changed.len() as u64,
        })
    }

    /// Takes a path into the checkpoint, whether it is known, ignored or neither; false when
    /// nothing storable is there.
    pub(crate) fn take(&mut self, root: &Path, path: &Path) -> Result<bool, GitError> {
        let nothing = HashSet::new();
        let mut not_taken = NotTaken::default();
        let judged = Judged {
            rules: &self.rules,
            base: self.base,
            filled: &nothing,
            large: &self.large,
            secrets: &self.secrets,
            not_taken: &mut not_taken,
        };
        let taken = Scan::new(&mut self.objects, root, &self.beneath, judged).take_path(path)?;
        let Some(entry) = taken else { return Ok(false) };
        self.top.insert(path, entry);
        Ok(true)
    }

    /// Keeps this scan's result as the start of the next one.
    pub(crate) fn keep(self, worktree: &LockedWorktree) {
        let seen = KnownFiles {
            last: self.last,
            top: self.top,
            unflushed: self.objects.into_unflushed(),
        };
        *worktree.known.lock().unwrap_or_else(PoisonError::into_inner) = Some(seen);
    }
}

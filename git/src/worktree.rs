//! A session's working directory: a checked-out commit, the changes in it, and the final commit
//! made of it. It owns both git directories of a worktree:
//!
//! ```text
//! <worktree>/.git                    the session's: an ordinary repository that borrows
//!                                    the mirror's objects (objects/info/alternates)
//! <mirror>/checkouts/<digest>        Kage's: the index of the base, and no configuration
//!                                    that a session could have written
//! ```
//!
//! This is instead of `git worktree add`, whose `.git` file hands the session the mirror's
//! configuration, references and hooks, and whose metadata races with fetches. What a
//! session does with git (config, commit, branch, gc, even deleting `.git`) stays in its
//! own repository and changes nothing about how Kage reads the files. Not protected: a
//! process of the same user can still write to the mirror by its path; only containment
//! prevents that.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use kage_core::event::{ChangeKind, FileChange};
use kage_core::id::{Digest, Oid};
use kage_core::left_out::LeftOut;
use kage_core::pattern::Patterns;
use kage_core::protect::Protection;
use kage_core::task::ResultRules;
use tempfile::TempPath;

use crate::error::{GitError, blocking};
use crate::included;
use crate::known::KnownFiles;
use crate::lock;
use crate::mirror::Mirror;
use crate::removal::remove_folder;
use crate::secrets::{FileWithSecret, Secrets};
use crate::shadow::{IDENTITY, Shadow, make_repository};
use crate::staging::{DIFF, copy_index, split};
use crate::submodules as filled_submodules;

mod extras;
mod held;
mod include;
mod large;
mod names;
mod new_files;
mod proof;
mod reuse;
mod rules;
mod submodules;
mod without;

pub use reuse::SetAside;

pub(crate) const KAGE_CONFIG: &str = "[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n\tbare = false\n";

/// Lines of larger untracked files are not counted.
const MAX_COUNTED_BYTES: u64 = 8 << 20;

/// A checked-out commit that a session may change.
#[derive(Debug)]
pub struct Worktree {
    pub(crate) mirror: Mirror,
    pub(crate) path: PathBuf,
    pub(crate) base: Oid,
    pub(crate) shadow: Shadow,
    /// The cached state of the files since the last scan for a checkpoint.
    pub(crate) known: Arc<Mutex<Option<KnownFiles>>>,
    /// What of it becomes a part of checkpoints and results.
    pub(crate) rules: ResultRules,
    /// What the last look at the files left out.
    pub(crate) left_out: Arc<Mutex<Vec<LeftOut>>>,
    /// What no file may have that the base does not have at its path.
    secrets: Mutex<Secrets>,
    /// The files that the last look left out because of that.
    pub(crate) with_secrets: Arc<Mutex<Vec<FileWithSecret>>>,
    /// Cached line counts of untracked files, so that asking every second stays cheap.
    counted: Arc<Mutex<HashMap<PathBuf, Counted>>>,
}

#[derive(Debug, Clone, Copy)]
struct Counted {
    size: u64,
    modified: Option<SystemTime>,
    lines: u64,
}

impl Worktree {
    /// Checks `commit` out at `path`, which does not exist or is empty. After an error or a
    /// cancelled call, [`Worktree::remove`] clears what was made.
    ///
    /// # Errors
    /// When the commit is not in the mirror or the file system refuses.
    pub async fn create(mirror: &Mirror, path: impl Into<PathBuf>, commit: &Oid) -> Result<Self, GitError> {
        let (mirror, path, base) = (mirror.clone(), path.into(), commit.clone());
        let worktree = blocking("making a worktree", move || {
            fs::create_dir_all(&path).map_err(GitError::io("create", &path))?;
            let path = fs::canonicalize(&path).map_err(GitError::io("resolve", &path))?;
            let private = private_dir(&mirror, &path);
            let shadow = Shadow::new(&private, &path, Some(mirror.objects()));
            shadow.make(&base, KAGE_CONFIG, &[])?;
            Ok::<_, GitError>(Self::at(mirror, path, base, shadow))
        })
        .await?;
        worktree.check_out().await?;
        Ok(worktree)
    }

    /// One of which nothing is known yet.
    fn at(mirror: Mirror, path: PathBuf, base: Oid, shadow: Shadow) -> Self {
        Self {
            mirror,
            path,
            base,
            shadow,
            known: Arc::default(),
            rules: ResultRules::default(),
            left_out: Arc::default(),
            secrets: Mutex::default(),
            with_secrets: Arc::default(),
            counted: Arc::default(),
        }
    }

    /// Makes the files, Kage's index and the session's own repository those of the base, whatever
    /// is there.
    async fn check_out(&self) -> Result<(), GitError> {
        let read = self.shadow.git("read-tree");
        let read = read.args(["--reset", "-u", "--end-of-options", self.base.as_str()]);
        read.run().await?;
        let (index, own, base) = (self.shadow.index(), self.path.join(".git"), self.base.clone());
        let objects = self.mirror.objects();
        blocking("making a worktree", move || {
            let (name, email) = IDENTITY;
            let config = format!("{KAGE_CONFIG}[user]\n\tname = {name}\n\temail = {email}\n[gc]\n\tauto = 0\n");
            make_repository(&own, &base, &config, &[objects])?;
            let to = own.join("index");
            copy_index(&index, &to).map_err(GitError::io("create", &to))
        })
        .await
    }

    /// Opens a worktree that was made before, by this process or another.
    pub async fn open(mirror: &Mirror, path: impl Into<PathBuf>, base: &Oid) -> Result<Self, GitError> {
        let (mirror, path, base) = (mirror.clone(), path.into(), base.clone());
        blocking("opening a worktree", move || {
            let path = fs::canonicalize(&path).map_err(GitError::io("resolve", &path))?;
            let private = private_dir(&mirror, &path);
            let shadow = Shadow::new(&private, &path, Some(mirror.objects()));
            let index = shadow.index();
            fs::metadata(&index).map_err(GitError::io("open", &index))?;
            Ok(Self::at(mirror, path, base, shadow))
        })
        .await
    }

    /// Absolute.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The commit it was made from.
    #[must_use]
    pub fn base(&self) -> &Oid {
        &self.base
    }

    /// The current differences from the base, sorted by path, without ignored files. Cheap enough
    /// to ask every second.
    ///
    /// # Errors
    /// When git fails.
    pub async fn changes(&self) -> Result<Vec<FileChange>, GitError> {
        // First: it finds what would hold git up.
        let (new, _not_taken) = self.new_files().await?;
        let tracked = self.shadow.git("diff").args(DIFF);
        let tracked = tracked.args(["--raw", "--numstat", "--no-abbrev"]).run().await?;
        let mut changes = parse_tracked(&tracked)?;
        let modified = changes.iter().filter(|change| change.kind == ChangeKind::Modified);
        let modified: Vec<&[u8]> = modified.map(|change| change.path.as_bytes()).collect();
        let same = self.unchanged_large(&modified).await?;
        changes.retain(|change| !same.contains_key(Path::new(&change.path)));
        let (root, counted) = (self.path.clone(), Arc::clone(&self.counted));
        let added = blocking("counting lines", move || {
            Ok::<_, GitError>(count_all(&root, &new, &counted))
        })
        .await?;
        changes.extend(added);
        changes.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(changes)
    }

    /// Makes every protected path equal to `base`: changed content is replaced, missing files come
    /// back, and files that match a pattern but are not in `base` are deleted. Never follows a
    /// symbolic link. The content of all of them is proved by hash then. Returns the changed paths, sorted.
    ///
    /// # Errors
    /// When git fails, the file system refuses, or the mirror has another file for one of the base.
    pub async fn restore_paths(&self, base: &Oid, protection: &Protection) -> Result<Vec<String>, GitError> {
        let index = self.index_copy().await?;
        let git = |operation| self.shadow.git(operation).env("GIT_INDEX_FILE", &*index);
        git("read-tree")
            .args(["--reset", "--end-of-options", base.as_str()])
            .run()
            .await?;
        let kept: Vec<PathBuf> = paths_of(&git("ls-files").arg("-z").run().await?);
        let mut differing = paths_of(&git("diff").args(DIFF).arg("--name-only").run().await?);
        let named = protection.named(kept.iter().filter_map(|path| path.to_str()));
        let is_named = |path: &Path| path.to_str().is_some_and(|path| named.contains(path));
        let is_protected = |path: &Path| protection.patterns().matches(path) || is_named(path);
        differing.retain(|path| is_protected(path));
        let mut protected: HashSet<PathBuf> = kept.iter().filter(|path| is_protected(path)).cloned().collect();
        // The base has a pointer where these have the content that it stands for.
        let paths: Vec<&[u8]> = protected.iter().map(|path| path.as_os_str().as_bytes()).collect();
        let same = self.unchanged_large(&paths).await?;
        differing.retain(|path| !same.contains_key(path));
        protected.retain(|path| !same.contains_key(path));
        let (root, patterns) = (self.path.clone(), protection.patterns().clone());
        let (included, filled) = (included::names(&self.shadow)?, filled_submodules::filled(&self.shadow)?);
        let mut changed = blocking("restoring protected paths", move || {
            let kept = kept.into_iter().chain(included).collect();
            delete_unknown(&root, &patterns, &kept, &filled)
        })
        .await?;
        self.write_indexed(&index, &differing).await?;
        match self.prove_paths(base, &protected).await {
            // Other line ends may be no difference to git, which did not write such a file then.
            Err(GitError::NotAsCommitted { path }) => {
                self.write_again(base, &protected).await?;
                self.prove_paths(base, &protected).await?;
                changed.push(path);
            }
            proved => proved?,
        }
        self.refill_large(true).await?;
        changed.extend(differing);
        let mut shown: Vec<String> = changed.iter().map(|path| path.to_string_lossy().into_owned()).collect();
        shown.sort();
        shown.dedup();
        Ok(shown)
    }

    /// Writes these paths as an index has them. Obstacles are replaced, symbolic links among the parents too.
    async fn write_indexed(&self, index: &Path, paths: impl IntoIterator<Item = &PathBuf>) -> Result<(), GitError> {
        self.shadow
            .git("checkout-index")
            .env("GIT_INDEX_FILE", index)
            .args(["--force", "--quiet", "-z", "--stdin"])
            .stdin(listed(paths))
            .run()
            .await
            .map(drop)
    }

    /// Deletes the worktree at `path` of `mirror` with Kage's data about it and the files that
    /// restores moved aside; checkpoints stay. A missing worktree is no error, so this also cleans
    /// up after a crash. The caller has the result, or a last checkpoint. Waits for a running
    /// checkpoint or restore.
    ///
    /// # Errors
    /// When the file system refuses.
    pub async fn remove(mirror: &Mirror, path: &Path) -> Result<(), GitError> {
        let given = path.to_owned();
        let real = blocking("removing a worktree", move || match fs::canonicalize(&given) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(GitError::io("resolve", &given)(error)),
            Ok(real) => Ok(real),
            Err(_) => Ok(given),
        })
        .await?;
        let private = private_dir(mirror, &real);
        let lock = match lock::acquire(&private).await {
            // Nothing can be running in a worktree that does not exist.
            Err(GitError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => None,
            other => Some(other?),
        };
        blocking("removing a worktree", move || {
            let removed = remove_folder(&real).and(remove_folder(&private));
            drop(lock);
            removed
        })
        .await
    }

    /// A temporary copy of the index to work on; the original keeps describing the base.
    pub(crate) async fn index_copy(&self) -> Result<TempPath, GitError> {
        let (from, folder) = (self.shadow.index(), self.shadow.git_dir().to_owned());
        blocking("copying an index", move || {
            let copy = tempfile::Builder::new()
                .prefix("index-")
                .tempfile_in(&folder)
                .map_err(GitError::io("make a file in", &folder))?
                .into_temp_path();
            copy_index(&from, &copy).map_err(GitError::io("copy", &from))?;
            Ok(copy)
        })
        .await
    }
}

/// The paths as git reads them, each with its end.
fn listed<'a>(paths: impl IntoIterator<Item = &'a PathBuf>) -> Vec<u8> {
    let mut list = Vec::new();
    for path in paths {
        list.extend_from_slice(path.as_os_str().as_bytes());
        list.push(0);
    }
    list
}

/// Path of Kage's own git directory for the worktree at `path`.
fn private_dir(mirror: &Mirror, path: &Path) -> PathBuf {
    mirror.path().join("checkouts").join(private_name(path))
}

/// The name in the mirror of the worktree at `path`, which is absolute and resolved.
pub(crate) fn private_name(path: &Path) -> String {
    let digest = Digest::of(path.as_os_str().as_bytes());
    digest.as_str().chars().take(32).collect()
}

fn paths_of(output: &[u8]) -> Vec<PathBuf> {
    split(output)
        .map(|path| PathBuf::from(OsStr::from_bytes(path)))
        .collect()
}

/// Reads `diff --raw --numstat -z`: first `:modes ids kind NUL path` of every path, then
/// `added TAB removed TAB path`.
fn parse_tracked(output: &[u8]) -> Result<Vec<FileChange>, GitError> {
    let wrong = || GitError::unexpected("diff", output);
    let mut kinds = HashMap::new();
    let mut counts = HashMap::new();
    let mut parts = split(output);
    while let Some(part) = parts.next() {
        if part.starts_with(b":") {
            let kind = match part.last().ok_or_else(wrong)? {
                b'D' => ChangeKind::Deleted,
                b'A' => ChangeKind::Added,
                _ => ChangeKind::Modified,
            };
            kinds.insert(parts.next().ok_or_else(wrong)?, kind);
        } else {
            let mut fields = part.splitn(3, |byte| *byte == b'\t');
            // "-": binary.
            let mut number = || Some(std::str::from_utf8(fields.next()?).ok()?.parse().unwrap_or(0));
            let (added, removed): (Option<u64>, Option<u64>) = (number(), number());
            let path = fields.next().ok_or_else(wrong)?;
            counts.insert(path, (added.ok_or_else(wrong)?, removed.ok_or_else(wrong)?));
        }
    }
    let change = |(path, kind): (&[u8], ChangeKind)| {
        let (added, removed) = counts.get(path).copied().unwrap_or_default();
        FileChange {
            path: String::from_utf8_lossy(path).into_owned(),
            kind,
            added,
            removed,
        }
    };
    Ok(kinds.into_iter().map(change).collect())
}

/// Line counts of the untracked files, taken from the last count where a file is unchanged.
fn count_all(root: &Path, paths: &[Vec<u8>], counted: &Mutex<HashMap<PathBuf, Counted>>) -> Vec<FileChange> {
    // A cached count is right or absent, even if a panic interrupted an update.
    let before = std::mem::take(&mut *counted.lock().unwrap_or_else(PoisonError::into_inner));
    let mut after = HashMap::with_capacity(paths.len());
    let mut changes = Vec::with_capacity(paths.len());
    for path in paths {
        let relative = PathBuf::from(OsStr::from_bytes(path));
        // It vanished since it was listed: the next look will say so.
        let Ok(meta) = fs::symlink_metadata(root.join(&relative)) else {
            continue;
        };
        let now = Counted {
            size: meta.len(),
            modified: meta.modified().ok(),
            lines: 0,
        };
        let lines = match before.get(&relative) {
            Some(old) if old.size == now.size && old.modified == now.modified => old.lines,
            Some(_) | None => count_lines(&root.join(&relative), &meta).unwrap_or(0),
        };
        changes.push(FileChange {
            path: relative.to_string_lossy().into_owned(),
            kind: ChangeKind::Added,
            added: lines,
            removed: 0,
        });
        after.insert(relative, Counted { lines, ..now });
    }
    *counted.lock().unwrap_or_else(PoisonError::into_inner) = after;
    changes
}

/// Lines as git counts them: the last one needs no newline, binary files have none.
fn count_lines(path: &Path, meta: &Metadata) -> io::Result<u64> {
    if meta.is_symlink() {
        return Ok(1);
    }
    if !meta.is_file() || meta.len() > MAX_COUNTED_BYTES {
        return Ok(0);
    }
    let mut bytes = Vec::new();
    // A symbolic link that replaced it meanwhile is refused.
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let file = rustix::fs::open(path, flags | rustix::fs::OFlags::CLOEXEC, rustix::fs::Mode::empty())?;
    fs::File::from(file).take(MAX_COUNTED_BYTES).read_to_end(&mut bytes)?;
    if bytes.iter().take(8000).any(|byte| *byte == 0) {
        return Ok(0);
    }
    let ended = bytes.iter().filter(|byte| **byte == b'\n').count() as u64;
    Ok(ended + u64::from(bytes.last().is_some_and(|byte| *byte != b'\n')))
}

/// Deletes matching files that are not in `kept` or below `apart`, and returns them.
fn delete_unknown(
    root: &Path,
    patterns: &Patterns,
    kept: &HashSet<PathBuf>,
    apart: &HashSet<PathBuf>,
) -> Result<Vec<PathBuf>, GitError> {
    let mut deleted = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        let here = root.join(&folder);
        for entry in fs::read_dir(&here).map_err(GitError::io("list", &here))? {
            let entry = entry.map_err(GitError::io("list", &here))?;
            let (name, kind) = (
                entry.file_name(),
                entry.file_type().map_err(GitError::io("read", &here))?,
            );
            let path = folder.join(&name);
            if kind.is_dir() {
                if name != ".git" && !apart.contains(&path) {
                    folders.push(path);
                }
            } else if patterns.matches(&path) && !kept.contains(&path) {
                let full = root.join(&path);
                fs::remove_file(&full).map_err(GitError::io("delete", &full))?;
                deleted.push(path);
            }
        }
    }
    Ok(deleted)
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn removing_waits_for_what_still_goes_on_there() {
        let folder = tempfile::tempdir().unwrap();
        let top = fs::canonicalize(folder.path()).unwrap();
        let mirror = Mirror::open_or_init(top.join("m.git")).await.unwrap();
        let path = top.join("w");
        let private = private_dir(&mirror, &path);
        fs::create_dir_all(&path).unwrap();
        fs::create_dir_all(&private).unwrap();
        // A restore whose future was dropped.
        let restoring = lock::acquire(&private).await.unwrap();
        let mut removing = pin!(Worktree::remove(&mirror, &path));
        let early = tokio::time::timeout(Duration::from_millis(50), &mut removing).await;
        assert!(early.is_err() && path.exists());
        drop(restoring);
        removing.await.unwrap();
        assert!(!path.exists() && !private.exists());
        Worktree::remove(&mirror, &path).await.unwrap();
    }
}

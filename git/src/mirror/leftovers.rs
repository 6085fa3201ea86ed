//! Leftovers of a dead process in a mirror: folders of incoming packs, temporary files, and lock
//! files that would block every later update of a reference. They are swept when a process opens
//! the mirror and no other process has it open. This file owns that knowledge.
//!
//! ```text
//! <mirror>/users.lock   shared by every process that has the mirror open, for as long
//! ```
//!
//! A git that outlived its parent still writes: while a git works in the mirror, nothing is swept.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, DirEntry, TryLockError};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime};

use crate::error::GitError;
use crate::lock_file::LockFile;

/// A look costs a little, and the first look after a crash finds its leftovers.
const PAUSE: Duration = Duration::from_secs(60);

/// Where running programs cannot be listed, only leftovers older than this are swept.
const OLD: Duration = Duration::from_secs(3600);

/// Marks the mirror as open in this process; until dropped, no process sweeps it.
#[derive(Debug)]
pub(super) struct InUse {
    _users: LockFile,
}

/// A mirror that this process has, or had, open.
#[derive(Debug)]
struct Known {
    in_use: Weak<InUse>,
    /// When it was looked at, and which file that was: the folder may be another by now.
    looked: Option<(SystemTime, Instant)>,
}

impl Known {
    fn counts(&self) -> bool {
        let recent = |(_, when): (SystemTime, Instant)| when.elapsed() <= PAUSE;
        self.in_use.strong_count() > 0 || self.looked.is_some_and(recent)
    }
}

static MIRRORS: LazyLock<Mutex<HashMap<PathBuf, Known>>> = LazyLock::new(Mutex::default);

/// Marks the mirror at `path` as open in this process. Sweeps it when no other process has it open.
pub(super) fn enter(path: &Path) -> Result<Arc<InUse>, GitError> {
    // Another opening of the mirror waits, so that it is not used while it is swept.
    let mut mirrors = MIRRORS.lock().unwrap_or_else(PoisonError::into_inner);
    // After the pause a mirror is checked as if it were new.
    mirrors.retain(|_, known| known.counts());
    let known = mirrors.entry(path.to_owned()).or_insert_with(|| Known {
        in_use: Weak::new(),
        looked: None,
    });
    let name = path.join("users.lock");
    let users = LockFile::open(&name).map_err(GitError::io("open", &name))?;
    let made = users.metadata().and_then(|meta| meta.modified());
    let made = made.map_err(GitError::io("look at", &name))?;
    let is_same = known.looked.is_some_and(|(then, _)| then == made);
    if let Some(in_use) = known.in_use.upgrade().filter(|_| is_same) {
        return Ok(in_use);
    }
    match users.try_lock() {
        Ok(()) => {
            if !is_same {
                sweep(path)?;
            }
            users.unlock().map_err(GitError::io("unlock", &name))?;
        }
        Err(TryLockError::WouldBlock) => {}
        Err(TryLockError::Error(error)) => return Err(GitError::io("lock", &name)(error)),
    }
    // Waits for a process that sweeps.
    users.lock_shared().map_err(GitError::io("lock", &name))?;
    let in_use = Arc::new(InUse { _users: users });
    *known = Known {
        in_use: Arc::downgrade(&in_use),
        looked: Some((made, Instant::now())),
    };
    Ok(in_use)
}

/// Deletes files that no process can need any more.
fn sweep(mirror: &Path) -> Result<(), GitError> {
    let mut found = Vec::new();
    let objects = mirror.join("objects");
    list(&objects, |item, name| {
        if ["incoming-", "tmp_objdir-", "tmp_obj_"]
            .iter()
            .any(|start| name.starts_with(start.as_bytes()))
        {
            found.push(item.path());
        }
    })?;
    let mut folders = Vec::new();
    list(&objects, |item, name| {
        if name.len() == 2 {
            folders.push(item.path());
        }
    })?;
    let packs = objects.join("pack");
    list(&packs, |item, name| {
        // The index is written last, and without it git ignores the pack.
        if name.ends_with(b".pack") && !item.path().with_extension("idx").exists() {
            found.push(item.path());
        }
    })?;
    folders.push(packs);
    for folder in &folders {
        list(folder, |item, name| {
            if name.starts_with(b"tmp_") || name.ends_with(b".keep") && is_gits_own(&item.path()) {
                found.push(item.path());
            }
        })?;
    }
    list(mirror, |item, name| {
        let ours = matches!(name, b"kage.lock" | b"users.lock");
        if name.starts_with(b".tmp") || name.ends_with(b".lock") && !ours {
            found.push(item.path());
        }
    })?;
    let mut folders = vec![mirror.join("refs")];
    while let Some(folder) = folders.pop() {
        list(&folder, |item, name| {
            if item.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(item.path());
            } else if name.starts_with(b".tmp") || name.ends_with(b".lock") {
                found.push(item.path());
            }
        })?;
    }
    let mut checkouts = Vec::new();
    list(&mirror.join("checkouts"), |item, _| checkouts.push(item.path()))?;
    for checkout in checkouts {
        list(&checkout, |item, name| {
            if name.starts_with(b".tmp") || name.starts_with(b"index-") || name == b"index.lock" {
                found.push(item.path());
            }
        })?;
    }
    if found.is_empty() {
        return Ok(());
    }
    match is_git_at_work(mirror) {
        Some(true) => {
            tracing::info!(mirror = %mirror.display(), "an orphaned git is at work; leftovers stay");
            return Ok(());
        }
        Some(false) => {}
        None => found.retain(|path| is_old(path)),
    }
    for path in &found {
        tracing::info!(path = %path.display(), "deleting what a crash left");
        let is_folder = fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir());
        let deleted = if is_folder {
            fs::remove_dir_all(path)
        } else {
            fs::remove_file(path)
        };
        match deleted {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(GitError::io("delete", path)(error)),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

/// Visits the entries of a folder; none if it does not exist.
fn list(folder: &Path, mut each: impl FnMut(&DirEntry, &[u8])) -> Result<(), GitError> {
    let items = match fs::read_dir(folder) {
        Ok(items) => items,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(()),
        Err(error) => return Err(GitError::io("list", folder)(error)),
    };
    for item in items {
        let item = item.map_err(GitError::io("list", folder))?;
        each(&item, item.file_name().as_bytes());
    }
    Ok(())
}

/// Whether a pack is kept only until a fetch or push that began is over.
fn is_gits_own(keep: &Path) -> bool {
    fs::read(keep).is_ok_and(|text| text.starts_with(b"fetch-pack ") || text.starts_with(b"receive-pack "))
}

fn is_old(path: &Path) -> bool {
    let modified = fs::symlink_metadata(path).and_then(|meta| meta.modified());
    modified.is_ok_and(|when| when.elapsed().is_ok_and(|age| age > OLD))
}

/// True if a process names the mirror in its arguments or as its git directory. `None`: processes
/// cannot be listed.
fn is_git_at_work(mirror: &Path) -> Option<bool> {
    let processes = fs::read_dir("/proc").ok()?;
    fs::metadata("/proc/self/environ").ok()?;
    let own = std::process::id().to_string();
    let mirror = mirror.as_os_str().as_bytes();
    let names = |text: &[u8]| {
        text.split(|byte| *byte == 0).any(|part| {
            let path = part.strip_prefix(b"GIT_DIR=").unwrap_or(part);
            let rest = path.strip_prefix(mirror);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
        })
    };
    for process in processes.flatten() {
        let number = process.file_name();
        if number == OsStr::new(&own) || !number.as_bytes().iter().all(u8::is_ascii_digit) {
            continue;
        }
        // It may have ended, and another user's process cannot be read; neither uses the mirror.
        let read = |name: &str| fs::read(process.path().join(name)).unwrap_or_default();
        let arguments = read("cmdline");
        let is_git = arguments.split(|byte| *byte == 0).next().is_some_and(|program| {
            let name = program.rsplit(|byte| *byte == b'/').next().unwrap_or(program);
            name.starts_with(b"git")
        });
        if is_git && (names(&arguments) || names(&read("environ"))) {
            return Some(true);
        }
    }
    Some(false)
}

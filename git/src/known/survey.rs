//! Finds the known folders that need a closer look: those with a changed name or stat. It only
//! reads stats, on several threads, since that is most of the cost of scanning an unchanged
//! worktree.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::{KnownFolder, Node, Stat};
use crate::beneath::{Beneath, Parent};

/// Number of portions for the threads; with fewer folders one thread is as fast.
const PORTIONS: usize = 64;

const THREADS: usize = 4;

struct Portion<'a> {
    path: PathBuf,
    folder: &'a KnownFolder,
    /// Whether the folders below belong to the portion.
    deep: bool,
}

/// The known folders that changed, or `None` when any may have changed.
pub(super) fn survey(root: &Path, beneath: &Beneath, top: &KnownFolder) -> Option<BTreeSet<PathBuf>> {
    let portions = divide(top)?;
    let next = AtomicUsize::new(0);
    let work = || {
        let mut suspects = Vec::new();
        while let Some(portion) = portions.get(next.fetch_add(1, Ordering::Relaxed)) {
            let opened = match beneath.parent(&portion.path, false) {
                Ok(Parent::Open(parent, name)) => open(&parent, name).ok(),
                Ok(Parent::Absent | Parent::Blocked(_)) => None,
                // The path of the root has no name.
                Err(_) => rustix::fs::open(root, FLAGS, Mode::empty()).ok(),
            };
            match opened {
                Some(here) => look(here, &portion.path, portion.folder, portion.deep, &mut suspects),
                None => suspects.push(portion.path.clone()),
            }
        }
        suspects
    };
    thread::scope(|scope| {
        let others: Vec<_> = (1..THREADS).map(|_| scope.spawn(work)).collect();
        let mut suspects: BTreeSet<PathBuf> = work().into_iter().collect();
        for other in others {
            suspects.extend(other.join().ok()?);
        }
        Some(suspects)
    })
}

/// Portions that together cover every folder once; `None` when there is too little to divide.
fn divide(top: &KnownFolder) -> Option<Vec<Portion<'_>>> {
    let mut portions = Vec::new();
    let mut level = vec![(PathBuf::new(), top)];
    while portions.len() + level.len() < PORTIONS {
        let mut below = Vec::new();
        for (path, folder) in level {
            for (name, node) in &folder.nodes {
                if let Node::Folder(inner) = node {
                    below.push((path.join(name), inner));
                }
            }
            let deep = false;
            portions.push(Portion { path, folder, deep });
        }
        if below.is_empty() {
            return None;
        }
        level = below;
    }
    let deep = true;
    portions.extend(level.into_iter().map(|(path, folder)| Portion { path, folder, deep }));
    Some(portions)
}

const FLAGS: OFlags = OFlags::DIRECTORY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC)
    .union(OFlags::RDONLY);

fn open(parent: &OwnedFd, name: &OsStr) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(parent, name, FLAGS, Mode::empty())
}

fn look(here: OwnedFd, path: &Path, folder: &KnownFolder, deep: bool, suspects: &mut Vec<PathBuf>) {
    let Ok(mut dir) = Dir::read_from(&here) else {
        return suspects.push(path.to_owned());
    };
    let mut as_known = 0;
    let mut others = 0;
    while let Some(item) = dir.read() {
        let Ok(item) = item else {
            others += 1;
            break;
        };
        let name = item.file_name();
        if matches!(name.to_bytes(), b"." | b".." | b".git") {
            continue;
        }
        match folder.nodes.get(OsStr::from_bytes(name.to_bytes())) {
            Some(Node::Entry(entry)) => {
                let stat = rustix::fs::statat(&here, name, AtFlags::SYMLINK_NOFOLLOW);
                if stat.is_ok_and(|stat| entry.stat == Some(Stat::of(&stat))) {
                    as_known += 1;
                } else {
                    others += 1;
                }
            }
            Some(Node::Folder(_)) if matches!(item.file_type(), FileType::Directory) => as_known += 1,
            Some(Node::Folder(_)) | None => others += 1,
        }
    }
    if others > 0 || as_known != folder.nodes.len() {
        suspects.push(path.to_owned());
    }
    if !deep {
        return;
    }
    for (name, node) in &folder.nodes {
        if let Node::Folder(inner) = node {
            let path = path.join(name);
            match open(&here, name) {
                Ok(opened) => look(opened, &path, inner, deep, suspects),
                Err(_) => suspects.push(path),
            }
        }
    }
}

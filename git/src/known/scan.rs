//! Brings the known state of a worktree up to date with the disk: one walk over the folders that a
//! survey found changed, then a question to git whether it ignores the unknown names. Files are
//! opened only when their stat differs. Nothing is written but objects, no link is followed out of
//! the worktree, and a file that cannot be taken fails the whole scan.

use std::collections::{BTreeSet, HashSet};
use std::ffi::{OsStr, OsString};
use std::io;
use std::ops::Bound;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use git2::{IndexEntry, IndexTime, ObjectType};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::survey::survey;
use super::{KnownEntry, KnownFolder, Node};
use crate::beneath::{Beneath, Parent};
use crate::error::GitError;
use crate::objects::{Objects, is_storable, mode, open_file};

/// Two changes within a tick of the file system's clock have the same time.
const TICK: Duration = Duration::from_millis(20);

/// The tick on file systems whose times have no fraction.
const COARSE_TICK: Duration = Duration::from_secs(2);

/// The stat of a file, in the precision of git's index. Equal stats mean an unchanged file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stat {
    modified: (u32, u32),
    changed: (u32, u32),
    inode: u32,
    size: u32,
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "only compared for equality, in the precision of git's index"
)]
impl Stat {
    pub(super) fn of(stat: &rustix::fs::Stat) -> Self {
        Self {
            modified: (stat.st_mtime as u32, stat.st_mtime_nsec as u32),
            changed: (stat.st_ctime as u32, stat.st_ctime_nsec as u32),
            inode: stat.st_ino as u32,
            size: stat.st_size as u32,
        }
    }

    pub(super) fn of_index(item: &IndexEntry) -> Self {
        let time = |time: &IndexTime| (time.seconds() as u32, time.nanoseconds());
        Self {
            modified: time(&item.mtime),
            changed: time(&item.ctime),
            inode: item.ino,
            size: item.file_size,
        }
    }

    /// Whether any change at or after `moment` would give another stat.
    pub(super) fn is_before(self, moment: SystemTime) -> bool {
        let Ok(moment) = moment.duration_since(SystemTime::UNIX_EPOCH) else {
            return false;
        };
        let time = |(seconds, fraction): (u32, u32)| Duration::new(seconds.into(), fraction);
        let coarse = self.modified.1 == 0 && self.changed.1 == 0;
        let tick = if coarse { COARSE_TICK } else { TICK };
        time(self.modified).max(time(self.changed)) + tick < moment
    }
}

pub(crate) struct Scan<'a> {
    objects: &'a mut Objects,
    root: &'a Path,
    beneath: &'a Beneath,
    started: SystemTime,
    /// The folders of submodules that have their files, which are not looked into.
    filled: &'a HashSet<PathBuf>,
    /// The known folders that changed; `None`: any may have changed.
    suspects: Option<BTreeSet<PathBuf>>,
    /// Unknown names and their file types.
    unknown: Vec<(PathBuf, FileType)>,
}

impl<'a> Scan<'a> {
    pub(crate) fn new(
        objects: &'a mut Objects,
        root: &'a Path,
        beneath: &'a Beneath,
        filled: &'a HashSet<PathBuf>,
    ) -> Self {
        Self {
            objects,
            root,
            beneath,
            started: SystemTime::now(),
            filled,
            suspects: None,
            unknown: Vec::new(),
        }
    }

    /// Makes `top` equal to the disk. Known files stay known while they exist; others come in
    /// unless they are ignored. Returns the ignored paths, without the content of ignored folders.
    pub(crate) fn run(
        mut self,
        top: &mut KnownFolder,
        ignored: impl Fn(&[PathBuf]) -> Result<HashSet<PathBuf>, GitError>,
    ) -> Result<Vec<PathBuf>, GitError> {
        self.suspects = survey(self.root, self.beneath, top);
        let here = self.open_folder(Path::new(""))?.ok_or_else(|| self.gone())?;
        self.folder(here, Path::new(""), top)?;
        let mut left_out = Vec::new();
        while !self.unknown.is_empty() {
            let batch = std::mem::take(&mut self.unknown);
            let paths: Vec<PathBuf> = batch.iter().map(|(path, _)| path.clone()).collect();
            let ignored = ignored(&paths)?;
            for (path, kind) in batch {
                if ignored.contains(&path) {
                    left_out.push(path);
                } else if kind == FileType::Directory {
                    if let Some(folder) = self.open_folder(&path)? {
                        self.folder(folder, &path, &mut KnownFolder::default())?;
                    }
                } else if let Some(entry) = self.take_path(&path)? {
                    top.insert(&path, entry);
                }
            }
        }
        left_out.sort();
        Ok(left_out)
    }

    /// The current entry at a path, whether ignored or not. `None` for nothing and for what git
    /// does not store.
    pub(crate) fn take_path(&mut self, path: &Path) -> Result<Option<KnownEntry>, GitError> {
        let parent = self.beneath.parent(path, false);
        match parent.map_err(GitError::io("open", &self.root.join(path)))? {
            Parent::Open(parent, name) => {
                let Some(stat) = self.stat(&parent, name, path)? else {
                    return Ok(None);
                };
                self.take(&parent, name, path, &stat, None)
            }
            Parent::Absent | Parent::Blocked(_) => Ok(None),
        }
    }

    /// Whether a folder, or one below it, needs a closer look.
    fn is_suspect(&self, folder: &Path) -> bool {
        let Some(suspects) = &self.suspects else { return true };
        // The content of a folder sorts right after the folder.
        let mut after = suspects.range::<Path, _>((Bound::Included(folder), Bound::Unbounded));
        after.next().is_some_and(|suspect| suspect.starts_with(folder))
    }

    fn gone(&self) -> GitError {
        GitError::io("open", self.root)(io::Error::from(io::ErrorKind::NotFound))
    }

    fn open_folder(&self, path: &Path) -> Result<Option<OwnedFd>, GitError> {
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
        if path == Path::new("") {
            let opened = rustix::fs::open(self.root, flags, Mode::empty());
            return opened
                .map(Some)
                .map_err(|error| GitError::io("open", self.root)(error.into()));
        }
        let failed = |error| GitError::io("open", &self.root.join(path))(error);
        match self.beneath.parent(path, false).map_err(failed)? {
            Parent::Open(parent, name) => match rustix::fs::openat(&parent, name, flags, Mode::empty()) {
                Ok(folder) => Ok(Some(folder)),
                // It vanished or became something else, which a later scan will see.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
                Err(error) => Err(failed(error.into())),
            },
            Parent::Absent | Parent::Blocked(_) => Ok(None),
        }
    }

    /// `None`: the file does not exist.
    fn stat(&self, parent: &OwnedFd, name: &OsStr, path: &Path) -> Result<Option<rustix::fs::Stat>, GitError> {
        match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(error) => Err(GitError::io("look at", &self.root.join(path))(error.into())),
        }
    }

    fn folder(&mut self, here: OwnedFd, path: &Path, folder: &mut KnownFolder) -> Result<(), GitError> {
        let failed = |error: Errno| GitError::io("list", &self.root.join(path))(error.into());
        let mut names = Vec::with_capacity(folder.nodes.len());
        for item in Dir::read_from(&here).map_err(failed)? {
            let item = item.map_err(failed)?;
            let name = item.file_name().to_bytes();
            // A repository's own files are never content of a worktree, at any depth.
            if !matches!(name, b"." | b".." | b".git") {
                names.push((OsString::from_vec(name.to_vec()), item.file_type()));
            }
        }
        let mut still_there = 0;
        for (name, kind) in &names {
            let Some(node) = folder.nodes.get_mut(name) else {
                self.note_unknown(&here, name, path.join(name), *kind)?;
                continue;
            };
            match self.node(&here, name, path, node)? {
                Found::Same => still_there += 1,
                Found::Changed => {
                    still_there += 1;
                    folder.tree = None;
                }
                Found::Gone => {
                    folder.nodes.remove(name);
                    folder.tree = None;
                }
            }
        }
        if still_there != folder.nodes.len() {
            let names: HashSet<&OsString> = names.iter().map(|(name, _)| name).collect();
            folder.nodes.retain(|name, _| names.contains(name));
            folder.tree = None;
        }
        Ok(())
    }

    fn note_unknown(&mut self, here: &OwnedFd, name: &OsStr, path: PathBuf, kind: FileType) -> Result<(), GitError> {
        let kind = if kind == FileType::Unknown {
            match self.stat(here, name, &path)? {
                Some(stat) => FileType::from_raw_mode(stat.st_mode),
                None => return Ok(()),
            }
        } else {
            kind
        };
        // A tree cannot hold devices, pipes and sockets.
        if matches!(kind, FileType::RegularFile | FileType::Symlink | FileType::Directory) {
            self.unknown.push((path, kind));
        }
        Ok(())
    }

    fn node(&mut self, here: &OwnedFd, name: &OsStr, folder: &Path, node: &mut Node) -> Result<Found, GitError> {
        let path = || folder.join(name);
        match node {
            Node::Folder(_) if !self.is_suspect(&path()) => Ok(Found::Same),
            Node::Folder(inner) => {
                let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
                match rustix::fs::openat(here, name, flags, Mode::empty()) {
                    Ok(opened) => {
                        let before = inner.tree;
                        self.folder(opened, &path(), inner)?;
                        if inner.nodes.is_empty() {
                            return Ok(Found::Gone);
                        }
                        return Ok(if before.is_some() && inner.tree == before {
                            Found::Same
                        } else {
                            Found::Changed
                        });
                    }
                    Err(Errno::NOENT) => return Ok(Found::Gone),
                    Err(Errno::NOTDIR | Errno::LOOP) => {}
                    Err(error) => return Err(GitError::io("open", &self.root.join(path()))(error.into())),
                }
                self.note_unknown(here, name, path(), FileType::Unknown)?;
                Ok(Found::Gone)
            }
            Node::Entry(entry) => {
                let Some(stat) = self.stat(here, name, folder)? else {
                    return Ok(Found::Gone);
                };
                if entry.stat == Some(Stat::of(&stat)) {
                    return Ok(Found::Same);
                }
                let kind = FileType::from_raw_mode(stat.st_mode);
                if entry.mode == mode::SUBMODULE
                    && kind == FileType::Directory
                    && (self.filled.contains(&path()) || self.is_bare(here, name, folder)?)
                {
                    return Ok(Found::Same);
                }
                let known = (entry.mode != mode::SUBMODULE).then_some(*entry);
                let Some(taken) = self.take(here, name, &path(), &stat, known)? else {
                    self.note_unknown(here, name, path(), kind)?;
                    return Ok(Found::Gone);
                };
                let same = entry.is_same(&taken);
                *entry = taken;
                Ok(if same { Found::Same } else { Found::Changed })
            }
        }
    }

    /// Whether a submodule's folder holds no files. Otherwise its files are ordinary content.
    fn is_bare(&self, here: &OwnedFd, name: &OsStr, folder: &Path) -> Result<bool, GitError> {
        let failed = |error: Errno| GitError::io("list", &self.root.join(folder).join(name))(error.into());
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
        let opened = rustix::fs::openat(here, name, flags, Mode::empty()).map_err(failed)?;
        for item in Dir::read_from(&opened).map_err(failed)? {
            if !matches!(item.map_err(failed)?.file_name().to_bytes(), b"." | b".." | b".git") {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Takes a file or link; `None` for anything else, and for what vanished.
    fn take(
        &mut self,
        parent: &OwnedFd,
        name: &OsStr,
        path: &Path,
        stat: &rustix::fs::Stat,
        known: Option<KnownEntry>,
    ) -> Result<Option<KnownEntry>, GitError> {
        let kind = FileType::from_raw_mode(stat.st_mode);
        if !matches!(kind, FileType::RegularFile | FileType::Symlink) {
            return Ok(None);
        }
        if path.iter().any(|part| !is_storable(part, false)) || !is_storable(name, kind == FileType::Symlink) {
            return Err(GitError::NotTaken {
                path: path.to_string_lossy().into_owned(),
            });
        }
        let full = self.root.join(path);
        let (mode, id) = if kind == FileType::Symlink {
            let target = match rustix::fs::readlinkat(parent, name, Vec::new()) {
                Ok(target) => target,
                Err(Errno::NOENT | Errno::INVAL) => return Ok(None),
                Err(error) => return Err(GitError::io("read", &full)(error.into())),
            };
            (mode::LINK, self.objects.write(ObjectType::Blob, target.into_bytes())?)
        } else {
            let file = match open_file(parent, name) {
                Ok(file) => file,
                Err(Errno::NOENT | Errno::LOOP) => return Ok(None),
                Err(error) => return Err(GitError::io("open", &full)(error.into())),
            };
            let size = u64::try_from(stat.st_size).unwrap_or(0);
            let id = self
                .objects
                .write_file(file, size, known.map(|entry| entry.id), &full)?;
            let executable = stat.st_mode & 0o100 != 0;
            (if executable { mode::PROGRAM } else { mode::FILE }, id)
        };
        // The stat is from before reading: a write during the read changes it.
        let stat = Some(Stat::of(stat)).filter(|stat| stat.is_before(self.started));
        Ok(Some(KnownEntry { mode, id, stat }))
    }
}

enum Found {
    Same,
    Changed,
    Gone,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_vouches_only_for_what_is_older_than_a_tick() {
        let stat = |modified, changed| Stat {
            modified,
            changed,
            inode: 1,
            size: 1,
        };
        let at = |millis| SystemTime::UNIX_EPOCH + Duration::from_millis(millis);
        let ms = |millis: u32| (millis / 1000, millis % 1000 * 1_000_000);
        for (modified, changed, looked_at, trusted) in [
            (ms(5_001), ms(5_001), 5_050, true),
            (ms(5_001), ms(5_001), 5_015, false),
            (ms(5_001), ms(5_001), 5_001, false),
            // Somebody set the modification time back; the change time cannot be set.
            (ms(1_001), ms(5_001), 5_010, false),
            (ms(9_001), ms(5_001), 5_050, false),
            // Whole seconds: possibly a file system without fractions.
            (ms(5_000), ms(5_000), 6_999, false),
            (ms(5_000), ms(5_000), 7_001, true),
        ] {
            let stat = stat(modified, changed);
            assert_eq!(stat.is_before(at(looked_at)), trusted, "{stat:?} looked at {looked_at}");
        }
    }
}

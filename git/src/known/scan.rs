//! Brings the known state of a worktree up to date with the disk: one walk over the folders that a
//! survey found changed, then a question to git whether it ignores the unknown names. Files are
//! opened only when their stat differs. Nothing is written but objects, and no link is followed out
//! of the worktree. A file that cannot or must not be taken costs that file, and is named
//! ([`crate::left_out`]): of one that cannot be read, what is known of it stays; of one that is too
//! large or has a secret, what the base has.

use std::collections::{BTreeSet, HashSet};
use std::ffi::{OsStr, OsString};
use std::io;
use std::ops::Bound;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use git2::{ObjectType, Oid as Id};
use kage_core::left_out::LeftOutReason;
use kage_core::task::ResultRules;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::survey::survey;
use super::{KnownEntry, KnownFolder, Node, Stat};
use crate::beneath::{Beneath, Parent};
use crate::error::GitError;
use crate::large::{FilledFiles, has_content};
use crate::left_out::{NewFiles, NotTaken, by_path, by_size, entry_in, holds_git_up, size_of};
use crate::objects::{Objects, WrittenFile, is_storable, mode, open_file};
use crate::secrets::Secrets;

mod held;

use held::Held;

pub(crate) struct Scan<'a> {
    objects: &'a mut Objects,
    root: &'a Path,
    beneath: &'a Beneath,
    started: SystemTime,
    /// The folders of submodules that have their files, which are not looked into.
    filled: &'a HashSet<PathBuf>,
    /// The files that have a content in place of a pointer.
    large: &'a FilledFiles,
    /// The known folders that changed; `None`: any may have changed.
    suspects: Option<BTreeSet<PathBuf>>,
    /// Unknown names and their file types.
    unknown: Vec<(PathBuf, FileType)>,
    rules: &'a ResultRules,
    /// The tree of the base.
    base: Id,
    secrets: &'a Secrets,
    not_taken: &'a mut NotTaken,
}

/// What a scan judges files by.
pub(crate) struct Judged<'a> {
    pub(crate) rules: &'a ResultRules,
    /// The tree of the base.
    pub(crate) base: Id,
    /// The folders of submodules that have their files, which are not looked into.
    pub(crate) filled: &'a HashSet<PathBuf>,
    /// The files that have a content in place of a pointer, and count as the pointer.
    pub(crate) large: &'a FilledFiles,
    /// What no file may have that the base does not have at its path.
    pub(crate) secrets: &'a Secrets,
    /// Gets what is not taken.
    pub(crate) not_taken: &'a mut NotTaken,
}

impl<'a> Scan<'a> {
    pub(crate) fn new(objects: &'a mut Objects, root: &'a Path, beneath: &'a Beneath, judged: Judged<'a>) -> Self {
        let Judged {
            rules,
            base,
            filled,
            large,
            secrets,
            not_taken,
        } = judged;
        Self {
            rules,
            base,
            secrets,
            not_taken,
            objects,
            root,
            beneath,
            started: SystemTime::now(),
            filled,
            large,
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
        let mut new = Vec::new();
        let mut counted = NewFiles::default();
        while !self.unknown.is_empty() {
            let batch = std::mem::take(&mut self.unknown);
            let paths: Vec<PathBuf> = batch.iter().map(|(path, _)| path.clone()).collect();
            let ignored = ignored(&paths)?;
            for (path, kind) in batch {
                if ignored.contains(&path) {
                    left_out.push(path);
                } else if let Some(reason) = by_path(&path) {
                    self.not_taken.add(&path, reason);
                } else if kind == FileType::Directory {
                    if let Some(folder) = self.open_folder(&path)? {
                        self.folder(folder, &path, &mut KnownFolder::default())?;
                    }
                } else if matches!(kind, FileType::RegularFile | FileType::Symlink) {
                    let size = self.size_of_new(&path)?;
                    counted.add(self.rules, &path, size)?;
                    new.push(path);
                } else {
                    // A tree cannot hold devices, pipes and sockets.
                    self.not_taken.add(&path, LeftOutReason::NotAFile);
                }
            }
        }
        // Only now: of too many, none is read.
        for path in new {
            if let Some(entry) = self.take_path(&path)? {
                top.insert(&path, entry);
            }
        }
        left_out.sort();
        Ok(left_out)
    }

    /// The current entry at a path, whether ignored or not. `None` for nothing and for what git
    /// does not store.
    pub(crate) fn take_path(&mut self, path: &Path) -> Result<Option<KnownEntry>, GitError> {
        match self.parent(path)? {
            Some((parent, name)) => match self.stat(&parent, name, path)? {
                Found::Here(stat) => self.take(&parent, name, path, &stat, None),
                Found::Nothing | Found::Closed => Ok(None),
            },
            None => Ok(None),
        }
    }

    /// The size of a file that will be taken; 0 for anything else.
    fn size_of_new(&mut self, path: &Path) -> Result<u64, GitError> {
        let Some((parent, name)) = self.parent(path)? else {
            return Ok(0);
        };
        let Found::Here(stat) = self.stat(&parent, name, path)? else {
            return Ok(0);
        };
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        let is_taken = is_file && self.too_large(path, size).is_none();
        Ok(if is_taken { size } else { 0 })
    }

    /// The pointer in whose place a file has its content, unchanged.
    fn pointer_of(&self, parent: &OwnedFd, name: &OsStr, path: &Path, size: u64) -> Result<Option<Id>, GitError> {
        let own = self.large.get(path);
        // One that was moved or copied, where its content would be too large.
        let moved = self
            .large
            .values()
            .filter(|filled| own.is_none() && filled.size == size && size > self.rules.max_file_bytes);
        for filled in own.into_iter().chain(moved) {
            // What cannot be opened is told by who takes it.
            let Ok(file) = open_file(parent, name) else {
                return Ok(None);
            };
            if has_content(&file, filled).map_err(GitError::io("read", &self.root.join(path)))? {
                return Ok(Some(filled.pointer));
            }
        }
        Ok(None)
    }

    fn too_large(&self, path: &Path, size: u64) -> Option<LeftOutReason> {
        let repository = self.objects.repository();
        let before = || {
            let content = self.large.get(path).map(|filled| filled.size);
            content.or_else(|| size_of(repository, entry_in(repository, self.base, path)?.1))
        };
        by_size(self.rules, before, size)
    }

    /// The folder that a path is in; `None`: it is not there, or cannot be entered.
    fn parent<'p>(&mut self, path: &'p Path) -> Result<Option<(OwnedFd, &'p OsStr)>, GitError> {
        match self.beneath.parent(path, false) {
            Ok(Parent::Open(parent, name)) => Ok(Some((parent, name))),
            Ok(Parent::Absent | Parent::Blocked(_)) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                self.not_taken.add(path, LeftOutReason::Unreadable);
                Ok(None)
            }
            Err(error) => Err(GitError::io("open", &self.root.join(path))(error)),
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

    fn open_folder(&mut self, path: &Path) -> Result<Option<OwnedFd>, GitError> {
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
        if path == Path::new("") {
            let opened = rustix::fs::open(self.root, flags, Mode::empty());
            return opened
                .map(Some)
                .map_err(|error| GitError::io("open", self.root)(error.into()));
        }
        let Some((parent, name)) = self.parent(path)? else {
            return Ok(None);
        };
        match rustix::fs::openat(&parent, name, flags, Mode::empty()) {
            Ok(folder) => Ok(Some(folder)),
            // It vanished or became something else, which a later scan will see.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(Errno::ACCESS | Errno::PERM) => {
                self.not_taken.add(path, LeftOutReason::Unreadable);
                Ok(None)
            }
            Err(error) => Err(GitError::io("open", &self.root.join(path))(error.into())),
        }
    }

    fn stat(&mut self, parent: &OwnedFd, name: &OsStr, path: &Path) -> Result<Found<rustix::fs::Stat>, GitError> {
        match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Found::Here(stat)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(Found::Nothing),
            Err(Errno::ACCESS | Errno::PERM) => {
                self.not_taken.add(path, LeftOutReason::Unreadable);
                Ok(Found::Closed)
            }
            Err(error) => Err(GitError::io("look at", &self.root.join(path))(error.into())),
        }
    }

    fn folder(&mut self, here: OwnedFd, path: &Path, folder: &mut KnownFolder) -> Result<(), GitError> {
        let mut names = Vec::with_capacity(folder.nodes.len());
        let items = match Dir::read_from(&here) {
            Ok(items) => items,
            // It can be opened and not entered: what is known of it stays.
            Err(Errno::ACCESS | Errno::PERM) => {
                self.not_taken.add(path, LeftOutReason::Unreadable);
                return Ok(());
            }
            Err(error) => return Err(GitError::io("list", &self.root.join(path))(error.into())),
        };
        let top = self.root;
        let failed = |error: Errno| GitError::io("list", &top.join(path))(error.into());
        for item in items {
            let item = item.map_err(failed)?;
            let name = item.file_name().to_bytes();
            // A repository's own files are never content of a worktree, at any depth.
            if name == b".git" {
                self.note_nested(path);
            } else if !matches!(name, b"." | b"..") {
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
                Now::Same => still_there += 1,
                Now::Changed => {
                    still_there += 1;
                    folder.tree = None;
                }
                Now::Gone => {
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
                Found::Here(stat) => FileType::from_raw_mode(stat.st_mode),
                Found::Nothing | Found::Closed => return Ok(()),
            }
        } else {
            kind
        };
        if holds_git_up(name, kind) {
            self.not_taken.add(&path, LeftOutReason::NotAFile);
            match rustix::fs::unlinkat(here, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(GitError::io("remove", &self.root.join(path))(error.into())),
            }
            return Ok(());
        }
        self.unknown.push((path, kind));
        Ok(())
    }

    /// Notes that a folder is the top of a repository of its own, and no submodule of the base's.
    fn note_nested(&mut self, folder: &Path) {
        if folder == Path::new("") {
            return;
        }
        let in_base = entry_in(self.objects.repository(), self.base, folder);
        if in_base.is_none_or(|(kind, _)| kind != mode::SUBMODULE) {
            self.not_taken.add(&folder.join(".git"), LeftOutReason::NestedHistory);
        }
    }

    fn node(&mut self, here: &OwnedFd, name: &OsStr, folder: &Path, node: &mut Node) -> Result<Now, GitError> {
        let path = || folder.join(name);
        match node {
            Node::Folder(_) if !self.is_suspect(&path()) => Ok(Now::Same),
            Node::Folder(inner) => {
                let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
                match rustix::fs::openat(here, name, flags, Mode::empty()) {
                    Ok(opened) => {
                        let before = inner.tree;
                        self.folder(opened, &path(), inner)?;
                        if inner.nodes.is_empty() {
                            return Ok(Now::Gone);
                        }
                        return Ok(if before.is_some() && inner.tree == before {
                            Now::Same
                        } else {
                            Now::Changed
                        });
                    }
                    Err(Errno::NOENT) => return Ok(Now::Gone),
                    Err(Errno::NOTDIR | Errno::LOOP) => {}
                    // What is in it is not known to have changed.
                    Err(Errno::ACCESS | Errno::PERM) => {
                        self.not_taken.add(&path(), LeftOutReason::Unreadable);
                        return Ok(Now::Same);
                    }
                    Err(error) => return Err(GitError::io("open", &self.root.join(path()))(error.into())),
                }
                self.note_unknown(here, name, path(), FileType::Unknown)?;
                Ok(Now::Gone)
            }
            Node::Entry(entry) => {
                let stat = match self.stat(here, name, &path())? {
                    Found::Here(stat) => stat,
                    Found::Closed => return Ok(Now::Same),
                    Found::Nothing => return Ok(Now::Gone),
                };
                if entry.stat == Some(Stat::of(&stat)) {
                    return Ok(Now::Same);
                }
                let kind = FileType::from_raw_mode(stat.st_mode);
                if entry.mode == mode::SUBMODULE
                    && kind == FileType::Directory
                    && (self.filled.contains(&path()) || self.is_bare(here, name, folder)?)
                {
                    return Ok(Now::Same);
                }
                let known = (entry.mode != mode::SUBMODULE).then_some(*entry);
                let Some(taken) = self.take(here, name, &path(), &stat, known)? else {
                    self.note_unknown(here, name, path(), kind)?;
                    return Ok(Now::Gone);
                };
                let same = entry.is_same(&taken);
                *entry = taken;
                Ok(if same { Now::Same } else { Now::Changed })
            }
        }
    }

    /// Whether a submodule's folder holds no files. Otherwise its files are ordinary content.
    fn is_bare(&self, here: &OwnedFd, name: &OsStr, folder: &Path) -> Result<bool, GitError> {
        let failed = |error: Errno| GitError::io("list", &self.root.join(folder).join(name))(error.into());
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
        let opened = match rustix::fs::openat(here, name, flags, Mode::empty()) {
            Ok(opened) => opened,
            Err(Errno::ACCESS | Errno::PERM) => return Ok(true),
            Err(error) => return Err(failed(error)),
        };
        let items = match Dir::read_from(&opened) {
            Ok(items) => items,
            Err(Errno::ACCESS | Errno::PERM) => return Ok(true),
            Err(error) => return Err(failed(error)),
        };
        for item in items {
            if !matches!(item.map_err(failed)?.file_name().to_bytes(), b"." | b".." | b".git") {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Takes a file or link; `None` for anything else, for what vanished, and for what is left out.
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
        let named = by_path(path);
        let named = named.or((!is_storable(name, kind == FileType::Symlink)).then_some(LeftOutReason::Name));
        if let Some(reason) = named {
            self.not_taken.add(path, reason);
            return Ok(None);
        }
        if self.has_secret_name(path) {
            return Ok(None);
        }
        let full = self.root.join(path);
        let (mode, id) = if kind == FileType::Symlink {
            let target = match rustix::fs::readlinkat(parent, name, Vec::new()) {
                Ok(target) => target,
                Err(Errno::NOENT | Errno::INVAL) => return Ok(None),
                Err(error) => return Err(GitError::io("read", &full)(error.into())),
            };
            let target = target.into_bytes();
            let found = self.secrets.in_bytes(&target);
            if let Held::Yes(before) = self.holds(path, &found)? {
                return Ok(before);
            }
            (mode::LINK, self.objects.write(ObjectType::Blob, target)?)
        } else if let Some(pointer) = self.pointer_of(parent, name, path, u64::try_from(stat.st_size).unwrap_or(0))? {
            let executable = stat.st_mode & 0o100 != 0;
            (if executable { mode::PROGRAM } else { mode::FILE }, pointer)
        } else {
            let size = u64::try_from(stat.st_size).unwrap_or(0);
            if let Some(reason) = self.too_large(path, size) {
                self.not_taken.add(path, reason);
                let before = entry_in(self.objects.repository(), self.base, path);
                self.not_taken.stand_in(path);
                return Ok(before.map(|(mode, id)| KnownEntry::new(mode, id)));
            }
            let file = match open_file(parent, name) {
                Ok(file) => file,
                Err(Errno::NOENT | Errno::LOOP) => return Ok(None),
                Err(Errno::ACCESS | Errno::PERM) => {
                    self.not_taken.add(path, LeftOutReason::Unreadable);
                    self.not_taken.stand_in(path);
                    return Ok(known.map(|known| KnownEntry { stat: None, ..known }));
                }
                Err(error) => return Err(GitError::io("open", &full)(error.into())),
            };
            // Another thing may have taken its place since.
            if !file.metadata().is_ok_and(|found| found.is_file()) {
                return Ok(None);
            }
            let known = known.map(|entry| entry.id);
            let again = file.try_clone().map_err(GitError::io("open", &full))?;
            let id = match self.objects.write_file(file, size, known, &full, self.secrets)? {
                WrittenFile::As(id) => id,
                WrittenFile::Not(found) => {
                    if let Held::Yes(before) = self.holds(path, &found)? {
                        return Ok(before);
                    }
                    let failed = |error| GitError::io("read", &full)(error);
                    rustix::fs::seek(&again, rustix::fs::SeekFrom::Start(0)).map_err(|error| failed(error.into()))?;
                    let none = Secrets::default();
                    match self.objects.write_file(again, size, known, &full, &none)? {
                        WrittenFile::As(id) => id,
                        WrittenFile::Not(_) => return Ok(None),
                    }
                }
            };
            let executable = stat.st_mode & 0o100 != 0;
            (if executable { mode::PROGRAM } else { mode::FILE }, id)
        };
        // The stat is from before reading: a write during the read changes it.
        let stat = Some(Stat::of(stat)).filter(|stat| stat.is_before(self.started));
        Ok(Some(KnownEntry { mode, id, stat }))
    }
}

/// How a known name is now.
enum Now {
    Same,
    Changed,
    Gone,
}

enum Found<T> {
    Here(T),
    Nothing,
    /// Its folder does not allow to look.
    Closed,
}

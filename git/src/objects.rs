//! Writing objects into a mirror so that they survive a power cut: byte for byte as given,
//! without a filter or a line ending changed. which
//! objects make a commit is its users' business.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::SystemTime;

use flate2::Compression;
use flate2::write::ZlibEncoder;
use git2::{ObjectType, Odb, Oid as Id, Repository};
use kage_core::id::Oid;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use tempfile::{NamedTempFile, TempPath};

use crate::error::GitError;
use crate::shadow::IDENTITY;

/// The modes that a tree knows.
pub(crate) mod mode {
    pub(crate) const FILE: u32 = 0o100_644;
    pub(crate) const PROGRAM: u32 = 0o100_755;
    pub(crate) const LINK: u32 = 0o120_000;
    pub(crate) const FOLDER: u32 = 0o040_000;
    /// A commit of another repository.
    pub(crate) const SUBMODULE: u32 = 0o160_000;
}

/// Files above this go through a stream instead of through memory.
const STREAMED_BYTES: u64 = 16 << 20;

/// With more new files than this, flushing the whole file system once is cheaper.
const FLUSHED_ONE_BY_ONE: usize = 256;

/// A flush waits for the disk, not for a core; the file system joins those under way.
const FLUSH_THREADS: usize = 8;

/// The object store of a mirror.
pub(crate) struct Objects {
    repository: Repository,
    store: PathBuf,
    unflushed: Unflushed,
}

/// Objects that a power cut could still take. They get their names when they are flushed:
/// an empty file of the right name would be taken for the object ever after.
#[derive(Debug, Default)]
pub(crate) struct Unflushed {
    written: BTreeMap<Id, TempPath>,
    /// Written by somebody else, perhaps just now.
    found: BTreeSet<Id>,
}

impl Objects {
    /// Opens the mirror at `path`. `unflushed` were written by an earlier one and not flushed.
    pub(crate) fn open(path: &Path, unflushed: Unflushed) -> Result<Self, GitError> {
        let repository = Repository::open_bare(path).map_err(GitError::library("open a mirror"))?;
        Ok(Self {
            repository,
            store: path.join("objects"),
            unflushed,
        })
    }

    pub(crate) fn repository(&self) -> &Repository {
        &self.repository
    }

    fn odb(&self) -> Result<Odb<'_>, GitError> {
        self.repository.odb().map_err(GitError::library("open an object store"))
    }

    /// The content of a blob.
    pub(crate) fn read(&self, id: Id) -> Result<Vec<u8>, GitError> {
        let odb = self.odb()?;
        let object = odb.read(id).map_err(GitError::library("read an object"))?;
        Ok(object.data().to_vec())
    }

    pub(crate) fn write(&mut self, kind: ObjectType, bytes: &[u8]) -> Result<Id, GitError> {
        let id = Id::hash_object(kind, bytes).map_err(GitError::library("hash an object"))?;
        self.write_as(id, kind, bytes, bytes.len() as u64)?;
        Ok(id)
    }

    /// Writes what has that id, unless it is there.
    fn write_as(&mut self, id: Id, kind: ObjectType, mut content: impl io::Read, size: u64) -> Result<(), GitError> {
        if self.unflushed.written.contains_key(&id) {
            return Ok(());
        }
        if self.odb()?.exists(id) {
            self.unflushed.found.insert(id);
            return Ok(());
        }
        let mut write = || {
            let file = NamedTempFile::with_prefix_in("tmp_obj_", &self.store)?;
            let mut packed = ZlibEncoder::new(file, Compression::fast());
            packed.write_all(format!("{kind} {size}\0").as_bytes())?;
            if io::copy(&mut content, &mut packed)? != size {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let file = packed.finish()?;
            rustix::fs::fchmod(&file, 0o444.into())?;
            Ok(file.into_temp_path())
        };
        let written = write().map_err(GitError::io("write an object in", &self.store))?;
        self.unflushed.written.insert(id, written);
        Ok(())
    }

    /// Takes an open file; nothing is written when its id is `known`, which is in the store.
    pub(crate) fn write_file(&mut self, file: File, size: u64, known: Option<Id>, path: &Path) -> Result<Id, GitError> {
        let failed = |error| GitError::io("read", path)(error);
        if size > STREAMED_BYTES {
            return self.write_stream(file, known, path);
        }
        let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
        (&file).take(u64::MAX).read_to_end(&mut bytes).map_err(failed)?;
        if let Some(known) = known {
            let id = Id::hash_object(ObjectType::Blob, &bytes).map_err(GitError::library("hash a file"))?;
            if id == known {
                return Ok(id);
            }
        }
        self.write(ObjectType::Blob, &bytes)
    }

    fn write_stream(&mut self, mut file: File, known: Option<Id>, path: &Path) -> Result<Id, GitError> {
        if let Some(known) = known
            && hash_open_file(&file).map_err(GitError::io("read", path))? == known
        {
            return Ok(known);
        }
        // A copy does not change between hashing and packing it.
        let mut copy = || {
            let mut copy = tempfile::tempfile_in(&self.store)?;
            let size = io::copy(&mut file, &mut copy)?;
            copy.rewind()?;
            Ok((copy, size))
        };
        let (copy, size) = copy().map_err(GitError::io("copy", path))?;
        let id = hash_open_file(&copy).map_err(GitError::io("read", path))?;
        self.write_as(id, ObjectType::Blob, copy, size)?;
        Ok(id)
    }

    /// Commits a tree with Kage's fixed identity. The message is data: nothing in it is
    /// stripped, wrapped or understood, but NUL, which a commit cannot hold, is replaced.
    pub(crate) fn commit(&mut self, tree: Id, parents: &[Id], message: &str) -> Result<Id, GitError> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let seconds = now.map_or(0, |now| now.as_secs());
        let (name, email) = IDENTITY;
        let mut text = format!("tree {tree}\n");
        for parent in parents {
            text.push_str(&format!("parent {parent}\n"));
        }
        for role in ["author", "committer"] {
            text.push_str(&format!("{role} {name} <{email}> {seconds} +0000\n"));
        }
        text.push('\n');
        text.push_str(&message.replace('\0', "\u{fffd}"));
        self.write(ObjectType::Commit, text.as_bytes())
    }

    /// The tree of a commit.
    pub(crate) fn tree_of(&self, commit: Id) -> Result<Id, git2::Error> {
        Ok(self.repository.find_commit(commit)?.tree_id())
    }

    /// Returns when all that was written survives a power cut, and `more` does. One wait
    /// for the disk is shorter than two.
    pub(crate) fn flush(&mut self, more: impl IntoIterator<Item = PathBuf>) -> Result<(), GitError> {
        let mut paths: BTreeSet<PathBuf> = more.into_iter().collect();
        paths.extend(self.unflushed.written.values().map(|file| file.to_path_buf()));
        for id in &self.unflushed.found {
            let file = self.place_of(*id);
            // Else it is in a pack, which was flushed when it came.
            if file.exists() {
                paths.insert(file);
            }
        }
        flush_all(&paths.into_iter().collect::<Vec<_>>())?;
        let mut folders = BTreeSet::from([self.store.clone()]);
        let found = std::mem::take(&mut self.unflushed.found);
        folders.extend(
            found
                .into_iter()
                .filter_map(|id| Some(self.place_of(id).parent()?.to_owned())),
        );
        folders.retain(|folder| folder.exists());
        for (id, written) in std::mem::take(&mut self.unflushed.written) {
            let place = self.place_of(id);
            let folder = place.parent().unwrap_or(&place).to_owned();
            fs::create_dir_all(&folder).map_err(GitError::io("create", &folder))?;
            written
                .persist(&place)
                .map_err(|error| GitError::io("create", &place)(error.error))?;
            folders.insert(folder);
        }
        flush_all(&folders.into_iter().collect::<Vec<_>>())
    }

    fn place_of(&self, id: Id) -> PathBuf {
        let id = id.to_string();
        let (folder, name) = id.split_at(2);
        self.store.join(folder).join(name)
    }

    /// What the next one has to flush.
    pub(crate) fn into_unflushed(self) -> Unflushed {
        self.unflushed
    }
}

/// The id that the content of an open file has as a blob.
pub(crate) fn hash_open_file(file: &File) -> io::Result<Id> {
    let path = format!("/dev/fd/{}", file.as_raw_fd());
    Id::hash_file(ObjectType::Blob, path).map_err(io::Error::other)
}

/// Opens a file to read, but no symbolic link, and without waiting for a pipe's writer.
pub(crate) fn open_file(folder: &OwnedFd, name: &OsStr) -> Result<File, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(File::from(rustix::fs::openat(folder, name, flags, Mode::empty())?))
}

/// Flushes files and folders, all at the same time.
pub(crate) fn flush_all(paths: &[PathBuf]) -> Result<(), GitError> {
    if paths.len() > FLUSHED_ONE_BY_ONE
        && let Some(path) = paths.first()
    {
        let file = File::open(path).map_err(GitError::io("open", path))?;
        return rustix::fs::syncfs(&file).map_err(|error| GitError::io("flush", path)(error.into()));
    }
    let next = AtomicUsize::new(0);
    let flush = || {
        while let Some(path) = paths.get(next.fetch_add(1, Ordering::Relaxed)) {
            let file = File::open(path).map_err(GitError::io("open", path))?;
            file.sync_all().map_err(GitError::io("flush", path))?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let others: Vec<_> = (1..paths.len().min(FLUSH_THREADS))
            .map(|_| scope.spawn(flush))
            .collect();
        let mut done = flush();
        for other in others {
            let interrupted = Err(GitError::Interrupted { action: "flushing" });
            done = done.and(other.join().unwrap_or(interrupted));
        }
        done
    })
}

/// A small file that is written, but not flushed and not in its place.
#[derive(Debug)]
pub(crate) struct Prepared {
    file: NamedTempFile,
    to: PathBuf,
}

impl Prepared {
    /// Writes what `to` is to hold.
    pub(crate) fn new(to: &Path, bytes: &[u8]) -> Result<Self, GitError> {
        let folder = to.parent().unwrap_or(to);
        fs::create_dir_all(folder).map_err(GitError::io("create", folder))?;
        let mut file = NamedTempFile::new_in(folder).map_err(GitError::io("make a file in", folder))?;
        file.write_all(bytes).map_err(GitError::io("write", to))?;
        Ok(Self {
            file,
            to: to.to_owned(),
        })
    }

    /// Where it is until it is placed, to be flushed.
    pub(crate) fn path(&self) -> PathBuf {
        self.file.path().to_owned()
    }

    /// Puts it in place whole. That survives a power cut once its folder is flushed.
    pub(crate) fn place(self) -> Result<(), GitError> {
        match self.file.persist(&self.to) {
            Ok(_) => Ok(()),
            Err(error) => Err(GitError::io("create", &self.to)(error.error)),
        }
    }
}

/// libgit2's form of an id.
pub(crate) fn id_of(oid: &Oid) -> Result<Id, GitError> {
    Id::from_str(oid.as_str()).map_err(GitError::library("read an object id"))
}

/// This project's form of one.
pub(crate) fn oid_of(id: Id) -> Result<Oid, GitError> {
    let text = id.to_string();
    text.parse()
        .map_err(|_| GitError::unexpected("hash-object", text.as_bytes()))
}

/// Whether git stores a file of that name, and others take it in.
pub(crate) fn is_storable(name: &OsStr, is_link: bool) -> bool {
    let bytes = name.as_bytes();
    let stem = bytes.split(|byte| matches!(byte, b':' | b'\\')).next().unwrap_or(bytes);
    let end = stem
        .iter()
        .rposition(|byte| !matches!(byte, b' ' | b'.'))
        .map_or(0, |at| at + 1);
    let stem = stem.get(..end).unwrap_or(stem).to_ascii_lowercase();
    match stem.as_slice() {
        b".git" | b"git~1" => false,
        b".gitmodules" => !is_link,
        _ => true,
    }
}

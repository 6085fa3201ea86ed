//! Writes objects into a mirror so that they survive a power cut: byte for byte as given, without
//! filters or changes of line endings. Callers decide which objects make a commit.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Component, Path, PathBuf};
use std::time::SystemTime;

use flate2::Compression;
use flate2::write::ZlibEncoder;
use git2::{ObjectType, Odb, OdbLookupFlags, Oid as Id, Repository};
use kage_core::id::Oid;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use tempfile::{NamedTempFile, TempPath};

use crate::durable::flush_all;
use crate::error::GitError;
use crate::loose::{check_loose, compared};
use crate::secrets::{FoundSecrets, Secrets};
use crate::shadow::IDENTITY;

mod pack;

use pack::{Finished, Loaded, Pack};

/// The modes of entries in a tree.
pub(crate) mod mode {
    pub(crate) const FILE: u32 = 0o100_644;
    pub(crate) const PROGRAM: u32 = 0o100_755;
    pub(crate) const LINK: u32 = 0o120_000;
    pub(crate) const FOLDER: u32 = 0o040_000;
    /// A commit of another repository.
    pub(crate) const SUBMODULE: u32 = 0o160_000;
}

/// Larger files are streamed instead of read into memory.
pub(crate) const STREAMED_BYTES: u64 = 16 << 20;

/// How much more than its size is read of a file that grows meanwhile.
const GROWTH: u64 = 1 << 20;

/// A file of at most this size is read whole to hash it.
const READ_AT_ONCE: usize = 1 << 20;

/// Limits of small objects in memory, by count and by bytes. Beyond either limit the objects go
/// into a pack, which is quicker to write and to flush than a file for each; below, they do not,
/// since git looks through every pack there is.
const MOST_LOOSE: usize = 100;
const MOST_LOOSE_BYTES: usize = 8 << 20;

pub(crate) struct Objects {
    repository: Repository,
    store: PathBuf,
    unflushed: Unflushed,
}

/// Objects that a power cut could still take. They get their names only when they are flushed: an
/// empty file of the right name would be taken for the object ever after.
#[derive(Debug, Default)]
pub(crate) struct Unflushed {
    few: BTreeMap<Id, Loaded>,
    bytes: usize,
    /// Present once the limits of `few` were exceeded.
    pack: Option<Pack>,
    /// Large objects, each in a file of its own.
    files: BTreeMap<Id, TempPath>,
    /// Objects that another process wrote, perhaps just now.
    found: BTreeSet<Id>,
}

/// What became of a file.
pub(crate) enum WrittenFile {
    As(Id),
    /// It has secrets, so it is not written.
    Not(FoundSecrets),
}

impl Unflushed {
    fn has(&self, id: &Id) -> bool {
        let is_packed = self.pack.as_ref().is_some_and(|pack| pack.has(id));
        is_packed || self.few.contains_key(id) || self.files.contains_key(id)
    }
}

impl Objects {
    /// Opens the mirror at `path`. `unflushed` holds what an earlier use wrote and did not flush.
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

    /// To be done before an object is read that this module did not write just now.
    fn prove(&self, id: Id) -> Result<(), GitError> {
        check_loose(self.repository.commondir(), id)
    }

    pub(crate) fn read(&self, id: Id) -> Result<Vec<u8>, GitError> {
        self.prove(id)?;
        let odb = self.odb()?;
        let object = odb.read(id).map_err(GitError::library("read an object"))?;
        Ok(object.data().to_vec())
    }

    /// Writes the content of a blob into an empty file. A large blob in a file of its own, as this
    /// module writes it, is not read into memory.
    pub(crate) fn copy_to(&self, id: Id, mut file: &File, path: &Path) -> Result<(), GitError> {
        self.prove(id)?;
        let odb = self.odb()?;
        let (size, _) = odb.read_header(id).map_err(GitError::library("read an object"))?;
        if size as u64 > STREAMED_BYTES
            && let Ok((mut content, _, _)) = odb.reader(id)
        {
            io::copy(&mut content, &mut file).map_err(GitError::io("write", path))?;
            // Nothing else has checked whether the stored object is sound.
            let found = hash_open_file(file).map_err(GitError::io("read", path))?;
            if found != id {
                return Err(GitError::unexpected("read an object", found.to_string().as_bytes()));
            }
            return Ok(());
        }
        let object = odb.read(id).map_err(GitError::library("read an object"))?;
        file.write_all(object.data()).map_err(GitError::io("write", path))
    }

    pub(crate) fn write(&mut self, kind: ObjectType, bytes: Vec<u8>) -> Result<Id, GitError> {
        let id = Id::hash_object(kind, &bytes).map_err(GitError::library("hash an object"))?;
        self.write_as(id, kind, bytes)?;
        Ok(id)
    }

    /// Writes the object with that id, unless it exists.
    fn write_as(&mut self, id: Id, kind: ObjectType, bytes: Vec<u8>) -> Result<(), GitError> {
        if self.is_there(id)? {
            return Ok(());
        }
        self.unflushed.bytes += bytes.len();
        self.unflushed.few.insert(id, Loaded { kind, bytes });
        if self.unflushed.few.len() > MOST_LOOSE || self.unflushed.bytes > MOST_LOOSE_BYTES {
            self.pack()?;
        }
        Ok(())
    }

    fn is_there(&mut self, id: Id) -> Result<bool, GitError> {
        if self.unflushed.has(&id) {
            return Ok(true);
        }
        // Searching for packs that arrived meanwhile takes longer than writing the object again.
        let is_there = self.odb()?.exists_ext(id, OdbLookupFlags::NO_REFRESH);
        if is_there {
            self.unflushed.found.insert(id);
        }
        Ok(is_there)
    }

    /// Moves the small objects in memory into the pack.
    fn pack(&mut self) -> Result<(), GitError> {
        let mut pack = match self.unflushed.pack.take() {
            Some(pack) => pack,
            None => Pack::new(&self.store.join("pack"))?,
        };
        pack.add(std::mem::take(&mut self.unflushed.few))?;
        self.unflushed.bytes = 0;
        self.unflushed.pack = Some(pack);
        Ok(())
    }

    /// Writes an object to a file of its own, not flushed yet.
    fn write_file_of(
        &mut self,
        id: Id,
        kind: ObjectType,
        mut content: impl io::Read,
        size: u64,
    ) -> Result<(), GitError> {
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
        self.unflushed.files.insert(id, written);
        Ok(())
    }

    /// Takes an open file; nothing is written when its id is `known`, which is in the store
    /// already, or when it has one of the `secrets`. Of a file that grows while it is read, the
    /// beginning is taken, which is what it was at some time; a later look takes more.
    pub(crate) fn write_file(
        &mut self,
        file: File,
        size: u64,
        known: Option<Id>,
        path: &Path,
        secrets: &Secrets,
    ) -> Result<WrittenFile, GitError> {
        if size > STREAMED_BYTES {
            return self.write_stream(file, size, known, path, secrets);
        }
        let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0) + 1);
        let mut content = (&file).take(size.saturating_add(GROWTH));
        content.read_to_end(&mut bytes).map_err(GitError::io("read", path))?;
        let id = Id::hash_object(ObjectType::Blob, &bytes).map_err(GitError::library("hash a file"))?;
        if known != Some(id) {
            let found = secrets.in_bytes(&bytes);
            if !found.is_empty() {
                return Ok(WrittenFile::Not(found));
            }
            self.write_as(id, ObjectType::Blob, bytes)?;
        }
        Ok(WrittenFile::As(id))
    }

    fn write_stream(
        &mut self,
        file: File,
        size: u64,
        known: Option<Id>,
        path: &Path,
        secrets: &Secrets,
    ) -> Result<WrittenFile, GitError> {
        if let Some(known) = known
            && hash_open_file(&file).map_err(GitError::io("read", path))? == known
        {
            return Ok(WrittenFile::As(known));
        }
        // A copy does not change between hashing and packing it.
        let copy = || {
            let mut copy = tempfile::tempfile_in(&self.store)?;
            let size = io::copy(&mut (&file).take(size.saturating_add(GROWTH)), &mut copy)?;
            copy.rewind()?;
            Ok((copy, size))
        };
        let (mut copy, size) = copy().map_err(GitError::io("copy", path))?;
        let search = |copy: &mut File| {
            let found = secrets.in_content(&mut *copy)?;
            copy.rewind()?;
            Ok(found)
        };
        let found = search(&mut copy).map_err(GitError::io("copy", path))?;
        if !found.is_empty() {
            return Ok(WrittenFile::Not(found));
        }
        let id = hash_open_file(&copy).map_err(GitError::io("read", path))?;
        if !self.is_there(id)? {
            self.write_file_of(id, ObjectType::Blob, copy, size)?;
        }
        Ok(WrittenFile::As(id))
    }

    /// Looks for secrets in a blob. A large blob in a file of its own is not read into memory.
    pub(crate) fn search(&self, id: Id, secrets: &Secrets) -> Result<FoundSecrets, GitError> {
        let failed = || GitError::library("read an object");
        self.prove(id)?;
        let odb = self.odb()?;
        let (size, _) = odb.read_header(id).map_err(failed())?;
        if size as u64 > STREAMED_BYTES
            && let Ok((content, _, _)) = odb.reader(id)
        {
            return secrets.in_content(content).map_err(GitError::io("read", &self.store));
        }
        let object = odb.read(id).map_err(failed())?;
        Ok(secrets.in_bytes(object.data()))
    }

    /// Which of the values any file or path of a tree has: they are no secrets of a session's. Every file is
    /// read, so this is asked when a value was found, and remembered.
    pub(crate) fn secrets_in(&self, tree: Id, secrets: &Secrets) -> FoundSecrets {
        if let Some(found) = secrets.known_of(tree) {
            return found;
        }
        let mut found = FoundSecrets::default();
        let mut seen = HashSet::new();
        let mut folders = vec![(Vec::new(), tree)];
        while let Some((path, id)) = folders.pop() {
            // What cannot be read has nothing that is known.
            let Ok(folder) = self.repository().find_tree(id) else {
                continue;
            };
            for entry in &folder {
                let path = [path.as_slice(), entry.name_bytes()].concat();
                match entry.kind() {
                    Some(ObjectType::Tree) => folders.push(([path.as_slice(), b"/"].concat(), entry.id())),
                    Some(ObjectType::Blob) => {
                        found.and(&secrets.in_bytes(&path));
                        if seen.insert(entry.id()) {
                            found.and(&self.search(entry.id(), secrets).unwrap_or_default());
                        }
                    }
                    _ => {}
                }
            }
        }
        secrets.remember(tree, &found);
        found
    }

    /// Commits a tree with Kage's fixed identity. The message is data: nothing in it is stripped,
    /// wrapped or interpreted, but NUL, which a commit cannot hold, is replaced.
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
        self.write(ObjectType::Commit, text.into_bytes())
    }

    pub(crate) fn tree_of(&self, commit: Id) -> Result<Id, git2::Error> {
        Ok(compared::tree_of(&self.repository, commit)?.id())
    }

    /// Returns when everything written, and `more`, survives a power cut. One wait for the disk is
    /// shorter than two.
    pub(crate) fn flush(&mut self, more: impl IntoIterator<Item = PathBuf>) -> Result<(), GitError> {
        if self.unflushed.pack.is_some() {
            self.pack()?;
        }
        for (id, Loaded { kind, bytes }) in std::mem::take(&mut self.unflushed.few) {
            self.write_file_of(id, kind, bytes.as_slice(), bytes.len() as u64)?;
        }
        let unflushed = std::mem::take(&mut self.unflushed);
        let pack = unflushed.pack.map(Pack::finish).transpose()?;
        let mut paths: BTreeSet<PathBuf> = more.into_iter().collect();
        paths.extend(pack.iter().flat_map(Finished::paths));
        paths.extend(unflushed.files.values().map(|file| file.to_path_buf()));
        // Objects without a file are in a pack, which was flushed when it arrived.
        let found = unflushed.found.into_iter().map(|id| self.place_of(id));
        let found: Vec<PathBuf> = found.filter(|file| file.exists()).collect();
        paths.extend(found.iter().cloned());
        flush_all(&paths.into_iter().collect::<Vec<_>>())?;
        let mut folders = BTreeSet::from([self.store.clone()]);
        folders.extend(found.iter().filter_map(|file| Some(file.parent()?.to_owned())));
        if let Some(pack) = pack {
            pack.place()?;
            folders.insert(self.store.join("pack"));
        }
        for (id, written) in unflushed.files {
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

    /// The objects that the next use has to flush.
    pub(crate) fn into_unflushed(self) -> Unflushed {
        self.unflushed
    }
}

/// The blob id of an open file's content, independent of the file's position.
pub(crate) fn hash_open_file(file: &File) -> io::Result<Id> {
    if let Some(bytes) = read_small(file)? {
        return Id::hash_object(ObjectType::Blob, &bytes).map_err(io::Error::other);
    }
    let path = format!("/dev/fd/{}", file.as_raw_fd());
    Id::hash_file(ObjectType::Blob, path).map_err(io::Error::other)
}

/// Reads all of an open file, up to the end at that moment; `None` for a large file.
fn read_small(file: &File) -> io::Result<Option<Vec<u8>>> {
    let size = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
    if size > READ_AT_ONCE {
        return Ok(None);
    }
    // One extra byte, to notice the end.
    let mut bytes = vec![0; size + 1];
    let mut filled = 0;
    while let Some(free) = bytes.get_mut(filled..).filter(|free| !free.is_empty()) {
        match file.read_at(free, filled as u64) {
            Ok(0) => {
                bytes.truncate(filled);
                return Ok(Some(bytes));
            }
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    // The file grew meanwhile.
    Ok(None)
}

/// Opens a file for reading, but no symbolic link, and without waiting for a pipe's writer.
pub(crate) fn open_file(folder: &OwnedFd, name: &OsStr) -> Result<File, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(File::from(rustix::fs::openat(folder, name, flags, Mode::empty())?))
}

/// Whether a path has nothing but names, and none of git's own.
pub(crate) fn is_plain(path: &Path) -> bool {
    let is_name = |part: Component<'_>| match part {
        Component::Normal(name) => !name.eq_ignore_ascii_case(".git"),
        _ => false,
    };
    path.components().next().is_some() && path.components().all(is_name)
}

/// Converts an id to libgit2's form.
pub(crate) fn id_of(oid: &Oid) -> Result<Id, GitError> {
    Id::from_str(oid.as_str()).map_err(GitError::library("read an object id"))
}

/// Converts an id from libgit2's form.
pub(crate) fn oid_of(id: Id) -> Result<Oid, GitError> {
    let text = id.to_string();
    text.parse()
        .map_err(|_| GitError::unexpected("hash-object", text.as_bytes()))
}

/// Whether git stores a file of that name, and other gits accept it.
pub(crate) fn is_storable(name: &OsStr, is_link: bool) -> bool {
    // macOS takes a name with such characters for the name without them.
    let seen = name.to_str().filter(|name| name.contains(is_invisible));
    if let Some(seen) = seen.map(|name| name.replace(is_invisible, "")) {
        return is_storable(OsStr::new(&seen), is_link);
    }
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

/// Characters that file systems of macOS leave out when they compare names.
const fn is_invisible(character: char) -> bool {
    matches!(
        character,
        '\u{200c}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{206a}'..='\u{206f}' | '\u{feff}'
    )
}

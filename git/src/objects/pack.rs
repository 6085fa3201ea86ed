//! Writes many new objects as one pack and its index, as git reads them: two files to flush instead
//! of one for each object. Objects are packed whole, never as differences. It owns the two formats;
//! the caller decides when an object goes into a pack.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use flate2::write::ZlibEncoder;
use flate2::{Compression, Crc};
use git2::{ObjectType, Oid as Id};
use sha1::{Digest as _, Sha1};
use tempfile::{NamedTempFile, TempPath};

use crate::error::GitError;
use crate::shared_work::share_out;

/// Packing keeps a core busy.
const THREADS: usize = 4;

/// From this value on, an offset in the index refers to its table of large offsets.
const LARGE_OFFSET: u64 = 1 << 31;

#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) kind: ObjectType,
    pub(super) bytes: Vec<u8>,
}

/// The offset of an object in a pack, and the checksum of its packed form.
#[derive(Debug, Clone, Copy)]
struct PackedObject {
    offset: u64,
    checksum: u32,
}

/// A pack that is being written.
#[derive(Debug)]
pub(super) struct Pack {
    file: NamedTempFile,
    size: u64,
    places: BTreeMap<Id, PackedObject>,
}

impl Pack {
    /// Creates an empty pack in git's folder for packs.
    pub(super) fn new(folder: &Path) -> Result<Self, GitError> {
        let failed = |error| GitError::io("write a pack in", folder)(error);
        fs::create_dir_all(folder).map_err(failed)?;
        let mut file = NamedTempFile::with_prefix_in("tmp_pack_", folder).map_err(failed)?;
        let header = header(0);
        file.write_all(&header).map_err(failed)?;
        Ok(Self {
            file,
            size: header.len() as u64,
            places: BTreeMap::new(),
        })
    }

    pub(super) fn has(&self, id: &Id) -> bool {
        self.places.contains_key(id)
    }

    /// Adds objects that the pack does not have yet.
    pub(super) fn add(&mut self, objects: BTreeMap<Id, Loaded>) -> Result<(), GitError> {
        let objects: Vec<(Id, Loaded)> = objects.into_iter().collect();
        // Making a compressor costs more than compressing a small file.
        let start = || Ok(ZlibEncoder::new(Vec::new(), Compression::fast()));
        let packed = share_out(&objects, THREADS, start, |packer, (_, object)| {
            pack(packer, object).map_err(GitError::io("pack an object in", self.file.path()))
        })?;
        let mut all = Vec::with_capacity(packed.iter().map(Vec::len).sum());
        for ((id, _), bytes) in objects.iter().zip(&packed) {
            let mut checksum = Crc::new();
            checksum.update(bytes);
            let place = PackedObject {
                offset: self.size + all.len() as u64,
                checksum: checksum.sum(),
            };
            self.places.insert(*id, place);
            all.extend_from_slice(bytes);
        }
        self.size += all.len() as u64;
        let written = self.file.write_all(&all);
        written.map_err(GitError::io("write", self.file.path()))
    }

    /// Completes the pack and writes its index. Neither is flushed or has its final name.
    pub(super) fn finish(mut self) -> Result<Finished, GitError> {
        let path = self.file.path().to_owned();
        let digest = self.complete().map_err(GitError::io("write", &path))?;
        let folder = path.parent().unwrap_or(&path);
        let index = || {
            let mut file = NamedTempFile::with_prefix_in("tmp_idx_", folder)?;
            file.write_all(&index(&self.places, &digest))?;
            readable(&file)?;
            Ok(file.into_temp_path())
        };
        let index = index().map_err(GitError::io("write an index in", folder))?;
        let name = digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        Ok(Finished {
            to: folder.join(format!("pack-{name}.pack")),
            pack: self.file.into_temp_path(),
            index,
        })
    }

    /// Writes the number of objects and the digest of everything.
    fn complete(&mut self) -> io::Result<[u8; 20]> {
        let count = u32::try_from(self.places.len()).map_err(io::Error::other)?;
        let file = self.file.as_file_mut();
        file.rewind()?;
        file.write_all(&header(count))?;
        file.rewind()?;
        let mut digest = Sha1::new();
        io::copy(file, &mut DigestWriter(&mut digest))?;
        let digest: [u8; 20] = digest.finalize().into();
        file.seek(SeekFrom::End(0))?;
        file.write_all(&digest)?;
        readable(&self.file)?;
        Ok(digest)
    }
}

/// A complete pack without its final name.
#[derive(Debug)]
pub(super) struct Finished {
    pack: TempPath,
    index: TempPath,
    to: PathBuf,
}

impl Finished {
    /// The files to flush before `place`.
    pub(super) fn paths(&self) -> [PathBuf; 2] {
        [self.pack.to_path_buf(), self.index.to_path_buf()]
    }

    /// Gives the files their names. The index comes last, since a reader that finds it looks for
    /// the pack.
    pub(super) fn place(self) -> Result<(), GitError> {
        for (file, to) in [
            (self.pack, self.to.clone()),
            (self.index, self.to.with_extension("idx")),
        ] {
            file.persist(&to)
                .map_err(|error| GitError::io("create", &to)(error.error))?;
        }
        Ok(())
    }
}

struct DigestWriter<'a>(&'a mut Sha1);

impl io::Write for DigestWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Sets the permissions that git gives to files that do not change any more.
fn readable(file: &NamedTempFile) -> io::Result<()> {
    file.as_file().set_permissions(fs::Permissions::from_mode(0o444))
}

fn header(count: u32) -> [u8; 12] {
    let mut bytes = *b"PACK\0\0\0\x02\0\0\0\0";
    bytes[8..].copy_from_slice(&count.to_be_bytes());
    bytes
}

/// Encodes an object as in a pack: kind and size, then the compressed content.
fn pack(packer: &mut ZlibEncoder<Vec<u8>>, object: &Loaded) -> io::Result<Vec<u8>> {
    let kind = match object.kind {
        ObjectType::Commit => 1,
        ObjectType::Tree => 2,
        ObjectType::Blob => 3,
        ObjectType::Tag => 4,
        ObjectType::Any => return Err(io::ErrorKind::InvalidInput.into()),
    };
    let mut size = object.bytes.len();
    let mut packed = Vec::with_capacity(size / 2 + 32);
    // Four bits of the size beside the kind, then seven in each further byte.
    let mut byte = (kind << 4) | low_bits(size, 0x0f);
    size >>= 4;
    while size > 0 {
        packed.push(byte | 0x80);
        byte = low_bits(size, 0x7f);
        size >>= 7;
    }
    packed.push(byte);
    *packer.get_mut() = packed;
    packer.write_all(&object.bytes)?;
    packer.reset(Vec::new())
}

#[expect(clippy::cast_possible_truncation, reason = "the mask leaves at most seven bits")]
fn low_bits(number: usize, mask: usize) -> u8 {
    (number & mask) as u8
}

/// Encodes the index of a pack, version 2.
fn index(places: &BTreeMap<Id, PackedObject>, pack: &[u8; 20]) -> Vec<u8> {
    let mut bytes = b"\xfftOc\0\0\0\x02".to_vec();
    let mut up_to = [0_u32; 256];
    for id in places.keys() {
        let first = id.as_bytes().first().copied().unwrap_or_default();
        for count in up_to.iter_mut().skip(usize::from(first)) {
            *count += 1;
        }
    }
    for count in up_to {
        bytes.extend_from_slice(&count.to_be_bytes());
    }
    for id in places.keys() {
        bytes.extend_from_slice(id.as_bytes());
    }
    for place in places.values() {
        bytes.extend_from_slice(&place.checksum.to_be_bytes());
    }
    let mut large = Vec::new();
    for place in places.values() {
        let offset = match u32::try_from(place.offset) {
            Ok(offset) if place.offset < LARGE_OFFSET => offset,
            Ok(_) | Err(_) => {
                large.push(place.offset);
                (1 << 31) | u32::try_from(large.len() - 1).unwrap_or(u32::MAX)
            }
        };
        bytes.extend_from_slice(&offset.to_be_bytes());
    }
    for offset in large {
        bytes.extend_from_slice(&offset.to_be_bytes());
    }
    bytes.extend_from_slice(pack);
    let digest = Sha1::digest(&bytes);
    bytes.extend_from_slice(&digest);
    bytes
}

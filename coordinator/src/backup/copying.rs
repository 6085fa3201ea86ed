//! Copies the files of a data folder while others add to it. Nothing is removed meanwhile, except
//! temporary files.

use std::fs::{self, DirEntry, File};
use std::io::{self, Read as _, Write as _};
use std::path::Path;

use kage_core::id::Digest;
use kage_git::private::make_private;
use sha2::{Digest as _, Sha256};

use super::BackupError;

/// The most read into memory at once.
const CHUNK: usize = 1 << 20;

/// Copies a file with its mode. False when it is not there.
pub(super) fn file(from: &Path, to: &Path, bytes: &mut u64) -> Result<bool, BackupError> {
    match fs::copy(from, to) {
        Ok(copied) => {
            *bytes += copied;
            Ok(true)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound && !from.exists() => Ok(false),
        Err(source) => Err(BackupError::io("copy", from)(source)),
    }
}

/// Copies a file, and says which digest its bytes have. `None` when it is not there.
pub(super) fn digested(from: &Path, to: Option<&Path>, bytes: &mut u64) -> Result<Option<Digest>, BackupError> {
    let mut source = match File::open(from) {
        Ok(source) => source,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(BackupError::io("read", from)(source)),
    };
    let mut target = match to {
        None => None,
        Some(to) => {
            if let Some(folder) = to.parent() {
                make_private(folder).map_err(BackupError::io("create", folder))?;
            }
            let file = File::create(to).map_err(BackupError::io("write", to))?;
            Some((to, file))
        }
    };
    let mut hasher = Sha256::new();
    let mut chunk = vec![0; CHUNK];
    loop {
        let read = source.read(&mut chunk).map_err(BackupError::io("read", from))?;
        if read == 0 {
            return Ok(Some(Digest::from_raw(hasher.finalize().into())));
        }
        *bytes += read as u64;
        hasher.update(&chunk[..read]);
        if let Some((to, file)) = &mut target {
            file.write_all(&chunk[..read]).map_err(BackupError::io("write", to))?;
        }
    }
}

/// Copies a folder with everything in it that `takes` says by its name.
pub(super) fn folder(
    from: &Path,
    to: &Path,
    takes: &impl Fn(&str) -> bool,
    bytes: &mut u64,
) -> Result<(), BackupError> {
    make_private(to).map_err(BackupError::io("create", to))?;
    for entry in entries(from)? {
        let name = entry.file_name();
        if !takes(&name.to_string_lossy()) {
            continue;
        }
        let (from, to) = (entry.path(), to.join(&name));
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => folder(&from, &to, takes, bytes)?,
            Ok(kind) if kind.is_file() => {
                file(&from, &to, bytes)?;
            }
            // Kage makes no links in these folders.
            Ok(_) => {}
            Err(source) => return Err(BackupError::io("read", &from)(source)),
        }
    }
    Ok(())
}

/// Copies a bare repository, into which others may push meanwhile. References come before the
/// objects that they name, and the index of a pack after the pack.
pub(super) fn repository(from: &Path, to: &Path, bytes: &mut u64) -> Result<(), BackupError> {
    let is_plain = |name: &str| !is_temporary(name);
    let in_parts = ["refs", "packed-refs", "objects"];
    folder(from, to, &|name| is_plain(name) && !in_parts.contains(&name), bytes)?;
    // Loose ones first: they are only ever moved into the file of the packed ones.
    folder(&from.join("refs"), &to.join("refs"), &is_plain, bytes)?;
    file(&from.join("packed-refs"), &to.join("packed-refs"), bytes)?;
    let (objects, copies) = (from.join("objects"), to.join("objects"));
    let beside_a_pack = |name: &str| name.starts_with("pack-") && !has_ending(name, "pack");
    // What git can make anew may change while it is copied.
    let is_cache = |name: &str| name.starts_with("multi-pack-index") || name.starts_with("commit-graph");
    folder(
        &objects,
        &copies,
        &|name| is_plain(name) && !is_cache(name) && !beside_a_pack(name),
        bytes,
    )?;
    for entry in entries(&objects.join("pack"))? {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let copy = copies.join("pack").join(name.as_ref());
        if beside_a_pack(&name) && copy.with_extension("pack").exists() {
            file(&entry.path(), &copy, bytes)?;
        }
    }
    Ok(())
}

fn has_ending(name: &str, ending: &str) -> bool {
    Path::new(name).extension().is_some_and(|found| found == ending)
}

/// Locks, and what programs write before it gets its name.
fn is_temporary(name: &str) -> bool {
    has_ending(name, "lock")
        || ["tmp_", "tmp-", "incoming-", ".tmp"]
            .iter()
            .any(|start| name.starts_with(start))
}

/// The entries of a folder; none when it is not there.
pub(super) fn entries(folder: &Path) -> Result<Vec<DirEntry>, BackupError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(BackupError::io("read", folder)(source)),
    };
    let entries: io::Result<Vec<_>> = entries.collect();
    entries.map_err(BackupError::io("read", folder))
}

/// Waits until everything in a folder survives a power cut.
pub(super) fn settle(folder: &Path) -> Result<(), BackupError> {
    let file = File::open(folder).map_err(BackupError::io("open", folder))?;
    rustix::fs::syncfs(&file).map_err(|error| BackupError::io("flush", folder)(error.into()))
}

/// Writes a small file, readable only by its owner.
pub(super) fn write(path: &Path, content: &[u8]) -> Result<(), BackupError> {
    let folder = path.parent().unwrap_or(path);
    let written = tempfile::NamedTempFile::new_in(folder).and_then(|mut file| {
        file.write_all(content)?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        File::open(folder)?.sync_all()
    });
    written.map_err(BackupError::io("write", path))
}

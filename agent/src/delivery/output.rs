//! Output files: `output/<attempt>/<stream>`, appended to by a recorder and read back by delivery.
//! Functions here block; the offset in the file is the offset on the wire.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use kage_core::event::OutputStream;
use kage_core::id::AttemptId;

pub(crate) fn path(dir: &Path, attempt: AttemptId, stream: OutputStream) -> PathBuf {
    dir.join(attempt.to_string()).join(stream.as_str())
}

/// Opens a stream's file for appending, and creates it at the first output.
pub(crate) fn create(dir: &Path, attempt: AttemptId, stream: OutputStream) -> io::Result<File> {
    let path = path(dir, attempt, stream);
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    File::options().create(true).append(true).open(path)
}

/// Appends all of `chunks`, or leaves the file at `length` as it was.
pub(crate) fn append(file: &mut File, length: u64, chunks: &[Bytes]) -> io::Result<()> {
    for chunk in chunks {
        if let Err(error) = file.write_all(chunk) {
            // Without this a retry would repeat the part that was written.
            file.set_len(length)?;
            return Err(error);
        }
    }
    Ok(())
}

/// Reads `length` bytes from `offset`.
pub(crate) fn read(file: &File, offset: u64, length: usize) -> io::Result<Bytes> {
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(bytes.into())
}

/// The length of a stream's file; 0 when there is none.
pub(crate) fn length(dir: &Path, attempt: AttemptId, stream: OutputStream) -> u64 {
    std::fs::metadata(path(dir, attempt, stream)).map_or(0, |metadata| metadata.len())
}

/// Removes the files of an attempt, if there are any.
pub(crate) fn remove(dir: &Path, attempt: AttemptId) -> io::Result<()> {
    ignore_missing(std::fs::remove_dir_all(dir.join(attempt.to_string())))
}

/// Removes the folders of all attempts except `known`.
pub(crate) fn sweep(dir: &Path, known: &HashSet<AttemptId>) -> io::Result<()> {
    std::fs::create_dir_all(dir)?;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let attempt = entry.file_name().to_str().and_then(|name| name.parse().ok());
        if attempt.is_none_or(|attempt| !known.contains(&attempt)) {
            ignore_missing(std::fs::remove_dir_all(entry.path()))?;
        }
    }
    Ok(())
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

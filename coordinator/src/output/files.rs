//! The files of one attempt: bytes at their offsets, synced before they count.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use kage_core::event::OutputStream;

use super::feed::Chunk;

/// The three files of an attempt, created at the first byte.
#[derive(Debug)]
pub(super) struct AttemptFiles {
    folder: PathBuf,
    streams: [Stream; OutputStream::ALL.len()],
}

#[derive(Debug)]
struct Stream {
    kind: OutputStream,
    file: Option<File>,
    length: u64,
    /// The durable part of `length`.
    synced: u64,
}

impl AttemptFiles {
    /// Bytes that an earlier process wrote and did not sync are synced before they count.
    pub(super) fn open(folder: PathBuf) -> io::Result<Self> {
        let open = |kind: OutputStream| -> io::Result<Stream> {
            let found = OpenOptions::new().append(true).open(folder.join(kind.as_str()));
            let (file, length) = match found {
                Ok(file) => {
                    file.sync_data()?;
                    let length = file.metadata()?.len();
                    (Some(file), length)
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => (None, 0),
                Err(error) => return Err(error),
            };
            Ok(Stream {
                kind,
                file,
                length,
                synced: length,
            })
        };
        let [a, b, c] = OutputStream::ALL;
        let streams = [open(a)?, open(b)?, open(c)?];
        Ok(Self { folder, streams })
    }

    fn stream(&mut self, kind: OutputStream) -> &mut Stream {
        let [stdout, stderr, transcript] = &mut self.streams;
        match kind {
            OutputStream::Stdout => stdout,
            OutputStream::Stderr => stderr,
            OutputStream::Transcript => transcript,
        }
    }

    pub(super) fn length(&self, kind: OutputStream) -> u64 {
        self.streams.iter().find(|s| s.kind == kind).map_or(0, |s| s.length)
    }

    /// Appends and syncs all of it, or leaves the files as they were: bytes that a disk refused may
    /// read back well once, and a later sync would not report them.
    pub(super) fn write(&mut self, chunks: &[Chunk]) -> io::Result<()> {
        let written = self.append(chunks).and_then(|()| self.sync());
        if written.is_err() {
            for stream in &self.streams {
                if let Some(file) = &stream.file
                    && let Err(error) = file.set_len(stream.synced)
                {
                    tracing::error!(folder = %self.folder.display(), %error, "cannot take back unsynced output");
                }
            }
        }
        written
    }

    fn append(&mut self, chunks: &[Chunk]) -> io::Result<()> {
        for chunk in chunks {
            let folder = self.folder.clone();
            let stream = self.stream(chunk.stream);
            let Some(known) = stream.length.checked_sub(chunk.offset) else {
                // A gap: the acknowledgement tells the sender where to resume.
                continue;
            };
            let fresh = usize::try_from(known).ok().and_then(|known| chunk.data.get(known..));
            let Some(fresh) = fresh.filter(|fresh| !fresh.is_empty()) else {
                continue;
            };
            let file = match &mut stream.file {
                Some(file) => file,
                file @ None => file.insert(create(&folder, stream.kind)?),
            };
            file.write_all(fresh)?;
            stream.length += fresh.len() as u64;
        }
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        for stream in &mut self.streams {
            if let Some(file) = &stream.file
                && stream.synced < stream.length
            {
                file.sync_data()?;
                stream.synced = stream.length;
            }
        }
        Ok(())
    }
}

/// Creates a file whose name survives a crash as its bytes do.
fn create(folder: &Path, kind: OutputStream) -> io::Result<File> {
    std::fs::create_dir_all(folder)?;
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .open(folder.join(kind.as_str()))?;
    File::open(folder)?.sync_all()?;
    if let Some(parent) = folder.parent() {
        File::open(parent)?.sync_all()?;
    }
    Ok(file)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn bytes_of_a_batch_that_failed_do_not_count() {
        let dir = tempfile::tempdir().unwrap();
        let chunk = |stream, offset, data| Chunk {
            stream,
            offset,
            data: Bytes::from_static(data),
        };
        let mut files = AttemptFiles::open(dir.path().to_owned()).unwrap();
        files.write(&[chunk(OutputStream::Stdout, 0, b"kept")]).unwrap();
        // The first stream is written, the second is not, so neither is synced.
        std::os::unix::fs::symlink("/dev/full", dir.path().join("stderr")).unwrap();
        let batch = [
            chunk(OutputStream::Stdout, 4, b" and lost"),
            chunk(OutputStream::Stderr, 0, b"x"),
        ];
        assert!(files.write(&batch).is_err());
        drop(files);
        std::fs::remove_file(dir.path().join("stderr")).unwrap();
        assert_eq!(std::fs::read(dir.path().join("stdout")).unwrap(), b"kept");
        let files = AttemptFiles::open(dir.path().to_owned()).unwrap();
        assert_eq!(files.length(OutputStream::Stdout), 4);
    }
}

//! The files of one attempt: bytes at their offsets, synced before they count.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use kage_core::event::OutputStream;

use super::feed::Chunk;

/// The three files of an attempt, made when the first byte comes.
#[derive(Debug)]
pub(super) struct Files {
    folder: PathBuf,
    streams: [Stream; OutputStream::ALL.len()],
}

#[derive(Debug)]
struct Stream {
    kind: OutputStream,
    file: Option<File>,
    length: u64,
    dirty: bool,
}

impl Files {
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
                dirty: false,
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

    pub(super) fn write(&mut self, chunks: &[Chunk]) -> io::Result<()> {
        for chunk in chunks {
            let folder = self.folder.clone();
            let stream = self.stream(chunk.stream);
            let Some(known) = stream.length.checked_sub(chunk.offset) else {
                // A gap: the acknowledgement tells the sender where to go on.
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
            stream.dirty = true;
        }
        for stream in &mut self.streams {
            if let (true, Some(file)) = (stream.dirty, &stream.file) {
                file.sync_data()?;
                stream.dirty = false;
            }
        }
        Ok(())
    }
}

/// A new file whose name survives a crash as its bytes do.
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

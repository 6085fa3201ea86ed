//! Output of one attempt on its way into files: the gathered output, and the one write in progress.
//! The first bytes after idleness start a write at once; output that comes during it forms the next
//! one, however many lines that are. So a quiet program is written without delay, and a chatty one
//! costs no write per line. Delivery learns of every write when it is done.
//!
//! ```text
//! take -> masked, cap, space -> pending -- begin --> writing -- written --> delivery (`grew`)
//! ```

use std::fs::File;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use kage_core::event::{EventBody, OutputStream};
use kage_proto::MAX_INLINE;

use super::Recording;
use crate::delivery::mask::StreamMasker;
use crate::delivery::outbox::{OutboxClosed, Space};
use crate::delivery::output;

/// The most that may gather during a write. When it is full nothing is taken until the write is
/// done.
const GATHER: u64 = 256 << 10;
/// The wait before a failed write is retried.
const WRITE_RETRY: Duration = Duration::from_secs(1);

/// Bytes for which space was taken and of which delivery does not know yet. Dropping this returns
/// the space, as when an attempt is stopped while it waits.
struct Taken {
    space: Space,
    bytes: u64,
}

impl Taken {
    const fn none(space: Space) -> Self {
        Self { space, bytes: 0 }
    }

    /// From here on delivery owns the space, and returns it.
    fn hand_over(mut self) {
        self.bytes = 0;
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.space.give_bytes(self.bytes);
    }
}

struct StreamSpool {
    stream: OutputStream,
    masker: StreamMasker,
    file: Option<File>,
    /// Masked, and not part of a write yet.
    pending: Vec<Bytes>,
    taken: Taken,
    /// Length of the file after every write that started.
    length: u64,
    truncated: bool,
}

/// The data that one write appends to one file.
struct Addition {
    at: usize,
    stream: OutputStream,
    file: Option<File>,
    /// Length of the file before the write.
    length: u64,
    bytes: Vec<Bytes>,
    taken: Taken,
}

/// The files of a write, by stream.
type Files = Vec<(usize, Option<File>)>;

pub(super) struct Spool {
    recording: Recording,
    streams: [StreamSpool; 3],
    writing: Option<BoxFuture<'static, Result<Files, OutboxClosed>>>,
    stalled: bool,
    /// Bytes that were masked since the task last yielded.
    masked: usize,
}

impl Spool {
    pub(super) fn new(recording: Recording) -> Self {
        let space = recording.outbox.output_space();
        let streams = OutputStream::ALL.map(|stream| StreamSpool {
            stream,
            masker: recording.masker.stream(),
            file: None,
            pending: Vec::new(),
            taken: Taken::none(space.clone()),
            length: 0,
            truncated: false,
        });
        Self {
            recording,
            streams,
            writing: None,
            stalled: false,
            masked: 0,
        }
    }

    pub(super) const fn recording(&self) -> &Recording {
        &self.recording
    }

    /// Takes a program's output. Waits while there is no space, or too much is gathered.
    pub(super) async fn take(&mut self, stream: OutputStream, bytes: Bytes) -> Result<(), OutboxClosed> {
        let at = match stream {
            OutputStream::Stdout => 0,
            OutputStream::Stderr => 1,
            OutputStream::Transcript => 2,
        };
        self.masked += bytes.len();
        let masked = self.streams[at].masker.push(bytes);
        self.keep(at, masked).await?;
        // Masking takes time, and a program that prints without end would leave none for the
        // agent's heartbeats.
        if self.masked >= MAX_INLINE {
            self.masked = 0;
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    /// Whether bytes are held back that may be shown after a while.
    pub(super) fn holds_back(&self) -> bool {
        self.streams.iter().any(|spool| spool.masker.may_release())
    }

    /// Takes bytes that were held back for long enough.
    pub(super) async fn release(&mut self) -> Result<(), OutboxClosed> {
        for at in 0..self.streams.len() {
            let released = self.streams[at].masker.release();
            self.keep(at, released).await?;
        }
        Ok(())
    }

    /// Writes everything at the end of the streams, including held-back bytes.
    pub(super) async fn finish(mut self) -> Result<(), OutboxClosed> {
        for at in 0..self.streams.len() {
            let held = self.streams[at].masker.finish();
            self.keep(at, held).await?;
        }
        self.flush().await
    }

    pub(super) const fn is_writing(&self) -> bool {
        self.writing.is_some()
    }

    /// Waits for the write in progress. Cancel-safe.
    pub(super) async fn written(&mut self) -> Result<(), OutboxClosed> {
        let Some(writing) = &mut self.writing else {
            return Ok(());
        };
        let written = writing.await;
        self.writing = None;
        for (at, file) in written? {
            self.streams[at].file = file;
        }
        Ok(())
    }

    /// Starts to write the gathered output, unless a write is in progress.
    pub(super) fn begin(&mut self) {
        if self.writing.is_some() {
            return;
        }
        let space = self.recording.outbox.output_space();
        let mut additions = Vec::new();
        for (at, spool) in self.streams.iter_mut().enumerate() {
            if spool.pending.is_empty() {
                continue;
            }
            let taken = std::mem::replace(&mut spool.taken, Taken::none(space.clone()));
            let length = spool.length;
            spool.length += taken.bytes;
            additions.push(Addition {
                at,
                stream: spool.stream,
                file: spool.file.take(),
                length,
                bytes: std::mem::take(&mut spool.pending),
                taken,
            });
        }
        if !additions.is_empty() {
            self.writing = Some(write(self.recording.clone(), additions).boxed());
        }
    }

    async fn flush(&mut self) -> Result<(), OutboxClosed> {
        loop {
            self.begin();
            if !self.is_writing() {
                return Ok(());
            }
            self.written().await?;
        }
    }

    /// Keeps masked output, up to the cap.
    async fn keep(&mut self, at: usize, mut bytes: Bytes) -> Result<(), OutboxClosed> {
        let spool = &mut self.streams[at];
        if spool.truncated || bytes.is_empty() {
            return Ok(());
        }
        let room = self.recording.output_cap - spool.length - spool.taken.bytes;
        let fits = usize::try_from(room).unwrap_or(usize::MAX);
        let truncated = bytes.len() > fits;
        bytes.truncate(fits);
        spool.truncated = truncated;
        while !bytes.is_empty() {
            // In pieces of at most a batch, so that space is waited for in small steps.
            let piece = bytes.split_to(bytes.len().min(MAX_INLINE));
            let size = u32::try_from(piece.len()).unwrap_or(u32::MAX);
            if !self.recording.outbox.output_space().try_take(size) {
                // The gathered output must be sent, or no space would ever become free.
                self.flush().await?;
                if !self.stalled {
                    self.stalled = true;
                    let text = "stalled: the agent keeps as much undelivered output as it may; the program waits";
                    self.recording.post(EventBody::Warning(text.to_owned())).await?;
                }
                self.recording.outbox.output_space().take(size).await;
            }
            let spool = &mut self.streams[at];
            spool.taken.bytes += piece.len() as u64;
            spool.pending.push(piece);
            while self.streams.iter().map(|spool| spool.taken.bytes).sum::<u64>() >= GATHER {
                self.written().await?;
                self.begin();
            }
        }
        if truncated {
            self.flush().await?;
            let stream = self.streams[at].stream;
            let at = self.recording.output_cap;
            self.recording.post(EventBody::OutputTruncated { stream, at }).await?;
        }
        Ok(())
    }
}

/// Appends to the files and informs delivery, one stream after the other.
async fn write(recording: Recording, additions: Vec<Addition>) -> Result<Files, OutboxClosed> {
    let mut files = Vec::with_capacity(additions.len());
    for addition in additions {
        files.push((addition.at, append(&recording, addition).await?));
    }
    Ok(files)
}

/// Appends to one file, with as many retries as it takes.
async fn append(recording: &Recording, addition: Addition) -> Result<Option<File>, OutboxClosed> {
    let Addition {
        at: _,
        stream,
        mut file,
        length,
        bytes: mut unwritten,
        taken,
    } = addition;
    let mut hindered = None;
    loop {
        let (dir, attempt) = (recording.output_dir.clone(), recording.attempt);
        let writing = recording.blocking.run(move || {
            let result = match file.map_or_else(|| output::create(&dir, attempt, stream), Ok) {
                Ok(mut open) => {
                    let result = output::append(&mut open, length, &unwritten);
                    file = Some(open);
                    result
                }
                Err(error) => {
                    file = None;
                    Err(error)
                }
            };
            (file, unwritten, result)
        });
        let Ok((back, bytes, result)) = writing.await else {
            // The runtime is shutting down and starts no more blocking work.
            return Err(OutboxClosed);
        };
        (file, unwritten) = (back, bytes);
        match result {
            Ok(()) => break drop(hindered),
            Err(error) => {
                tracing::error!(attempt = %recording.attempt, %error, "output cannot be written");
                if hindered.is_none() {
                    let hindrances = recording.outbox.hindrances();
                    hindered = Some(hindrances.begin("output cannot be written", &error));
                    let text = format!("stalled: the agent cannot write output ({error}); the program waits");
                    recording.post(EventBody::Warning(text)).await?;
                }
                tokio::time::sleep(WRITE_RETRY).await;
            }
        }
    }
    let added = taken.bytes;
    let outbox = &recording.outbox;
    outbox.grew(recording.attempt, stream, length + added, added).await?;
    taken.hand_over();
    Ok(file)
}

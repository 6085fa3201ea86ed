//! The recorder of one attempt: takes what its adapter reports, masks secrets, appends
//! output to files and posts events. When there is no space for undelivered data it does
//! not take more, so the program's pipes fill up; nothing is dropped but what comes after
//! a stream's cap.

use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use kage_core::event::{AttemptOutcome, EventBody, OutputStream, ResultCommit};
use kage_core::failure::Failure;
use kage_core::id::AttemptId;
use kage_proto::MAX_INLINE;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::adapter::Report;
use crate::mask::{Masker, StreamMasker};
use crate::outbox::{Outbox, OutboxClosed};
use crate::output;
use crate::ports::{Blocking, Clock};

/// How long output may wait for more before it is written and sent.
const FLUSH_AFTER: Duration = Duration::from_millis(50);
/// Reports taken at once.
const REPORTS: usize = 32;
/// The wait before output that could not be written is written again.
const WRITE_RETRY: Duration = Duration::from_secs(1);
/// The longest text of an event for people, in bytes.
const TEXT: usize = 4096;
/// The longest name that a program or a tree gives, in bytes.
const NAME: usize = 1024;
/// The longest list of a result's paths, in bytes.
const PATHS: usize = 64 << 10;

/// What a recorder needs.
#[derive(Clone)]
pub(crate) struct Recording {
    pub(crate) attempt: AttemptId,
    pub(crate) outbox: Outbox,
    pub(crate) clock: Clock,
    pub(crate) blocking: Blocking,
    pub(crate) masker: Masker,
    pub(crate) output_dir: PathBuf,
    pub(crate) output_cap: u64,
}

impl Recording {
    /// Posts an event, masked.
    ///
    /// # Errors
    /// When the agent ends.
    pub(crate) async fn post(&self, body: EventBody) -> Result<(), OutboxClosed> {
        let body = self.masked(body);
        self.outbox.post(self.attempt, (self.clock)(), body).await
    }

    fn masked(&self, body: EventBody) -> EventBody {
        match body {
            EventBody::Activity(text) => EventBody::Activity(shortened(self.masker.text(text))),
            EventBody::Warning(text) => EventBody::Warning(shortened(self.masker.text(text))),
            EventBody::CallRetried {
                failure,
                delay,
                attempt,
            } => EventBody::CallRetried {
                failure: self.masked_failure(failure),
                delay,
                attempt,
            },
            EventBody::Finished(AttemptOutcome::Failed(failure)) => {
                EventBody::Finished(AttemptOutcome::Failed(self.masked_failure(failure)))
            }
            EventBody::Finished(AttemptOutcome::Verdict(mut verdict)) => {
                verdict.message = shortened(self.masker.text(verdict.message));
                // A cut path is none of the result's, so that nothing is said of that one.
                let long = |path: &String| path.len() <= NAME;
                verdict.restored.retain(long);
                EventBody::Finished(AttemptOutcome::Verdict(verdict))
            }
            EventBody::UsageRecorded {
                model,
                usage,
                reported,
                metered,
            } => EventBody::UsageRecorded {
                model: cut(model, NAME),
                usage,
                reported,
                metered,
            },
            EventBody::FilesChanged(mut files) => {
                for file in &mut files {
                    file.path = cut(std::mem::take(&mut file.path), NAME);
                }
                EventBody::FilesChanged(files)
            }
            EventBody::ResultCommitted { mut result, pack } => {
                listed(&mut result);
                EventBody::ResultCommitted { result, pack }
            }
            EventBody::Finished(AttemptOutcome::Claimed)
            | EventBody::PhaseChanged(_)
            | EventBody::OutputTruncated { .. }
            | EventBody::CheckpointTaken(_)
            | EventBody::Resumed { .. } => body,
        }
    }

    fn masked_failure(&self, failure: Failure) -> Failure {
        Failure {
            message: shortened(self.masker.text(failure.message)),
            ..failure
        }
    }

    /// Records until every reporter is gone. `active` is told whenever something came.
    ///
    /// # Errors
    /// When the agent ends.
    pub(crate) async fn run(
        self,
        mut reports: mpsc::Receiver<Report>,
        active: watch::Sender<Instant>,
    ) -> Result<(), OutboxClosed> {
        let mut recorder = Recorder {
            streams: OutputStream::ALL.map(|stream| StreamRecord::new(stream, &self.masker)),
            recording: self,
            stalled: false,
        };
        let mut batch = Vec::with_capacity(REPORTS);
        loop {
            let due = recorder.due();
            tokio::select! {
                // What is due first: there may always be more.
                biased;
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    recorder.flush_due().await?;
                }
                count = reports.recv_many(&mut batch, REPORTS) => {
                    if count == 0 {
                        break;
                    }
                    active.send_replace(Instant::now());
                    for report in batch.drain(..) {
                        recorder.take(report).await?;
                    }
                    // Waiting for space is not idling.
                    active.send_replace(Instant::now());
                }
            }
        }
        recorder.finish().await
    }
}

/// One stream's way from the reporter to its file.
struct StreamRecord {
    stream: OutputStream,
    masker: StreamMasker,
    file: Option<File>,
    /// Masked and not written yet.
    pending: Vec<Bytes>,
    /// Bytes for which space was taken and of which delivery does not know yet.
    pending_bytes: usize,
    /// When `pending` has to be written.
    due: Option<Instant>,
    /// Length of the file.
    written: u64,
    truncated: bool,
}

impl StreamRecord {
    fn new(stream: OutputStream, masker: &Masker) -> Self {
        Self {
            stream,
            masker: masker.stream(),
            file: None,
            pending: Vec::new(),
            pending_bytes: 0,
            due: None,
            written: 0,
            truncated: false,
        }
    }
}

struct Recorder {
    recording: Recording,
    streams: [StreamRecord; 3],
    stalled: bool,
}

impl Recorder {
    /// When output has to be written next.
    fn due(&self) -> Option<Instant> {
        self.streams.iter().filter_map(|record| record.due).min()
    }

    async fn take(&mut self, report: Report) -> Result<(), OutboxClosed> {
        match report {
            // The end is the attempt's to tell, once.
            Report::Event(EventBody::Finished(_)) => Ok(()),
            Report::Event(body) => self.recording.post(body).await,
            Report::Output(stream, bytes) => {
                let at = match stream {
                    OutputStream::Stdout => 0,
                    OutputStream::Stderr => 1,
                    OutputStream::Transcript => 2,
                };
                let masked = self.streams[at].masker.push(bytes);
                self.keep(at, masked).await
            }
        }
    }

    /// Keeps masked output, up to the cap, and writes it when there is enough.
    async fn keep(&mut self, at: usize, mut bytes: Bytes) -> Result<(), OutboxClosed> {
        let record = &mut self.streams[at];
        if record.truncated || bytes.is_empty() {
            return Ok(());
        }
        let room = self.recording.output_cap - record.written - record.pending_bytes as u64;
        let fits = usize::try_from(room).unwrap_or(usize::MAX);
        let truncated = bytes.len() > fits;
        bytes.truncate(fits);
        record.truncated = truncated;
        while !bytes.is_empty() {
            // Pieces of a batch each, so that space is waited for in small steps.
            let piece = bytes.split_to(bytes.len().min(MAX_INLINE));
            let size = u32::try_from(piece.len()).unwrap_or(u32::MAX);
            if !self.recording.outbox.output_space().try_take(size) {
                // What is pending must be on its way, or no space would ever come.
                self.flush(at).await?;
                if !self.stalled {
                    self.stalled = true;
                    let text = "stalled: the agent keeps as much undelivered output as it may; the program waits";
                    self.recording.post(EventBody::Warning(text.to_owned())).await?;
                }
                self.recording.outbox.output_space().take(size).await;
            }
            let record = &mut self.streams[at];
            record.pending_bytes += piece.len();
            record.pending.push(piece);
            record.due.get_or_insert_with(|| Instant::now() + FLUSH_AFTER);
            if record.pending_bytes >= MAX_INLINE {
                self.flush(at).await?;
            }
        }
        if truncated {
            self.flush(at).await?;
            let stream = self.streams[at].stream;
            let at = self.recording.output_cap;
            self.recording.post(EventBody::OutputTruncated { stream, at }).await?;
        }
        Ok(())
    }

    async fn flush_due(&mut self) -> Result<(), OutboxClosed> {
        let now = Instant::now();
        for at in 0..self.streams.len() {
            if self.streams[at].due.is_some_and(|due| due <= now) {
                self.flush(at).await?;
            }
        }
        Ok(())
    }

    /// Writes what is pending and says so to delivery.
    async fn flush(&mut self, at: usize) -> Result<(), OutboxClosed> {
        let record = &mut self.streams[at];
        record.due = None;
        if record.pending.is_empty() {
            return Ok(());
        }
        let (stream, length) = (record.stream, record.written);
        let bytes = record.pending_bytes;
        let mut pending = std::mem::take(&mut record.pending);
        let mut file = record.file.take();
        let mut hindered = None;
        loop {
            let (dir, attempt) = (self.recording.output_dir.clone(), self.recording.attempt);
            let writing = self.recording.blocking.run(move || {
                let result = match file.map_or_else(|| output::create(&dir, attempt, stream), Ok) {
                    Ok(mut open) => {
                        let result = output::append(&mut open, length, &pending);
                        file = Some(open);
                        result
                    }
                    Err(error) => {
                        file = None;
                        Err(error)
                    }
                };
                (file, pending, result)
            });
            let Ok((back, unwritten, result)) = writing.await else {
                // The runtime is shutting down and starts no more blocking work.
                return Err(OutboxClosed);
            };
            (file, pending) = (back, unwritten);
            match result {
                Ok(()) => break drop(hindered),
                Err(error) => {
                    tracing::error!(attempt = %self.recording.attempt, %error, "output cannot be written");
                    if hindered.is_none() {
                        let hindrances = self.recording.outbox.hindrances();
                        hindered = Some(hindrances.begin("output cannot be written", &error));
                        let text = format!("stalled: the agent cannot write output ({error}); the program waits");
                        self.recording.post(EventBody::Warning(text)).await?;
                    }
                    tokio::time::sleep(WRITE_RETRY).await;
                }
            }
        }
        self.streams[at].file = file;
        let length = length + bytes as u64;
        let grew = self
            .recording
            .outbox
            .grew(self.recording.attempt, stream, length, bytes as u64)
            .await;
        // The space is delivery's to give back now. Until then it is ours, also when this is
        // dropped while it waits.
        let record = &mut self.streams[at];
        record.written = length;
        record.pending_bytes -= bytes;
        grew
    }

    async fn finish(mut self) -> Result<(), OutboxClosed> {
        for at in 0..self.streams.len() {
            let held = self.streams[at].masker.finish();
            self.keep(at, held).await?;
            self.flush(at).await?;
        }
        Ok(())
    }
}

impl Drop for Recorder {
    /// An attempt that was stopped while it waited for space does not keep what it took.
    fn drop(&mut self) {
        let pending: usize = self.streams.iter().map(|record| record.pending_bytes).sum();
        self.recording.outbox.output_space().give_bytes(pending as u64);
    }
}

/// Cuts a text for people to a length that fits an event.
fn shortened(text: String) -> String {
    cut(text, TEXT)
}

/// An event that is larger than a message could never be delivered, nor what follows it.
fn cut(mut text: String, most: usize) -> String {
    if text.len() > most {
        let end = text.floor_char_boundary(most);
        text.truncate(end);
        text.push('…');
    }
    text
}

/// Leaves out the last paths of a list that is too long. The number of files stays, which
/// tells that the list is not all.
fn listed(result: &mut ResultCommit) {
    let mut size = 0;
    result.paths.retain(|path| {
        size += path.len();
        size <= PATHS
    });
    if let Some(last) = result.paths.last() {
        let last = last.clone();
        result.deleted.retain(|path| *path <= last);
    } else {
        result.deleted.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use kage_core::event::DiffStat;
    use kage_core::id::AttemptToken;
    use kage_core::time::Timestamp;
    use kage_proto::convert::agent::AttemptKey;

    use super::*;
    use crate::adapter::Reporter;
    use crate::outbox::{self, Change};

    #[test]
    fn a_list_of_paths_that_is_too_long_ends_early_and_the_count_says_so() {
        let paths: Vec<String> = (0..100).map(|n| format!("{n:03}{}", "x".repeat(1021))).collect();
        let mut result = ResultCommit {
            commit: "a".repeat(40).parse().unwrap(),
            tree: None,
            diff: DiffStat {
                files: 100,
                added: 0,
                removed: 0,
            },
            deleted: vec![paths[0].clone(), paths[99].clone()],
            paths,
        };
        listed(&mut result);
        assert_eq!((result.paths.len(), result.diff.files), (64, 100));
        assert_eq!(result.deleted, result.paths[..1]);
        let all = result.clone();
        listed(&mut result);
        assert_eq!(result, all);
    }

    #[tokio::test]
    async fn space_comes_back_when_a_recorder_is_dropped_that_cannot_write() {
        const SPACE: u32 = 1000;
        let folder = tempfile::tempdir().unwrap();
        // A file, where the folder of the output should be.
        let output_dir = folder.path().join("output");
        let database = folder.path().join("outbox.db");
        let blocking = Blocking::default();
        let mut opened = outbox::open(&database, &output_dir, 1 << 20, SPACE.into(), &blocking).unwrap();
        std::fs::remove_dir_all(&output_dir).ok();
        std::fs::write(&output_dir, "").unwrap();
        let attempt = AttemptId::from_random(1);
        let key = AttemptKey {
            attempt,
            token: AttemptToken::from_random(1),
        };
        opened.outbox.open_attempt(key).await.unwrap();
        let recording = Recording {
            attempt,
            outbox: opened.outbox.clone(),
            clock: Arc::new(|| Timestamp::from_millis(0)),
            blocking,
            masker: Masker::new(&[]),
            output_dir,
            output_cap: 1 << 20,
        };
        let (reporter, reports) = Reporter::channel(1);
        let output = Bytes::from(vec![b'x'; SPACE as usize]);
        reporter.output(OutputStream::Stdout, output).await.unwrap();
        let warned = async {
            loop {
                let changes = opened.changes.recv().await.unwrap();
                if changes.iter().any(|change| matches!(change, Change::Committed(..))) {
                    return;
                }
            }
        };
        tokio::select! {
            ended = recording.run(reports, watch::channel(Instant::now()).0) => panic!("{ended:?}"),
            () = warned => {}
        }
        assert!(opened.outbox.output_space().try_take(SPACE));
    }

    #[test]
    fn names_are_cut_between_characters() {
        assert_eq!(cut("ää".to_owned(), 3), "ä…");
        assert_eq!(cut("ää".to_owned(), 4), "ää");
    }
}

//! The recorder of one attempt: takes its adapter's reports, masks secrets, hands output to its
//! spool and posts events. When there is no space for undelivered data it stops reading, so the
//! program's pipes fill up; nothing is dropped except output beyond a stream's cap.
//!
//! Output that comes while nothing is being written is written at once; output that comes during a
//! write forms the next one (`spool`). The only wait by the clock is for text that may be the
//! beginning of a secret: see `mask`.

use std::path::PathBuf;
use std::time::Duration;

use kage_core::event::{AttemptOutcome, EventBody, ResultCommit};
use kage_core::failure::Failure;
use kage_core::id::AttemptId;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::adapters::port::Report;
use crate::delivery::mask::Masker;
use crate::delivery::outbox::{Outbox, OutboxClosed};
use crate::ports::{Blocking, Clock};

mod spool;

use spool::Spool;

/// How long the last bytes of a stream are held back as a possible beginning of a secret, when they
/// are few and nothing follows them: a prompt is complete then.
const HOLD: Duration = Duration::from_secs(1);
/// Most reports handled in one round.
const REPORTS: usize = 32;
/// The longest text of an event for people, in bytes.
const TEXT: usize = 4096;
/// The longest name from a program or a tree, in bytes.
const NAME: usize = 1024;
/// The longest list of a result's paths, in bytes.
const PATHS: usize = 64 << 10;

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
    /// Masks and posts an event.
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
                verdict.output = self.masker.text(verdict.output);
                // A cut path is not a path of the result, so nothing is said about it.
                let long = |path: &String| path.len() <= NAME;
                verdict.restored.retain(long);
                EventBody::Finished(AttemptOutcome::Verdict(verdict))
            }
            EventBody::UsageRecorded {
                model,
                usage,
                reported,
                metered,
                tools,
                call,
            } => EventBody::UsageRecorded {
                model: cut(model, NAME),
                usage,
                reported,
                metered,
                tools,
                call,
            },
            EventBody::FilesChanged(mut files) => {
                for file in &mut files {
                    file.path = cut(self.masker.text(std::mem::take(&mut file.path)), NAME);
                }
                EventBody::FilesChanged(files)
            }
            EventBody::ResultCommitted { mut result, pack } => {
                listed(&mut result);
                // A name that is no file's: what is left out tells of it, and nothing looks it up.
                for file in &mut result.left_out {
                    file.path = self.masker.text(std::mem::take(&mut file.path));
                }
                EventBody::ResultCommitted { result, pack }
            }
            EventBody::PermissionAsked { number, about, wait } => EventBody::PermissionAsked {
                number,
                about: shortened(self.masker.text(about)),
                wait,
            },
            EventBody::Finished(AttemptOutcome::Claimed)
            | EventBody::MessageTold(_)
            | EventBody::PermissionDecided { .. }
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

    /// Records until every reporter is dropped. `active` is set whenever something came.
    /// When the agent ends.
    pub(crate) async fn run(
        self,
        mut reports: mpsc::Receiver<Report>,
        active: watch::Sender<Instant>,
    ) -> Result<(), OutboxClosed> {
        let mut spool = Spool::new(self);
        let mut batch = Vec::with_capacity(REPORTS);
        let mut held_since = Instant::now();
        loop {
            tokio::select! {
                // Reports last: there may always be more.
                biased;
                written = spool.written(), if spool.is_writing() => written?,
                () = tokio::time::sleep_until(held_since + HOLD), if spool.holds_back() => spool.release().await?,
                count = reports.recv_many(&mut batch, REPORTS) => {
                    if count == 0 {
                        break;
                    }
                    active.send_replace(Instant::now());
                    for report in batch.drain(..) {
                        match report {
                            // The attempt itself posts the end, once. The activity was noted above.
                            Report::Event(EventBody::Finished(_)) | Report::Alive => {}
                            Report::Event(body) => spool.recording().post(body).await?,
                            Report::Output(stream, bytes) => spool.take(stream, bytes).await?,
                        }
                    }
                    held_since = Instant::now();
                    // Waiting for space is not idling.
                    active.send_replace(held_since);
                }
            }
            spool.begin();
        }
        spool.finish().await
    }
}

/// Cuts a text for people to a length that fits an event.
fn shortened(text: String) -> String {
    cut(text, TEXT)
}

/// An event larger than a message could never be delivered, nor could the ones after it.
fn cut(mut text: String, most: usize) -> String {
    if text.len() > most {
        let end = text.floor_char_boundary(most);
        text.truncate(end);
        text.push('…');
    }
    text
}

/// Leaves out the last paths of a list that is too long. The number of files stays, which shows
/// that the list is incomplete.
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
mod tests;

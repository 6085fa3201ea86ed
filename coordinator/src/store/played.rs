//! The store in memory behind a disk: an ideal one, or a simulated one that is slow and fails. The
//! rows are the model's.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::call::{Call, Fate, Verdict};
use super::error::{EngineError, ReadError};
use super::feed::Feed;
use super::lock;
use super::model::Model;
use super::query::Reads;

/// A failure of the disk. A read has a single way to fail, whichever is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing is stored, and the error says so.
    Refused,
    /// Nothing is stored, and whether it is remains unknown.
    Unstored,
    /// It is stored, and whether it is remains unknown.
    Unanswered,
    /// Nothing is stored, and success is reported. No store survives such a disk; a test of lost
    /// writes uses it to show that it would find them.
    Lied,
}

/// The disk's behaviour for one command or read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Visit {
    pub before: Duration,
    /// The failure; `None`: success.
    pub fault: Option<Fault>,
    pub after: Duration,
}

/// Decides about the next command, by the name of its type, or the next read (`None`).
pub type Disk = Arc<dyn Fn(Option<&'static str>) -> Visit + Send + Sync>;

/// Rows in memory.
pub(super) struct Memory {
    model: Mutex<Model>,
    disk: Option<Disk>,
    feed: Arc<Feed>,
}

impl Memory {
    pub(super) fn new(disk: Option<Disk>, feed: Arc<Feed>) -> Self {
        Self {
            model: Mutex::default(),
            disk,
            feed,
        }
    }

    pub(super) async fn apply<C: Call>(&self, name: &'static str, mut call: C) {
        let visit = self.begin(Some(name)).await;
        let fate = {
            let mut model = lock(&self.model);
            let changes = match call.apply(&mut *model) {
                Verdict::Keep(changes) => changes,
                Verdict::TakeBack | Verdict::EngineFailed(_) => {
                    model.take_back();
                    Vec::new()
                }
            };
            match visit.fault {
                None | Some(Fault::Unanswered) => model.keep(),
                Some(Fault::Refused | Fault::Unstored | Fault::Lied) => model.take_back(),
            }
            // While nobody else writes: the feed has the order of the commits.
            match visit.fault {
                None | Some(Fault::Lied) => {
                    self.feed.committed(changes);
                    Fate::Committed
                }
                Some(Fault::Refused) => Fate::BrokenOff(Arc::new(EngineError::BrokenOff)),
                Some(Fault::Unstored | Fault::Unanswered) => {
                    self.feed.unknown();
                    Fate::Unknown(Arc::new(EngineError::NoAnswer))
                }
            }
        };
        end(visit).await;
        Box::new(call).answer(&fate);
    }

    pub(super) async fn read<T>(
        &self,
        read: impl FnOnce(&dyn Reads) -> Result<T, EngineError> + Send,
    ) -> Result<T, ReadError> {
        let visit = self.begin(None).await;
        let answer = match visit.fault {
            Some(_) => Err(EngineError::BrokenOff),
            None => read(&*lock(&self.model)),
        };
        end(visit).await;
        Ok(answer?)
    }

    async fn begin(&self, name: Option<&'static str>) -> Visit {
        let visit = self.disk.as_ref().map_or_else(Visit::default, |disk| disk(name));
        wait(visit.before).await;
        visit
    }
}

async fn end(visit: Visit) {
    wait(visit.after).await;
}

async fn wait(duration: Duration) {
    if !duration.is_zero() {
        tokio::time::sleep(duration).await;
    }
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Memory").finish_non_exhaustive()
    }
}

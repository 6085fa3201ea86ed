//! The store in memory as it is reached by others: at once, or by way of a disk that somebody
//! plays, a simulation, which is slow and fails. The rows are the model's.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::call::{Call, Fate, Verdict};
use super::error::{EngineError, ReadError};
use super::lock;
use super::model::Model;
use super::query::Reads;

/// How a disk fails a command. Reads fail in one way only, whichever it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing is stored, and that is said.
    Refused,
    /// Nothing is stored, and whether it is remains unknown.
    Unstored,
    /// It is stored, and whether it is remains unknown.
    Unanswered,
    /// Nothing is stored, and it is said to be. No store survives such a disk; who looks for
    /// lost writes shows by it that they would be found.
    Lied,
}

/// What one command or read meets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Visit {
    pub before: Duration,
    /// What becomes of it; `None` = it goes well.
    pub fault: Option<Fault>,
    pub after: Duration,
}

/// Says what the next command, by the name of its type, or the next read (`None`) meets.
pub type Disk = Arc<dyn Fn(Option<&'static str>) -> Visit + Send + Sync>;

/// Rows in memory.
#[derive(Default)]
pub(super) struct Memory {
    model: Mutex<Model>,
    disk: Option<Disk>,
}

impl Memory {
    pub(super) fn on(disk: Disk) -> Self {
        Self {
            disk: Some(disk),
            ..Self::default()
        }
    }

    pub(super) async fn apply<C: Call>(&self, name: &'static str, mut call: C) {
        let visit = self.begin(Some(name)).await;
        let fate = {
            let mut model = lock(&self.model);
            let verdict = call.apply(&mut *model);
            match (verdict, visit.fault) {
                (Verdict::Keep, None | Some(Fault::Unanswered)) => model.keep(),
                (Verdict::Keep, Some(Fault::Refused | Fault::Unstored | Fault::Lied))
                | (Verdict::TakeBack | Verdict::EngineFailed(_), _) => model.take_back(),
            }
            match visit.fault {
                None | Some(Fault::Lied) => Fate::Committed,
                Some(Fault::Refused) => Fate::BrokenOff(Arc::new(EngineError::BrokenOff)),
                Some(Fault::Unstored | Fault::Unanswered) => Fate::Unknown(Arc::new(EngineError::NoAnswer)),
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

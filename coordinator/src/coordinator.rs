//! The state that all services share: the store and everything that depends on it. How that
//! follows the store is in `following`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kage_core::access::Capabilities;
use kage_core::budget::BudgetRule;
use kage_core::deadline::Patience;
use kage_core::id::AttemptId;
use kage_core::price::PriceTable;
use kage_core::time::Timestamp;
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::board::Board;
use crate::calls::{BudgetLines, CallTurns};
use crate::config::{CallerLimits, Timings};
use crate::data::authority::Authority;
use crate::data::blobs::Blobs;
use crate::data::quarantine::Quarantine;
use crate::data::repositories::Repositories;
use crate::data::secrets::Secrets;
use crate::data::standstill::Removals;
use crate::data::stored::StoredBytes;
use crate::door::identities::Identities;
use crate::door::restraint::Restraint;
use crate::output::Outputs;
use crate::ports::{Clock, Objects, Random};
use crate::store::{InFiles, Store};
use crate::topics::Topics;

pub(crate) mod deletion;
pub(crate) mod following;
pub(crate) mod unsaved;

use following::Following;
use unsaved::Unsaved;

/// Files of dropped tasks.
#[derive(Debug, Clone, Default)]
pub(crate) struct Released {
    /// Deleted by the next sweep.
    pub(crate) deleted: InFiles,
    /// Put into quarantine by the next sweep.
    pub(crate) put_aside: InFiles,
}

/// The parts that the services share.
pub(crate) struct Coordinator {
    /// Read here; commands go through [`Coordinator::apply`].
    pub(crate) store: Store,
    pub(crate) following: Following,
    pub(crate) blobs: Arc<Blobs>,
    pub(crate) repositories: Arc<Repositories>,
    /// What agents deliver goes into these, and tasks rest on them.
    pub(crate) objects: Arc<dyn Objects>,
    pub(crate) outputs: Outputs,
    pub(crate) quarantine: Quarantine,
    /// Asked before anything is removed: a backup may be made.
    pub(crate) removals: Removals,
    pub(crate) topics: Arc<Topics>,
    /// This run of the coordinator: positions of its topics are good for it alone.
    pub(crate) run: u128,
    pub(crate) fences: Arc<Fences>,
    pub(crate) prices: Arc<PriceTable>,
    /// The budgets of persons and projects.
    pub(crate) budgets: Vec<BudgetRule>,
    pub(crate) timings: Timings,
    pub(crate) patience: Patience,
    /// What agents may be given to do that show the owner's token.
    pub(crate) token_agents: Capabilities,
    pub(crate) stored: StoredBytes,
    pub(crate) identities: Arc<Identities>,
    /// What one caller may take, as the door counts it.
    pub(crate) restraint: Arc<Restraint>,
    pub(crate) callers: CallerLimits,
    pub(crate) secrets: Secrets,
    /// Signs certificates; `None` without TLS.
    pub(crate) authority: Option<Arc<Authority>>,
    pub(crate) clock: Clock,
    pub(crate) random: Random,
    /// Notified when placing may have a result. One permit is enough: the dispatcher looks at
    /// everything.
    pub(crate) placeable: Notify,
    /// Notified when a person dropped a task, so that its files may be removed.
    pub(crate) dropped: Notify,
    /// Calls of models that wait for their turn.
    pub(crate) turns: CallTurns,
    /// Calls of models that wait for money.
    pub(crate) budget_lines: BudgetLines,
    /// Sessions whose work is to be saved.
    pub(crate) unsaved: Unsaved,
    /// Permits to compare commits for clients.
    pub(crate) comparing: Arc<Semaphore>,
    /// Files of dropped tasks that may still exist.
    pub(crate) released: Mutex<Released>,
    /// Everything that runs besides connections; waited for at the end.
    pub(crate) tasks: TaskTracker,
    /// Cancelled when a shutdown begins.
    pub(crate) closing: CancellationToken,
    pub(crate) board: Mutex<Board>,
}

impl Coordinator {
    pub(crate) fn now(&self) -> Timestamp {
        (self.clock)()
    }

    pub(crate) fn random(&self) -> u128 {
        (self.random)()
    }

    /// Locks the board, for a few lines without an await.
    pub(crate) fn board(&self) -> MutexGuard<'_, Board> {
        // The board is a memory of the store; a panic in between loses no truth.
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Locks the files of dropped tasks, for a few lines without an await.
    pub(crate) fn released(&self) -> MutexGuard<'_, Released> {
        // A missing entry is only removed later.
        self.released.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Coordinator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Coordinator").finish_non_exhaustive()
    }
}

/// The attempts with open writers: closing a fence stops an attempt's output at once, without
/// reading the store for every batch.
#[derive(Debug, Default)]
pub(crate) struct Fences(Mutex<BTreeMap<AttemptId, Fence>>);

#[derive(Debug, Clone)]
struct Fence {
    closed: CancellationToken,
    holders: usize,
}

impl Fences {
    /// Registers a writer. Must be called before the store is asked whether it may write, so that
    /// no end is missed.
    pub(crate) fn hold(self: &Arc<Self>, attempt: AttemptId) -> Held {
        let mut fences = self.lock();
        let fence = fences.entry(attempt).or_insert_with(|| Fence {
            closed: CancellationToken::new(),
            holders: 0,
        });
        fence.holders += 1;
        Held {
            fences: Arc::clone(self),
            attempt,
            closed: fence.closed.clone(),
        }
    }

    pub(crate) fn held(&self) -> Vec<AttemptId> {
        self.lock().keys().copied().collect()
    }

    /// Closes the writer of an attempt that has ended.
    pub(crate) fn close(&self, attempt: AttemptId) {
        if let Some(fence) = self.lock().get(&attempt) {
            fence.closed.cancel();
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<AttemptId, Fence>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One writer's view of its fence.
#[derive(Debug)]
pub(crate) struct Held {
    fences: Arc<Fences>,
    attempt: AttemptId,
    closed: CancellationToken,
}

impl Held {
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.is_cancelled()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut fences = self.fences.lock();
        if let Some(fence) = fences.get_mut(&self.attempt) {
            fence.holders -= 1;
            if fence.holders == 0 {
                fences.remove(&self.attempt);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fence_closes_for_all_its_writers_and_is_forgotten_with_the_last() {
        let fences = Arc::new(Fences::default());
        let attempt = AttemptId::from_random(1);
        fences.close(attempt);
        let first = fences.hold(attempt);
        let second = fences.hold(attempt);
        assert!(!first.is_closed());
        fences.close(attempt);
        assert!(first.is_closed() && second.is_closed());
        drop((first, second));
        assert!(fences.lock().is_empty());
    }
}

//! Which sessions wait for somebody to save their work: a list in memory of what the store says.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use kage_core::id::{SessionId, TaskId};
use kage_core::session::{Session, SessionStateKind};
use tokio::sync::Notify;

/// The sessions whose work is to be saved.
#[derive(Debug, Default)]
pub(crate) struct Unsaved {
    sessions: Mutex<BTreeSet<(TaskId, SessionId)>>,
    more: Notify,
}

impl Unsaved {
    /// Notes the session when its work is to be saved. A second time does no harm.
    pub(crate) fn note(&self, session: &Session) {
        if session.state.kind() == SessionStateKind::Saving {
            self.lock().insert((session.task, session.id));
            self.more.notify_one();
        }
    }

    /// One of them, which is not noted any more.
    pub(crate) fn next(&self) -> Option<(TaskId, SessionId)> {
        self.lock().pop_first()
    }

    /// Returns when there may be more.
    pub(crate) async fn more(&self) {
        self.more.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<(TaskId, SessionId)>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

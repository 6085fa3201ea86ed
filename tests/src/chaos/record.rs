//! The shared record of all clients, in the order of writing, and the source of their ids.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::history::{Answer, Call, History, What};

pub type Random = Arc<dyn Fn() -> u128 + Send + Sync>;

/// A history in progress. Clones write to the same one.
#[derive(Clone)]
pub struct Record {
    history: Arc<Mutex<History>>,
    calls: Arc<AtomicU64>,
    random: Random,
}

impl Default for Record {
    fn default() -> Self {
        Self::drawing(Arc::new(rand::random::<u128>))
    }
}

impl From<History> for Record {
    fn from(history: History) -> Self {
        Self {
            history: Arc::new(Mutex::new(history)),
            ..Self::default()
        }
    }
}

impl Record {
    /// An empty record whose writers draw ids from `random`.
    #[must_use]
    pub fn drawing(random: Random) -> Self {
        Self {
            history: Arc::default(),
            calls: Arc::default(),
            random,
        }
    }

    #[must_use]
    pub fn draw(&self) -> String {
        format!("{:032x}", (self.random)())
    }

    pub fn add(&self, who: &str, what: What) {
        self.lock().add(who, what);
    }

    /// Records the start of a call; the returned number is for [`Record::answered`].
    #[must_use]
    pub fn called(&self, who: &str, call: Call) -> u64 {
        let op = self.calls.fetch_add(1, Ordering::Relaxed);
        self.add(who, What::Called(op, call));
        op
    }

    /// Records the answer to a call.
    pub fn answered(&self, who: &str, op: u64, answer: Answer) {
        self.add(who, What::Answered(op, answer));
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().entries.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    #[must_use]
    pub fn history(&self) -> History {
        self.lock().clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, History> {
        // Entries are added whole.
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Record")
            .field("lines", &self.len())
            .finish_non_exhaustive()
    }
}

//! The one record that everybody writes to, in the order of the writing, and what they draw
//! their ids from.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::history::{Answer, Call, History, What};

/// Draws 128 random bits.
pub type Random = Arc<dyn Fn() -> u128 + Send + Sync>;

/// A history in the making. Clones write to the same one.
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
    /// An empty one whose writers draw from here.
    #[must_use]
    pub fn drawing(random: Random) -> Self {
        Self {
            history: Arc::default(),
            calls: Arc::default(),
            random,
        }
    }

    /// An id that nobody has.
    #[must_use]
    pub fn draw(&self) -> String {
        format!("{:032x}", (self.random)())
    }

    /// Writes a line.
    pub fn add(&self, who: &str, what: What) {
        self.lock().add(who, what);
    }

    /// Writes that a call begins; its number is for [`Record::answered`].
    #[must_use]
    pub fn called(&self, who: &str, call: Call) -> u64 {
        let op = self.calls.fetch_add(1, Ordering::Relaxed);
        self.add(who, What::Called(op, call));
        op
    }

    /// Writes how a call was answered.
    pub fn answered(&self, who: &str, op: u64, answer: Answer) {
        self.add(who, What::Answered(op, answer));
    }

    /// How many lines there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().entries.len()
    }

    /// True when nothing was written yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What was written so far.
    #[must_use]
    pub fn history(&self) -> History {
        self.lock().clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, History> {
        // Lines are added whole.
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

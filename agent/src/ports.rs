//! What an agent is given from outside, so that tests and simulations can replace it.

use std::sync::Arc;
use std::time::Duration;

use kage_core::time::Timestamp;

/// Tells the time of day. It is shown, and compared with the end of a certificate; all other
/// deadlines use the monotonic clock.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// Draws 128 random bits.
pub type Random = Arc<dyn Fn() -> u128 + Send + Sync>;

/// How work that waits for the disk is run.
#[derive(Clone, Default)]
pub enum Blocking {
    /// On threads for blocking calls.
    #[default]
    Threads,
    /// In place, after which the caller waits for the returned time. Threads end in any order: a
    /// simulation, whose clock stands still meanwhile, would not be reproducible.
    InPlace(Arc<dyn Fn() -> Duration + Send + Sync>),
}

/// Blocking work was cut short: the runtime ends, or the work panicked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("blocking work was interrupted")]
pub struct Interrupted;

impl Blocking {
    /// Runs `work` to its end, unless it is cut short.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Interrupted> {
        match self {
            Self::Threads => tokio::task::spawn_blocking(work).await.map_err(|_| Interrupted),
            Self::InPlace(_) => {
                let done = work();
                self.pause().await;
                Ok(done)
            }
        }
    }

    /// Waits as long as a simulated disk takes; a real one took its time already.
    pub(crate) async fn pause(&self) {
        match self {
            Self::Threads => {}
            Self::InPlace(takes) => tokio::time::sleep(takes()).await,
        }
    }
}

impl std::fmt::Debug for Blocking {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Threads => f.write_str("Threads"),
            Self::InPlace(_) => f.debug_tuple("InPlace").finish_non_exhaustive(),
        }
    }
}

//! What an agent is given from outside, so that tests and simulations can give something else.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kage_core::id::AdapterName;
use kage_core::time::Timestamp;
use kage_proto::client::Dial;
use tokio_util::sync::CancellationToken;

use crate::adapter::Adapter;
use crate::process::Runner;

/// The adapters of this agent by name.
pub type Registry = BTreeMap<AdapterName, Arc<dyn Adapter>>;

/// Tells the time of day. It is shown, and compared with the end of a certificate; all other
/// deadlines use the monotonic clock.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// Draws 128 random bits.
pub type Random = Arc<dyn Fn() -> u128 + Send + Sync>;

/// Where work is done that waits for the disk.
#[derive(Clone, Default)]
pub enum Blocking {
    /// On threads that may wait.
    #[default]
    Threads,
    /// In place, after which its caller waits for so long. Threads end in any order: a
    /// simulation, whose clock stands still meanwhile, would not go the same way twice.
    InPlace(Arc<dyn Fn() -> Duration + Send + Sync>),
}

/// Blocking work was cut short: the runtime ends, or the work panicked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("blocking work was cut short")]
pub struct Interrupted;

impl Blocking {
    /// Does something and waits until it is done.
    ///
    /// # Errors
    /// When it was cut short.
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

/// What an agent cannot make itself.
#[derive(Clone)]
pub struct Ports {
    /// Who can work on sessions here.
    pub adapters: Registry,
    /// Starts programs.
    pub runner: Runner,
    /// The time of day.
    pub clock: Clock,
    /// Randomness for ids and jitter.
    pub random: Random,
    /// How it connects for calls. Bulk bytes and git go by TCP in any case.
    pub dial: Dial,
    /// Where it waits for its disk.
    pub blocking: Blocking,
    /// Cancelled when running attempts are to be handed back at once (a second signal).
    pub hand_back: CancellationToken,
}

impl Ports {
    /// The machine's clock and randomness, and programs without a warden: only an executable
    /// that can become one (see [`crate::process::warden_main_if_asked`]) sets another runner.
    #[must_use]
    pub fn system(adapters: Registry) -> Self {
        Self {
            adapters,
            runner: Runner::default(),
            clock: Arc::new(|| {
                let since = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
                Timestamp::from_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
            }),
            random: Arc::new(rand::random::<u128>),
            dial: Dial::default(),
            blocking: Blocking::default(),
            hand_back: CancellationToken::new(),
        }
    }
}

impl std::fmt::Debug for Ports {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ports")
            .field("adapters", &self.adapters.keys())
            .finish_non_exhaustive()
    }
}

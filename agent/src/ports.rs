//! What an agent is given from outside, so that tests and simulations can give something else.

use std::collections::BTreeMap;
use std::sync::Arc;

use kage_core::id::AdapterName;
use kage_core::time::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::adapter::Adapter;
use crate::process::Runner;

/// The adapters of this agent by name.
pub type Registry = BTreeMap<AdapterName, Arc<dyn Adapter>>;

/// Tells the time of day. Only ever shown; deadlines use the monotonic clock.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// Draws 128 random bits.
pub type Random = Arc<dyn Fn() -> u128 + Send + Sync>;

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

//! What a coordinator is given from outside, so that tests and simulations can give something else.

use std::net::SocketAddr;
use std::sync::Arc;

use kage_core::time::Timestamp;
use tokio::sync::oneshot;

/// Tells the time of day. Leases and retries are reckoned by it; they are never fenced by it.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// Draws 128 random bits.
pub type Random = Arc<dyn Fn() -> u128 + Send + Sync>;

/// What a coordinator cannot make itself.
pub struct Ports {
    /// The time of day.
    pub clock: Clock,
    /// Randomness for ids and tokens.
    pub random: Random,
    /// Told the bound address once calls are answered.
    pub on_ready: Option<oneshot::Sender<SocketAddr>>,
}

impl Ports {
    /// The machine's clock and randomness.
    #[must_use]
    pub fn system() -> Self {
        Self {
            clock: Arc::new(|| {
                let since = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
                Timestamp::from_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
            }),
            random: Arc::new(rand::random::<u128>),
            on_ready: None,
        }
    }
}

impl std::fmt::Debug for Ports {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ports").finish_non_exhaustive()
    }
}

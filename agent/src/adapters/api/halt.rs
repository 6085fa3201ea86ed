//! What ends the loop of a session early, and waiting while it is frozen.

use kage_core::failure::Failure;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::adapters::port::ReporterClosed;

/// Why the loop ended early.
pub(super) enum Halt {
    Failed(Failure),
    Stopped,
}

impl From<ReporterClosed> for Halt {
    fn from(_: ReporterClosed) -> Self {
        Self::Stopped
    }
}

/// Waits until the attempt may work.
pub(super) async fn thawed(frozen: &mut watch::Receiver<bool>, stop: &CancellationToken) -> Result<(), Halt> {
    tokio::select! {
        biased;
        () = stop.cancelled() => Err(Halt::Stopped),
        // An error means that the sender is gone; then the session counts as not frozen.
        _thawed_or_nobody = frozen.wait_for(|frozen| !frozen) => Ok(()),
    }
}

//! What a service manager is told: that a coordinator is ready, lives, and ends, by the protocol of
//! `sd_notify(3)`. Where no manager asks for it, nothing is told. What it does about it is the unit's.

use std::time::Duration;

use kage_coordinator::store::Store;
use sd_notify::NotifyState;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// Tells that calls are answered.
pub(crate) fn ready(address: &str) {
    let status = format!("serves {address}");
    tell(&[NotifyState::Ready, NotifyState::Status(&status)]);
}

/// Tells that no new calls are taken.
pub(crate) fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Tells again and again that the process lives, until it ends, for as long as its store answers: one that hangs
/// is started again (`WatchdogSec=` of the unit).
pub(crate) async fn living(store: Store, end: CancellationToken) {
    let Some(limit) = sd_notify::watchdog_enabled() else {
        return end.cancelled().await;
    };
    // As sd_watchdog_enabled(3) recommends.
    let every = (limit / 2).max(Duration::from_millis(1));
    while !end.is_cancelled() {
        match timeout(every, store.answers()).await {
            Ok(Ok(())) => tell(&[NotifyState::Watchdog]),
            Ok(Err(error)) => {
                tracing::error!(error = &error as &dyn std::error::Error, "the store does not answer");
            }
            Err(_) => tracing::error!("the store takes longer than {every:?} to answer"),
        }
        end.run_until_cancelled(sleep(every)).await;
    }
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "the service manager cannot be told");
    }
}

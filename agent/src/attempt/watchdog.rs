//! Lets an adapter work until it ends, is told to stop, or takes too long. Time in which the
//! attempt is frozen does not count. An adapter that does not stop is abandoned.
//!
//! A session has no other clocks: programs and loops of adapters run until they are told to stop.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use kage_core::failure::{Failure, FailureKind};
use kage_core::time::in_words;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::adapters::port::{Adapter, AdapterEnd, Reporter, SessionInput, SessionLimits};
use crate::process::allowance::Allowance;

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Watched {
    pub(super) end: AdapterEnd,
    /// It did not stop, so it may still be running and hold its reporter.
    pub(super) abandoned: bool,
}

/// Why an adapter is told to stop.
enum Why {
    Told,
    TooLong(Failure),
}

impl Why {
    fn end(self) -> AdapterEnd {
        match self {
            Self::Told => AdapterEnd::Stopped,
            Self::TooLong(failure) => AdapterEnd::Failed(failure),
        }
    }

    fn too_long(text: String) -> Self {
        Self::TooLong(Failure::new(FailureKind::Timeout, text))
    }
}

/// Lets the adapter work. `patience` is how long it may go on after it was told to stop.
pub(super) async fn watch_over(
    adapter: Arc<dyn Adapter>,
    input: SessionInput,
    reporter: Reporter,
    last_active: watch::Receiver<Instant>,
    stopped: &CancellationToken,
    patience: Duration,
) -> Watched {
    let SessionLimits { timeout, idle } = adapter.limits(input.limits);
    let mut frozen = input.frozen.clone();
    let mut freezer = true;
    let mut allowance = Allowance::new(timeout);
    allowance.freeze(*frozen.borrow_and_update());
    let stop = CancellationToken::new();
    let told = stop.clone();
    let mut working = JoinSet::new();
    working.spawn(async move { adapter.run(input, reporter, told).await }.in_current_span());
    let mut idle_from = *last_active.borrow();
    let why = loop {
        tokio::select! {
            // An end by itself counts more than an order to stop.
            biased;
            joined = working.join_next() => {
                return Watched {
                    end: ended(joined),
                    abandoned: false,
                };
            }
            () = stopped.cancelled() => break Why::Told,
            changed = frozen.changed(), if freezer => {
                freezer = changed.is_ok();
                // A closed channel means that nothing can freeze or thaw the attempt: then it is
                // not frozen.
                allowance.freeze(freezer && *frozen.borrow_and_update());
                idle_from = Instant::now();
            }
            () = allowance.used_up() => {
                break Why::too_long(format!("it took longer than {}", in_words(timeout)));
            }
            () = tokio::time::sleep_until(idle_from + idle), if !allowance.is_frozen() => {
                idle_from = idle_from.max(*last_active.borrow());
                if idle_from.elapsed() >= idle {
                    let text = format!("it printed nothing and reported nothing for {}", in_words(idle));
                    break Why::too_long(text);
                }
            }
        }
    };
    stop.cancel();
    let abandoned = tokio::time::timeout(patience, working.join_next()).await.is_err();
    if abandoned {
        // It is aborted when the set is dropped, unless it blocks its thread.
        tracing::error!("adapter did not stop and is abandoned");
    }
    Watched {
        end: why.end(),
        abandoned,
    }
}

/// Does `work`, unless it takes longer than this; time in which the attempt is frozen does not count.
pub(super) async fn within<T>(
    time: Duration,
    mut frozen: watch::Receiver<bool>,
    work: impl Future<Output = T>,
) -> Option<T> {
    let mut allowance = Allowance::new(time);
    let mut freezer = true;
    allowance.freeze(*frozen.borrow_and_update());
    let mut work = pin!(work);
    loop {
        tokio::select! {
            biased;
            done = &mut work => return Some(done),
            changed = frozen.changed(), if freezer => {
                freezer = changed.is_ok();
                allowance.freeze(freezer && *frozen.borrow_and_update());
            }
            () = allowance.used_up() => return None,
        }
    }
}

fn ended(joined: Option<Result<AdapterEnd, JoinError>>) -> AdapterEnd {
    match joined {
        Some(Ok(end)) => end,
        Some(Err(error)) => AdapterEnd::Failed(crash("the adapter", &error)),
        None => AdapterEnd::Stopped,
    }
}

/// The failure for a part of an attempt that panicked.
pub(super) fn crash(what: &str, error: &JoinError) -> Failure {
    Failure::new(FailureKind::AdapterCrash, format!("{what} crashed: {error}"))
}

#[cfg(test)]
mod tests;

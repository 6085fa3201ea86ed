//! Turns of programs that no slot of the agent stands for: those of sessions that mostly wait for a
//! network. As many of them run at once as the agent has slots, so that many such sessions do not
//! compile at the same moment. A turn is for one program and ends with it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

/// How often whoever waits for a turn shows that it is alive.
const ALIVE: Duration = Duration::from_secs(5);

/// The turns of one agent.
#[derive(Debug, Clone)]
pub struct Turns(Arc<Semaphore>);

/// The right to run one program; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    _permit: Option<OwnedSemaphorePermit>,
}

impl Turns {
    /// So many at once.
    #[must_use]
    pub fn new(at_once: u32) -> Self {
        Self(Arc::new(Semaphore::new(at_once as usize)))
    }

    /// Waits for a turn, in the order of asking; `alive` is called now and then meanwhile. `None`: it was
    /// stopped.
    pub(crate) async fn next(&self, stop: &CancellationToken, alive: impl Fn()) -> Option<Turn> {
        let mut waiting = std::pin::pin!(Arc::clone(&self.0).acquire_owned());
        let mut ticks = interval(ALIVE);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return None,
                // Nobody closes it.
                permit = &mut waiting => return Some(Turn { _permit: permit.ok() }),
                _ = ticks.tick() => alive(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_turn_comes_when_another_ends_and_who_waits_is_alive() {
        let (turns, stop) = (Turns::new(1), CancellationToken::new());
        let first = turns.next(&stop, || {}).await.unwrap();
        let lives = AtomicU32::new(0);
        let alive = || {
            lives.fetch_add(1, Ordering::Relaxed);
        };
        let mut second = std::pin::pin!(turns.next(&stop, alive));
        assert!(tokio::time::timeout(10 * ALIVE, &mut second).await.is_err());
        assert!(lives.load(Ordering::Relaxed) >= 10);
        drop(first);
        let second = second.await.unwrap();

        let mut third = std::pin::pin!(turns.next(&stop, || {}));
        assert!(tokio::time::timeout(ALIVE, &mut third).await.is_err());
        stop.cancel();
        assert!(third.await.is_none());
        drop(second);
    }
}

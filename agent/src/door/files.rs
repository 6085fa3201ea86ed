//! The file numbers that doors take. Every connection of a program takes two of the agent's, and every box
//! one for each of its ports, so programs could leave the agent none for its own work. All doors of the process
//! share a half of what it may have; one door has at most a half of that. Who finds none left waits.

use std::sync::{Arc, OnceLock};

use rustix::process::{Resource, getrlimit};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Of each connection: the program's side, and the other one.
pub(super) const OF_CONNECTION: u32 = 2;
/// Of each box, besides its ports: its process, and the socket by which it came.
const OF_BOX: u32 = 2;
/// What counts where a process may open as many files as it likes.
const UNLIMITED: u64 = 65_536;
/// The fewest that one door has: those of a box with all of its ports, and of a connection.
const FEWEST: usize = 64;

/// What all doors may take, and what one may.
#[derive(Debug, Clone)]
pub struct DoorFiles {
    all: Arc<Semaphore>,
    of_one: Arc<Semaphore>,
}

/// File numbers that were taken. Dropping it gives them back.
#[derive(Debug)]
pub(super) struct Taken {
    _of_all: OwnedSemaphorePermit,
    _of_one: OwnedSemaphorePermit,
}

impl DoorFiles {
    /// Those of another door of this process, by its limit when the first was opened.
    #[must_use]
    pub fn of_this_process() -> Self {
        static ALL: OnceLock<(Arc<Semaphore>, usize)> = OnceLock::new();
        let (all, number) = ALL.get_or_init(|| {
            let number = shared(getrlimit(Resource::Nofile).current);
            (Arc::new(Semaphore::new(number)), number)
        });
        Self::share(Arc::clone(all), *number)
    }

    fn share(all: Arc<Semaphore>, number: usize) -> Self {
        let of_one = (number / 2).max(FEWEST).min(number);
        Self {
            all,
            of_one: Arc::new(Semaphore::new(of_one)),
        }
    }

    /// Those of a process that may open so many.
    #[cfg(test)]
    pub(super) fn of_limit(limit: u64) -> Self {
        let number = shared(Some(limit));
        Self::share(Arc::new(Semaphore::new(number)), number)
    }

    /// Another door of the same process.
    #[cfg(test)]
    pub(super) fn another(&self, limit: u64) -> Self {
        Self::share(Arc::clone(&self.all), shared(Some(limit)))
    }

    /// Takes so many, as soon as they are free. Cancel-safe: who gives up has taken none.
    pub(super) async fn take(&self, number: u32) -> Option<Taken> {
        // First its own, so that a door that has enough keeps nobody else's.
        let of_one = Arc::clone(&self.of_one).acquire_many_owned(number).await.ok()?;
        let of_all = Arc::clone(&self.all).acquire_many_owned(number).await.ok()?;
        Some(Taken {
            _of_all: of_all,
            _of_one: of_one,
        })
    }
}

/// What a box with so many ports takes.
pub(super) fn of_box(ports: usize) -> u32 {
    u32::try_from(ports).unwrap_or(u32::MAX).saturating_add(OF_BOX)
}

/// How many all doors have, of those that the process may have.
fn shared(limit: Option<u64>) -> usize {
    let half = limit.unwrap_or(UNLIMITED).min(UNLIMITED) / 2;
    usize::try_from(half).unwrap_or(FEWEST).max(FEWEST)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use kage_core::network::MOST_FORWARDS;

    use super::*;

    #[test]
    fn doors_leave_the_agent_a_half_and_each_other_a_quarter() {
        let one = DoorFiles::of_limit(1024);
        let take = |files: &DoorFiles| files.take(OF_CONNECTION).now_or_never().flatten();
        let mut taken: Vec<_> = std::iter::from_fn(|| take(&one)).collect();
        assert_eq!(taken.len(), 128);
        let other = one.another(1024);
        let others: Vec<_> = std::iter::from_fn(|| take(&other)).collect();
        assert_eq!(others.len(), 128);
        // No more for a third, until one ends.
        let third = one.another(1024);
        assert!(take(&third).is_none());
        taken.pop();
        assert!(take(&third).is_some());
    }

    #[test]
    fn a_box_with_all_of_its_ports_fits_whatever_the_limit_is() {
        for limit in [0, 64, 256, 1024, 1 << 20] {
            let files = DoorFiles::of_limit(limit);
            let taken = files.take(of_box(MOST_FORWARDS + 1)).now_or_never().flatten();
            assert!(taken.is_some(), "{limit}");
            assert!(files.take(OF_CONNECTION).now_or_never().flatten().is_some(), "{limit}");
        }
        assert_eq!(shared(None), 32_768);
    }
}

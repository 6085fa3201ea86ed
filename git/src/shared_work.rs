//! Divides work on many items among a few threads.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::error::GitError;

/// Applies `work` to every item and returns the results in order. `start` makes the state of a
/// thread; the calling thread is one of `threads`. Items in progress when a thread fails are
/// finished; the error is that of one of the failed ones.
pub(crate) fn share_out<T: Sync, S, R: Send>(
    items: &[T],
    threads: usize,
    start: impl Fn() -> Result<S, GitError> + Sync,
    work: impl Fn(&mut S, &T) -> Result<R, GitError> + Sync,
) -> Result<Vec<R>, GitError> {
    let next = AtomicUsize::new(0);
    let take_part = || {
        let mut own = start()?;
        let mut done = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(number) else {
                return Ok(done);
            };
            let result = work(&mut own, item).inspect_err(|_| {
                // No thread begins another item.
                next.store(items.len(), Ordering::Relaxed);
            });
            done.push((number, result?));
        }
    };
    thread::scope(|scope| {
        let others: Vec<_> = (1..threads.min(items.len())).map(|_| scope.spawn(take_part)).collect();
        let mut done = take_part();
        for other in others {
            let interrupted = Err(GitError::Interrupted { action: "sharing work" });
            let more = other.join().unwrap_or(interrupted);
            done = done.and_then(|mut done| {
                done.extend(more?);
                Ok(done)
            });
        }
        let mut done = done?;
        done.sort_unstable_by_key(|(number, _)| *number);
        Ok(done.into_iter().map(|(_, result)| result).collect())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nothing() -> Result<(), GitError> {
        Ok(())
    }

    #[test]
    fn every_item_is_worked_on_once_and_results_keep_their_order() {
        let items: Vec<usize> = (0..1000).collect();
        for threads in [1, 4] {
            let doubled = share_out(&items, threads, nothing, |(), item| Ok(item * 2)).unwrap();
            assert!(doubled.iter().enumerate().all(|(at, double)| *double == at * 2));
            assert_eq!(doubled.len(), items.len());
        }
        assert!(
            share_out(&[], 4, nothing, |(), item: &usize| Ok(*item))
                .unwrap()
                .is_empty()
        );
    }

    #[test]
    fn one_failure_fails_all() {
        let items: Vec<usize> = (0..1000).collect();
        let done = share_out(&items, 4, nothing, |(), item| match item {
            500 => Err(GitError::Interrupted { action: "testing" }),
            _ => Ok(()),
        });
        assert!(done.is_err());
    }
}

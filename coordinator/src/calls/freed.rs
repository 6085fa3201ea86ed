//! Lines of those who wait for money of a budget that others hold back. Only the first of each line looks when
//! something is free; when it is served, it wakes the next.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kage_core::budget::ScopeKey;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

/// The lines, by the calls that count against the budget.
#[derive(Debug, Default)]
pub(crate) struct BudgetLines(Mutex<Lines>);

#[derive(Debug, Default)]
struct Lines {
    waiting: BTreeMap<ScopeKey, VecDeque<Arc<Notify>>>,
    /// How often something became free.
    freed: u64,
}

impl BudgetLines {
    /// Something is free: the first of each line looks.
    pub(crate) fn freed(&self) {
        let mut lines = self.lines();
        lines.freed += 1;
        for first in lines.waiting.values().filter_map(VecDeque::front) {
            first.notify_one();
        }
    }

    /// How often something became free so far: told to [`Self::join`], so that nothing is missed between a question
    /// and its place.
    pub(crate) fn so_far(&self) -> u64 {
        self.lines().freed
    }

    /// Takes the last place of a line.
    pub(crate) fn join(&self, scope: ScopeKey, so_far: u64) -> BudgetPlace<'_> {
        let woken = Arc::new(Notify::new());
        let mut lines = self.lines();
        if lines.freed != so_far {
            woken.notify_one();
        }
        let line = lines.waiting.entry(scope.clone()).or_default();
        line.push_back(Arc::clone(&woken));
        drop(lines);
        BudgetPlace {
            lines: self,
            scope,
            woken,
        }
    }

    fn lines(&self) -> MutexGuard<'_, Lines> {
        // Whoever is missing looks at the end of its time.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in a line, given up with this value.
#[derive(Debug)]
pub(crate) struct BudgetPlace<'a> {
    lines: &'a BudgetLines,
    scope: ScopeKey,
    woken: Arc<Notify>,
}

impl BudgetPlace<'_> {
    /// Whether it is a place in the line of this budget.
    pub(crate) fn is_of(&self, scope: &ScopeKey) -> bool {
        self.scope == *scope
    }

    /// Waits until something may be free. The first of a line looks at `look` too: something may have become free
    /// without a sign.
    pub(crate) async fn woken(&self, look: Instant, until: Instant) {
        let at = if self.is_first() { look.min(until) } else { until };
        tokio::select! {
            () = self.woken.notified() => {}
            () = sleep_until(at) => {}
        }
    }

    fn is_first(&self) -> bool {
        let lines = self.lines.lines();
        let first = lines.waiting.get(&self.scope).and_then(VecDeque::front);
        first.is_some_and(|first| Arc::ptr_eq(first, &self.woken))
    }
}

impl Drop for BudgetPlace<'_> {
    fn drop(&mut self) {
        let mut lines = self.lines.lines();
        let Some(line) = lines.waiting.get_mut(&self.scope) else {
            return;
        };
        let was_first = line.front().is_some_and(|first| Arc::ptr_eq(first, &self.woken));
        line.retain(|place| !Arc::ptr_eq(place, &self.woken));
        match line.front() {
            Some(next) if was_first => next.notify_one(),
            Some(_) => {}
            None => drop(lines.waiting.remove(&self.scope)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use kage_core::id::TaskId;

    use super::*;

    fn scope(n: u128) -> ScopeKey {
        ScopeKey::Task(TaskId::from_random(n))
    }

    /// Whether a place is woken now.
    async fn is_woken(place: &BudgetPlace<'_>) -> bool {
        let far = Instant::now() + Duration::from_secs(60);
        tokio::time::timeout(Duration::ZERO, place.woken(far, far))
            .await
            .is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_of_each_line_is_woken_and_wakes_the_next() {
        let lines = BudgetLines::default();
        let first = lines.join(scope(1), 0);
        let second = lines.join(scope(1), 0);
        let other = lines.join(scope(2), 0);
        assert!(!is_woken(&first).await && !is_woken(&second).await);
        lines.freed();
        assert!(is_woken(&first).await && is_woken(&other).await);
        assert!(!is_woken(&second).await);
        // It has to wait again, and stays the first.
        lines.freed();
        assert!(is_woken(&first).await && !is_woken(&second).await);
        drop(first);
        assert!(is_woken(&second).await);
        drop((second, other));
        assert!(lines.lines().waiting.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_became_free_before_a_place_was_taken_is_not_missed() {
        let lines = BudgetLines::default();
        let so_far = lines.so_far();
        lines.freed();
        assert!(is_woken(&lines.join(scope(1), so_far)).await);
        assert!(!is_woken(&lines.join(scope(1), lines.so_far())).await);
    }

    #[tokio::test(start_paused = true)]
    async fn only_the_first_looks_without_a_sign() {
        let lines = BudgetLines::default();
        let (first, second) = (lines.join(scope(1), 0), lines.join(scope(1), 0));
        let begun = Instant::now();
        let (look, until) = (begun + Duration::from_secs(1), begun + Duration::from_secs(5));
        first.woken(look, until).await;
        assert_eq!(begun.elapsed(), Duration::from_secs(1));
        second.woken(look, until).await;
        assert_eq!(begun.elapsed(), Duration::from_secs(5));
    }
}

//! The owner of the queue of calls: wakes whom it names, one condition at a time. Its time is that of this run and
//! does not jump with the clock on the wall.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kage_core::call::RateTold;
use kage_core::call_queue::{CallAsked, CallQueue, CallTurn, CallUsed};
use kage_core::id::CallId;
use kage_core::time::Timestamp;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Calls that wait for their turn, and those that are made.
#[derive(Debug)]
pub(crate) struct CallTurns {
    began: (Instant, Timestamp),
    state: Mutex<TurnState>,
}

#[derive(Debug, Default)]
struct TurnState {
    queue: CallQueue,
    /// Whoever waits for an answer, by call.
    waiting: BTreeMap<CallId, Arc<Notify>>,
}

impl CallTurns {
    /// An empty queue at this time.
    pub(crate) fn new(now: Timestamp) -> Self {
        Self {
            began: (Instant::now(), now),
            state: Mutex::default(),
        }
    }

    /// Waits until a call may go, at most until a time; then it keeps its place for a moment.
    pub(crate) async fn turn(&self, asked: &CallAsked, until: Instant) -> CallTurn {
        let waiter = Waiter::new(self, asked.call);
        loop {
            let turn = self.change(|queue, now| queue.ask(asked, now));
            let CallTurn::Wait { until: look, .. } = turn else {
                return turn;
            };
            if Instant::now() >= until {
                return turn;
            }
            let look = look.map_or(until, |at| self.instant(at).min(until));
            tokio::select! {
                () = waiter.woken.notified() => {}
                () = tokio::time::sleep_until(look) => {}
            }
        }
    }

    /// The call is not made now.
    pub(crate) fn withdraw(&self, call: CallId) {
        self.change(|queue, now| queue.withdraw(call, now));
    }

    /// Its answer begins.
    pub(crate) fn started(&self, call: CallId, told: &RateTold) {
        self.change(|queue, now| queue.started(call, told, now));
    }

    /// It ended.
    pub(crate) fn committed(&self, call: CallId, used: CallUsed, told: &RateTold) {
        self.change(|queue, now| queue.committed(call, used, told, now));
    }

    /// It was not made, or was refused.
    pub(crate) fn released(&self, call: CallId, told: &RateTold) {
        self.change(|queue, now| queue.released(call, told, now));
    }

    /// Changes the queue and wakes those whom the change lets look again.
    fn change<T>(&self, change: impl FnOnce(&mut CallQueue, Timestamp) -> T) -> T {
        let (began, at) = self.began;
        let now = at + began.elapsed();
        let mut state = self.state();
        let result = change(&mut state.queue, now);
        for call in state.queue.woken() {
            if let Some(woken) = state.waiting.get(&call) {
                woken.notify_one();
            }
        }
        result
    }

    fn instant(&self, at: Timestamp) -> Instant {
        let (began, from) = self.began;
        // Times of core are whole milliseconds, rounded down.
        began + at.since(from) + Duration::from_millis(1)
    }

    fn state(&self) -> MutexGuard<'_, TurnState> {
        // A memory of what is going on: a panic in between loses no truth.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whoever waits for the answer of a question.
struct Waiter<'a> {
    turns: &'a CallTurns,
    call: CallId,
    woken: Arc<Notify>,
}

impl<'a> Waiter<'a> {
    fn new(turns: &'a CallTurns, call: CallId) -> Self {
        let woken = Arc::new(Notify::new());
        turns.state().waiting.insert(call, Arc::clone(&woken));
        Self { turns, call, woken }
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let is_last = {
            let waiting = &mut self.turns.state().waiting;
            // The same question may have come again meanwhile.
            let is_last = waiting
                .get(&self.call)
                .is_some_and(|last| Arc::ptr_eq(last, &self.woken));
            if is_last {
                waiting.remove(&self.call);
            }
            is_last
        };
        if is_last {
            self.turns.change(|queue, now| queue.pause(self.call, now));
        }
    }
}

#[cfg(test)]
mod tests;

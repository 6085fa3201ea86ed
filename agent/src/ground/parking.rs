//! Worktrees that wait for their session's next attempt, because the session was sent back to a
//! checkpoint: which attempts leave theirs, which wait and for how long. `workspace` makes,
//! restores and removes worktrees.
//!
//! ```text
//!   begin ─▶ told to leave its worktree ─▶ ended ─▶ waiting ─▶ taken by the next attempt
//!                                                      └─▶ overdue, or too many bytes: removed
//! ```
//!
//! An attempt waits for the session's earlier ones: their programs must be gone before files change
//! under them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kage_core::id::{AttemptId, SessionId};
use tokio::sync::watch;
use tokio::time::Instant;

/// How long a worktree waits. Its session may be held up, or continue on another agent.
const PATIENCE: Duration = Duration::from_secs(10 * 60);

/// The worktrees, each a `W`. Cloning shares them.
#[derive(Debug)]
pub(crate) struct Parking<W>(Arc<Shared<W>>);

#[derive(Debug)]
struct Shared<W> {
    state: Mutex<ParkingState<W>>,
    /// Notified when an attempt has ended.
    ended: watch::Sender<()>,
}

#[derive(Debug)]
struct ParkingState<W> {
    begun: u64,
    working: BTreeMap<AttemptId, Working>,
    waiting: BTreeMap<SessionId, Waiting<W>>,
}

#[derive(Debug)]
struct Working {
    session: SessionId,
    /// Increases, so that no attempt waits for a later one.
    number: u64,
    leaves: bool,
    /// A program may outlive the attempt in its worktree.
    unusable: bool,
    /// Where it works, when an earlier attempt began there.
    adopted: Option<PathBuf>,
}

#[derive(Debug)]
struct Waiting<W> {
    worktree: W,
    path: PathBuf,
    since: Instant,
}

/// An attempt of a session, until it is dropped.
#[derive(Debug)]
pub(crate) struct Presence<W> {
    parking: Parking<W>,
    session: SessionId,
    attempt: AttemptId,
    number: u64,
}

impl<W> Default for Parking<W> {
    fn default() -> Self {
        Self(Arc::new(Shared {
            state: Mutex::new(ParkingState {
                begun: 0,
                working: BTreeMap::new(),
                waiting: BTreeMap::new(),
            }),
            ended: watch::Sender::new(()),
        }))
    }
}

impl<W> Clone for Parking<W> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<W> Parking<W> {
    fn lock(&self) -> MutexGuard<'_, ParkingState<W>> {
        // Every change is complete before anything can panic.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers an attempt of a session.
    pub(crate) fn begin(&self, session: SessionId, attempt: AttemptId) -> Presence<W> {
        let mut state = self.lock();
        state.begun += 1;
        let number = state.begun;
        let working = Working {
            session,
            number,
            leaves: false,
            unusable: false,
            adopted: None,
        };
        state.working.insert(attempt, working);
        drop(state);
        Presence {
            parking: self.clone(),
            session,
            attempt,
            number,
        }
    }

    /// Tells an attempt to leave its worktree to the next one when it ends.
    pub(crate) fn leave(&self, attempt: AttemptId) {
        if let Some(working) = self.lock().working.get_mut(&attempt) {
            working.leaves = true;
        }
    }

    /// Removes and returns the worktrees that waited too long.
    pub(crate) fn overdue(&self, now: Instant) -> Vec<W> {
        let mut state = self.lock();
        let late = state.waiting.extract_if(.., |_, waiting| {
            now.saturating_duration_since(waiting.since) >= PATIENCE
        });
        late.map(|(_, waiting)| waiting.worktree).collect()
    }

    /// Removes and returns the worktree that has waited longest.
    pub(crate) fn oldest(&self) -> Option<W> {
        let mut state = self.lock();
        let oldest = state.waiting.iter().min_by_key(|(_, waiting)| waiting.since);
        let session = *oldest?.0;
        state.waiting.remove(&session).map(|waiting| waiting.worktree)
    }

    /// Paths of waiting worktrees, and of those used by another attempt than the one in their name.
    pub(crate) fn paths(&self) -> Vec<PathBuf> {
        let state = self.lock();
        let adopted = state.working.values().filter_map(|working| working.adopted.clone());
        let waiting = state.waiting.values().map(|waiting| waiting.path.clone());
        adopted.chain(waiting).collect()
    }
}

impl<W> Presence<W> {
    /// The worktree that the session's attempt before this one left here, once all earlier ones
    /// have ended. Cancel-safe.
    pub(crate) async fn take(&self) -> Option<W> {
        let mut ended = self.parking.0.ended.subscribe();
        loop {
            ended.borrow_and_update();
            {
                let mut state = self.parking.lock();
                let mut working = state.working.values();
                if !working.any(|other| other.session == self.session && other.number < self.number) {
                    let found = state.waiting.remove(&self.session)?;
                    if let Some(me) = state.working.get_mut(&self.attempt) {
                        me.adopted = Some(found.path);
                    }
                    return Some(found.worktree);
                }
            }
            // The sender lives as long as the state that `self` shares.
            ended.changed().await.ok()?;
        }
    }

    /// A program may outlive the attempt: no other attempt may use its worktree.
    pub(crate) fn mark_unusable(&self) {
        if let Some(me) = self.parking.lock().working.get_mut(&self.attempt) {
            me.unusable = true;
        }
    }

    /// Whether no program outlives the attempt in its worktree.
    pub(crate) fn is_usable(&self) -> bool {
        let state = self.parking.lock();
        state.working.get(&self.attempt).is_none_or(|me| !me.unusable)
    }

    /// Leaves the worktree at `path` to the next attempt, if that is wanted; otherwise returns it.
    pub(crate) fn park(self, worktree: W, path: &Path) -> Result<(), W> {
        let mut state = self.parking.lock();
        let me = state.working.get(&self.attempt);
        let leaves = me.is_some_and(|me| me.leaves && !me.unusable);
        if !leaves || state.waiting.contains_key(&self.session) {
            return Err(worktree);
        }
        let waiting = Waiting {
            worktree,
            path: path.to_owned(),
            since: Instant::now(),
        };
        state.waiting.insert(self.session, waiting);
        Ok(())
    }
}

impl<W> Drop for Presence<W> {
    fn drop(&mut self) {
        self.parking.lock().working.remove(&self.attempt);
        self.parking.0.ended.send_replace(());
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn session(n: u128) -> SessionId {
        SessionId::from_random(n)
    }

    fn attempt(n: u128) -> AttemptId {
        AttemptId::from_random(n)
    }

    #[tokio::test]
    async fn the_next_attempt_takes_what_the_one_before_left_when_it_has_ended() {
        let parking = Parking::default();
        let first = parking.begin(session(1), attempt(1));
        let other = parking.begin(session(2), attempt(2));
        parking.leave(attempt(1));
        let second = parking.begin(session(1), attempt(3));
        assert_eq!(second.take().now_or_never(), None, "the first is still there");
        // No attempt waits for a later one, nor for one of another session.
        assert_eq!(first.take().now_or_never(), Some(None));
        assert_eq!(other.take().now_or_never(), Some(None));

        let mut taking = Box::pin(second.take());
        assert_eq!((&mut taking).now_or_never(), None);
        assert_eq!(first.park("tree", Path::new("/1")), Ok(()));
        assert_eq!(taking.await, Some("tree"));
        assert_eq!(
            parking.paths(),
            [Path::new("/1")],
            "it is not named after who works there"
        );
        assert_eq!(second.take().now_or_never(), Some(None), "one takes it");

        // It may be left again.
        parking.leave(attempt(3));
        assert_eq!(second.park("tree", Path::new("/1")), Ok(()));
        assert_eq!(parking.paths(), [Path::new("/1")]);
        assert_eq!(parking.oldest(), Some("tree"));
        assert_eq!((parking.oldest(), parking.paths().len()), (None, 0));
    }

    #[tokio::test]
    async fn what_nobody_wants_or_a_program_may_still_use_is_not_left() {
        let parking = Parking::default();
        let unasked = parking.begin(session(1), attempt(1));
        assert_eq!(unasked.park("tree", Path::new("/1")), Err("tree"));
        let abandoned = parking.begin(session(1), attempt(2));
        parking.leave(attempt(2));
        assert!(abandoned.is_usable());
        abandoned.mark_unusable();
        assert!(!abandoned.is_usable());
        assert_eq!(abandoned.park("tree", Path::new("/2")), Err("tree"));
        // An interrupted attempt makes no other wait.
        let cut = parking.begin(session(1), attempt(3));
        let next = parking.begin(session(1), attempt(4));
        let mut taking = Box::pin(next.take());
        assert_eq!((&mut taking).now_or_never(), None);
        drop(cut);
        assert_eq!(taking.await, None);
    }

    #[test]
    fn nothing_waits_for_ever() {
        let parking = Parking::default();
        for n in [1, 2] {
            let presence = parking.begin(session(n), attempt(n));
            parking.leave(attempt(n));
            assert_eq!(presence.park(n, Path::new("/")), Ok(()));
        }
        let now = Instant::now();
        assert_eq!(parking.overdue(now), []);
        assert_eq!(parking.oldest(), Some(1));
        assert_eq!(parking.overdue(now + PATIENCE), [2]);
    }
}

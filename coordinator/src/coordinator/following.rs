//! How everything in memory follows the store: the board, the identities of callers, the fences of
//! writers, and the topics that wake watchers. The committed feed is the only way, whoever made a
//! change: whoever carries out a command here brings memory up to it before the answer, and
//! `duties::gaps` looks after what others committed, and reads the store again after a gap.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use kage_core::attempt::{AttemptState, EndReason};
use kage_core::id::TaskId;
use kage_core::job::JobState;
use tokio::sync::watch;
use tokio::time::Instant;

use super::Coordinator;
use crate::board::Board;
use crate::store::{Change, Command, FeedNews, Follower, Store, StoreError};
use crate::telemetry;

/// How far memory has followed.
#[derive(Debug)]
pub(crate) struct Following {
    follower: Mutex<Follower>,
    gaps: watch::Sender<Gaps>,
}

/// Gaps in the feed, counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Gaps {
    seen: u64,
    /// Those after which the store was read again.
    closed: u64,
}

impl Following {
    /// Follows everything that is committed from now on: what was committed before is read later.
    pub(crate) fn new(store: &Store) -> Self {
        Self {
            follower: Mutex::new(store.changes()),
            gaps: watch::Sender::default(),
        }
    }

    /// How many gaps there were, when one of them is open.
    pub(crate) fn open_gaps(&self) -> Option<u64> {
        let gaps = *self.gaps.borrow();
        (gaps.closed < gaps.seen).then_some(gaps.seen)
    }

    /// The store was read again after these gaps.
    pub(crate) fn closed(&self, gaps: u64) {
        self.gaps.send_modify(|known| known.closed = known.closed.max(gaps));
    }

    fn gap(&self) {
        self.gaps.send_modify(|gaps| gaps.seen += 1);
    }

    fn lock(&self) -> MutexGuard<'_, Follower> {
        // What it has read, it has read.
        self.follower.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether memory may know a change already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    First,
    /// The store was read meanwhile.
    Again,
}

/// Brings memory up to what was committed when it is dropped: also when whoever waited for the
/// outcome of a command went away.
struct FollowAtEnd<'a>(&'a Coordinator);

impl Drop for FollowAtEnd<'_> {
    fn drop(&mut self) {
        self.0.follow();
    }
}

impl Coordinator {
    /// Carries out a command. When this returns, memory has followed what it changed.
    pub(crate) async fn apply<C: Command>(&self, command: C) -> Result<C::Outcome, StoreError> {
        let _follows = FollowAtEnd(self);
        self.store.apply(command).await
    }

    /// Waits until the store was read again after every gap so far, for a caller who will be believed
    /// from now on, or no longer.
    pub(crate) async fn settled(&self) {
        let mut gaps = self.following.gaps.subscribe();
        let seen = gaps.borrow().seen;
        tokio::select! {
            biased;
            () = self.closing.cancelled() => {}
            // The sender lives as long as this.
            _ = gaps.wait_for(|gaps| gaps.closed >= seen) => {}
        }
    }

    /// Brings memory up to what was committed.
    pub(crate) fn follow(&self) {
        self.catch_up(&mut self.following.lock());
    }

    fn catch_up(&self, follower: &mut Follower) {
        while let Some(news) = follower.next() {
            match news {
                FeedNews::Commit(commit) => {
                    commit.changes.iter().for_each(count);
                    self.take(&commit.changes, Told::First);
                }
                FeedNews::Gap => self.following.gap(),
            }
        }
    }

    /// Puts memory right with what was read from the store after `since` began. What was committed
    /// meanwhile may be in it or not, and is told again.
    pub(crate) fn put_right(&self, mut since: Follower, put_right: impl FnOnce(&Self)) {
        let mut follower = self.following.lock();
        self.catch_up(&mut follower);
        put_right(self);
        while let Some(news) = since.next() {
            match news {
                FeedNews::Commit(commit) => self.take(&commit.changes, Told::Again),
                FeedNews::Gap => self.following.gap(),
            }
        }
    }

    fn take(&self, changes: &[Change], told: Told) {
        let now = Instant::now();
        let mut placeable = false;
        let mut shown = BTreeSet::new();
        {
            let mut board = self.board();
            for change in changes {
                placeable |= self.on_board(&mut board, change, told, now);
            }
        }
        for change in changes {
            match change {
                Change::Attempt(attempt) if attempt.state != AttemptState::Live => self.fences.close(attempt.id),
                Change::PersonToken(token) => self.identities.person(token),
                Change::Session { session, .. } => {
                    self.unsaved.note(session);
                    shown.extend(is_shown(change));
                }
                _ => shown.extend(is_shown(change)),
            }
        }
        for task in shown {
            self.topics.rows_changed(task);
        }
        if placeable {
            self.placeable.notify_one();
        }
    }

    /// True when placing may have another result now.
    fn on_board(&self, board: &mut Board, change: &Change, told: Told, now: Instant) -> bool {
        match change {
            Change::Job { row, .. } => match (row.job.state, change.queued()) {
                (JobState::Queued { .. }, Some(job)) => {
                    if told == Told::First || !board.holds(job.job) {
                        board.enqueue(job);
                    }
                    return true;
                }
                _ => board.withdraw(row.job.id),
            },
            Change::Dropped { open, .. } => open.iter().for_each(|job| board.withdraw(*job)),
            Change::Started { attempt, note } => {
                if !board.is_limited(attempt.id) {
                    let allowed = attempt.ends_by.since(note.started_at);
                    board.allow(attempt.agent, attempt.id, allowed, now);
                }
            }
            Change::Attempt(attempt) => match attempt.state {
                AttemptState::Live => {
                    if attempt.stop_asked.is_some() && !board.is_stopping(attempt.id) {
                        board.stop(attempt.agent, attempt.id, now);
                    }
                }
                AttemptState::Ended { reason, .. } => {
                    if reason == EndReason::Restored {
                        board.send_back(attempt.agent, attempt.id);
                    } else if reason == EndReason::Superseded {
                        board.supersede(attempt.agent, attempt.id);
                    }
                    board.ended(attempt.agent, attempt.id);
                    return true;
                }
            },
            Change::Agent(agent) => {
                let project = self.identities.enrolled(agent.id).map(|enrolled| enrolled.project);
                board.stored(agent, project, now);
                return true;
            }
            Change::Enrolment(enrolment) => {
                self.identities.agent(enrolment);
                if enrolment.revoked_at.is_some() {
                    board.shut_out(enrolment.agent);
                }
            }
            Change::Created { .. }
            | Change::Task(_)
            | Change::Session { .. }
            | Change::LeasesExtended { .. }
            | Change::Event { .. }
            | Change::AgentSeen(..)
            | Change::PersonToken(_) => {}
        }
        false
    }
}

/// The task that has something new to show: events, or a state.
fn is_shown(change: &Change) -> Option<TaskId> {
    match change {
        Change::Created { head, .. } | Change::Task(head) => Some(head.id),
        Change::Session { session, .. } => Some(session.task),
        Change::Dropped { task, .. } | Change::Event { task, .. } => Some(*task),
        Change::Job { .. }
        | Change::Started { .. }
        | Change::Attempt(_)
        | Change::LeasesExtended { .. }
        | Change::Agent(_)
        | Change::AgentSeen(..)
        | Change::Enrolment(_)
        | Change::PersonToken(_) => None,
    }
}

/// Counts what came to an end.
fn count(change: &Change) {
    match change {
        Change::Attempt(attempt) => {
            if let AttemptState::Ended { reason, .. } = attempt.state {
                telemetry::attempt_ended(reason);
            }
        }
        Change::Session { session, before } => {
            let state = session.state.kind();
            if state.is_terminal() && before.is_some_and(|before| !before.is_terminal()) {
                telemetry::session_ended(state);
            }
        }
        Change::Created { .. }
        | Change::Task(_)
        | Change::Dropped { .. }
        | Change::Job { .. }
        | Change::Started { .. }
        | Change::LeasesExtended { .. }
        | Change::Event { .. }
        | Change::Agent(_)
        | Change::AgentSeen(..)
        | Change::Enrolment(_)
        | Change::PersonToken(_) => {}
    }
}

//! Two stores that get the same steps and must give the same answers.

use std::fmt::Debug;
use std::path::Path;
use std::sync::Arc;

use kage_core::id::{Digest, ProjectId, SessionId};
use kage_core::task::TaskOrigin;
use kage_core::time::Timestamp;

use super::admission::ShutOut;
use crate::store::conformance::faults::Plan;
use crate::store::conformance::fixture::{agent_id, at, attempt_id, task_id};
use crate::store::conformance::followed::{Changes, told};
use crate::store::conformance::invariants::{Seen, check};
use crate::store::conformance::memory;
use crate::store::{Command, Follower, MAX_PAGE, QueuedJob, Store, StoreError, TaskFilter};

/// Both engines, and what the steps refer to by number.
pub(super) struct Pair {
    pub(super) sqlite: Store,
    pub(super) memory: Store,
    /// The faults on the way to SQLite.
    pub(super) faults: Option<Arc<Plan>>,
    pub(super) now: Timestamp,
    pub(super) jobs: Vec<QueuedJob>,
    pub(super) attempts: u128,
    pub(super) next_job: u128,
    pub(super) seen: Seen,
    pub(super) shut_out: ShutOut,
    /// What each of them tells that it changed.
    told: (Follower, Follower),
}

impl Pair {
    pub(super) fn new(sqlite: Store, faults: Option<Arc<Plan>>) -> Self {
        let memory = memory().store;
        Self {
            told: (sqlite.changes(), memory.changes()),
            sqlite,
            memory,
            faults,
            now: at(0),
            jobs: Vec::new(),
            attempts: 0,
            next_job: 0,
            seen: Seen::default(),
            shut_out: ShutOut::new(),
        }
    }

    pub(super) async fn apply<C: Command<Outcome: Debug> + Clone>(&mut self, command: C) -> Option<C::Outcome> {
        let mut first = None;
        let on_sqlite = loop {
            match (self.sqlite.apply(command.clone()).await, &self.faults) {
                // Nothing was stored: as if the command had not been given.
                (Err(StoreError::Engine { .. }), Some(_)) => {}
                // It may have been stored; then the next call is a repetition.
                (Err(StoreError::Unknown { .. }), Some(plan)) => {
                    if plan.kept() {
                        let outcome = self.memory.apply(command.clone()).await;
                        first = first.or(Some(outcome));
                    }
                }
                (outcome, _) => break outcome,
            }
        };
        let in_memory = self.memory.apply(command).await;
        assert_eq!(format!("{on_sqlite:?}"), format!("{in_memory:?}"));
        let changes = told(&mut self.told.1);
        match self.faults {
            None => assert_eq!(told(&mut self.told.0), changes),
            // Then there are gaps.
            Some(_) => while self.told.0.next().is_some() {},
        }
        self.learn(Changes::of(&changes));
        // What was decided the first time is what happened.
        first.unwrap_or(on_sqlite).ok()
    }

    fn learn(&mut self, changes: Changes) {
        for job in changes.queued {
            self.jobs.retain(|known| known.job != job.job);
            self.jobs.push(job);
        }
    }

    pub(super) fn attempt(&self, n: usize) -> u128 {
        1 + n as u128 % self.attempts.max(1)
    }

    pub(super) async fn session(&self, task: u128, n: usize) -> Option<SessionId> {
        let view = self.sqlite.task(task_id(task)).await.unwrap()?;
        view.sessions.get(n).map(|session| session.id)
    }

    /// Compares all answers of both.
    pub(super) async fn compare(&mut self) {
        let (a, b) = (&self.sqlite, &self.memory);
        let project = ProjectId::default();
        let digest = Digest::of(b"context");
        assert_eq!(a.projects().await.unwrap(), b.projects().await.unwrap());
        assert_eq!(a.ended().await.unwrap(), b.ended().await.unwrap());
        assert_eq!(a.in_files().await.unwrap(), b.in_files().await.unwrap());
        for tree in ["/home", "/linked"] {
            let origin = TaskOrigin::of("machine", Path::new("/home"), Path::new(tree), None);
            let filter = TaskFilter {
                repository: Some(origin.repository),
                worktree: Some(origin.worktree),
                ..TaskFilter::default()
            };
            assert_eq!(
                a.tasks(&filter, None, 5).await.unwrap(),
                b.tasks(&filter, None, 5).await.unwrap()
            );
        }
        let filter = TaskFilter::all(&project);
        let mut token = None;
        loop {
            let page = a.tasks(&filter, token, 2).await.unwrap();
            assert_eq!(page, b.tasks(&filter, token, 2).await.unwrap());
            for view in &page.tasks {
                let id = view.task.id;
                assert_eq!(a.task(id).await.unwrap().as_ref(), Some(view));
                assert_eq!(b.task(id).await.unwrap().as_ref(), Some(view));
                assert_eq!(a.attempts_of(id).await.unwrap(), b.attempts_of(id).await.unwrap());
                for session in &view.sessions {
                    let checkpoints = a.checkpoints(id, session.id).await.unwrap();
                    assert_eq!(checkpoints, b.checkpoints(id, session.id).await.unwrap());
                }
                assert_eq!(a.events(id, 1, 5).await.unwrap(), b.events(id, 1, 5).await.unwrap());
                let events = a.events(id, 0, MAX_PAGE).await.unwrap();
                assert_eq!(events, b.events(id, 0, MAX_PAGE).await.unwrap());
                let prefix = id.short();
                assert_eq!(a.find_task(&prefix).await.unwrap(), b.find_task(&prefix).await.unwrap());
            }
            token = page.next;
            if token.is_none() {
                break;
            }
        }
        for job in &self.jobs {
            let work = a.work(job.task, job.job).await.unwrap();
            assert_eq!(work, b.work(job.task, job.job).await.unwrap());
        }
        for n in 1..=self.attempts {
            let attempt = attempt_id(n);
            assert_eq!(a.attempt(attempt).await.unwrap(), b.attempt(attempt).await.unwrap());
        }
        for agent in [None, Some(agent_id(1)), Some(agent_id(2))] {
            assert_eq!(
                a.live_attempts(agent).await.unwrap(),
                b.live_attempts(agent).await.unwrap()
            );
        }
        assert_eq!(a.queued_jobs().await.unwrap(), b.queued_jobs().await.unwrap());
        assert_eq!(a.agents().await.unwrap(), b.agents().await.unwrap());
        assert_eq!(a.counts().await.unwrap(), b.counts().await.unwrap());
        let stats = a.context_stats(&project, &digest).await.unwrap();
        assert_eq!(stats, b.context_stats(&project, &digest).await.unwrap());
        let size = a.context_size(&project, &digest).await.unwrap();
        assert_eq!(size, b.context_size(&project, &digest).await.unwrap());
        self.seen = check(a, &self.seen).await;
        self.compare_admitted().await;
    }
}

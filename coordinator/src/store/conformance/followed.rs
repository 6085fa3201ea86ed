//! What memory is told of a command, and what that means: read off the feed, as everybody does who
//! follows it.

use std::time::Duration;

use kage_core::attempt::{AttemptState, EndReason};
use kage_core::id::{AgentId, AttemptId, JobId, TaskId};
use kage_core::job::JobState;
use kage_core::session::SessionStateKind;

use crate::store::{Change, Command, FeedNews, Follower, QueuedJob, Store, StoreError};

/// What followed from a command.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Changes {
    pub(super) queued: Vec<QueuedJob>,
    /// Jobs that are over without an attempt of theirs that ended now.
    pub(super) withdrawn: Vec<JobId>,
    /// Attempts that are live now.
    pub(super) begun: Vec<BegunAttempt>,
    /// Attempts whose agent is to be told to stop.
    pub(super) stop: Vec<StopAttempt>,
    /// Attempts that lost their authority.
    pub(super) ended: Vec<EndedAttempt>,
    /// What sessions came to that have ended now.
    pub(super) over: Vec<SessionStateKind>,
    /// Tasks that changed, each once.
    pub(super) tasks: Vec<TaskId>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BegunAttempt {
    pub(super) attempt: AttemptId,
    pub(super) agent: AgentId,
    pub(super) allowed: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct StopAttempt {
    pub(super) attempt: AttemptId,
    pub(super) agent: AgentId,
    pub(super) keep_worktree: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct EndedAttempt {
    pub(super) attempt: AttemptId,
    pub(super) agent: AgentId,
    pub(super) reason: EndReason,
}

impl Changes {
    /// What these changes mean.
    pub(super) fn of(told: &[Change]) -> Self {
        let mut changes = Self::default();
        let mut worked = Vec::new();
        for change in told {
            match change {
                Change::Created { head, .. } | Change::Task(head) => changes.shown(head.id),
                Change::Dropped { task, open } => {
                    changes.withdrawn.extend(open);
                    changes.shown(*task);
                }
                Change::Session { session, before } => {
                    let now = session.state.kind();
                    if now.is_terminal() && before.is_some_and(|before| !before.is_terminal()) {
                        changes.over.push(now);
                    }
                    changes.shown(session.task);
                }
                Change::Job { row, .. } => {
                    changes.queued.extend(change.queued());
                    if row.job.state == JobState::Done {
                        changes.withdrawn.push(row.job.id);
                    }
                }
                Change::Started { attempt, note } => changes.begun.push(BegunAttempt {
                    attempt: attempt.id,
                    agent: attempt.agent,
                    allowed: attempt.ends_by.since(note.started_at),
                }),
                Change::Attempt(attempt) => {
                    let (id, agent) = (attempt.id, attempt.agent);
                    let stop = |keep_worktree| StopAttempt {
                        attempt: id,
                        agent,
                        keep_worktree,
                    };
                    match attempt.state {
                        AttemptState::Live => {
                            let stopped = attempt.stop_asked.map(|_| stop(false));
                            changes.stop.extend(stopped);
                        }
                        AttemptState::Ended { reason, .. } => {
                            worked.push(attempt.job);
                            changes.stop.extend((reason == EndReason::Restored).then(|| stop(true)));
                            changes
                                .stop
                                .extend((reason == EndReason::Superseded).then(|| stop(false)));
                            changes.ended.push(EndedAttempt {
                                attempt: id,
                                agent,
                                reason,
                            });
                        }
                    }
                }
                Change::Event { task, .. } => changes.shown(*task),
                Change::LeasesExtended { .. }
                | Change::Agent(_)
                | Change::AgentSeen(..)
                | Change::Enrolment(_)
                | Change::PersonToken(_) => {}
            }
        }
        changes.withdrawn.retain(|job| !worked.contains(job));
        changes
    }

    fn shown(&mut self, task: TaskId) {
        if !self.tasks.contains(&task) {
            self.tasks.push(task);
        }
    }
}

/// Everything that a follower can read, which has no gap.
pub(super) fn told(follower: &mut Follower) -> Vec<Change> {
    let commits = std::iter::from_fn(|| follower.next()).map(|news| match news {
        FeedNews::Commit(commit) => commit.changes.clone(),
        FeedNews::Gap => panic!("a gap"),
    });
    commits.flatten().collect()
}

/// What a command comes back with, and what followed.
pub(super) async fn followed<C: Command>(store: &Store, command: C) -> Result<(C::Outcome, Changes), StoreError> {
    let mut follower = store.changes();
    let outcome = store.apply(command).await?;
    Ok((outcome, Changes::of(&told(&mut follower))))
}

pub(super) trait Followed {
    /// What followed from a command that is carried out.
    async fn followed<C: Command>(&self, command: C) -> Changes;
}

impl Followed for Store {
    async fn followed<C: Command>(&self, command: C) -> Changes {
        followed(self, command).await.unwrap().1
    }
}

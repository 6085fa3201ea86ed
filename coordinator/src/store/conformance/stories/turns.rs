//! The courses of tasks besides a race: sessions that wait for their turn, and sessions that a verified
//! result spares. All of it is in rows: a coordinator that starts anew reads what these read.

use std::num::NonZeroU32;

use kage_core::checkpoint::CheckpointReason;
use kage_core::event::{AttemptOutcome, Event, EventBody, VerdictKind};
use kage_core::session::{SessionStateKind, Spared};
use kage_core::task::{Course, TaskState};

use super::checkpoints::base;
use super::{CHECKED, end, state, taken, view};
use crate::store::conformance::fixture::{
    agent_id, appended, at, attempt_id, claimed, committed, crashed, create, event, request, spec, started, task_id,
    told, two_agents, verdict,
};
use crate::store::conformance::followed::{Followed as _, StopAttempt};
use crate::store::{CancelTask, QueuedJob, SaveWork, Store};

/// A task of this course, none of whose sessions reworks.
async fn begin(store: &Store, sessions: usize, course: Course) -> Vec<QueuedJob> {
    two_agents(store).await;
    let mut spec = spec(sessions, CHECKED);
    spec.policy.course = course;
    spec.policy.max_reworks = Some(0);
    store.followed(create(1, spec, at(1))).await.queued
}

/// Has the session of a job claim a result, by attempt `n`, and gives its verify job to attempt `n` + 1.
async fn verifying(store: &Store, job: &QueuedJob, n: u128) {
    started(store, job, n, 1, 1).await;
    let changes = appended(store, n, 1, vec![committed(1), claimed(2)]).await;
    started(store, &changes.queued[0], n + 1, 1, 2).await;
}

/// A verdict with the output of verify.
fn rejected(seq: u64, output: &str) -> Event {
    let mut event = verdict(seq, VerdictKind::Failed);
    if let EventBody::Finished(AttemptOutcome::Verdict(verdict)) = &mut event.body {
        verdict.output = output.to_owned();
    }
    event
}

fn first(enough: u32) -> Course {
    Course::FirstVerified(NonZeroU32::new(enough).unwrap())
}

pub(in crate::store::conformance) async fn enough_verified_sessions_stop_the_others(store: Store) {
    let jobs = begin(&store, 4, first(2)).await;
    assert_eq!(jobs.len(), 4, "all of them race");
    verifying(&store, &jobs[0], 1).await;
    started(&store, &jobs[1], 10, 1, 1).await;
    let changes = appended(&store, 2, 2, vec![verdict(1, VerdictKind::Passed)]).await;
    assert_eq!((changes.stop, changes.withdrawn), (vec![], vec![]), "one is not enough");

    verifying(&store, &jobs[2], 20).await;
    let changes = appended(&store, 21, 2, vec![verdict(1, VerdictKind::Passed)]).await;
    let stop = StopAttempt {
        attempt: attempt_id(10),
        agent: agent_id(1),
        keep_worktree: false,
    };
    assert_eq!(changes.stop, [stop]);
    assert_eq!(changes.withdrawn, [jobs[3].job]);
    assert_eq!(state(&store, 3).await, SessionStateKind::Cancelled);
    assert_eq!(
        view(&store).await.task.state,
        TaskState::Running,
        "until its agent stopped it"
    );
    end(&store).await;

    // It may claim at the last moment: that is not checked any more.
    told(&store, 10, 1, vec![committed(1), claimed(2)]).await;
    let now = view(&store).await;
    assert_eq!(now.task.state, TaskState::Succeeded);
    let spared: Vec<_> = now.sessions.iter().map(|session| session.spared).collect();
    assert_eq!(spared, [None, Some(Spared::Verified), None, Some(Spared::Verified)]);
    end(&store).await;
}

pub(in crate::store::conformance) async fn spared_work_is_saved(store: Store) {
    let jobs = begin(&store, 2, first(1)).await;
    started(&store, &jobs[1], 10, 1, 1).await;
    verifying(&store, &jobs[0], 1).await;
    told(&store, 2, 2, vec![verdict(1, VerdictKind::Passed)]).await;
    // Its agent stops it, after a last checkpoint.
    let before = taken(1, &base(), CheckpointReason::Baseline);
    let last = taken(2, &before.commit, CheckpointReason::FilesChanged);
    let events = vec![
        event(1, EventBody::CheckpointTaken(before)),
        event(2, EventBody::CheckpointTaken(last)),
        crashed(3),
    ];
    told(&store, 10, 1, events).await;
    assert_eq!(state(&store, 1).await, SessionStateKind::Saving);
    let session = view(&store).await.sessions[1].clone();
    let save = SaveWork {
        task: task_id(1),
        session: session.id,
        of: session.checkpoints.head.unwrap().commit,
        made: Ok(None),
        now: at(20_000),
    };
    let changes = store.followed(save).await;
    assert_eq!(changes.over, [SessionStateKind::Cancelled]);
    assert_eq!(view(&store).await.task.state, TaskState::Succeeded);
    end(&store).await;
}

pub(in crate::store::conformance) async fn a_ladder_goes_up_when_verify_rejects(store: Store) {
    let jobs = begin(&store, 3, Course::Ladder).await;
    assert_eq!(jobs.len(), 1, "the others wait for their turn");
    assert_eq!(store.queued_jobs().await.unwrap(), jobs);
    end(&store).await;

    verifying(&store, &jobs[0], 1).await;
    let changes = appended(&store, 2, 2, vec![rejected(1, "2 is not 3")]).await;
    assert_eq!(changes.queued.len(), 1, "the next, and not the one after it");
    let next = &changes.queued[0];
    assert_eq!(store.queued_jobs().await.unwrap(), changes.queued);
    let work = store.work(next.task, next.job).await.unwrap().unwrap();
    assert_eq!(work.session.name.as_str(), "s1");
    let told_it = work.session.instruction(&[], "make test").unwrap();
    for part in ["2 is not 3", "make test"] {
        assert!(told_it.for_new_conversation().contains(part), "{told_it:?}");
    }
    end(&store).await;

    verifying(&store, next, 10).await;
    let changes = appended(&store, 11, 2, vec![verdict(1, VerdictKind::Passed)]).await;
    assert_eq!(changes.queued, vec![]);
    let now = view(&store).await;
    assert_eq!(now.task.state, TaskState::Succeeded);
    let ends: Vec<_> = now.sessions.iter().map(|session| session.state.kind()).collect();
    assert_eq!(
        ends,
        [
            SessionStateKind::Rejected,
            SessionStateKind::Verified,
            SessionStateKind::Cancelled
        ]
    );
    assert_eq!(now.sessions[2].spared, Some(Spared::Verified));
    end(&store).await;
}

pub(in crate::store::conformance) async fn a_ladder_ends_where_nothing_was_rejected(store: Store) {
    let jobs = begin(&store, 3, Course::Ladder).await;
    // Its attempts are used up, and nothing says that another model would do better.
    started(&store, &jobs[0], 1, 1, 1).await;
    let again = appended(&store, 1, 1, vec![crashed(1)]).await.queued;
    started(&store, &again[0], 2, 2, 1).await;
    let changes = appended(&store, 2, 1, vec![crashed(1)]).await;
    assert_eq!(changes.queued, vec![]);
    let now = view(&store).await;
    assert_eq!(now.sessions[1].spared, Some(Spared::NotRejected));
    assert_eq!(now.sessions[2].started_at, None);
    assert_eq!(now.task.state, TaskState::Failed, "nobody stopped it");
    end(&store).await;

    // A ladder that somebody stops is over with all who wait.
    let mut other = spec(2, CHECKED);
    other.policy.course = Course::Ladder;
    store.followed(create(2, other, at(50))).await;
    let cancel = CancelTask {
        request: request(60),
        task: task_id(2),
        now: at(100),
    };
    store.followed(cancel).await;
    let stopped = store.task(task_id(2)).await.unwrap().unwrap();
    assert_eq!(stopped.task.state, TaskState::Cancelled);
    assert!(stopped.sessions.iter().all(|session| session.spared.is_none()));
    end(&store).await;
}

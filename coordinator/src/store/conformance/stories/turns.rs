//! The courses of tasks besides a race: sessions that wait for their turn, and sessions that a verified
//! result spares. All of it is in rows: a coordinator that starts anew reads what these read.

use std::num::NonZeroU32;

use kage_core::checkpoint::CheckpointReason;
use kage_core::event::{AttemptOutcome, Event, EventBody, VerdictKind};
use kage_core::fallback::AdapterLacks;
use kage_core::id::{JobId, SessionId};
use kage_core::job::JobType;
use kage_core::session::{SessionStateKind, Spared, Successor};
use kage_core::task::{Course, TaskState};

use super::checkpoints::base;
use super::{CHECKED, end, state, taken, view};
use crate::store::conformance::fixture::{
    agent_id, appended, at, attempt_id, claimed, committed, crashed, create, event, request, spec, started, task_id,
    told, two_agents, verdict,
};
use crate::store::conformance::followed::{Followed as _, StopAttempt};
use crate::store::{CancelTask, ForkSession, QueuedJob, SaveWork, SendMessage, Store, TaskView};

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
    let counts = store.counts().await.unwrap().of(JobType::Session);
    assert_eq!((counts.later, counts.queued, counts.leased), (2, 1, 0));
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

    what_people_ask_for_beside_moves_no_ladder(&store).await;
    end(&store).await;
}

async fn second(store: &Store) -> TaskView {
    store.task(task_id(2)).await.unwrap().unwrap()
}

/// The job by which a session of a task goes on with a message.
async fn sent(store: &Store, n: u128, task: u128, session: SessionId) -> QueuedJob {
    let send = SendMessage {
        request: request(n),
        task: task_id(task),
        session,
        text: "look again".to_owned(),
        next_job: JobId::from_random((1 << 90) + n),
        now: at(40_000),
    };
    store.followed(send).await.queued.remove(0)
}

/// A fork of a session of task 2, which has three.
fn forked(n: u128, session: SessionId) -> ForkSession {
    ForkSession {
        request: request(n),
        task: task_id(2),
        session,
        checkpoint: None,
        next: Successor {
            id: SessionId::from_random(5000 + n),
            name: "beside".parse().unwrap(),
            adapter: "scripted".parse().unwrap(),
            model: None,
            fallbacks: Vec::new(),
            by: "user".to_owned(),
        },
        text: None,
        beside: 3,
        lacks: AdapterLacks::default(),
        lacks_verify: None,
        waits_for_agent: false,
        next_job: JobId::from_random((1 << 90) + n),
        now: at(50_000),
    }
}

/// Has the attempt claim a result, and gives the verify job to attempt `n` + 1.
async fn checking(store: &Store, n: u128) {
    let check = appended(store, n, 1, vec![committed(1), claimed(2)]).await.queued;
    started(store, &check[0], n + 1, 1, 2).await;
}

/// Task 2: sessions that people make go on, and forks, beside a ladder.
async fn what_people_ask_for_beside_moves_no_ladder(store: &Store) {
    let mut other = spec(3, CHECKED);
    other.policy.course = Course::Ladder;
    other.policy.max_reworks = Some(0);
    let first = store.followed(create(2, other, at(50))).await.queued.remove(0);
    let lowest = first.subject.session().unwrap();
    started(store, &first, 101, 1, 1).await;
    let kept = event(
        1,
        EventBody::CheckpointTaken(taken(1, &base(), CheckpointReason::Final)),
    );
    let check = appended(store, 101, 1, vec![kept, committed(2), claimed(3)])
        .await
        .queued;
    started(store, &check[0], 102, 1, 2).await;
    let next = appended(store, 102, 2, vec![rejected(1, "2 is not 3")]).await.queued;
    started(store, &next[0], 110, 1, 1).await;

    // The lowest is rejected once more, beside the second.
    let again = sent(store, 70, 2, lowest).await;
    started(store, &again, 120, 2, 1).await;
    checking(store, 120).await;
    let changes = appended(store, 121, 2, vec![rejected(1, "2 is not 4")]).await;
    assert_eq!((changes.queued, changes.stop), (vec![], vec![]), "the second one works");

    // And verify cannot decide about what it then has.
    let again = sent(store, 71, 2, lowest).await;
    started(store, &again, 130, 3, 1).await;
    checking(store, 130).await;
    let repeated = appended(store, 131, 2, vec![verdict(1, VerdictKind::Errored)])
        .await
        .queued;
    started(store, &repeated[0], 132, 2, 1).await;
    let changes = appended(store, 132, 1, vec![verdict(1, VerdictKind::Errored)]).await;
    assert_eq!((changes.queued, changes.stop), (vec![], vec![]), "the second one works");
    let states: Vec<_> = second(store)
        .await
        .sessions
        .iter()
        .map(|session| session.state.kind())
        .collect();
    let expected = [
        SessionStateKind::Unverified,
        SessionStateKind::Running,
        SessionStateKind::Queued,
    ];
    assert_eq!(states, expected);

    // The second one is rejected while a fork works: the third waits for the end of that.
    let fork = store.followed(forked(72, lowest)).await.queued.remove(0);
    started(store, &fork, 140, 1, 1).await;
    checking(store, 110).await;
    let changes = appended(store, 111, 2, vec![rejected(1, "2 is not 5")]).await;
    assert_eq!((changes.queued, changes.stop), (vec![], vec![]), "the fork works");
    checking(store, 140).await;
    let changes = appended(store, 141, 2, vec![rejected(1, "2 is not 6")]).await;
    assert_eq!(changes.queued.len(), 1, "now it is the turn of the third");
    let third = &changes.queued[0];
    let work = store.work(third.task, third.job).await.unwrap().unwrap();
    let climbed = work.session.climbed.unwrap();
    assert_eq!((climbed.from.as_str(), climbed.position), ("s1", Some(2)));
    assert_eq!(climbed.verdict.output, "2 is not 5", "not what was said of the fork");

    started(store, third, 150, 1, 1).await;
    checking(store, 150).await;
    told(store, 151, 2, vec![verdict(1, VerdictKind::Passed)]).await;
    assert_eq!(second(store).await.task.state, TaskState::Succeeded);
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

    // It is also stopped when the session that runs has a result to which it goes back.
    let mut other = spec(2, CHECKED);
    other.policy.course = Course::Ladder;
    let first = store.followed(create(3, other, at(150))).await.queued.remove(0);
    started(&store, &first, 201, 1, 1).await;
    checking(&store, 201).await;
    let again = sent(&store, 71, 3, first.subject.session().unwrap()).await;
    started(&store, &again, 203, 2, 1).await;
    let cancel = CancelTask {
        request: request(72),
        task: task_id(3),
        now: at(45_000),
    };
    store.followed(cancel).await;
    told(&store, 203, 1, vec![claimed(1)]).await;
    let stopped = store.task(task_id(3)).await.unwrap().unwrap();
    let states: Vec<_> = stopped.sessions.iter().map(|session| session.state.kind()).collect();
    assert_eq!(states, [SessionStateKind::Unverified, SessionStateKind::Cancelled]);
    assert_eq!(stopped.task.state, TaskState::Cancelled);
    end(&store).await;
}

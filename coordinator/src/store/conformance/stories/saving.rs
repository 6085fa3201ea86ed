//! Work that nobody claimed: it is saved before its session and its task end.

use kage_core::checkpoint::CheckpointReason;
use kage_core::event::{EventBody, VerdictKind};
use kage_core::id::{JobId, SessionId};
use kage_core::session::{Session, SessionStateKind};
use kage_core::task::TaskState;

use super::checkpoints::base;
use super::{CHECKED, begin, end, state, taken, view};
use crate::store::conformance::fixture::{
    appended, at, crashed, event, request, result, started, task_id, told, verdict,
};
use crate::store::conformance::followed::{Changes, Followed as _};
use crate::store::{CancelTask, SaveWork, Store, StoreError, VerifyResult};

/// What is saved of the session's work.
fn saved(session: &Session, n: u64) -> SaveWork {
    SaveWork {
        task: task_id(1),
        session: session.id,
        of: session.checkpoints.head.clone().unwrap().commit,
        made: Ok(Some(result())),
        now: at(20_000 + n),
    }
}

async fn session(store: &Store) -> Session {
    view(store).await.sessions[0].clone()
}

/// A first checkpoint, and one that changed files.
fn worked(seq: u64) -> Vec<kage_core::event::Event> {
    let first = taken(1, &base(), CheckpointReason::Baseline);
    let second = taken(2, &first.commit, CheckpointReason::FilesChanged);
    vec![
        event(seq, EventBody::CheckpointTaken(first)),
        event(seq + 1, EventBody::CheckpointTaken(second)),
    ]
}

pub(in crate::store::conformance) async fn unclaimed_work_is_saved_before_the_end(store: Store) {
    let jobs = begin(&store, 1, CHECKED).await;
    started(&store, &jobs[0], 1, 1, 1).await;
    let changes = appended(&store, 1, 1, [worked(1), vec![crashed(3)]].concat()).await;
    started(&store, &changes.queued[0], 2, 2, 2).await;
    let changes = appended(&store, 2, 2, vec![crashed(1)]).await;
    assert_eq!((changes.queued, changes.over), (vec![], vec![]), "it is not over yet");
    assert_eq!(state(&store, 0).await, SessionStateKind::Saving);
    let now = view(&store).await;
    assert_eq!((now.task.state, now.sessions[0].ended_at), (TaskState::Running, None));
    end(&store).await;

    let other = SaveWork {
        of: base(),
        ..saved(&session(&store).await, 0)
    };
    assert_eq!(store.followed(other).await.over, [], "it does not stand there");
    let save = saved(&session(&store).await, 1);
    let changes = store.followed(save.clone()).await;
    assert_eq!(changes.over, [SessionStateKind::Failed]);
    let now = view(&store).await;
    assert_eq!(
        (now.task.state, now.task.ended_at),
        (TaskState::Failed, Some(at(20_001)))
    );
    assert_eq!(now.sessions[0].state.result(), Some(&result()));
    assert!(now.sessions[0].state.is_unfinished());
    // It is done once.
    store.followed(SaveWork { made: Ok(None), ..save }).await;
    assert_eq!(view(&store).await, now);
    end(&store).await;
}

pub(in crate::store::conformance) async fn what_cannot_be_saved_is_told_and_holds_nothing_up(store: Store) {
    let jobs = begin(&store, 1, CHECKED).await;
    started(&store, &jobs[0], 1, 1, 1).await;
    told(&store, 1, 1, [worked(1), vec![crashed(3)]].concat()).await;
    let cancel = CancelTask {
        request: request(50),
        task: task_id(1),
        now: at(11_000),
    };
    store.followed(cancel).await;
    assert_eq!(state(&store, 0).await, SessionStateKind::Saving, "it waited, with work");
    assert_eq!(view(&store).await.task.state, TaskState::Running);
    let save = SaveWork {
        made: Err("a pack is gone".to_owned()),
        ..saved(&session(&store).await, 1)
    };
    assert_eq!(store.followed(save).await.over, [SessionStateKind::Cancelled]);
    let now = view(&store).await;
    assert_eq!(now.task.state, TaskState::Cancelled);
    assert!(!now.sessions[0].state.is_unfinished());
    let (activity, _) = now.sessions[0].activity.clone().unwrap();
    assert!(activity.contains("a pack is gone"), "{activity}");
    end(&store).await;
}

pub(in crate::store::conformance) async fn an_unfinished_result_is_verified_when_asked(store: Store) {
    let ask = |n: u128| VerifyResult {
        request: request(n),
        task: task_id(1),
        session: SessionId::from_random(1000),
        next_job: JobId::from_random(7_000 + n),
        now: at(30_000 + n as u64),
    };
    let jobs = begin(&store, 1, CHECKED).await;
    let refused = store.apply(ask(60)).await;
    assert!(matches!(refused, Err(StoreError::CannotVerify { .. })), "{refused:?}");
    started(&store, &jobs[0], 1, 1, 1).await;
    told(&store, 1, 1, [worked(1), vec![crashed(3)]].concat()).await;
    let cancel = CancelTask {
        request: request(50),
        task: task_id(1),
        now: at(11_000),
    };
    store.followed(cancel).await;
    let save = saved(&session(&store).await, 1);
    store.followed(save).await;
    assert_eq!(view(&store).await.task.state, TaskState::Cancelled);

    for (n, kind) in [(61, VerdictKind::Passed), (62, VerdictKind::Failed)] {
        let changes = store.followed(ask(n)).await;
        let [job] = changes.queued.as_slice() else {
            panic!("{changes:?}")
        };
        assert_eq!(store.followed(ask(n)).await, Changes::default(), "it is one call");
        let now = view(&store).await;
        assert_eq!((now.task.state, now.task.ended_at), (TaskState::Running, None));
        assert!(now.sessions[0].is_unfinished());
        started(&store, job, n, 1, 2).await;
        let changes = appended(&store, n, 2, vec![verdict(1, kind)]).await;
        assert_eq!(changes.over, [SessionStateKind::Cancelled]);
        let now = view(&store).await;
        assert_eq!(now.task.state, TaskState::Cancelled);
        assert!(now.sessions[0].state.is_unfinished());
        assert_eq!(now.sessions[0].state.verdict().map(|verdict| verdict.kind), Some(kind));
    }
    end(&store).await;
}

pub(in crate::store::conformance) async fn without_a_command_nothing_is_verified(store: Store) {
    let jobs = begin(&store, 1, None).await;
    started(&store, &jobs[0], 1, 1, 1).await;
    let ask = VerifyResult {
        request: request(60),
        task: task_id(1),
        session: jobs[0].subject.session().unwrap(),
        next_job: JobId::from_random(7_000),
        now: at(30_000),
    };
    let refused = store.apply(ask).await;
    assert!(matches!(refused, Err(StoreError::NoVerify { .. })), "{refused:?}");
}

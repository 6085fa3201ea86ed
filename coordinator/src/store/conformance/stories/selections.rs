//! Somebody's word on which result is to be landed.

use kage_core::checkpoint::CheckpointReason;
use kage_core::event::EventBody;
use kage_core::id::{JobId, SessionId};

use super::checkpoints::{base, taken};
use super::{begin, end, view};
use crate::store::conformance::fixture::{appended, at, claimed, committed, crashed, event, request, started, task_id};
use crate::store::conformance::followed::{Changes, Followed as _};
use crate::store::{RestoreSession, SelectResult, Store, StoreError};

fn select(n: u128, by: &str, session: Option<SessionId>) -> SelectResult {
    let mut request = request(n);
    request.principal = by.to_owned();
    SelectResult {
        request,
        task: task_id(1),
        session,
        now: at(80_000 + n as u64),
    }
}

async fn done(store: &Store, command: SelectResult) {
    assert_eq!(store.followed(command).await.tasks, [task_id(1)]);
}

pub(in crate::store::conformance) async fn a_result_is_selected_until_it_is_none_any_more(store: Store) {
    let jobs = begin(&store, 2, None).await;
    let [first, second] = [0, 1].map(|n| jobs[n].subject.session().unwrap());
    let refused = async |command| match store.apply(command).await {
        Err(StoreError::NoResult { state, .. }) => state,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(select(1, "a", Some(first))).await, "queued");
    started(&store, &jobs[0], 1, 1, 1).await;
    let checkpoint = EventBody::CheckpointTaken(taken(1, &base(), CheckpointReason::FilesChanged));
    let events = vec![event(1, checkpoint), committed(2), claimed(3)];
    let changes = appended(&store, 1, 1, events).await;
    assert_eq!(changes.over.len(), 1);

    // The other one still works, and has nothing.
    let selected = store.followed(select(2, "a", Some(first))).await;
    assert_eq!(selected.tasks, [task_id(1)]);
    let selection = view(&store).await.task.selection.unwrap();
    assert_eq!((selection.session, selection.by.as_str()), (first, "a"));
    assert_eq!((selection.name.as_str(), selection.at), ("s0", at(80_002)));
    for again in [2, 3] {
        let changes = store.followed(select(again, "a", Some(first))).await;
        assert_eq!(changes, Changes::default(), "nothing new was said");
    }
    assert_eq!(view(&store).await.task.selection.unwrap().at, at(80_002));
    started(&store, &jobs[1], 2, 1, 2).await;
    assert_eq!(refused(select(4, "a", Some(second))).await, "running");
    for (attempt, number) in [(2, 1), (3, 2)] {
        if number == 2 {
            let queued = store.queued_jobs().await.unwrap();
            started(&store, &queued[0], attempt, number, 2).await;
        }
        let changes = appended(&store, attempt, 2, vec![crashed(1)]).await;
        assert_eq!(changes.ended.len(), 1);
    }
    assert_eq!(refused(select(5, "a", Some(second))).await, "failed");
    let unknown = store.apply(select(6, "a", Some(SessionId::from_random(99)))).await;
    assert!(matches!(unknown, Err(StoreError::NotFound { what: "session", .. })));

    // Somebody else says the same, and somebody takes it back.
    done(&store, select(7, "b", Some(first))).await;
    assert_eq!(view(&store).await.task.selection.unwrap().by, "b");
    done(&store, select(8, "b", None)).await;
    assert_eq!(view(&store).await.task.selection, None);

    // What goes back to a checkpoint has no result any more.
    done(&store, select(9, "b", Some(first))).await;
    let restore = RestoreSession {
        request: request(10),
        task: task_id(1),
        session: first,
        checkpoint: 1,
        complete: false,
        next_job: JobId::from_random(77),
        now: at(90_000),
    };
    let changes = store.followed(restore).await;
    assert_eq!(changes.queued.len(), 1);
    assert_eq!(view(&store).await.task.selection, None);
    end(&store).await;
}

//! The feed: what every commit changed, in order, told before whoever asked for it is answered.

use futures_util::future::join_all;
use kage_core::attempt::{AttemptState, EndReason};
use kage_core::id::ProjectId;
use kage_core::session::SessionStateKind;

use super::{begin, end};
use crate::store::conformance::fixture::{
    activity, at, claimed, create, request, spec, started, task_id, told as tell, two_agents,
};
use crate::store::conformance::followed::told;
use crate::store::{CancelTask, Change, FeedNews, MAX_PAGE, Store, TaskFilter, TaskOrder};

fn created(changes: &[Change]) -> Vec<kage_core::id::TaskId> {
    let created = changes.iter().filter_map(|change| match change {
        Change::Created { head, .. } => Some(head.id),
        _ => None,
    });
    created.collect()
}

pub(in crate::store::conformance) async fn commits_are_told_in_order_and_before_their_answers(store: Store) {
    let mut all = store.changes();
    let creating = (1..=60).map(|n| {
        let store = &store;
        async move {
            let mut follower = store.changes();
            store.apply(create(n, spec(1, None), at(1))).await.unwrap();
            assert!(
                created(&told(&mut follower)).contains(&task_id(n)),
                "{n} is told by now"
            );
        }
    });
    join_all(creating).await;
    let mut ids = Vec::new();
    let mut last = 0;
    while let Some(news) = all.next() {
        let FeedNews::Commit(commit) = news else {
            panic!("a gap");
        };
        assert!(last == 0 || commit.number == last + 1);
        last = commit.number;
        ids.extend(created(&commit.changes));
    }
    let filter = TaskFilter {
        order: TaskOrder::OldestFirst,
        ..TaskFilter::all(&ProjectId::default())
    };
    let stored = store.tasks(&filter, None, MAX_PAGE).await.unwrap().tasks;
    let stored: Vec<_> = stored.into_iter().map(|view| view.task.id).collect();
    assert_eq!(ids, stored, "nothing is lost or told in another order");
    end(&store).await;
}

pub(in crate::store::conformance) async fn what_changed_nothing_is_not_told(store: Store) {
    two_agents(&store).await;
    store.apply(create(1, spec(1, None), at(1))).await.unwrap();
    let mut follower = store.changes();
    let mut twice = create(2, spec(2, None), at(1));
    twice.sessions[1].1 = twice.sessions[0].1;
    store.apply(twice).await.unwrap_err();
    assert!(store.apply(create(1, spec(1, None), at(2))).await.unwrap().repeated);
    let cancel = |task| CancelTask {
        request: request(50),
        task: task_id(task),
        now: at(3),
    };
    store.apply(cancel(9)).await.unwrap_err();
    assert!(follower.next().is_none());
    store.apply(cancel(1)).await.unwrap();
    assert!(follower.next().is_some());
    store.apply(cancel(1)).await.unwrap();
    assert!(follower.next().is_none());
    end(&store).await;
}

pub(in crate::store::conformance) async fn rows_are_told_in_their_new_form(store: Store) {
    let jobs = begin(&store, 2, None).await;
    let mut follower = store.changes();
    started(&store, &jobs[0], 1, 1, 1).await;
    let (mut begun, mut ended, mut moves) = (0, Vec::new(), Vec::new());
    tell(&store, 1, 1, vec![activity(1)]).await;
    let cancel = CancelTask {
        request: request(50),
        task: task_id(1),
        now: at(50),
    };
    store.apply(cancel).await.unwrap();
    tell(&store, 1, 1, vec![claimed(2)]).await;
    let (mut head, mut positions) = (None, Vec::new());
    for change in told(&mut follower) {
        match change {
            Change::Started { attempt, note } => {
                begun += 1;
                assert_eq!(
                    (attempt.state, note.agent_name.as_str()),
                    (AttemptState::Live, "agent-1")
                );
            }
            Change::Attempt(attempt) => match attempt.state {
                AttemptState::Live => {}
                AttemptState::Ended { reason, .. } => ended.push((reason, attempt.stop_asked)),
            },
            Change::Session { session, before } => {
                moves.push((session.name.to_string(), before.unwrap(), session.state.kind()));
            }
            Change::Event { pos, .. } => positions.push(pos),
            Change::Task(task) => head = Some(task),
            _ => {}
        }
    }
    assert_eq!((begun, positions), (1, vec![1, 2]));
    assert_eq!(ended, [(EndReason::Finished, Some(at(50)))], "an end is told once");
    let (queued, running, over) = (
        SessionStateKind::Queued,
        SessionStateKind::Running,
        SessionStateKind::Cancelled,
    );
    let expected = [
        ("s0", queued, running),
        ("s0", running, running),
        ("s0", running, running),
        ("s1", queued, over),
        ("s0", running, over),
    ];
    assert_eq!(
        moves,
        expected.map(|(name, before, now)| (name.to_owned(), before, now))
    );
    let stored = store.task(task_id(1)).await.unwrap().unwrap();
    let head = head.unwrap();
    assert_eq!((head.state, head.last_event), (stored.task.state, stored.last_event));
    end(&store).await;
}

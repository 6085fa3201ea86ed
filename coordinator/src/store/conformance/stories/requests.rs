//! Repeated and refused calls.

use std::time::Duration;

use kage_core::fallback::{AdapterLacks, TaskLacks};
use kage_core::id::{JobId, SessionId};
use kage_core::priority::Priority;

use super::end;
use crate::store::conformance::fixture::{at, create, request, spec, task_id};
use crate::store::conformance::followed::{Changes, Followed as _, followed};
use crate::store::{CancelTask, CreateTask, REQUEST_LIFETIME, Store, StoreError};

pub(in crate::store::conformance) async fn creating_twice_is_creating_once(store: Store) {
    let first = store.apply(create(1, spec(2, None), at(1))).await.unwrap();
    assert_eq!((first.task, first.repeated), (task_id(1), false));
    let mut again = create(2, spec(2, None), at(2));
    again.request = request(1);
    let (second, changes) = followed(&store, again.clone()).await.unwrap();
    assert_eq!((second.task, second.repeated), (task_id(1), true), "I6");
    assert_eq!(changes, Changes::default());
    assert_eq!(store.queued_jobs().await.unwrap().len(), 2);
    assert_eq!(store.task(task_id(2)).await.unwrap(), None);

    // Also when no new task would be taken.
    again.queue_full = Some(2);
    assert!(store.apply(again.clone()).await.unwrap().repeated);
    again.project_full = Some("it has enough".to_owned());
    assert!(store.apply(again.clone()).await.unwrap().repeated);
    again.request = request(3);
    let full = CreateTask {
        queue_full: None,
        ..again.clone()
    };
    let refused = store.apply(full).await.unwrap_err();
    assert!(matches!(refused, StoreError::ProjectFull { .. }), "{refused}");
    let refused = store.apply(again).await.unwrap_err();
    assert!(matches!(refused, StoreError::QueueFull { waiting: 2, .. }), "{refused}");

    // Another caller's ids, and another kind of call, are no repeats.
    let mut other = create(3, spec(1, None), at(3));
    other.request = request(1);
    other.request.principal = "other".to_owned();
    assert!(!store.apply(other).await.unwrap().repeated);
    let cancel = CancelTask {
        request: request(1),
        task: task_id(1),
        now: at(4),
    };
    let changes = store.followed(cancel.clone()).await;
    assert_eq!(changes.withdrawn.len(), 2);
    assert_eq!(store.followed(cancel).await, Changes::default());
    end(&store).await;
}

pub(in crate::store::conformance) async fn a_request_id_is_good_for_one_payload(store: Store) {
    store.apply(create(1, spec(1, None), at(1))).await.unwrap();
    let mut other = create(2, spec(1, None), at(2));
    other.request.id = request(1).id;
    let error = store.apply(other).await.unwrap_err();
    assert!(matches!(error, StoreError::RequestConflict { .. }), "{error}");
    assert_eq!(store.task(task_id(2)).await.unwrap(), None);
}

pub(in crate::store::conformance) async fn a_request_can_be_repeated_for_seven_days(store: Store) {
    let repeat = |now| {
        let mut command = create(1, spec(1, None), now);
        command.task = task_id(9);
        command.sessions = vec![(SessionId::from_random(9), JobId::from_random(9))];
        command
    };
    store.apply(create(1, spec(1, None), at(0))).await.unwrap();
    let week = at(0) + REQUEST_LIFETIME;
    store.apply(create(2, spec(1, None), week)).await.unwrap();
    assert!(store.apply(repeat(week)).await.unwrap().repeated);
    let later = week + Duration::from_millis(1);
    store.apply(create(3, spec(1, None), later)).await.unwrap();
    assert!(!store.apply(repeat(later)).await.unwrap().repeated, "it was forgotten");
}

pub(in crate::store::conformance) async fn a_refused_command_leaves_nothing_behind(store: Store) {
    store.apply(create(1, spec(1, None), at(1))).await.unwrap();
    // The second of its sessions has an id that is in use, after much was written.
    let mut clash = create(2, spec(2, None), at(2));
    clash.sessions[1].1 = clash.sessions[0].1;
    let error = store.apply(clash.clone()).await.unwrap_err();
    assert!(matches!(error, StoreError::IdTaken { what: "job" }), "{error}");
    let mut same = create(1, spec(1, None), at(2));
    same.request = request(5);
    let error = store.apply(same).await.unwrap_err();
    assert!(matches!(error, StoreError::IdTaken { what: "task" }), "{error}");
    let mut short = create(3, spec(2, None), at(2));
    short.sessions.pop();
    let error = store.apply(short).await.unwrap_err();
    assert!(matches!(error, StoreError::SessionCount { .. }), "{error}");
    assert_eq!(store.queued_jobs().await.unwrap().len(), 1);
    assert_eq!(store.task(task_id(2)).await.unwrap(), None);
    clash.sessions[1].1 = JobId::from_random(77);
    assert!(
        !store.apply(clash).await.unwrap().repeated,
        "the request was taken back too"
    );
    end(&store).await;
}

pub(in crate::store::conformance) async fn a_task_that_nobody_can_run_is_refused_unless_it_is_stored(store: Store) {
    let mut spec = spec(1, None);
    spec.policy.priority = Priority::HIGH;
    let lacks = TaskLacks {
        sessions: vec![AdapterLacks(vec![Some("no agent has the adapter scripted".to_owned())])],
        verify: Some("no agent may verify results".to_owned()),
    };
    let refused = CreateTask {
        lacks: lacks.clone(),
        ..create(1, spec.clone(), at(1))
    };
    let unchecked = CreateTask {
        lacks: TaskLacks {
            sessions: Vec::new(),
            ..lacks
        },
        ..refused.clone()
    };
    let error = store.apply(unchecked).await.unwrap_err();
    let words = "its results could not be checked: no agent may verify results";
    assert!(
        matches!(error, StoreError::NoAgent(_)) && error.to_string() == words,
        "{error}"
    );
    let error = store.apply(refused.clone()).await.unwrap_err();
    let words = "no agent can run the session s0: no agent has the adapter scripted";
    assert!(
        matches!(error, StoreError::NoAgent(_)) && error.to_string() == words,
        "{error}"
    );
    let waits = CreateTask {
        waits_for_agent: true,
        ..refused.clone()
    };
    let created = store.followed(waits).await;
    assert_eq!(created.queued[0].priority, Priority::HIGH);
    assert_eq!(store.queued_jobs().await.unwrap(), created.queued);
    // The fleet may have changed since: what is stored stays stored.
    assert!(store.apply(refused).await.unwrap().repeated);
}

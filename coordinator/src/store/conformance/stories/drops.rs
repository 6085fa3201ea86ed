//! Dropped tasks: everything of the task is removed, and nothing of others.

use kage_core::checkpoint::{CheckpointReason, TranscriptSegment};
use kage_core::event::{EventBody, VerdictKind};
use kage_core::id::{AttemptId, Digest, JobId, ProjectId};

use super::checkpoints::{base, taken};
use super::{CHECKED, begin, end, view};
use crate::store::conformance::fixture::{
    append, at, attempt_id, claimed, committed, create, event, request, spec, started, task_id, told, two_agents,
    verdict,
};
use crate::store::conformance::followed::Followed as _;
use crate::store::{Appended, DeleteRepository, DropTask, MAX_PAGE, Named, RepositoryFate, Store, StoreError};

/// A prompt that is a blob.
const LONG: &str = "long";

fn dropping(task: u128, n: Option<u128>) -> DropTask {
    DropTask {
        request: n.map(request),
        task: task_id(task),
        now: at(90_000),
    }
}

pub(in crate::store::conformance) async fn a_repository_goes_when_no_task_is_of_it(store: Store) {
    let delete = |n, name: &str, present| DeleteRepository {
        request: request(n),
        project: ProjectId::default(),
        repository: name.parse().unwrap(),
        present,
        now: at(90_000),
    };
    let goes = |outcome: Result<RepositoryFate, StoreError>| outcome.unwrap() == RepositoryFate::Goes;
    two_agents(&store).await;
    ended(&store, 1, "it").await;
    let in_use = store.apply(delete(70, "repo", true)).await;
    assert!(
        matches!(in_use, Err(StoreError::RepositoryInUse { task }) if task == task_id(1)),
        "one that ended and is kept: {in_use:?}"
    );
    assert!(goes(store.apply(delete(71, "other", true)).await));
    let elsewhere = DeleteRepository {
        project: "elsewhere".parse().unwrap(),
        ..delete(72, "repo", true)
    };
    assert!(goes(store.apply(elsewhere).await));
    let absent = store.apply(delete(73, "other", false)).await;
    assert!(matches!(absent, Err(StoreError::NotFound { .. })), "{absent:?}");

    store.apply(dropping(1, None)).await.unwrap();
    assert!(
        goes(store.apply(delete(70, "repo", true)).await),
        "what was refused is asked anew"
    );
    assert!(
        goes(store.apply(delete(70, "repo", false)).await),
        "the same call again"
    );
    let again = create(2, spec(1, None), at(91_000));
    store.apply(again).await.unwrap();
    let repeated = store.apply(delete(70, "repo", true)).await.unwrap();
    assert_eq!(repeated, RepositoryFate::Stays, "it was pushed again since");
    end(&store).await;
}

/// Task `n` works, takes a checkpoint in attempt `n`, and ends.
async fn ended(store: &Store, n: u128, prompt: &str) {
    let mut spec = spec(1, None);
    spec.prompt = prompt.to_owned();
    spec.prompt_blob = (prompt == LONG).then(|| Digest::of(prompt.as_bytes()));
    let mut command = create(n, spec, at(n as u64));
    command.request = request(n + 1000 * prompt.len() as u128);
    let jobs = store.followed(command).await.queued;
    started(store, &jobs[0], n, 1, 1).await;
    let mut taken = taken(n as u32, &base(), CheckpointReason::FilesChanged);
    taken.transcript = Some(TranscriptSegment {
        blob: Digest::of(b"said by all"),
        from: 0,
        to: 1,
    });
    told(
        store,
        n,
        1,
        vec![event(1, EventBody::CheckpointTaken(taken)), claimed(2)],
    )
    .await;
}

pub(in crate::store::conformance) async fn a_dropped_task_is_gone_and_nothing_else(store: Store) {
    two_agents(&store).await;
    ended(&store, 1, "short").await;
    ended(&store, 2, LONG).await;
    let before = store.ended().await.unwrap();
    assert_eq!(
        before.iter().map(|ended| ended.task).collect::<Vec<_>>(),
        [task_id(1), task_id(2)]
    );
    assert_eq!((before[0].attempts.len(), before[0].blobs.len()), (1, 2));
    let files = store.in_files().await.unwrap();
    assert_eq!(
        (files.attempts.len(), files.sessions.len(), files.blobs.len()),
        (2, 2, 4)
    );
    let other = store.task(task_id(2)).await.unwrap();
    let events = store.events(task_id(2), 0, MAX_PAGE).await.unwrap();

    // The same call again is that call.
    for _ in 0..2 {
        let changes = store.followed(dropping(1, Some(60))).await;
        assert_eq!(changes.queued, []);
    }
    assert_eq!(store.task(task_id(1)).await.unwrap(), None);
    assert_eq!(store.events(task_id(1), 0, MAX_PAGE).await.unwrap(), []);
    assert_eq!(store.attempt(attempt_id(1)).await.unwrap(), None);
    let found = store.find_task(&task_id(1).to_string()).await.unwrap();
    assert_eq!(found, Named::NotFound);
    let late = store.apply(append(1, 1, vec![claimed(3)])).await.unwrap();
    assert_eq!(late, Appended::UnknownAttempt);
    let again = store.apply(dropping(1, None)).await.unwrap_err();
    assert!(matches!(again, StoreError::NotFound { what: "task", .. }), "{again}");

    assert_eq!(store.task(task_id(2)).await.unwrap(), other);
    assert_eq!(store.events(task_id(2), 0, MAX_PAGE).await.unwrap(), events);
    let left = store.in_files().await.unwrap();
    assert_eq!(Vec::from_iter(left.attempts), [AttemptId::from_random(2)]);
    let said = Digest::of(b"said by all");
    let blobs: Vec<_> = left.blobs.iter().map(|(_, digest)| digest).collect();
    assert!(blobs.contains(&&said) && blobs.contains(&&Digest::of(LONG.as_bytes())));
    assert_eq!(blobs.len(), 3);
    // Its ids are free, and what comes is in order.
    ended(&store, 1, "anew").await;
    let order: Vec<_> = store
        .ended()
        .await
        .unwrap()
        .into_iter()
        .map(|ended| ended.task)
        .collect();
    assert_eq!(order.len(), 2);
    end(&store).await;
}

pub(in crate::store::conformance) async fn what_is_not_over_is_not_dropped(store: Store) {
    let jobs = begin(&store, 1, CHECKED).await;
    for _ in 0..2 {
        let refused = store.apply(dropping(1, None)).await.unwrap_err();
        assert!(matches!(refused, StoreError::TaskOpen { .. }), "{refused}");
        // First it waits, then it runs.
        if store.queued_jobs().await.unwrap().is_empty() {
            break;
        }
        started(&store, &jobs[0], 1, 1, 1).await;
    }
    assert_eq!(store.ended().await.unwrap(), []);
    end(&store).await;

    // A waiting check of a base is dropped with its task; a running one is awaited.
    for (n, runs) in [(2, false), (3, true)] {
        let mut command = create(n, spec(1, CHECKED), at(60));
        command.baseline = Some(JobId::from_random(500 + n));
        let jobs = store.followed(command).await.queued;
        started(&store, &jobs[0], 10 * n, 1, 1).await;
        told(&store, 10 * n, 1, vec![committed(1), claimed(2)]).await;
        let verify = store.queued_jobs().await.unwrap();
        let verify = verify
            .iter()
            .find(|job| job.task == task_id(n) && job.job != jobs[1].job)
            .unwrap();
        started(&store, verify, 10 * n + 1, 1, 2).await;
        told(&store, 10 * n + 1, 2, vec![verdict(1, VerdictKind::Failed)]).await;
        if runs {
            started(&store, &jobs[1], 10 * n + 2, 1, 2).await;
            let refused = store.apply(dropping(n, None)).await.unwrap_err();
            assert!(matches!(refused, StoreError::TaskOpen { .. }), "{refused}");
            told(&store, 10 * n + 2, 2, vec![verdict(1, VerdictKind::Failed)]).await;
        }
        let changes = store.followed(dropping(n, None)).await;
        assert_eq!(changes.withdrawn, if runs { vec![] } else { vec![jobs[1].job] });
    }
    assert_eq!(view(&store).await.task.id, task_id(1));
    end(&store).await;
}

//! Requirements for databases only: data is still there after closing, and a command's error does
//! not affect other commands.

use std::path::Path;
use std::sync::Arc;

use futures_util::future::join_all;
use kage_core::id::JobId;
use kage_core::job::JobType;
use kage_core::price::PriceTable;
use rusqlite::Connection;

use super::fixture::{
    activity, append, appended, at, claimed, committed, create, exhausted, request, spec, started, task_id, two_agents,
};
use super::invariants::{Seen, check};
use super::pinned::file;
use super::run;
use crate::store::call::{Call, Fate, Pending};
use crate::store::conformance::followed::{Changes, Followed as _, told};
use crate::store::feed::Feed;
use crate::store::journal::Journal;
use crate::store::recent::Recent;
use crate::store::sqlite::Database;
use crate::store::writer::transaction;
use crate::store::{CancelTask, Change, FeedNews, Follower, QueuedJob, Store, StoreError};

fn journal(feed: Arc<Feed>) -> Journal {
    let recent = Arc::new(Recent::new(&feed));
    Journal::new(feed, recent)
}

/// Does something to the file that no program of ours does.
fn meddle(path: &Path, sql: &str) {
    Connection::open(path).unwrap().execute_batch(sql).unwrap();
}

#[test]
fn a_closed_store_is_the_same_when_it_is_opened_again() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kage.db");
        let store = Store::open(&path).unwrap();
        two_agents(&store).await;
        let jobs = store.followed(create(1, spec(3, Some("true")), at(1))).await.queued;
        started(&store, &jobs[0], 1, 1, 1).await;
        started(&store, &jobs[1], 2, 1, 2).await;
        let changes = appended(&store, 1, 1, vec![activity(1), committed(2), claimed(3)]).await;
        started(&store, &changes.queued[0], 3, 1, 2).await;
        let before = check(&store, &Seen::default()).await;
        let agents = store.agents().await.unwrap();
        store.close().await;
        let refused = store.apply(append(2, 2, vec![activity(1)])).await;
        assert!(matches!(refused, Err(StoreError::Closed)), "{refused:?}");
        drop(store);

        let store = Store::open(&path).unwrap();
        assert_eq!(check(&store, &before).await, before);
        assert_eq!(store.agents().await.unwrap(), agents);
        let again = store.apply(create(1, spec(3, Some("true")), at(9))).await.unwrap();
        assert!(again.repeated, "requests are remembered");
        drop(appended(&store, 2, 2, vec![activity(1)]).await);
    });
}

/// The story of the committed file of the first schema.
async fn as_long_ago(store: &Store) -> QueuedJob {
    two_agents(store).await;
    let mut created = store.followed(create(1, spec(1, None), at(1))).await;
    // One that ran, and one that runs.
    let other = store.followed(create(2, spec(2, None), at(1))).await;
    started(store, &other.queued[0], 20, 1, 2).await;
    started(store, &other.queued[1], 21, 1, 2).await;
    let mut ended = claimed(1);
    ended.at = at(20_000);
    drop(appended(store, 20, 2, vec![ended]).await);
    created.queued.remove(0)
}

#[test]
fn a_database_from_before_incidents_is_opened_as_it_is() {
    run(async {
        let model = Store::in_memory();
        let waits = as_long_ago(&model).await;
        let mut before = check(&model, &Seen::default()).await;
        before.as_of_an_older_version();

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kage.db");
        std::fs::copy(file(1), &path).unwrap();
        let store = Store::open(&path).unwrap();
        assert_eq!(check(&store, &before).await, before);
        started(&store, &waits, 1, 1, 1).await;
        drop(appended(&store, 1, 1, vec![exhausted(1)]).await);
        let view = store.task(task_id(1)).await.unwrap().unwrap();
        assert_eq!(view.sessions[0].incidents.len(), 1);
    });
}

#[test]
fn callers_of_one_commit_each_get_their_own_answer() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let (_, connection) = Database::new(&dir.path().join("kage.db"), PriceTable::builtin()).unwrap();
        let mut clash = create(2, spec(2, None), at(1));
        clash.sessions[1].1 = clash.sessions[0].1;
        let cancel = |task, n| CancelTask {
            request: request(n),
            task: task_id(task),
            now: at(2),
        };
        let (first, first_answer) = Pending::new(create(1, spec(1, None), at(1)));
        let (second, second_answer) = Pending::new(clash);
        let (third, third_answer) = Pending::new(cancel(2, 50));
        let (fourth, fourth_answer) = Pending::new(cancel(1, 51));
        let mut group: Vec<Box<dyn Call>> = vec![Box::new(first), Box::new(second), Box::new(third), Box::new(fourth)];
        let feed = Arc::default();
        let mut follower = Follower::new(Arc::clone(&feed));
        let mut journal = journal(feed);
        let fate = transaction(&connection, &mut journal, &mut group).fate;
        assert!(matches!(fate, Fate::Committed), "{fate:?}");
        assert!(follower.next().is_none(), "the writer says when it is committed");
        journal.committed();
        for call in group {
            call.answer(&fate);
        }
        assert!(first_answer.await.unwrap().is_ok());
        let second = second_answer.await.unwrap();
        assert!(matches!(second, Err(StoreError::IdTaken { what: "job" })), "{second:?}");
        let third = third_answer.await.unwrap();
        assert!(
            matches!(third, Err(StoreError::NotFound { .. })),
            "nothing of task 2 was left: {third:?}"
        );
        fourth_answer.await.unwrap().unwrap();
        let followed = Changes::of(&told(&mut follower));
        assert_eq!(followed.withdrawn, [JobId::from_random(1000)], "all in one commit");
        assert_eq!(followed.tasks, [task_id(1)]);
    });
}

#[test]
fn a_failed_statement_harms_only_its_own_command() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kage.db");
        let store = Store::open(&path).unwrap();
        meddle(
            &path,
            "CREATE TRIGGER trouble AFTER INSERT ON requests WHEN new.id = 'request-2' \
             BEGIN SELECT RAISE(ABORT, 'trouble'); END",
        );
        let (one, two, three) = tokio::join!(
            store.apply(create(1, spec(1, None), at(1))),
            store.apply(create(2, spec(1, None), at(1))),
            store.apply(create(3, spec(1, None), at(1))),
        );
        assert!(one.is_ok() && three.is_ok(), "{one:?} {three:?}");
        assert!(matches!(two, Err(StoreError::Engine { .. })), "{two:?}");
        assert_eq!(store.task(task_id(2)).await.unwrap(), None);
        assert_eq!(store.queued_jobs().await.unwrap().len(), 2);
    });
}

#[test]
fn a_transaction_that_the_engine_gives_up_is_refused_whole() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kage.db");
        let (_, connection) = Database::new(&path, PriceTable::builtin()).unwrap();
        meddle(
            &path,
            "CREATE TRIGGER trouble AFTER INSERT ON requests WHEN new.id = 'request-2' \
             BEGIN SELECT RAISE(ROLLBACK, 'trouble'); END",
        );
        let (first, first_answer) = Pending::new(create(1, spec(1, None), at(1)));
        let (second, second_answer) = Pending::new(create(2, spec(1, None), at(1)));
        let mut group: Vec<Box<dyn Call>> = vec![Box::new(first), Box::new(second)];
        let fate = transaction(&connection, &mut journal(Arc::default()), &mut group).fate;
        for call in group {
            call.answer(&fate);
        }
        for answer in [first_answer.await.unwrap(), second_answer.await.unwrap()] {
            assert!(matches!(answer, Err(StoreError::Engine { .. })), "{answer:?}");
        }
        drop(connection);
        let store = Store::open(&path).unwrap();
        assert_eq!(store.task(task_id(1)).await.unwrap(), None);
        assert!(!store.apply(create(1, spec(1, None), at(1))).await.unwrap().repeated);
    });
}

#[test]
fn after_a_failed_commit_the_outcome_is_unknown_and_the_store_goes_on() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kage.db");
        let store = Store::open(&path).unwrap();
        // A reference that is checked at the commit, and points nowhere.
        meddle(
            &path,
            "CREATE TABLE trouble (n INTEGER REFERENCES tasks (n) DEFERRABLE INITIALLY DEFERRED); \
             CREATE TRIGGER trouble AFTER INSERT ON requests WHEN new.id = 'request-2' \
             BEGIN INSERT INTO trouble VALUES (-1); END",
        );
        store.apply(create(1, spec(1, None), at(1))).await.unwrap();
        let failed = store.apply(create(2, spec(1, None), at(1))).await;
        assert!(matches!(failed, Err(StoreError::Unknown { .. })), "{failed:?}");
        assert_eq!(store.task(task_id(2)).await.unwrap(), None);
        meddle(&path, "DROP TRIGGER trouble");
        // The caller repeats the call: this time it is carried out, once.
        assert!(!store.apply(create(2, spec(1, None), at(1))).await.unwrap().repeated);
        assert_eq!(store.queued_jobs().await.unwrap().len(), 2);
    });
}

#[test]
fn many_callers_at_once_are_all_answered() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("kage.db")).unwrap();
        let mut callers = tokio::task::JoinSet::new();
        for n in 1..=200 {
            let store = store.clone();
            callers.spawn(async move {
                store
                    .apply(create(n, spec(1, None), at(1)))
                    .await
                    .map(|created| created.task)
            });
        }
        let mut created: Vec<_> = callers.join_all().await.into_iter().map(Result::unwrap).collect();
        created.sort();
        let expected: Vec<_> = (1..=200).map(task_id).collect();
        assert_eq!(created, expected);
        assert_eq!(store.counts().await.unwrap().of(JobType::Session).queued, 200);
    });
}

/// Whoever reads the file beside the store finds everything that was told.
#[test]
fn what_is_told_is_in_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kage.db");
    let store = Store::open(&path).unwrap();
    let mut follower = store.changes();
    let file = Connection::open(&path).unwrap();
    let reading = std::thread::spawn(move || {
        let mut seen = 0;
        while seen < 40 {
            let Some(FeedNews::Commit(commit)) = follower.next() else {
                std::thread::yield_now();
                continue;
            };
            for change in &commit.changes {
                let Change::Created { head, .. } = change else { continue };
                let id = head.id.as_bits().to_be_bytes();
                let found: i64 = file
                    .query_row("SELECT count(*) FROM tasks WHERE id = ?1", [id], |row| row.get(0))
                    .unwrap();
                assert_eq!(found, 1);
                seen += 1;
            }
        }
    });
    run(join_all((1..=40).map(|n| store.apply(create(n, spec(1, None), at(1))))));
    reading.join().unwrap();
}

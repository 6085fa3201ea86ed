//! A store with a failing disk, wrapped around the real one: statements and whole transactions are
//! refused, commits fail, and answers of successful commits are lost. Whatever fails, an answered
//! command is stored, an unanswered one is stored completely or not at all, and a repeated call has
//! one effect.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use kage_core::price::PriceTable;
use proptest::prelude::*;
use rusqlite::Connection;
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::fixture::{activity, appended, at, create, request, spec, started, task_id, two_agents};
use super::invariants::{Seen, check};
use super::run;
use crate::store::call::{Call, Fate, Pending};
use crate::store::error::{EngineError, EngineTrouble};
use crate::store::feed::Feed;
use crate::store::journal::Journal;
use crate::store::readers::Readers;
use crate::store::recent::Recent;
use crate::store::sqlite::Database;
use crate::store::writer::{self, Message, transaction};
use crate::store::{CancelTask, Engine, FeedNews, MAX_PAGE, ReadError, Store, StoreError};

/// What happens to the transaction of one command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    None,
    /// The n-th row that it writes is refused.
    Statement(u32),
    /// At the n-th row the engine gives up the whole transaction, as on a full disk.
    Transaction(u32),
    /// The commit fails, and nothing is stored.
    CommitFails,
    /// The commit succeeds, and its answer reports a failure.
    AnswerLost,
}

pub(super) fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        6 => Just(Fault::None),
        2 => (1..9u32).prop_map(Fault::Statement),
        1 => (1..9u32).prop_map(Fault::Transaction),
        1 => Just(Fault::CommitFails),
        2 => Just(Fault::AnswerLost),
    ]
}

/// The faults to come, in a cycle, and the fate of the last command.
#[derive(Debug)]
pub(super) struct Plan {
    faults: Vec<Fault>,
    next: AtomicUsize,
    kept: AtomicBool,
}

impl Plan {
    fn new(faults: Vec<Fault>) -> Self {
        Self {
            faults,
            next: AtomicUsize::new(0),
            kept: AtomicBool::new(false),
        }
    }

    fn take(&self) -> Fault {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        self.faults
            .get(n % self.faults.len().max(1))
            .copied()
            .unwrap_or(Fault::None)
    }

    /// Whether the last command is stored, which its caller may not know.
    pub(super) fn kept(&self) -> bool {
        self.kept.load(Ordering::Acquire)
    }
}

/// A store on SQLite with faults.
pub(super) struct Faulty {
    pub(super) store: Store,
    pub(super) plan: Arc<Plan>,
    pub(super) dir: TempDir,
}

impl Faulty {
    pub(super) fn open(faults: Vec<Fault>, recent: fn(&Arc<Feed>) -> Recent) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (database, connection) = Database::new(&dir.path().join("kage.db"), PriceTable::builtin()).unwrap();
        let readers = Arc::new(Readers::new(database.clone()).unwrap());
        let plan = Arc::new(Plan::new(faults));
        let (writer, messages) = mpsc::channel(writer::WAITING);
        let faults = Arc::clone(&plan);
        let feed = Arc::new(Feed::default());
        let recent = Arc::new(recent(&feed));
        let journal = Journal::new(Arc::clone(&feed), Arc::clone(&recent));
        let thread = std::thread::spawn(move || serve(&database, connection, messages, journal, &faults));
        let engine = Engine::Sqlite {
            writer,
            thread: Arc::new(Mutex::new(Some(thread))),
            readers,
            recent,
            lost: CancellationToken::new(),
        };
        Self {
            store: Store { engine, feed },
            plan,
            dir,
        }
    }
}

/// The writer's loop, with a fault in each transaction.
fn serve(
    database: &Database,
    mut connection: Connection,
    mut messages: mpsc::Receiver<Message>,
    mut journal: Journal,
    plan: &Plan,
) {
    prepare(&connection);
    while let Some(Message::Call(call)) = messages.blocking_recv() {
        let fault = plan.take();
        arm(&connection, fault);
        let mut group: Vec<Box<dyn Call>> = vec![call];
        let fate = transaction(&connection, &mut journal, &mut group).fate;
        plan.kept.store(matches!(fate, Fate::Committed), Ordering::Release);
        let fate = match (fault, fate) {
            (Fault::AnswerLost, Fate::Committed) => Fate::Unknown(Arc::new(EngineError::NoAnswer)),
            (_, fate) => fate,
        };
        match &fate {
            Fate::Committed => journal.committed(),
            Fate::BrokenOff(_) => journal.broken_off(),
            Fate::Unknown(_) => {
                drop(connection);
                connection = database.open_writer().unwrap();
                prepare(&connection);
                journal.unknown();
            }
        }
        for call in group {
            call.answer(&fate);
        }
    }
}

/// Lets every change of a row count down to the fault. All of it is temporary: the database
/// and other connections know nothing of it.
fn prepare(connection: &Connection) {
    let tables: Vec<String> = {
        let mut statement = connection
            .prepare("SELECT name FROM main.sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite%'")
            .unwrap();
        let names = statement.query_map([], |row| row.get(0)).unwrap();
        names.map(Result::unwrap).collect()
    };
    let mut sql = String::from(
        "CREATE TEMP TABLE countdown (rows INTEGER, kind INTEGER); INSERT INTO countdown VALUES (0, 0);
         CREATE TEMP TABLE whole (n INTEGER PRIMARY KEY);
         CREATE TEMP TABLE dangling (n INTEGER REFERENCES whole (n) DEFERRABLE INITIALLY DEFERRED);",
    );
    for table in tables {
        for change in ["INSERT", "UPDATE", "DELETE"] {
            sql.push_str(&format!(
                "CREATE TEMP TRIGGER \"{change} {table}\" BEFORE {change} ON main.\"{table}\" BEGIN
                     UPDATE countdown SET rows = rows - 1;
                     SELECT CASE kind WHEN 1 THEN RAISE(ABORT, 'fault') WHEN 2 THEN RAISE(ROLLBACK, 'fault') END
                     FROM countdown WHERE rows = 0;
                     INSERT INTO dangling SELECT -1 FROM countdown WHERE kind = 3;
                 END;"
            ));
        }
    }
    connection.execute_batch(&sql).unwrap();
}

fn arm(connection: &Connection, fault: Fault) {
    let (rows, kind) = match fault {
        Fault::None | Fault::AnswerLost => (0, 0),
        Fault::Statement(n) => (n, 1),
        Fault::Transaction(n) => (n, 2),
        Fault::CommitFails => (0, 3),
    };
    connection
        .execute("UPDATE countdown SET rows = ?1, kind = ?2", (rows, kind))
        .unwrap();
}

/// Every row that a command writes is refused once; each time nothing of it is there.
#[test]
fn nothing_is_there_of_a_command_that_failed_at_any_row() {
    for fault in [Fault::Statement as fn(u32) -> Fault, Fault::Transaction] {
        // Earlier commands are spared.
        let mut rows = 0;
        loop {
            rows += 1;
            let faulty = Faulty::open(vec![Fault::None, Fault::None, fault(rows)], Recent::new);
            let done = run(async {
                two_agents(&faulty.store).await;
                let before = check(&faulty.store, &Seen::default()).await;
                let mut follower = faulty.store.changes();
                let created = faulty.store.apply(create(1, spec(2, None), at(1))).await;
                match created {
                    Ok(_) => return true,
                    Err(StoreError::Engine { .. }) => {}
                    Err(other) => panic!("row {rows}: {other:?}"),
                }
                assert!(follower.next().is_none(), "nothing of it is told");
                assert_eq!(check(&faulty.store, &before).await, before);
                assert_eq!(faulty.store.queued_jobs().await.unwrap(), []);
                false
            });
            if done {
                break;
            }
        }
        assert!(rows > 4, "a task is several rows: {rows}");
    }
}

#[test]
fn a_commit_of_unknown_outcome_is_answered_as_such_and_repeated_with_one_effect() {
    for fault in [Fault::CommitFails, Fault::AnswerLost] {
        let faulty = Faulty::open(vec![Fault::None, Fault::None, fault, Fault::None], Recent::new);
        run(async {
            let store = &faulty.store;
            two_agents(store).await;
            let mut follower = store.changes();
            let first = store.apply(create(1, spec(2, None), at(1))).await;
            assert!(matches!(first, Err(StoreError::Unknown { .. })), "{first:?}");
            assert!(matches!(follower.next(), Some(FeedNews::Gap)));
            let stored = store.task(task_id(1)).await.unwrap();
            assert_eq!(stored.is_some(), fault == Fault::AnswerLost, "the file is the truth");
            let again = store.apply(create(1, spec(2, None), at(2))).await.unwrap();
            assert_eq!(again.repeated, stored.is_some());
            assert_eq!(store.queued_jobs().await.unwrap().len(), 2);

            // The same of a call without a request id: events are known by their numbers.
            let job = store.queued_jobs().await.unwrap().remove(0);
            // Faults come around again: two without, then the one in question.
            while faulty.plan.next.load(Ordering::Relaxed) % 4 != 1 {
                store.apply(create(1, spec(2, None), at(3))).await.ok();
            }
            started(store, &job, 1, 1, 1).await;
            let batch = || super::fixture::append(1, 1, vec![activity(1), activity(2)]);
            let first = store.apply(batch()).await;
            assert!(matches!(first, Err(StoreError::Unknown { .. })), "{first:?}");
            drop(appended(store, 1, 1, vec![activity(1), activity(2)]).await);
            assert_eq!(store.events(task_id(1), 0, MAX_PAGE).await.unwrap().len(), 2);
        });
    }
}

#[test]
fn a_full_disk_is_known_as_one_and_left_when_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let (_, connection) = Database::new(&dir.path().join("kage.db"), PriceTable::builtin()).unwrap();
    let pages: i64 = connection.query_row("PRAGMA page_count", [], |row| row.get(0)).unwrap();
    let large = |n| {
        let mut command = create(n, spec(1, None), at(1));
        command.spec.prompt = "much ".repeat(20_000);
        command
    };
    let carry_out = |limit: i64| {
        connection.pragma_update(None, "max_page_count", limit).unwrap();
        let (call, answer) = Pending::new(large(1));
        let mut group: Vec<Box<dyn Call>> = vec![Box::new(call)];
        let feed = Arc::default();
        let recent = Arc::new(Recent::new(&feed));
        let mut journal = Journal::new(feed, recent);
        let fate = transaction(&connection, &mut journal, &mut group).fate;
        for call in group {
            call.answer(&fate);
        }
        run(answer).unwrap()
    };
    match carry_out(pages) {
        Err(StoreError::Engine { source }) => {
            assert_eq!(source.trouble(), EngineTrouble::DiskFull);
        }
        other => panic!("{other:?}"),
    }
    assert!(!carry_out(pages + 1000).unwrap().repeated);
}

/// Does something to the file that no program of ours does.
fn meddle(path: &Path, sql: &str) {
    Connection::open(path).unwrap().execute_batch(sql).unwrap();
}

#[test]
fn a_row_that_cannot_be_read_is_an_error_and_stays_the_only_one() {
    let faulty = Faulty::open(vec![Fault::None], Recent::nothing);
    run(async {
        let store = &faulty.store;
        for n in [1, 2] {
            store.apply(create(n, spec(1, None), at(1))).await.unwrap();
        }
        let damage = "UPDATE sessions SET doc = '{\"state\":' WHERE task = (SELECT max(n) FROM tasks)";
        meddle(&faulty.dir.path().join("kage.db"), damage);
        let read = store.task(task_id(2)).await;
        assert!(
            matches!(read, Err(ReadError::Engine(EngineError::Corrupt { .. }))),
            "{read:?}"
        );
        assert!(store.task(task_id(1)).await.unwrap().is_some());
        let cancel = |task, n| CancelTask {
            request: request(n),
            task: task_id(task),
            now: at(2),
        };
        let refused = store.apply(cancel(2, 50)).await;
        assert!(matches!(refused, Err(StoreError::Engine { .. })), "{refused:?}");
        store.apply(cancel(1, 51)).await.unwrap();
    });
}

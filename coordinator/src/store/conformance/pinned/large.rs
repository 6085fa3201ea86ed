//! A large database of the last form before documents, which a process that is killed again and
//! again brings to the form of today: at every point it is wholly the old one or wholly the new one.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use kage_core::id::ProjectId;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags};

use super::super::fixture::{at, create, spec, task_id};
use super::{file, run};
use crate::store::sqlite::KNOWN;
use crate::store::{MAX_PAGE, OpenError, Store, TaskFilter};

const OLD: u32 = 11;
const SESSIONS: u32 = 80_000;
const KILLS: u32 = 20;
/// The database that the other process is to open.
const PATH: &str = "KAGE_MIGRATED";

/// The tables of the old form that belong to tasks, and how a row of the committed file becomes that of
/// copy `k`: ids stay apart, and what points at a row points at that of the same copy.
const TABLES: [(&str, &[(&str, &str)]); 7] = [
    ("tasks", &[("n", NTH), ("id", ID)]),
    ("specs", &[("task", "task + 1000 * k")]),
    ("sessions", &[("task", "task + 1000 * k")]),
    ("jobs", &[("task", "task + 1000 * k"), ("attempt", ATTEMPT)]),
    ("attempts", &[("n", NTH), ("id", ID), ("task", "task + 1000 * k")]),
    ("checkpoints", &[("task", "task + 1000 * k")]),
    (
        "events",
        &[("task", "task + 1000 * k"), ("attempt", "attempt + 1000 * k")],
    ),
];
const NTH: &str = "n + 1000 * k";
const ID: &str = "unhex(printf('%08x', 1000 + k) || hex(substr(id, 5)))";
const ATTEMPT: &str = "iif(attempt IS NULL, NULL, unhex(printf('%08x', 1000 + k) || hex(substr(attempt, 5))))";

/// Makes the committed file of the old form into one with many tasks.
fn multiply(path: &Path) {
    let committed = Connection::open_with_flags(file(OLD), OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    let to = path.to_str().unwrap();
    committed.execute_batch("PRAGMA page_size = 4096;").unwrap();
    committed.execute("VACUUM INTO ?1", [to]).unwrap();
    let large = Connection::open(path).unwrap();
    let each: u32 = large
        .query_row("SELECT count(*) FROM sessions", [], |row| row.get(0))
        .unwrap();
    let copies = SESSIONS / each - 1;
    large
        .execute_batch(&format!(
            "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; BEGIN;
             CREATE TEMP TABLE copies AS WITH RECURSIVE c(k) AS
                 (SELECT 1 UNION ALL SELECT k + 1 FROM c WHERE k < {copies}) SELECT k FROM c;"
        ))
        .unwrap();
    for (table, changed) in TABLES {
        let columns = texts(&large, &format!("SELECT name FROM pragma_table_info('{table}')"));
        let values = columns.iter().map(|column| {
            let changed = changed.iter().find(|(name, _)| name == column);
            changed.map_or(column.as_str(), |(_, value)| value)
        });
        let values: Vec<&str> = values.collect();
        let columns = columns.join(", ");
        let sql = format!(
            "INSERT INTO {table} ({columns}) SELECT {} FROM copies, {table}",
            values.join(", ")
        );
        large.execute(&sql, []).unwrap();
    }
    large.execute_batch("COMMIT").unwrap();
}

fn texts(connection: &Connection, sql: &str) -> Vec<String> {
    let mut statement = connection.prepare(sql).unwrap();
    let texts = statement.query_map([], |row| row.get(0)).unwrap();
    texts.map(Result::unwrap).collect()
}

const TABLE_NAMES: &str =
    "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite%' ORDER BY name";

/// The schema of a database, and how many rows and bytes each column of each table has.
fn shape(path: &Path) -> (u32, Vec<String>) {
    let connection = Connection::open(path).unwrap();
    let version = connection
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .unwrap();
    let mut shape = texts(&connection, "SELECT coalesce(sql, '') FROM sqlite_schema ORDER BY name");
    for table in texts(&connection, TABLE_NAMES) {
        let columns = texts(&connection, &format!("SELECT name FROM pragma_table_info('{table}')"));
        let sums = columns.iter().map(|column| format!("total(length(\"{column}\"))"));
        let sums = sums.collect::<Vec<_>>().join(" || ' ' || ");
        let sql = format!("SELECT '{table} ' || count(*) || ' ' || {sums} FROM \"{table}\"");
        shape.extend(texts(&connection, &sql));
    }
    (version, shape)
}

/// A digest of everything that is stored in a database.
fn content(path: &Path) -> u64 {
    let connection = Connection::open(path).unwrap();
    let tables = texts(&connection, TABLE_NAMES);
    let mut digest = DefaultHasher::new();
    for table in tables {
        table.hash(&mut digest);
        let mut statement = connection.prepare(&format!("SELECT * FROM \"{table}\"")).unwrap();
        let columns = statement.column_count();
        let mut rows = statement.query([]).unwrap();
        while let Some(row) = rows.next().unwrap() {
            for column in 0..columns {
                match row.get_ref(column).unwrap() {
                    ValueRef::Null => 0_u8.hash(&mut digest),
                    ValueRef::Integer(number) => number.hash(&mut digest),
                    ValueRef::Real(number) => number.to_bits().hash(&mut digest),
                    ValueRef::Text(bytes) | ValueRef::Blob(bytes) => bytes.hash(&mut digest),
                }
            }
        }
    }
    digest.finish()
}

/// Another process that opens the database, and so migrates it.
fn opening(path: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "store::conformance::pinned::large::opens_a_database_for_another_test",
        ])
        .arg("--ignored")
        .env(PATH, path)
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
#[ignore = "not a test of its own: the process that is killed in the test below"]
fn opens_a_database_for_another_test() {
    if let Some(path) = std::env::var_os(PATH) {
        drop(Store::open(Path::new(&path)).unwrap());
    }
}

#[test]
#[ignore = "takes minutes: part of the long tier"]
fn a_large_database_is_migrated_although_whoever_does_it_is_killed_at_twenty_points() {
    let dir = tempfile::tempdir().unwrap();
    let (old, whole, path) = (
        dir.path().join("old.db"),
        dir.path().join("whole.db"),
        dir.path().join("kage.db"),
    );
    multiply(&old);
    std::fs::copy(&old, &whole).unwrap();
    std::fs::copy(&old, &path).unwrap();
    let begun = Instant::now();
    assert!(opening(&whole).wait().unwrap().success());
    let takes = begun.elapsed();
    let (before, after) = (shape(&old), shape(&whole));
    assert_eq!((before.0, after.0), (OLD, KNOWN));

    let mut undone = 0;
    for n in 1..=KILLS {
        let mut process = opening(&path);
        std::thread::sleep(takes * n / (KILLS + 1));
        process.kill().unwrap();
        process.wait().unwrap();
        let now = shape(&path);
        if now == before {
            undone += 1;
        } else {
            assert!(now == after, "kill {n} left something in between");
            // It was quicker than the first: the next one begins anew.
            std::fs::copy(&old, &path).unwrap();
        }
    }
    assert!(undone >= KILLS / 4, "kills come before the end: {undone}");
    assert!(opening(&path).wait().unwrap().success());
    assert_eq!(content(&path), content(&whole), "whatever became of it before");
    goes_on(&path);
    println!("migrating {SESSIONS} sessions takes {takes:?}; {undone} of {KILLS} kills undid it");
}

fn goes_on(path: &Path) {
    run(async {
        let store = Store::open(path).unwrap();
        let filter = TaskFilter::all(&ProjectId::default());
        let page = store.tasks(&filter, None, MAX_PAGE).await.unwrap();
        assert_eq!(page.tasks.len(), MAX_PAGE as usize);
        store.apply(create(100, spec(1, None), at(90_000))).await.unwrap();
        assert!(store.task(task_id(100)).await.unwrap().is_some());
        store.close().await;
    });
}

/// What a program says whose newest schema is older than the file's.
#[test]
fn a_program_that_is_too_old_says_so_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kage.db");
    std::fs::copy(file(KNOWN), &path).unwrap();
    let newer = KNOWN + 1;
    let file = Connection::open(&path).unwrap();
    file.execute_batch(&format!("PRAGMA journal_mode = WAL; PRAGMA user_version = {newer};"))
        .unwrap();
    drop(file);
    let before = std::fs::read(&path).unwrap();
    let error = Store::open(&path).map(drop).unwrap_err();
    assert!(matches!(error, OpenError::SchemaTooNew { .. }));
    let said = error.to_string();
    let expected = format!("kage.db has schema {newer}; this program knows schemas up to {KNOWN}");
    assert!(said.ends_with(&expected), "{said}");
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

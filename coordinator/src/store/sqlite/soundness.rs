//! Looks for damage in a database before it is used: SQLite finds most of it only when it comes
//! across a page, which may be months later, and goes on writing until then.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode};

/// How many problems are told: one is enough to refuse.
const TOLD: u32 = 10;

/// How soon a check whose time is over is interrupted again.
const AGAIN: Duration = Duration::from_millis(5);

/// Where documents are, which are JSON.
const DOCUMENTS: [(&str, &str); 11] = [
    ("tasks", "doc"),
    ("specs", "spec"),
    ("sessions", "doc"),
    ("jobs", "doc"),
    ("attempts", "doc"),
    ("attempts", "note"),
    ("checkpoints", "doc"),
    ("events", "event"),
    ("base_verdicts", "doc"),
    ("calls", "doc"),
    ("reservations", "doc"),
];

/// Looks for damage of one kind.
type Check = fn(&Connection) -> rusqlite::Result<Vec<String>>;

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::store) enum Soundness {
    Sound,
    /// Nothing was found in the time that it had.
    Unfinished,
    /// The problems, in SQLite's words.
    Damaged(Vec<String>),
}

/// Reads every page, compares every index with its table, and parses every document, for no longer
/// than `within`. SQLite has no checksums: what changed within a value that stays valid is not found.
pub(in crate::store) fn check(connection: &Connection, within: Option<Duration>) -> rusqlite::Result<Soundness> {
    let Some(within) = within else {
        return both(connection, &AtomicBool::new(false));
    };
    let interrupt = connection.get_interrupt_handle();
    let over = AtomicBool::new(false);
    let (done, is_done) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let is_done = is_done;
            // An answer, or the end of the check, comes first when it is quick.
            let mut left = within;
            while is_done.recv_timeout(left) == Err(mpsc::RecvTimeoutError::Timeout) {
                // SQLite forgets an interrupt that comes between two statements, so it is sent until it is heard.
                over.store(true, Ordering::Release);
                interrupt.interrupt();
                left = AGAIN;
            }
        });
        let found = both(connection, &over);
        drop(done);
        found
    })
}

fn both(connection: &Connection, over: &AtomicBool) -> rusqlite::Result<Soundness> {
    let checks: [Check; 3] = [
        |connection| problems(connection, "quick_check"),
        |connection| problems(connection, "integrity_check"),
        documents,
    ];
    for check in checks {
        if over.load(Ordering::Acquire) {
            return Ok(Soundness::Unfinished);
        }
        match check(connection) {
            Ok(found) if found.is_empty() => {}
            Ok(found) => return Ok(Soundness::Damaged(found)),
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::OperationInterrupted) => {
                return Ok(Soundness::Unfinished);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(Soundness::Sound)
}

/// The tables with documents that cannot be read.
fn documents(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut found = Vec::new();
    for (table, column) in DOCUMENTS {
        let exists: bool = connection.query_row(
            "SELECT EXISTS (SELECT 1 FROM pragma_table_info(?1) WHERE name = ?2)",
            [table, column],
            |row| row.get(0),
        )?;
        if !exists {
            // A database of an older version.
            continue;
        }
        let sql = format!("SELECT count(*) FROM {table} WHERE NOT json_valid({column})");
        let invalid: i64 = connection.query_row(&sql, [], |row| row.get(0))?;
        if invalid > 0 {
            found.push(format!("{invalid} rows of {table} have no valid {column}"));
        }
    }
    Ok(found)
}

/// What was found until the check ended or was interrupted.
fn problems(connection: &Connection, check: &str) -> rusqlite::Result<Vec<String>> {
    let mut found = Vec::new();
    let mut statement = connection.prepare(&format!("PRAGMA {check}({TOLD})"))?;
    let mut rows = statement.query([])?;
    loop {
        match rows.next() {
            Ok(None) => return Ok(found),
            Ok(Some(row)) => {
                let text: String = row.get(0)?;
                found.extend(text.lines().filter(|line| *line != "ok").map(str::to_owned));
            }
            Err(_) if !found.is_empty() => return Ok(found),
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt as _;
    use std::path::Path;

    use kage_core::price::PriceTable;

    use super::*;
    use crate::store::error::OpenError;
    use crate::store::sqlite::{Database, look};

    const PAGE: usize = 4096;

    /// A database with some pages of every kind: of tables, of indexes, of long values.
    fn filled(path: &Path) {
        let (_database, writer) = Database::new(path, PriceTable::builtin()).unwrap();
        writer
            .execute_batch(
                "WITH RECURSIVE some(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM some WHERE n < 400)
                 INSERT INTO base_verdicts SELECT hex(zeroblob(20)) || n, 'machine', n,
                     json_object('text', iif(n % 50, n, hex(zeroblob(9000)))) FROM some;
                 PRAGMA wal_checkpoint(TRUNCATE);",
            )
            .unwrap();
    }

    #[test]
    fn every_damaged_page_is_found_before_the_database_is_used() {
        let dir = tempfile::tempdir().unwrap();
        let whole = dir.path().join("whole.db");
        filled(&whole);
        let pages = std::fs::metadata(&whole).unwrap().len() / PAGE as u64;
        assert!(pages > 40, "{pages}");
        let path = dir.path().join("kage.db");
        for (n, bytes) in [[0_u8; PAGE], [0xa5; PAGE]].iter().enumerate() {
            // Ten pages each, over the whole file; the first page too.
            for page in (n as u64..pages).step_by(usize::try_from(pages / 10).unwrap()) {
                std::fs::copy(&whole, &path).unwrap();
                let file = File::options().write(true).open(&path).unwrap();
                file.write_all_at(bytes, page * PAGE as u64).unwrap();
                drop(file);
                let before = std::fs::read(&path).unwrap();
                let refused = look(&path, &[]);
                assert!(
                    matches!(refused, Err(OpenError::Damaged { .. } | OpenError::NotOurs { .. })),
                    "page {page}: {refused:?}"
                );
                assert!(
                    std::fs::read(&path).unwrap() == before,
                    "page {page}: nothing is changed"
                );
            }
        }
        std::fs::copy(&whole, &path).unwrap();
        look(&path, &[]).unwrap();
    }

    #[test]
    fn a_check_ends_when_its_time_is_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kage.db");
        filled(&path);
        let connection = Connection::open(&path).unwrap();
        assert_eq!(check(&connection, None).unwrap(), Soundness::Sound);
        assert_eq!(
            check(&connection, Some(Duration::from_secs(600))).unwrap(),
            Soundness::Sound
        );
        // More than can be read in that time.
        connection
            .execute_batch(
                "WITH RECURSIVE some(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM some WHERE n < 100000)
                 INSERT INTO base_verdicts SELECT 'more' || n, 'machine', n, '{}' FROM some;",
            )
            .unwrap();
        for _ in 0..20 {
            assert_eq!(check(&connection, Some(Duration::ZERO)).unwrap(), Soundness::Unfinished);
        }
        assert_eq!(
            both(&connection, &AtomicBool::new(true)).unwrap(),
            Soundness::Unfinished
        );
        // The connection is as good as before.
        assert_eq!(check(&connection, None).unwrap(), Soundness::Sound);
    }
}

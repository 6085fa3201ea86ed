//! SQLite: opens and checks the file, and brings its schema up to date. The modules below this one
//! read and write; the writing thread is `writer`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use kage_core::price::PriceTable;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use super::error::OpenError;

mod copies;
mod holders;
mod identity;
mod ledger_query;
mod page_query;
mod place;
mod reads;
mod record;
mod rows;
mod schema;
mod soundness;
mod trouble;
mod value;

pub(super) use copies::{check, contents, copy};
pub(super) use identity::look;
pub(super) use place::OpenFiles;
pub(super) use rows::SqliteRows;
#[cfg(test)]
pub(in crate::store) use schema::KNOWN;
pub(super) use trouble::failed;

/// The first release without the WAL-reset fault, as numbers and as text.
const REQUIRED_SQLITE: (i32, &str) = (3_051_003, "3.51.3");
/// Marks a file as ours: "KAGE" in ASCII.
const APPLICATION_ID: u32 = 0x4b41_4745;
/// How long a statement waits for a lock of another process, such as a backup tool.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// Statements kept prepared per connection: more than there are.
const PREPARED: usize = 128;

#[derive(Debug, Clone)]
pub(super) struct Database {
    path: PathBuf,
}

impl Database {
    /// A database at this path, made when it does not exist. What an older program stored without its
    /// cost is priced by these.
    ///
    /// # Errors
    /// When this program must not or cannot use it.
    pub(super) fn new(path: &Path, prices: &PriceTable) -> Result<(Self, Connection), OpenError> {
        check_version(rusqlite::version_number(), rusqlite::version())?;
        let database = Self { path: path.to_owned() };
        let mut writer = database.open(OpenFlags::SQLITE_OPEN_CREATE)?;
        database.check_owner(&writer)?;
        schema::migrate(&mut writer, path, prices)?;
        Ok((database, writer))
    }

    /// A connection that writes to the existing file; a missing file is not created.
    pub(super) fn open_writer(&self) -> Result<Connection, OpenError> {
        self.open(OpenFlags::empty())
    }

    fn open(&self, more: OpenFlags) -> Result<Connection, OpenError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | more;
        let connection = Connection::open_with_flags(&self.path, flags).map_err(|source| self.failed(source))?;
        self.configure(&connection)?;
        let mode = connection
            .pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get::<_, String>(0))
            .map_err(|source| self.failed(source))?;
        if mode != "wal" {
            return Err(OpenError::Setting {
                path: self.path.clone(),
                what: "WAL",
                found: mode,
            });
        }
        connection
            .execute_batch(
                // Without FULL an acknowledged commit can be lost with the power.
                "PRAGMA synchronous = FULL;
                 PRAGMA foreign_keys = ON;
                 -- At each commit after which the tree was balanced, SQLite walks the whole hash of
                 -- its cached pages (pcache1TruncateUnsafe): 64 MiB cost 6-8 % of a busy writer.
                 -- What is not here is in the system's memory.
                 PRAGMA cache_size = -16384;
                 PRAGMA wal_autocheckpoint = 4000;
                 PRAGMA journal_size_limit = 67108864;",
            )
            .map_err(|source| self.failed(source))?;
        self.make_durable(&connection)?;
        let synchronous: i64 = connection
            .pragma_query_value(None, "synchronous", |row| row.get(0))
            .map_err(|source| self.failed(source))?;
        if synchronous != 2 {
            return Err(OpenError::Setting {
                path: self.path.clone(),
                what: "synchronous = FULL",
                found: synchronous.to_string(),
            });
        }
        Ok(connection)
    }

    /// The open files, which must stay where they are.
    pub(super) fn files(&self) -> Result<OpenFiles, OpenError> {
        OpenFiles::of(&self.path).map_err(|source| OpenError::Look {
            path: self.path.clone(),
            source,
        })
    }

    /// Makes all readable data durable, and restarts the log. After a failed sync, of this process
    /// or an earlier one, the kernel may show data that it has thrown away; later writes behind
    /// such data would be lost with it.
    fn make_durable(&self, connection: &Connection) -> Result<(), OpenError> {
        let busy: i64 = connection
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))
            .map_err(|source| self.failed(source))?;
        match busy {
            0 => Ok(()),
            _ => Err(trouble::held(&self.path)),
        }
    }

    /// A connection that reads beside the writer.
    pub(super) fn open_reader(&self) -> Result<Connection, OpenError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&self.path, flags).map_err(|source| self.failed(source))?;
        self.configure(&connection)?;
        connection
            .execute_batch("PRAGMA query_only = ON; PRAGMA cache_size = -8192;")
            .map_err(|source| self.failed(source))?;
        Ok(connection)
    }

    fn configure(&self, connection: &Connection) -> Result<(), OpenError> {
        connection.set_prepared_statement_cache_capacity(PREPARED);
        connection
            .busy_timeout(BUSY_TIMEOUT)
            // Plans must not depend on bound values. Otherwise every cached statement that uses a
            // partial index is compiled again each time other values are bound.
            .and_then(|()| connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true))
            .and_then(|_| {
                connection.execute_batch(
                    // A mapped file turns a disk error into a signal that ends the program.
                    "PRAGMA mmap_size = 0; PRAGMA temp_store = MEMORY; PRAGMA trusted_schema = OFF;",
                )
            })
            .map_err(|source| self.failed(source))
    }

    fn check_owner(&self, connection: &Connection) -> Result<(), OpenError> {
        self.is_made(connection).map(|_made| ())
    }

    /// True if our program has created its tables in the file; false if no program has.
    fn is_made(&self, connection: &Connection) -> Result<bool, OpenError> {
        let found: u32 = connection
            .pragma_query_value(None, "application_id", |row| row.get(0))
            .map_err(|source| self.failed(source))?;
        let tables: i64 = connection
            .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
            .map_err(|source| self.failed(source))?;
        match (found, tables) {
            (APPLICATION_ID, _) => Ok(tables > 0),
            (0, 0) => Ok(false),
            (found, _) => Err(OpenError::NotOurs {
                path: self.path.clone(),
                found,
            }),
        }
    }

    fn failed(&self, source: rusqlite::Error) -> OpenError {
        trouble::not_opened(&self.path, source)
    }
}

fn check_version(number: i32, found: &'static str) -> Result<(), OpenError> {
    let (least, required) = REQUIRED_SQLITE;
    if number < least {
        return Err(OpenError::SqliteTooOld { found, required });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open_error(path: &Path) -> OpenError {
        Database::new(path, PriceTable::builtin()).map(|_| ()).unwrap_err()
    }

    #[test]
    fn refuses_an_old_sqlite() {
        assert!(check_version(3_051_002, "3.51.2").is_err());
        assert!(check_version(3_051_003, "3.51.3").is_ok());
        assert!(check_version(rusqlite::version_number(), rusqlite::version()).is_ok());
    }

    #[test]
    fn refuses_a_newer_schema_and_leaves_it_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kage.db");
        drop(Database::new(&path, PriceTable::builtin()).unwrap());
        let newer = schema::KNOWN + 1;
        Connection::open(&path)
            .unwrap()
            .pragma_update(None, "user_version", newer)
            .unwrap();
        let error = open_error(&path);
        assert!(
            matches!(error, OpenError::SchemaTooNew { found, .. } if found == newer),
            "{error}"
        );
    }

    #[test]
    fn refuses_the_database_of_another_program() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kage.db");
        Connection::open(&path)
            .unwrap()
            .execute_batch("CREATE TABLE notes(text TEXT)")
            .unwrap();
        assert!(matches!(open_error(&path), OpenError::NotOurs { found: 0, .. }));
        Connection::open(&path)
            .unwrap()
            .pragma_update(None, "application_id", 7)
            .unwrap();
        assert!(matches!(open_error(&path), OpenError::NotOurs { found: 7, .. }));
    }

    #[test]
    fn a_writer_leaves_nothing_in_the_log_of_an_earlier_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kage.db");
        let (database, writer) = Database::new(&path, PriceTable::builtin()).unwrap();
        // Somebody else has it open, so that nothing is cleaned up at the end.
        let reader = database.open_reader().unwrap();
        writer.execute_batch("CREATE TABLE mark (n INTEGER)").unwrap();
        drop(writer);
        let log = dir.path().join("kage.db-wal");
        assert!(std::fs::metadata(&log).unwrap().len() > 0);
        drop(database.open_writer().unwrap());
        assert_eq!(std::fs::metadata(&log).unwrap().len(), 0);
        reader.query_row("SELECT count(*) FROM mark", [], |_| Ok(())).unwrap();
    }

    #[test]
    fn a_file_that_another_program_reads_is_said_to_be_held_by_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kage.db");
        let (database, writer) = Database::new(&path, PriceTable::builtin()).unwrap();
        let reader = database.open_reader().unwrap();
        reader.execute_batch("BEGIN; SELECT count(*) FROM tasks;").unwrap();
        writer.execute_batch("CREATE TABLE mark (n INTEGER)").unwrap();
        writer.busy_timeout(Duration::ZERO).unwrap();
        let file = std::fs::File::open(&path).unwrap();
        let mut other = std::process::Command::new("sleep")
            .arg("600")
            .stdin(file)
            .spawn()
            .unwrap();
        let held = database.make_durable(&writer).unwrap_err();
        other.kill().unwrap();
        other.wait().unwrap();
        assert!(matches!(held, OpenError::Held { .. }), "{held:?}");
        let said = held.to_string();
        if cfg!(target_os = "linux") {
            assert!(said.contains(&format!("sleep (process {})", other.id())), "{said}");
        }
        assert!(said.contains("start again when that has ended"), "{said}");
        reader.execute_batch("COMMIT").unwrap();
        database.make_durable(&writer).unwrap();
    }

    #[test]
    fn migrating_twice_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kage.db");
        drop(Database::new(&path, PriceTable::builtin()).unwrap());
        let (_, connection) = Database::new(&path, PriceTable::builtin()).unwrap();
        let version: u32 = connection
            .pragma_query_value(None, "user_version", |row| row.get(0))
            .unwrap();
        assert_eq!(version, schema::KNOWN);
    }
}

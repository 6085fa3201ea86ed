//! Inspects a database file before anything writes to it, and owns the row with its identity. The
//! inspection must not replay what an earlier process left in the log: the log of another database
//! would be mixed into this one.

use std::io;
use std::path::Path;
use std::time::Duration;

use kage_core::id::{AttemptId, StoreId};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, params};

use super::soundness::{self, Soundness};
use super::value::{id, int};
use super::{BUSY_TIMEOUT, Database};
use crate::store::error::OpenError;
use crate::store::identity::{Absent, Found, Known, Opened, Opening};

/// How long a start looks for damage: a coordinator that was killed is back within a second.
/// `kage coordinator verify` looks at all of a large database.
const LOOKED_AT: Duration = Duration::from_millis(400);

/// See [`crate::store::Store::look`].
pub(in crate::store) fn look(path: &Path, attempts: &[AttemptId]) -> Result<Found, OpenError> {
    // An empty file is not opened: SQLite would remove the log beside it.
    match std::fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing(Absent::Missing)),
        Err(source) => {
            return Err(OpenError::Look {
                path: path.to_owned(),
                source,
            });
        }
        Ok(file) if file.len() == 0 => return Ok(Found::Nothing(Absent::Empty)),
        Ok(_) => {}
    }
    let (database, connection) = Database::open_to_look(path)?;
    if !database.is_made(&connection)? {
        return Ok(Found::Nothing(Absent::Blank));
    }
    match soundness::check(&connection, Some(LOOKED_AT)).map_err(|source| database.failed(source))? {
        Soundness::Sound => {}
        Soundness::Unfinished => tracing::info!(
            path = %path.display(), within = ?LOOKED_AT,
            "a part of the database was looked at for damage; `kage coordinator verify` looks at all of it"
        ),
        Soundness::Damaged(found) => {
            return Err(OpenError::Damaged {
                path: path.to_owned(),
                found,
            });
        }
    }
    let known = known(&connection, attempts).map_err(|source| database.failed(source))?;
    Ok(Found::Database(known))
}

fn known(connection: &Connection, attempts: &[AttemptId]) -> rusqlite::Result<Known> {
    let has_id: bool = connection.query_row(
        "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'store')",
        [],
        |row| row.get(0),
    )?;
    let identity = match has_id {
        false => None,
        true => connection
            .query_row("SELECT id, opened FROM store", [], |row| {
                Ok((row.get::<_, [u8; 16]>(0)?, row.get::<_, i64>(1)?))
            })
            .optional()?,
    };
    let counts: bool = connection.query_row(
        "SELECT EXISTS (SELECT 1 FROM pragma_table_info('store') WHERE name = 'position')",
        [],
        |row| row.get(0),
    )?;
    let position: Option<i64> = match counts {
        false => None,
        true => connection
            .query_row("SELECT position FROM store", [], |row| row.get(0))
            .optional()?,
    };
    let unused = connection.query_row(
        "SELECT NOT EXISTS (SELECT 1 FROM tasks) AND NOT EXISTS (SELECT 1 FROM requests)",
        [],
        |row| row.get(0),
    )?;
    let mut find = connection.prepare("SELECT 1 FROM attempts WHERE id = ?1")?;
    let mut unknown = 0;
    for attempt in attempts {
        unknown += usize::from(!find.exists(params![id(*attempt)])?);
    }
    Ok(Known {
        id: identity.map(|(id, _)| StoreId::from_random(u128::from_be_bytes(id))),
        opened: identity.map_or(0, |(_, opened)| opened.unsigned_abs()),
        position: position.unwrap_or(0).unsigned_abs(),
        unused,
        unknown,
    })
}

impl Database {
    /// A connection that leaves the file and its log as they are.
    pub(super) fn open_to_look(path: &Path) -> Result<(Self, Connection), OpenError> {
        let database = Self { path: path.to_owned() };
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags).map_err(|source| database.failed(source))?;
        connection
            .busy_timeout(BUSY_TIMEOUT)
            .and_then(|()| connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true))
            .map_err(|source| database.failed(source))?;
        Ok((database, connection))
    }

    /// Counts the opening, and gives the database an id if it has none. Stored in the file itself,
    /// not only in its log, when this returns, so that a file without its log still has its
    /// identity.
    pub(in crate::store) fn identify(&self, connection: &Connection, opening: &Opening) -> Result<Opened, OpenError> {
        let counted = || {
            // What is behind its folder is ahead of it from now on, so that neither the folder's
            // record nor another copy counts as the newer one.
            connection.execute(
                "INSERT INTO store (one, id, opened, position) VALUES (1, ?1, ?2, ?3) \
                 ON CONFLICT (one) DO UPDATE SET opened = max(opened, ?2 - 1) + 1, \
                 position = max(position, ?3 - 1) + 1",
                params![
                    id(opening.fresh),
                    int(opening.times.saturating_add(1)),
                    int(opening.position.saturating_add(1))
                ],
            )?;
            connection.query_row("SELECT id, opened, position FROM store", [], |row| {
                Ok((row.get::<_, [u8; 16]>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?))
            })
        };
        let (id, opened, position) = counted().map_err(|source| self.failed(source))?;
        self.make_durable(connection)?;
        Ok(Opened {
            id: StoreId::from_random(u128::from_be_bytes(id)),
            times: opened.unsigned_abs(),
            position: position.unsigned_abs(),
        })
    }
}

#[cfg(test)]
mod tests {
    use kage_core::price::PriceTable;

    use super::*;

    fn known(found: Found) -> Known {
        match found {
            Found::Database(known) => known,
            Found::Nothing(absent) => panic!("{absent:?}"),
        }
    }

    #[test]
    fn a_file_says_which_store_it_is_also_without_its_log() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kage.db");
        assert_eq!(look(&path, &[]).unwrap(), Found::Nothing(Absent::Missing));
        std::fs::write(&path, "").unwrap();
        assert_eq!(look(&path, &[]).unwrap(), Found::Nothing(Absent::Empty));

        let (database, writer) = Database::new(&path, PriceTable::builtin()).unwrap();
        let before = known(look(&path, &[]).unwrap());
        assert_eq!((before.id, before.opened, before.unused), (None, 0, true));
        let one = StoreId::from_random(1);
        let identify = |fresh, times, position| {
            let opening = Opening {
                fresh,
                times,
                position,
                noted: dir.path().join("store-position"),
            };
            let opened = database.identify(&writer, &opening).unwrap();
            (opened.id, opened.times, opened.position)
        };
        assert_eq!(identify(one, 0, 0), (one, 1, 1));
        assert_eq!(identify(StoreId::from_random(2), 0, 0), (one, 2, 2));
        assert_eq!(identify(one, 7, 40), (one, 8, 41), "after a newer one");

        // As a crash and the loss of the log leave it.
        let copy = dir.path().join("copy.db");
        std::fs::copy(&path, &copy).unwrap();
        let unknown = [AttemptId::from_random(3), AttemptId::from_random(4)];
        let found = known(look(&copy, &unknown).unwrap());
        assert_eq!(
            (found.id, found.opened, found.position, found.unused, found.unknown),
            (Some(one), 8, 41, true, 2)
        );
    }

    #[test]
    fn a_look_leaves_the_log_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kage.db");
        let (_database, writer) = Database::new(&path, PriceTable::builtin()).unwrap();
        writer.execute_batch("CREATE TABLE mark (n INTEGER)").unwrap();
        let crashed = tempfile::tempdir().unwrap();
        for name in ["kage.db", "kage.db-wal"] {
            std::fs::copy(dir.path().join(name), crashed.path().join(name)).unwrap();
        }
        let files = || ["kage.db", "kage.db-wal"].map(|name| std::fs::read(crashed.path().join(name)).unwrap());
        let before = files();
        assert!(before[1].len() > 4096, "there is something in the log");
        known(look(&crashed.path().join("kage.db"), &[]).unwrap());
        assert!(files() == before);

        // A file that lost its bytes: SQLite itself would remove its log.
        std::fs::write(crashed.path().join("kage.db"), "").unwrap();
        assert_eq!(
            look(&crashed.path().join("kage.db"), &[]).unwrap(),
            Found::Nothing(Absent::Empty)
        );
        assert!(files()[1] == before[1]);
    }

    #[test]
    fn a_file_whose_tables_are_in_a_lost_log_is_blank() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kage.db");
        let connection = Connection::open(&path).unwrap();
        connection.pragma_update(None, "journal_mode", "WAL").unwrap();
        drop(connection);
        assert!(std::fs::metadata(&path).unwrap().len() > 0);
        assert_eq!(look(&path, &[]).unwrap(), Found::Nothing(Absent::Blank));
    }
}

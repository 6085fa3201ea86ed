//! Copies of a database, made while others write to it, and everything that the rows of one name
//! outside of it.

use std::path::Path;

use kage_core::id::ProjectId;
use kage_core::price::PriceTable;
use rusqlite::{Connection, OptionalExtension as _, params};

use super::soundness::{self, Soundness};
use super::{Database, schema};
use crate::store::copies::{Contents, CopyError};
use crate::store::error::{EngineError, OpenError};
use crate::store::query::{Reads, TaskFilter};

/// Tasks of one read.
const PAGE: u32 = 500;

impl Database {
    /// The schema of the file, when this version of the program can read it or bring it up to date.
    fn schema(&self, connection: &Connection) -> Result<u32, OpenError> {
        self.check_owner(connection)?;
        let found: u32 = connection
            .pragma_query_value(None, "user_version", |row| row.get(0))
            .map_err(|source| self.failed(source))?;
        let (path, known) = (self.path.clone(), schema::KNOWN);
        match found {
            found if found > known => Err(OpenError::SchemaTooNew { path, found, known }),
            found => Ok(found),
        }
    }
}

/// Copies everything that is committed at one moment into a new file.
pub(in crate::store) fn copy(path: &Path, to: &Path) -> Result<(), OpenError> {
    let (database, connection) = Database::open_to_look(path)?;
    database.schema(&connection)?;
    let text = to.to_string_lossy();
    connection
        .execute("VACUUM INTO ?1", params![text.as_ref()])
        .map_err(|source| database.failed(source))?;
    Ok(())
}

/// Reads a whole file, and compares its indexes with its tables.
pub(in crate::store) fn check(path: &Path) -> Result<(), OpenError> {
    let (database, connection) = Database::open_to_look(path)?;
    match soundness::check(&connection, None).map_err(|source| database.failed(source))? {
        Soundness::Sound | Soundness::Unfinished => Ok(()),
        Soundness::Damaged(found) => Err(OpenError::Damaged {
            path: path.to_owned(),
            found,
        }),
    }
}

/// What the rows of a file that nobody writes to name. The file stays as it is, also when it is of an older
/// schema: then a copy of it is brought up to date and read.
pub(in crate::store) fn contents(path: &Path) -> Result<Contents, CopyError> {
    let (database, connection) = Database::open_to_look(path)?;
    if database.schema(&connection)? == schema::KNOWN {
        return named(&connection);
    }
    let unwritten = |source| OpenError::Copy {
        path: path.to_owned(),
        source,
    };
    let folder = tempfile::tempdir().map_err(unwritten)?;
    let newer = folder.path().join("kage.db");
    copy(path, &newer)?;
    // Which prices usage gets is no matter for what the rows name.
    let (_, connection) = Database::new(&newer, PriceTable::builtin())?;
    named(&connection)
}

fn named(connection: &Connection) -> Result<Contents, CopyError> {
    let store: Option<([u8; 16], i64, i64)> = connection
        .query_row("SELECT id, opened, position FROM store", [], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        })
        .optional()
        .map_err(super::failed)?;
    let mut contents = Contents::of(store, connection.in_files()?);
    for project in connection.projects()? {
        collect(connection, &project.project, &mut contents)?;
    }
    Ok(contents)
}

fn collect(connection: &Connection, project: &ProjectId, contents: &mut Contents) -> Result<(), EngineError> {
    let filter = TaskFilter::all(project);
    let mut after = None;
    loop {
        let page = connection.tasks(&filter, after, PAGE)?;
        for view in &page.tasks {
            contents.add(view);
        }
        match page.next {
            Some(next) => after = Some(next),
            None => return Ok(()),
        }
    }
}

//! The meaning of SQLite's errors: the one place that knows its codes.

use std::path::Path;

use rusqlite::ErrorCode;

use super::{BUSY_TIMEOUT, holders};
use crate::store::error::{EngineError, EngineTrouble, OpenError};

/// Classifies the error of a statement or a commit.
pub(in crate::store) fn failed(source: rusqlite::Error) -> EngineError {
    EngineError::Database {
        trouble: trouble(&source),
        source: Box::new(source),
    }
}

/// Classifies the error of opening a file.
pub(super) fn not_opened(path: &Path, source: rusqlite::Error) -> OpenError {
    let path = path.to_owned();
    match trouble(&source) {
        EngineTrouble::Damaged => OpenError::Damaged {
            path,
            found: vec![source.to_string()],
        },
        EngineTrouble::Busy => held(&path),
        trouble => OpenError::Database {
            path,
            trouble,
            source: Box::new(source),
        },
    }
}

/// The refusal of a file that another program has locked for longer than statements wait.
pub(super) fn held(path: &Path) -> OpenError {
    OpenError::Held {
        path: path.to_owned(),
        by: holders::of(path),
        waited: BUSY_TIMEOUT,
    }
}

fn trouble(error: &rusqlite::Error) -> EngineTrouble {
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => EngineTrouble::DiskFull,
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => EngineTrouble::Busy,
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => EngineTrouble::Damaged,
        // A foreign library may add codes.
        Some(_) | None => EngineTrouble::Failed,
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::ffi;

    use super::*;

    #[test]
    fn every_code_that_somebody_acts_on_is_known() {
        let of = |code| {
            let source = rusqlite::Error::SqliteFailure(ffi::Error::new(code), None);
            failed(source).trouble()
        };
        assert_eq!(of(ffi::SQLITE_FULL), EngineTrouble::DiskFull);
        assert_eq!(of(ffi::SQLITE_BUSY), EngineTrouble::Busy);
        assert_eq!(of(ffi::SQLITE_BUSY_SNAPSHOT), EngineTrouble::Busy);
        assert_eq!(of(ffi::SQLITE_LOCKED), EngineTrouble::Busy);
        assert_eq!(of(ffi::SQLITE_CORRUPT), EngineTrouble::Damaged);
        assert_eq!(of(ffi::SQLITE_NOTADB), EngineTrouble::Damaged);
        assert_eq!(of(ffi::SQLITE_IOERR_FSYNC), EngineTrouble::Failed);
        assert_eq!(failed(rusqlite::Error::InvalidQuery).trouble(), EngineTrouble::Failed);
    }
}

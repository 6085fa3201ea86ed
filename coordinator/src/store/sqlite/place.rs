//! The files of the open database, as they were when it was opened. A database whose files were
//! removed or replaced still takes commits, into files that nobody finds again, so this is asked
//! before a commit is acknowledged.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::store::error::EngineError;

/// Which file is at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileIdentity {
    device: u64,
    inode: u64,
}

impl FileIdentity {
    /// `None` when there is no file.
    fn at(path: &Path) -> io::Result<Option<Self>> {
        match std::fs::metadata(path) {
            Ok(found) => Ok(Some(Self {
                device: found.dev(),
                inode: found.ino(),
            })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The file of an open database and its log.
#[derive(Debug)]
pub(in crate::store) struct OpenFiles {
    files: [(PathBuf, Option<FileIdentity>); 2],
}

impl OpenFiles {
    /// The files as they are now. The database has just been opened.
    pub(in crate::store) fn of(path: &Path) -> io::Result<Self> {
        let mut log = path.as_os_str().to_owned();
        log.push("-wal");
        let log = PathBuf::from(log);
        let (file, its_log) = (FileIdentity::at(path)?, FileIdentity::at(&log)?);
        Ok(Self {
            files: [(path.to_owned(), file), (log, its_log)],
        })
    }

    /// Fails when another file or none is where one of them was.
    pub(in crate::store) fn check(&self) -> Result<(), EngineError> {
        for (path, opened) in &self.files {
            let path = || path.clone();
            match FileIdentity::at(&path()) {
                Ok(found) if found == *opened && found.is_some() => {}
                Ok(_) => return Err(EngineError::Replaced { path: path() }),
                Err(source) => return Err(EngineError::Unseen { path: path(), source }),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use kage_core::price::PriceTable;

    use super::*;
    use crate::store::sqlite::Database;

    #[test]
    fn a_file_that_is_gone_or_another_one_is_noticed() {
        for name in ["kage.db", "kage.db-wal"] {
            let dir = tempfile::tempdir().unwrap();
            let (_database, writer) = Database::new(&dir.path().join("kage.db"), PriceTable::builtin()).unwrap();
            let files = OpenFiles::of(&dir.path().join("kage.db")).unwrap();
            writer.execute_batch("CREATE TABLE mark (n INTEGER)").unwrap();
            files.check().unwrap();

            let path = dir.path().join(name);
            let aside = dir.path().join("aside");
            std::fs::rename(&path, &aside).unwrap();
            let gone = files.check().unwrap_err();
            assert!(
                matches!(&gone, EngineError::Replaced { path: at } if *at == path),
                "{gone}"
            );
            std::fs::copy(&aside, &path).unwrap();
            assert!(matches!(files.check(), Err(EngineError::Replaced { .. })), "a copy");
            std::fs::rename(&aside, &path).unwrap();
            files.check().unwrap();
        }
    }
}

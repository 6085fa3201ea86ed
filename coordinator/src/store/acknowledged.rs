//! The position of the last commit that callers were told of, outside of the database: with it a
//! start notices a database that ends earlier. The number is written after each commit and before
//! its callers are answered, without waiting for the disk. So it is exact after a killed process.
//! After a power cut it may be behind the database, and never ahead of it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// The file in which the position is noted.
#[derive(Debug)]
pub(super) struct Acknowledged {
    file: File,
    /// The last note failed, and that was told.
    failing: bool,
}

impl Acknowledged {
    /// Opens the file, or makes it, and notes this position durably.
    pub(super) fn begin(path: &Path, position: u64) -> io::Result<Self> {
        let file = File::options().create(true).truncate(false).write(true).open(path)?;
        let acknowledged = Self { file, failing: false };
        acknowledged.write(position)?;
        acknowledged.file.set_len(text(position).len() as u64)?;
        acknowledged.file.sync_all()?;
        Ok(acknowledged)
    }

    /// Notes the position of a commit. Without the note a later start knows of less, so a failure is
    /// only told.
    pub(super) fn note(&mut self, position: u64) {
        match self.write(position) {
            Ok(()) => self.failing = false,
            Err(error) if !self.failing => {
                tracing::warn!(%error, "cannot note how far the database was acknowledged");
                self.failing = true;
            }
            Err(_) => {}
        }
    }

    /// Waits until the last note is durable.
    pub(super) fn settle(&self) {
        if let Err(error) = self.file.sync_all() {
            tracing::warn!(%error, "cannot make durable how far the database was acknowledged");
        }
    }

    fn write(&self, position: u64) -> io::Result<()> {
        // Always as long, so that the file never has parts of two numbers.
        self.file.write_all_at(text(position).as_bytes(), 0)
    }
}

/// A file's content.
pub(crate) fn text(position: u64) -> String {
    format!("{position:020}\n")
}

/// The position in a file's content; `None` when it has none.
pub(crate) fn parse(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_number_is_in_the_file_whatever_was_there_before() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store-position");
        let read = || parse(&std::fs::read_to_string(&path).unwrap());
        std::fs::write(&path, "what somebody wrote into it, which is long").unwrap();
        let mut acknowledged = Acknowledged::begin(&path, 7).unwrap();
        assert_eq!(read(), Some(7));
        acknowledged.note(u64::MAX);
        assert_eq!(read(), Some(u64::MAX));
        acknowledged.note(8);
        acknowledged.settle();
        assert_eq!(read(), Some(8));
    }
}

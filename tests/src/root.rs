//! The temporary folder that holds all state of a system under test. `KAGE_KEEP=1` keeps it; the
//! processes that work in it are always killed.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::process::kill_processes_of;

/// A temporary folder. Dropping it kills the processes that work in it.
#[derive(Debug)]
pub struct Root {
    path: PathBuf,
    // Removes the folder when it is dropped, unless it is to be kept.
    _temporary: Option<TempDir>,
}

impl Root {
    #[must_use]
    pub fn new(prefix: &str) -> Self {
        let temporary = tempfile::Builder::new().prefix(prefix).tempdir();
        let temporary = temporary.expect("a temporary directory can be made");
        if std::env::var_os("KAGE_KEEP").is_some_and(|keep| keep == "1") {
            let path = temporary.keep();
            eprintln!("KAGE_KEEP=1: state is kept in {}", path.display());
            Self { path, _temporary: None }
        } else {
            Self {
                path: temporary.path().to_owned(),
                _temporary: Some(temporary),
            }
        }
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        kill_processes_of(&self.path);
    }
}

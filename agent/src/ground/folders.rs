//! Folders of an agent's state: which there are, and removing one with all its content.

use std::path::{Path, PathBuf};

use kage_core::cause::chain;

/// The folders directly in `dir`; empty when it does not exist.
pub(crate) fn folders(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return Vec::new();
    };
    entries
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
        .collect()
}

/// Removes a folder with all its content; it may be gone already.
pub(crate) async fn remove_folder(path: PathBuf) {
    let removing = tokio::task::spawn_blocking(move || remove_folder_now(&path));
    if let Err(error) = removing.await {
        tracing::warn!(%error, "folder was not removed");
    }
}

/// The same, blocking.
pub(crate) fn remove_folder_now(path: &Path) {
    if let Err(error) = kage_git::removal::remove_folder(path) {
        tracing::warn!(error = chain(&error), "folder was not removed");
    }
}

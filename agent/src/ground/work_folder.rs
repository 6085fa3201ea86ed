//! The folder of a worktree in which programs of an attempt run. Files are another's work: a link in
//! the folder's place would lead out of the worktree, so none is followed.

use std::io;
use std::path::{Path, PathBuf};

use kage_core::folder::Folder;

/// Why there is no such folder.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoFolder {
    /// Something else has its place.
    #[error("{path} is not a folder any more")]
    Taken {
        /// Relative to the top of the worktree.
        path: String,
    },
    #[error("the folder {path} cannot be entered")]
    Io {
        path: String,
        #[source]
        source: io::Error,
    },
}

/// The path of the folder in a worktree. It is made when it is missing: git keeps no empty folders.
///
/// Blocking.
pub(crate) fn enter(worktree: &Path, folder: Option<&Folder>) -> Result<PathBuf, NoFolder> {
    let mut here = worktree.to_owned();
    for name in folder.into_iter().flat_map(Folder::names) {
        here.push(name);
        let shown = || here.strip_prefix(worktree).unwrap_or(&here).display().to_string();
        let failed = |source| NoFolder::Io { path: shown(), source };
        match std::fs::symlink_metadata(&here) {
            Ok(meta) if meta.is_dir() => {}
            Ok(_) => return Err(NoFolder::Taken { path: shown() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => std::fs::create_dir(&here).map_err(failed)?,
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(here)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn makes_what_is_missing_and_follows_no_link() {
        let top = tempfile::tempdir().unwrap();
        let folder: Folder = "packages/web".parse().unwrap();
        assert_eq!(enter(top.path(), None).unwrap(), top.path());
        let web = top.path().join("packages/web");
        for _ in 0..2 {
            assert_eq!(enter(top.path(), Some(&folder)).unwrap(), web);
            assert!(web.is_dir());
        }
        std::fs::remove_dir(&web).unwrap();
        std::os::unix::fs::symlink("/tmp", &web).unwrap();
        let refused = enter(top.path(), Some(&folder)).unwrap_err();
        assert_eq!(refused.to_string(), "packages/web is not a folder any more");
        std::fs::remove_dir_all(top.path().join("packages")).unwrap();
        std::fs::write(top.path().join("packages"), "").unwrap();
        let refused = enter(top.path(), Some(&folder)).unwrap_err();
        assert_eq!(refused.to_string(), "packages is not a folder any more");
    }
}

//! A person's own repository, found and described but never changed here.
use std::path::{Path, PathBuf};

use crate::error::GitError;

/// A person's repository.
#[derive(Debug, Clone)]
pub struct UserRepo {
    root: PathBuf,
}

/// Says why no repository was found.
#[derive(Debug, thiserror::Error)]
pub enum DiscoverError {
    /// There is none here or above.
    #[error("{} is not inside a git repository", path.display())]
    NotARepository {
        /// Where the search began.
        path: PathBuf,
    },
    /// A bare repository has no files to work on.
    #[error("{} is a bare repository; run this in a checkout", path.display())]
    Bare {
        /// The repository.
        path: PathBuf,
    },
    /// Only SHA-1 repositories are supported.
    #[error("the repository uses the object format {format}; only sha1 is supported")]
    ObjectFormat {
        /// What it uses.
        format: String,
    },
    /// git failed.
    #[error("could not look at the repository")]
    Git(#[from] GitError),
}

impl UserRepo {
    /// Finds the repository that `path` is in.
    ///
    /// # Errors
    /// When there is none that can be worked on.
    pub async fn discover(path: &Path) -> Result<Self, DiscoverError> {
        let _ = path;
        unimplemented!("next push")
    }

    /// The top folder of its working tree, absolute.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A short name for people: the top folder's. Not unique, and not yet a `RepositoryName`.
    #[must_use]
    pub fn name(&self) -> String {
        unimplemented!("next push")
    }
}

//! What a copy of the person's index names.

use git2::Index;

use crate::error::{GitError, blocking};
use crate::objects::mode;
use crate::shadow::Shadow;
use crate::staging::split;

/// What the index names.
#[derive(Debug, Default)]
pub(super) struct Tracked {
    pub(super) paths: Vec<Vec<u8>>,
    pub(super) has_submodules: bool,
}

impl Tracked {
    pub(super) async fn of(shadow: &Shadow) -> Result<Self, GitError> {
        let index = shadow.index();
        let read = blocking("reading an index", move || {
            let mut tracked = Self::default();
            for entry in Index::open(&index).map_err(GitError::library("read an index"))?.iter() {
                tracked.add(&entry.path, entry.mode == mode::SUBMODULE);
            }
            Ok::<_, GitError>(tracked)
        });
        match read.await {
            Ok(tracked) => Ok(tracked),
            // Only git knows a split index, a sparse one, and what comes after them.
            Err(_) => Self::listed(shadow).await,
        }
    }

    async fn listed(shadow: &Shadow) -> Result<Self, GitError> {
        let listed = shadow.git("ls-files").args(["--stage", "-z"]).run().await?;
        let mut tracked = Self::default();
        for entry in split(&listed) {
            // "mode id stage TAB path"
            let tab = entry.iter().position(|byte| *byte == b'\t');
            let (_, path) = entry.split_at(tab.ok_or_else(|| GitError::unexpected("ls-files", entry))? + 1);
            tracked.add(path, entry.starts_with(b"160000"));
        }
        Ok(tracked)
    }

    fn add(&mut self, path: &[u8], is_submodule: bool) {
        self.has_submodules |= is_submodule;
        self.paths.push(path.to_owned());
    }
}

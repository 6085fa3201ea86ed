//! The last steps of a merge, when its files are written: the index, and the branch or what git keeps
//! of a merge in progress. All of them or none.

use std::fs;
use std::io;
use std::path::Path;

use kage_core::id::Oid;

use super::Merged;
use super::index::{IndexLock, replace};
use super::person::Person;
use crate::error::GitError;
use crate::user_repo::UserRepo;

/// The steps after the files are written.
pub(super) struct Finish<'a> {
    pub(super) repository: &'a UserRepo,
    pub(super) person: &'a Person<'a>,
    pub(super) head: &'a Oid,
    pub(super) message: &'a str,
    /// The other parent of the commit that the person will make.
    pub(super) merge_head: Option<&'a Oid>,
    pub(super) old_index: Option<&'a [u8]>,
    pub(super) new_index: &'a [u8],
    pub(super) end: &'a Merged,
}

impl Finish<'_> {
    pub(super) async fn run(self, index: &IndexLock) -> Result<(), GitError> {
        index.replace(Some(self.new_index))?;
        let ended = self.end().await;
        if ended.is_err() {
            index.replace(self.old_index)?;
        }
        ended
    }

    async fn end(&self) -> Result<(), GitError> {
        let git_dir = self.repository.git_dir();
        match self.end {
            Merged::Committed(commit) => {
                let update = self.repository.git("update-ref");
                let update = update.args(["-m", "kage merge", "HEAD", commit.as_str(), self.head.as_str()]);
                self.person.logs(update).run().await.map(drop)
            }
            Merged::LeftConflicts => {
                let head = self.merge_head.map(|change| format!("{change}\n"));
                let mut files = vec![("MERGE_MSG", self.message.as_bytes())];
                // Otherwise the person's commit would have HEAD as its only parent.
                if let Some(head) = &head {
                    files.extend([("MERGE_MODE", &b""[..]), ("MERGE_HEAD", head.as_bytes())]);
                }
                leave(git_dir, &files)
            }
            Merged::AlreadyThere => Ok(()),
        }
    }
}

/// Writes the files that describe an operation in progress, all or none: a single one would confuse
/// the person's next commit.
fn leave(git_dir: &Path, files: &[(&str, &[u8])]) -> Result<(), GitError> {
    let mut before = Vec::new();
    for (name, content) in files {
        before.push((git_dir.join(name), fs::read(git_dir.join(name)).ok()));
        let Err(error) = replace(git_dir, name, content) else {
            continue;
        };
        for (path, was) in before {
            let back = match was {
                Some(was) => fs::write(&path, was),
                None => fs::remove_file(&path),
            };
            match back {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(%error, path = %path.display(), "what a merge said of itself stays");
                }
                Ok(()) | Err(_) => {}
            }
        }
        return Err(error);
    }
    Ok(())
}

//! What a person's git ignores by files that are not in the repository: their own core.excludesFile and
//! the repository's info/exclude. As text, because it goes along with a task. A repository of unknown
//! origin may name any file as its excludes, which then would be sent: only the person's own
//! configuration counts.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use kage_core::task::{MAX_EXCLUDES_BYTES, joined_excludes};

use super::UserRepo;
use crate::error::{GitError, blocking};

/// The most bytes that are read of a file of patterns.
const MAX_READ: u64 = 1 << 20;

/// The patterns, and what of them cannot go along.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Excludes {
    /// One a line, the ones that count least first.
    pub patterns: String,
    /// Files whose patterns are not among them, and why.
    pub unused: Vec<(PathBuf, UnusedExcludes)>,
}

/// Why the patterns of a file cannot go along.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UnusedExcludes {
    /// They are more than a task may have.
    #[error("its patterns have more than {MAX_EXCLUDES_BYTES} bytes together")]
    TooLarge,
    /// They are not text.
    #[error("it is not UTF-8")]
    NotText,
    /// The file system refuses.
    #[error("it cannot be read")]
    Unreadable,
}

impl UserRepo {
    /// What the person's git ignores besides what the repository's .gitignore files say.
    ///
    /// # Errors
    /// When this process ends.
    pub async fn excludes(&self) -> Result<Excludes, GitError> {
        let own = self.settings.own_excludes_file.clone();
        let of_repository = self.common_dir.join("info/exclude");
        blocking("reading the files of excludes", move || {
            let mut found = Excludes::default();
            // A link in a repository of unknown origin could lead to any file.
            let is_file = fs::symlink_metadata(&of_repository).is_ok_and(|meta| meta.is_file());
            let files = own.into_iter().chain(is_file.then_some(of_repository));
            for path in files {
                match read(&path) {
                    Ok(None) => {}
                    Ok(Some(text)) => {
                        let joined = joined_excludes([found.patterns.as_str(), &text]);
                        if joined.len() > MAX_EXCLUDES_BYTES {
                            found.unused.push((path, UnusedExcludes::TooLarge));
                        } else {
                            found.patterns = joined;
                        }
                    }
                    Err(why) => found.unused.push((path, why)),
                }
            }
            Ok(found)
        })
        .await
    }
}

/// The text of a file; `None` when there is none.
fn read(path: &Path) -> Result<Option<String>, UnusedExcludes> {
    // A pipe would wait for whoever writes to it.
    if !fs::metadata(path).is_ok_and(|meta| meta.is_file()) {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|_| UnusedExcludes::Unreadable)?;
    let read = file.take(MAX_READ + 1).read_to_end(&mut bytes);
    read.map_err(|_| UnusedExcludes::Unreadable)?;
    if bytes.len() as u64 > MAX_READ {
        return Err(UnusedExcludes::TooLarge);
    }
    String::from_utf8(bytes).map(Some).map_err(|_| UnusedExcludes::NotText)
}

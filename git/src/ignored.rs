//! Which paths of a worktree git ignores, as git itself decides: by .gitignore files, by the person's
//! excludes, which are those of the private git directory (info/exclude), and by the session's own.
//! Results and checkpoints both use this, so that they hold the same files.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use crate::error::GitError;
use crate::shadow::Shadow;
use crate::staging::{lines, split};

/// The file in which tools hide their own files without touching the project's .gitignore.
const OWN_EXCLUDE: &str = ".git/info/exclude";

/// The session's own exclude file, relative to the top of its worktree; `None` when it is not a
/// regular file.
pub(crate) fn own_exclude(root: &Path) -> Option<&'static str> {
    let is_file = fs::symlink_metadata(root.join(OWN_EXCLUDE)).is_ok_and(|meta| meta.is_file());
    is_file.then_some(OWN_EXCLUDE)
}

/// The ignored ones of `paths`, which are relative to `root`. `shadow` is over `root`.
pub(crate) async fn ignored(
    shadow: &Shadow,
    root: &Path,
    paths: &[impl AsRef<[u8]>],
) -> Result<HashSet<Vec<u8>>, GitError> {
    // `:name` alone would be a pattern, possibly of a kind that git does not know.
    let plain = |path: &[u8]| [b"./", path].concat();
    let list: Vec<Vec<u8>> = paths.iter().map(|path| plain(path.as_ref())).collect();
    let mut command = shadow
        .git("check-ignore")
        .args(["--no-index", "-z", "--stdin"])
        // With the base's submodules in the index, git would refuse files in them.
        .env("GIT_INDEX_FILE", shadow.git_dir().join("no-index"))
        .stdin(lines(&list));
    if let Some(own) = own_exclude(root) {
        command = command.config("core.excludesFile", own);
    }
    let output = command.run_or_no().await?.unwrap_or_default();
    let path = |path: &[u8]| path.strip_prefix(b"./").unwrap_or(path).to_vec();
    Ok(split(&output).map(path).collect())
}

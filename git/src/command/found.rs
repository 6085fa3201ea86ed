//! The file of this machine's `git`, found once.

use std::ffi::{OsStr, OsString};
use std::sync::OnceLock;

use crate::executable::{Executable, is_ours, search_folders};

/// This machine's git, found in the PATH of this process at the first use, and the PATH for
/// programs that git starts: folders that only the system can write come first.
pub(crate) fn found() -> (&'static Option<Executable>, &'static OsStr) {
    static FOUND: OnceLock<(Option<Executable>, OsString)> = OnceLock::new();
    let (git, path) = FOUND.get_or_init(|| {
        let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
        let folders = search_folders(&path, &[]);
        let git = Executable::find(OsStr::new("git"), &folders);
        let (ours, systems): (Vec<_>, Vec<_>) = folders.into_iter().partition(|folder| is_ours(folder));
        // No folder has a separator in its name: it came out of a PATH.
        let path = std::env::join_paths(systems.into_iter().chain(ours)).unwrap_or_default();
        (git, path)
    });
    (git, path)
}

//! Which other programs have a file open, for error messages. Unknown where the system does not report it
//! (not Linux, or another user's process).

use std::path::Path;

/// The most that are named.
const NAMED: usize = 3;

/// The other programs that have a file open, in words.
pub(super) fn of(path: &Path) -> String {
    let mut found = all(path).unwrap_or_default();
    if found.is_empty() {
        return "another program".to_owned();
    }
    let more = found.len().saturating_sub(NAMED);
    found.truncate(NAMED);
    match more {
        0 => found.join(", "),
        more => format!("{} and {more} more", found.join(", ")),
    }
}

fn all(path: &Path) -> std::io::Result<Vec<String>> {
    let path = path.canonicalize()?;
    let mut found = Vec::new();
    for process in std::fs::read_dir("/proc")?.flatten() {
        let name = process.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // Open files of other users' processes are not shown.
        let mut open = std::fs::read_dir(process.path().join("fd"))
            .into_iter()
            .flatten()
            .flatten();
        let has_it = open.any(|file| std::fs::read_link(file.path()).is_ok_and(|target| target == path));
        if has_it && pid != std::process::id() {
            let name = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            found.push(format!("{} (process {pid})", name.trim()));
        }
    }
    Ok(found)
}

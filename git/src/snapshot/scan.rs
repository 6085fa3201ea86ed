//! One look at a person's tree: what differs from HEAD and from their index, and what is in neither.
//! git looks at every file for it once; what it says decides on everything else in a snapshot.

use crate::error::GitError;
use crate::shadow::Shadow;
use crate::staging::{Changes, split};

/// The state of the files, next to HEAD and a copy of the index.
#[derive(Debug, Default)]
pub(super) struct Scanned {
    /// Paths of a merge that is not finished.
    pub(super) unmerged: Vec<Vec<u8>>,
    /// What differs from the index.
    pub(super) changes: Changes,
    /// Whether the index differs from HEAD.
    pub(super) staged: bool,
    /// Folders that git could not look into.
    pub(super) closed: Vec<Vec<u8>>,
}

impl Scanned {
    /// Looks at all files.
    pub(super) async fn of(shadow: &Shadow) -> Result<Self, GitError> {
        let (status, complaints) = shadow
            .git("status")
            .args([
                "--porcelain=v2",
                "-z",
                "--untracked-files=all",
                "--ignore-submodules=dirty",
                "--no-renames",
            ])
            // The index is written only when something is put into it.
            .env("GIT_OPTIONAL_LOCKS", "0")
            .run_with_complaints()
            .await?;
        let mut scanned = Self::parse(&status)?;
        scanned.closed = closed_folders(&complaints);
        Ok(scanned)
    }

    /// Reads `? path`, `1 XY <6 fields> path` and `u XY <8 fields> path`, each with a NUL at its end.
    fn parse(status: &[u8]) -> Result<Self, GitError> {
        let unexpected = || GitError::unexpected("status", status);
        let mut scanned = Self::default();
        for line in split(status) {
            let fields = match line.first() {
                Some(b'?') => 2,
                Some(b'1') => 9,
                Some(b'u') => 11,
                Some(_) | None => return Err(unexpected()),
            };
            let mut parts = line.splitn(fields, |byte| *byte == b' ');
            let state = parts.nth(1).ok_or_else(unexpected)?;
            if fields == 2 {
                scanned.changes.untracked.push(state.to_owned());
                continue;
            }
            let path = parts.nth(fields - 3).ok_or_else(unexpected)?.to_owned();
            let &[in_index, on_disk] = state else {
                return Err(unexpected());
            };
            if fields == 11 {
                scanned.unmerged.push(path);
                continue;
            }
            scanned.staged |= in_index != b'.';
            match on_disk {
                b'.' => {}
                b'D' => scanned.changes.gone.push(path),
                _ => scanned.changes.modified.push(path),
            }
        }
        Ok(scanned)
    }
}

/// The folders that git says it could not open: what is in them is not in its list.
fn closed_folders(complaints: &[u8]) -> Vec<Vec<u8>> {
    let folder = |line: &[u8]| {
        let rest = line.strip_prefix(b"warning: could not open directory '")?;
        // The path may have a quote, what git adds has none.
        let end = rest.windows(3).rposition(|ending| ending == b"': ")?;
        Some(rest.get(..end)?.to_owned())
    };
    complaints.split(|byte| *byte == b'\n').filter_map(folder).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_that_git_could_not_open_are_told() {
        let complaints = b"warning: could not open directory 'a's/': Permission denied\nwarning: other\n\
            warning: could not open directory 'caf\xe9/': Permission denied\n";
        assert_eq!(closed_folders(complaints), [b"a's/".to_vec(), b"caf\xe9/".to_vec()]);
        assert!(closed_folders(b"").is_empty());
    }

    #[test]
    fn every_kind_of_line_is_read_and_an_unknown_one_refused() {
        let (mode, id) = ("100644", "1".repeat(40));
        let changed = |state: &str, path: &str| format!("1 {state} N... {mode} {mode} {mode} {id} {id} {path}\0");
        let unmerged = format!("u UU N... {mode} {mode} {mode} {mode} {id} {id} {id} with space\0");
        let text = [
            changed(".M", "a b"),
            changed(".D", "gone"),
            changed(".T", "link"),
            changed("M.", "staged"),
            unmerged,
            "? new file\0? nested/\0".to_owned(),
        ];
        let scanned = Scanned::parse(text.concat().as_bytes()).unwrap();
        assert_eq!(scanned.changes.modified, [b"a b".to_vec(), b"link".to_vec()]);
        assert_eq!(scanned.changes.gone, [b"gone"]);
        assert_eq!(scanned.changes.untracked, [b"new file".to_vec(), b"nested/".to_vec()]);
        assert_eq!(scanned.unmerged, [b"with space"]);
        assert!(scanned.staged);
        assert!(!Scanned::parse(changed(".M", "a").as_bytes()).unwrap().staged);
        for wrong in ["2 R. x\0", "1 .M short\0", "# branch.oid x\0", "?\0"] {
            assert!(Scanned::parse(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }
}

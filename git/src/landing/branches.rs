//! The branches of a person's repository: which there are, where one points, and whether files of a
//! working tree belong to it, so that moving it would leave them behind.

use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use kage_core::id::Oid;

use crate::command::parse_oid;
use crate::error::GitError;
use crate::staging::split;
use crate::user_repo::UserRepo;

const HEADS: &str = "refs/heads/";

/// The name of a local branch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Branch(String);

impl Branch {
    /// Reads a name, short or from `refs/heads/` on.
    ///
    /// # Errors
    /// When git takes no such name.
    pub fn parse(name: &str) -> Result<Self, GitError> {
        let short = name.strip_prefix(HEADS).unwrap_or(name);
        match git2::Branch::name_is_valid(short) {
            Ok(true) => Ok(Self(short.to_owned())),
            Ok(false) | Err(_) => Err(GitError::ReferenceName {
                name: name.chars().take(100).collect(),
            }),
        }
    }

    /// The name as people type it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The whole name of the reference.
    #[must_use]
    pub fn reference(&self) -> String {
        format!("{HEADS}{}", self.0)
    }

    /// The branch that this is another name of, which is nearly always itself.
    pub(super) async fn resolved(&self, repository: &UserRepo) -> Result<Self, GitError> {
        let target = repository
            .git("symbolic-ref")
            .args(["--quiet", &self.reference()])
            .run_or_no()
            .await?;
        let target = target.and_then(|name| String::from_utf8(name).ok());
        Ok(
            match target
                .as_deref()
                .map(str::trim_end)
                .and_then(|name| name.strip_prefix(HEADS))
            {
                Some(other) => Self(other.to_owned()),
                None => self.clone(),
            },
        )
    }

    /// Its commit; `None` when there is no such branch.
    ///
    /// # Errors
    /// When git fails.
    pub async fn tip(&self, repository: &UserRepo) -> Result<Option<Oid>, GitError> {
        commit_of(repository, &self.reference()).await
    }

    /// Where files belong to it; `None`: nowhere.
    pub(super) async fn held(&self, repository: &UserRepo) -> Result<Option<Held>, GitError> {
        let listed = repository
            .git("worktree")
            .args(["list", "--porcelain", "-z"])
            .run()
            .await?;
        if let Some(held) = listed_at(&listed, &self.reference()) {
            return Ok(Some(held));
        }
        let [common_dir, _] = repository.git_dirs();
        let mut places = vec![(common_dir.clone(), repository.home().to_owned())];
        // None: there are no linked working trees.
        for entry in fs::read_dir(common_dir.join("worktrees"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let Ok(link) = fs::read(entry.path().join("gitdir")) else {
                continue;
            };
            let link = Path::new(OsStr::from_bytes(link.trim_ascii_end()));
            places.push((entry.path(), link.parent().unwrap_or(link).to_owned()));
        }
        Ok(places
            .into_iter()
            .find_map(|(git_dir, at)| self.in_progress(&git_dir).map(|by| Held { at, by })))
    }

    /// The operation in a git directory that will write to the branch.
    fn in_progress(&self, git_dir: &Path) -> Option<HeldBy> {
        let has = |file: &str, name: &str| {
            fs::read(git_dir.join(file))
                .is_ok_and(|text| text.split(|byte| *byte == b'\n').any(|line| line == name.as_bytes()))
        };
        let reference = self.reference();
        if [
            "rebase-merge/head-name",
            "rebase-apply/head-name",
            "rebase-merge/update-refs",
        ]
        .iter()
        .any(|file| has(file, &reference))
        {
            Some(HeldBy::Rebase)
        } else if has("BISECT_START", &self.0) {
            Some(HeldBy::Bisect)
        } else {
            None
        }
    }
}

impl fmt::Display for Branch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where files belong to a branch, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// The top of the working tree.
    pub at: PathBuf,
    pub by: HeldBy,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeldBy {
    CheckedOut,
    /// It is checked out in a working tree whose folder is gone.
    Gone,
    Rebase,
    Bisect,
}

impl HeldBy {
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::CheckedOut => "checked out",
            Self::Gone => "checked out in a working tree that is gone, which was",
            Self::Rebase => "being rebased",
            Self::Bisect => "being bisected",
        }
    }
}

/// The names of the branches there are, of remotes too (`origin/main`).
pub(super) async fn names(repository: &UserRepo) -> Result<Vec<String>, GitError> {
    let listed = repository
        .git("for-each-ref")
        .args(["--format=%(refname)", HEADS, "refs/remotes/"])
        .run()
        .await?;
    let text = String::from_utf8_lossy(&listed);
    let short = |name: &str| {
        let short = name.strip_prefix(HEADS).or_else(|| name.strip_prefix("refs/remotes/"));
        short.unwrap_or(name).to_owned()
    };
    Ok(text
        .lines()
        .map(short)
        .filter(|name| !name.ends_with("/HEAD"))
        .collect())
}

/// The commit that a reference leads to; `None` when it leads to none.
///
/// # Errors
/// When git fails.
pub async fn commit_of(repository: &UserRepo, reference: &str) -> Result<Option<Oid>, GitError> {
    let found = repository
        .git("rev-parse")
        .args([
            "--quiet",
            "--verify",
            "--end-of-options",
            &format!("{reference}^{{commit}}"),
        ])
        .run_or_no()
        .await?;
    found.map(|output| parse_oid("rev-parse", &output)).transpose()
}

/// Where `git worktree list --porcelain -z` says that a branch is checked out.
fn listed_at(listed: &[u8], reference: &str) -> Option<Held> {
    let wanted = format!("branch {reference}");
    let mut found: Option<Held> = None;
    let mut at = PathBuf::new();
    // A working tree begins with its path; empty lines between them are of no use.
    for line in split(listed) {
        if let Some(path) = line.strip_prefix(b"worktree ") {
            if found.is_some() {
                break;
            }
            at = PathBuf::from(OsStr::from_bytes(path));
        } else if line == wanted.as_bytes() {
            found = Some(Held {
                at: at.clone(),
                by: HeldBy::CheckedOut,
            });
        } else if let (Some(found), true) = (&mut found, line.starts_with(b"prunable")) {
            found.by = HeldBy::Gone;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_branch_is_found_where_it_is_checked_out() {
        let listed = b"worktree /a\0HEAD 1\0branch refs/heads/main\0\0worktree /b c\0HEAD 2\0branch refs/heads/x\0prunable gone\0\0\
                       worktree /d\0HEAD 3\0detached\0\0";
        let at = |name: &str| listed_at(listed, name).map(|held| (held.at.display().to_string(), held.by));
        assert_eq!(at("refs/heads/main"), Some(("/a".to_owned(), HeldBy::CheckedOut)));
        assert_eq!(at("refs/heads/x"), Some(("/b c".to_owned(), HeldBy::Gone)));
        assert_eq!(at("refs/heads/mai"), None);
    }

    #[test]
    fn a_name_is_one_that_git_takes() {
        assert_eq!(Branch::parse("refs/heads/a/b").unwrap().as_str(), "a/b");
        for name in ["", "-x", "a..b", "a b", "x.lock", "@{-1}", "HEAD", "/a"] {
            assert!(Branch::parse(name).is_err(), "{name}");
        }
    }
}

//! The commits of a landing, and their messages. If the history of HEAD contains the base, the
//! session's change is a commit on the base that is merged with HEAD; otherwise it is one commit on
//! HEAD. A session's commits and its base never become parents by landing.

use std::path::Path;

use git2::{Oid as Id, Repository};
use kage_core::id::Oid;

use super::merge_tree::Landed;
use super::tree::{Changed, difference, tree_of};
use super::{LandedAs, PlannedPath};
use crate::command::GitCommand;
use crate::error::{GitError, blocking};
use crate::shadow::IDENTITY;
use crate::user_repo::{UserRepo, UserShadow};

/// The end of the year 2099: every git accepts dates until then.
const LAST_SECOND: i64 = 4_102_444_799;

/// The most paths that a message lists.
const LISTED_PATHS: usize = 20;

/// The message of the commits. Their author inserts the list of paths.
#[derive(Debug, Clone, Default)]
pub struct LandingMessage {
    /// The first line of the commit that has the change.
    pub subject: String,
    /// The first line of a merge commit.
    pub merge_subject: String,
    /// The text after the list of paths.
    pub body: String,
}

impl LandingMessage {
    fn of_change(&self, paths: &[PlannedPath]) -> String {
        self.under(&self.subject, paths)
    }

    fn of_merge(&self, paths: &[PlannedPath]) -> String {
        self.under(&self.merge_subject, paths)
    }

    fn under(&self, subject: &str, paths: &[PlannedPath]) -> String {
        format!("{subject}\n\n{}\n{}\n", listed(paths), self.body.trim_end())
    }
}

fn listed(paths: &[PlannedPath]) -> String {
    let mut text = String::new();
    for path in paths.iter().take(LISTED_PATHS) {
        let name: String = path.shown().replace(char::is_control, "\u{fffd}");
        // A committed path is a resolved one.
        let landed_as = match path.landed_as {
            LandedAs::Conflicted => LandedAs::Merged,
            other => other,
        };
        text += &format!("  {} {name}\n", landed_as.word());
    }
    if let Some(more) = paths.len().checked_sub(LISTED_PATHS).filter(|more| *more > 0) {
        text += &format!("  and {more} more\n");
    }
    text
}

/// The commits that a landing will make.
#[derive(Debug, Default)]
pub(super) struct Prepared {
    /// The session's change as a commit on the base, to be merged with HEAD; `None`: one commit on
    /// HEAD.
    pub(super) change: Option<Oid>,
    pub(super) message: String,
}

impl Prepared {
    /// Decides on the commits, and makes the one on the base.
    pub(super) async fn new(
        repository: &UserRepo,
        store: &UserShadow,
        landed: &Landed,
        message: &LandingMessage,
        paths: &[PlannedPath],
    ) -> Result<Self, GitError> {
        let change = if landed.base_in_history {
            let change = change_on_base(store, landed, message).await?;
            // The change landed before and was undone since, at least partly: merging it again
            // would change nothing.
            let known = is_in_history(repository, &change, &landed.head).await?;
            (!known).then_some(change)
        } else {
            None
        };
        let message = match change {
            Some(_) => message.of_merge(paths),
            None => message.of_change(paths),
        };
        Ok(Self { change, message })
    }

    /// The commit for HEAD, by the person.
    pub(super) async fn commit(
        &self,
        repository: &UserRepo,
        store: &UserShadow,
        head: &Oid,
        tree: Id,
    ) -> Result<Oid, GitError> {
        let (name, email) = repository.identity();
        let mut command = store.shadow.git("commit-tree").args(["-p", head.as_str()]);
        if let Some(change) = &self.change {
            command = command.args(["-p", change.as_str()]);
        }
        signed(command, name, email)
            .arg(tree.to_string())
            .stdin(self.message.as_str())
            .run_for_oid()
            .await
    }
}

/// Whether `head`'s history in the person's own repository has `commit`.
pub(super) async fn is_in_history(repository: &UserRepo, commit: &Oid, head: &Oid) -> Result<bool, GitError> {
    let there = repository
        .git("cat-file")
        .args(["-e", &format!("{commit}^{{commit}}")])
        .run_to_status()
        .await?;
    if !there {
        return Ok(false);
    }
    let answer = repository
        .git("merge-base")
        .args(["--is-ancestor", commit.as_str(), head.as_str()])
        .run_or_no()
        .await?;
    Ok(answer.is_some())
}

/// The session's change as a commit on the base, with the time of the result, so that it is always
/// the same commit.
async fn change_on_base(store: &UserShadow, landed: &Landed, message: &LandingMessage) -> Result<Oid, GitError> {
    let (git_dir, (base, result)) = (
        store.shadow.git_dir().to_owned(),
        (landed.base.clone(), landed.result.clone()),
    );
    let (tree, seconds, changed) = blocking("looking at a result", move || {
        look(&git_dir, &base, &result).map_err(GitError::library("look at a result"))
    })
    .await?;
    let paths: Vec<PlannedPath> = changed
        .iter()
        .map(|(path, change)| PlannedPath {
            path: path.clone(),
            landed_as: LandedAs::of(change.before.is_some(), change.after.is_some()),
        })
        .collect();
    let date = format!("@{seconds} +0000");
    let command = store.shadow.git("commit-tree").args(["-p", landed.base.as_str()]);
    signed(command, IDENTITY.0, IDENTITY.1)
        .env("GIT_AUTHOR_DATE", &date)
        .env("GIT_COMMITTER_DATE", &date)
        .arg(tree.to_string())
        .stdin(message.of_change(&paths))
        .run_for_oid()
        .await
}

fn look(git_dir: &Path, base: &Oid, result: &Oid) -> Result<(Id, i64, Changed), git2::Error> {
    let repository = Repository::open_bare(git_dir)?;
    let commit = repository.find_commit(Id::from_str(result.as_str())?)?;
    let changed = difference(&repository, tree_of(&repository, base)?, commit.tree_id())?;
    // A time that an agent wrote may have any value.
    let seconds = commit.time().seconds().clamp(0, LAST_SECOND);
    Ok((commit.tree_id(), seconds, changed))
}

fn signed(command: GitCommand, name: &str, email: &str) -> GitCommand {
    command
        .env("GIT_AUTHOR_NAME", name)
        .env("GIT_AUTHOR_EMAIL", email)
        .env("GIT_COMMITTER_NAME", name)
        .env("GIT_COMMITTER_EMAIL", email)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_names_what_changed_and_says_when_it_does_not_name_all() {
        let message = LandingMessage {
            subject: "mend it".to_owned(),
            merge_subject: "Merge: mend it".to_owned(),
            body: "by one\n".to_owned(),
        };
        let path = |number: usize| PlannedPath {
            path: format!("file\n{number}").into(),
            landed_as: LandedAs::Updated,
        };
        let one = message.of_change(&[path(1)]);
        assert_eq!(one, "mend it\n\n  updated file\u{fffd}1\n\nby one\n");
        let many: Vec<_> = (0..22).map(path).collect();
        let resolved = PlannedPath {
            landed_as: LandedAs::Conflicted,
            ..path(2)
        };
        assert!(message.of_merge(&[resolved]).contains("  merged file"));
        let many = message.of_merge(&many);
        assert!(many.starts_with("Merge: mend it\n\n  updated"), "{many}");
        assert!(many.contains("19\n  and 2 more\n\nby one\n"), "{many}");
    }
}

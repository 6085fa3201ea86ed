//! The commits of a landing, and their messages. If the history of HEAD contains the base, the
//! session's change is a commit on the base that is merged with HEAD; otherwise it is one commit on
//! HEAD. A session's commits and its base never become parents by landing. [`super::person`] makes
//! them.

use std::path::Path;

use git2::{Oid as Id, Repository};
use kage_core::id::Oid;

use super::merge_tree::Landed;
use super::person::{Content, Person};
use super::tree::{Changed, difference, tree_of};
use super::{LandedAs, LandingError, PlannedPath};
use crate::error::{GitError, blocking};
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
    change: Option<ChangeOnBase>,
    pub(super) message: String,
}

/// The session's change, with the time of the result.
#[derive(Debug)]
struct ChangeOnBase {
    base: Oid,
    tree: Id,
    written_at: i64,
    message: String,
}

impl Prepared {
    /// One commit, on a branch that is made for it.
    pub(super) fn single(message: &LandingMessage, paths: &[PlannedPath]) -> Self {
        Self {
            change: None,
            message: message.of_change(paths),
        }
    }

    /// Whether the commit has two parents.
    pub(super) const fn is_merge(&self) -> bool {
        self.change.is_some()
    }

    /// Decides on the commits.
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
            let landed_before = has_change(repository, &change, &landed.head).await?;
            (!landed_before).then_some(change)
        } else {
            None
        };
        let message = match change {
            Some(_) => message.of_merge(paths),
            None => message.of_change(paths),
        };
        Ok(Self { change, message })
    }

    /// Makes the commit on the base, if there will be one.
    pub(super) async fn commit_change(
        &self,
        person: &Person<'_>,
        store: &UserShadow,
    ) -> Result<Option<Oid>, LandingError> {
        let Some(change) = &self.change else {
            return Ok(None);
        };
        let content = Content {
            tree: change.tree,
            parents: &[&change.base],
            message: &change.message,
            written_at: Some(change.written_at),
        };
        person.commit(store, &content).await.map(Some)
    }

    /// Makes the commit for HEAD.
    pub(super) async fn commit(
        &self,
        person: &Person<'_>,
        store: &UserShadow,
        head: &Oid,
        tree: Id,
    ) -> Result<Oid, LandingError> {
        let change = self.commit_change(person, store).await?;
        let parents: Vec<&Oid> = [head].into_iter().chain(&change).collect();
        let content = Content {
            tree,
            parents: &parents,
            message: &self.message,
            written_at: None,
        };
        person.commit(store, &content).await
    }
}

/// Whether the same change on the same base is in the history of `head`, whoever made that commit.
async fn has_change(repository: &UserRepo, change: &ChangeOnBase, head: &Oid) -> Result<bool, GitError> {
    let since_base = repository
        .git("rev-list")
        .args(["--no-commit-header", "--format=%T %P", head.as_str()])
        .args(["--not", change.base.as_str()])
        .run()
        .await?;
    let wanted = format!("{} {}", change.tree, change.base);
    Ok(since_base
        .split(|byte| *byte == b'\n')
        .any(|line| line == wanted.as_bytes()))
}

/// Whether `head`'s history in the person's own repository has `commit`.
///
/// # Errors
/// When git fails.
pub async fn is_in_history(repository: &UserRepo, commit: &Oid, head: &Oid) -> Result<bool, GitError> {
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

async fn change_on_base(
    store: &UserShadow,
    landed: &Landed,
    message: &LandingMessage,
) -> Result<ChangeOnBase, GitError> {
    let (git_dir, (base, result)) = (
        store.shadow.git_dir().to_owned(),
        (landed.base.clone(), landed.result.clone()),
    );
    let (tree, written_at, changed) = blocking("looking at a result", move || {
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
    Ok(ChangeOnBase {
        base: landed.base.clone(),
        tree,
        written_at,
        message: message.of_change(&paths),
    })
}

fn look(git_dir: &Path, base: &Oid, result: &Oid) -> Result<(Id, i64, Changed), git2::Error> {
    let repository = Repository::open_bare(git_dir)?;
    let commit = repository.find_commit(Id::from_str(result.as_str())?)?;
    let changed = difference(&repository, tree_of(&repository, base)?, commit.tree_id())?;
    // A time that an agent wrote may have any value.
    let seconds = commit.time().seconds().clamp(0, LAST_SECOND);
    Ok((commit.tree_id(), seconds, changed))
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

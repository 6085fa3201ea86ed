//! Who makes the commits of a landing: the person. Their configuration and environment say who they
//! are, and whether and how commits are signed. Hooks are not run here.

use git2::Oid as Id;
use kage_core::id::Oid;

use super::LandingError;
use crate::command::GitCommand;
use crate::error::GitError;
use crate::shadow::IDENTITY;
use crate::user_repo::{UserRepo, UserShadow};

/// The person whose repository it is.
#[derive(Debug)]
pub(super) struct Person<'a> {
    repository: &'a UserRepo,
    /// Name and address, where git knows none: Kage's own.
    unknown: Option<(&'static str, &'static str)>,
    /// As git shows it: name, address, time.
    ident: String,
}

/// What a commit is of.
pub(super) struct Content<'a> {
    pub(super) tree: Id,
    pub(super) parents: &'a [&'a Oid],
    pub(super) message: &'a str,
    /// When it was written, in seconds since 1970; `None` = now.
    pub(super) written_at: Option<i64>,
}

impl<'a> Person<'a> {
    /// Asks git who the person is.
    pub(super) async fn of(repository: &'a UserRepo) -> Result<Self, LandingError> {
        let asked = repository.git_of_person("var").arg("GIT_COMMITTER_IDENT").run().await;
        match asked {
            Ok(ident) => Ok(Self {
                repository,
                unknown: None,
                ident: String::from_utf8_lossy(&ident).trim_end().to_owned(),
            }),
            // The person wants that no identity is made up.
            Err(error) if repository.wants_identity() => Err(refused(error)),
            Err(GitError::Failed { .. }) => Ok(Self {
                repository,
                unknown: Some(IDENTITY),
                ident: format!("{} <{}>", IDENTITY.0, IDENTITY.1),
            }),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes a commit among the objects of a private git directory.
    pub(super) async fn commit(&self, store: &UserShadow, content: &Content<'_>) -> Result<Oid, LandingError> {
        let mut command = self
            .repository
            .git_of_person("commit-tree")
            .env("GIT_OBJECT_DIRECTORY", store.shadow.git_dir().join("objects"));
        if let Some(seconds) = content.written_at {
            command = command.env("GIT_AUTHOR_DATE", format!("@{seconds} +0000"));
        }
        if let Some((name, email)) = self.unknown {
            command = named(command, "AUTHOR", name, email);
            command = named(command, "COMMITTER", name, email);
        }
        if self.repository.signs_commits() {
            command = command.arg("-S");
        }
        for parent in content.parents {
            command = command.args(["-p", parent.as_str()]);
        }
        command
            .arg(content.tree.to_string())
            .stdin(content.message)
            .run_for_oid()
            .await
            .map_err(refused)
    }

    /// Lets a command write their name into the log of a reference.
    pub(super) fn logs(&self, command: GitCommand) -> GitCommand {
        let (name, rest) = self.ident.split_once(" <").unwrap_or((&self.ident, ""));
        let (email, _time) = rest.split_once('>').unwrap_or((rest, ""));
        named(command, "COMMITTER", name, email)
    }
}

fn named(command: GitCommand, role: &str, name: &str, email: &str) -> GitCommand {
    command
        .env(&format!("GIT_{role}_NAME"), name)
        .env(&format!("GIT_{role}_EMAIL"), email)
}

/// What git itself says is the person's to mend.
fn refused(error: GitError) -> LandingError {
    match error {
        GitError::Failed { stderr, .. } => LandingError::NoCommit { said: stderr },
        other => other.into(),
    }
}

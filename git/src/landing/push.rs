//! Sends a branch to a remote of the person's, as their own `git push` would: with their settings,
//! credentials and keys. Their pre-push hook runs where they ask for hooks, and no other.

use kage_core::id::Oid;

use super::branches::{Branch, commit_of};
use crate::command::GitCommand;
use crate::error::GitError;
use crate::user_repo::UserRepo;

/// A remote of the person's repository, by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remote {
    pub name: String,
    /// Where `git push` goes, which may have credentials in it.
    pub url: String,
}

/// A branch of a remote, as this clone knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteBranch {
    /// Its name there: `main`.
    pub name: String,
    pub tip: Oid,
}

/// The remote that `git push` takes for a branch, and that named `upstream` where there is one besides.
///
/// # Errors
/// When git fails.
pub async fn remotes(repository: &UserRepo, branch: &Branch) -> Result<(Option<Remote>, Option<Remote>), GitError> {
    let names = typed(repository, "remote").run().await?;
    let names = String::from_utf8_lossy(&names).into_owned();
    let names: Vec<&str> = names.lines().collect();
    let mut chosen = None;
    for key in [
        format!("branch.{branch}.pushRemote"),
        "remote.pushDefault".to_owned(),
        format!("branch.{branch}.remote"),
    ] {
        let value = typed(repository, "config").args(["--get", &key]).run_or_no().await?;
        let value = value.map(|value| String::from_utf8_lossy(&value).trim_end().to_owned());
        // A remote may also be named by its URL, or be this repository.
        chosen = chosen.or(value.filter(|value| names.contains(&value.as_str())));
    }
    let usual = || {
        names.iter().find(|name| **name == "origin").or(match names.as_slice() {
            [only] => Some(only),
            _ => None,
        })
    };
    let chosen = chosen.or_else(|| usual().map(|name| (*name).to_owned()));
    let upstream = names.contains(&"upstream") && chosen.as_deref() != Some("upstream");
    let chosen = match chosen {
        Some(name) => Some(remote(repository, &name).await?),
        None => None,
    };
    let upstream = match upstream {
        true => Some(remote(repository, "upstream").await?),
        false => None,
    };
    Ok((chosen, upstream))
}

async fn remote(repository: &UserRepo, name: &str) -> Result<Remote, GitError> {
    let url = typed(repository, "remote")
        .args(["get-url", "--push", name])
        .run()
        .await?;
    Ok(Remote {
        name: name.to_owned(),
        url: String::from_utf8_lossy(&url).trim_end().to_owned(),
    })
}

/// The branch that a remote counts as its first, as far as this clone knows. Nobody is asked.
///
/// # Errors
/// When git fails.
pub async fn default_branch(repository: &UserRepo, remote: &Remote) -> Result<Option<RemoteBranch>, GitError> {
    let prefix = format!("refs/remotes/{}/", remote.name);
    let head = repository
        .git("symbolic-ref")
        .args(["--quiet", &format!("{prefix}HEAD")])
        .run_or_no()
        .await?;
    let head = head.map(|name| String::from_utf8_lossy(&name).trim_end().to_owned());
    let head = head.as_deref().and_then(|name| name.strip_prefix(&prefix));
    for name in head.into_iter().chain(["main", "master"]) {
        if let Some(tip) = commit_of(repository, &format!("{prefix}{name}")).await? {
            return Ok(Some(RemoteBranch {
                name: name.to_owned(),
                tip,
            }));
        }
    }
    Ok(None)
}

/// Pushes a branch to the same name; one that Kage made follows it from now on. What git says is for the
/// person.
///
/// # Errors
/// When git fails, which it has told.
pub async fn push(
    repository: &UserRepo,
    remote: &Remote,
    branch: &Branch,
    made: bool,
    hooks: bool,
) -> Result<(), GitError> {
    let mut command = typed(repository, "push");
    if made {
        command = command.arg("--set-upstream");
    }
    if !hooks {
        command = command.config("core.hooksPath", "/dev/null");
    }
    let reference = branch.reference();
    command
        .args(["--", &remote.name, &format!("{reference}:{reference}")])
        .run_openly()
        .await
}

fn typed(repository: &UserRepo, operation: &'static str) -> GitCommand {
    GitCommand::typed(operation, repository.root())
}

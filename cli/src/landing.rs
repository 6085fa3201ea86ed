//! Bringing a fetched result home, and saying what was done or what stands in the way.
//! What may be done is planned by `kage_git::landing`.

use std::pin::pin;

use kage_git::UserRepo;
use kage_git::landing::{self, ApplyPlan, LandedAs, LandingError, Obstacle, PlannedPath};
use kage_proto::v1;
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use crate::exit::{Exit, Refusal};
use crate::output::{Output, note};
use crate::result::FetchedResult;
use crate::view;

/// What was done, or would be.
#[derive(Debug, Serialize)]
struct LandedJson<'a> {
    task: &'a str,
    session: &'a str,
    /// The session's commit.
    commit: &'a str,
    /// False for a dry run.
    done: bool,
    /// The merge commit, when one was made.
    merge_commit: Option<String>,
    paths: Vec<PathJson<'a>>,
}

#[derive(Debug, Serialize)]
struct PathJson<'a> {
    path: &'a str,
    action: &'static str,
}

/// Puts a fetched result into the working tree and returns what was done.
///
/// # Errors
/// When it contradicts the person's work; nothing was changed then.
pub async fn land(repository: &UserRepo, fetched: &FetchedResult) -> anyhow::Result<Vec<PlannedPath>> {
    let plan = plan(repository, fetched).await?;
    let paths = plan.paths().to_vec();
    to_the_end(plan.execute()).await?;
    Ok(paths)
}

/// Waits for a plan that is being carried out: a Ctrl-C would leave the person's files half
/// written. A second one means it.
///
/// # Errors
/// When the plan fails.
pub async fn to_the_end<T>(executing: impl Future<Output = Result<T, LandingError>>) -> anyhow::Result<T> {
    let mut interrupts = signal(SignalKind::interrupt())?;
    let mut executing = pin!(executing);
    tokio::select! {
        done = &mut executing => return done.map_err(refusal),
        _ = interrupts.recv() => note("finishing what was begun; a second Ctrl-C leaves it half done"),
    }
    tokio::select! {
        done = &mut executing => done.map_err(refusal),
        _ = interrupts.recv() => Err(Refusal {
            exit: Exit::Interrupted,
            message: "interrupted; files may be half written".to_owned(),
        }
        .into()),
    }
}

/// Plans to put a fetched result into the working tree.
///
/// # Errors
/// When it contradicts the person's work.
pub async fn plan(repository: &UserRepo, fetched: &FetchedResult) -> anyhow::Result<ApplyPlan> {
    landing::plan_apply(repository, &fetched.mirror, &fetched.base, &fetched.commit)
        .await
        .map_err(refusal)
}

/// Says what was done, or would be.
///
/// # Errors
/// When standard output is closed.
pub fn tell(
    out: Output,
    task: &v1::Task,
    fetched: &FetchedResult,
    paths: &[PlannedPath],
    done: bool,
    merge_commit: Option<String>,
) -> anyhow::Result<()> {
    out.result(&LandedJson {
        task: &task.id,
        session: &fetched.session.name,
        commit: fetched.commit.as_str(),
        done,
        merge_commit: merge_commit.clone(),
        paths: paths
            .iter()
            .map(|p| PathJson {
                path: &p.path,
                action: action(p.landed_as),
            })
            .collect(),
    })?;
    out.text(&landed(fetched, paths, done, merge_commit.as_deref()))?;
    Ok(())
}

/// The same in words.
#[must_use]
pub fn landed(fetched: &FetchedResult, paths: &[PlannedPath], done: bool, merge_commit: Option<&str>) -> String {
    let verb = if done { "landed" } else { "would land" };
    let mut text = format!("{verb} the result of {}:\n", fetched.session.name);
    for path in paths {
        text += &format!("  {:<10} {}\n", action(path.landed_as), view::printable(&path.path));
    }
    if let Some(commit) = merge_commit {
        text += &format!("merge commit {commit}\n");
    }
    text
}

/// Conflicts and the like are the person's to settle; say each.
#[must_use]
pub fn refusal(error: LandingError) -> anyhow::Error {
    let list = |what: &str, obstacles: &[Obstacle], hint: &str| {
        let lines: Vec<String> = obstacles
            .iter()
            .map(|o| format!("  {}: {}", view::printable(&o.path), o.reason))
            .collect();
        format!("{what}, so nothing was changed:\n{}\n{hint}", lines.join("\n"))
    };
    let message = match &error {
        LandingError::Conflicts { conflicts } => list(
            "the result contradicts your work",
            conflicts,
            "commit or undo your changes to these paths, or use `kage merge --strategy theirs|manual`",
        ),
        LandingError::Dirty { paths } => list(
            "paths of the result have uncommitted changes",
            paths,
            "commit or stash them first, or use `kage apply`",
        ),
        LandingError::ChangedMeanwhile { .. }
        | LandingError::NotOnABranch
        | LandingError::InProgress { .. }
        | LandingError::Unrelated => error.to_string(),
        LandingError::Git(_) => return error.into(),
    };
    Refusal::usage(message).into()
}

const fn action(landed_as: LandedAs) -> &'static str {
    match landed_as {
        LandedAs::Created => "created",
        LandedAs::Updated => "updated",
        LandedAs::Merged => "merged",
        LandedAs::Deleted => "deleted",
        LandedAs::Conflicted => "conflicted",
        LandedAs::Unchanged => "unchanged",
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn interrupt() {
        let own = std::process::id();
        let sent = std::process::Command::new("kill")
            .args(["-INT", &own.to_string()])
            .status();
        assert!(sent.unwrap().success());
    }

    #[tokio::test]
    async fn what_was_begun_is_finished_unless_it_is_interrupted_twice() {
        let once = to_the_end(async {
            interrupt();
            Ok(7)
        });
        assert_eq!(once.await.unwrap(), 7);
        let twice = to_the_end::<()>(async {
            loop {
                interrupt();
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        let refused = twice.await.unwrap_err();
        let refused = refused.downcast_ref::<Refusal>().unwrap();
        assert_eq!(refused.exit, Exit::Interrupted);
    }
}

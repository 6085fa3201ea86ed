//! Bringing a fetched result home, and saying what was done or what stands in the way.
//! What may be done is planned by `kage_git::landing`.

use kage_git::UserRepo;
use kage_git::landing::{self, ApplyPlan, LandedAs, LandingError, Obstacle, PlannedPath};
use kage_proto::v1;
use serde::Serialize;

use crate::exit::Refusal;
use crate::output::Output;
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
    plan.execute().await.map_err(refusal)?;
    Ok(paths)
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

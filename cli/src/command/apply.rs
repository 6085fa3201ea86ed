//! `kage apply`: a session's change in the working tree. Planned whole before anything is
//! touched; index, HEAD and references stay as they are.

use kage_git::UserRepo;
use kage_git::landing::{self, ApplyPlan, LandedAs, LandingError, PlannedPath};
use kage_proto::v1;
use serde::Serialize;

use super::{Session, report, task};
use crate::args::Apply;
use crate::connect::Access;
use crate::exit::{Exit, Refusal};
use crate::output::Output;
use crate::result::{self, FetchedResult};
use crate::view;

/// What was done, or would be.
#[derive(Debug, Serialize)]
pub(super) struct LandedJson<'a> {
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

pub(super) async fn run(session: &Session, args: Apply) -> anyhow::Result<Exit> {
    let access = session.existing().await?;
    let task = task(&access, args.pick.task.clone()).await?;
    let fetched = pick(session, &access, &task, &args).await?;
    let repository = UserRepo::discover(&args.repo).await?;
    let paths = if args.dry_run {
        plan(&repository, &fetched).await?.paths().to_vec()
    } else {
        land(&repository, &fetched).await?
    };
    tell(session.out, &task, &fetched, &paths, !args.dry_run, None)?;
    Ok(Exit::Done)
}

/// Puts a fetched result into the working tree and returns what was done.
pub(crate) async fn land(repository: &UserRepo, fetched: &FetchedResult) -> anyhow::Result<Vec<PlannedPath>> {
    let plan = plan(repository, fetched).await?;
    let paths = plan.paths().to_vec();
    plan.execute().await.map_err(refusal)?;
    Ok(paths)
}

async fn plan(repository: &UserRepo, fetched: &FetchedResult) -> anyhow::Result<ApplyPlan> {
    landing::plan_apply(repository, &fetched.mirror, &fetched.base, &fetched.commit)
        .await
        .map_err(refusal)
}

/// The result asked for. One that verify did not pass has to be asked for expressly.
pub(super) async fn pick(
    session: &Session,
    access: &Access,
    task: &v1::Task,
    args: &Apply,
) -> anyhow::Result<FetchedResult> {
    let report = report(access, &task.id).await?.report.unwrap_or_default();
    let chosen = result::choose(&report, args.pick.session.as_deref())?;
    let has_verify = task
        .spec
        .as_ref()
        .and_then(|s| s.policy.as_ref())
        .and_then(|p| p.verify.as_ref())
        .is_some_and(|v| !v.verify.is_empty());
    if has_verify && chosen.state() != v1::SessionState::Verified && !args.unverified {
        let message = format!(
            "session {} is {}, not verified; --unverified lands it all the same",
            chosen.name,
            view::session_state(chosen.state())
        );
        return Err(Refusal::usage(message).into());
    }
    result::fetch(access, &session.state, task, chosen).await
}

/// Says what was done, or would be.
pub(super) fn tell(
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
pub(crate) fn landed(fetched: &FetchedResult, paths: &[PlannedPath], done: bool, merge_commit: Option<&str>) -> String {
    let verb = if done { "landed" } else { "would land" };
    let mut text = format!("{verb} the result of {}:\n", fetched.session.name);
    for path in paths {
        text += &format!("  {:<10} {}\n", action(path.landed_as), path.path);
    }
    if let Some(commit) = merge_commit {
        text += &format!("merge commit {commit}\n");
    }
    text
}

/// Conflicts and the like are the person's to settle; say each.
pub(super) fn refusal(error: LandingError) -> anyhow::Error {
    let list = |what: &str, obstacles: &[landing::Obstacle], hint: &str| {
        let lines: Vec<String> = obstacles
            .iter()
            .map(|o| format!("  {}: {}", o.path, o.reason))
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

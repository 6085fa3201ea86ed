//! `kage merge --into` and `--pr`: a session's result as a commit on a branch that is checked out nowhere,
//! and a pull request for it. It decides which branch that is and where a new one begins.

use kage_core::id::Oid;
use kage_git::UserRepo;
use kage_git::landing::push::{self, Remote, RemoteBranch};
use kage_git::landing::{self, Branch, Hook, LandingError, MergeEnd, Merged, Onto, Strategy};
use kage_proto::v1;

use super::compare;
use super::merge::short;
use crate::args::Merge;
use crate::connect::Access;
use crate::exit::{Exit, Refusal};
use crate::invocation::Invocation;
use crate::landing::remedy::{Asked, Way, shell, told};
use crate::landing::request::{Opened, PullRequest};
use crate::landing::{Landing, hooks, message, plan_into, tell, tell_hooks, tell_undo, to_the_end};
use crate::output::note;
use crate::result::FetchedResult;
use crate::tasks;
use crate::view;

/// Most characters of the words in the name of a branch.
const WORDS: usize = 40;

/// Where a pull request goes.
struct Destination {
    remote: Remote,
    upstream: Option<Remote>,
    first: Option<RemoteBranch>,
}

pub(super) async fn run(
    invocation: &Invocation,
    access: &Access,
    task: &v1::Task,
    repository: &UserRepo,
    fetched: &FetchedResult,
    strategy: Strategy,
    args: &Merge,
) -> anyhow::Result<Exit> {
    let branch = branch(repository, task, args.into.as_deref()).await?;
    let destination = match args.pr {
        true => Some(destination(repository, fetched, task, &branch).await?),
        false => None,
    };
    let start = match &destination {
        Some(to) if branch.tip(repository).await?.is_none() => {
            start(repository, fetched, task, to.first.as_ref()).await?
        }
        Some(_) | None => None,
    };
    let onto = Onto { branch, start };
    let message = message(task, fetched);
    let plan = plan_into(repository, fetched, strategy, &message, &onto).await?;
    let paths = plan.paths().to_vec();
    let (branch, before, end) = (plan.branch().clone(), plan.tip().cloned(), plan.end());
    let asked = Asked::Into(strategy, &onto);
    let (run, left) = hooks(repository, args.hooks, args.pr).await?;
    let needs_files = run.is_some_and(|run| !run.of_commit().is_empty()) && matches!(end, MergeEnd::Commit(_));
    if needs_files {
        let branch = branch.as_str().to_owned();
        told::<()>(repository, fetched, asked, Err(LandingError::HooksNeedFiles { branch })).await?;
    }
    let mut more = Landing {
        branch: Some(branch.as_str().to_owned()),
        ..Landing::default()
    };
    if args.land.dry_run {
        tell(&invocation.out, task, fetched, &paths, false, None, &more)?;
        return Ok(Exit::Done);
    }
    let merged = to_the_end(plan.execute()).await?;
    let commit = match told(repository, fetched, asked, merged).await? {
        Merged::Committed(commit) => Some(commit),
        Merged::LeftConflicts | Merged::AlreadyThere => None,
    };
    more.hooks_not_run = match commit {
        Some(_) => left,
        None => left.into_iter().filter(|name| *name == Hook::PrePush.name()).collect(),
    };
    more.undo = commit
        .as_ref()
        .map(|commit| undo(repository, fetched, &branch, before.as_ref(), commit));
    if commit.is_none() && onto.start.is_some() {
        tell(&invocation.out, task, fetched, &[], true, None, &Landing::default())?;
        note("the branch that a pull request would go into has this result already");
        return Ok(Exit::Done);
    }
    if let Some(to) = &destination {
        let report = tasks::report(access, &task.id).await?.report.unwrap_or_default();
        let request = PullRequest {
            repository,
            branch: &branch,
            remote: &to.remote,
            upstream: to.upstream.as_ref(),
            target: to.first.as_ref().map(|first| first.name.as_str()),
            title: &message.subject,
            body: &compare::markdown(&report),
            made: onto.start.is_some(),
            hooks: args.hooks,
        };
        let again = Way::new(repository, fetched).kage(asked);
        match request.open(&again).await? {
            Opened::Request(url) => more.pull_request = Some(url),
            Opened::Page(url) => more.open_at = Some(url),
            Opened::Nowhere => note(&format!(
                "{branch} is pushed to {}, which has no page to open a request on",
                to.remote.name
            )),
        }
    }
    tell(
        &invocation.out,
        task,
        fetched,
        &paths,
        true,
        commit.map(String::from),
        &more,
    )?;
    if let Some(url) = &more.pull_request {
        invocation.out.text(&format!("pull request {}", view::printable(url)))?;
    }
    if let Some(url) = &more.open_at {
        invocation.out.text(&format!("open the pull request at {url}"))?;
    }
    if more.undo.is_none() {
        note(&format!("{branch} has this result already"));
    }
    tell_hooks(&more.hooks_not_run);
    tell_undo(more.undo.as_deref());
    Ok(Exit::Done)
}

/// The branch that was named, or one that is named after the task.
async fn branch(repository: &UserRepo, task: &v1::Task, named: Option<&str>) -> anyhow::Result<Branch> {
    if let Some(name) = named {
        return Branch::parse(name).map_err(|_| {
            let name = view::printable(name);
            Refusal::usage(format!(
                "--into {name} is no name for a branch; `git branch` lists those there are"
            ))
            .into()
        });
    }
    let prompt = task.spec.as_ref().map_or("", |spec| spec.prompt.as_str());
    let words = format!("{}-{}", view::short_id(&task.id), slug(prompt));
    let words = words.trim_end_matches('-');
    // A branch of that name leaves no room for others below it.
    let is_taken = Branch::parse("kage")?.tip(repository).await?.is_some();
    let name = if is_taken {
        format!("kage-{words}")
    } else {
        format!("kage/{words}")
    };
    Ok(Branch::parse(&name)?)
}

/// The first words of a prompt, for a name.
fn slug(prompt: &str) -> String {
    let mut slug = String::new();
    for word in prompt
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty())
    {
        if slug.len() + word.len() > WORDS {
            break;
        }
        if !slug.is_empty() {
            slug.push('-');
        }
        slug += &word.to_ascii_lowercase();
    }
    slug
}

async fn destination(
    repository: &UserRepo,
    fetched: &FetchedResult,
    task: &v1::Task,
    branch: &Branch,
) -> anyhow::Result<Destination> {
    let (remote, upstream) = push::remotes(repository, branch).await?;
    let Some(remote) = remote else {
        let way = Way::new(repository, fetched);
        let start = start(repository, fetched, task, None).await?;
        let onto = Onto {
            branch: branch.clone(),
            start: None,
        };
        let merge = way.kage(Asked::Into(Strategy::Auto, &onto)).replacen(" --pr", "", 1);
        let make = match (branch.tip(repository).await?, start) {
            (None, Some(start)) => {
                let start = short(start.as_str());
                format!("{} && ", way.git(&format!("branch {} {start}", shell(branch.as_str()))))
            }
            (Some(_) | None, _) => String::new(),
        };
        return Err(Refusal::usage(format!(
            "this repository has no remote to push to; `git remote add origin URL` names one, and `{make}{merge}` puts \
             the commit on a branch here"
        ))
        .into());
    };
    let into = upstream.as_ref().unwrap_or(&remote);
    let mut first = push::default_branch(repository, into).await?;
    // Nothing was fetched from there yet.
    if first.is_none() && upstream.is_some() {
        first = push::default_branch(repository, &remote).await?;
    }
    Ok(Destination {
        remote,
        upstream,
        first,
    })
}

/// Where a new branch begins: at what the task began with, if the branch that a request goes into has
/// that; else at that branch, so that the request has nothing but the session's change.
async fn start(
    repository: &UserRepo,
    fetched: &FetchedResult,
    task: &v1::Task,
    first: Option<&RemoteBranch>,
) -> anyhow::Result<Option<Oid>> {
    if let Some(first) = first {
        let has = landing::is_in_history(repository, &fetched.base, &first.tip).await?;
        return Ok(Some(if has { fetched.base.clone() } else { first.tip.clone() }));
    }
    let beneath: Option<Oid> = task.origin.as_ref().and_then(|origin| origin.head.parse().ok());
    for commit in [Some(fetched.base.clone()), beneath].into_iter().flatten() {
        if repository.has_commit(&commit).await? {
            return Ok(Some(commit));
        }
    }
    Ok(repository.head().await?)
}

/// The command that puts the branch back to where it was.
fn undo(repository: &UserRepo, fetched: &FetchedResult, branch: &Branch, before: Option<&Oid>, commit: &Oid) -> String {
    let way = Way::new(repository, fetched);
    match before {
        Some(before) => {
            let (now, then) = (short(commit.as_str()), short(before.as_str()));
            way.git(&format!("update-ref {} {then} {now}", shell(&branch.reference())))
        }
        None => way.git(&format!("branch -D {}", shell(branch.as_str()))),
    }
}

#[cfg(test)]
mod tests {
    use super::slug;

    #[test]
    fn a_prompt_gives_a_name_for_a_branch() {
        assert_eq!(
            slug("Mend the *parser*:\n# and its tests"),
            "mend-the-parser-and-its-tests"
        );
        assert_eq!(slug("die Überprüfung"), "die-berpr-fung");
        assert_eq!(slug("日本"), "");
        assert!(slug(&"word ".repeat(100)).len() <= 60);
    }
}

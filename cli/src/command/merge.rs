//! `kage merge`: a session's result as a commit on the current branch. [`super::merge_into`] puts it on
//! another one.

use kage_git::UserRepo;
use kage_git::landing::{self, Branch, Merged, MovedSubmodule, push};

use super::apply::pick;
use super::merge_into;
use crate::args::{Merge, Strategy};
use crate::exit::Exit;
use crate::here::Here;
use crate::invocation::Invocation;
use crate::landing::remedy::{Asked, Way, shell, told};
use crate::landing::{Landing, hooks, message, plan_merge, tell, tell_hooks, tell_undo, to_the_end};
use crate::output::note;
use crate::tasks;
use crate::view;

pub(super) async fn run(invocation: &Invocation, args: Merge) -> anyhow::Result<Exit> {
    let access = invocation.existing().await?;
    let task = tasks::find_in(&access, args.land.pick.task.clone(), &args.land.repo).await?;
    let repository = UserRepo::discover(&args.land.repo).await?;
    Here::new(&repository, &access.machine).takes(&access, &task).await?;
    let mut fetched = pick(invocation, &access, &task, &args.land, "merge").await?;
    if args.hooks {
        fetched.merge_flags.push("--hooks");
    }
    if args.pr {
        fetched.merge_flags.push("--pr");
    }
    let strategy = match args.strategy {
        Strategy::Auto => landing::Strategy::Auto,
        Strategy::Theirs => landing::Strategy::Theirs,
        Strategy::Manual => landing::Strategy::Manual,
    };
    if args.pr || args.into.is_some() {
        return merge_into::run(invocation, &access, &task, &repository, &fetched, strategy, &args).await;
    }
    let mut plan = plan_merge(&repository, &fetched, strategy, &message(&task, &fetched)).await?;
    let paths = plan.paths().to_vec();
    if args.land.dry_run {
        tell(
            &invocation.out,
            &task,
            &fetched,
            &paths,
            false,
            None,
            &Landing::default(),
        )?;
        return Ok(Exit::Done);
    }
    let (run, left) = match plan.end() {
        landing::MergeEnd::Commit(_) => hooks(&repository, args.hooks, false).await?,
        landing::MergeEnd::AlreadyThere | landing::MergeEnd::LeaveConflicts => (None, Vec::new()),
    };
    if let Some(run) = run {
        plan = plan.with_hooks(run);
    }
    let submodules = plan.submodules().to_vec();
    let before = repository.head().await?;
    let merged = to_the_end(plan.execute()).await?;
    match told(&repository, &fetched, Asked::Merge(strategy), merged).await? {
        Merged::Committed(commit) => {
            let way = Way::new(&repository, &fetched);
            let undo = before.map(|before| way.git(&format!("reset --keep {}", short(before.as_str()))));
            let more = Landing {
                undo,
                hooks_not_run: left,
                ..Landing::default()
            };
            tell(
                &invocation.out,
                &task,
                &fetched,
                &paths,
                true,
                Some(commit.to_string()),
                &more,
            )?;
            tell_hooks(&more.hooks_not_run);
            tell_submodules(&way, &submodules);
            tell_undo(more.undo.as_deref());
            tell_default_branch(&repository).await?;
        }
        Merged::LeftConflicts => {
            tell(
                &invocation.out,
                &task,
                &fetched,
                &paths,
                true,
                None,
                &Landing::default(),
            )?;
            note("resolve the conflicts, then `git add` them and `git commit`; `git reset --merge` drops the attempt");
            return Ok(Exit::TaskFailed);
        }
        Merged::AlreadyThere => {
            tell(&invocation.out, &task, &fetched, &[], true, None, &Landing::default())?;
            note("the branch has this result already");
        }
    }
    Ok(Exit::Done)
}

/// Warns that the commit is on the branch that others begin at: it is theirs with the next push.
async fn tell_default_branch(repository: &UserRepo) -> anyhow::Result<()> {
    let Some(name) = repository.branch().await? else {
        return Ok(());
    };
    let name = String::from_utf8_lossy(&name).trim_end().to_owned();
    let Ok(branch) = Branch::parse(&name) else {
        return Ok(());
    };
    let (remote, upstream) = push::remotes(repository, &branch).await?;
    let Some(remote) = upstream.or(remote) else {
        return Ok(());
    };
    let first = push::default_branch(repository, &remote).await?;
    if first.is_some_and(|first| name.strip_prefix("refs/heads/") == Some(first.name.as_str())) {
        let shown = view::printable(branch.as_str());
        note(&format!(
            "warning: {shown} is the default branch of {}; `kage merge --into BRANCH` or `--pr` lands beside it",
            view::printable(&remote.name)
        ));
    }
    Ok(())
}

/// Only git itself brings along what is checked out in them.
fn tell_submodules(way: &Way<'_>, moved: &[MovedSubmodule]) {
    for submodule in moved {
        let path = submodule.path.to_string_lossy();
        let shown = view::printable(&path);
        match &submodule.commit {
            Some(commit) => {
                let commit = short(commit.as_str());
                let command = way.git(&format!("submodule update --init -- {}", shell(&path)));
                note(&format!(
                    "submodule {shown} is recorded at {commit} now; `{command}` checks it out"
                ));
            }
            None => note(&format!(
                "submodule {shown} is no longer recorded; what is in its folder stays"
            )),
        }
    }
}

/// As much of a commit's id as nothing else begins with.
pub(super) fn short(commit: &str) -> &str {
    commit.get(..16).unwrap_or(commit)
}

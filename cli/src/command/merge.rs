//! `kage merge`: a session's result as a commit on the current branch.

use kage_git::UserRepo;
use kage_git::landing::{self, Merged};

use super::apply::pick;
use crate::args::{Merge, Strategy};
use crate::exit::Exit;
use crate::here::Here;
use crate::invocation::Invocation;
use crate::landing::remedy::{Asked, told};
use crate::landing::{message, plan_merge, tell, to_the_end};
use crate::output::note;
use crate::tasks;

pub(super) async fn run(invocation: &Invocation, args: Merge) -> anyhow::Result<Exit> {
    let access = invocation.existing().await?;
    let task = tasks::find_in(&access, args.apply.pick.task.clone(), &args.apply.repo).await?;
    let repository = UserRepo::discover(&args.apply.repo).await?;
    Here::new(&repository, &access.machine).takes(&access, &task).await?;
    let fetched = pick(invocation, &access, &task, &args.apply, "merge").await?;
    let strategy = match args.strategy {
        Strategy::Auto => landing::Strategy::Auto,
        Strategy::Theirs => landing::Strategy::Theirs,
        Strategy::Manual => landing::Strategy::Manual,
    };
    let plan = plan_merge(&repository, &fetched, strategy, &message(&task, &fetched)).await?;
    let paths = plan.paths().to_vec();
    if args.apply.dry_run {
        tell(invocation.out, &task, &fetched, &paths, false, None)?;
        return Ok(Exit::Done);
    }
    let merged = to_the_end(plan.execute()).await?;
    match told(&repository, &fetched, Asked::Merge(strategy), merged).await? {
        Merged::Committed(commit) => tell(invocation.out, &task, &fetched, &paths, true, Some(commit.to_string()))?,
        Merged::LeftConflicts => {
            tell(invocation.out, &task, &fetched, &paths, true, None)?;
            note("resolve the conflicts, then `git add` them and `git commit`; `git reset --merge` drops the attempt");
            return Ok(Exit::TaskFailed);
        }
        Merged::AlreadyThere => {
            tell(invocation.out, &task, &fetched, &[], true, None)?;
            note("the branch has this result already");
        }
    }
    Ok(Exit::Done)
}

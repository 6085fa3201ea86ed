//! `kage merge`: a session's result as a merge commit on the current branch.

use kage_git::UserRepo;
use kage_git::landing::{self, Merged};

use super::apply::pick;
use crate::args::{Merge, Strategy};
use crate::exit::Exit;
use crate::here::Here;
use crate::invocation::Invocation;
use crate::landing::{refusal, tell, to_the_end};
use crate::output::note;
use crate::tasks;
use crate::view;

pub(super) async fn run(invocation: &Invocation, args: Merge) -> anyhow::Result<Exit> {
    let access = invocation.existing().await?;
    let task = tasks::find_in(&access, args.apply.pick.task.clone(), &args.apply.repo).await?;
    let repository = UserRepo::discover(&args.apply.repo).await?;
    Here::new(&repository).takes(&task).await?;
    let fetched = pick(invocation, &access, &task, &args.apply, "merge").await?;
    let strategy = match args.strategy {
        Strategy::Auto => landing::Strategy::Auto,
        Strategy::Theirs => landing::Strategy::Theirs,
        Strategy::Manual => landing::Strategy::Manual,
    };
    let prompt = task.spec.as_ref().map_or("", |s| s.prompt.as_str());
    let message = format!(
        "Merge result of {} (task {})\n\n{}\n",
        fetched.session.name,
        view::short_id(&task.id),
        view::one_line(prompt, 500)
    );
    let plan = landing::plan_merge(&repository, &fetched.mirror, &fetched.commit, strategy, &message)
        .await
        .map_err(refusal)?;
    let paths = plan.paths().to_vec();
    if args.apply.dry_run {
        tell(invocation.out, &task, &fetched, &paths, false, None)?;
        return Ok(Exit::Done);
    }
    match to_the_end(plan.execute()).await? {
        Merged::Committed(commit) => tell(invocation.out, &task, &fetched, &paths, true, Some(commit.to_string()))?,
        Merged::LeftConflicts => {
            tell(invocation.out, &task, &fetched, &paths, true, None)?;
            note("resolve the marked conflicts, then `git add` them and `git commit`");
            return Ok(Exit::TaskFailed);
        }
        Merged::AlreadyThere => {
            tell(invocation.out, &task, &fetched, &[], true, None)?;
            note("the branch has this result already");
        }
    }
    Ok(Exit::Done)
}

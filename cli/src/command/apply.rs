//! `kage apply`: a session's change in the working tree. Index, HEAD and references stay as
//! they are.

use kage_git::UserRepo;
use kage_proto::v1;

use crate::args::Apply;
use crate::connect::Access;
use crate::exit::{Exit, Refusal};
use crate::here::Here;
use crate::invocation::Invocation;
use crate::landing;
use crate::output::note;
use crate::result::{self, FetchedResult};
use crate::tasks;
use crate::view;

pub(super) async fn run(invocation: &Invocation, args: Apply) -> anyhow::Result<Exit> {
    let access = invocation.existing().await?;
    let task = tasks::find_in(&access, args.pick.task.clone(), &args.repo).await?;
    let repository = UserRepo::discover(&args.repo).await?;
    Here::new(&repository, &access.machine).takes(&access, &task).await?;
    let fetched = pick(invocation, &access, &task, &args, "apply").await?;
    let paths = if args.dry_run {
        landing::plan(&repository, &fetched).await?.paths().to_vec()
    } else {
        landing::land(&repository, &fetched).await?
    };
    landing::tell(invocation.out, &task, &fetched, &paths, !args.dry_run, None)?;
    Ok(Exit::Done)
}

/// The requested result. A result that did not pass verify, or has a high risk, needs an explicit
/// request; `command` is the command's name.
pub(super) async fn pick(
    invocation: &Invocation,
    access: &Access,
    task: &v1::Task,
    args: &Apply,
    command: &str,
) -> anyhow::Result<FetchedResult> {
    let response = tasks::report(access, &task.id).await?;
    let report = response.report.unwrap_or_default();
    if report.provisional && args.pick.session.is_none() {
        note("sessions are still running; a better result is possible");
    }
    let chosen = result::choose(&report, args.pick.session.as_deref(), args.accept_risk, command)?;
    let has_verify = task
        .spec
        .as_ref()
        .and_then(|s| s.policy.as_ref())
        .and_then(|p| p.verify.as_ref())
        .is_some_and(|v| !v.verify.is_empty());
    // Who names a session that claimed nothing knows that nothing checked it, and is told again.
    let named = chosen.is_unfinished && args.pick.session.is_some();
    if has_verify && chosen.state() != v1::SessionState::Verified && !args.unverified && !named {
        let message = format!(
            "session {} is {}, not verified; --unverified lands it anyway",
            chosen.name,
            view::state_of(&chosen)
        );
        return Err(Refusal::usage(message).into());
    }
    result::tell_unseen(&chosen);
    result::tell_unfinished(&chosen);
    let mut fetched = result::fetch(access, &invocation.state, task, chosen).await?;
    if args.unverified {
        fetched.flags.push("--unverified");
    }
    if args.accept_risk {
        fetched.flags.push("--accept-risk");
    }
    Ok(fetched)
}

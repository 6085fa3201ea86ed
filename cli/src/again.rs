//! An earlier task, to be run again: its spec, with its sessions or others, on its base or on the present
//! files. What differs from it is told.

use anyhow::Context as _;
use kage_core::id::Oid;
use kage_core::task::{Assignment, TaskSpec};
use kage_git::UserRepo;
use kage_git::snapshot::SnapshotOptions;
use kage_proto::convert::task::checked_spec;
use kage_proto::v1;

use crate::args::Run;
use crate::assignments;
use crate::base::{self, excludes};
use crate::connect::Access;
use crate::exit::Refusal;
use crate::here::Here;
use crate::output::note;
use crate::settings::RunOptions;
use crate::tasks;
use crate::view;
use crate::work_folder::WorkFolder;

/// The spec of a task that is run again, and where that comes from.
#[derive(Debug)]
pub(crate) struct Again {
    pub(crate) spec: TaskSpec,
    pub(crate) origin: Option<v1::TaskOrigin>,
}

/// Reads the earlier task, and sends the present files if they are asked for.
///
/// # Errors
/// When there is no such task, it is of another repository than it must be, or the present files cannot
/// be sent.
pub(crate) async fn of(
    access: &Access,
    repository: &UserRepo,
    args: &Run,
    user: &RunOptions,
    task: String,
) -> anyhow::Result<Again> {
    let options = &args.options;
    if !args.present && (options.committed == Some(true) || !options.include.is_empty()) {
        let text = "--committed and --include are about the present files, and --again takes the base of the earlier \
                    task; add --present to start from the present files";
        return Err(Refusal::usage(text).into());
    }
    if options.with.is_empty() && (options.repeat.is_some() || !options.fallback.is_empty()) {
        let text = "--repeat and --fallback are about the sessions of --with; without it, the sessions of the earlier \
                    task are run again as they were";
        return Err(Refusal::usage(text).into());
    }
    let task = tasks::find(access, Some(task)).await?;
    let id = view::short_id(&task.id);
    let spec = task
        .spec
        .clone()
        .context("the coordinator sent a task without a spec")?;
    let mut spec = checked_spec(spec).map_err(|wrong| {
        let wrong: Vec<_> = wrong.0.iter().map(ToString::to_string).collect();
        Refusal::usage(format!("task {id} cannot be run again as it was: {}", wrong.join("; ")))
    })?;
    if !options.with.is_empty() {
        spec.assignments = others(&spec, options)?;
    }
    if let Some(priority) = options.priority {
        spec.policy.priority = priority;
    }
    // As for every run: raised, and never lowered.
    for raised in [options.contain, user.contain].into_iter().flatten() {
        spec.policy.contain = spec.policy.contain.max(raised);
    }
    spec.fresh_baseline = options.fresh_baseline == Some(true);
    // The values of variables are those of this shell.
    spec.environment.handed = None;
    let here = Here::new(repository, &access.machine);
    if args.present || args.apply {
        here.takes(access, &task).await?;
    }
    let mut origin = task.origin.clone();
    let before = spec.repository.as_ref().map(|repository| repository.base.clone());
    if let (true, Some(of)) = (args.present, &spec.repository) {
        let place = WorkFolder::find(repository, &args.repo, args.root)?;
        spec.policy.results.excludes = excludes(repository).await?;
        let options = SnapshotOptions {
            committed: options.committed == Some(true),
            include: place.patterns(options, user, |run| &run.include)?,
        };
        let folder = of.folder.clone();
        let checks = spec.policy.verify.clone();
        let sent = base::send(access, &spec.project, repository, &options, folder.as_ref(), &checks).await?;
        spec.environment.files = sent.files;
        spec.repository = Some(sent.repository);
        origin = Some(sent.origin.into());
    }
    if let (Some(before), Some(now)) = (&before, &spec.repository) {
        note(&told(
            id,
            before,
            &now.base,
            head(&here, repository, &task).await?.as_ref(),
        ));
    }
    Ok(Again { spec, origin })
}

/// The commit checked out here, if the task is of this repository and stood on another one.
async fn head(here: &Here<'_>, repository: &UserRepo, task: &v1::Task) -> anyhow::Result<Option<Oid>> {
    let stood: Option<Oid> = task.origin.as_ref().and_then(|origin| origin.head.parse().ok());
    if !here.is_same_clone(task) && !here.has_base_of(task).await? {
        return Ok(None);
    }
    let now = repository.head().await.context("cannot read HEAD")?;
    Ok(now.filter(|now| stood.as_ref().is_some_and(|stood| stood != now)))
}

/// Which base it has, and what is different here.
fn told(id: &str, before: &Oid, now: &Oid, head: Option<&Oid>) -> String {
    let short = |commit: &Oid| view::short_id(commit.as_str()).to_owned();
    let (was, is) = (short(before), short(now));
    if before != now {
        return format!("task {id} is run again on {is}, the present files; it ran on {was}");
    }
    match head {
        Some(head) => format!(
            "task {id} is run again on its base {was}; HEAD is now {}, and --present starts from the present files",
            short(head)
        ),
        None => format!("task {id} is run again on its base {was}"),
    }
}

/// The sessions of `--with`. One whose adapter had a session has the context of that one.
fn others(spec: &TaskSpec, options: &RunOptions) -> anyhow::Result<Vec<Assignment>> {
    let workers = assignments::workers(&options.with, options.repeat.unwrap_or(1), &options.fallback)?;
    let assignments = workers.into_iter().map(|worker| {
        let same = spec.assignments.iter().find(|other| other.adapter == worker.adapter);
        if same.is_none() && spec.assignments.iter().any(|other| other.context_delta.is_some()) {
            note(&format!(
                "{} gets the context that all sessions of the task shared, and nothing of one session's own",
                worker.name
            ));
        }
        let delta = same.and_then(|same| same.context_delta.clone());
        let requirements = same.map(|same| same.requirements.clone()).unwrap_or_default();
        Assignment {
            requirements,
            ..worker.assignment(delta)
        }
    });
    Ok(assignments.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changed_since_is_told() {
        let oid = |digit: &str| digit.repeat(40).parse::<Oid>().unwrap();
        let [a, b] = ["a", "b"].map(oid);
        assert_eq!(
            told("0123", &a, &a, None),
            "task 0123 is run again on its base aaaaaaaa"
        );
        assert_eq!(
            told("0123", &a, &a, Some(&b)),
            "task 0123 is run again on its base aaaaaaaa; HEAD is now bbbbbbbb, and --present starts from the present \
             files"
        );
        assert_eq!(
            told("0123", &a, &b, Some(&b)),
            "task 0123 is run again on bbbbbbbb, the present files; it ran on aaaaaaaa"
        );
    }
}

//! `kage apply`: a session's change in the working tree. Index, HEAD and references stay as
//! they are.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use kage_git::UserRepo;
use kage_git::diff::{self, DiffScope};
use kage_proto::v1;

use crate::args::{Apply, Land};
use crate::connect::Access;
use crate::exit::{Exit, Refusal};
use crate::here::Here;
use crate::invocation::Invocation;
use crate::landing::only::{self, ChangedPath};
use crate::landing::remedy::shell;
use crate::landing::{self, Landing};
use crate::output::note;
use crate::result::{self, FetchedResult};
use crate::tasks;
use crate::view;

pub(super) async fn run(invocation: &Invocation, mut args: Apply) -> anyhow::Result<Exit> {
    let access = invocation.existing().await?;
    let task = tasks::find_in(&access, args.land.pick.task.clone(), &args.land.repo).await?;
    let repository = UserRepo::discover(&args.land.repo).await?;
    Here::new(&repository, &access.machine).takes(&access, &task).await?;
    // What is taken out was put in.
    args.land.unverified |= args.undo;
    args.land.accept_risk |= args.undo;
    let mut fetched = pick(invocation, &access, &task, &args.land, "apply").await?;
    limit(&repository, &mut fetched, &args.path).await?;
    if args.undo {
        fetched = fetched.undone();
    }
    if args.land.dry_run {
        let paths = landing::plan(&repository, &fetched).await?.paths().to_vec();
        landing::tell(
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
    let paths = landing::land(&repository, &fetched).await?;
    let more = Landing {
        undo: landing::undo_apply(&repository, &fetched, &paths),
        ..Landing::default()
    };
    landing::tell(&invocation.out, &task, &fetched, &paths, true, None, &more)?;
    landing::tell_undo(more.undo.as_deref());
    Ok(Exit::Done)
}

/// Limits a result to the paths that were typed, each of which it must have.
async fn limit(repository: &UserRepo, fetched: &mut FetchedResult, typed: &[PathBuf]) -> anyhow::Result<()> {
    if typed.is_empty() {
        return Ok(());
    }
    let here = env::current_dir().and_then(fs::canonicalize).unwrap_or_default();
    let root = repository.root();
    let wanted: Vec<PathBuf> = typed
        .iter()
        .map(|path| only::from_top(root, &here, path))
        .collect::<Result<_, _>>()?;
    let changed = changed_paths(fetched).await?;
    let shown = |path: &Path| view::printable(&path.to_string_lossy());
    if let Some(missing) = only::missing(&wanted, &changed).first() {
        let task = view::short_id(&fetched.task);
        let name = &fetched.session.name;
        let mut text = format!(
            "the result of {} does not change {}",
            view::printable(name),
            shown(missing)
        );
        let near: Vec<String> = only::near(missing, &changed).into_iter().map(shown).collect();
        if !near.is_empty() {
            text += &format!("; near it: {}", near.join(", "));
        }
        let list = format!("kage diff {} --session {} --name-only", shell(task), shell(name));
        return Err(Refusal::not_found(format!("{text}; `{list}` lists what it changes")).into());
    }
    for sentence in only::half_renames(&wanted, &changed) {
        note(&sentence);
    }
    // The top is everything.
    fetched.only = match wanted.iter().any(|path| path.as_os_str().is_empty()) {
        true => Vec::new(),
        false => wanted,
    };
    Ok(())
}

async fn changed_paths(fetched: &FetchedResult) -> anyhow::Result<Vec<ChangedPath>> {
    let (mirror, base, commit) = (
        fetched.mirror.path().to_owned(),
        fetched.base.clone(),
        fetched.commit.clone(),
    );
    let scope = DiffScope {
        paths: Vec::new(),
        file_bytes: 0,
        total_bytes: 0,
    };
    let path = |bytes: Vec<u8>| PathBuf::from(OsString::from_vec(bytes));
    let list = move || {
        let mut changed = Vec::new();
        let listed = diff::by_file(&mirror, &base, &commit, &scope, |file| {
            changed.push(ChangedPath {
                path: path(file.path),
                old_path: file.old_path.map(path),
            });
            ControlFlow::Continue(())
        });
        listed.map(|_| changed)
    };
    Ok(tokio::task::spawn_blocking(list).await??)
}

/// The requested result. A result that did not pass verify, or has a high risk, needs an explicit
/// request; `command` is the command's name.
pub(super) async fn pick(
    invocation: &Invocation,
    access: &Access,
    task: &v1::Task,
    args: &Land,
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

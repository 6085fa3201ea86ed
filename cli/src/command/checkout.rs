//! `kage checkout`: a session's result in a working tree of its own, to try it.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use kage_core::id::Oid;
use kage_git::UserRepo;
use kage_git::landing::checkout::{CheckoutError, ResultCheckout, check_out};
use kage_proto::v1;
use serde::Serialize;

use crate::args::Checkout;
use crate::exit::{Exit, Refusal};
use crate::here::Here;
use crate::invocation::Invocation;
use crate::landing::remedy::{Way, shell};
use crate::landing::to_the_end;
use crate::output::note;
use crate::result::{self, FetchedResult};
use crate::tasks;
use crate::view;

#[derive(Debug, Serialize)]
struct CheckoutJson<'a> {
    task_id: &'a str,
    session: &'a str,
    /// The session's commit, whose files are there.
    commit: &'a str,
    /// The commit that is checked out beneath them.
    head: &'a str,
    folder: String,
    /// The command that removes it.
    undo: String,
}

pub(super) async fn run(invocation: &Invocation, args: Checkout) -> anyhow::Result<Exit> {
    let access = invocation.existing().await?;
    let task = tasks::find_in(&access, args.task.clone(), &args.repo).await?;
    let repository = UserRepo::discover(&args.repo).await?;
    Here::new(&repository, &access.machine).takes(&access, &task).await?;
    let report = tasks::report(&access, &task.id).await?.report.unwrap_or_default();
    let chosen = result::named(&report, &args.session)?;
    result::tell_unfinished(&chosen);
    let fetched = result::fetch(&access, &invocation.state, &task, chosen).await?;
    let head = head(&repository, &fetched, &task).await?;
    let usual = repository.root().with_file_name(format!(
        "{}-{}-{}",
        repository.name(),
        view::short_id(&task.id),
        fetched.session.name
    ));
    let folder = match &args.folder {
        Some(folder) => absolute(folder),
        None => usual.clone(),
    };
    let asked = ResultCheckout {
        mirror: &fetched.mirror,
        result: &fetched.commit,
        head: &head,
        folder: &folder,
    };
    let made = match to_the_end(check_out(&repository, &asked)).await? {
        Ok(made) => made,
        Err(CheckoutError::Git(error)) => return Err(error.into()),
        Err(error @ (CheckoutError::Taken { .. } | CheckoutError::Inside { .. })) => {
            let elsewhere = shell(&free(&usual).to_string_lossy());
            let session = shell(&fetched.session.name);
            let mut command = format!(
                "kage checkout {session} {elsewhere} --task {}",
                view::short_id(&task.id)
            );
            if args.repo != Path::new(".") {
                command += &format!(" --repo {}", shell(&repository.root().to_string_lossy()));
            }
            return Err(Refusal::usage(format!(
                "{error}, so nothing was changed; name another folder: `{command}`"
            ))
            .into());
        }
    };
    let place = shell(&folder.to_string_lossy());
    let undo = Way::new(&repository, &fetched).git(&format!("worktree remove --force {place}"));
    let told = CheckoutJson {
        task_id: &task.id,
        session: &fetched.session.name,
        commit: fetched.commit.as_str(),
        head: head.as_str(),
        folder: folder.to_string_lossy().into_owned(),
        undo,
    };
    invocation.out.result("checkout", &told)?;
    invocation.out.text(&format!(
        "the result of {} is in {}",
        view::printable(&fetched.session.name),
        view::printable(&told.folder)
    ))?;
    if made.as_stored > 0 {
        note(&format!(
            "{} there as git stores them: the filter programs of your settings were not run",
            view::counted(made.as_stored, "file")
        ));
    }
    note(&format!(
        "`git -C {place} status` shows what differs; `{}` removes it",
        told.undo
    ));
    Ok(Exit::Done)
}

/// The person's own commit beneath the result.
async fn head(repository: &UserRepo, fetched: &FetchedResult, task: &v1::Task) -> anyhow::Result<Oid> {
    let beneath: Option<Oid> = task.origin.as_ref().and_then(|origin| origin.head.parse().ok());
    for commit in [Some(fetched.base.clone()), beneath].into_iter().flatten() {
        if repository.has_commit(&commit).await? {
            return Ok(commit);
        }
    }
    let head = repository.head().await?;
    Ok(head.ok_or_else(|| Refusal::usage("the repository has no commits yet; `git commit --allow-empty -m begin`"))?)
}

fn absolute(folder: &Path) -> PathBuf {
    let here = env::current_dir().and_then(fs::canonicalize).unwrap_or_default();
    let full = here.join(folder);
    // What is there of it may have links on the way.
    let known = full
        .ancestors()
        .find_map(|above| Some((above, fs::canonicalize(above).ok()?)));
    match known {
        Some((above, real)) => match full.strip_prefix(above) {
            Ok(rest) if rest.as_os_str().is_empty() => real,
            Ok(rest) => real.join(rest),
            Err(_) => full,
        },
        None => full,
    }
}

/// A folder that is not there.
fn free(usual: &Path) -> PathBuf {
    let name = usual.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut folder = usual.to_owned();
    let mut number = 1_u32;
    while fs::symlink_metadata(&folder).is_ok() {
        number = number.saturating_add(1);
        folder = usual.with_file_name(format!("{name}-{number}"));
    }
    folder
}

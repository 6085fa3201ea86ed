//! One operation of this crate as a separate process, for tests that kill it in the middle, let its
//! system calls fail, or give it an untrusted environment.
//!
//! ```text
//! kage-git-step checkpoint MIRROR WORKTREE BASE
//! kage-git-step restore    MIRROR WORKTREE BASE TARGET
//! kage-git-step session    REPOSITORY FOLDER
//! kage-git-step land       HOW REPOSITORY MIRROR BASE RESULT
//! kage-git-step lfs        clean|smudge|process  (a stand-in for git-lfs)
//! kage-git-step hold       MIRROR                (prints a line, ends when its input does)
//! kage-git-step twice                            (prints git's version, and again when its input ends)
//! ```

use std::error::Error;
use std::fs;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::ExitCode;

use kage_core::id::Oid;
use kage_core::protect::Protection;
use kage_core::task::VerifyPolicy;
use kage_git::landing::{
    Branch, LandingError, LandingMessage, Onto, Strategy, plan_apply, plan_merge, plan_merge_into,
};
use kage_git::restore::{Foreign, RestoreOptions};
use kage_git::snapshot::{Receiver, Snapshot, SnapshotOptions};
use kage_git::{Auth, Mirror, UserRepo, Worktree};

mod lfs;

fn main() -> ExitCode {
    // The runtime panics when a fault hits its own system calls, and would wait for ever.
    std::panic::set_hook(Box::new(|_| std::process::abort()));
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(_) => return ExitCode::FAILURE,
    };
    let done = runtime.block_on(async {
        match arguments.as_slice() {
            ["checkpoint", mirror, worktree, base] => checkpoint(mirror, worktree, &base.parse()?).await,
            ["restore", mirror, worktree, base, target] => {
                restore(mirror, worktree, &base.parse()?, &target.parse()?).await
            }
            ["hold", mirror] => hold(mirror).await,
            ["twice"] => twice().await,
            ["session", repository, folder] => session(Path::new(repository), Path::new(folder)).await,
            ["land", how, repository, mirror, base, result] => {
                land(how, Path::new(repository), mirror, &base.parse()?, &result.parse()?).await
            }
            ["lfs", what, ..] => Ok(lfs::run(what)?),
            _ => Err("unknown arguments".into()),
        }
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut cause: Option<&dyn Error> = Some(error.as_ref());
            while let Some(error) = cause {
                eprintln!("{error}");
                cause = error.source();
            }
            ExitCode::FAILURE
        }
    }
}

async fn checkpoint(mirror: &str, worktree: &str, base: &Oid) -> Result<(), Box<dyn Error>> {
    let mirror = Mirror::open_or_init(mirror).await?;
    let worktree = Worktree::open(&mirror, worktree, base).await?;
    worktree.checkpoint(base, "one step").await?;
    Ok(())
}

/// The longest way: changes that no checkpoint has are saved, new ignored files moved aside.
async fn restore(mirror: &str, worktree: &str, base: &Oid, target: &Oid) -> Result<(), Box<dyn Error>> {
    let mirror = Mirror::open_or_init(mirror).await?;
    let worktree = Worktree::open(&mirror, worktree, base).await?;
    let options = RestoreOptions {
        foreign: Foreign::Save,
        complete: true,
        ..RestoreOptions::default()
    };
    worktree.restore(target, &options).await?;
    Ok(())
}

/// Lands a result as the person would: `apply`, `merge`, `theirs` or `into:BRANCH`. Prints what became of it.
async fn land(how: &str, repository: &Path, mirror: &str, base: &Oid, result: &Oid) -> Result<(), Box<dyn Error>> {
    let repository = UserRepo::discover(repository).await?;
    let mirror = Mirror::open_or_init(mirror).await?;
    let message = LandingMessage {
        subject: "change".to_owned(),
        merge_subject: "merge".to_owned(),
        body: "by a session\n".to_owned(),
    };
    let strategy = match how {
        "theirs" => Strategy::Theirs,
        _ => Strategy::Auto,
    };
    let told = match how.strip_prefix("into:") {
        _ if how == "apply" => {
            let plan = plan_apply(&repository, &mirror, base, result)
                .await
                .map_err(|error| told(&error))?;
            plan.execute().await.map_err(|error| told(&error))?;
            "Applied".to_owned()
        }
        Some(branch) => {
            let (branch, start) = (Branch::parse(branch)?, None);
            let onto = Onto { branch, start };
            let plan = plan_merge_into(&repository, &mirror, base, result, strategy, &message, &onto).await;
            format!(
                "{:?}",
                plan.map_err(|error| told(&error))?
                    .execute()
                    .await
                    .map_err(|error| told(&error))?
            )
        }
        None => {
            let plan = plan_merge(&repository, &mirror, base, result, strategy, &message).await;
            format!(
                "{:?}",
                plan.map_err(|error| told(&error))?
                    .execute()
                    .await
                    .map_err(|error| told(&error))?
            )
        }
    };
    writeln!(std::io::stdout(), "{told}")?;
    Ok(())
}

/// The paths of a refusal, too.
fn told(error: &LandingError) -> Box<dyn Error> {
    format!("{error:?}").into()
}

async fn hold(mirror: &str) -> Result<(), Box<dyn Error>> {
    let _mirror = Mirror::open_or_init(mirror).await?;
    let mut stdout = std::io::stdout();
    stdout.write_all(b"open\n")?;
    stdout.flush()?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

async fn twice() -> Result<(), Box<dyn Error>> {
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{}", kage_git::program::version().await?)?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    writeln!(stdout, "{}", kage_git::program::version().await?)?;
    Ok(())
}

/// A whole session from a person's repository and back into it, with every kind of
/// operation on the way.
async fn session(repository: &Path, folder: &Path) -> Result<(), Box<dyn Error>> {
    let repository = UserRepo::discover(repository).await?;
    let snapshot = Snapshot::take(&repository, &SnapshotOptions::default()).await?;
    let mirror = Mirror::open_or_init(folder.join("m.git")).await?;
    let url = format!("file://{}", mirror.path().display());
    snapshot.push(&url, &Auth::None, Receiver::New).await?;
    let other = Mirror::open_or_init(folder.join("other.git")).await?;
    let spec = format!("refs/kage/bases/{0}:refs/kage/bases/{0}", snapshot.base);
    other.fetch(&url, &Auth::None, &[&spec]).await?;
    let worktree = Worktree::create(&other, folder.join("w"), &snapshot.base).await?;
    let first = worktree.checkpoint(&snapshot.base, "first").await?;
    fs::write(worktree.path().join("new"), "n\n")?;
    worktree.changes().await?;
    worktree.checkpoint(&first.commit, "second").await?;
    worktree.restore(&first.commit, &RestoreOptions::default()).await?;
    fs::write(worktree.path().join("new"), "n\n")?;
    let result = worktree.commit_result("result\n").await?.ok_or("no result")?.commit;
    let protection = Protection::new(&VerifyPolicy::default(), Vec::new())?;
    worktree.restore_paths(&snapshot.base, &protection).await?;
    let pack = other.thin_pack(&result, std::slice::from_ref(&snapshot.base)).await?;
    mirror.ingest_pack(pack.reopen()?, &result).await?;
    plan_apply(&repository, &mirror, &snapshot.base, &result)
        .await?
        .execute()
        .await?;
    fs::remove_file(repository.root().join("new"))?;
    let message = LandingMessage {
        subject: "change".to_owned(),
        merge_subject: "merge".to_owned(),
        body: "by a session\n".to_owned(),
    };
    plan_merge(
        &repository,
        &mirror,
        &snapshot.base,
        &result,
        Strategy::Theirs,
        &message,
    )
    .await?
    .execute()
    .await?;
    Worktree::remove(&other, worktree.path()).await?;
    Ok(())
}

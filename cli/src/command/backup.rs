//! `kage coordinator backup`, `restore` and `verify`: copies of a coordinator's data. They work on
//! folders of this machine; the coordinator may run, or not.

use std::path::Path;
use std::time::SystemTime;

use kage_coordinator::backup::{self, Contained};
use kage_core::time::Timestamp;
use serde::Serialize;

use crate::args::CoordinatorSubcommand;
use crate::exit::Exit;
use crate::invocation::Invocation;
use crate::output::note;
use crate::view;

/// What was copied or checked.
#[derive(Debug, Serialize)]
struct ContainedJson<'a> {
    folder: String,
    #[serde(flatten)]
    contained: &'a Contained,
}

pub(super) async fn run(invocation: &Invocation, command: CoordinatorSubcommand) -> anyhow::Result<Exit> {
    let usual = || invocation.state.coordinator();
    match command {
        CoordinatorSubcommand::Backup(args) => {
            let data = args.data_dir.unwrap_or_else(usual);
            let contained = backup::make(&data, &args.to, now()).await?;
            tell(invocation, "backup", &args.to, &contained)
        }
        CoordinatorSubcommand::Restore(args) => {
            let data = args.data_dir.unwrap_or_else(usual);
            let contained = backup::restore(&args.from, &data, args.incomplete, now()).await?;
            tell(invocation, "restore", &data, &contained)
        }
        CoordinatorSubcommand::Verify(args) => {
            let folder = args.folder.unwrap_or_else(usual);
            let contained = backup::verify(&folder).await?;
            tell(invocation, "verification", &folder, &contained)
        }
    }
}

/// Prints what a folder has, and what it lacks.
fn tell(invocation: &Invocation, kind: &str, folder: &Path, contained: &Contained) -> anyhow::Result<Exit> {
    let Contained {
        tasks,
        attempts,
        blobs,
        repositories,
        commits,
        bytes: _,
        flaws,
    } = contained;
    let path = folder.display();
    invocation.out.text(&format!(
        "{path} has {tasks} tasks, {attempts} attempts, {blobs} blobs, {repositories} repositories, {commits} \
         commits that they name"
    ))?;
    for flaw in flaws {
        note(&view::printable(&flaw.to_string()));
    }
    let json = ContainedJson {
        folder: path.to_string(),
        contained,
    };
    invocation.out.result(kind, &json)?;
    if flaws.is_empty() {
        return Ok(Exit::Done);
    }
    note(&format!(
        "{path} lacks what is named above: its tasks are listed without that; restore a backup that is whole"
    ));
    Ok(Exit::TaskFailed)
}

fn now() -> Timestamp {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    Timestamp::from_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

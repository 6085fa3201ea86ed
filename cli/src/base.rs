//! The base of a task: the person's repository as it is now, on the coordinator.

use anyhow::Context as _;
use kage_agent::identity::trust::git_auth;
use kage_core::folder::Folder;
use kage_core::id::{Oid, ProjectId};
use kage_core::left_out::in_units;
use kage_core::task::{RepositoryRef, TaskOrigin, VerifyPolicy};
use kage_git::snapshot::{
    LeftOut, LeftOutReason, MAX_ALL_LARGE_BYTES, MAX_LARGE_BYTES, Receiver, Snapshot, SnapshotOptions, Warning,
};
use kage_git::{RefusedObject, RefusedPush, UserRepo};
use kage_proto::blob;

use crate::connect::Access;
use crate::exit::{Exit, Refusal};
use crate::here::{Here, StoredName};
use crate::output::note;
use crate::view;

/// The most paths that a warning names.
const MOST_NAMED: usize = 5;

/// How many included files are named.
const SHOWN: usize = 10;

/// The base that was sent, and its origin.
#[derive(Debug)]
pub struct Base {
    /// The commit, and the repository that has it on the coordinator.
    pub repository: RepositoryRef,
    /// The working tree of the snapshot.
    pub origin: TaskOrigin,
    /// The commit with the ignored files that go with it.
    pub files: Option<Oid>,
}

/// Takes a snapshot of the repository, reports what it leaves out, and sends it.
///
/// # Errors
/// When the snapshot cannot be complete or the coordinator refuses it.
pub async fn send(
    access: &Access,
    project: &ProjectId,
    repository: &UserRepo,
    options: &SnapshotOptions,
    folder: Option<&Folder>,
    checks: &VerifyPolicy,
) -> anyhow::Result<Base> {
    let snapshot = Snapshot::take(repository, options).await?;
    for named in [folder, checks.setup_folder.as_ref(), checks.verify_folder.as_ref()] {
        if let Some(named) = named
            && !snapshot.has_folder(named).await?
        {
            return Err(Refusal::usage(format!(
                "nothing in {named} is part of what sessions get (git keeps no empty folders, and ignored files stay \
                 here): add a file to it, or use --root"
            ))
            .into());
        }
    }
    for file in &snapshot.left_out {
        note(&left_out(file, folder));
    }
    for warning in &snapshot.warnings {
        note(&warn(warning));
    }
    if let Some(included) = &snapshot.included {
        let paths = included
            .paths
            .iter()
            .take(SHOWN)
            .map(String::as_str)
            .collect::<Vec<_>>();
        let more = if included.paths.len() > SHOWN { " and more" } else { "" };
        note(&format!(
            "included although git ignores them: {}{more}",
            paths.join(", ")
        ));
    }
    let here = Here::new(repository, &access.machine);
    let stored = here.settled_name(access).await?;
    let receiver = match &stored {
        StoredName::Known(_) => Receiver::HasHistory,
        StoredName::New(_) => Receiver::New,
    };
    let name = stored.into_name();
    let url = format!("{}{}", access.url, blob::repository_path(project, &name));
    if let Err(error) = snapshot.push(&url, &git_auth(&access.credentials), receiver).await {
        if let Some(refused) = error.refused_object() {
            return Err(Refusal::usage(flawed(&refused)).into());
        }
        if let Some(refused) = error.refused_push() {
            return Err(not_taken(&refused).into());
        }
        return Err(error).context("cannot send the repository to the coordinator");
    }
    let origin = TaskOrigin {
        head: Some(snapshot.head),
        ..here.origin().clone()
    };
    let repository = RepositoryRef {
        name,
        base: snapshot.base,
        folder: folder.cloned(),
        names: snapshot.names,
    };
    let files = snapshot.included.map(|included| included.commit);
    Ok(Base {
        repository,
        origin,
        files,
    })
}

/// Why the history is not taken, and what to do.
fn flawed(refused: &RefusedObject) -> String {
    let RefusedObject { object, flaw, words } = refused;
    let words = view::printable(words);
    format!(
        "the history has an object that git programs can be attacked with, so it is not sent: {object} ({flaw}: \
         {words}). `git log --all --oneline --find-object={object}` shows where it is, `git cat-file -p {object}` what \
         it has; rewrite the history without it, or start from a commit that does not have it"
    )
}

/// Why the coordinator did not take the base.
fn not_taken(refused: &RefusedPush) -> Refusal {
    let RefusedPush {
        reason,
        words,
        by_machine,
    } = refused;
    let said = if words.is_empty() {
        String::new()
    } else {
        format!(": {}", view::printable(&words.join("; ")))
    };
    let reason = view::printable(reason);
    let (exit, remedy) = match by_machine {
        true => (Exit::Unavailable, "make room on its machine, and run again"),
        false => (
            Exit::Usage,
            "`git fsck` says whether the repository is sound here, the coordinator's log what is wrong there",
        ),
    };
    let text = format!(
        "the coordinator did not take the base ({reason}{said}); nothing was sent, and no task was made; {remedy}"
    );
    Refusal::new(exit, text)
}

/// What the person's git ignores by files of theirs, for the task.
pub(crate) async fn excludes(repository: &UserRepo) -> anyhow::Result<String> {
    let excludes = repository.excludes().await?;
    for (path, why) in &excludes.unused {
        note(&format!(
            "what {} ignores is ignored here only, and may become a part of results: {why}",
            view::printable(&path.to_string_lossy())
        ));
    }
    Ok(excludes.patterns)
}

fn left_out(file: &LeftOut, folder: Option<&Folder>) -> String {
    let why = file.reason.words();
    let path = folder.map_or_else(|| file.path.clone(), |folder| folder.path_to(&file.path));
    let cure = match file.reason {
        LeftOutReason::Large { .. } | LeftOutReason::SecretName => format!("--include {path:?} takes it along"),
        LeftOutReason::NestedRepository => "add it as a submodule to take it along".to_owned(),
        LeftOutReason::Unreadable => {
            "sessions get what is committed of it, if anything; chmod u+r (a folder: u+rx) takes it along".to_owned()
        }
        LeftOutReason::Name | LeftOutReason::LongPath => "another name takes it along".to_owned(),
        LeftOutReason::Link => "name the file that it leads to".to_owned(),
        LeftOutReason::NotAFile | LeftOutReason::NestedHistory => "nothing takes it along".to_owned(),
    };
    format!("left out: {path} ({why}); {cure}")
}

fn warn(warning: &Warning) -> String {
    match warning {
        Warning::Submodules { paths } => format!(
            "sessions see the submodules {} at their recorded commits; what is not committed in them stays here, and \
             what sessions change in them is no part of a result",
            paths.join(", ")
        ),
        Warning::EmptySubmodules { paths } => format!(
            "warning: sessions see empty folders in place of the submodules {}, whose recorded commits are not on this \
             machine; `git submodule update --init --recursive` gets them",
            paths.join(", ")
        ),
        Warning::LargeFilePointers { paths } => format!(
            "warning: {} in sessions, because this machine does not have the content: {}; `git lfs pull` gets it",
            match paths.len() {
                1 => "1 LFS file is a pointer".to_owned(),
                count => format!("{count} LFS files are pointers"),
            },
            some(paths)
        ),
        Warning::LargeFilesLeftOut { files } => {
            let path = |(path, size): &(String, u64)| format!("{path} ({})", in_units(*size));
            let paths: Vec<String> = files.iter().map(path).collect();
            format!(
                "warning: sessions see pointers in place of {}: {}; `--include PATH` takes one of more than {} along, \
                 and all together may have {}",
                view::counted(files.len(), "large LFS file"),
                some(&paths),
                in_units(MAX_LARGE_BYTES),
                in_units(MAX_ALL_LARGE_BYTES)
            )
        }
        Warning::IncludesNothing { patterns } => format!(
            "warning: no file here is named by --include {}; sessions get nothing for it",
            some(patterns)
        ),
        Warning::NamesLeftOut { count } => {
            format!(
                "warning: sessions do not see {count} of the tags and branches, which are too many, too large or tags \
                 of tags; those that they see are the newest"
            )
        }
        Warning::NoNames { why } => {
            format!(
                "warning: sessions see no tags and branches, because git cannot read those of this repository: {}; \
                 `git for-each-ref` and `git fsck` say more",
                view::printable(why)
            )
        }
    }
}

/// The first of some paths, and how many more there are.
fn some(paths: &[String]) -> String {
    let (first, more) = paths.split_at(paths.len().min(MOST_NAMED));
    let first = view::printable(&first.join(", "));
    match more.len() {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}

//! Checks that a backup, or a data folder, has everything that its database names, byte for byte.

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use kage_core::cause::chain;
use kage_core::id::{Oid, ProjectId, RepositoryName};
use kage_git::Mirror;

use super::making::{bare, blob};
use super::{BackupError, Contained, Flaw, Manifest, blocking, copying};
use crate::data::custody::{self, LookError};
use crate::data::repositories::{RESULTS, result_ref};
use crate::data::standstill::Standstill;
use crate::store::{Contents, NamedCommits, Store};

/// Commits that one git reads.
const AT_ONCE: usize = 64;
/// How long a sweep may take before a check gives up.
const SWEEP: Duration = Duration::from_secs(120);

/// The numbers of what rows name.
pub(super) fn contained(contents: &Contents) -> Contained {
    let commits = contents.repositories.values();
    Contained {
        tasks: contents.tasks,
        attempts: contents.files.attempts.len(),
        blobs: contents.files.blobs.len(),
        commits: commits.map(|named| named.bases.len() + named.results.len()).sum(),
        ..Contained::default()
    }
}

/// Reads a whole backup, or a whole data folder, whose coordinator may run. What is missing or has
/// other bytes is in the answer.
///
/// # Errors
/// When it is neither of both, its database is damaged, or it cannot be read.
pub async fn verify(folder: &Path) -> Result<Contained, BackupError> {
    let root = folder.to_owned();
    let read = blocking(move || read(&root)).await?;
    let Read {
        contents,
        mut contained,
        standstill,
    } = read;
    for ((project, repository), named) in &contents.repositories {
        let path = folder.join(bare(project.as_str(), repository.as_str()));
        if !path.join("HEAD").is_file() {
            contained.flaws.push(Flaw::RepositoryMissing {
                project: project.clone(),
                repository: repository.clone(),
            });
            continue;
        }
        contained.repositories += 1;
        let mirror = match &standstill {
            Some(_) => Mirror::open_or_init(&path).await,
            None => Mirror::open_to_read(&path).await,
        };
        let mirror = mirror.map_err(BackupError::Git)?;
        commits(&mirror, (project, repository), named, &mut contained.flaws).await?;
    }
    drop(standstill);
    Ok(contained)
}

/// What was found outside of the repositories.
struct Read {
    contents: Contents,
    contained: Contained,
    /// `None` for a backup, from which nobody removes anything.
    standstill: Option<Standstill>,
}

fn read(root: &Path) -> Result<Read, BackupError> {
    let database = root.join("kage.db");
    let is_backup = Manifest::read(root)?.is_some();
    if !database.is_file() {
        return Err(BackupError::NoData { path: root.to_owned() });
    }
    let standstill = match is_backup {
        true => None,
        false => {
            let held = Standstill::hold(root, SWEEP).map_err(BackupError::io("lock", root))?;
            Some(held.ok_or_else(|| BackupError::Removing { path: root.to_owned() })?)
        }
    };
    Store::check(&database)?;
    let contents = match is_backup {
        true => Store::contents(&database)?,
        // A moment of one that is written to.
        false => {
            let moment = tempfile::tempdir().map_err(BackupError::io("write", &std::env::temp_dir()))?;
            let copy = moment.path().join("kage.db");
            Store::copy(&database, &copy)?;
            Store::contents(&copy)?
        }
    };
    let mut contained = contained(&contents);
    of_other_store(root, &contents, &mut contained.flaws)?;
    for (project, digest) in &contents.files.blobs {
        let path = root.join(blob(project.as_str(), digest.as_str()));
        let (project, digest) = (project.clone(), digest.clone());
        match copying::digested(&path, None, &mut contained.bytes)? {
            None => contained.flaws.push(Flaw::BlobMissing { project, digest }),
            Some(actual) if actual != digest => contained.flaws.push(Flaw::BlobChanged { project, digest }),
            Some(_) => {}
        }
    }
    Ok(Read {
        contents,
        contained,
        standstill,
    })
}

fn of_other_store(root: &Path, contents: &Contents, flaws: &mut Vec<Flaw>) -> Result<(), BackupError> {
    let folder = custody::Folder::look(root, true).map_err(|error| match error {
        LookError::Io { path, source } => BackupError::io("read", &path)(source),
        LookError::Misfit(misfit) => BackupError::Database(Box::new(misfit)),
    })?;
    if let Some(mark) = folder.mark
        && contents.id != Some(mark.id)
    {
        flaws.push(Flaw::OtherStore {
            folder: mark.id.to_string(),
            database: contents.id.map_or_else(|| "none".to_owned(), |id| id.to_string()),
        });
    }
    Ok(())
}

/// Reads the commits of a repository that rows name, with their files, and looks for the references
/// of results.
async fn commits(
    mirror: &Mirror,
    of: (&ProjectId, &RepositoryName),
    named: &NamedCommits,
    flaws: &mut Vec<Flaw>,
) -> Result<(), BackupError> {
    let (project, repository) = of;
    let all: Vec<Oid> = named.bases.iter().chain(named.results.values()).cloned().collect();
    for some in all.chunks(AT_ONCE) {
        if mirror.check_files_of(some).await.is_ok() {
            continue;
        }
        // Which of them it is.
        for commit in some {
            if let Err(error) = mirror.check_files_of(std::slice::from_ref(commit)).await {
                flaws.push(Flaw::Commit {
                    project: project.clone(),
                    repository: repository.clone(),
                    commit: commit.clone(),
                    problem: chain(&error),
                });
            }
        }
    }
    let references = mirror.refs_under(RESULTS).await.map_err(BackupError::Git)?;
    let references: HashSet<_> = references.into_iter().collect();
    for session in named.results.keys() {
        if !references.contains(&result_ref(*session)) {
            flaws.push(Flaw::ReferenceMissing {
                project: project.clone(),
                repository: repository.clone(),
                session: *session,
            });
        }
    }
    Ok(())
}

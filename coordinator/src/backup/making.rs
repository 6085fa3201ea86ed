//! Makes a backup of a data folder. Its coordinator may run.

use std::path::{Path, PathBuf};
use std::time::Duration;

use kage_core::time::Timestamp;
use kage_git::private::make_private;

use super::checking::contained;
use super::{BackupError, Contained, FORMAT, Flaw, MANIFEST, Manifest, blocking, copying};
use crate::data::custody::{self, Mark};
use crate::data::standstill::Standstill;
use crate::store::{Contents, Store, position_text};

/// How long a sweep may take before a backup gives up.
const SWEEP: Duration = Duration::from_secs(120);

/// Makes a backup of this data folder in a new folder. What the data lacks is in the answer, and
/// lacks in the backup too.
///
/// # Errors
/// When a folder cannot be used, or the database cannot be copied whole.
pub async fn make(data: &Path, to: &Path, now: Timestamp) -> Result<Contained, BackupError> {
    let (data, to) = (data.to_owned(), to.to_owned());
    blocking(move || made(&data, &to, now)).await
}

fn made(data: &Path, to: &Path, now: Timestamp) -> Result<Contained, BackupError> {
    let database = data.join("kage.db");
    if !database.is_file() {
        return Err(BackupError::NoData { path: data.to_owned() });
    }
    refuse_content(to)?;
    make_private(to).map_err(BackupError::io("create", to))?;
    let inside = |folder: &Path| folder.canonicalize().map_err(BackupError::io("resolve", folder));
    if inside(to)?.starts_with(inside(data)?) {
        // It was empty or not there.
        std::fs::remove_dir(to).map_err(BackupError::io("remove", to))?;
        return Err(BackupError::Inside { path: to.to_owned() });
    }
    let held = Standstill::hold(data, SWEEP).map_err(BackupError::io("lock", data))?;
    let _standstill = held.ok_or_else(|| BackupError::Removing { path: data.to_owned() })?;

    let copy = to.join("kage.db");
    Store::copy(&database, &copy)?;
    Store::check(&copy)?;
    let contents = Store::contents(&copy)?;
    let mut contained = contained(&contents);
    copy_named(data, to, &contents, &mut contained)?;
    copy_rest(data, to, &contents, &mut contained)?;

    let Some(id) = contents.id else {
        return Err(BackupError::NoData { path: data.to_owned() });
    };
    let mark = Mark {
        id,
        opened: contents.opened,
        adopted: false,
        unswept_until: None,
    };
    copying::write(&to.join(custody::mark_file()), format!("{mark}\n").as_bytes())?;
    copying::write(
        &to.join(custody::position_file()),
        position_text(contents.position).as_bytes(),
    )?;
    copying::settle(to)?;
    let manifest = Manifest {
        format: FORMAT,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        made_at: now,
        store: id.to_string(),
        position: contents.position,
    };
    let path = to.join(MANIFEST);
    let text = serde_json::to_vec_pretty(&manifest).map_err(|source| BackupError::Manifest {
        path: path.clone(),
        source,
    })?;
    copying::write(&path, &text)?;
    Ok(contained)
}

/// Refuses a folder that has something in it.
pub(super) fn refuse_content(folder: &Path) -> Result<(), BackupError> {
    match copying::entries(folder)?.is_empty() {
        true => Ok(()),
        false => Err(BackupError::NotEmpty {
            path: folder.to_owned(),
        }),
    }
}

/// Copies the blobs and the output that rows name.
fn copy_named(data: &Path, to: &Path, contents: &Contents, contained: &mut Contained) -> Result<(), BackupError> {
    for (project, digest) in &contents.files.blobs {
        let place = blob(project.as_str(), digest.as_str());
        let found = copying::digested(&data.join(&place), Some(&to.join(&place)), &mut contained.bytes)?;
        let (project, digest) = (project.clone(), digest.clone());
        match found {
            None => contained.flaws.push(Flaw::BlobMissing { project, digest }),
            Some(actual) if actual != digest => contained.flaws.push(Flaw::BlobChanged { project, digest }),
            Some(_) => {}
        }
    }
    for attempt in &contents.files.attempts {
        let place = Path::new("output").join(attempt.to_string());
        if data.join(&place).is_dir() {
            copying::folder(&data.join(&place), &to.join(&place), &|_| true, &mut contained.bytes)?;
        }
    }
    Ok(())
}

/// Copies the repositories, also those that no task is of yet, and the secrets.
fn copy_rest(data: &Path, to: &Path, contents: &Contents, contained: &mut Contained) -> Result<(), BackupError> {
    for project in copying::entries(&data.join("repos"))? {
        for repository in copying::entries(&project.path())? {
            if repository.path().join("HEAD").is_file() {
                let place = Path::new("repos")
                    .join(project.file_name())
                    .join(repository.file_name());
                copying::repository(&data.join(&place), &to.join(&place), &mut contained.bytes)?;
                contained.repositories += 1;
            }
        }
    }
    for (project, repository) in contents.repositories.keys() {
        if !to.join(bare(project.as_str(), repository.as_str())).is_dir() {
            contained.flaws.push(Flaw::RepositoryMissing {
                project: project.clone(),
                repository: repository.clone(),
            });
        }
    }
    copying::file(&data.join("token"), &to.join("token"), &mut contained.bytes)?;
    if data.join("tls").is_dir() {
        copying::folder(&data.join("tls"), &to.join("tls"), &|_| true, &mut contained.bytes)?;
    }
    Ok(())
}

/// Where a blob is in a data folder.
pub(super) fn blob(project: &str, digest: &str) -> PathBuf {
    Path::new("blobs").join(project).join(&digest[..2]).join(digest)
}

/// Where a repository is in a data folder.
pub(super) fn bare(project: &str, repository: &str) -> PathBuf {
    Path::new("repos").join(project).join(format!("{repository}.git"))
}

//! The base of a task: the person's repository as it is now, on the coordinator.

use anyhow::Context as _;
use kage_agent::trust::git_auth;
use kage_core::id::{Digest, ProjectId, RepositoryName};
use kage_core::task::RepositoryRef;
use kage_git::UserRepo;
use kage_git::snapshot::{LeftOut, LeftOutReason, Snapshot, SnapshotOptions, Warning};
use kage_proto::blob;

use crate::connect::Access;
use crate::output::note;

/// Takes a snapshot of the repository, says what did not come along, and sends it.
///
/// # Errors
/// When the snapshot cannot be complete or the coordinator refuses it.
pub async fn send(
    access: &Access,
    project: &ProjectId,
    repository: &UserRepo,
    options: &SnapshotOptions,
) -> anyhow::Result<RepositoryRef> {
    let snapshot = Snapshot::take(repository, options).await?;
    for file in &snapshot.left_out {
        note(&left_out(file));
    }
    for warning in &snapshot.warnings {
        note(&warn(warning));
    }
    let name = repository_name(repository)?;
    let url = format!("{}{}", access.url, blob::repository_path(project, &name));
    snapshot
        .push(&url, &git_auth(&access.credentials))
        .await
        .context("cannot send the repository to the coordinator")?;
    Ok(RepositoryRef {
        name,
        base: snapshot.base,
    })
}

/// A name for the repository on the coordinator: that of its folder, made unique by where
/// it is.
fn repository_name(repository: &UserRepo) -> anyhow::Result<RepositoryName> {
    let plain: String = repository
        .name()
        .to_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .take(80)
        .collect();
    let plain = plain.trim_matches('-');
    let digest = Digest::of(repository.root().as_os_str().as_encoded_bytes());
    let unique = digest.as_str().get(..8).unwrap_or_default();
    let name = if plain.is_empty() {
        format!("repository-{unique}")
    } else {
        format!("{plain}-{unique}")
    };
    Ok(name.parse()?)
}

fn left_out(file: &LeftOut) -> String {
    let why = match file.reason {
        LeftOutReason::Large { size } => format!("it has {size} bytes"),
        LeftOutReason::SecretName => "its name says that it may hold a secret".to_owned(),
        LeftOutReason::NestedRepository => "it is in another repository".to_owned(),
    };
    format!(
        "left out: {} ({why}); --include {:?} takes it along",
        file.path, file.path
    )
}

fn warn(warning: &Warning) -> String {
    match warning {
        Warning::Submodules { paths } => {
            format!(
                "warning: sessions see empty folders in place of the submodules {}; what is in them, committed or not, stays \
                 here",
                paths.join(", ")
            )
        }
        Warning::LargeFilePointers { count } => {
            format!("warning: sessions see pointer files in place of {count} large files (git-lfs)")
        }
    }
}

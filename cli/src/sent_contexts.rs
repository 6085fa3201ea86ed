//! Base contexts that this machine sent to coordinators: each is kept as a file, by its digest, so that a
//! coordinator that lost its own gets it once more. Which context a task has is the business of `contexts`.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use bytes::Bytes;
use kage_core::id::{Digest, ProjectId};
use kage_proto::blob;
use kage_proto::status::ApiError;
use kage_proto::v1;

use crate::connect::Access;
use crate::output::note;
use crate::view;

/// How long a copy is kept after its last use: longer than most tasks wait.
const KEPT: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// The most bytes of all copies.
const MOST: u64 = 256 << 20;

/// Stores a base context on the coordinator, and keeps a copy.
pub(crate) async fn send(access: &Access, project: &ProjectId, digest: &Digest, content: Bytes) -> anyhow::Result<()> {
    put(access, project, digest, content.clone()).await?;
    let (folder, file) = (access.contexts.clone(), access.contexts.join(digest.as_str()));
    let kept = tokio::task::spawn_blocking(move || {
        keep(&file, &content)?;
        clear(&folder, SystemTime::now())
    });
    // The copy is for a coordinator that loses its own.
    if let Err(error) = kept.await.map_err(std::io::Error::other).flatten() {
        tracing::info!(%error, "no copy of the context is kept");
    }
    Ok(())
}

/// Sends the base context of a task again, if the coordinator lost it and a copy is here.
///
/// # Errors
/// When the coordinator does not take it.
pub(crate) async fn bring_back(access: &Access, spec: &v1::TaskSpec) -> anyhow::Result<()> {
    if spec.context_base.is_empty() {
        return Ok(());
    }
    let (project, digest): (ProjectId, Digest) = (spec.project.parse()?, spec.context_base.parse()?);
    let Some(content) = copy(access.contexts.join(digest.as_str()), digest.clone()).await else {
        return Ok(());
    };
    let url = format!("{}{}", access.url, blob::blob_path(&project, &digest));
    let answer = crate::http::client(access)?.head(url).send().await?;
    if answer.status() != reqwest::StatusCode::NOT_FOUND {
        return Ok(());
    }
    put(access, &project, &digest, content).await?;
    let digest = view::short_id(digest.as_str()).to_owned();
    note(&format!(
        "warning: the coordinator lost the base context {digest}; it was sent again"
    ));
    Ok(())
}

async fn put(access: &Access, project: &ProjectId, digest: &Digest, content: Bytes) -> anyhow::Result<()> {
    let inline = content.len() <= kage_proto::MAX_INLINE;
    if !inline {
        upload(access, project, digest, content.clone()).await?;
    }
    let request = v1::PutContextRequest {
        request_id: crate::tasks::request_id(),
        project: project.to_string(),
        digest: digest.to_string(),
        content: if inline { content } else { Bytes::new() },
    };
    let put = access.client.contexts().put_context(request).await;
    put.map_err(ApiError::from)?;
    Ok(())
}

async fn upload(access: &Access, project: &ProjectId, digest: &Digest, content: Bytes) -> anyhow::Result<()> {
    let url = format!("{}{}", access.url, blob::blob_path(project, digest));
    crate::http::client(access)?
        .put(url)
        .body(content)
        .send()
        .await
        .and_then(reqwest::Response::error_for_status)
        .context("cannot send the context to the coordinator")?;
    Ok(())
}

/// The copy, if it is here and complete.
async fn copy(file: PathBuf, digest: Digest) -> Option<Bytes> {
    let reading = tokio::task::spawn_blocking(move || {
        let content = std::fs::read(file).ok()?;
        (Digest::of(&content) == digest).then(|| Bytes::from(content))
    });
    reading.await.ok().flatten()
}

/// Writes a file atomically, for its owner alone; a file that is there is as new afterwards.
fn keep(file: &Path, content: &[u8]) -> std::io::Result<()> {
    let folder = file.parent().unwrap_or(file);
    std::fs::create_dir_all(folder)?;
    let mut copy = tempfile::NamedTempFile::new_in(folder)?;
    copy.write_all(content)?;
    copy.persist(file).map_err(|error| error.error)?;
    Ok(())
}

/// Removes copies that are old, and the oldest of too many.
fn clear(folder: &Path, now: SystemTime) -> std::io::Result<()> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let about = entry.metadata()?;
        files.push((about.modified()?, about.len(), entry.path()));
    }
    files.sort_by_key(|(modified, ..)| std::cmp::Reverse(*modified));
    let mut bytes = 0;
    for (modified, length, path) in files {
        bytes += length;
        if bytes > MOST || now.duration_since(modified).is_ok_and(|age| age > KEPT) {
            std::fs::remove_file(path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_copy_is_what_was_sent_or_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let digest = Digest::of(b"{}");
        let file = folder.path().join("contexts").join(digest.as_str());
        assert_eq!(copy(file.clone(), digest.clone()).await, None);
        keep(&file, b"{}").unwrap();
        keep(&file, b"{}").unwrap();
        assert_eq!(copy(file.clone(), digest.clone()).await.as_deref(), Some(&b"{}"[..]));
        std::fs::write(&file, "{").unwrap();
        assert_eq!(copy(file, digest).await, None);
    }

    #[test]
    fn old_copies_go() {
        let folder = tempfile::tempdir().unwrap();
        let (old, new) = (folder.path().join("old"), folder.path().join("new"));
        keep(&old, b"1").unwrap();
        let written = std::fs::metadata(&old).unwrap().modified().unwrap();
        let file = std::fs::File::open(&old).unwrap();
        file.set_modified(written - KEPT).unwrap();
        keep(&new, b"2").unwrap();
        clear(folder.path(), written + Duration::from_secs(1)).unwrap();
        assert!(!old.exists() && new.exists());
    }
}

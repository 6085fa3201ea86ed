//! The contexts of a run: reads them from files, splits them into one base and a delta per session,
//! and stores the base on the coordinator.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context as _;
use kage_core::context::{self, Context, Split};
use kage_core::id::{Digest, ProjectId};
use kage_proto::blob;
use kage_proto::status::ApiError;
use kage_proto::v1;

use crate::assignments::Worker;
use crate::connect::Access;
use crate::exit::Refusal;

/// The contexts, as the task has them.
#[derive(Debug, PartialEq, Eq)]
pub struct Shared {
    /// Digest of the stored base; `None` without contexts.
    pub base: Option<Digest>,
    /// One per worker, in the workers' order.
    pub deltas: Vec<Option<String>>,
}

/// Reads the files, stores the base, and returns the task's part.
///
/// # Errors
/// When a file is not a context, or the coordinator refuses the base.
pub async fn put(access: &Access, project: &ProjectId, files: &[String], workers: &[Worker]) -> anyhow::Result<Shared> {
    if files.is_empty() {
        return Ok(Shared {
            base: None,
            deltas: vec![None; workers.len()],
        });
    }
    let contexts = read(files, workers)?;
    let Split { base, deltas } = context::split(&contexts);
    let digest = base.digest();
    store(access, project, &digest, base.canonical()).await?;
    Ok(Shared {
        base: Some(digest),
        deltas: deltas.into_iter().map(|delta| delta.map(|d| d.canonical())).collect(),
    })
}

/// The context of each worker: its adapter's file, or else the file for all, or else empty.
fn read(files: &[String], workers: &[Worker]) -> anyhow::Result<Vec<Context>> {
    let mut for_all = None;
    let mut by_adapter: BTreeMap<&str, Context> = BTreeMap::new();
    for entry in files {
        match entry.split_once('=') {
            Some((adapter, file)) => {
                if !workers.iter().any(|w| w.adapter.as_str() == adapter) {
                    let message = format!("--context {entry:?}: no session of this task uses the adapter {adapter:?}");
                    return Err(Refusal::usage(message).into());
                }
                if by_adapter.insert(adapter, parse(file)?).is_some() {
                    return Err(Refusal::usage(format!("two contexts were given for {adapter}")).into());
                }
            }
            None => {
                if for_all.replace(parse(entry)?).is_some() {
                    return Err(Refusal::usage("two contexts were given for all sessions").into());
                }
            }
        }
    }
    let for_all = for_all.unwrap_or_default();
    Ok(workers
        .iter()
        .map(|w| by_adapter.get(w.adapter.as_str()).unwrap_or(&for_all).clone())
        .collect())
}

fn parse(file: &str) -> anyhow::Result<Context> {
    let bytes =
        std::fs::read(Path::new(file)).map_err(|e| Refusal::usage(format!("cannot read the context {file}: {e}")))?;
    Context::parse(&bytes)
        .map_err(anyhow::Error::from)
        .map_err(|e| Refusal::usage(format!("{file} is not a context: {e:#}")).into())
}

async fn store(access: &Access, project: &ProjectId, digest: &Digest, content: String) -> anyhow::Result<()> {
    let inline = content.len() <= kage_proto::MAX_INLINE;
    let content = bytes::Bytes::from(content);
    if !inline {
        upload(access, project, digest, content.clone()).await?;
    }
    let request = v1::PutContextRequest {
        request_id: crate::tasks::request_id(),
        project: project.to_string(),
        digest: digest.to_string(),
        content: if inline { content } else { bytes::Bytes::new() },
    };
    access
        .client
        .contexts()
        .put_context(request)
        .await
        .map_err(ApiError::from)?;
    Ok(())
}

async fn upload(access: &Access, project: &ProjectId, digest: &Digest, content: bytes::Bytes) -> anyhow::Result<()> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assignments::workers;

    #[test]
    fn each_worker_gets_its_adapters_context() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let all = file("all.json", r#"{"a":1}"#);
        let codex = file("codex.json", r#"{"a":2}"#);
        let workers = workers(&["codex".to_owned(), "claude-code".to_owned()], 1, &[]).unwrap();
        let read = |files: &[String]| read(files, &workers);

        let contexts = read(&[all.clone(), format!("codex={codex}")]).unwrap();
        assert_eq!(
            contexts.iter().map(Context::canonical).collect::<Vec<_>>(),
            [r#"{"a":2}"#, r#"{"a":1}"#]
        );
        assert!(read(&[format!("gemini={codex}")]).is_err());
        assert!(read(&[all.clone(), all]).is_err());
        assert!(read(&[file("null.json", r#"{"a":null}"#)]).is_err());
    }
}

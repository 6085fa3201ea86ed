//! ContextService: base contexts, their bytes on the blob plane and their rows in the store.

use std::sync::Arc;

use bytes::Bytes;
use kage_core::cause::chain;
use kage_core::context::Context;
use kage_core::id::{Digest, ProjectId};
use kage_proto::status::ApiError;
use kage_proto::v1::context_service_server::ContextService;
use kage_proto::{MAX_INLINE, convert, v1};
use tonic::{Request, Response, Status};

use super::room::Room;
use super::{principal, request};
use crate::coordinator::Coordinator;
use crate::coordinator::lost::A_CLIENT;
use crate::data::blobs::BlobError;
use crate::door::auth::Principal;
use crate::refusals::{internal, read_error, store_error};
use crate::store::PutContext;

/// The largest base context, in bytes: it is read into memory to be checked.
const MAX_CONTEXT: u64 = 64 << 20;

#[derive(Debug)]
pub(crate) struct Contexts(pub(crate) Arc<Coordinator>);

#[tonic::async_trait]
impl ContextService for Contexts {
    async fn put_context(
        &self,
        message: Request<v1::PutContextRequest>,
    ) -> Result<Response<v1::PutContextResponse>, Status> {
        let caller = principal(&message);
        let message = message.into_inner();
        let (project, digest) = names(&caller, &message.project, &message.digest)?;
        let request = request(&self.0, &caller, &message.request_id, &(&project, &digest))?;
        let known = self.0.store.context_size(&project, &digest).await.map_err(read_error)?;
        // Its file may have been collected, because no task needed it, or lost.
        let known = match known {
            Some(size) if self.is_lost(&project, &digest).await? => {
                tracing::info!(%project, %digest, size, "a client sends a context whose file is gone");
                None
            }
            known => known,
        };
        let size = match known {
            Some(size) => size,
            None => {
                let room = Room::of(&self.0, &caller, &project).await?;
                room.took(message.content.len());
                self.take(&project, &digest, message.content).await?
            }
        };
        let command = PutContext {
            request,
            project: project.clone(),
            digest: digest.clone(),
            size,
            now: self.0.now(),
        };
        let put = self.0.apply(command).await.map_err(store_error)?;
        self.0.lost.brought(&project, &digest, A_CLIENT);
        Ok(Response::new(v1::PutContextResponse {
            digest: digest.into(),
            created: put.created,
        }))
    }

    async fn get_context(
        &self,
        message: Request<v1::GetContextRequest>,
    ) -> Result<Response<v1::GetContextResponse>, Status> {
        let (project, digest) = names(
            &principal(&message),
            &message.get_ref().project,
            &message.get_ref().digest,
        )?;
        let size = self.0.store.context_size(&project, &digest).await.map_err(read_error)?;
        let size = size.ok_or_else(|| unknown(&digest))?;
        let content = if size <= MAX_INLINE as u64 {
            match self.0.blobs.read(&project, &digest).await {
                Ok(bytes) => bytes,
                Err(BlobError::NotFound(_)) => return Err(unknown(&digest).into()),
                Err(error) => return Err(internal("the context could not be read", &error).into()),
            }
        } else {
            Bytes::new()
        };
        Ok(Response::new(v1::GetContextResponse {
            digest: digest.into(),
            size,
            content,
        }))
    }

    async fn get_context_stats(
        &self,
        message: Request<v1::GetContextStatsRequest>,
    ) -> Result<Response<v1::GetContextStatsResponse>, Status> {
        let (project, digest) = names(
            &principal(&message),
            &message.get_ref().project,
            &message.get_ref().digest,
        )?;
        let stats = self
            .0
            .store
            .context_stats(&project, &digest)
            .await
            .map_err(read_error)?;
        let stats = stats.ok_or_else(|| unknown(&digest))?;
        let sent = stats.sent.into_iter().map(|sent| v1::AgentTransfers {
            agent: if sent.agent_name.is_empty() {
                sent.agent.to_string()
            } else {
                sent.agent_name
            },
            times: sent.times,
            bytes: sent.bytes,
        });
        Ok(Response::new(v1::GetContextStatsResponse {
            size: stats.size,
            times_put: stats.times_put,
            sessions: stats.sessions,
            delta_bytes: stats.delta_bytes,
            sent: sent.collect(),
        }))
    }
}

impl Contexts {
    /// Whether the bytes of a context, which has a row, are not here.
    async fn is_lost(&self, project: &ProjectId, digest: &Digest) -> Result<bool, ApiError> {
        let size = self.0.blobs.size(project, digest).await;
        let size = size.map_err(|error| internal("the context could not be read", &error))?;
        Ok(size.is_none())
    }

    /// Makes the bytes durable and checks that they are a context. Returns their size.
    async fn take(&self, project: &ProjectId, digest: &Digest, content: Bytes) -> Result<u64, ApiError> {
        if content.is_empty() {
            let content = self.uploaded(project, digest).await?;
            let size = content.len() as u64;
            // It may be large, and is a blob already.
            let checked = tokio::task::spawn_blocking(move || check(&content)).await;
            checked.map_err(|error| internal("the context could not be read", &error))??;
            Ok(size)
        } else {
            if content.len() > MAX_INLINE {
                return Err(ApiError::invalid(
                    "content",
                    format_args!("has more than {MAX_INLINE} bytes; upload it as a blob first"),
                ));
            }
            if Digest::of(&content) != *digest {
                return Err(ApiError::invalid("digest", "is not that of the content"));
            }
            check(&content)?;
            let size = content.len() as u64;
            let stored = self.0.blobs.put_bytes(project, content).await;
            stored.map_err(|error| internal("the context could not be stored", &error))?;
            Ok(size)
        }
    }

    async fn uploaded(&self, project: &ProjectId, digest: &Digest) -> Result<Bytes, ApiError> {
        let failed = |error: BlobError| internal("the context could not be read", &error);
        match self.0.blobs.size(project, digest).await.map_err(failed)? {
            None => Err(ApiError::FailedPrecondition {
                message: format!("there is no blob {digest}; upload it, or send the content"),
            }),
            Some(size) if size > MAX_CONTEXT => Err(ApiError::invalid(
                "digest",
                format_args!("names {size} bytes; a context has at most {MAX_CONTEXT}"),
            )),
            Some(_) => self.0.blobs.read(project, digest).await.map_err(failed),
        }
    }
}

/// A context is stored in its canonical spelling, so that equal contexts have one digest.
fn check(content: &[u8]) -> Result<(), ApiError> {
    let context = Context::parse(content).map_err(|error| ApiError::invalid("content", chain(&error)))?;
    if context.canonical().as_bytes() != content {
        return Err(ApiError::invalid(
            "content",
            "is not the canonical text of a context (sorted keys, no spaces)",
        ));
    }
    Ok(())
}

fn names(caller: &Principal, project: &str, digest: &str) -> Result<(ProjectId, Digest), ApiError> {
    Ok((caller.project("project", project)?, convert::parse("digest", digest)?))
}

fn unknown(digest: &Digest) -> ApiError {
    ApiError::NotFound {
        what: format!("context {digest}"),
    }
}

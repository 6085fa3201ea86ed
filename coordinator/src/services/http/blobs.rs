//! The blob plane: `HEAD|GET|PUT /v1/blobs/{project}/{digest}`. A blob is durable before
//! the answer to its PUT.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use axum::{Extension, Router};
use futures_util::StreamExt as _;
use http::header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, RANGE};
use http::{HeaderMap, HeaderValue, StatusCode};
use kage_core::id::{AgentId, Digest, InvalidId, ProjectId};
use kage_proto::blob::{AGENT_HEADER, BROUGHT_BY_HEADER, LOST_HEADER};
use kage_proto::status::ApiError;
use object_store::GetRange;

use super::{failed, forbidden, refused};
use crate::coordinator::Coordinator;
use crate::coordinator::lost::{A_CLIENT, PATIENCE_OF_SESSIONS};
use crate::data::blobs::{Blob, BlobError};
use crate::door::auth::Principal;
use crate::services::room::Room;
use crate::store::{RecordContextSent, StoreError};

pub(super) fn routes() -> Router<Arc<Coordinator>> {
    // A route for GET answers HEAD too, and leaves the body out.
    Router::new().route("/v1/blobs/{project}/{digest}", get(fetch).put(put))
}

type Names = Path<(String, String)>;

fn names(caller: &Principal, Path((project, digest)): Names) -> Result<(ProjectId, Digest), Box<Response>> {
    let refuse = |error: InvalidId| Box::new((StatusCode::BAD_REQUEST, format!("{error}\n")).into_response());
    let project = project.parse().map_err(refuse)?;
    caller.may_use(&project).map_err(|error| forbidden(&error))?;
    Ok((project, digest.parse().map_err(refuse)?))
}

/// The agent that a request is of.
fn agent(caller: &Principal, headers: &HeaderMap) -> Result<Option<AgentId>, Box<Response>> {
    let named = headers.get(AGENT_HEADER);
    let agent = caller.agent(named.map(|value| value.to_str().unwrap_or_default()));
    agent.map_err(|error| match &error {
        ApiError::InvalidArgument { .. } => Box::new((StatusCode::BAD_REQUEST, format!("{error}\n")).into_response()),
        _ => forbidden(&error),
    })
}

fn problem(error: &BlobError) -> Response {
    let status = match error {
        BlobError::DigestMismatch { .. } => StatusCode::UNPROCESSABLE_ENTITY,
        BlobError::NotFound(_) => StatusCode::NOT_FOUND,
        BlobError::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        BlobError::Body(_) => StatusCode::BAD_REQUEST,
        BlobError::Spool(_) | BlobError::Disk(_) | BlobError::Store(_) => return failed(error),
    };
    (status, format!("{error}\n")).into_response()
}

async fn put(
    State(coordinator): State<Arc<Coordinator>>,
    Extension(caller): Extension<Principal>,
    path: Names,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let asked = names(&caller, path).and_then(|names| Ok((names, agent(&caller, &headers)?)));
    let ((project, digest), agent) = match asked {
        Ok(asked) => asked,
        Err(refusal) => return *refusal,
    };
    let room = match Room::of(&coordinator, &caller, &project).await {
        Ok(room) => room,
        Err(error) => return *refused(&error),
    };
    let body = body.into_data_stream().inspect(move |piece| {
        if let Ok(bytes) = piece {
            room.took(bytes.len());
        }
    });
    match coordinator.blobs.put(&project, &digest, body).await {
        Ok(true) => {
            coordinator.lost.brought(&project, &digest, &who(&coordinator, agent));
            StatusCode::CREATED.into_response()
        }
        Ok(false) => StatusCode::OK.into_response(),
        Err(error) => problem(&error),
    }
}

async fn fetch(
    method: http::Method,
    State(coordinator): State<Arc<Coordinator>>,
    Extension(caller): Extension<Principal>,
    path: Names,
    headers: HeaderMap,
) -> Response {
    let asked = names(&caller, path).and_then(|names| Ok((names, agent(&caller, &headers)?)));
    let ((project, digest), agent) = match asked {
        Ok(asked) => asked,
        Err(refusal) => return *refusal,
    };
    let waits = agent.is_some() && headers.contains_key(LOST_HEADER);
    let (size, brought_by) = match found(&coordinator, &project, &digest, waits).await {
        Ok(found) => found,
        Err(refusal) => return *refusal,
    };
    let range = match headers
        .get(RANGE)
        .map(|value| range(value.to_str().unwrap_or_default(), size))
    {
        None | Some(Ask::Everything) => None,
        Some(Ask::Part(range)) => Some(range),
        Some(Ask::Nothing) => {
            let header = [(CONTENT_RANGE, format!("bytes */{size}"))];
            return (StatusCode::RANGE_NOT_SATISFIABLE, header).into_response();
        }
    };
    let partial = range.is_some();
    let blob = match coordinator.blobs.get(&project, &digest, range).await {
        Ok(blob) => blob,
        Err(error) => return problem(&error),
    };
    let length = blob.range.end - blob.range.start;
    let status = if partial {
        StatusCode::PARTIAL_CONTENT
    } else {
        StatusCode::OK
    };
    let mut response = http::Response::builder()
        .status(status)
        .header(ACCEPT_RANGES, "bytes")
        .header(CONTENT_TYPE, "application/octet-stream")
        .header(CONTENT_LENGTH, length)
        .header(ETAG, format!("\"{digest}\""));
    if let Some(by) = brought_by {
        response = response.header(BROUGHT_BY_HEADER, by);
    }
    if partial {
        let (first, last) = (blob.range.start, blob.range.end - 1);
        response = response.header(CONTENT_RANGE, format!("bytes {first}-{last}/{size}"));
    }
    let body = match agent {
        Some(agent) if !partial && method == http::Method::GET => counted(
            coordinator,
            blob,
            RecordContextSent {
                project,
                digest,
                agent,
                bytes: size,
            },
        ),
        Some(AgentId { .. }) | None => Body::from_stream(blob.bytes),
    };
    response.body(body).unwrap_or_else(|error| failed(&error))
}

/// The size of a blob; and who brought it just now, when it was lost and the caller waits for it.
async fn found(
    coordinator: &Coordinator,
    project: &ProjectId,
    digest: &Digest,
    waits: bool,
) -> Result<(u64, Option<HeaderValue>), Box<Response>> {
    let size = || async {
        let size = coordinator.blobs.size(project, digest).await;
        size.map_err(|error| Box::new(problem(&error)))
    };
    if let Some(size) = size().await? {
        return Ok((size, None));
    }
    let missing = || Box::new(problem(&BlobError::NotFound(digest.clone())));
    let known = coordinator.store.context_size(project, digest).await;
    if !waits || known.map_err(|error| Box::new(failed(&error)))?.is_none() {
        return Err(missing());
    }
    let by = coordinator.bring_back(project, digest, PATIENCE_OF_SESSIONS).await;
    let by = by.map_err(|error| Box::new(problem(&error)))?;
    let size = size().await?.ok_or_else(missing)?;
    Ok((size, by.and_then(|by| HeaderValue::from_str(&by).ok())))
}

/// Who brings something, for people.
fn who(coordinator: &Coordinator, agent: Option<AgentId>) -> String {
    let Some(agent) = agent else {
        return A_CLIENT.to_owned();
    };
    let board = coordinator.board();
    let name = board.agent(agent).map(|agent| format!("agent {}", agent.name));
    name.unwrap_or_else(|| format!("agent {agent}"))
}

/// A body that counts as sent when the connection took its last byte.
fn counted(coordinator: Arc<Coordinator>, blob: Blob, sent: RecordContextSent) -> Body {
    let mut left = blob.size;
    let mut pending = Some(sent);
    Body::from_stream(blob.bytes.inspect(move |bytes| {
        let count = bytes.as_ref().map_or(0, |bytes| bytes.len() as u64);
        left = left.saturating_sub(count);
        if left == 0
            && count > 0
            && let Some(sent) = pending.take()
        {
            let follows = Arc::clone(&coordinator);
            coordinator.tasks.spawn(async move {
                match follows.apply(sent).await {
                    // Any other blob than a context is not counted.
                    Ok(()) | Err(StoreError::NotFound { .. }) => {}
                    Err(error) => {
                        let error: &dyn std::error::Error = &error;
                        tracing::warn!(error, "cannot count a context as sent");
                    }
                }
            });
        }
    }))
}

/// The request of a Range header.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    Everything,
    Part(GetRange),
    Nothing,
}

/// One range is served; an unknown header is ignored, as HTTP requires.
pub(crate) fn range(header: &str, size: u64) -> Ask {
    let parsed = header.strip_prefix("bytes=").and_then(|spec| {
        let (first, last) = spec.trim().split_once('-')?;
        match (first, last) {
            ("", last) => {
                let count: u64 = last.parse().ok()?;
                Some((size.saturating_sub(count), size))
            }
            (first, "") => Some((first.parse().ok()?, size)),
            (first, last) => {
                let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
                (first <= last).then(|| (first, size.min(last.saturating_add(1))))
            }
        }
    });
    match parsed {
        None => Ask::Everything,
        Some((start, end)) if start >= end => Ask::Nothing,
        Some((start, end)) => Ask::Part(GetRange::Bounded(start..end)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_http_wants_it() {
        let part = |start, end| Ask::Part(GetRange::Bounded(start..end));
        let cases = [
            ("bytes=0-3", part(0, 4)),
            ("bytes=4-", part(4, 10)),
            ("bytes=-3", part(7, 10)),
            ("bytes=-30", part(0, 10)),
            ("bytes=8-99", part(8, 10)),
            ("bytes=10-", Ask::Nothing),
            ("bytes=-0", Ask::Nothing),
            ("bytes=3-2", Ask::Everything),
            ("bytes=0-1,4-5", Ask::Everything),
            ("lines=0-1", Ask::Everything),
            ("", Ask::Everything),
        ];
        for (header, expected) in cases {
            assert_eq!(range(header, 10), expected, "{header}");
        }
    }
}

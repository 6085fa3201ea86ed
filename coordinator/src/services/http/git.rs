//! Git smart HTTP: `/git/{project}/{repository}/...`. git itself answers, through
//! `kage_git::smart_http`; this file is the HTTP around it.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use futures_util::{StreamExt as _, TryStreamExt as _};
use http::header::{CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, StatusCode};
use kage_core::id::{InvalidId, ProjectId, RepositoryName};
use kage_git::smart_http::{ServeError, Service, advertise, serve};
use kage_git::{GitError, Mirror};
use serde::Deserialize;
use tokio_util::io::StreamReader;

use super::{failed, forbidden, refused};
use crate::coordinator::Coordinator;
use crate::data::repositories::RepositoryHold;
use crate::door::auth::Principal;
use crate::services::room::Room;

pub(super) fn routes() -> Router<Arc<Coordinator>> {
    Router::new()
        .route("/git/{project}/{repository}/info/refs", get(references))
        .route("/git/{project}/{repository}/{service}", post(exchange))
}

#[derive(Debug, Deserialize)]
struct Asked {
    service: Option<String>,
}

async fn references(
    State(coordinator): State<Arc<Coordinator>>,
    Extension(caller): Extension<Principal>,
    Path((project, repository)): Path<(String, String)>,
    Query(asked): Query<Asked>,
    headers: HeaderMap,
) -> Response {
    let Some(service) = asked.service.as_deref().and_then(Service::from_name) else {
        return (StatusCode::FORBIDDEN, "only git's smart protocol is served\n").into_response();
    };
    // Before anything is sent.
    if let Err(refusal) = room(&coordinator, &caller, &project, service).await {
        return *refusal;
    }
    let (mirror, _held) = match mirror(&coordinator, &caller, &project, &repository, service).await {
        Ok(mirror) => mirror,
        Err(refusal) => return *refusal,
    };
    match advertise(&mirror, service, protocol(&headers)).await {
        Ok(bytes) => {
            let headers = [
                (CONTENT_TYPE, service.advertisement_type()),
                (CACHE_CONTROL, "no-cache"),
            ];
            (headers, bytes).into_response()
        }
        Err(error) => problem(&mirror, &error),
    }
}

async fn exchange(
    State(coordinator): State<Arc<Coordinator>>,
    Extension(caller): Extension<Principal>,
    Path((project, repository, service)): Path<(String, String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let Some(service) = Service::from_name(&service) else {
        return (StatusCode::NOT_FOUND, "no such git service\n").into_response();
    };
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    if content_type != Some(service.request_type()) {
        let text = format!("the content type must be {}\n", service.request_type());
        return (StatusCode::UNSUPPORTED_MEDIA_TYPE, text).into_response();
    }
    let gzip = match headers.get(CONTENT_ENCODING).map(http::HeaderValue::as_bytes) {
        None | Some(b"identity") => false,
        Some(b"gzip" | b"x-gzip") => true,
        Some(_) => return (StatusCode::UNSUPPORTED_MEDIA_TYPE, "only gzip is understood\n").into_response(),
    };
    let room = match room(&coordinator, &caller, &project, service).await {
        Ok(room) => room,
        Err(refusal) => return *refusal,
    };
    let (mirror, held) = match mirror(&coordinator, &caller, &project, &repository, service).await {
        Ok(mirror) => mirror,
        Err(refusal) => return *refusal,
    };
    let body = body.into_data_stream().inspect(move |piece| {
        if let Ok(bytes) = piece {
            room.took(bytes.len());
        }
    });
    let body = StreamReader::new(body.map_err(io::Error::other));
    match serve(&mirror, service, protocol(&headers), gzip, body).await {
        Ok(reply) => {
            let headers = [(CONTENT_TYPE, service.result_type()), (CACHE_CONTROL, "no-cache")];
            // git may be at work until the end of its answer.
            let reply = reply.inspect(move |_| {
                let _held = &held;
            });
            (headers, Body::from_stream(reply)).into_response()
        }
        Err(error) => problem(&mirror, &error),
    }
}

/// What a push may send. A fetch sends nothing that stays.
async fn room(
    coordinator: &Coordinator,
    caller: &Principal,
    project: &str,
    service: Service,
) -> Result<Room, Box<Response>> {
    match (service, project.parse()) {
        (Service::ReceivePack, Ok(project)) => {
            caller.may_use(&project).map_err(|error| forbidden(&error))?;
            let room = Room::of(coordinator, caller, &project).await;
            room.map_err(|error| refused(&error))
        }
        // What is no project is refused with its repository.
        (Service::ReceivePack, Err(InvalidId { .. })) | (Service::UploadPack, _) => Ok(Room::default()),
    }
}

/// The repository that the path names. A push makes it, and holds it; a fetch does neither.
async fn mirror(
    coordinator: &Coordinator,
    caller: &Principal,
    project: &str,
    repository: &str,
    service: Service,
) -> Result<(Mirror, Option<RepositoryHold>), Box<Response>> {
    let refuse = |error: InvalidId| Box::new((StatusCode::BAD_REQUEST, format!("{error}\n")).into_response());
    let project: ProjectId = project.parse().map_err(refuse)?;
    let name: RepositoryName = repository.parse().map_err(refuse)?;
    caller.may_use(&project).map_err(|error| forbidden(&error))?;
    let held = match service {
        Service::ReceivePack => Some(coordinator.repositories.hold(&project, &name).map_err(|busy| {
            let text = format!("{busy}; try again\n");
            Box::new((StatusCode::SERVICE_UNAVAILABLE, text).into_response())
        })?),
        Service::UploadPack => None,
    };
    let opened = match service {
        Service::ReceivePack => coordinator.repositories.open_or_init(&project, &name).await.map(Some),
        Service::UploadPack => coordinator.repositories.open(&project, &name).await,
    };
    match opened {
        Ok(Some(mirror)) => Ok((mirror, held)),
        Ok(None) => {
            let text = format!("nothing was pushed to repository {name} yet\n");
            Err(Box::new((StatusCode::NOT_FOUND, text).into_response()))
        }
        Err(error) => Err(Box::new(fault(
            coordinator.repositories.path(&project, &name),
            &error,
            &error,
        ))),
    }
}

fn protocol(headers: &HeaderMap) -> Option<&str> {
    headers.get("git-protocol").and_then(|value| value.to_str().ok())
}

fn problem(mirror: &Mirror, error: &ServeError) -> Response {
    let status = match error {
        ServeError::Refused { .. } => StatusCode::FORBIDDEN,
        ServeError::Malformed { .. } | ServeError::Body(_) => StatusCode::BAD_REQUEST,
        ServeError::Git(git) => return fault(mirror.path().to_owned(), git, error),
    };
    (status, format!("{error}\n")).into_response()
}

/// git failed. If the repository may be damaged, the caller learns which one and what to do: it is
/// the only copy of results, so nothing is removed here.
fn fault(path: PathBuf, git: &GitError, error: &(dyn std::error::Error + 'static)) -> Response {
    if git.is_transient() && !matches!(git, GitError::Io { .. }) || !git.suggests_damage(&path) {
        return failed(error);
    }
    tracing::error!(repository = %path.display(), error, "a repository may be damaged");
    // Its project and name only; the place of the data folder is not disclosed.
    let name: PathBuf = path
        .iter()
        .rev()
        .take(2)
        .collect::<Vec<_>>()
        .into_iter()
        .rev()
        .collect();
    let text = format!(
        "the coordinator's repository {} is damaged: restore its data folder from a backup, or move repos/{} away\n",
        name.display(),
        name.display()
    );
    (StatusCode::INTERNAL_SERVER_ERROR, text).into_response()
}

//! The gRPC services: they decode requests into domain types, ask the store and the
//! board, and encode the answers. This file holds what all of them share: how
//! tasks are named, and request ids.

use kage_core::id::{Digest, TaskId};
use kage_proto::status::ApiError;
use serde::Serialize;

use crate::coordinator::Coordinator;
use crate::door::auth::Principal;
use crate::refusals::{internal, read_error};
use crate::store::{Named, Request, TaskView};

mod listing;
mod page;
mod room;

pub(crate) mod http;

pub(crate) mod access;
pub(crate) mod agent;
pub(crate) mod checkpoint;
pub(crate) mod context;
pub(crate) mod cost;
pub(crate) mod diff;
pub(crate) mod enrollment;
pub(crate) mod event;
pub(crate) mod fleet;
pub(crate) mod model_gate;
pub(crate) mod project;
pub(crate) mod server;
pub(crate) mod task;

const MAX_REQUEST_ID: usize = 128;

/// The task that a person names by its id or a prefix of it. To whoever is bound to a project
/// there are no tasks of others.
async fn find_task(coordinator: &Coordinator, caller: &Principal, text: &str) -> Result<TaskId, ApiError> {
    let id = named_task(coordinator, text).await?;
    if caller.bound_to().is_some() {
        let project = stored(coordinator, id).await?.task.spec.project;
        caller.may_use(&project).map_err(|_| ApiError::NotFound {
            what: format!("task {text}"),
        })?;
    }
    Ok(id)
}

async fn named_task(coordinator: &Coordinator, text: &str) -> Result<TaskId, ApiError> {
    if let Ok(id) = text.parse() {
        // Whether there is such a task turns out when it is read.
        return Ok(id);
    }
    match coordinator.store.find_task(text).await.map_err(read_error)? {
        Named::One(id) => Ok(id),
        Named::NotFound => Err(ApiError::NotFound {
            what: format!("task {text}"),
        }),
        Named::Ambiguous => Err(ApiError::invalid(
            "task_id",
            format_args!("{text} is the beginning of several ids; give more of it"),
        )),
    }
}

/// A task that has to be there.
async fn stored(coordinator: &Coordinator, id: TaskId) -> Result<TaskView, ApiError> {
    let view = coordinator.store.task(id).await.map_err(read_error)?;
    view.ok_or_else(|| ApiError::NotFound {
        what: format!("task {id}"),
    })
}

/// Whose call it is. The door has said so; where it has not, nobody's.
fn principal<T>(request: &tonic::Request<T>) -> Principal {
    let told = request.extensions().get::<Principal>();
    told.cloned().unwrap_or(Principal::Stranger)
}

/// Without TLS there is no CA, and nothing to join.
fn no_tls() -> ApiError {
    ApiError::FailedPrecondition {
        message: "this coordinator has no certificates: start it with --tls, or let it listen on an address that \
                  other machines reach"
            .to_owned(),
    }
}

/// The coordinator's own token was replaced since the first call.
fn not_repeatable() -> ApiError {
    ApiError::Conflict {
        message: "the token of this request cannot be shown again; ask for a new one".to_owned(),
    }
}

/// What makes a call one call, however often it is sent. One without an id is given one here: it
/// is a call of its own each time.
fn request(
    coordinator: &Coordinator,
    caller: &Principal,
    id: &str,
    payload: &impl Serialize,
) -> Result<Request, ApiError> {
    if id.len() > MAX_REQUEST_ID {
        return Err(ApiError::invalid(
            "request_id",
            format_args!("has more than {MAX_REQUEST_ID} bytes"),
        ));
    }
    let id = match id {
        "" => format!("given-{:032x}", coordinator.random()),
        id => id.to_owned(),
    };
    let bytes = serde_json::to_vec(payload).map_err(|error| internal("a request cannot be kept", &error))?;
    Ok(Request {
        principal: caller.name(),
        id,
        payload: Digest::of(&bytes),
    })
}

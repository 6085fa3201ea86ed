//! The gRPC services: they decode requests into domain types, ask the store and the
//! board, and encode the answers. This file holds what all of them share: request ids
//! and how the store's errors look from outside.

use std::error::Error;
use std::io;
use std::time::Duration;

use kage_core::id::{Digest, TaskId};
use kage_proto::status::ApiError;
use serde::Serialize;

use crate::auth::Principal;
use crate::coordinator::Coordinator;
use crate::store::{Named, ReadError, Request, StoreError, TaskView};

mod page;

pub(crate) mod access;
pub(crate) mod agent;
pub(crate) mod checkpoint;
pub(crate) mod context;
pub(crate) mod enrollment;
pub(crate) mod event;
pub(crate) mod fleet;
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

/// What makes a call one call, however often it is sent.
fn request(caller: &Principal, id: &str, payload: &impl Serialize) -> Result<Request, ApiError> {
    if id.is_empty() || id.len() > MAX_REQUEST_ID {
        return Err(ApiError::invalid(
            "request_id",
            format_args!("must be an id of the caller's own with 1 to {MAX_REQUEST_ID} characters"),
        ));
    }
    let bytes = serde_json::to_vec(payload).map_err(|error| internal("a request cannot be kept", &error))?;
    Ok(Request {
        principal: caller.name(),
        id: id.to_owned(),
        payload: Digest::of(&bytes),
    })
}

/// Says the whole story in the log, and outside only what is for outside.
pub(crate) fn internal(message: &str, error: &(dyn Error + 'static)) -> ApiError {
    tracing::error!(error, message);
    if is_disk_full(error) {
        return ApiError::ResourceExhausted {
            message: format!("{message}: the coordinator's disk is full"),
            retry: Some(Duration::from_secs(5)),
        };
    }
    ApiError::Internal {
        message: message.to_owned(),
    }
}

/// True when there is no room on the disk: something that passes, and that a person can cure.
fn is_disk_full(error: &(dyn Error + 'static)) -> bool {
    let io = error.downcast_ref::<io::Error>();
    let kind = io.map(io::Error::kind);
    let code = error
        .downcast_ref::<rusqlite::Error>()
        .and_then(rusqlite::Error::sqlite_error_code);
    matches!(kind, Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
        || code == Some(rusqlite::ErrorCode::DiskFull)
        // What an I/O error was made of is not its source; that one's source is.
        || io.and_then(io::Error::get_ref).is_some_and(|inner| is_disk_full(inner))
        || error.source().is_some_and(is_disk_full)
}

pub(crate) fn store_error(error: StoreError) -> ApiError {
    match &error {
        StoreError::RequestConflict { .. } => ApiError::Conflict {
            message: error.to_string(),
        },
        StoreError::NoAgent { lacking } => ApiError::NoAgent {
            message: lacking.clone(),
        },
        StoreError::TaskOpen { .. } => ApiError::FailedPrecondition {
            message: error.to_string(),
        },
        StoreError::NotFound { what, id } => ApiError::NotFound {
            what: format!("{what} {id}"),
        },
        StoreError::Unknown { .. } => {
            tracing::error!(error = &error as &dyn Error, "commit of unknown outcome");
            ApiError::Unavailable {
                message: "the outcome of the call is not known; send it again with the same request id".to_owned(),
                retry: None,
            }
        }
        StoreError::Closed => ApiError::Unavailable {
            message: "the coordinator is shutting down".to_owned(),
            retry: None,
        },
        StoreError::Engine { .. } | StoreError::IdTaken { .. } | StoreError::SessionCount { .. } => {
            internal("the store failed", &error)
        }
    }
}

pub(crate) fn read_error(error: ReadError) -> ApiError {
    internal("the store could not be read", &error)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::store::EngineError;

    #[test]
    fn a_full_disk_is_said_to_be_full_however_deep_it_is_told() {
        let sqlite = |code| {
            let error = rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), None);
            let source = Arc::new(EngineError::Sqlite(error));
            store_error(StoreError::Engine { source })
        };
        let full = sqlite(rusqlite::ffi::SQLITE_FULL);
        assert!(matches!(full, ApiError::ResourceExhausted { .. }), "{full:?}");
        let other = sqlite(rusqlite::ffi::SQLITE_CORRUPT);
        assert!(matches!(other, ApiError::Internal { .. }), "{other:?}");
        let full = io::Error::from(io::ErrorKind::StorageFull);
        assert!(is_disk_full(&io::Error::other(full)));
        assert!(!is_disk_full(&io::Error::from(io::ErrorKind::NotFound)));
    }
}

//! How errors of the store and of the disk look from outside: the log has the whole story, the
//! caller what is for callers.

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use kage_core::cause::chain;
use kage_proto::status::ApiError;

use crate::data::repositories::Busy;
use crate::store::{EngineError, EngineTrouble, ReadError, StoreError};

/// How soon a call may be repeated that found its repository in use.
const BUSY_REPOSITORY: Duration = Duration::from_secs(1);
/// When a project whose queue is full may try again.
const FULL_QUEUE: Duration = Duration::from_secs(30);
/// How soon a call that a full disk refused may be repeated.
const FULL_DISK: Duration = Duration::from_secs(5);

/// Says the whole story in the log, and outside only what is for outside.
pub(crate) fn internal(message: &str, error: &(dyn Error + 'static)) -> ApiError {
    tracing::error!(error, message);
    if is_disk_full(error) {
        return ApiError::ResourceExhausted {
            message: format!("{message}: the coordinator's disk is full"),
            retry: Some(FULL_DISK),
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
    // Commands of one commit share what their engine said.
    let shared = error.downcast_ref::<Arc<EngineError>>().map(Arc::as_ref);
    let engine = error.downcast_ref::<EngineError>().or(shared);
    matches!(kind, Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
        || engine.is_some_and(|engine| engine.trouble() == EngineTrouble::DiskFull)
        // What an I/O error was made of is not its source; that one's source is.
        || io.and_then(io::Error::get_ref).is_some_and(|inner| is_disk_full(inner))
        || error.source().is_some_and(is_disk_full)
}

pub(crate) fn store_error(error: StoreError) -> ApiError {
    match &error {
        StoreError::RequestConflict { .. } => ApiError::Conflict {
            message: error.to_string(),
        },
        StoreError::QueueFull { .. } => ApiError::ResourceExhausted {
            message: error.to_string(),
            retry: Some(FULL_QUEUE),
        },
        StoreError::ProjectFull { words } => ApiError::ResourceExhausted {
            message: words.clone(),
            // Nothing of it goes by itself.
            retry: None,
        },
        StoreError::NoAgent(nobody) => ApiError::NoAgent {
            message: nobody.to_string(),
        },
        StoreError::TaskOpen { .. }
        | StoreError::NoResult { .. }
        | StoreError::CannotSend(_)
        | StoreError::CannotAnswer(_)
        | StoreError::NothingToForkFrom { .. }
        | StoreError::TooManySessions { .. }
        | StoreError::CannotVerify { .. }
        | StoreError::NoVerify { .. }
        | StoreError::RepositoryInUse { .. } => ApiError::FailedPrecondition { message: chain(&error) },
        StoreError::SessionsChanged { .. } => ApiError::Unavailable {
            message: error.to_string(),
            retry: None,
        },
        StoreError::NotFound { what, id } => ApiError::NotFound {
            what: format!("{what} {id}"),
        },
        StoreError::Unknown { .. } => {
            tracing::error!(error = &error as &dyn Error, "commit of unknown outcome");
            let (why, retry) = match is_disk_full(&error) {
                true => ("the coordinator's disk is full, and ", Some(FULL_DISK)),
                false => ("", None),
            };
            ApiError::Unavailable {
                message: format!("{why}the outcome of the call is not known; send it again with the same request id"),
                retry,
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

/// A repository that somebody uses or deletes is free a little later.
pub(crate) fn busy(busy: Busy) -> ApiError {
    ApiError::Unavailable {
        message: format!("{busy}; try again"),
        retry: Some(BUSY_REPOSITORY),
    }
}

pub(crate) fn read_error(error: ReadError) -> ApiError {
    internal("the store could not be read", &error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_said_to_be_full_however_deep_it_is_told() {
        let database = |trouble| EngineError::Database {
            trouble,
            source: "what it said".into(),
        };
        let shared = |trouble| {
            let source = Arc::new(database(trouble));
            store_error(StoreError::Engine { source })
        };
        let full = shared(EngineTrouble::DiskFull);
        assert!(matches!(full, ApiError::ResourceExhausted { .. }), "{full:?}");
        // A disk can be full at the very commit, whose outcome is not known then.
        let source = Arc::new(database(EngineTrouble::DiskFull));
        let unknown = store_error(StoreError::Unknown { source });
        assert!(
            matches!(&unknown, ApiError::Unavailable { message, .. } if message.contains("disk is full")),
            "{unknown:?}"
        );
        let read = read_error(ReadError::Engine(database(EngineTrouble::DiskFull)));
        assert!(matches!(read, ApiError::ResourceExhausted { .. }), "{read:?}");
        let other = shared(EngineTrouble::Damaged);
        assert!(matches!(other, ApiError::Internal { .. }), "{other:?}");
        let full = io::Error::from(io::ErrorKind::StorageFull);
        assert!(is_disk_full(&io::Error::other(full)));
        assert!(!is_disk_full(&io::Error::from(io::ErrorKind::NotFound)));
    }
}

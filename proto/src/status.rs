//! The errors of calls. The only place that builds or reads `tonic::Status`: services return
//! [`ApiError`], clients get one back with the same facts. The facts travel as `google.rpc`
//! details: ErrorInfo (a stable reason), BadRequest, RetryInfo.

use std::time::Duration;

use http::HeaderMap;
use kage_core::access::JoinRefusal;
use prost::Message as _;
use prost_types::Any;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt, pb};

use crate::convert::{InvalidField, InvalidFields};

/// The ErrorInfo domain of every reason.
pub const DOMAIN: &str = "kage.v1";

/// Why a call failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    /// The request is wrong and stays wrong.
    #[error("{}", list(violations))]
    InvalidArgument {
        /// Every field that is known to be wrong.
        violations: Vec<InvalidField>,
    },
    /// It does not exist.
    #[error("{what} was not found")]
    NotFound {
        /// The kind, with the requested name.
        what: String,
    },
    /// The request id was used for another request, or a name is taken.
    #[error("{message}")]
    Conflict {
        /// The conflict.
        message: String,
    },
    /// The request is right, and not possible as things are.
    #[error("{message}")]
    FailedPrecondition {
        /// What has to be done first.
        message: String,
    },
    /// No known agent can run the task.
    #[error("{message}")]
    NoAgent {
        /// What all agents lack.
        message: String,
    },
    /// The two sides have no protocol version in common.
    #[error("{message}")]
    OtherProtocol {
        /// The versions of both sides.
        message: String,
    },
    /// An agent with the caller's identity is connected and lives: the caller is a copy of it.
    #[error("{message}")]
    AgentIdInUse {
        /// The connected agent, and how to become another agent.
        message: String,
    },
    /// The join token is refused.
    #[error("{0}")]
    JoinRefused(JoinRefusal),
    /// The token is missing or wrong.
    #[error("the bearer token is missing or wrong")]
    Unauthenticated,
    /// The caller is known and may not.
    #[error("{message}")]
    PermissionDenied {
        /// What the caller may not do.
        message: String,
    },
    /// A limit is reached.
    #[error("{message}")]
    ResourceExhausted {
        /// Which limit.
        message: String,
        /// When another try makes sense.
        retry: Option<Duration>,
    },
    /// The coordinator cannot be reached or is going away; the outcome may be unknown.
    #[error("{message}")]
    Unavailable {
        /// In which way.
        message: String,
        /// When another try makes sense.
        retry: Option<Duration>,
    },
    /// The other side does not know this call.
    #[error("{message}")]
    Unimplemented {
        /// Which.
        message: String,
    },
    /// A fault of the coordinator.
    #[error("{message}")]
    Internal {
        /// The message of the status.
        message: String,
    },
}

fn list(violations: &[InvalidField]) -> String {
    let texts: Vec<_> = violations.iter().map(ToString::to_string).collect();
    texts.join("; ")
}

impl ApiError {
    /// A request with one wrong field.
    pub fn invalid(field: impl Into<String>, problem: impl std::fmt::Display) -> Self {
        InvalidField::new(field, problem).into()
    }

    /// True if the same call may succeed later by itself.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        match self {
            Self::ResourceExhausted { .. } | Self::Unavailable { .. } => true,
            Self::InvalidArgument { .. }
            | Self::NotFound { .. }
            | Self::Conflict { .. }
            | Self::FailedPrecondition { .. }
            | Self::NoAgent { .. }
            | Self::OtherProtocol { .. }
            | Self::AgentIdInUse { .. }
            | Self::JoinRefused(_)
            | Self::Unauthenticated
            | Self::PermissionDenied { .. }
            | Self::Unimplemented { .. }
            | Self::Internal { .. } => false,
        }
    }

    /// The stable word for this kind of error, on the wire and in JSON output.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::InvalidArgument { .. } => "INVALID_ARGUMENT",
            Self::NotFound { .. } => "NOT_FOUND",
            Self::Conflict { .. } => "CONFLICT",
            Self::FailedPrecondition { .. } => "FAILED_PRECONDITION",
            Self::NoAgent { .. } => NO_AGENT,
            Self::OtherProtocol { .. } => OTHER_PROTOCOL,
            Self::AgentIdInUse { .. } => AGENT_ID_IN_USE,
            Self::JoinRefused(refusal) => refusal.reason(),
            Self::Unauthenticated => "UNAUTHENTICATED",
            Self::PermissionDenied { .. } => "PERMISSION_DENIED",
            Self::ResourceExhausted { .. } => "RESOURCE_EXHAUSTED",
            Self::Unavailable { .. } => "UNAVAILABLE",
            Self::Unimplemented { .. } => "UNIMPLEMENTED",
            Self::Internal { .. } => "INTERNAL",
        }
    }

    /// As it travels: the code, the message, and the `google.rpc` details.
    pub(crate) fn on_the_wire(self) -> (Code, String, Vec<Any>) {
        let status = Status::from(self);
        let details = pb::Status::decode(status.details()).map(|status| status.details);
        (status.code(), status.message().to_owned(), details.unwrap_or_default())
    }

    const fn code(&self) -> Code {
        match self {
            Self::InvalidArgument { .. } => Code::InvalidArgument,
            Self::NotFound { .. } => Code::NotFound,
            Self::Conflict { .. } => Code::AlreadyExists,
            Self::FailedPrecondition { .. }
            | Self::NoAgent { .. }
            | Self::OtherProtocol { .. }
            | Self::AgentIdInUse { .. } => Code::FailedPrecondition,
            Self::Unauthenticated => Code::Unauthenticated,
            Self::PermissionDenied { .. } | Self::JoinRefused(_) => Code::PermissionDenied,
            Self::ResourceExhausted { .. } => Code::ResourceExhausted,
            Self::Unavailable { .. } => Code::Unavailable,
            Self::Unimplemented { .. } => Code::Unimplemented,
            Self::Internal { .. } => Code::Internal,
        }
    }
}

impl From<InvalidField> for ApiError {
    fn from(violation: InvalidField) -> Self {
        Self::InvalidArgument {
            violations: vec![violation],
        }
    }
}

impl From<InvalidFields> for ApiError {
    fn from(wrong: InvalidFields) -> Self {
        Self::InvalidArgument { violations: wrong.0 }
    }
}

/// How a call ended, by its trailers or, if there was no message, its headers; `None` = they do not say.
#[must_use]
pub fn outcome(headers: &HeaderMap) -> Option<Result<(), ApiError>> {
    let status = Status::from_header_map(headers)?;
    Some(match status.code() {
        Code::Ok => Ok(()),
        _ => Err(status.into()),
    })
}

const NO_AGENT: &str = "NO_AGENT";
const OTHER_PROTOCOL: &str = "OTHER_PROTOCOL";
const AGENT_ID_IN_USE: &str = "AGENT_ID_IN_USE";

/// The metadata key of the name of what was not found.
const WHAT: &str = "what";

/// The most bytes of one text. A status travels in headers, of which a client takes 16 KiB;
/// one that says more, as when it repeats what was asked for, would break the connection.
const MAX_TEXT: usize = 768;
/// The most bytes of all wrong fields that are told of at once.
const MAX_VIOLATIONS: usize = 6 * MAX_TEXT;

fn bounded(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_TEXT)]
}

impl From<ApiError> for Status {
    fn from(error: ApiError) -> Self {
        let mut details = ErrorDetails::new();
        let mut metadata = std::collections::HashMap::new();
        match &error {
            ApiError::InvalidArgument { violations } => {
                let mut bytes = 0;
                for violation in violations {
                    let (field, problem) = (bounded(&violation.field), bounded(&violation.problem));
                    bytes += field.len() + problem.len();
                    if bytes > MAX_VIOLATIONS {
                        break;
                    }
                    details.add_bad_request_violation(field, problem);
                }
            }
            ApiError::ResourceExhausted { retry, .. } | ApiError::Unavailable { retry, .. } => {
                if retry.is_some() {
                    details.set_retry_info(*retry);
                }
            }
            ApiError::NotFound { what } => {
                metadata.insert(WHAT.to_owned(), bounded(what).to_owned());
            }
            ApiError::Conflict { .. }
            | ApiError::FailedPrecondition { .. }
            | ApiError::NoAgent { .. }
            | ApiError::OtherProtocol { .. }
            | ApiError::AgentIdInUse { .. }
            | ApiError::JoinRefused(_)
            | ApiError::Unauthenticated
            | ApiError::PermissionDenied { .. }
            | ApiError::Unimplemented { .. }
            | ApiError::Internal { .. } => {}
        }
        details.set_error_info(error.reason(), DOMAIN, metadata);
        Self::with_error_details(error.code(), bounded(&error.to_string()), details)
    }
}

impl From<Status> for ApiError {
    fn from(status: Status) -> Self {
        let message = status.message().to_owned();
        let details = status.get_error_details();
        let reason = details.error_info().map_or("", |info| info.reason.as_str());
        let retry = details.retry_info().and_then(|info| info.retry_delay);
        match status.code() {
            Code::InvalidArgument | Code::OutOfRange => {
                let mut violations: Vec<_> = details
                    .bad_request()
                    .into_iter()
                    .flat_map(|bad| &bad.field_violations)
                    .map(|v| InvalidField::new(&v.field, &v.description))
                    .collect();
                if violations.is_empty() {
                    violations.push(InvalidField::new("request", message));
                }
                Self::InvalidArgument { violations }
            }
            Code::NotFound => Self::NotFound {
                what: details
                    .error_info()
                    .and_then(|info| info.metadata.get(WHAT).cloned())
                    .unwrap_or(message),
            },
            Code::AlreadyExists | Code::Aborted => Self::Conflict { message },
            Code::FailedPrecondition => match reason {
                NO_AGENT => Self::NoAgent { message },
                OTHER_PROTOCOL => Self::OtherProtocol { message },
                AGENT_ID_IN_USE => Self::AgentIdInUse { message },
                _ => Self::FailedPrecondition { message },
            },
            Code::Unauthenticated => Self::Unauthenticated,
            Code::PermissionDenied => match JoinRefusal::ALL.into_iter().find(|refusal| refusal.reason() == reason) {
                Some(refusal) => Self::JoinRefused(refusal),
                None => Self::PermissionDenied { message },
            },
            Code::ResourceExhausted => Self::ResourceExhausted { message, retry },
            // A call that was cut may or may not have had its effect: the same as no answer.
            Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded => Self::Unavailable { message, retry },
            Code::Unimplemented => Self::Unimplemented { message },
            // tonic reports a connection that broke under a call as Unknown.
            Code::Unknown if std::error::Error::source(&status).is_some() => Self::Unavailable { message, retry },
            Code::Ok | Code::Unknown | Code::Internal | Code::DataLoss => Self::Internal { message },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_survives_the_wire() {
        let message = || "words".to_owned();
        let retry = Some(Duration::from_millis(1500));
        let errors = [
            ApiError::InvalidArgument {
                violations: vec![
                    InvalidField::new("a.b", "is wrong"),
                    InvalidField::new("c", "is missing"),
                ],
            },
            ApiError::NotFound { what: "task 12".into() },
            ApiError::Conflict { message: message() },
            ApiError::FailedPrecondition { message: message() },
            ApiError::NoAgent { message: message() },
            ApiError::OtherProtocol { message: message() },
            ApiError::AgentIdInUse { message: message() },
            ApiError::Unauthenticated,
            ApiError::PermissionDenied { message: message() },
            ApiError::ResourceExhausted {
                message: message(),
                retry,
            },
            ApiError::Unavailable {
                message: message(),
                retry: None,
            },
            ApiError::Unavailable {
                message: message(),
                retry,
            },
            ApiError::Unimplemented { message: message() },
            ApiError::Internal { message: message() },
        ];
        let refusals = JoinRefusal::ALL.map(ApiError::JoinRefused);
        for error in errors.into_iter().chain(refusals) {
            let status = Status::from(error.clone());
            let info = status.get_error_details().error_info().cloned();
            assert_eq!(
                info.map(|i| (i.reason, i.domain)),
                Some((error.reason().to_owned(), DOMAIN.to_owned()))
            );
            assert_eq!(ApiError::from(status), error);
        }
    }

    #[test]
    fn an_error_fits_into_headers_whatever_it_repeats() {
        let long = "é".repeat(1 << 20);
        let errors = [
            ApiError::NotFound { what: long.clone() },
            ApiError::Internal { message: long.clone() },
            ApiError::InvalidArgument {
                violations: vec![InvalidField::new(&long, &long); 100],
            },
        ];
        for error in errors {
            let status = Status::from(error.clone());
            assert!(status.message().len() <= MAX_TEXT);
            assert!(status.details().len() <= 8 * MAX_TEXT, "{}", status.details().len());
            assert_eq!(ApiError::from(status).reason(), error.reason());
        }
    }

    #[test]
    fn every_wrong_field_is_told() {
        let violations: Vec<_> = (0..40)
            .map(|n| InvalidField::new(format!("spec.assignments[{n}].adapter"), "must be a name"))
            .collect();
        let error = ApiError::InvalidArgument { violations };
        assert_eq!(ApiError::from(Status::from(error.clone())), error);
    }

    #[test]
    fn reads_statuses_of_others() {
        let cases = [
            (Code::DeadlineExceeded, "UNAVAILABLE"),
            (Code::Cancelled, "UNAVAILABLE"),
            (Code::Aborted, "CONFLICT"),
            (Code::OutOfRange, "INVALID_ARGUMENT"),
            (Code::Unknown, "INTERNAL"),
        ];
        for (code, reason) in cases {
            assert_eq!(ApiError::from(Status::new(code, "x")).reason(), reason, "{code:?}");
        }
    }
}

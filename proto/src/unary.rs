//! Unary calls as JSON over HTTP, for programs that do not speak gRPC: what they send and get by the unary part
//! of the Connect protocol (<https://connectrpc.com/docs/protocol>, without compression and GET). Messages are
//! read and written by the descriptors that reflection serves, so a call that is added there can be made.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use prost::Message as _;
use prost_reflect::{DeserializeOptions, DynamicMessage, MethodDescriptor};
use serde_json::{Value, json};
use tonic::Code;

use crate::convert::InvalidField;
use crate::json::{self, DESCRIPTORS};
use crate::status::ApiError;

/// A call with one request and one reply.
#[derive(Debug, Clone)]
pub struct UnaryCall(MethodDescriptor);

impl UnaryCall {
    /// The call with this path, `/kage.v1.TaskService/GetTask`.
    ///
    /// # Errors
    /// [`ApiError::Unimplemented`] if there is none, or if one of its sides streams.
    pub fn at(path: &str) -> Result<Self, ApiError> {
        let name = path.trim_start_matches('/');
        let found = name.split_once('/').and_then(|(service, method)| {
            let service = DESCRIPTORS.get_service_by_name(service)?;
            service.methods().find(|found| found.name() == method)
        });
        let message = match found {
            Some(call) if call.is_client_streaming() || call.is_server_streaming() => {
                format!("{name} streams: call it by gRPC or gRPC-Web")
            }
            Some(call) => return Ok(Self(call)),
            None => format!("there is no call {name}; docs/api.md has their names"),
        };
        Err(ApiError::Unimplemented { message })
    }

    /// The request as Protocol Buffers. Nothing at all is the empty request.
    ///
    /// # Errors
    /// [`ApiError::InvalidArgument`] if it is no JSON of the request, or names a field that there is not.
    pub fn request(&self, json: &[u8]) -> Result<Vec<u8>, ApiError> {
        if json.trim_ascii().is_empty() {
            return Ok(Vec::new());
        }
        let invalid = |error: serde_json::Error| InvalidField::new("request", error);
        let mut reader = serde_json::Deserializer::from_slice(json);
        let options = DeserializeOptions::new().deny_unknown_fields(true);
        let read = DynamicMessage::deserialize_with_options(self.0.input(), &mut reader, &options).map_err(invalid)?;
        reader.end().map_err(invalid)?;
        Ok(read.encode_to_vec())
    }

    /// The reply as JSON.
    ///
    /// # Errors
    /// [`ApiError::Internal`] if it is no reply of this call.
    pub fn reply(&self, message: &[u8]) -> Result<Vec<u8>, ApiError> {
        let internal = |error: &dyn std::fmt::Display| ApiError::Internal {
            message: format!("the reply of {} cannot be written as JSON: {error}", self.0.full_name()),
        };
        let reply = DynamicMessage::decode(self.0.output(), message).map_err(|error| internal(&error))?;
        serde_json::to_vec(&json::of_dynamic(reply)).map_err(|error| internal(&error))
    }
}

/// A failed call as JSON, with its HTTP status.
#[must_use]
pub fn failure(error: ApiError) -> (u16, Vec<u8>) {
    let debug = debug_of(&error);
    let (code, message, details) = error.on_the_wire();
    let (http, code) = names_of(code);
    let details: Vec<Value> = details
        .into_iter()
        .map(|detail| {
            let name = detail.type_url.rsplit('/').next().unwrap_or_default();
            let mut json = json!({ "type": name, "value": STANDARD_NO_PAD.encode(&detail.value) });
            if let Some((_, debug)) = debug.iter().find(|(of, _)| *of == name) {
                json["debug"] = debug.clone();
            }
            json
        })
        .collect();
    let json = json!({ "code": code, "message": message, "details": details });
    (http, json.to_string().into_bytes())
}

/// The details as people read them, by the name of their message.
fn debug_of(error: &ApiError) -> Vec<(&'static str, Value)> {
    let mut debug = vec![("google.rpc.ErrorInfo", json!({ "reason": error.reason() }))];
    if let ApiError::InvalidArgument { violations } = error {
        let list = violations
            .iter()
            .map(|wrong| json!({ "field": wrong.field, "description": wrong.problem }));
        let list: Vec<Value> = list.collect();
        debug.push(("google.rpc.BadRequest", json!({ "fieldViolations": list })));
    }
    if let ApiError::ResourceExhausted { retry: Some(after), .. } | ApiError::Unavailable { retry: Some(after), .. } =
        error
    {
        let seconds = format!("{:.3}s", after.as_secs_f64());
        debug.push(("google.rpc.RetryInfo", json!({ "retryDelay": seconds })));
    }
    debug
}

/// The HTTP status and the name of a code (<https://connectrpc.com/docs/protocol#error-codes>).
const fn names_of(code: Code) -> (u16, &'static str) {
    match code {
        Code::Cancelled => (499, "canceled"),
        Code::InvalidArgument => (400, "invalid_argument"),
        Code::DeadlineExceeded => (504, "deadline_exceeded"),
        Code::NotFound => (404, "not_found"),
        Code::AlreadyExists => (409, "already_exists"),
        Code::PermissionDenied => (403, "permission_denied"),
        Code::ResourceExhausted => (429, "resource_exhausted"),
        Code::FailedPrecondition => (400, "failed_precondition"),
        Code::Aborted => (409, "aborted"),
        Code::OutOfRange => (400, "out_of_range"),
        Code::Unimplemented => (501, "unimplemented"),
        Code::Internal => (500, "internal"),
        Code::Unavailable => (503, "unavailable"),
        Code::DataLoss => (500, "data_loss"),
        Code::Unauthenticated => (401, "unauthenticated"),
        Code::Ok | Code::Unknown => (500, "unknown"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tonic_types::pb;

    use super::*;
    use crate::v1;

    #[test]
    fn a_call_is_read_and_written_by_its_descriptor() {
        let call = UnaryCall::at("/kage.v1.TaskService/ListTasks").unwrap();
        // Both spellings of a field, as the specification of ProtoJSON wants.
        for json in [r#"{"page_size": 7}"#, r#" {"pageSize": "7"} "#] {
            let request = call.request(json.as_bytes()).unwrap();
            let request = v1::ListTasksRequest::decode(request.as_slice()).unwrap();
            assert_eq!(request.page_size, 7, "{json}");
        }
        assert_eq!(call.request(b" \n").unwrap(), b"");
        let reply = v1::ListTasksResponse {
            next_page_token: "more".to_owned(),
            ..v1::ListTasksResponse::default()
        };
        let reply = call.reply(&reply.encode_to_vec()).unwrap();
        assert_eq!(reply, br#"{"next_page_token":"more"}"#);
        assert_eq!(call.reply(b"\xff").unwrap_err().reason(), "INTERNAL");
    }

    #[test]
    fn a_wrong_request_is_told_with_its_place() {
        let call = UnaryCall::at("/kage.v1.TaskService/ListTasks").unwrap();
        for (json, word) in [
            (r#"{"page_sice": 7}"#, "page_sice"),
            (r#"{"page_size": "seven"}"#, "invalid digit"),
            ("{} {}", "trailing"),
            ("[", "line 1"),
            ("null", "null"),
        ] {
            let error = call.request(json.as_bytes()).unwrap_err();
            assert_eq!(error.reason(), "INVALID_ARGUMENT", "{json}");
            assert!(error.to_string().contains(word), "{json}: {error}");
        }
    }

    #[test]
    fn calls_that_stream_or_are_unknown_are_named() {
        for (path, word) in [
            ("/kage.v1.TaskService/WatchTask", "streams"),
            ("/kage.v1.TaskService/Get", "no call"),
            ("/kage.v1.Task/GetTask", "no call"),
            ("/kage.v1.TaskService/GetTask/", "no call"),
            ("/", "no call"),
        ] {
            let error = UnaryCall::at(path).unwrap_err();
            assert_eq!(error.reason(), "UNIMPLEMENTED", "{path}");
            assert!(error.to_string().contains(word), "{path}: {error}");
        }
    }

    #[test]
    fn a_failure_has_its_code_and_its_details() {
        let told = |error| {
            let (http, json) = failure(error);
            (http, serde_json::from_slice::<Value>(&json).unwrap())
        };
        let (http, json) = told(ApiError::invalid("spec.prompt", "is missing"));
        assert_eq!(http, 400);
        assert_eq!(json["code"], "invalid_argument");
        let bad = json["details"].as_array().unwrap();
        let bad = bad
            .iter()
            .find(|detail| detail["type"] == "google.rpc.BadRequest")
            .unwrap();
        assert_eq!(bad["debug"]["fieldViolations"][0]["field"], "spec.prompt");
        let value = STANDARD_NO_PAD.decode(bad["value"].as_str().unwrap()).unwrap();
        let value = pb::BadRequest::decode(value.as_slice()).unwrap();
        assert_eq!(value.field_violations[0].description, "is missing");

        let (http, json) = told(ApiError::ResourceExhausted {
            message: "too many calls".to_owned(),
            retry: Some(Duration::from_millis(1500)),
        });
        assert_eq!((http, json["message"].as_str()), (429, Some("too many calls")));
        let details = json["details"].as_array().unwrap();
        assert!(
            details.iter().any(|detail| detail["debug"]["retryDelay"] == "1.500s"),
            "{json}"
        );
        assert!(
            details
                .iter()
                .any(|detail| detail["debug"]["reason"] == "RESOURCE_EXHAUSTED")
        );
    }
}

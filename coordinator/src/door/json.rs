//! Calls as JSON over HTTP, for programs without gRPC: `curl -H 'content-type: application/json' -d '{}'` on
//! the path of a unary call. A call is translated to gRPC after authentication, so the same rights and limits
//! hold. What is neither JSON nor gRPC is refused here: gRPC's specification wants 415 for it.

use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use bytes::{BufMut as _, Bytes, BytesMut};
use http::header::{ACCEPT_ENCODING, ALLOW, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderName, HeaderValue, Method, StatusCode};
use http_body_util::BodyExt as _;
use kage_proto::MAX_TASK_MESSAGE;
use kage_proto::status::{ApiError, outcome};
use kage_proto::unary::{UnaryCall, failure};

use crate::door::bodies::Written;

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
/// How long a caller waits at most, in milliseconds, by the Connect protocol.
const TIMEOUT: HeaderName = HeaderName::from_static("connect-timeout-ms");
/// The same by gRPC.
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
/// The digits that gRPC's time-outs may have.
const TIMEOUT_DIGITS: usize = 8;
/// Before each message of a gRPC body: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// Carries a call to its service in the way that it is written.
pub(crate) async fn carry(request: Request, next: Next) -> Response {
    if request.method() != Method::POST {
        let words = "calls are made with POST\n";
        return (StatusCode::METHOD_NOT_ALLOWED, [(ALLOW, "POST")], words).into_response();
    }
    match Written::by(request.headers()) {
        Written::Grpc => next.run(request).await,
        Written::Json => translate(request, next).await.unwrap_or_else(failed),
        Written::Otherwise => {
            let words = "send application/grpc, application/grpc-web or application/json\n";
            (StatusCode::UNSUPPORTED_MEDIA_TYPE, words).into_response()
        }
    }
}

async fn translate(request: Request, next: Next) -> Result<Response, ApiError> {
    let (mut parts, body) = request.into_parts();
    let call = UnaryCall::at(parts.uri.path())?;
    let json = to_bytes(body, MAX_TASK_MESSAGE).await;
    let json = json.map_err(|_| ApiError::ResourceExhausted {
        message: format!("the request broke off, or has more than {MAX_TASK_MESSAGE} bytes"),
        retry: None,
    })?;
    let message = call.request(&json)?;
    parts.headers.remove(CONTENT_LENGTH);
    parts.headers.remove(ACCEPT_ENCODING);
    parts.headers.insert(CONTENT_TYPE, GRPC);
    if let Some(within) = parts.headers.remove(TIMEOUT) {
        parts.headers.insert(GRPC_TIMEOUT, timeout(&within)?);
    }
    let answer = next
        .run(Request::from_parts(parts, Body::from(framed(&message)?)))
        .await;
    let (parts, body) = answer.into_parts();
    if let Some(outcome) = outcome(&parts.headers) {
        // There is no message.
        outcome?;
    }
    let body = body.collect().await.map_err(broken)?;
    match body.trailers().and_then(outcome) {
        Some(outcome) => outcome?,
        None => return Err(broken("it has no end")),
    }
    let reply = call.reply(&unframed(&body.to_bytes())?)?;
    Ok(([(CONTENT_TYPE, JSON)], reply).into_response())
}

/// The answer to a call as JSON that failed or is refused.
pub(crate) fn failed(error: ApiError) -> Response {
    let (status, json) = failure(error);
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (status, [(CONTENT_TYPE, JSON)], json).into_response()
}

fn broken(why: impl std::fmt::Display) -> ApiError {
    ApiError::Internal {
        message: format!("the reply cannot be read: {why}"),
    }
}

/// A time-out in milliseconds as gRPC writes it.
fn timeout(within: &HeaderValue) -> Result<HeaderValue, ApiError> {
    let wrong = || {
        ApiError::invalid(
            TIMEOUT.as_str(),
            "is not a number of milliseconds with at most 10 digits",
        )
    };
    let millis: u64 = within
        .to_str()
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or_else(wrong)?;
    let (millis, seconds) = (format!("{millis}m"), format!("{}S", millis.div_ceil(1000)));
    let fitting = [millis, seconds]
        .into_iter()
        .find(|text| text.len() <= TIMEOUT_DIGITS + 1);
    let text = fitting.ok_or_else(wrong)?;
    HeaderValue::try_from(text).map_err(|_| wrong())
}

/// A message as the only one of a gRPC body.
fn framed(message: &[u8]) -> Result<Bytes, ApiError> {
    let too_long = |_| ApiError::invalid("request", "has more than 4 GiB");
    let length = u32::try_from(message.len()).map_err(too_long)?;
    let mut body = BytesMut::with_capacity(PREFIX + message.len());
    body.put_u8(0);
    body.put_u32(length);
    body.put_slice(message);
    Ok(body.freeze())
}

/// The only message of a gRPC body.
fn unframed(body: &Bytes) -> Result<Bytes, ApiError> {
    let length = |prefix: &[u8]| match prefix {
        [0, a, b, c, d] => Some(u32::from_be_bytes([*a, *b, *c, *d]) as usize),
        _ => None,
    };
    let length = body.get(..PREFIX).and_then(length);
    match length {
        Some(length) if body.len() == PREFIX + length => Ok(body.slice(PREFIX..)),
        Some(_) | None => Err(broken("it is not one message")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_out_is_written_with_eight_digits() {
        let written = |text: &'static str| timeout(&HeaderValue::from_static(text));
        for (given, expected) in [
            ("0", "0m"),
            ("1500", "1500m"),
            ("99999999", "99999999m"),
            ("100000001", "100001S"),
            ("9999999999", "10000000S"),
        ] {
            assert_eq!(written(given).unwrap(), expected, "{given}");
        }
        for wrong in ["", "1s", "-1", "1.5", "999999999999999999999"] {
            assert!(written(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_frame_has_one_message() {
        let framed = framed(b"abc").unwrap();
        assert_eq!(framed, &b"\0\0\0\0\x03abc"[..]);
        assert_eq!(unframed(&framed).unwrap(), &b"abc"[..]);
        for wrong in [
            &b""[..],
            b"\0\0\0\0",
            b"\0\0\0\0\x02abc",
            b"\x01\0\0\0\x03abc",
            b"\0\0\0\0\x04abc",
        ] {
            assert!(unframed(&Bytes::copy_from_slice(wrong)).is_err(), "{wrong:?}");
        }
    }
}

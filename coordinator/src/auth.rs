//! The door: every gRPC call and every HTTP request shows the bearer token, whatever its
//! path. One token = all rights.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use http::header::{AUTHORIZATION, CONTENT_TYPE, WWW_AUTHENTICATE};
use http::{HeaderMap, StatusCode};
use kage_core::id::Digest;
use kage_proto::status::ApiError;
use tonic::Status;

/// What the token must hash to. The token itself is not kept.
#[derive(Debug, Clone)]
pub(crate) struct Door(Arc<Digest>);

impl Door {
    pub(crate) fn new(token: &str) -> Self {
        Self(Arc::new(Digest::of(token.as_bytes())))
    }

    /// Digests are compared, and whole, so that the time says nothing about the token.
    fn admits(&self, headers: &HeaderMap) -> bool {
        let Some(shown) = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()) else {
            return false;
        };
        let Some((scheme, token)) = shown.split_once(' ') else {
            return false;
        };
        let shown = Digest::of(token.trim().as_bytes());
        let pairs = shown.as_str().bytes().zip(self.0.as_str().bytes());
        let difference = pairs.fold(0, |difference, (a, b)| difference | (a ^ b));
        scheme.eq_ignore_ascii_case("bearer") && difference == 0
    }
}

/// Lets a request in or answers it in the way its protocol understands.
pub(crate) async fn guard(State(door): State<Door>, request: Request, next: Next) -> Response {
    if door.admits(request.headers()) {
        return next.run(request).await;
    }
    let content_type = request.headers().get(CONTENT_TYPE);
    let grpc = content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
    if grpc {
        Status::from(ApiError::Unauthenticated).into_http()
    } else {
        let challenge = [(WWW_AUTHENTICATE, "Bearer")];
        let text = format!("{}\n", ApiError::Unauthenticated);
        (StatusCode::UNAUTHORIZED, challenge, text).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_token_opens() {
        let door = Door::new("secret");
        let cases = [
            (Some("Bearer secret"), true),
            (Some("bearer secret"), true),
            (Some("Bearer secret "), true),
            (Some("Bearer Secret"), false),
            (Some("Bearer secre"), false),
            (Some("Bearer "), false),
            (Some("Basic secret"), false),
            (Some("secret"), false),
            (None, false),
        ];
        for (header, admitted) in cases {
            let mut headers = HeaderMap::new();
            if let Some(text) = header {
                headers.insert(AUTHORIZATION, text.parse().unwrap());
            }
            assert_eq!(door.admits(&headers), admitted, "{header:?}");
        }
    }
}

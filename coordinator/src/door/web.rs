//! Support for browsers: gRPC-Web in place of gRPC, since a page can neither read trailers nor
//! choose HTTP/2, and CORS for the configured origins. A call is translated to plain gRPC before
//! authentication, so the same rights hold. Without a configured origin, no other site's page can
//! read a response.

use std::convert::Infallible;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::middleware::{self, Next};
use axum::response::Response;
use http::header::{AUTHORIZATION, CONTENT_TYPE, RANGE};
use http::{HeaderName, Method};
use tonic_web::GrpcWebLayer;
use tower::{Layer as _, ServiceExt as _, service_fn};
use tower_http::cors::CorsLayer;

use crate::config::Origin;

/// Request headers of a browser's calls, besides the safe ones.
const SENT: [HeaderName; 6] = [
    AUTHORIZATION,
    CONTENT_TYPE,
    RANGE,
    HeaderName::from_static("x-grpc-web"),
    HeaderName::from_static("x-user-agent"),
    HeaderName::from_static("grpc-timeout"),
];
/// Response headers that a page reads when there is no body.
const READ: [HeaderName; 3] = [
    HeaderName::from_static("grpc-status"),
    HeaderName::from_static("grpc-message"),
    HeaderName::from_static("grpc-status-details-bin"),
];
/// How long a browser may remember that it may call.
const REMEMBER: Duration = Duration::from_secs(60 * 60);

/// Puts both in front of everything that is served.
pub(crate) fn for_browsers(router: Router, origins: &[Origin]) -> Router {
    let router = router.layer(middleware::from_fn(translate));
    if origins.is_empty() {
        return router;
    }
    let cors = CorsLayer::new()
        .allow_origin(origins.iter().map(|origin| origin.header().clone()).collect::<Vec<_>>())
        .allow_methods([Method::GET, Method::POST])
        .allow_headers(SENT)
        .expose_headers(READ)
        .max_age(REMEMBER);
    router.layer(cors)
}

/// Translates gRPC-Web to gRPC; other requests pass unchanged.
async fn translate(request: Request, next: Next) -> Response {
    let content_type = request.headers().get(CONTENT_TYPE);
    let web = content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc-web"));
    if !web {
        return next.run(request).await;
    }
    let grpc = service_fn(move |request: http::Request<tonic::body::Body>| {
        let next = next.clone();
        async move { Ok::<_, Infallible>(next.run(request.map(Body::new)).await) }
    });
    match GrpcWebLayer::new().layer(grpc).oneshot(request).await {
        Ok(response) => response.map(Body::new),
        Err(never) => match never {},
    }
}

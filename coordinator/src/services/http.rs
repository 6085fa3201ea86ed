//! The other routes of the port besides gRPC: blobs, git, metrics and health.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, StatusCode};

use kage_core::job::JobType;
use kage_proto::status::ApiError;

use crate::coordinator::Coordinator;
use crate::telemetry::{self, Levels};

pub(crate) mod blobs;
mod git;
mod health;

pub(crate) fn routes(coordinator: Arc<Coordinator>) -> Router {
    Router::new()
        .merge(blobs::routes())
        .merge(git::routes())
        .merge(health::routes())
        .route("/metrics", get(metrics))
        .with_state(coordinator)
}

async fn metrics(State(coordinator): State<Arc<Coordinator>>) -> Response {
    let Some(recorder) = telemetry::install() else {
        return (StatusCode::NOT_FOUND, "this process records its metrics elsewhere\n").into_response();
    };
    let counts = match coordinator.store.counts().await {
        Ok(counts) => counts,
        Err(error) => return failed(&error),
    };
    let [sessions, verifies, bases] = [JobType::Session, JobType::Verify, JobType::Baseline].map(|job| counts.of(job));
    let agents_connected = coordinator.board().connected();
    telemetry::levels(Levels {
        agents_connected,
        // Every session that has not ended has one of these jobs, which gives its state.
        later: sessions.later,
        queued: sessions.queued,
        running: sessions.leased,
        claimed: verifies.queued,
        verifying: verifies.leased,
        bases_waiting: bases.queued,
        bases_checked: bases.leased,
    });
    ([(CONTENT_TYPE, "text/plain; version=0.0.4")], recorder.render()).into_response()
}

/// Why a caller may not, in HTTP's words.
fn forbidden(error: &ApiError) -> Box<Response> {
    Box::new((StatusCode::FORBIDDEN, format!("{error}\n")).into_response())
}

/// A caller that takes too much, in HTTP's words; git shows them.
fn refused(error: &ApiError) -> Box<Response> {
    let ApiError::ResourceExhausted { retry, .. } = error else {
        return forbidden(error);
    };
    let mut response = (StatusCode::TOO_MANY_REQUESTS, format!("{error}\n")).into_response();
    if let Some(retry) = retry {
        response
            .headers_mut()
            .insert(RETRY_AFTER, HeaderValue::from(retry.as_secs().max(1)));
    }
    Box::new(response)
}

/// An internal error: only the log has all of it.
fn failed(error: &(dyn std::error::Error + 'static)) -> Response {
    tracing::error!(error, "request failed");
    (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response()
}

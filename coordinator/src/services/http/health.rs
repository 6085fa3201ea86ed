//! What load balancers and orchestrators ask, without a token and without learning anything else: whether
//! the process serves (`/healthz`), and whether it can do its work (`/readyz`).

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;

use crate::coordinator::Coordinator;

/// How long the store may take to answer. Orchestrators wait one second by default.
const PATIENCE: Duration = Duration::from_millis(900);

pub(crate) fn routes() -> Router<Arc<Coordinator>> {
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
}

async fn ready(State(coordinator): State<Arc<Coordinator>>) -> (StatusCode, &'static str) {
    const NOT_READY: (StatusCode, &str) = (StatusCode::SERVICE_UNAVAILABLE, "not ready\n");
    if coordinator.closing.is_cancelled() {
        return NOT_READY;
    }
    match tokio::time::timeout(PATIENCE, coordinator.store.answers()).await {
        Ok(Ok(())) => (StatusCode::OK, "ready\n"),
        Ok(Err(error)) => {
            tracing::error!(error = &error as &dyn std::error::Error, "the store does not answer");
            NOT_READY
        }
        Err(_) => {
            tracing::error!("the store takes longer than {PATIENCE:?} to answer");
            NOT_READY
        }
    }
}

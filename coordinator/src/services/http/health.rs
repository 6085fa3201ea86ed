//! What load balancers and orchestrators ask, without a token and without learning anything else: whether
//! the process serves (`/healthz`), and whether its database answers (`/readyz`).

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;

use crate::coordinator::Coordinator;

/// How long the store may take to answer. Orchestrators wait one second by default.
const PATIENCE: Duration = Duration::from_millis(900);
/// For how long an answer is given again: strangers cannot keep the store busy.
const KEPT: Duration = Duration::from_secs(1);

/// The last answer of the store, and when it was asked.
type Last = Arc<Mutex<Option<(Instant, bool)>>>;

pub(crate) fn routes() -> Router<Arc<Coordinator>> {
    let last = Last::default();
    let readyz = async move |State(coordinator): State<Arc<Coordinator>>| match is_ready(&coordinator, &last).await {
        true => (StatusCode::OK, "ready\n"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "not ready\n"),
    };
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(readyz))
}

async fn is_ready(coordinator: &Coordinator, last: &Last) -> bool {
    if coordinator.closing.is_cancelled() {
        return false;
    }
    let before = *last.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((at, answered)) = before
        && at.elapsed() < KEPT
    {
        return answered;
    }
    let asked = Instant::now();
    let answer = tokio::time::timeout(PATIENCE, coordinator.store.answers()).await;
    let answered = matches!(answer, Ok(Ok(())));
    *last.lock().unwrap_or_else(PoisonError::into_inner) = Some((asked, answered));
    if before.is_none_or(|(_, answered)| answered) {
        match answer {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::error!(error = &error as &dyn std::error::Error, "the store does not answer");
            }
            Err(_) => tracing::error!("the store takes longer than {PATIENCE:?} to answer"),
        }
    }
    answered
}

//! The server on loopback: takes requests, has the model decide, and sends the answer whole, paced,
//! broken off, or never.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use axum::routing::post;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderName, HeaderValue, StatusCode, header};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::dialect::Dialect;
use crate::limits::RateLimits;
use crate::model::{End, Model, Plan, Recorded, Taken};
use crate::request::Endpoint;
use crate::script::{ApiError, Script};

/// The largest request the provider takes.
const MAX_BODY: usize = 32 << 20;

/// A running server. Dropping it closes the port and every connection.
#[derive(Debug)]
pub struct ScriptedServer {
    address: SocketAddr,
    model: Arc<Mutex<Model>>,
    _serving: JoinSet<io::Result<()>>,
}

impl ScriptedServer {
    /// Listens on a free port of the loopback interface.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn start(scripts: Vec<Script>) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let model = Arc::new(Mutex::new(Model::new(scripts)));
        let routes = Router::new()
            .route("/v1/messages", post(serve_message))
            .route("/v1/messages/count_tokens", post(serve_count))
            .route("/v1/responses", post(serve_responses))
            .route("/v1/chat/completions", post(serve_chat))
            .route("/api/chat", post(serve_ollama))
            .route("/v1beta/models/{call}", post(serve_gemini))
            .fallback(serve_unknown)
            .with_state(Arc::clone(&model));
        let mut serving = JoinSet::new();
        serving.spawn(async move { axum::serve(listener, routes).await });
        Ok(Self {
            address,
            model,
            _serving: serving,
        })
    }

    /// The base URL, as in `ANTHROPIC_BASE_URL` and `GOOGLE_GEMINI_BASE_URL`; OpenAI's ends with a
    /// `/v1` after it.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Adds a script after those that are there.
    pub fn add(&self, script: Script) {
        lock(&self.model).add(script);
    }

    /// Draws all counts from now on, instead of making them of the lengths of texts: whoever tells the same
    /// counts has read them.
    pub fn draw_counts(&self, seed: u64) {
        lock(&self.model).draw_counts(seed);
    }

    /// Limits every account from the next request on, or no account any more. What an account has used
    /// stays used when its limits change.
    pub fn limit(&self, limits: impl Into<Option<RateLimits>>) {
        lock(&self.model).limit(limits.into());
    }

    /// Every request so far, in the order of arrival.
    #[must_use]
    pub fn requests(&self) -> Vec<Recorded> {
        lock(&self.model).requests().to_vec()
    }

    /// The requests that a script answered.
    #[must_use]
    pub fn requests_of(&self, script: &str) -> Vec<Recorded> {
        let mut requests = self.requests();
        requests.retain(|request| request.script.as_deref() == Some(script));
        requests
    }
}

async fn serve_message(state: State<Arc<Mutex<Model>>>, request: http::Request<Body>) -> Response {
    serve(state, request, Endpoint::Messages).await
}

async fn serve_count(state: State<Arc<Mutex<Model>>>, request: http::Request<Body>) -> Response {
    serve(state, request, Endpoint::CountTokens).await
}

async fn serve_responses(state: State<Arc<Mutex<Model>>>, request: http::Request<Body>) -> Response {
    serve(state, request, Endpoint::Responses).await
}

async fn serve_chat(state: State<Arc<Mutex<Model>>>, request: http::Request<Body>) -> Response {
    serve(state, request, Endpoint::Chat).await
}

async fn serve_ollama(state: State<Arc<Mutex<Model>>>, request: http::Request<Body>) -> Response {
    serve(state, request, Endpoint::Ollama).await
}

async fn serve_gemini(state: State<Arc<Mutex<Model>>>, request: http::Request<Body>) -> Response {
    let endpoint = match request.uri().path().rsplit(':').next() {
        Some("generateContent") => Endpoint::Generate { stream: false },
        Some("streamGenerateContent") => Endpoint::Generate { stream: true },
        Some("countTokens") => Endpoint::GeminiCount,
        Some(_) | None => return serve_unknown().await,
    };
    serve(state, request, endpoint).await
}

async fn serve_unknown() -> Response {
    respond_error(
        Dialect::Messages,
        &ApiError::new(404, "not_found_error", "Not found"),
        0,
    )
}

async fn serve(State(model): State<Arc<Mutex<Model>>>, request: http::Request<Body>, endpoint: Endpoint) -> Response {
    let now = Instant::now();
    let dialect = endpoint.dialect();
    let (head, body) = request.into_parts();
    let Ok(body) = axum::body::to_bytes(body, MAX_BODY).await else {
        return respond_error(
            dialect,
            &ApiError::new(413, "request_too_large", "Request exceeds the maximum size"),
            0,
        );
    };
    let Taken { number, plan, standing } = lock(&model).take(head.uri.to_string(), head.headers, &body, endpoint, now);
    let mut response = answer(&model, dialect, number, plan).await;
    let limits = standing.map(|standing| standing.headers(dialect, SystemTime::now()));
    for (name, value) in limits.into_iter().flatten() {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

async fn answer(model: &Mutex<Model>, dialect: Dialect, number: u64, plan: Plan) -> Response {
    match plan {
        Plan::Error(error) => respond_error(dialect, &error, number),
        Plan::Count(count) => respond(StatusCode::OK, number, JSON, dialect.count(count).to_string()),
        // The caller gives up at some point, and this future is dropped.
        Plan::Hang => std::future::pending().await,
        Plan::Reply {
            message,
            accounting,
            delay,
            pace,
            stream,
            end,
        } => {
            tokio::time::sleep(delay).await;
            lock(model).begin(&accounting);
            if stream {
                let frames = frames(dialect, message.events(), end);
                let kind = if dialect == Dialect::Ollama { LINES } else { EVENTS };
                respond(StatusCode::OK, number, kind, paced(frames, pace))
            } else {
                let body = Bytes::from(message.body().to_string());
                let frames = match end {
                    End::Whole | End::ErrorAfter(..) => vec![Ok(body)],
                    End::CutAfter(_) | End::CutBeforeLast => vec![Ok(body.slice(..body.len() / 2)), Err(cut())],
                };
                respond(StatusCode::OK, number, JSON, paced(frames, Duration::ZERO))
            }
        }
    }
}

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const LINES: HeaderValue = HeaderValue::from_static("application/x-ndjson");
const EVENTS: HeaderValue = HeaderValue::from_static("text/event-stream; charset=utf-8");

fn cut() -> io::Error {
    io::Error::other("the script cuts the connection here")
}

fn frames(dialect: Dialect, events: Vec<Bytes>, end: End) -> Vec<io::Result<Bytes>> {
    let mut frames: Vec<io::Result<Bytes>> = events.into_iter().map(Ok).collect();
    match end {
        End::Whole => {}
        End::CutAfter(count) => {
            frames.truncate(count);
            frames.push(Err(cut()));
        }
        End::CutBeforeLast => {
            frames.pop();
            frames.push(Err(cut()));
        }
        End::ErrorAfter(count, error) => {
            frames.truncate(count);
            frames.push(Ok(dialect.error_event(&error)));
        }
    }
    frames
}

/// A body of frames with a time before each. Every frame is flushed before the next.
fn paced(frames: Vec<io::Result<Bytes>>, pace: Duration) -> Body {
    Body::from_stream(stream::iter(frames).then(move |frame| async move {
        if pace.is_zero() {
            tokio::task::yield_now().await;
        } else {
            tokio::time::sleep(pace).await;
        }
        frame
    }))
}

fn respond_error(dialect: Dialect, error: &ApiError, number: u64) -> Response {
    let status = StatusCode::from_u16(error.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let body = dialect.error_body(error, &request_id(number)).to_string();
    let mut response = respond(status, number, JSON, body);
    // Gemini says it in the body.
    if let Some(after) = error.retry_after.filter(|_| dialect != Dialect::Gemini) {
        response
            .headers_mut()
            .insert(header::RETRY_AFTER, HeaderValue::from(after.as_secs()));
    }
    response
}

fn respond(status: StatusCode, number: u64, kind: HeaderValue, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    if let Ok(id) = HeaderValue::try_from(request_id(number)) {
        response.headers_mut().insert("request-id", id);
    }
    response
}

fn request_id(number: u64) -> String {
    format!("req_{number:016}")
}

/// Nothing panics while the lock is held, so a poisoned one holds good data.
fn lock(model: &Mutex<Model>) -> MutexGuard<'_, Model> {
    model.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;

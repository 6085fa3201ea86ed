//! A scripted Messages API server on loopback: it answers like the provider, by script
//! instead of a model. The demo and the tests point `claude-api` and the real `claude`
//! program at it. It enforces the provider's documented rules (headers, request shape, cache
//! breakpoints), counts tokens from bytes, keeps a prompt cache, and records every request.
//!
//! ```text
//! request -> request::parse (rules) -> script, turn -> fault   -> error, cut, hang
//!                                                   -> reply -> cache accounting -> JSON | SSE
//! ```

mod script;
mod request;
mod cache;
mod reply;

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use axum::routing::post;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

pub use cache::CallUsage;
pub use script::{ApiError, Block, Fault, Matcher, Reply, Script, Turn};

use cache::{Accounting, PromptCache, prompt_tokens};
use reply::Message;
use request::{Endpoint, Request};

/// The largest request the provider takes.
const MAX_BODY: usize = 32 << 20;

/// A running server. Dropping it closes the port and every connection.
#[derive(Debug)]
pub struct ScriptedServer {
    address: SocketAddr,
    model: Arc<Mutex<Model>>,
    _serving: JoinSet<io::Result<()>>,
}

/// A request as it came, and what it was answered.
#[derive(Debug, Clone)]
pub struct Recorded {
    /// Path and query.
    pub path: String,
    /// Headers as they came, keys included.
    pub headers: HeaderMap,
    /// The body; `null` when it was not JSON.
    pub body: Value,
    /// Name of the script that matched.
    pub script: Option<String>,
    /// What it was answered.
    pub answer: Answer,
}

/// What a request was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The turn's reply, whole.
    Reply(CallUsage),
    /// The turn's reply, broken off.
    Broken(CallUsage),
    /// A token count.
    Count(u64),
    /// An error of a script, or because a rule was broken.
    Error(ApiError),
    /// Nothing.
    Hang,
}

impl ScriptedServer {
    /// Listens on a free port of the loopback interface.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn start(scripts: Vec<Script>) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let model = Arc::new(Mutex::new(Model {
            scripts,
            ..Model::default()
        }));
        let routes = Router::new()
            .route("/v1/messages", post(serve_message))
            .route("/v1/messages/count_tokens", post(serve_count))
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

    /// The base URL, as in `ANTHROPIC_BASE_URL`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Adds a script after those that are there.
    pub fn add(&self, script: Script) {
        lock(&self.model).scripts.push(script);
    }

    /// Every request so far, in the order of arrival.
    #[must_use]
    pub fn requests(&self) -> Vec<Recorded> {
        lock(&self.model).requests.clone()
    }

    /// The requests that a script answered.
    #[must_use]
    pub fn requests_of(&self, script: &str) -> Vec<Recorded> {
        let mut requests = self.requests();
        requests.retain(|request| request.script.as_deref() == Some(script));
        requests
    }
}

/// The state behind the port. Requests are kept for ever: a demo or a test is short.
#[derive(Debug, Default)]
struct Model {
    scripts: Vec<Script>,
    /// Faults used up, by script and turn.
    met: HashMap<(usize, usize), usize>,
    cache: PromptCache,
    requests: Vec<Recorded>,
}

/// What to do about a request, decided in one go.
#[derive(Debug)]
enum Plan {
    Error(ApiError),
    Hang,
    Count(u64),
    Reply {
        message: Box<Message>,
        accounting: Accounting,
        delay: Duration,
        pace: Duration,
        stream: bool,
        end: End,
    },
}

/// How a response ends.
#[derive(Debug, Clone, PartialEq)]
enum End {
    Whole,
    CutAfter(usize),
    ErrorAfter(usize, ApiError),
}

impl Model {
    /// Decides and records. `now` is when the request arrived.
    fn take(&mut self, path: String, headers: HeaderMap, body: &[u8], endpoint: Endpoint, now: Instant) -> (u64, Plan) {
        let number = self.requests.len() as u64 + 1;
        let json = serde_json::from_slice(body).unwrap_or(Value::Null);
        let mut script = None;
        let plan = authorize(&headers)
            .and_then(|key| Ok((key, request::parse(&json, endpoint)?)))
            .and_then(|(key, request)| match endpoint {
                Endpoint::CountTokens => Ok(Plan::Count(prompt_tokens(&request))),
                Endpoint::Messages => {
                    let index = self.script_for(&request, &key)?;
                    script = Some(self.scripts[index].name.clone());
                    self.plan(number, index, &request, &key, now)
                }
            })
            .unwrap_or_else(Plan::Error);
        let answer = match &plan {
            Plan::Error(error) => Answer::Error(error.clone()),
            Plan::Hang => Answer::Hang,
            Plan::Count(count) => Answer::Count(*count),
            Plan::Reply { message, end, .. } => match end {
                End::Whole => Answer::Reply(message.usage()),
                End::CutAfter(_) | End::ErrorAfter(..) => Answer::Broken(message.usage()),
            },
        };
        self.requests.push(Recorded {
            path,
            headers,
            body: json,
            script,
            answer,
        });
        (number, plan)
    }

    fn script_for(&self, request: &Request, key: &str) -> Result<usize, ApiError> {
        self.scripts
            .iter()
            .position(|script| script.matcher.matches(&request.model, &request.prompt, key))
            .ok_or_else(|| ApiError::invalid(format!("no script answers this request for model {}", request.model)))
    }

    fn plan(
        &mut self,
        number: u64,
        index: usize,
        request: &Request,
        key: &str,
        now: Instant,
    ) -> Result<Plan, ApiError> {
        let script = &self.scripts[index];
        let turn = script
            .turns
            .get(request.turn)
            .ok_or_else(|| ApiError::invalid(format!("script {} has no turn {}", script.name, request.turn)))?;
        let met = self.met.entry((index, request.turn)).or_default();
        let fault = turn.faults.get(*met);
        *met += usize::from(fault.is_some());
        let end = match fault {
            None => End::Whole,
            Some(Fault::Error(error)) => return Ok(Plan::Error(error.clone())),
            Some(Fault::Hang) => return Ok(Plan::Hang),
            Some(Fault::ErrorEvent { error, .. }) if !request.stream => return Ok(Plan::Error(error.clone())),
            Some(Fault::ErrorEvent { after_events, error }) => End::ErrorAfter(*after_events, error.clone()),
            Some(Fault::Cut { after_events }) => End::CutAfter(*after_events),
        };
        for block in &turn.reply.blocks {
            if let Block::ToolUse { name, .. } = block
                && !request.tools.contains(name)
            {
                return Err(ApiError::invalid(format!(
                    "script {} calls tool {name}, which the request does not offer",
                    script.name
                )));
            }
        }
        let accounting = self.cache.look_up(key, request, now);
        Ok(Plan::Reply {
            message: Box::new(Message::new(number, &request.model, &turn.reply, accounting.usage)),
            accounting,
            delay: turn.reply.delay,
            pace: turn.reply.pace,
            stream: request.stream,
            end,
        })
    }
}

/// The caller's key, if the headers are as the provider wants them.
fn authorize(headers: &HeaderMap) -> Result<String, ApiError> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let bearer = text("authorization").and_then(|value| value.strip_prefix("Bearer "));
    let key = text("x-api-key").or(bearer).filter(|key| !key.is_empty());
    let key = key.ok_or_else(|| ApiError::new(401, "authentication_error", "x-api-key header is required"))?;
    if text("anthropic-version") != Some("2023-06-01") {
        return Err(ApiError::invalid("anthropic-version: header is required"));
    }
    if !text("content-type").is_some_and(|kind| kind.starts_with("application/json")) {
        return Err(ApiError::invalid("content-type: must be application/json"));
    }
    Ok(key.to_owned())
}

async fn serve_message(state: State<Arc<Mutex<Model>>>, request: http::Request<Body>) -> Response {
    serve(state, request, Endpoint::Messages).await
}

async fn serve_count(state: State<Arc<Mutex<Model>>>, request: http::Request<Body>) -> Response {
    serve(state, request, Endpoint::CountTokens).await
}

async fn serve_unknown() -> Response {
    respond_error(&ApiError::new(404, "not_found_error", "Not found"), 0)
}

async fn serve(State(model): State<Arc<Mutex<Model>>>, request: http::Request<Body>, endpoint: Endpoint) -> Response {
    let now = Instant::now();
    let (head, body) = request.into_parts();
    let Ok(body) = axum::body::to_bytes(body, MAX_BODY).await else {
        return respond_error(
            &ApiError::new(413, "request_too_large", "Request exceeds the maximum size"),
            0,
        );
    };
    let (number, plan) = lock(&model).take(head.uri.to_string(), head.headers, &body, endpoint, now);
    match plan {
        Plan::Error(error) => respond_error(&error, number),
        Plan::Count(count) => respond(StatusCode::OK, number, JSON, json!({"input_tokens": count}).to_string()),
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
            lock(&model).cache.begin(&accounting);
            if stream {
                let frames = frames(message.events(), end);
                respond(StatusCode::OK, number, EVENTS, paced(frames, pace))
            } else {
                let body = Bytes::from(message.body().to_string());
                let frames = match end {
                    End::Whole | End::ErrorAfter(..) => vec![Ok(body)],
                    End::CutAfter(_) => vec![Ok(body.slice(..body.len() / 2)), Err(cut())],
                };
                respond(StatusCode::OK, number, JSON, paced(frames, Duration::ZERO))
            }
        }
    }
}

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const EVENTS: HeaderValue = HeaderValue::from_static("text/event-stream; charset=utf-8");

fn cut() -> io::Error {
    io::Error::other("the script cuts the connection here")
}

fn frames(events: Vec<Bytes>, end: End) -> Vec<io::Result<Bytes>> {
    let mut frames: Vec<io::Result<Bytes>> = events.into_iter().map(Ok).collect();
    match end {
        End::Whole => {}
        End::CutAfter(count) => {
            frames.truncate(count);
            frames.push(Err(cut()));
        }
        End::ErrorAfter(count, error) => {
            frames.truncate(count);
            frames.push(Ok(reply::error_event(&error)));
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

fn respond_error(error: &ApiError, number: u64) -> Response {
    let status = StatusCode::from_u16(error.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let body = reply::error_body(error, &request_id(number)).to_string();
    let mut response = respond(status, number, JSON, body);
    if let Some(after) = error.retry_after {
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

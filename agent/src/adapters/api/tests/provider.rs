//! A provider on loopback with a list of answers, and a place to run the loop in.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use axum::routing::post;
use futures_util::StreamExt as _;
use kage_core::event::OutputStream;
use kage_core::prompt::Prompt;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::super::*;
use crate::adapters::port::Report;

#[derive(Clone)]
pub(crate) enum Answer {
    Stream(String),
    Error(u16, Option<&'static str>, Value),
    /// A stream that ends here.
    Cut(String),
    /// A stream of which nothing more comes.
    Stuck(String),
    Silence,
}

#[derive(Clone, Default)]
pub(super) struct Provider {
    pub(super) answers: Arc<Mutex<VecDeque<Answer>>>,
    pub(super) requests: Arc<Mutex<Vec<(HeaderMap, Value)>>>,
    /// The requests' bodies, byte for byte.
    pub(super) bodies: Arc<Mutex<Vec<String>>>,
}

async fn serve(State(provider): State<Provider>, headers: HeaderMap, body: String) -> Response {
    let value = serde_json::from_str(&body).unwrap();
    provider.requests.lock().unwrap().push((headers, value));
    provider.bodies.lock().unwrap().push(body);
    let answer = provider.answers.lock().unwrap().pop_front();
    let response = Response::builder();
    match answer.expect("the script has an answer for every request") {
        Answer::Stream(text) | Answer::Cut(text) => response
            .header("content-type", "text/event-stream")
            .body(Body::from(text))
            .unwrap(),
        Answer::Stuck(text) => {
            let said = futures_util::stream::iter([Ok::<_, std::io::Error>(text)]);
            response
                .header("content-type", "text/event-stream")
                .body(Body::from_stream(said.chain(futures_util::stream::pending())))
                .unwrap()
        }
        Answer::Error(status, retry_after, body) => {
            let mut response = response.status(StatusCode::from_u16(status).unwrap());
            if let Some(seconds) = retry_after {
                response = response.header("retry-after", seconds);
            }
            response.body(Body::from(body.to_string())).unwrap()
        }
        Answer::Silence => std::future::pending().await,
    }
}

/// A message as the provider streams it.
pub(crate) fn message(blocks: &[Value], stop_reason: &str) -> String {
    let mut events = vec![json!({"type": "message_start", "message": {
        "id": "msg", "type": "message", "role": "assistant", "model": "claude-sonnet-5-5", "content": [],
        "usage": {"input_tokens": 10, "cache_creation_input_tokens": 20, "cache_read_input_tokens": 30, "output_tokens": 1},
    }})];
    for (index, block) in blocks.iter().enumerate() {
        let (start, delta) = match block["type"].as_str().unwrap() {
            "text" => (
                json!({"type": "text", "text": ""}),
                json!({"type": "text_delta", "text": block["text"]}),
            ),
            "thinking" => (
                json!({"type": "thinking", "thinking": "", "signature": ""}),
                json!({"type": "signature_delta", "signature": block["signature"]}),
            ),
            "tool_use" => (
                json!({"type": "tool_use", "id": block["id"], "name": block["name"], "input": {}}),
                json!({"type": "input_json_delta", "partial_json": block["input"].to_string()}),
            ),
            other => panic!("{other}"),
        };
        events.push(json!({"type": "content_block_start", "index": index, "content_block": start}));
        events.push(json!({"type": "content_block_delta", "index": index, "delta": delta}));
        events.push(json!({"type": "content_block_stop", "index": index}));
    }
    events.push(json!({"type": "message_delta", "delta": {"stop_reason": stop_reason}, "usage": {"output_tokens": 5}}));
    events.push(json!({"type": "message_stop"}));
    let event = |event: &Value| format!("event: {}\ndata: {event}\n\n", event["type"].as_str().unwrap());
    events.iter().map(event).collect()
}

pub(super) fn says(text: &str, stop_reason: &str) -> Answer {
    Answer::Stream(message(&[json!({"type": "text", "text": text})], stop_reason))
}

pub(crate) fn tool(id: &str, name: &str, input: Value) -> Value {
    json!({"type": "tool_use", "id": id, "name": name, "input": input})
}

pub(super) fn error(kind: &str) -> Value {
    json!({"type": "error", "error": {"type": kind, "message": "no"}})
}

pub(crate) struct Place {
    pub(crate) folder: tempfile::TempDir,
    pub(super) provider: Provider,
    pub(super) url: String,
    /// Further keys of `[adapter.claude-api]`.
    pub(super) settings: &'static str,
    _serving: JoinSet<()>,
}

pub(super) struct Told {
    pub(super) end: AdapterEnd,
    pub(super) events: Vec<EventBody>,
    pub(super) stdout: String,
    pub(super) transcript: Vec<Value>,
    /// The transcript, byte for byte.
    pub(super) lines: Vec<u8>,
}

/// Runs a session to its end, and gathers what it tells.
pub(super) async fn told(adapter: &ApiAdapter, input: SessionInput, stop: CancellationToken) -> Told {
    let (reporter, mut reports) = Reporter::channel(4);
    let gather = async {
        let (mut events, mut stdout, mut transcript) = (Vec::new(), Vec::new(), Vec::new());
        while let Some(report) = reports.recv().await {
            match report {
                Report::Event(body) => events.push(body),
                Report::Alive => {}
                Report::Output(OutputStream::Transcript, bytes) => transcript.extend_from_slice(&bytes),
                Report::Output(OutputStream::Stdout | OutputStream::Stderr, bytes) => stdout.extend_from_slice(&bytes),
            }
        }
        (events, stdout, transcript)
    };
    let (end, (events, stdout, transcript)) = tokio::join!(adapter.run(input, reporter, stop), gather);
    Told {
        end,
        events,
        stdout: String::from_utf8(stdout).unwrap(),
        transcript: serde_json::Deserializer::from_slice(&transcript)
            .into_iter()
            .collect::<Result<_, _>>()
            .unwrap(),
        lines: transcript,
    }
}

/// The adapter of this name by these settings, which are `[adapter]`.
pub(super) fn adapter_by(name: &str, settings: &str) -> ApiAdapter {
    let env = [
        ("PATH", "/usr/local/bin:/usr/bin:/bin"),
        ("MY_KEY", "sk-mine-0123456789"),
    ];
    let env = env.map(|(name, value)| (name.into(), value.into())).into();
    let mut config = AdapterConfig::new(AgentEnvironment::new(env), Runner::default());
    config.calls.backoff = Duration::from_millis(10);
    config.settings = toml::from_str(settings).unwrap();
    let mut all = instances(&config.settings).into_iter();
    let instance = all.find(|instance| instance.name.as_str() == name).unwrap();
    ApiAdapter::new(instance, &config).unwrap()
}

impl Place {
    pub(crate) async fn new(answers: impl IntoIterator<Item = Answer>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["tree", "scratch"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        let provider = Provider::default();
        provider.answers.lock().unwrap().extend(answers);
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new()
            .route("/v1/messages", post(serve))
            .route("/v1/chat/completions", post(serve))
            .route("/api/chat", post(serve))
            .with_state(provider.clone());
        let mut serving = JoinSet::new();
        serving.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self {
            folder,
            provider,
            url,
            settings: "",
            _serving: serving,
        }
    }

    pub(super) fn adapter(&self) -> ApiAdapter {
        let env = [
            ("PATH", "/usr/local/bin:/usr/bin:/bin"),
            ("ANTHROPIC_API_KEY", "sk-ant-test"),
            ("ANTHROPIC_BASE_URL", self.url.as_str()),
        ];
        let env = env.map(|(name, value)| (name.into(), value.into())).into();
        let mut config = AdapterConfig::new(AgentEnvironment::new(env), Runner::default());
        config.calls.backoff = Duration::from_millis(10);
        config.settings = toml::from_str(&format!("[claude-api]\nmax_turns = 4\n{}", self.settings)).unwrap();
        ApiAdapter::new(instances(&config.settings).remove(0), &config).unwrap()
    }

    /// The adapter as an attempt has it.
    pub(crate) fn shared(&self) -> Arc<dyn Adapter> {
        Arc::new(self.adapter())
    }

    pub(crate) fn input(&self) -> SessionInput {
        SessionInput {
            prompt: Prompt {
                shared: "the base".to_owned(),
                own: "the task".to_owned(),
            },
            worktree: Some(self.folder.path().join("tree")),
            ..SessionInput::blank(self.folder.path().join("scratch"))
        }
    }

    pub(super) async fn run(&self, input: SessionInput, stop: CancellationToken) -> Told {
        told(&self.adapter(), input, stop).await
    }

    pub(super) async fn go(&self) -> Told {
        self.run(self.input(), CancellationToken::new()).await
    }

    pub(super) fn requests(&self) -> Vec<(HeaderMap, Value)> {
        self.provider.requests.lock().unwrap().clone()
    }
}

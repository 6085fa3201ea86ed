//! The loop against a provider on loopback that answers from a list.

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
use kage_core::id::{AttemptId, SessionId, TaskId};
use kage_core::prompt::Prompt;
use kage_core::usage::Usage;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::*;
use crate::adapter::Report;

/// One answer of the provider.
#[derive(Clone)]
enum Answer {
    Stream(String),
    Error(u16, Option<&'static str>, Value),
    /// A stream that ends here.
    Cut(String),
    /// A stream of which nothing more comes.
    Stuck(String),
    /// No answer at all.
    Silence,
}

#[derive(Clone, Default)]
struct Provider {
    answers: Arc<Mutex<VecDeque<Answer>>>,
    requests: Arc<Mutex<Vec<(HeaderMap, Value)>>>,
    /// The same, byte for byte.
    bodies: Arc<Mutex<Vec<String>>>,
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
fn message(blocks: &[Value], stop_reason: &str) -> String {
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

fn says(text: &str, stop_reason: &str) -> Answer {
    Answer::Stream(message(&[json!({"type": "text", "text": text})], stop_reason))
}

fn tool(id: &str, name: &str, input: Value) -> Value {
    json!({"type": "tool_use", "id": id, "name": name, "input": input})
}

fn error(kind: &str) -> Value {
    json!({"type": "error", "error": {"type": kind, "message": "no"}})
}

struct Place {
    folder: tempfile::TempDir,
    provider: Provider,
    url: String,
    _serving: JoinSet<()>,
}

struct Told {
    end: AdapterEnd,
    events: Vec<EventBody>,
    stdout: String,
    transcript: Vec<Value>,
    /// The transcript, byte for byte.
    lines: Vec<u8>,
}

impl Place {
    async fn new(answers: impl IntoIterator<Item = Answer>) -> Self {
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
            .with_state(provider.clone());
        let mut serving = JoinSet::new();
        serving.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self {
            folder,
            provider,
            url,
            _serving: serving,
        }
    }

    fn adapter(&self) -> ClaudeApi {
        let env = [
            ("PATH", "/usr/local/bin:/usr/bin:/bin"),
            ("ANTHROPIC_API_KEY", "sk-ant-test"),
            ("ANTHROPIC_BASE_URL", self.url.as_str()),
        ];
        let env = env.map(|(name, value)| (name.into(), value.into())).into();
        let mut config = AdapterConfig::new(env, Runner::default());
        config.claude_api.backoff = Duration::from_millis(10);
        config.claude_api.max_iterations = 4;
        ClaudeApi::new(&config).unwrap()
    }

    fn input(&self) -> SessionInput {
        SessionInput {
            task: TaskId::from_random(1),
            session: SessionId::from_random(2),
            attempt: AttemptId::from_random(3),
            name: "s-1".parse().unwrap(),
            model: None,
            prompt: Prompt {
                shared: "the base".to_owned(),
                own: "the task".to_owned(),
            },
            base_context: None,
            beginning: Beginning::New,
            steps: Steps::unheard(),
            worktree: Some(self.folder.path().join("tree")),
            scratch: self.folder.path().join("scratch"),
            timeout: Duration::from_secs(60),
            idle_timeout: Duration::from_secs(60),
            frozen: watch::channel(false).1,
        }
    }

    async fn run(&self, input: SessionInput, stop: CancellationToken) -> Told {
        let adapter = self.adapter();
        let (reporter, mut reports) = Reporter::channel(4);
        let gather = async {
            let (mut events, mut stdout, mut transcript) = (Vec::new(), Vec::new(), Vec::new());
            while let Some(report) = reports.recv().await {
                match report {
                    Report::Event(body) => events.push(body),
                    Report::Output(OutputStream::Transcript, bytes) => transcript.extend_from_slice(&bytes),
                    Report::Output(OutputStream::Stdout | OutputStream::Stderr, bytes) => {
                        stdout.extend_from_slice(&bytes)
                    }
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

    async fn go(&self) -> Told {
        self.run(self.input(), CancellationToken::new()).await
    }

    fn requests(&self) -> Vec<(HeaderMap, Value)> {
        self.provider.requests.lock().unwrap().clone()
    }
}

fn kind(end: &AdapterEnd) -> Option<FailureKind> {
    match end {
        AdapterEnd::Failed(failure) => Some(failure.kind),
        AdapterEnd::Done { .. } | AdapterEnd::Stopped => None,
    }
}

#[tokio::test]
async fn the_loop_runs_tools_and_reports_everything() {
    let first = message(
        &[
            json!({"type": "text", "text": "Writing."}),
            tool("t1", "write_file", json!({"path": "a.txt", "content": "hello"})),
            tool("t2", "read_file", json!({"path": "../secret"})),
            tool(
                "t3",
                "bash",
                json!({"command": "cat a.txt; echo \" [$ANTHROPIC_API_KEY]$KAGE_SESSION\""}),
            ),
        ],
        "tool_use",
    );
    let place = Place::new([Answer::Stream(first), says("All done.", "end_turn")]).await;
    let told = place.go().await;

    let summary = "All done.".to_owned();
    assert_eq!(told.end, AdapterEnd::Done { summary });
    assert_eq!(
        std::fs::read_to_string(place.folder.path().join("tree/a.txt")).unwrap(),
        "hello"
    );
    let usage = |output| EventBody::UsageRecorded {
        model: "claude-sonnet-5-5".to_owned(),
        usage: Usage {
            input: 10,
            cache_write_5m: 20,
            cache_read: 30,
            output,
            ..Usage::default()
        },
        reported: None,
        metered: true,
    };
    let activity = |text: &str| EventBody::Activity(text.to_owned());
    assert_eq!(
        told.events,
        [
            usage(5),
            activity("write_file a.txt"),
            activity("read_file ../secret"),
            activity("bash cat a.txt; echo \" [$ANTHROPIC_API_KEY]$KAGE_SESSION\""),
            usage(5),
        ]
    );
    assert!(
        told.stdout
            .starts_with("Writing.\n> write_file a.txt\n> read_file ../secret\n"),
        "{}",
        told.stdout
    );
    assert!(
        told.stdout
            .ends_with("hello []00000000000000000000000000000002\nAll done.\n"),
        "{}",
        told.stdout
    );
    let roles: Vec<_> = told
        .transcript
        .iter()
        .map(|line| line["role"].as_str().unwrap())
        .collect();
    assert_eq!(roles, ["user", "assistant", "user", "assistant"]);

    let requests = place.requests();
    let (headers, body) = &requests[0];
    assert_eq!(headers["x-api-key"], "sk-ant-test");
    assert_eq!(headers["anthropic-version"], "2023-06-01");
    assert_eq!(
        (body["model"].as_str(), body["stream"].as_bool()),
        (Some(DEFAULT_MODEL), Some(true))
    );
    let messages = requests[1].1["messages"].as_array().unwrap();
    assert_eq!(messages.len(), 3);
    assert_eq!(
        messages[1]["content"][1]["input"],
        json!({"path": "a.txt", "content": "hello"})
    );
    let results = messages[2]["content"].as_array().unwrap();
    let ids: Vec<_> = results
        .iter()
        .map(|result| result["tool_use_id"].as_str().unwrap())
        .collect();
    assert_eq!(ids, ["t1", "t2", "t3"]);
    assert_eq!(results[1]["is_error"], true);
    assert_eq!(results[2]["content"], "hello []00000000000000000000000000000002\n");
}

#[tokio::test]
async fn passing_failures_are_retried_and_told() {
    let cut = message(&[json!({"type": "text", "text": "half"})], "end_turn");
    let cut = cut[..cut.find("event: content_block_stop").unwrap()].to_owned();
    let overloaded = format!("event: error\ndata: {}\n\n", error("overloaded_error"));
    let place = Place::new([
        Answer::Error(429, Some("1"), error("rate_limit_error")),
        Answer::Cut(cut),
        Answer::Stream(overloaded),
        says("Done.", "end_turn"),
    ])
    .await;
    let told = place.go().await;
    assert!(matches!(told.end, AdapterEnd::Done { .. }), "{:?}", told.end);
    let retried: Vec<_> = told
        .events
        .iter()
        .filter_map(|event| match event {
            EventBody::CallRetried {
                failure,
                delay,
                attempt,
            } => Some((failure.kind, *delay, *attempt)),
            _ => None,
        })
        .collect();
    assert_eq!(retried.len(), 3);
    assert_eq!((retried[0].0, retried[0].2), (FailureKind::RateLimited, 1));
    assert!(retried[0].1 >= Duration::from_secs(1), "{:?}", retried[0].1);
    assert_eq!((retried[1].0, retried[1].2), (FailureKind::Network, 2));
    assert_eq!((retried[2].0, retried[2].2), (FailureKind::Overloaded, 3));
    assert_eq!(told.stdout, "half [broken off]\nDone.\n");
    // The call that was cut had begun, so its tokens are counted as well.
    let counted = told
        .events
        .iter()
        .filter(|event| matches!(event, EventBody::UsageRecorded { .. }));
    assert_eq!(counted.count(), 2);
    // A repetition is the same request.
    let requests = place.requests();
    assert!(requests.iter().all(|(_, body)| *body == requests[0].1));
}

#[tokio::test]
async fn lasting_failures_are_not_retried() {
    use FailureKind as K;
    let spent = json!({"type": "error", "error": {"type": "rate_limit_error", "message": "no",
        "details": {"error_code": "enforced_spend_limit_reached"}}});
    let long =
        json!({"type": "error", "error": {"type": "invalid_request_error", "message": "prompt is too long: 9 > 1"}});
    let cases = [
        (Answer::Error(401, None, error("authentication_error")), K::Auth),
        (Answer::Error(404, None, error("not_found_error")), K::InvalidRequest),
        (Answer::Error(400, None, long), K::ContextOverflow),
        (Answer::Error(429, None, spent), K::QuotaExhausted),
        // Longer than a call may wait: recovery decides.
        (
            Answer::Error(429, Some("3600"), error("rate_limit_error")),
            K::RateLimited,
        ),
        (says("I will not.", "refusal"), K::InvalidRequest),
        (says("", "model_context_window_exceeded"), K::ContextOverflow),
        (says("", "something_new"), K::Unknown),
    ];
    for (answer, expected) in cases {
        let place = Place::new([answer]).await;
        let told = place.go().await;
        assert_eq!(kind(&told.end), Some(expected), "{:?}", told.end);
        assert_eq!(place.requests().len(), 1);
    }
}

#[tokio::test]
async fn retries_and_turns_are_few() {
    let place = Place::new(vec![Answer::Error(529, None, error("overloaded_error")); 4]).await;
    let told = place.go().await;
    assert_eq!(
        (kind(&told.end), place.requests().len()),
        (Some(FailureKind::Overloaded), 4)
    );

    let again = Answer::Stream(message(&[tool("t", "list", json!({}))], "tool_use"));
    let place = Place::new(vec![again; 4]).await;
    let told = place.go().await;
    assert_eq!(
        (kind(&told.end), place.requests().len()),
        (Some(FailureKind::LogicError), 4)
    );
}

#[tokio::test]
async fn a_message_that_was_cut_or_paused_goes_on() {
    let write = tool("t", "write_file", json!({"path": "x", "content": ""}));
    let place = Place::new([
        says("I begin", "max_tokens"),
        Answer::Stream(message(&[write], "max_tokens")),
        says("thinking", "pause_turn"),
        says("End.", "end_turn"),
    ])
    .await;
    let told = place.go().await;
    assert!(matches!(told.end, AdapterEnd::Done { .. }), "{:?}", told.end);
    // The call that may be incomplete was answered, not run.
    assert!(!place.folder.path().join("tree/x").exists());
    let requests = place.requests();
    let roles = |index: usize| -> Vec<String> {
        let messages = requests[index].1["messages"].as_array().unwrap();
        messages
            .iter()
            .map(|message| message["role"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(roles(1), ["user", "assistant", "user"]);
    assert_eq!(requests[2].1["messages"][4]["content"][0]["is_error"], true);
    assert_eq!(roles(3).last().map(String::as_str), Some("assistant"));
}

#[tokio::test]
async fn time_limits_and_stop_end_a_call_and_a_tool() {
    let place = Place::new([Answer::Silence]).await;
    let mut input = place.input();
    input.timeout = Duration::from_millis(200);
    let told = place.run(input, CancellationToken::new()).await;
    assert_eq!(kind(&told.end), Some(FailureKind::Timeout));

    let slow = message(&[tool("t", "bash", json!({"command": "sleep 60"}))], "tool_use");
    let place = Place::new([Answer::Stream(slow.clone())]).await;
    let mut input = place.input();
    input.timeout = Duration::from_millis(500);
    let told = place.run(input, CancellationToken::new()).await;
    assert_eq!(kind(&told.end), Some(FailureKind::Timeout));

    let place = Place::new([Answer::Stream(slow)]).await;
    let stop = CancellationToken::new();
    let adapter = place.adapter();
    let (reporter, mut reports) = Reporter::channel(1);
    let stop_in_tool = async {
        while let Some(report) = reports.recv().await {
            if matches!(report, Report::Event(EventBody::Activity(_))) {
                stop.cancel();
            }
        }
    };
    let (end, ()) = tokio::join!(adapter.run(place.input(), reporter, stop.clone()), stop_in_tool);
    assert_eq!(end, AdapterEnd::Stopped);
}

#[tokio::test]
async fn a_call_that_is_stopped_is_billed_as_far_as_it_came() {
    let begun = message(&[json!({"type": "text", "text": "half"})], "end_turn");
    let begun = begun[..begun.find("event: content_block_stop").unwrap()].to_owned();
    let place = Place::new([Answer::Stuck(begun)]).await;
    let stop = CancellationToken::new();
    let adapter = place.adapter();
    let (reporter, mut reports) = Reporter::channel(4);
    let stop_in_answer = async {
        let mut billed = Vec::new();
        while let Some(report) = reports.recv().await {
            match report {
                Report::Output(OutputStream::Stdout, _) => stop.cancel(),
                Report::Event(EventBody::UsageRecorded { usage, .. }) => billed.push(usage),
                Report::Output(OutputStream::Stderr | OutputStream::Transcript, _) => {}
                Report::Event(other) => panic!("{other:?}"),
            }
        }
        billed
    };
    let (end, billed) = tokio::join!(adapter.run(place.input(), reporter, stop.clone()), stop_in_answer);
    assert_eq!(end, AdapterEnd::Stopped);
    let begun = Usage {
        input: 10,
        cache_write_5m: 20,
        cache_read: 30,
        output: 1,
        ..Usage::default()
    };
    assert_eq!(billed, [begun]);
}

#[tokio::test]
async fn a_frozen_attempt_makes_no_call() {
    let place = Place::new([says("Done.", "end_turn")]).await;
    let (freeze, frozen) = watch::channel(true);
    let mut input = place.input();
    input.frozen = frozen;
    let adapter = place.adapter();
    let (reporter, mut reports) = Reporter::channel(4);
    let thaw = async {
        // The conversation begins before the wait. A call that the loop made too early would
        // be there before this one is answered.
        reports.recv().await.unwrap();
        reqwest::get(format!("{}/elsewhere", place.url)).await.unwrap();
        let early = place.requests().len();
        freeze.send_replace(false);
        while reports.recv().await.is_some() {}
        early
    };
    let (end, early) = tokio::join!(adapter.run(input, reporter, CancellationToken::new()), thaw);
    assert_eq!(early, 0);
    assert!(matches!(end, AdapterEnd::Done { .. }));
}

#[tokio::test]
async fn without_a_key_it_is_there_and_says_what_to_do() {
    let config = AdapterConfig::default();
    let adapter = ClaudeApi::new(&config).unwrap();
    assert!(
        adapter
            .info()
            .unavailable
            .is_some_and(|reason| reason.contains("ANTHROPIC_API_KEY"))
    );

    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "sk-from-file\n").unwrap();
    let mut config = AdapterConfig::default();
    config.claude_api.key_file = Some(file.path().to_owned());
    let adapter = ClaudeApi::new(&config).unwrap();
    assert_eq!(
        (adapter.info().unavailable, adapter.secrets()),
        (None, vec!["sk-from-file".to_owned()])
    );

    config.claude_api.key_file = Some("/nonexistent/key".into());
    assert!(matches!(ClaudeApi::new(&config), Err(LoadError::KeyFile { .. })));
}

#[tokio::test]
async fn a_provider_that_is_not_there_is_a_network_failure() {
    let mut place = Place::new([]).await;
    // A port that was free a moment ago and that nobody listens on.
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    place.url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let told = place.go().await;
    assert_eq!(kind(&told.end), Some(FailureKind::Network));
    let AdapterEnd::Failed(failure) = told.end else {
        panic!("not a failure");
    };
    assert!(failure.message.contains("refused"), "{failure}");
}

fn thinking(signature: &str) -> Value {
    json!({"type": "thinking", "thinking": "", "signature": signature})
}

/// What a session said, as its checkpoint keeps it.
fn said(told: &Told) -> Bytes {
    told.lines.clone().into()
}

#[tokio::test]
async fn a_session_goes_on_with_exactly_the_same_request() {
    let step = |id: &str, command: &str| {
        let blocks = [thinking("a+/=="), tool(id, "bash", json!({"command": command}))];
        Answer::Stream(message(&blocks, "tool_use"))
    };
    let refused = Answer::Error(400, None, error("invalid_request_error"));
    let place = Place::new([step("t1", "echo '\u{e9} \\\\'"), step("t2", "exit 3"), refused]).await;
    let first = place.go().await;
    assert!(matches!(first.end, AdapterEnd::Failed(_)), "{:?}", first.end);

    place
        .provider
        .answers
        .lock()
        .unwrap()
        .push_back(says("done", "end_turn"));
    let mut input = place.input();
    input.beginning = Beginning::GoOn {
        said: said(&first),
        note: String::new(),
    };
    let second = place.run(input, CancellationToken::new()).await;
    assert_eq!(
        second.end,
        AdapterEnd::Done {
            summary: "done".to_owned()
        }
    );
    let bodies = place.provider.bodies.lock().unwrap().clone();
    assert_eq!(bodies.len(), 4);
    assert_eq!(bodies[3], bodies[2], "not a byte differs");
    assert!(bodies[3].contains("a+/=="));
    // Only what is new is in its transcript, and only its own call is counted.
    assert_eq!(second.transcript.len(), 1);
    let usage = |told: &Told| {
        let events = told.events.iter();
        events
            .filter(|event| matches!(event, EventBody::UsageRecorded { .. }))
            .count()
    };
    assert_eq!((usage(&first), usage(&second)), (2, 1));

    // A second interruption goes on from both parts.
    place
        .provider
        .answers
        .lock()
        .unwrap()
        .push_back(says("again", "end_turn"));
    let mut input = place.input();
    let mut both = first.lines.clone();
    both.extend_from_slice(&second.lines);
    input.beginning = Beginning::GoOn {
        said: both.into(),
        note: "Verify failed.".to_owned(),
    };
    place.run(input, CancellationToken::new()).await;
    let bodies = place.provider.bodies.lock().unwrap().clone();
    let last: Value = serde_json::from_str(&bodies[4]).unwrap();
    let messages = last["messages"].as_array().unwrap();
    assert_eq!(messages[messages.len() - 1]["content"][0]["text"], "Verify failed.");
    assert_eq!(messages[messages.len() - 2]["content"][0]["text"], "done");
}

#[tokio::test]
async fn a_tool_call_without_a_result_is_answered_as_interrupted() {
    let calls = [
        tool("t1", "bash", json!({"command": "true"})),
        tool("t2", "list", json!({})),
    ];
    let place = Place::new([says("done", "end_turn")]).await;
    let whole = [
        json!({"role": "user", "content": [{"type": "text", "text": "the task"}]}),
        json!({"role": "assistant", "stop_reason": "tool_use", "content": calls}),
    ];
    let said: String = whole.iter().map(|line| format!("{line}\n")).collect();
    let mut input = place.input();
    input.beginning = Beginning::GoOn {
        said: said.into(),
        note: "Look first.".to_owned(),
    };
    let told = place.run(input, CancellationToken::new()).await;
    assert_eq!(
        told.end,
        AdapterEnd::Done {
            summary: "done".to_owned()
        }
    );
    let requests = place.provider.requests.lock().unwrap().clone();
    let messages = requests[0].1["messages"].as_array().unwrap();
    let answers = messages[2]["content"].as_array().unwrap();
    let seen: Vec<_> = answers
        .iter()
        .map(|block| (&block["tool_use_id"], &block["content"], &block["is_error"]))
        .collect();
    let unknown = json!("interrupted, outcome unknown");
    assert_eq!(
        seen[..2],
        [
            (&json!("t1"), &unknown, &json!(true)),
            (&json!("t2"), &unknown, &json!(true))
        ]
    );
    assert_eq!(answers[2]["text"], "Look first.");
    assert_eq!((messages.len(), answers.len()), (3, 3));

    let mut input = place.input();
    input.beginning = Beginning::GoOn {
        said: "{\"role\":\"system\"}\n".into(),
        note: String::new(),
    };
    let told = place.run(input, CancellationToken::new()).await;
    let AdapterEnd::Failed(failure) = told.end else {
        panic!("{:?}", told.end)
    };
    assert_eq!(failure.kind, FailureKind::CorruptedState);
}

#[tokio::test]
async fn tools_wait_for_the_checkpoint_of_the_step_before() {
    let step = |id: &str| {
        Answer::Stream(message(
            &[tool(id, "bash", json!({"command": "echo x >> file"}))],
            "tool_use",
        ))
    };
    let place = Place::new([step("t1"), step("t2"), says("done", "end_turn")]).await;
    let mut input = place.input();
    let steps = Steps::from(0);
    input.steps = steps.clone();
    let file = place.folder.path().join("tree/file");
    let keeper = async {
        for step in 1..=2_u64 {
            let asked = steps.asked().await;
            assert_eq!(asked.position, 1 + 2 * step);
            // The model answers meanwhile, and its next tool waits.
            while place.provider.answers.lock().unwrap().len() > 1 {
                tokio::task::yield_now().await;
            }
            let written = std::fs::read_to_string(&file).unwrap();
            assert_eq!(written.lines().count() as u64, step);
            steps.dealt_with(&asked);
        }
        std::future::pending().await
    };
    tokio::select! {
        told = place.run(input, CancellationToken::new()) => {
            assert_eq!(told.end, AdapterEnd::Done { summary: "done".to_owned() });
        }
        () = keeper => {}
    }
    assert_eq!(steps.lines(0, 6).iter().filter(|byte| **byte == b'\n').count(), 6);
}

//! Gateways in front of a scripted provider, of every dialect.

use bytes::Bytes;
use futures_util::StreamExt as _;
use kage_core::call::{Ask, LEAST_OUTPUT, OutputBounds};
use kage_core::usage::Usage;
use kage_scripted::{Answer, ApiError, Fault, Matcher, Script, ScriptedServer, Turn};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::*;
use crate::adapters::api;
use crate::adapters::metered::MeteredWire;
use crate::calls::{Gate, GateClient};

mod gate;
mod odd_servers;
mod real_programs;

const KEY: &str = "kage-session-key";
const REAL: &str = "sk-canary-0123456789";
const PATIENCE: Duration = Duration::from_secs(20);

/// A gateway that is served, and what it told.
struct Served {
    pass: GatewayPass,
    told: Arc<Mutex<Vec<EventBody>>>,
    waits: Arc<Mutex<Vec<String>>>,
    end: CancellationToken,
    serving: JoinHandle<io::Result<Metered>>,
    client: reqwest::Client,
}

impl Served {
    /// In front of the provider at `url`, as programs of this dialect know it.
    fn start(wire: MeteredWire, url: &str, calls: Calls, limits: GatewayLimits) -> Self {
        let provider = api::metered(wire, &"program".parse().unwrap(), address(wire, url), REAL.to_owned());
        let client = api::client().unwrap();
        let gateway = Gateway::open(provider, client.clone(), KEY.to_owned())
            .unwrap()
            .with_limits(limits);
        let (pass, end) = (gateway.pass(), CancellationToken::new());
        let (told, waits) = (Arc::<Mutex<Vec<_>>>::default(), Arc::<Mutex<Vec<_>>>::default());
        let (telling, waiting) = (Arc::clone(&told), Arc::clone(&waits));
        let tell = move |it| {
            match it {
                GatewayTold::Used(body) => telling.lock().unwrap().push(body),
                GatewayTold::Waits(reason) => waiting.lock().unwrap().push(reason),
            }
            std::future::ready(())
        };
        let serving = tokio::spawn(gateway.serve(calls, tell, end.clone()));
        Self {
            pass,
            told,
            waits,
            end,
            serving,
            client,
        }
    }

    fn plain(wire: MeteredWire, url: &str) -> Self {
        Self::start(wire, url, Calls::Unlimited, GatewayLimits::default())
    }

    /// A call as a program makes it.
    fn call(&self, wire: MeteredWire, stream: bool) -> reqwest::RequestBuilder {
        let base = &self.pass.address;
        let key = &self.pass.key;
        let say = json!([{"role": "user", "content": "hello"}]);
        match wire {
            MeteredWire::Messages => {
                let body = json!({"model": "m", "max_tokens": 9000, "stream": stream, "messages": say});
                let request = self.client.post(format!("{base}/v1/messages?beta=true")).json(&body);
                request
                    .header("x-api-key", key)
                    .header("anthropic-version", "2023-06-01")
            }
            MeteredWire::Responses => {
                let body = json!({"model": "m", "stream": stream, "input": say});
                self.client
                    .post(format!("{base}/responses"))
                    .json(&body)
                    .bearer_auth(key)
            }
            MeteredWire::Chat => {
                let mut body = json!({"model": "m", "stream": stream, "messages": say});
                if stream {
                    body["stream_options"] = json!({"include_usage": true});
                }
                self.client
                    .post(format!("{base}/chat/completions"))
                    .json(&body)
                    .bearer_auth(key)
            }
            MeteredWire::Gemini => {
                let body = json!({"contents": [{"role": "user", "parts": [{"text": "hello"}]}]});
                let method = if stream {
                    "streamGenerateContent?alt=sse"
                } else {
                    "generateContent"
                };
                let request = self.client.post(format!("{base}/v1beta/models/m:{method}")).json(&body);
                request.header("x-goog-api-key", key)
            }
        }
    }

    /// A request with the session's key, in whatever dialect.
    fn post(&self, path: &str, body: &Value) -> reqwest::RequestBuilder {
        let request = self.client.post(format!("{}{path}", self.pass.address)).json(body);
        request.bearer_auth(&self.pass.key)
    }

    /// Ends it, and returns what it counted and the usage of each call that it told.
    async fn close(self) -> (Metered, Vec<Usage>) {
        self.end.cancel();
        let metered = tokio::time::timeout(PATIENCE, self.serving)
            .await
            .expect("it ends")
            .unwrap()
            .unwrap();
        let told = self.told.lock().unwrap();
        let usages = told.iter().map(|body| match body {
            EventBody::UsageRecorded {
                usage,
                metered: true,
                call: Some(_),
                ..
            } => *usage,
            other => panic!("{other:?}"),
        });
        (metered, usages.collect())
    }
}

/// The address of a server, as a program's variable has it.
fn address(wire: MeteredWire, url: &str) -> url::Url {
    let path = match wire {
        MeteredWire::Messages | MeteredWire::Gemini => "",
        MeteredWire::Responses | MeteredWire::Chat => "/v1",
    };
    format!("{url}{path}").parse().unwrap()
}

const WIRES: [MeteredWire; 4] = [
    MeteredWire::Messages,
    MeteredWire::Responses,
    MeteredWire::Chat,
    MeteredWire::Gemini,
];

fn refusals(refusals: usize) -> Vec<Fault> {
    vec![Fault::Error(ApiError::new(429, "rate_limit_error", "slow down")); refusals]
}

/// Sums of input of every class, and of output.
fn sums(usages: &[Usage]) -> (u64, u64) {
    usages.iter().fold((0, 0), |(input, output), usage| {
        (input + usage.total() - usage.output, output + usage.output)
    })
}

/// What the provider has in its books; of answers that broke off the input alone.
fn ledger(server: &ScriptedServer) -> (u64, u64) {
    server
        .requests()
        .iter()
        .fold((0, 0), |(input, output), request| match request.answer {
            Answer::Reply(usage) => (
                input + usage.input + usage.cache_read + usage.cache_write_5m + usage.cache_write_1h,
                output + usage.output,
            ),
            _ => (input, output),
        })
}

#[tokio::test]
async fn every_call_is_counted_to_the_token_and_made_with_the_real_key() {
    for wire in WIRES {
        for stream in [true, false] {
            let mut turn = Turn::say("I am here, and this is what I say.");
            turn.faults = refusals(2);
            let server = ScriptedServer::start(vec![Script::new("s", Matcher::any(), [turn])])
                .await
                .unwrap();
            let served = Served::plain(wire, &server.url());
            let mut statuses = Vec::new();
            for _ in 0..4 {
                let response = served.call(wire, stream).send().await.unwrap();
                statuses.push(response.status().as_u16());
                assert!(!response.text().await.unwrap().contains(REAL));
            }
            let (metered, usages) = served.close().await;
            assert_eq!(statuses, [429, 429, 200, 200], "{wire:?}");
            assert_eq!((usages.len(), sums(&usages)), (2, ledger(&server)), "{wire:?} {stream}");
            assert_eq!(
                (metered.answered, metered.broken, metered.refused),
                (2, 0, 2),
                "{wire:?}"
            );
            for request in server.requests() {
                let headers = format!("{:?} {}", request.headers, request.path);
                let sent: Vec<_> = request
                    .headers
                    .values()
                    .filter_map(|value| value.to_str().ok())
                    .collect();
                assert!(sent.iter().any(|value| value.contains(REAL)), "{headers}");
                assert!(!sent.iter().any(|value| value.contains(KEY)), "{headers}");
            }
        }
    }
}

#[tokio::test]
async fn answers_that_break_off_are_on_the_bill_as_far_as_they_came() {
    let cut = Fault::Cut { after_events: 2 };
    let failed = Fault::ErrorEvent {
        after_events: 2,
        error: ApiError::new(529, "overloaded_error", "Overloaded"),
    };
    for fault in [cut, failed] {
        let turn = Turn::say("It is never said whole.").after(fault.clone());
        let server = ScriptedServer::start(vec![Script::new("s", Matcher::any(), [turn])])
            .await
            .unwrap();
        let served = Served::plain(MeteredWire::Messages, &server.url());
        for _ in 0..2 {
            let response = served.call(MeteredWire::Messages, true).send().await.unwrap();
            let mut body = response.bytes_stream();
            while let Some(Ok(_)) = body.next().await {}
        }
        let (metered, usages) = served.close().await;
        let expected: Vec<_> = server
            .requests()
            .iter()
            .map(|request| match request.answer {
                // One token of output is told at the start.
                Answer::Broken(usage) => (usage.input + usage.cache_read, 1),
                Answer::Reply(usage) => (usage.input + usage.cache_read, usage.output),
                ref other => panic!("{other:?}"),
            })
            .collect();
        let told: Vec<_> = usages.iter().map(|usage| sums(&[*usage])).collect();
        assert_eq!(told, expected, "{fault:?}");
        assert_eq!((metered.answered, metered.broken), (2, 1), "{fault:?}");
        assert!(usages[0].unreported.of_the_bill() && !usages[1].unreported.of_the_bill());
    }
}

#[tokio::test]
async fn what_is_no_call_of_the_provider_goes_nowhere() {
    let server = ScriptedServer::start(vec![Script::new("s", Matcher::any(), [Turn::say("x")])])
        .await
        .unwrap();
    let served = Served::plain(MeteredWire::Messages, &server.url());
    let base = &served.pass.address;
    let post = |path: &str, key: &str| {
        served
            .client
            .post(format!("{base}{path}"))
            .header("x-api-key", key)
            .body("{}")
    };
    for (path, key, status) in [
        ("/v1/messages", "kage-other", 401),
        ("/v1/messages", REAL, 401),
        ("/v1/messages", "", 401),
        ("/v1/messages/batches", KEY, 404),
        ("/v1/files", KEY, 404),
        ("/", KEY, 404),
        ("/v1/messages/%2e%2e/files", KEY, 404),
        ("/v1/models/..%2ffiles", KEY, 404),
    ] {
        let response = post(path, key).send().await.unwrap();
        assert_eq!(response.status(), status, "{path} {key}");
        let error: Value = response.json().await.unwrap();
        assert_eq!(error["type"], "error", "{error}");
    }
    assert_eq!(server.requests().len(), 0);
    // Counting tokens costs nothing, and is not counted.
    let count = served
        .client
        .post(format!("{base}/v1/messages/count_tokens"))
        .header("x-api-key", KEY);
    let body = json!({"model": "m", "messages": [{"role": "user", "content": "hello"}]});
    let count = count
        .header("anthropic-version", "2023-06-01")
        .json(&body)
        .send()
        .await
        .unwrap();
    assert_eq!(count.status(), 200);
    assert_eq!(server.requests().len(), 1);
    let (metered, usages) = served.close().await;
    assert_eq!((metered, usages.len()), (Metered::default(), 0));
}

#[tokio::test]
async fn bodies_and_connections_are_bounded() {
    let server = ScriptedServer::start(vec![Script::new("s", Matcher::any(), [Turn::say("x")])])
        .await
        .unwrap();
    let limits = GatewayLimits {
        body_bytes: 2000,
        connections: 1,
        ..GatewayLimits::default()
    };
    let served = Served::start(MeteredWire::Messages, &server.url(), Calls::Unlimited, limits);
    let request = |bytes: usize| {
        let text = "x".repeat(bytes);
        let body = json!({"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": text}]});
        let request = served
            .client
            .post(format!("{}/v1/messages", served.pass.address))
            .json(&body);
        request
            .header("x-api-key", KEY)
            .header("anthropic-version", "2023-06-01")
            .header("connection", "close")
    };
    assert_eq!(request(5000).send().await.unwrap().status(), 413);
    assert_eq!(server.requests().len(), 0);
    let one = request(10).send();
    let other = request(20).send();
    let (one, other) = tokio::join!(one, other);
    assert_eq!(
        (one.unwrap().status().as_u16(), other.unwrap().status().as_u16()),
        (200, 200)
    );
    let packed = request(10).header("content-encoding", "zstd").send().await.unwrap();
    assert_eq!(packed.status(), 413);
    served.close().await;
}

#[tokio::test]
async fn a_budget_that_is_used_up_is_the_provider_s_own_error() {
    for (wire, status) in WIRES.into_iter().zip([400, 429, 402, 429]) {
        let server = ScriptedServer::start(vec![Script::new("s", Matcher::any(), [Turn::say("x")])])
            .await
            .unwrap();
        let (gate, log) = gate::granting(1, 5000).await;
        let limits = GatewayLimits {
            refusals: 2,
            patience: PATIENCE,
            ..GatewayLimits::default()
        };
        let served = Served::start(wire, &server.url(), Calls::Gated(gate), limits);
        let answered = served.call(wire, true).send().await.unwrap();
        assert_eq!(answered.status(), 200, "{wire:?}");
        answered.text().await.unwrap();
        assert!(served.pass.refusing.borrow().is_none());
        for refused in 1..=3 {
            let response = served.call(wire, true).send().await.unwrap();
            assert_eq!(response.status(), status, "{wire:?}");
            let error: Value = response.json().await.unwrap();
            let message = error["error"]["message"].as_str().unwrap();
            assert!(message.ends_with("the budget of 1.00 USD is used up"), "{message}");
            let failure = served.pass.refusing.borrow().clone().unwrap();
            assert_eq!(failure.kind, kage_core::failure::FailureKind::BudgetExceeded);
            assert_eq!(served.pass.enough.is_cancelled(), refused == 3, "{refused}");
        }
        let (metered, usages) = served.close().await;
        assert_eq!((metered.answered, usages.len()), (1, 1));
        assert_eq!(server.requests().len(), 1, "what is refused goes to nobody");
        let answers = log.waited(2).await;
        assert_eq!(answers, ["started", "committed whole"], "{wire:?}");
        // No answer may be longer than what was granted for it.
        let body = &server.requests()[0].body;
        let limit = match wire {
            MeteredWire::Messages => &body["max_tokens"],
            MeteredWire::Responses => &body["max_output_tokens"],
            MeteredWire::Chat => &body["max_completion_tokens"],
            MeteredWire::Gemini => &body["generationConfig"]["maxOutputTokens"],
        };
        assert_eq!(*limit, 5000, "{body}");
    }
}

#[tokio::test]
async fn a_program_that_goes_on_without_calls_is_ended_too() {
    let server = ScriptedServer::start(Vec::new()).await.unwrap();
    let (gate, _log) = gate::granting(0, 5000).await;
    let limits = GatewayLimits {
        patience: Duration::ZERO,
        ..GatewayLimits::default()
    };
    let served = Served::start(MeteredWire::Chat, &server.url(), Calls::Gated(gate), limits);
    assert_eq!(served.call(MeteredWire::Chat, true).send().await.unwrap().status(), 402);
    tokio::time::timeout(PATIENCE, served.pass.enough.cancelled())
        .await
        .expect("it is ended");
    served.close().await;
}

#[tokio::test]
async fn a_call_that_was_refused_or_not_made_is_released() {
    let mut turn = Turn::say("x");
    turn.faults = refusals(1);
    let server = ScriptedServer::start(vec![Script::new("s", Matcher::any(), [turn])])
        .await
        .unwrap();
    let (gate, log) = gate::granting(9, 5000).await;
    let served = Served::start(
        MeteredWire::Chat,
        &server.url(),
        Calls::Gated(gate),
        GatewayLimits::default(),
    );
    assert_eq!(served.call(MeteredWire::Chat, true).send().await.unwrap().status(), 429);
    assert_eq!(log.waited(1).await, ["released"]);
    let (metered, usages) = served.close().await;
    assert_eq!((metered.refused, usages.len()), (1, 0));

    // Nobody listens there.
    let (gate, log) = gate::granting(9, 5000).await;
    let served = Served::start(
        MeteredWire::Chat,
        "http://127.0.0.1:9",
        Calls::Gated(gate),
        GatewayLimits::default(),
    );
    let response = served.call(MeteredWire::Chat, true).send().await.unwrap();
    assert_eq!(response.status(), 502);
    assert_eq!(log.waited(1).await, ["released"]);
    served.close().await;
}

#[tokio::test]
async fn a_call_that_waits_says_why() {
    let server = ScriptedServer::start(vec![Script::new("s", Matcher::any(), [Turn::say("x")])])
        .await
        .unwrap();
    let (gate, _log) = gate::waiting_once("others are waiting").await;
    let served = Served::start(
        MeteredWire::Chat,
        &server.url(),
        Calls::Gated(gate),
        GatewayLimits::default(),
    );
    assert_eq!(served.call(MeteredWire::Chat, true).send().await.unwrap().status(), 200);
    let waits = Arc::clone(&served.waits);
    served.close().await;
    assert_eq!(*waits.lock().unwrap(), ["others are waiting"]);
}

#[tokio::test]
async fn what_has_no_bound_is_refused_where_calls_are_granted_and_goes_to_nobody() {
    let (responses, chat, gemini) = ("/responses", "/chat/completions", "/v1beta/models/m:generateContent");
    for (wire, path, body) in [
        (
            MeteredWire::Responses,
            responses,
            json!({"model": "m", "input": "x", "previous_response_id": "resp_1"}),
        ),
        (
            MeteredWire::Responses,
            responses,
            json!({"model": "m", "input": "x", "conversation": {"id": "conv_1"}}),
        ),
        (
            MeteredWire::Chat,
            chat,
            json!({"model": "m", "service_tier": "priority"}),
        ),
        (
            MeteredWire::Gemini,
            gemini,
            json!({"cachedContent": "cachedContents/1"}),
        ),
    ] {
        let (url, kept) = odd_servers::keeping().await;
        let (gate, _log) = gate::granting(1, 5000).await;
        let gated = Served::start(wire, &url, Calls::Gated(gate), GatewayLimits::default());
        let response = gated.post(path, &body).send().await.unwrap();
        assert_eq!(response.status(), 400, "{body}");
        let error: Value = response.json().await.unwrap();
        assert!(error["error"]["message"].is_string(), "{error}");
        assert!(gated.pass.refusing.borrow().is_none(), "the session may go on");
        gated.close().await;
        assert_eq!(*kept.lock().unwrap(), Vec::<Value>::new(), "{body}");

        let plain = Served::plain(wire, &url);
        plain.post(path, &body).send().await.unwrap();
        plain.close().await;
        assert_eq!(*kept.lock().unwrap(), [body]);
    }
}

#[tokio::test]
async fn all_answers_of_a_call_fit_into_what_was_granted() {
    let (chat, gemini) = ("/chat/completions", "/v1beta/models/m:generateContent");
    let config = "/generationConfig/maxOutputTokens";
    for (wire, path, body, pointer) in [
        (
            MeteredWire::Chat,
            chat,
            json!({"model": "m", "n": 8, "max_tokens": 9000}),
            "/max_tokens",
        ),
        (
            MeteredWire::Chat,
            chat,
            json!({"model": "m", "n": 8}),
            "/max_completion_tokens",
        ),
        (
            MeteredWire::Gemini,
            gemini,
            json!({"generationConfig": {"candidateCount": 8}}),
            config,
        ),
        (
            MeteredWire::Gemini,
            gemini,
            json!({"generation_config": {"candidate_count": 8, "max_output_tokens": 9000}}),
            config,
        ),
    ] {
        let (url, kept) = odd_servers::keeping().await;
        let (gate, _log) = gate::granting(1, 5000).await;
        let served = Served::start(wire, &url, Calls::Gated(gate), GatewayLimits::default());
        served.post(path, &body).send().await.unwrap();
        served.close().await;
        let limit = kept.lock().unwrap()[0].pointer(pointer).cloned();
        assert_eq!(limit, Some(json!(625)), "{body}");
    }
}

#[tokio::test]
async fn a_call_that_nobody_waits_for_any_more_is_released() {
    let (gate, log) = gate::silent().await;
    let ask = Ask {
        account: "openai/0123456789ab".parse().unwrap(),
        model: "m".to_owned(),
        free: false,
        prefix: None,
        input: 9,
        output: OutputBounds::of(LEAST_OUTPUT, false),
    };
    let calls = Calls::Gated(gate);
    let asking = calls.reserve(ask, |_reason| {});
    let gave_up = tokio::time::timeout(Duration::from_millis(50), asking).await;
    assert!(gave_up.is_err(), "nobody answers");
    // Once at once, and once when a late grant has come.
    assert_eq!(log.waited(2).await, ["released", "released"]);
}

//! The loop of each dialect of local servers against a scripted provider that enforces its rules. What
//! was told of tokens is what the provider counted.

use kage_core::usage::{PicoUsd, Usage};
use kage_scripted::{ApiError, Block, CallUsage, Fault, Matcher, Reply, Script, ScriptedServer, Turn};
use serde_json::json;

use super::super::*;
use super::kind;
use super::provider::{Place, Told, adapter_by, told};

/// A server with one script for this model, and the adapter named `mine` that calls it.
struct Served {
    place: Place,
    server: ScriptedServer,
    adapter: ApiAdapter,
}

impl Served {
    async fn new(kind: &str, model: &str, turns: impl IntoIterator<Item = Turn>) -> Self {
        let server = ScriptedServer::start(vec![Script::new("s", Matcher::model(model), turns)]);
        let server = server.await.unwrap();
        let path = if kind == "ollama" { "" } else { "/v1" };
        let settings = format!(
            "[mine]\nkind = '{kind}'\nbase_url = '{}{path}'\nkey_variable = 'MY_KEY'\nmodels = ['{model}']\n\
             headers = {{ 'x-team' = 'blue' }}\n",
            server.url()
        );
        Self {
            place: Place::new([]).await,
            adapter: adapter_by("mine", &settings),
            server,
        }
    }

    async fn go(&self, beginning: Beginning) -> Told {
        let input = SessionInput {
            beginning,
            ..self.place.input()
        };
        told(&self.adapter, input, CancellationToken::new()).await
    }

    /// What the provider counted of whole answers.
    fn ledger(&self) -> CallUsage {
        let mut sum = CallUsage::default();
        for request in self.server.requests() {
            if let kage_scripted::Answer::Reply(usage) = request.answer {
                sum.input += usage.input;
                sum.cache_read += usage.cache_read;
                sum.output += usage.output;
                sum.reasoning += usage.reasoning;
            }
        }
        sum
    }
}

/// What was told of tokens, and of how many calls nothing is known.
fn counted(told: &Told) -> (CallUsage, usize) {
    let (mut sum, mut unknown) = (CallUsage::default(), 0);
    for event in &told.events {
        if let EventBody::UsageRecorded { usage, .. } = event {
            unknown += usize::from(*usage == Usage::UNKNOWN);
            sum.input += usage.input;
            sum.cache_read += usage.cache_read;
            sum.output += usage.output;
            sum.reasoning += usage.reasoning;
        }
    }
    (sum, unknown)
}

/// Thinks, calls two tools at once, meets what can go wrong on the way, and says that it is done.
fn work() -> Vec<Turn> {
    let first = Reply::new([
        Block::Thinking("I have to write it first, and look at it then.".to_owned()),
        Block::Text("Writing \u{e9}.".to_owned()),
        Block::tool("write_file", json!({"path": "a.txt", "content": "one \u{fc}\n"})),
        Block::tool("bash", json!({"command": "cat a.txt; exit 3"})),
    ]);
    vec![
        Turn::from(first)
            .after(Fault::rate_limited(Duration::ZERO))
            .after(Fault::Cut { after_events: 3 }),
        Turn::from(Reply::new([
            Block::Thinking("It ended with 3.".to_owned()),
            Block::tool("read_file", json!({"path": "a.txt"})),
        ]))
        .after(Fault::ErrorEvent {
            after_events: 1,
            error: ApiError::new(500, "server_error", "unexpected EOF: internal server error"),
        }),
        Turn::say("All done."),
    ]
}

const KINDS: [(&str, &str); 3] = [
    ("openai-chat", "qwen4"),
    // It refuses calls that come back without its thoughts.
    ("openai-chat", "deepseek-v4-pro"),
    ("ollama", "qwen4:8b"),
];

#[tokio::test]
async fn the_loop_keeps_the_rules_and_tells_what_the_provider_counted() {
    for (dialect, model) in KINDS {
        let served = Served::new(dialect, model, work()).await;
        let told = served.go(Beginning::New).await;
        let summary = "All done.".to_owned();
        assert_eq!(told.end, AdapterEnd::Done { summary }, "{dialect} {model}");
        let file = served.place.folder.path().join("tree/a.txt");
        assert_eq!(std::fs::read_to_string(file).unwrap(), "one \u{fc}\n");
        assert!(told.stdout.contains("Writing \u{e9}.\n"), "{}", told.stdout);

        let (mut sum, unknown) = counted(&told);
        let mut ledger = served.ledger();
        if dialect == "ollama" {
            // It does not tell them apart.
            (sum.reasoning, ledger.reasoning) = (0, 0);
        }
        assert_eq!(sum, ledger, "{dialect} {model}");
        assert!(ledger.output > 0);
        assert_eq!(
            unknown, 2,
            "the call that was cut, and the one that ended in an error: {dialect}"
        );
        let requests = served.server.requests();
        assert_eq!(requests.len(), 6);
        assert!(requests.iter().all(|request| request.headers["x-team"] == "blue"));

        let free = told.events.iter().filter_map(|event| match event {
            EventBody::UsageRecorded { model, reported, .. } => Some((model.clone(), *reported)),
            _ => None,
        });
        let expected = match dialect {
            "ollama" => (model.to_owned(), Some(PicoUsd(0))),
            _ => (format!("mine/{model}"), None),
        };
        assert!(free.into_iter().all(|told| told == expected), "{expected:?}");
    }
}

#[tokio::test]
async fn a_conversation_goes_on_where_it_stopped() {
    for (dialect, model) in KINDS {
        let refused = Fault::Error(ApiError::invalid("no"));
        let mut turns = work();
        turns.iter_mut().for_each(|turn| turn.faults.clear());
        turns[1].faults.push(refused);
        let served = Served::new(dialect, model, turns).await;
        let first = served.go(Beginning::New).await;
        assert_eq!(kind(&first.end), Some(FailureKind::InvalidRequest), "{dialect}");
        let said = first.lines.clone().into();
        let beginning = Beginning::GoOn {
            said,
            note: String::new(),
            instruction: String::new(),
        };
        let second = served.go(beginning).await;
        assert!(
            matches!(second.end, AdapterEnd::Done { .. }),
            "{dialect}: {:?}",
            second.end
        );
        let requests = served.server.requests();
        assert_eq!(requests[1].body, requests[2].body, "not a field differs");

        // Another dialect does not take it over.
        let other = if dialect == "ollama" { "openai-chat" } else { "ollama" };
        let other = Served::new(other, "m", []).await;
        let beginning = Beginning::GoOn {
            said: first.lines.into(),
            note: String::new(),
            instruction: String::new(),
        };
        let told = other.go(beginning).await;
        assert_eq!(kind(&told.end), Some(FailureKind::CorruptedState));
        assert!(other.server.requests().is_empty());
    }
}

#[tokio::test]
async fn ollama_is_told_the_room_and_what_has_none_is_a_context_overflow() {
    let long = Turn::call("bash", json!({"command": "head -c 20000 /dev/zero | tr '\\0' 'x'"}));
    for (room, calls) in [(2000, 1), (250, 0), (60_000, 2)] {
        let served = Served::new("ollama", "m", [long.clone(), Turn::say("done")]).await;
        let settings = format!(
            "[ollama]\nbase_url = '{}'\nmodels = ['m']\ncontext = {room}",
            served.server.url()
        );
        let adapter = adapter_by("ollama", &settings);
        let told = told(&adapter, served.place.input(), CancellationToken::new()).await;
        let expected = (calls < 2).then_some(FailureKind::ContextOverflow);
        assert_eq!(kind(&told.end), expected, "{room}: {:?}", told.end);
        assert_eq!(served.server.requests().len(), calls, "{room}");
    }
}

#[tokio::test]
async fn what_is_missing_where_ollama_runs_is_said() {
    let served = Served::new("ollama", "qwen4:8b", [Turn::say("done")]).await;
    let input = SessionInput {
        model: Some("llama9".to_owned()),
        ..served.place.input()
    };
    let settings = format!("[ollama]\nbase_url = '{}'", served.server.url());
    let adapter = adapter_by("ollama", &settings);
    let told = told(&adapter, input, CancellationToken::new()).await;
    let AdapterEnd::Failed(failure) = told.end else {
        panic!("not a failure")
    };
    assert_eq!(failure.kind, FailureKind::AdapterUnavailable);
    assert!(failure.message.contains("`ollama pull llama9`"), "{failure}");
    // It names no model of its own.
    let told = super::provider::told(&adapter, served.place.input(), CancellationToken::new()).await;
    assert_eq!(kind(&told.end), Some(FailureKind::InvalidRequest));

    let nobody = adapter_by("ollama", "[ollama]\nbase_url = 'http://127.0.0.1:9'\nmodels = ['m']");
    let unanswered = nobody.answers().await.unwrap_err();
    assert!(unanswered.contains("`ollama serve`"), "{unanswered}");
    // There is no such program here, and no address.
    let reason = adapter_by("ollama", "").info().unavailable.unwrap();
    assert!(reason.contains("[adapter.ollama] base_url"), "{reason}");
}

#[test]
fn keys_go_where_they_are_meant_for() {
    let lacks = |name, settings: &str| adapter_by(name, settings).info().unavailable;
    let shipped = lacks("openai-chat", "").unwrap();
    assert!(
        shipped.contains("OPENAI_API_KEY") && shipped.contains("[adapter.openai-chat] base_url"),
        "{shipped}"
    );
    assert_eq!(lacks("openai-chat", "[openai-chat]\nbase_url = 'http://gpu/v1'"), None);
    let own = lacks("groq", "[groq]\nkind = 'openai-chat'").unwrap();
    assert!(
        own.contains("[adapter.groq] key_variable or key_file") && !own.contains("OPENAI"),
        "{own}"
    );
    let keyed = adapter_by("groq", "[groq]\nkind = 'openai-chat'\nkey_variable = 'MY_KEY'");
    assert_eq!(keyed.info().unavailable, None);
    assert_eq!(Secret::values(&keyed.secrets()), ["sk-mine-0123456789"]);
    // An address of the settings is one of another server, but for gateways of Claude.
    let openai = lacks("openai", "[openai]\nbase_url = 'http://gpu/v1'").unwrap();
    assert!(
        openai.contains("[adapter.openai] key_variable or key_file") && !openai.contains("OPENAI"),
        "{openai}"
    );
    let gateway = lacks("claude-api", "[claude-api]\nbase_url = 'http://gateway'").unwrap();
    assert!(gateway.contains("ANTHROPIC_API_KEY"), "{gateway}");
    let claude = adapter_by("team", "[team]\nkind = 'claude-api'\nkey_variable = 'MY_KEY'");
    assert_eq!(claude.info().name.as_str(), "team");
}

#[test]
fn a_usual_key_goes_to_no_server_of_the_settings() {
    let key = |settings: &str, url: Option<&str>| {
        let mut env = vec![("OPENAI_API_KEY", "sk-usual-0123456789")];
        env.extend(url.map(|url| ("OPENAI_BASE_URL", url)));
        let env = env.into_iter().map(|(name, value)| (name.into(), value.into()));
        let mut config = AdapterConfig::new(AgentEnvironment::new(env.collect()), Runner::default());
        config.settings = toml::from_str(settings).unwrap();
        let mut all = instances(&config.settings).into_iter();
        let instance = all.find(|instance| instance.name.as_str() == "openai-chat").unwrap();
        Secret::values(&ApiAdapter::new(instance, &config).unwrap().secrets())
    };
    let usual = ["sk-usual-0123456789"];
    assert_eq!(key("", None), usual);
    assert_eq!(key("", Some("http://gpu/v1")), usual);
    let default = "[openai-chat]\nbase_url = 'https://api.openai.com/v1/'";
    assert_eq!(key(default, None), usual);
    let elsewhere = "[openai-chat]\nbase_url = 'http://gpu/v1'";
    assert!(key(elsewhere, None).is_empty());
    assert!(key(elsewhere, Some("http://other/v1")).is_empty());
    assert_eq!(
        key(&format!("{elsewhere}\nkey_variable = 'OPENAI_API_KEY'"), None),
        usual
    );
}

#[test]
fn a_header_of_the_settings_replaces_the_one_with_the_key_and_is_secret() {
    let settings = "[mine]\nkind = 'openai-chat'\nkey_variable = 'MY_KEY'\nheaders = { Authorization = 'Basic abc' }";
    let adapter = adapter_by("mine", settings);
    let headers = adapter.caller("m", Duration::ZERO).headers;
    assert_eq!(headers, [("Authorization".to_owned(), "Basic abc".to_owned())]);
    assert_eq!(Secret::values(&adapter.secrets()), ["sk-mine-0123456789", "Basic abc"]);
}

//! The loop against a provider on loopback with a list of answers.

use std::net::Ipv4Addr;
use std::path::Path;

use kage_core::event::OutputStream;
use kage_core::usage::{Unreported, Usage, UsageClass};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::*;
use crate::adapters::port::Report;
use crate::adapters::steps::Steps;

mod cached;
mod compaction;
mod dialects;
mod exact;
mod goes_on;
mod life;
mod no_stream;
mod servers;
mod splits;
mod stops;
pub(crate) mod provider;
mod scene;

use provider::{Answer, Place, error, message, says, tool};

/// What calls a provider of this dialect.
fn caller_of(wire: &'static wire::Wire, idle: Duration) -> Caller {
    Caller {
        client: caller::client().unwrap(),
        wire,
        name: "some".parse().unwrap(),
        url: String::new(),
        headers: Vec::new(),
        model: "m".to_owned(),
        context: None,
        before: None,
        compact_at: None,
        free: false,
        seller: None,
        idle,
        rules: CallRules {
            max_calls: 1,
            backoff: Duration::ZERO,
        },
        calls: crate::calls::Calls::Unlimited,
        account: "some/account".parse().unwrap(),
        prefix: None,
        was_cut: false,
        warned: None,
    }
}

/// Without the call's id, which is drawn at random.
fn without_call(event: EventBody) -> EventBody {
    match event {
        EventBody::UsageRecorded {
            model,
            usage,
            reported,
            metered,
            tools,
            call: Some(_),
        } => EventBody::UsageRecorded {
            model,
            usage,
            reported,
            metered,
            tools,
            call: None,
        },
        other => other,
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
    let usage = |output, tools: &[&str]| EventBody::UsageRecorded {
        model: "claude-sonnet-5-5".to_owned(),
        usage: Usage {
            input: 10,
            cache_write_5m: 20,
            cache_read: 30,
            output,
            unreported: Unreported::default().with(UsageClass::Reasoning),
            ..Usage::default()
        },
        reported: None,
        metered: true,
        tools: Some(tools.iter().copied().collect()),
        call: None,
    };
    let activity = |text: &str| EventBody::Activity(text.to_owned());
    let events: Vec<_> = told.events.iter().cloned().map(without_call).collect();
    assert_eq!(
        events,
        [
            usage(5, &["bash", "read_file", "write_file"]),
            activity("write_file a.txt"),
            activity("read_file ../secret"),
            activity("bash cat a.txt; echo \" [$ANTHROPIC_API_KEY]$KAGE_SESSION\""),
            usage(5, &[]),
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
        (messages::CLAUDE.model, Some(true))
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
        (says("I will not.", "refusal"), K::ModelRefused),
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
        (Some(FailureKind::TurnLimit), 4)
    );
}

#[tokio::test]
async fn stop_ends_a_call_and_a_tool() {
    let place = Place::new([Answer::Silence]).await;
    let stop = CancellationToken::new();
    let adapter = place.adapter();
    let (reporter, _reports) = Reporter::channel(8);
    let stop_in_call = async {
        while place.requests().is_empty() {
            tokio::task::yield_now().await;
        }
        stop.cancel();
    };
    let (end, ()) = tokio::join!(adapter.run(place.input(), reporter, stop.clone()), stop_in_call);
    assert_eq!(end, AdapterEnd::Stopped);

    let slow = message(&[tool("t", "bash", json!({"command": "sleep 60"}))], "tool_use");
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
                Report::Output(OutputStream::Stderr | OutputStream::Transcript, _) | Report::Alive => {}
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
        unreported: Unreported::default().with(UsageClass::Reasoning),
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
async fn an_attempt_that_nobody_can_thaw_is_not_frozen() {
    let place = Place::new([says("Done.", "end_turn")]).await;
    let (freeze, frozen) = watch::channel(true);
    drop(freeze);
    let input = SessionInput {
        frozen,
        ..place.input()
    };
    let told = place.run(input, CancellationToken::new()).await;
    assert!(matches!(told.end, AdapterEnd::Done { .. }), "{:?}", told.end);
}

/// The shipped adapter of the Messages API.
fn made(config: &AdapterConfig) -> Result<ApiAdapter, LoadError> {
    ApiAdapter::new(instances(&config.settings).remove(0), config)
}

#[tokio::test]
async fn without_a_key_it_is_there_and_says_what_to_do() {
    let config = AdapterConfig::default();
    let adapter = made(&config).unwrap();
    assert!(
        adapter
            .info()
            .unavailable
            .is_some_and(|reason| reason.contains("ANTHROPIC_API_KEY"))
    );

    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "sk-from-file\n").unwrap();
    let mut config = AdapterConfig::default();
    let key_file = |path: &Path| toml::from_str(&format!("[claude-api]\nkey_file = {path:?}")).unwrap();
    config.settings = key_file(file.path());
    let adapter = made(&config).unwrap();
    assert_eq!(
        (adapter.info().unavailable, Secret::values(&adapter.secrets())),
        (None, vec!["sk-from-file".to_owned()])
    );

    config.settings = key_file(Path::new("/nonexistent/key"));
    assert!(matches!(made(&config), Err(LoadError::KeyFile { .. })));
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

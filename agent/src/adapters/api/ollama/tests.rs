//! The bytes of requests, lines of answers, and what a person is told.

use serde_json::json;

use super::super::asked::Asked;
use super::super::pauses::CacheLife;
use super::super::turns::Conversation;
use super::*;
use crate::adapters::tools as toolbox;

macro_rules! fixture {
    ($name:literal) => {
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/ollama/", $name))
    };
}

fn read(lines: &str, draft: Draft) -> Result<Answer, Failure> {
    let mut draft = draft;
    for line in lines.lines() {
        match event(&mut draft, line) {
            Progress::None | Progress::Ping | Progress::Text(_) => {}
            Progress::Complete => return Ok(finish(draft)),
            Progress::Failed(failure) => return Err(failure),
        }
    }
    panic!("the answer does not end");
}

fn sent(asked: &Asked, conversation: &Conversation) -> (Value, Option<Failure>) {
    let tools = (WIRE.tools)(&toolbox::definitions());
    let request = Request {
        asked,
        task: "t",
        tools: &tools,
        system: &["you are".to_owned(), "the base".to_owned()],
        turns: conversation.turns(),
        cache: CacheLife::default(),
    };
    let body = body(&request);
    let failure = too_large(&request, &body);
    (serde_json::from_slice(&body).unwrap(), failure)
}

fn asked(context: Option<u32>) -> Asked {
    Asked {
        model: "m".to_owned(),
        max_output: NonZeroU32::new(10).unwrap(),
        output_is_known: false,
        thinking: None,
        effort: None,
        compact_at: None,
        context: context.and_then(NonZeroU32::new),
    }
}

#[test]
fn a_stream_becomes_an_answer_and_goes_back_as_the_server_wants_it() {
    let answer = read(fixture!("tools.jsonl"), Draft::default()).unwrap();
    assert_eq!(
        (answer.stop.clone(), answer.words.as_str()),
        (Stop::Done, "I will look: caf\u{e9}.")
    );
    let calls = answer.calls.iter();
    let calls: Vec<_> = calls
        .map(|call| (call.id.as_str(), call.name.as_str(), call.input.as_deref()))
        .collect();
    let made = "call_2026-11-30T10:00:00.123456789Z_1";
    // Numbers are as the model wrote them.
    let input = r#"{"command": "ls", "n": 1.10}"#;
    assert_eq!(calls, [("call_x1", "bash", Some(input)), (made, "list", Some("{}"))]);
    assert_eq!((answer.usage.input, answer.usage.output), (260, 30));
    assert!(!answer.usage.unreported.of_the_bill());

    let mut conversation = Conversation::new(&WIRE, "task");
    conversation.model(&answer);
    conversation.tool_results(
        [made, "call_x1"]
            .map(|id| super::super::turn::ToolAnswer {
                id: id.to_owned(),
                text: "ok".to_owned(),
                is_error: false,
                image: None,
            })
            .into(),
    );
    let (body, failure) = sent(&asked(None), &conversation);
    assert_eq!(failure, None);
    let messages = &body["messages"];
    assert_eq!(messages[2]["thinking"], "Let me see.");
    assert_eq!(messages[2]["tool_calls"][0]["function"]["arguments"]["command"], "ls");
    assert_eq!(
        (&messages[3]["tool_name"], &messages[4]["tool_name"]),
        (&json!("list"), &json!("bash"))
    );
    assert_eq!(messages[4]["tool_call_id"], "call_x1");
    assert_eq!((&body["truncate"], &body["shift"]), (&json!(false), &json!(false)));
    assert_eq!(body["options"], json!({"num_ctx": ROOM}));
}

#[test]
fn what_a_server_leaves_out_is_not_known() {
    let answer = read(fixture!("old.jsonl"), Draft::default()).unwrap();
    assert_eq!(answer.usage.of(UsageClass::Input), None);
    assert_eq!(answer.usage.of(UsageClass::Output), Some(4));
    assert!(answer.usage.unreported.of_the_bill());
}

#[test]
fn errors_and_full_rooms_are_told_apart() {
    let failure = read(fixture!("error.jsonl"), Draft::default()).unwrap_err();
    assert!(failure.message.contains("unexpected EOF"), "{failure}");
    assert_eq!(failure.kind, FailureKind::Network);
    let full = |context| {
        let draft = Draft::of(100, NonZeroU32::new(context));
        read(fixture!("full.jsonl"), draft).unwrap().stop
    };
    assert_eq!((full(32_768), full(65_536)), (Stop::NoRoom, Stop::Cut));
}

#[test]
fn a_prompt_that_has_no_room_is_not_sent_and_one_that_was_cut_is_noticed() {
    let conversation = Conversation::new(&WIRE, &"word ".repeat(2000));
    let (body, failure) = sent(&asked(Some(1000)), &conversation);
    assert_eq!(body["options"]["num_ctx"], 1000);
    let failure = failure.unwrap();
    assert_eq!(failure.kind, FailureKind::ContextOverflow);
    assert!(failure.message.contains("[adapter.ollama] context"), "{failure}");
    assert_eq!(sent(&asked(Some(8000)), &conversation).1, None);

    // 260 tokens cannot be those of 40 kB, and they can be those of 2 kB.
    let failure = read(fixture!("tools.jsonl"), Draft::of(40_000, None)).unwrap_err();
    assert_eq!(failure.kind, FailureKind::ContextOverflow);
    assert!(read(fixture!("tools.jsonl"), Draft::of(2000, None)).is_ok());

    // A prompt that follows on a longer one was cut, if there was no room for both.
    for (tokens, context, cut) in [
        (300, 300, true),
        (270, 300, true),
        (250, 300, false),
        (300, 4096, false),
    ] {
        let mut draft = Draft::of(2000, NonZeroU32::new(context));
        draft.before = Some(kage_core::call::BilledInput { bytes: 1500, tokens });
        let answer = read(fixture!("tools.jsonl"), draft);
        assert_eq!(answer.is_err(), cut, "{tokens} {context}");
    }
}

#[test]
fn people_are_told_what_to_do_where_it_runs() {
    let refused = |status, body: &str| {
        let failure = refusal(body.as_bytes()).unwrap().classify(Some(status), None, None);
        advice(failure, "qwen4:8b")
    };
    let missing = refused(404, r#"{"error":"model 'qwen4:8b' not found, try pulling it first"}"#);
    assert_eq!(missing.kind, FailureKind::AdapterUnavailable);
    assert!(missing.message.contains("`ollama pull qwen4:8b`"), "{missing}");
    let small = refused(400, r#"{"error":"the input length exceeds the context length"}"#);
    assert_eq!(small.kind, FailureKind::ContextOverflow);
    let tools = refused(
        400,
        r#"{"error":"registry.ollama.ai/library/phi does not support tools"}"#,
    );
    assert!(tools.message.contains("`ollama show MODEL`"), "{tools}");
    let network = Failure::new(
        FailureKind::Network,
        "the provider cannot be reached: connection refused",
    );
    assert!(advice(network, "m").message.contains("`ollama serve`"));
}

#[test]
fn addresses_are_read_as_ollama_s_own_programs_read_them() {
    for (given, expected) in [
        ("127.0.0.1:11434", "http://127.0.0.1:11434"),
        ("gpu", "http://gpu:11434"),
        ("gpu:80", "http://gpu:80"),
        (":5000", "http://127.0.0.1:5000"),
        ("https://gpu.example", "https://gpu.example"),
        ("[::1]:5000", "http://[::1]:5000"),
        ("[::1]", "http://[::1]:11434"),
        ("gpu/ollama/", "http://gpu:11434/ollama"),
    ] {
        assert_eq!(address(given), expected, "{given}");
    }
    assert!(costs_nothing("http://127.0.0.1:11434", "qwen4:8b"));
    assert!(!costs_nothing("https://ollama.com", "gpt-oss:120b"));
    assert!(is_local("qwen4:8b") && !is_local("gpt-oss:120b-cloud") && !is_local("kimi-k3:cloud"));
}

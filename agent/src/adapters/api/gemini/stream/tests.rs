//! A recorded stream and invented chunks, and the answers built from them.

use kage_core::failure::FailureKind;
use kage_core::usage::{Unreported, Usage, UsageClass};
use serde_json::json;

use super::super::super::answer::Stop;
use super::super::{call_id, can_be_sent};
use super::*;

const FIXTURE: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/gemini/tool_call.sse"));

fn read(chunks: &[Value]) -> (Draft, Progress) {
    let mut draft = Draft::default();
    let mut last = Progress::None;
    for chunk in chunks {
        last = event(&mut draft, &chunk.to_string());
    }
    (draft, last)
}

fn parts(parts: Value) -> Value {
    json!({"candidates": [{"content": {"role": "model", "parts": parts}}]})
}

fn finished(reason: &str) -> Value {
    json!({"candidates": [{"finishReason": reason}]})
}

#[test]
fn a_recorded_stream_becomes_an_answer() {
    let mut draft = Draft::default();
    let mut said = String::new();
    for chunk in FIXTURE.lines().filter_map(|line| line.strip_prefix("data: ")) {
        assert!(
            (super::super::WIRE.ended)(&mut draft) != chunk.contains("candidates"),
            "{chunk}"
        );
        match event(&mut draft, chunk) {
            Progress::Text(text) => said.push_str(&text),
            other @ (Progress::None | Progress::Complete | Progress::Ping | Progress::Failed(_)) => panic!("{other:?}"),
        }
    }
    assert!((super::super::WIRE.ended)(&mut draft));
    let answer = finish(draft);
    assert_eq!((answer.stop, said.as_str()), (Stop::Done, "I will write it."));
    assert_eq!(answer.words, "I will write it.");
    let calls = answer.calls.iter();
    let calls: Vec<_> = calls
        .map(|call| (call.id.as_str(), call.name.as_str(), call.input.as_deref()))
        .collect();
    let input = r#"{"path": "a.txt", "content": "caf\u00e9 1.10", "big": 12345678901234567890.10}"#;
    // The call without an id has one of our own.
    assert_eq!(
        calls,
        [("fc_a", "write_file", Some(input)), ("r1#3", "list", Some("{}"))]
    );
    let usage = Usage {
        input: 1800,
        cache_read: 300,
        output: 57,
        reasoning: 20,
        ..Usage::default()
    };
    assert_eq!(answer.usage, usage);
    let kinds: Vec<_> = answer
        .items
        .iter()
        .map(|item| (item.text("text"), can_be_sent(item)))
        .collect();
    let text = |text: &str| Some(text.to_owned());
    assert_eq!(
        kinds,
        [
            (text("Looking"), false),
            (text("I will write it."), true),
            (None, true),
            (None, true),
            (text(""), true)
        ]
    );
    // Signatures are on their parts, byte for byte.
    assert_eq!(answer.items[2].raw("thoughtSignature"), Some(r#""EqcBCq+\/q0=\u003d""#));
    assert_eq!(answer.items[4].raw("thoughtSignature"), Some(r#""Et+\/a==""#));
    assert_eq!(call_id(&answer.items[3]).as_deref(), Some("r1#3"));
}

#[test]
fn only_pieces_of_plain_text_are_joined() {
    let chunks = [
        parts(json!([{"text": "a"}, {"text": "b"}])),
        parts(json!([{"text": "c", "thoughtSignature": "s"}])),
        parts(json!([{"text": "d"}])),
        parts(json!([{"text": "e", "thought": true}, {"text": "f"}])),
        finished("STOP"),
    ];
    let answer = finish(read(&chunks).0);
    let texts: Vec<_> = answer.items.iter().map(|item| item.text("text").unwrap()).collect();
    assert_eq!(texts, ["ab", "c", "d", "e", "f"]);
    assert_eq!(answer.words, "abcdf");
}

#[test]
fn every_end_is_told_apart() {
    for (reason, expected) in [
        ("STOP", Stop::Done),
        ("MAX_TOKENS", Stop::Cut),
        ("SAFETY", Stop::Refused),
        ("RECITATION", Stop::Refused),
        ("PROHIBITED_CONTENT", Stop::Refused),
        ("MALFORMED_FUNCTION_CALL", Stop::BrokenCall),
        ("UNEXPECTED_TOOL_CALL", Stop::BrokenCall),
        ("OTHER", Stop::Other),
        ("SOMETHING_NEW", Stop::Other),
    ] {
        let answer = finish(read(&[finished(reason)]).0);
        assert_eq!((answer.stop, answer.raw_stop.as_str()), (expected, reason));
    }
    let blocked = json!({"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": {"promptTokenCount": 9}});
    let (mut draft, _) = read(&[blocked]);
    assert!((super::super::WIRE.ended)(&mut draft));
    let answer = finish(draft);
    assert_eq!(
        (answer.stop, answer.raw_stop.as_str()),
        (Stop::Refused, "blocked: SAFETY")
    );
    assert_eq!(
        (answer.usage.input, answer.usage.unreported),
        (9, Unreported::default())
    );
}

#[test]
fn a_stream_that_breaks_off_leaves_the_output_open() {
    let chunk = json!({"candidates": [{"content": {"parts": [{"text": "half"}]}}],
        "usageMetadata": {"promptTokenCount": 9, "candidatesTokenCount": 1}});
    let (mut draft, _) = read(&[chunk]);
    assert!(!(super::super::WIRE.ended)(&mut draft));
    assert!(draft.usage.unreported.contains(UsageClass::Output));
    assert_eq!((draft.usage.input, draft.usage.output), (9, 1));
}

#[test]
fn errors_in_a_stream_are_classified() {
    use FailureKind as K;
    for (code, status, expected) in [
        (503, "UNAVAILABLE", K::Overloaded),
        (500, "INTERNAL", K::Network),
        (504, "DEADLINE_EXCEEDED", K::Timeout),
        (429, "RESOURCE_EXHAUSTED", K::RateLimited),
        (403, "PERMISSION_DENIED", K::Auth),
        (400, "INVALID_ARGUMENT", K::InvalidRequest),
    ] {
        let error = json!({"error": {"code": code, "message": "no", "status": status}});
        let bare = json!({"error": {"message": "no", "status": status}});
        for event in [error, bare] {
            let Progress::Failed(failure) = read(std::slice::from_ref(&event)).1 else {
                panic!("{event}");
            };
            assert_eq!(failure.kind, expected, "{event}");
        }
    }
}

#[test]
fn nonsense_is_a_failure_and_new_fields_are_passed_over() {
    for event in ["", "{", "[]", "1"] {
        let read = super::event(&mut Draft::default(), event);
        assert!(matches!(read, Progress::Failed(_)), "{event}");
    }
    let new = r#"{"candidates":[{"content":{"parts":[{"somethingNew":{"x":1}}]},"y":2}],"z":3}"#;
    let mut draft = Draft::default();
    assert_eq!(super::event(&mut draft, new), Progress::Text(String::new()));
    assert_eq!(finish(draft).items[0].raw("somethingNew"), Some(r#"{"x":1}"#));
}

#[test]
fn an_answer_without_a_stream_is_read_too() {
    let one = json!({"candidates": [{"content": {"parts": [{"text": "Hi."}]}, "finishReason": "STOP"}]});
    for body in [
        one.clone(),
        json!([parts(json!([{"text": "Hi"}])), {"candidates": [{"content": {"parts": [{"text": "."}]}, "finishReason": "STOP"}]}]),
    ] {
        let mut draft = Draft::default();
        assert_eq!(whole(&mut draft, body.to_string().as_bytes()), Some(Progress::Complete));
        assert_eq!(finish(draft).words, "Hi.", "{body}");
    }
    for other in [json!({"error": {"message": "no"}}), json!({}), json!(1), json!([])] {
        assert_eq!(
            whole(&mut Draft::default(), other.to_string().as_bytes()),
            None,
            "{other}"
        );
    }
}

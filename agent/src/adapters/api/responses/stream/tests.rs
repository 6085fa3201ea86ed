//! A recorded stream and invented events, and the answers built from them.

use kage_core::failure::FailureKind;
use kage_core::usage::{Unreported, Usage, UsageClass};
use serde_json::json;

use super::super::super::answer::Stop;
use super::super::can_be_sent;
use super::*;

const FIXTURE: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/responses/tool_call.sse"));

/// Reads events until one says that it is over.
fn read(events: &[Value]) -> (Draft, Progress) {
    let mut draft = Draft::default();
    let mut last = Progress::None;
    for event in events {
        last = super::event(&mut draft, &event.to_string());
    }
    (draft, last)
}

fn end(status: &str, rest: Value) -> Value {
    let mut response =
        json!({"id": "resp", "object": "response", "status": status, "model": "m", "output": [], "usage": null});
    for (field, value) in rest.as_object().unwrap() {
        response[field] = value.clone();
    }
    json!({"type": format!("response.{status}"), "response": response})
}

#[test]
fn a_recorded_stream_becomes_an_answer() {
    let mut draft = Draft::default();
    let (mut said, mut complete) = (String::new(), 0);
    for event in FIXTURE.lines().filter_map(|line| line.strip_prefix("data: ")) {
        match super::event(&mut draft, event) {
            Progress::None => {}
            Progress::Text(text) => said.push_str(&text),
            Progress::Complete => complete += 1,
            other @ (Progress::Ping | Progress::Failed(_)) => panic!("{other:?}"),
        }
    }
    let answer = finish(draft);
    assert_eq!((complete, said.as_str()), (1, "I will write it."));
    assert_eq!((answer.stop, answer.words.as_str()), (Stop::Done, "I will write it."));
    assert_eq!(
        (answer.id.as_str(), answer.model.as_str()),
        ("resp_1", "gpt-6.1-sol-2026-10-02")
    );
    let input = "{\"path\": \"a.txt\", \"content\": \"caf\\u00e9 1.10\", \"big\": 12345678901234567890.10}";
    let calls = answer.calls.iter();
    let calls: Vec<_> = calls
        .map(|call| (call.id.as_str(), call.name.as_str(), call.input.as_deref()))
        .collect();
    assert_eq!(calls, [("call_a", "write_file", Some(input))]);
    let usage = Usage {
        input: 300,
        cache_write_5m: 1500,
        cache_read: 300,
        output: 57,
        reasoning: 20,
        ..Usage::default()
    };
    assert_eq!(answer.usage, usage);
    // The thought as it was sealed at its end, byte for byte; fields that are not known are kept.
    let thought = answer.items[0].raw("encrypted_content");
    assert_eq!(thought, Some(r#""gAAAAABp+\/q0=\u003d""#));
    assert_eq!(answer.items[1].raw("phase"), Some("\"commentary\""));
}

#[test]
fn every_end_is_told_apart() {
    let limit = json!({"incomplete_details": {"reason": "max_output_tokens"}});
    let filter = json!({"incomplete_details": {"reason": "content_filter"}});
    for (event, expected) in [
        (end("completed", json!({})), Stop::Done),
        (end("incomplete", limit), Stop::Cut),
        (end("incomplete", filter), Stop::Refused),
        (end("incomplete", json!({})), Stop::Other),
        (end("cancelled", json!({})), Stop::Other),
    ] {
        let (draft, last) = read(std::slice::from_ref(&event));
        assert_eq!(last, Progress::Complete, "{event}");
        assert_eq!(finish(draft).stop, expected, "{event}");
    }
    let part = json!({"type": "refusal", "refusal": "I will not."});
    let message = json!({"type": "message", "role": "assistant", "content": [part]});
    let events = [
        json!({"type": "response.refusal.delta", "output_index": 0, "delta": "I will not."}),
        json!({"type": "response.output_item.done", "output_index": 0, "item": message}),
        end("completed", json!({})),
    ];
    let answer = finish(read(&events).0);
    assert_eq!((answer.stop, answer.words.as_str()), (Stop::Refused, "I will not."));
}

#[test]
fn errors_in_a_stream_are_classified() {
    use FailureKind as K;
    for (code, message, expected) in [
        ("server_error", "An error occurred", K::Network),
        ("server_is_overloaded", "Our servers are overloaded", K::Overloaded),
        ("slow_down", "slow down", K::Overloaded),
        (
            "rate_limit_exceeded",
            "Rate limit reached for gpt-6 on tokens per min",
            K::RateLimited,
        ),
        (
            "insufficient_quota",
            "You exceeded your current quota",
            K::QuotaExhausted,
        ),
        (
            "context_length_exceeded",
            "Your input exceeds the context window",
            K::ContextOverflow,
        ),
        ("invalid_prompt", "your prompt was flagged", K::ModelRefused),
        ("something_new", "no", K::Unknown),
    ] {
        let failed = end("failed", json!({"error": {"code": code, "message": message}}));
        let flat = json!({"type": "error", "code": code, "message": message, "param": null});
        let nested = json!({"type": "error", "error": {"type": code, "code": null, "message": message}});
        for event in [failed, flat, nested] {
            let (_, last) = read(std::slice::from_ref(&event));
            let Progress::Failed(failure) = last else {
                panic!("{event}: {last:?}");
            };
            assert_eq!(failure.kind, expected, "{event}");
        }
    }
}

#[test]
fn what_was_cut_is_not_run_and_can_be_sent_back() {
    let added =
        |index: u64, item: Value| json!({"type": "response.output_item.added", "output_index": index, "item": item});
    let call =
        json!({"type": "function_call", "status": "in_progress", "call_id": "c", "name": "list", "arguments": ""});
    let cut = end(
        "incomplete",
        json!({"incomplete_details": {"reason": "max_output_tokens"}}),
    );
    let delta = json!({"type": "response.function_call_arguments.delta", "output_index": 2, "delta": "{\"pa"});
    let events = [
        added(
            0,
            json!({"type": "reasoning", "summary": [], "encrypted_content": "begun"}),
        ),
        added(1, json!({"type": "message", "role": "assistant", "content": []})),
        json!({"type": "response.output_text.delta", "output_index": 1, "delta": "half"}),
        added(2, call.clone()),
        delta,
        cut.clone(),
    ];
    let answer = finish(read(&events).0);
    assert_eq!((answer.stop, answer.words.as_str()), (Stop::Cut, "half"));
    assert_eq!((answer.calls.len(), answer.calls[0].input.as_deref()), (1, None));
    // A thought that is not sealed yet is gone.
    assert_eq!(answer.items.len(), 2);
    assert_eq!(answer.items[1].raw("arguments"), Some("\"{}\""));

    // The last event has it too, as far as it came.
    let mut begun = call;
    begun["status"] = json!("incomplete");
    begun["arguments"] = json!("{\"path\": \"a\"}");
    let mut whole = cut;
    whole["response"]["output"] = json!([begun]);
    let answer = finish(read(&[whole]).0);
    assert_eq!((answer.calls.len(), answer.calls[0].input.as_deref()), (1, None));
}

#[test]
fn only_objects_are_inputs() {
    for (arguments, expected) in [
        ("{}", Some("{}")),
        ("", None),
        ("[]", None),
        ("{\"a\":", None),
        ("null", None),
        (" {\"a\": 1}", Some(" {\"a\": 1}")),
    ] {
        let item = json!({"type": "function_call", "call_id": "c", "name": "list", "arguments": arguments});
        let done = json!({"type": "response.output_item.done", "output_index": 0, "item": item});
        let answer = finish(read(&[done, end("completed", json!({}))]).0);
        assert_eq!(answer.calls[0].input.as_deref(), expected, "{arguments}");
        let sent = answer.items[0].text("arguments").unwrap();
        assert!(is_object(&sent), "{arguments}: {sent}");
    }
}

#[test]
fn nonsense_is_a_failure_and_new_events_are_passed_over() {
    for event in [
        "",
        "{",
        "[]",
        r#"{"type":"response.output_item.done"}"#,
        r#"{"type":"response.completed"}"#,
    ] {
        let read = super::event(&mut Draft::default(), event);
        assert!(matches!(read, Progress::Failed(_)), "{event}");
    }
    for event in [r#"{"type":"keepalive"}"#, "[DONE]"] {
        assert_eq!(super::event(&mut Draft::default(), event), Progress::Ping, "{event}");
    }
    let new = r#"{"type":"response.new_thing","x":[1]}"#;
    assert_eq!(super::event(&mut Draft::default(), new), Progress::None);
}

#[test]
fn a_response_without_a_stream_is_read_too() {
    let message = json!({"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Hi."}]});
    let call = json!({"type": "function_call", "call_id": "c", "name": "list", "arguments": "{}"});
    let body = json!({"object": "response", "id": "r", "status": "completed", "model": "m", "output": [message, call],
        "usage": {"input_tokens": 5, "output_tokens": 3}});
    let mut draft = Draft::default();
    assert_eq!(whole(&mut draft, body.to_string().as_bytes()), Some(Progress::Complete));
    let answer = finish(draft);
    assert_eq!((answer.words.as_str(), answer.calls.len()), ("Hi.", 1));
    assert_eq!(
        answer.usage.unreported,
        Unreported::default().with(UsageClass::Reasoning)
    );

    let failed = json!({"object": "response", "status": "failed", "error": {"code": "server_error", "message": "no"}});
    let read = whole(&mut Draft::default(), failed.to_string().as_bytes());
    assert!(matches!(read, Some(Progress::Failed(_))), "{read:?}");
    for other in [
        json!({"error": {"message": "no"}}),
        json!({"object": "chat.completion"}),
        json!(1),
    ] {
        assert_eq!(
            whole(&mut Draft::default(), other.to_string().as_bytes()),
            None,
            "{other}"
        );
    }
}

#[test]
fn thoughts_without_a_seal_cannot_be_sent_back() {
    for (item, can) in [
        (json!({"type": "reasoning", "encrypted_content": "x"}), true),
        (json!({"type": "reasoning", "encrypted_content": ""}), false),
        (json!({"type": "reasoning", "encrypted_content": null}), false),
        (json!({"type": "reasoning"}), false),
        (json!({"type": "message", "content": []}), true),
        (json!({"type": "something_new"}), true),
    ] {
        let read: Item = serde_json::from_value(item.clone()).unwrap();
        assert_eq!(can_be_sent(&read), can, "{item}");
    }
}

//! Recorded and invented streams, and the messages built from them.

use kage_core::usage::{Unreported, Usage, UsageClass};

use super::super::super::answer::Stop;
use super::super::can_be_sent;
use super::*;

const FIXTURE: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/messages/tool_use.sse"));

fn data(fixture: &str) -> impl Iterator<Item = &str> {
    fixture.lines().filter_map(|line| line.strip_prefix("data: "))
}

#[test]
fn a_recorded_stream_becomes_a_message() {
    let mut draft = Draft::default();
    let mut said = String::new();
    let mut complete = 0;
    for event in data(FIXTURE) {
        match super::event(&mut draft, event) {
            Progress::None | Progress::Ping => {}
            Progress::Text(text) => said.push_str(&text),
            Progress::Complete => complete += 1,
            Progress::Failed(failure) => panic!("{failure}"),
        }
    }
    let message = finish(draft);
    assert_eq!((complete, said.as_str()), (1, "I will write it."));
    assert_eq!(message.stop, Stop::Tools);
    assert_eq!(message.words, "I will write it.");
    let calls = message.calls.iter();
    let calls: Vec<_> = calls
        .map(|call| (call.id.as_str(), call.name.as_str(), call.input.as_deref()))
        .collect();
    // The number and the order of keys are as the model wrote them.
    let input = "{\"path\": \"a.txt\", \"content\": \"caf\\u00e9 1.10\", \"big\": 12345678901234567890.10}";
    assert_eq!(calls, [("toolu_1", "write_file", Some(input))]);
    let usage = Usage {
        input: 12,
        cache_write_5m: 1500,
        cache_read: 300,
        output: 57,
        unreported: Unreported::default().with(UsageClass::Reasoning),
        ..Usage::default()
    };
    assert_eq!(message.usage, usage);

    let line = message.transcript_line();
    assert!(line.contains(r#""signature":"Eq/+0=A==""#), "{line}");
    assert!(line.contains(r#""thinking":"Let me see.""#), "{line}");
    assert!(line.contains(input), "{line}");
    // What is not known is kept as well.
    assert!(line.contains(r#""data":"x\/y""#), "{line}");
}

#[test]
fn an_error_inside_the_stream_is_classified() {
    use kage_core::failure::FailureKind as K;
    for (kind, expected) in [
        ("overloaded_error", K::Overloaded),
        ("rate_limit_error", K::RateLimited),
        ("api_error", K::Network),
    ] {
        let event = format!(r#"{{"type":"error","error":{{"type":"{kind}","message":"no"}}}}"#);
        let Progress::Failed(failure) = super::event(&mut Draft::default(), &event) else {
            panic!("{kind}");
        };
        assert_eq!(failure.kind, expected);
    }
}

#[test]
fn nonsense_is_a_failure_and_new_events_are_passed_over() {
    for event in [
        "",
        "{",
        "[]",
        r#"{"type":"content_block_delta","index":3,"delta":{"type":"text_delta","text":"x"}}"#,
    ] {
        assert!(
            matches!(super::event(&mut Draft::default(), event), Progress::Failed(_)),
            "{event}"
        );
    }
    for event in [r#"{"type":"ping"}"#, r#"{"type":"something_new","x":[1]}"#] {
        assert_eq!(super::event(&mut Draft::default(), event), Progress::Ping, "{event}");
    }
}

/// One tool call as it is streamed.
#[derive(Debug)]
struct Streamed {
    input: &'static str,
    parts: &'static [&'static str],
    /// False when the block's own end event is missing.
    ends: bool,
}

const fn call(parts: &'static [&'static str]) -> Streamed {
    Streamed {
        input: "{}",
        parts,
        ends: true,
    }
}

/// The inputs of the calls of such a message.
fn inputs(blocks: &[Streamed], stop_reason: &str) -> Vec<Option<String>> {
    let mut draft = Draft::default();
    for (index, Streamed { input, parts, ends }) in blocks.iter().enumerate() {
        let mut events = vec![format!(
            r#"{{"type":"content_block_start","index":{index},"content_block":{{"type":"tool_use","id":"t{index}","name":"list","input":{input}}}}}"#
        )];
        for part in *parts {
            let part = Value::from(*part);
            events.push(format!(
                r#"{{"type":"content_block_delta","index":{index},"delta":{{"type":"input_json_delta","partial_json":{part}}}}}"#
            ));
        }
        if *ends {
            events.push(format!(r#"{{"type":"content_block_stop","index":{index}}}"#));
        }
        for event in events {
            assert_eq!(super::event(&mut draft, &event), Progress::None);
        }
    }
    let end = format!(r#"{{"type":"message_delta","delta":{{"stop_reason":"{stop_reason}"}}}}"#);
    assert_eq!(super::event(&mut draft, &end), Progress::None);
    let message = finish(draft);
    for block in &message.items {
        let input = block.raw("input").unwrap();
        assert!(can_be_sent(block) && input.starts_with('{'), "{input}");
    }
    message.calls.into_iter().map(|call| call.input).collect()
}

#[test]
fn only_whole_calls_have_an_input_and_every_message_is_well_formed() {
    const WHOLE: &[&str] = &["{\"a\"", ":1}"];
    let (whole, empty) = (Some(r#"{"a":1}"#), Some("{}"));
    let open = |call: Streamed| Streamed { ends: false, ..call };
    let given = |input| Streamed { input, ..call(&[]) };
    let cases = [
        (vec![call(WHOLE)], "tool_use", vec![whole]),
        (vec![call(WHOLE)], "max_tokens", vec![whole]),
        (vec![call(WHOLE)], "something_new", vec![whole]),
        // Cut in its input, with and without an end of the block.
        (vec![call(&["{\"a\""])], "max_tokens", vec![None]),
        (vec![open(call(&["{\"a\""]))], "max_tokens", vec![None]),
        (vec![open(call(WHOLE))], "max_tokens", vec![None]),
        // Without any input: whole, unless it is the one that was cut.
        (vec![call(&[""])], "tool_use", vec![empty]),
        (vec![call(&[])], "end_turn", vec![empty]),
        (vec![call(&[""])], "max_tokens", vec![None]),
        (vec![call(&[])], "model_context_window_exceeded", vec![None]),
        (
            vec![call(&[]), call(WHOLE), call(&["{"])],
            "max_tokens",
            vec![empty, whole, None],
        ),
        // Given at once, as by a gateway.
        (vec![given(r#"{"a":1}"#)], "max_tokens", vec![whole]),
        // What is no object, and what is no JSON.
        (vec![call(&["[1]"])], "tool_use", vec![None]),
        (vec![call(&["\"a\""])], "tool_use", vec![None]),
        (vec![call(&["{\"a\":1}}"])], "tool_use", vec![None]),
        (vec![given("null")], "tool_use", vec![None]),
    ];
    for (blocks, stop_reason, expected) in cases {
        let found = inputs(&blocks, stop_reason);
        let found: Vec<_> = found.iter().map(Option::as_deref).collect();
        assert_eq!(found, expected, "{blocks:?} {stop_reason}");
    }
}

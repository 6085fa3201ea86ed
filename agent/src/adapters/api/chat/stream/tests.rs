//! Streams as the servers write them, and the answers built from them.

use kage_core::failure::{Failure, FailureKind};
use kage_core::usage::Usage;

use super::super::messages;
use super::*;
use crate::adapters::api::turn::Turn;

macro_rules! fixture {
    ($name:literal) => {
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/chat/", $name))
    };
}

/// The answer of a stream, and whether the stream said that it is over.
fn read(stream: &str) -> Result<Answer, Failure> {
    let mut draft = Draft::default();
    for data in stream.lines().filter_map(|line| line.strip_prefix("data: ")) {
        match event(&mut draft, data) {
            Progress::None | Progress::Ping | Progress::Text(_) => {}
            Progress::Complete => return Ok(finish(draft)),
            Progress::Failed(failure) => return Err(failure),
        }
    }
    assert!(ended(&mut draft), "the stream is whole");
    Ok(finish(draft))
}

fn calls(answer: &Answer) -> Vec<(&str, &str, Option<&str>)> {
    let calls = answer.calls.iter();
    calls
        .map(|call| (call.id.as_str(), call.name.as_str(), call.input.as_deref()))
        .collect()
}

/// The message of the next request that an answer becomes.
fn sent(answer: &Answer) -> Value {
    let all = messages(&[], &[Turn::Model(answer.items.clone())]);
    serde_json::to_value(all.last().unwrap()).unwrap()
}

#[test]
fn each_server_s_stream_becomes_the_same_kind_of_answer() {
    let ls = Some(r#"{"command":"ls"}"#);
    let spaced = Some(r#"{"command": "ls"}"#);
    let usage = |input, cache_write_5m, cache_read, output, reasoning| Usage {
        input,
        cache_write_5m,
        cache_read,
        output,
        reasoning,
        ..Usage::default()
    };
    let cases = [
        (
            fixture!("openai.sse"),
            "I will write caf\u{e9}.",
            vec![
                (
                    "call_a",
                    "write_file",
                    Some("{\"path\": \"a.txt\", \"content\": \"x\\u00e9\"}"),
                ),
                ("call_b", "list", Some("{}")),
            ],
            usage(476, 0, 1024, 57, 20),
        ),
        (
            fixture!("deepseek.sse"),
            "",
            vec![("call_00", "bash", ls)],
            usage(26, 0, 64, 20, 8),
        ),
        (
            fixture!("openrouter.sse"),
            "",
            vec![("toolu_1", "bash", spaced)],
            usage(150, 50, 100, 30, 2),
        ),
        (fixture!("groq.sse"), "Done.", vec![], usage(70, 0, 0, 9, 0)),
        (
            fixture!("vllm.sse"),
            "",
            vec![("chatcmpl-tool-1", "bash", spaced)],
            usage(40, 0, 0, 15, 0),
        ),
        (
            fixture!("llama-cpp.sse"),
            "",
            vec![("call_chatcmpl-x_0", "bash", ls)],
            usage(33, 0, 0, 12, 0),
        ),
        (
            fixture!("gemini-compatible.sse"),
            "",
            vec![("function-call-1", "bash", ls), ("function-call-2", "list", Some("{}"))],
            usage(50, 0, 0, 12, 0),
        ),
        (
            fixture!("mistral.sse"),
            "Yes.",
            vec![("D681PevKs", "bash", ls)],
            usage(20, 0, 0, 10, 0),
        ),
        (fixture!("moonshot.sse"), "Done.", vec![], usage(9, 0, 10, 21, 0)),
    ];
    for (stream, words, expected, usage) in cases {
        let answer = read(stream).unwrap();
        assert_eq!(answer.words, words, "{stream}");
        assert_eq!(calls(&answer), expected, "{stream}");
        let told = Usage {
            unreported: kage_core::usage::Unreported::default(),
            ..answer.usage
        };
        assert_eq!(told, usage, "{stream}");
        assert!(!answer.usage.unreported.of_the_bill(), "{stream}");
        let stop = if expected.is_empty() { Stop::Done } else { Stop::Tools };
        assert_eq!(answer.stop, stop, "{stream}");
        assert!(!answer.model.is_empty() && !answer.id.is_empty(), "{stream}");
    }
}

#[test]
fn a_stream_without_counts_counts_nothing() {
    let answer = read(fixture!("no-usage.sse")).unwrap();
    assert!(answer.usage.is_zero(), "the caller makes an unknown of it");
    assert_eq!((answer.words.as_str(), answer.stop), ("Done.", Stop::Done));
}

#[test]
fn thoughts_go_back_with_calls_in_the_field_that_they_came_in() {
    let deepseek = sent(&read(fixture!("deepseek.sse")).unwrap());
    assert_eq!(deepseek["reasoning_content"], "Let me see.");
    assert_eq!(
        deepseek["tool_calls"][0]["function"]["arguments"],
        r#"{"command":"ls"}"#
    );
    assert_eq!(
        (&deepseek["role"], &deepseek["content"]),
        (&"assistant".into(), &"".into())
    );

    let openrouter = sent(&read(fixture!("openrouter.sse")).unwrap());
    assert_eq!(openrouter["reasoning"], "Hm.");
    assert_eq!(openrouter["reasoning_details"][1]["signature"], "Eq+/0=");

    // Fields of a call that nobody here knows are kept.
    let gemini = sent(&read(fixture!("gemini-compatible.sse")).unwrap());
    let signature = &gemini["tool_calls"][0]["extra_content"]["google"]["thought_signature"];
    assert_eq!(signature, "Cu+/8=");

    // An answer without calls goes back without its thoughts.
    let groq = sent(&read(fixture!("groq.sse")).unwrap());
    assert_eq!(groq, serde_json::json!({"role": "assistant", "content": "Done."}));
}

#[test]
fn errors_inside_a_stream_are_classified() {
    let kind = |stream| read(stream).unwrap_err().kind;
    assert_eq!(kind(fixture!("openrouter-error.sse")), FailureKind::Network);
    assert_eq!(kind(fixture!("llama-cpp-overflow.sse")), FailureKind::ContextOverflow);
    for (error, expected) in [
        (
            r#"{"message":"slow down","type":"rate_limit_exceeded","code":429}"#,
            FailureKind::RateLimited,
        ),
        (
            r#"{"message":"You exceeded your current quota","code":"insufficient_quota"}"#,
            FailureKind::QuotaExhausted,
        ),
        (
            r#"{"message":"The server had an error","type":"server_error"}"#,
            FailureKind::Network,
        ),
        (
            r#"{"message":"too long","type":"invalid_request_error","code":"context_length_exceeded"}"#,
            FailureKind::ContextOverflow,
        ),
        (r#""something that nobody knows""#, FailureKind::Unknown),
    ] {
        let failure = read(&format!("data: {{\"error\":{error}}}\n")).unwrap_err();
        assert_eq!(failure.kind, expected, "{error}");
    }
    for broken in ["data: {\"choices\": 5}\n", "data: half a lin\n", "data: [DONE]\n"] {
        assert_eq!(kind(broken), FailureKind::Network, "{broken}");
    }
}

#[test]
fn a_refusal_is_one_whatever_the_reason_says() {
    let answer = read(fixture!("refusal.sse")).unwrap();
    assert_eq!(answer.stop, Stop::Refused);
    assert_eq!(answer.words, "I can't help with that.");
    assert_eq!(stop("content_filter"), Stop::Refused);
}

#[test]
fn a_call_that_was_cut_is_not_run_and_goes_back_as_json() {
    let begin = r#"{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"a","function":{"name":"bash","arguments":"{\"comm"}}]}}]}"#;
    let empty = begin.replace("{\\\"comm", "");
    let end = r#"{"choices":[{"index":0,"delta":{},"finish_reason":"length"}]}"#;
    for begin in [begin.to_owned(), empty] {
        let answer = read(&format!("data: {begin}\ndata: {end}\ndata: [DONE]\n")).unwrap();
        assert_eq!(calls(&answer), [("a", "bash", None)], "{begin}");
        assert_eq!(answer.stop, Stop::Cut);
        assert_eq!(sent(&answer)["tool_calls"][0]["function"]["arguments"], "{}");
    }
    // Without the end of the stream, nothing is known of a call that looks whole.
    let mut draft = Draft::default();
    let begun = event(&mut draft, &begin.replace("{\\\"comm", "{}"));
    assert_eq!(begun, Progress::None);
    assert!(!ended(&mut draft));
    assert_eq!(calls(&finish(draft)), [("a", "bash", None)]);
}

#[test]
fn an_answer_without_a_stream_is_read_as_well() {
    let body = br#"{"id":"c","object":"chat.completion","model":"m","choices":[{"index":0,"finish_reason":"tool_calls",
        "message":{"role":"assistant","content":"Yes.","tool_calls":[{"id":"a","type":"function",
        "function":{"name":"bash","arguments":"{}"}},{"id":"b","type":"function","function":{"name":"list","arguments":"{}"}}]}}],
        "usage":{"prompt_tokens":3,"completion_tokens":2}}"#;
    let mut draft = Draft::default();
    assert_eq!(whole(&mut draft, body), Some(Progress::Complete));
    let answer = finish(draft);
    assert_eq!(calls(&answer), [("a", "bash", Some("{}")), ("b", "list", Some("{}"))]);
    assert_eq!((answer.words.as_str(), answer.usage.input), ("Yes.", 3));
    for other in [
        &br#"{"error":{"message":"no"}}"#[..],
        b"{\"choices\":[]}",
        b"<html>",
        b"[]",
    ] {
        assert_eq!(whole(&mut Draft::default(), other), None);
    }
}

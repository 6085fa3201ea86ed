//! The bytes of requests, and errors.

use std::num::NonZeroU32;

use kage_core::failure::FailureKind;
use serde_json::{Value, json};

use super::super::asked::Asked;
use super::super::pauses::CacheLife;
use super::super::turns::Conversation;
use super::*;
use crate::adapters::tools;

fn asked(model: &str) -> Asked {
    Asked {
        model: model.to_owned(),
        max_output: NonZeroU32::new(64_000).unwrap(),
        output_is_known: true,
        thinking: None,
        effort: None,
        compact_at: None,
        context: None,
    }
}

fn bytes(asked: &Asked, conversation: &Conversation) -> String {
    let tools = (WIRE.tools)(&tools::definitions());
    let body = body(&Request {
        asked,
        task: "the-task",
        tools: &tools,
        system: &["you are".to_owned(), "the base".to_owned()],
        turns: conversation.turns(),
        cache: CacheLife::default(),
    });
    String::from_utf8(body).unwrap()
}

fn sent(conversation: &Conversation) -> Value {
    serde_json::from_str(&bytes(&asked("gpt-6.1-sol"), conversation)).unwrap()
}

/// A conversation after these lines, gone on with.
fn resumed(lines: &[String]) -> Conversation {
    let begin = r#"{"role":"user","dialect":"responses","content":[{"type":"text","text":"task"}]}"#;
    let said = format!("{begin}\n{}\n", lines.join("\n"));
    Conversation::resumed(&WIRE, said.as_bytes(), "").unwrap()
}

fn answered(id: &str, text: &str, is_error: bool) -> ToolAnswer {
    ToolAnswer {
        id: id.to_owned(),
        text: text.to_owned(),
        is_error,
        image: None,
    }
}

#[test]
fn nothing_is_stored_and_thoughts_are_asked_for() {
    let body = sent(&Conversation::new(&WIRE, "own"));
    assert_eq!((&body["store"], &body["stream"]), (&json!(false), &json!(true)));
    assert_eq!(body["include"], json!(["reasoning.encrypted_content"]));
    assert_eq!(body["prompt_cache_key"], "the-task");
    assert_eq!(body["max_output_tokens"], 64_000);
    assert_eq!(body["instructions"], "you are\n\nthe base");
    assert_eq!(body["reasoning"], Value::Null);
    assert_eq!(body["tools"][0]["type"], "function");
    assert_eq!(body["tools"][0]["parameters"]["required"], json!(["path"]));
    let own = json!([{"role": "user", "content": [{"type": "input_text", "text": "own"}]}]);
    assert_eq!(body["input"], own);

    let mut hard = asked("gpt-6.1-sol");
    hard.effort = Some(Effort::Xhigh);
    let body: Value = serde_json::from_str(&bytes(&hard, &Conversation::new(&WIRE, "own"))).unwrap();
    assert_eq!(body["reasoning"], json!({"effort": "xhigh"}));
    // Models that do not think refuse to be asked for it.
    let body: Value = serde_json::from_str(&bytes(&asked("gpt-4.1"), &Conversation::new(&WIRE, "own"))).unwrap();
    assert_eq!(body["include"], json!([]));
}

#[test]
fn sessions_share_their_bytes_up_to_their_own_part() {
    let body = |own| bytes(&asked("m"), &Conversation::new(&WIRE, own));
    let (one, two) = (body("mend a"), body("mend b"));
    let split = one.find("mend a").unwrap();
    assert_eq!(one[..split], two[..split]);
    assert!(one[..split].contains("the base"));
}

#[test]
fn items_of_the_model_go_back_as_they_came() {
    let items = [
        r#"{"encrypted_content":"gAA\/+=\u003d","id":"rs_1","summary":[ ],"type":"reasoning"}"#,
        r#"{"arguments":"{\"n\": 1.10}","call_id":"c1","id":"fc_1","name":"list","status":"completed","type":"function_call"}"#,
        r#"{"arguments":"{}","call_id":"c2","name":"list","type":"function_call"}"#,
    ];
    let line = format!(r#"{{"role":"assistant","content":[{}]}}"#, items.join(","));
    let mut conversation = resumed(&[line]);
    conversation.tool_results(vec![answered("c3", "fine", false)]);
    conversation.user("look");
    let text = bytes(&asked("m"), &conversation);
    assert!(text.contains(&items.join(",")), "{text}");
    let body: Value = serde_json::from_str(&text).unwrap();
    let input = body["input"].as_array().unwrap();
    let unknown = |id: &str| json!({"type": "function_call_output", "call_id": id, "output": "error: interrupted, outcome unknown"});
    let rest = [
        unknown("c1"),
        unknown("c2"),
        json!({"type": "function_call_output", "call_id": "c3", "output": "fine"}),
        json!({"role": "user", "content": [{"type": "input_text", "text": "look"}]}),
    ];
    assert_eq!(input[4..], rest);
}

#[test]
fn a_thought_that_led_to_nothing_is_left_out() {
    let thought = r#"{"type":"reasoning","summary":[],"encrypted_content":"x"}"#;
    let message = r#"{"type":"message","role":"assistant","content":[{"type":"output_text","text":"hm"}]}"#;
    for (items, kept) in [
        (vec![thought], 0),
        (vec![thought, message], 2),
        (vec![thought, message, thought], 2),
    ] {
        let line = format!(r#"{{"role":"assistant","content":[{}]}}"#, items.join(","));
        let mut conversation = resumed(&[line]);
        conversation.user("go on");
        let input = sent(&conversation)["input"].as_array().unwrap().len();
        // The task before it, and one message after it.
        assert_eq!(input, 1 + kept + 1, "{items:?}");
    }
}

#[test]
fn error_answers_are_classified() {
    use FailureKind as K;
    let error = |kind: &str, code: Value, message: &str| json!({"error": {"message": message, "type": kind, "param": null, "code": code}});
    for (status, body, expected) in [
        (
            401,
            error(
                "invalid_request_error",
                json!("invalid_api_key"),
                "Incorrect API key provided",
            ),
            K::Auth,
        ),
        (
            400,
            error(
                "invalid_request_error",
                json!("context_length_exceeded"),
                "Your input exceeds the context window of this model.",
            ),
            K::ContextOverflow,
        ),
        (
            400,
            error("invalid_request_error", json!(null), "Unknown parameter"),
            K::InvalidRequest,
        ),
        (
            400,
            error(
                "invalid_request_error",
                json!("invalid_prompt"),
                "your prompt was flagged",
            ),
            K::ModelRefused,
        ),
        (
            404,
            error(
                "invalid_request_error",
                json!("model_not_found"),
                "The model `x` does not exist",
            ),
            K::InvalidRequest,
        ),
        (
            429,
            error(
                "tokens",
                json!("rate_limit_exceeded"),
                "Rate limit reached for gpt-6 in organization o on tokens per min (TPM): Limit 30000",
            ),
            K::RateLimited,
        ),
        (
            429,
            error(
                "insufficient_quota",
                json!("insufficient_quota"),
                "You exceeded your current quota, please check your plan",
            ),
            K::QuotaExhausted,
        ),
        (
            429,
            json!({"error": {"type": "usage_limit_reached", "message": "The usage limit has been reached"}}),
            K::QuotaExhausted,
        ),
        (
            500,
            error("server_error", json!(null), "The server had an error"),
            K::Network,
        ),
        (
            503,
            error(
                "server_error",
                json!("server_is_overloaded"),
                "Our servers are overloaded",
            ),
            K::Overloaded,
        ),
        (400, json!({"error": {"message": "no", "code": 400}}), K::InvalidRequest),
    ] {
        let read = refusal(body.to_string().as_bytes()).unwrap();
        assert_eq!(read.classify(Some(status), None, None).kind, expected, "{body}");
    }
    assert_eq!(refusal(b"<html>502</html>"), None);
}

//! The bytes of requests, and refusals.

use std::num::NonZeroU32;

use kage_core::failure::FailureKind;
use kage_core::price::Effort;
use serde_json::json;

use super::super::asked::Asked;
use super::super::pauses::CacheLife;
use super::super::turn::ToolAnswer;
use super::super::turns::Conversation;
use super::*;
use crate::adapters::tools as toolbox;

fn asked(model: &str) -> Asked {
    Asked {
        model: model.to_owned(),
        max_output: NonZeroU32::new(10).unwrap(),
        output_is_known: true,
        thinking: None,
        effort: None,
        compact_at: None,
        context: None,
    }
}

fn sent(asked: &Asked, conversation: &Conversation) -> Value {
    let tools = (WIRE.tools)(&toolbox::definitions());
    let body = body(&Request {
        asked,
        task: "t",
        tools: &tools,
        system: &["you are".to_owned(), "the base".to_owned()],
        turns: conversation.turns(),
        cache: CacheLife::default(),
    });
    serde_json::from_slice(&body).unwrap()
}

#[test]
fn the_limit_of_an_answer_has_the_name_that_the_model_knows() {
    let conversation = Conversation::new(&WIRE, "task");
    for (model, old, new) in [
        ("local.gguf", Some(10), None),
        ("gpt-4.1", Some(10), None),
        ("gpt-oss:20b", Some(10), None),
        ("olmo-3", Some(10), None),
        ("gpt-6-sol", None, Some(10)),
        ("openai/gpt-5.5", None, Some(10)),
        ("o4-mini", None, Some(10)),
    ] {
        let body = sent(&asked(model), &conversation);
        assert_eq!(body["max_tokens"].as_u64(), old, "{model}");
        assert_eq!(body["max_completion_tokens"].as_u64(), new, "{model}");
        assert_eq!(body["stream_options"], json!({"include_usage": true}));
    }
    // A guess is not sent: it may be more than the server has room for.
    let unknown = Asked {
        output_is_known: false,
        effort: Some(Effort::High),
        compact_at: None,
        ..asked("m")
    };
    let body = sent(&unknown, &conversation);
    assert_eq!(
        (&body["max_tokens"], &body["reasoning_effort"]),
        (&Value::Null, &json!("high"))
    );
}

#[test]
fn results_stand_right_behind_the_calls_and_texts_after_them() {
    let call = |id: &str| json!({"type": "function", "id": id, "function": {"name": "list", "arguments": "{}"}});
    let said = [
        json!({"role": "user", "dialect": "chat-completions", "content": [{"type": "text", "text": "task"}]}),
        json!({"role": "assistant", "content": [{"type": "text", "text": " "}, call("a"), call("b")]}),
    ];
    let said: String = said.iter().map(|line| format!("{line}\n")).collect();
    let mut conversation = Conversation::resumed(&WIRE, said.as_bytes(), "go on").unwrap();
    let roles = |conversation: &Conversation| -> Vec<Value> {
        let body = sent(&asked("m"), conversation);
        let messages = body["messages"].as_array().unwrap().iter();
        messages
            .map(|message| json!([message["role"], message["tool_call_id"], message["content"]]))
            .collect()
    };
    let interrupted = "error: interrupted, outcome unknown";
    assert_eq!(
        roles(&conversation),
        [
            json!(["system", null, "you are\n\nthe base"]),
            json!(["user", null, "task"]),
            json!(["assistant", null, ""]),
            json!(["tool", "a", interrupted]),
            json!(["tool", "b", interrupted]),
            json!(["user", null, "go on"]),
        ]
    );
    conversation.tool_results(vec![ToolAnswer {
        id: "c".to_owned(),
        text: " ".to_owned(),
        is_error: false,
        image: None,
    }]);
    assert_eq!(roles(&conversation)[5], json!(["tool", "c", "[empty]"]));
    conversation.tool_results(vec![ToolAnswer {
        id: "d".to_owned(),
        text: "a logo".to_owned(),
        is_error: false,
        image: Some(crate::adapters::tools::image::Image {
            media_type: "image/png".to_owned(),
            data: "aGk=".to_owned(),
        }),
    }]);
    let unseen = json!(["tool", "d", "a logo (this model is not shown images)"]);
    assert_eq!(roles(&conversation)[6], unseen);
}

#[test]
fn sessions_share_their_bytes_up_to_their_own_part() {
    let body = |own| sent(&asked("m"), &Conversation::new(&WIRE, own)).to_string();
    let (one, two) = (body("first"), body("second"));
    let split = one.find("first").unwrap();
    assert_eq!(one[..split], two[..split]);
    assert!(one[..split].contains("the base"));
}

#[test]
fn refusals_are_read_in_every_form() {
    use FailureKind as K;
    for (status, body, kind, words) in [
        (
            401,
            r#"{"error":{"message":"Incorrect API key provided","type":"invalid_request_error","param":null,"code":"invalid_api_key"}}"#,
            K::Auth,
            "Incorrect API key",
        ),
        (
            429,
            r#"{"error":{"message":"You exceeded your current quota","type":"insufficient_quota","code":"insufficient_quota"}}"#,
            K::QuotaExhausted,
            "current quota",
        ),
        (
            400,
            r#"{"error":{"message":"This model's maximum context length is 8192 tokens","type":"invalid_request_error","code":"context_length_exceeded"}}"#,
            K::ContextOverflow,
            "8192",
        ),
        (
            400,
            r#"{"error":{"code":400,"message":"request (9000 tokens) exceeds the available context size (8192 tokens)","type":"exceed_context_size_error"}}"#,
            K::ContextOverflow,
            "9000",
        ),
        (
            400,
            r#"{"object":"error","message":"max_tokens is too large","type":"BadRequestError","param":null,"code":400}"#,
            K::InvalidRequest,
            "max_tokens is too large",
        ),
        (
            503,
            r#"{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}"#,
            K::Overloaded,
            "Loading",
        ),
        (
            422,
            r#"{"detail":[{"loc":["body"],"msg":"field required"}]}"#,
            K::InvalidRequest,
            "field required",
        ),
        (
            400,
            r#"[{"error":{"code":400,"message":"API key not valid","status":"INVALID_ARGUMENT"}}]"#,
            K::InvalidRequest,
            "API key not valid",
        ),
        (
            404,
            r#"{"error":"model 'x' not found"}"#,
            K::InvalidRequest,
            "model 'x'",
        ),
    ] {
        let refusal = refusal(body.as_bytes()).unwrap();
        let failure = refusal.classify(Some(status), None, None);
        assert_eq!(failure.kind, kind, "{body}");
        assert!(failure.message.contains(words), "{failure}");
    }
    for other in ["<html>", "{}", "{\"error\":null}", "[]", "5"] {
        assert_eq!(refusal(other.as_bytes()), None, "{other}");
    }
}

#[test]
fn a_number_that_is_no_status_is_not_taken_for_one() {
    let error = json!({"message": "Rate limit reached for requests", "code": 1302});
    let refusal = refused(&error).unwrap();
    assert_eq!(refusal.status, None);
    assert_eq!(refusal.classify(Some(200), None, None).kind, FailureKind::RateLimited);
}

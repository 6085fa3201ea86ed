//! The bytes of requests, and errors.

use std::num::NonZeroU32;

use kage_core::failure::FailureKind;
use serde_json::{Value, json};

use super::super::asked::Asked;
use super::super::pauses::CacheLife;
use super::super::turns::Conversation;
use super::*;
use crate::adapters::tools;

fn asked(model: &str, effort: Option<Effort>) -> Asked {
    Asked {
        model: model.to_owned(),
        max_output: NonZeroU32::new(64_000).unwrap(),
        output_is_known: true,
        thinking: None,
        effort,
        compact_at: None,
        context: None,
    }
}

fn bytes(model: &str, effort: Option<Effort>, conversation: &Conversation) -> String {
    written(&asked(model, effort), conversation)
}

fn written(asked: &Asked, conversation: &Conversation) -> String {
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
    serde_json::from_str(&bytes("gemini-4-argon", None, conversation)).unwrap()
}

/// A conversation after an answer with these parts, gone on with.
fn resumed(parts: &str) -> Conversation {
    let begin = r#"{"role":"user","dialect":"gemini","content":[{"type":"text","text":"task"}]}"#;
    let said = format!("{begin}\n{{\"role\":\"assistant\",\"content\":[{parts}]}}\n");
    Conversation::resumed(&WIRE, said.as_bytes(), "").unwrap()
}

#[test]
fn everything_is_where_the_provider_looks_for_it() {
    let conversation = Conversation::new(&WIRE, "own");
    let body = sent(&conversation);
    assert_eq!(
        body["systemInstruction"],
        json!({"parts": [{"text": "you are"}, {"text": "the base"}]})
    );
    let first = &body["tools"][0]["functionDeclarations"][0];
    assert_eq!(first["name"], "read_file");
    assert_eq!(first["parametersJsonSchema"]["required"], json!(["path"]));
    assert_eq!(body["generationConfig"], json!({"maxOutputTokens": 64_000}));
    assert_eq!(body["contents"], json!([{"role": "user", "parts": [{"text": "own"}]}]));

    let mut wide = asked("gemini-4-argon", None);
    wide.max_output = NonZeroU32::new(1 << 20).unwrap();
    let body: Value = serde_json::from_str(&written(&wide, &conversation)).unwrap();
    assert_eq!(body["generationConfig"], json!({"maxOutputTokens": 65_536}));

    for (model, effort, thinking) in [
        ("gemini-4-argon", Effort::Low, json!({"thinkingLevel": "low"})),
        ("gemini-4-argon", Effort::Max, json!({"thinkingLevel": "high"})),
        ("gemini-2.5-pro", Effort::Medium, json!({"thinkingBudget": 8192})),
    ] {
        let body: Value = serde_json::from_str(&bytes(model, Some(effort), &conversation)).unwrap();
        assert_eq!(body["generationConfig"]["thinkingConfig"], thinking, "{model} {effort}");
    }
}

#[test]
fn the_model_is_in_the_path() {
    for (model, expected) in [
        ("gemini-4-argon", "gemini-4-argon"),
        ("models/gemini-2.5-pro", "gemini-2.5-pro"),
        ("../x?key=1", "..%2Fx%3Fkey%3D1"),
    ] {
        assert_eq!(
            path(model),
            format!("/v1beta/models/{expected}:streamGenerateContent?alt=sse")
        );
    }
}

#[test]
fn sessions_share_their_bytes_up_to_their_own_part() {
    let body = |own| bytes("m", None, &Conversation::new(&WIRE, own));
    let (one, two) = (body("first"), body("second"));
    let split = one.find("first").unwrap();
    assert_eq!(one[..split], two[..split]);
    assert!(one[..split].contains("the base"));
}

#[test]
fn parts_of_the_model_go_back_as_they_came_and_answers_have_the_names_of_their_calls() {
    let parts = [
        r#"{"text":"I\/O"}"#,
        r#"{"functionCall":{"name":"read_file","args":{"n": 1.10},"id":"f1"},"thoughtSignature":"E\/+=\u003d"}"#,
        r#"{"functionCall":{"name":"list","args":{}}}"#,
        r#"{"text":"","thoughtSignature":"Et=="}"#,
    ];
    // As a transcript has them: with the id of our own, and a thought that is not sent.
    let kept = [
        parts[0],
        parts[1],
        r#"{"functionCall":{"name":"list","args":{}},"kageCallId":"r1#3"}"#,
        r#"{"text":"hm","thought":true}"#,
        parts[3],
    ];
    let text = bytes("m", None, &resumed(&kept.join(",")));
    assert!(text.contains(&parts.join(",")), "{text}");
    let body: Value = serde_json::from_str(&text).unwrap();
    let unknown = json!({"error": "interrupted, outcome unknown"});
    let answers = json!([
        {"functionResponse": {"id": "f1", "name": "read_file", "response": unknown}},
        {"functionResponse": {"name": "list", "response": unknown}},
    ]);
    assert_eq!(body["contents"][2], json!({"role": "user", "parts": answers}));
}

#[test]
fn error_answers_are_classified_with_their_waits() {
    use FailureKind as K;
    let google = |kind: &str| format!("type.googleapis.com/google.rpc.{kind}");
    let wait = json!({"@type": google("RetryInfo"), "retryDelay": "6.5s"});
    let quota =
        |id: &str| json!({"@type": google("QuotaFailure"), "violations": [{"quotaMetric": "m", "quotaId": id}]});
    let words = "You exceeded your current quota, please check your plan and billing details.";
    let error = |code: u16, status: &str, message: &str, details: Value| {
        (
            code,
            json!({"error": {"code": code, "message": message, "status": status, "details": details}}),
        )
    };
    let key = json!([{"@type": google("ErrorInfo"), "reason": "API_KEY_INVALID", "domain": "googleapis.com"}]);
    let long = "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576).";
    let soon = Some(Duration::from_millis(6500));
    for ((status, body), expected, after) in [
        (
            error(
                400,
                "INVALID_ARGUMENT",
                "API key not valid. Please pass a valid API key.",
                key,
            ),
            K::Auth,
            None,
        ),
        (error(403, "PERMISSION_DENIED", "no", json!([])), K::Auth, None),
        (
            error(400, "INVALID_ARGUMENT", long, json!([])),
            K::ContextOverflow,
            None,
        ),
        (
            error(400, "INVALID_ARGUMENT", "Unknown name", json!([])),
            K::InvalidRequest,
            None,
        ),
        (
            error(404, "NOT_FOUND", "models/x is not found", json!([])),
            K::InvalidRequest,
            None,
        ),
        // The words are the same for a limit by the minute and one by the day.
        (
            error(
                429,
                "RESOURCE_EXHAUSTED",
                words,
                json!([quota("GenerateRequestsPerMinutePerProjectPerModel"), wait]),
            ),
            K::RateLimited,
            soon,
        ),
        (
            error(429, "RESOURCE_EXHAUSTED", words, json!([wait])),
            K::RateLimited,
            soon,
        ),
        (
            error(
                429,
                "RESOURCE_EXHAUSTED",
                words,
                json!([quota("GenerateRequestsPerDayPerProjectPerModel-FreeTier"), wait]),
            ),
            K::QuotaExhausted,
            None,
        ),
        (
            error(429, "RESOURCE_EXHAUSTED", words, json!([])),
            K::QuotaExhausted,
            None,
        ),
        (
            error(
                429,
                "RESOURCE_EXHAUSTED",
                "Resource has been exhausted (e.g. check quota).",
                json!([]),
            ),
            K::RateLimited,
            None,
        ),
        (
            error(500, "INTERNAL", "An internal error has occurred", json!([])),
            K::Network,
            None,
        ),
        (
            error(
                503,
                "UNAVAILABLE",
                "The model is overloaded. Please try again later.",
                json!([]),
            ),
            K::Overloaded,
            None,
        ),
        (error(504, "DEADLINE_EXCEEDED", "no", json!([])), K::Timeout, None),
    ] {
        for form in [body.clone(), json!([body])] {
            let failure = refusal(form.to_string().as_bytes())
                .unwrap()
                .classify(Some(status), None, None);
            assert_eq!((failure.kind, failure.retry_after), (expected, after), "{form}");
        }
    }
    assert_eq!(refusal(b"<html>502</html>"), None);
    assert_eq!(refusal(b"{}"), None);
}

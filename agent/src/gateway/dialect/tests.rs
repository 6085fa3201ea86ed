//! Tables of requests: what is passed on, what a call says of itself, and where keys are.

use http::HeaderValue;
use serde_json::Value;

use super::*;

use MeteredWire::{Chat, Gemini, Messages, Responses};

#[test]
fn calls_are_counted_and_what_costs_nothing_is_passed_on() {
    for (wire, method, path, expected) in [
        (Messages, "POST", "/v1/messages", Route::Call(Messages)),
        (Messages, "POST", "/v1/messages/count_tokens", Route::Free),
        (Messages, "GET", "/v1/models", Route::Free),
        (Messages, "GET", "/v1/models/claude-x", Route::Free),
        (Messages, "GET", "/v1/messages", Route::Unknown),
        (Messages, "POST", "/v1/messages/batches", Route::Unknown),
        (Messages, "POST", "/v1/complete", Route::Unknown),
        (Messages, "POST", "/v1/files", Route::Unknown),
        (Messages, "POST", "/api/event_logging/batch", Route::Unknown),
        (Messages, "POST", "/v1/messages/", Route::Unknown),
        (Messages, "POST", "/chat/completions", Route::Unknown),
        (Responses, "POST", "/responses", Route::Call(Responses)),
        (Responses, "POST", "/responses/compact", Route::Call(Responses)),
        (Responses, "POST", "/chat/completions", Route::Call(Chat)),
        (Responses, "GET", "/models", Route::Free),
        (Responses, "GET", "/responses/resp_1", Route::Unknown),
        (Responses, "POST", "/embeddings", Route::Unknown),
        (Responses, "POST", "/images/generations", Route::Unknown),
        (Chat, "POST", "/chat/completions", Route::Call(Chat)),
        (Chat, "HEAD", "/models", Route::Free),
        (Chat, "POST", "/completions", Route::Unknown),
        (Chat, "DELETE", "/models/m", Route::Unknown),
        (
            Gemini,
            "POST",
            "/v1beta/models/g-2.5:generateContent",
            Route::Call(Gemini),
        ),
        (
            Gemini,
            "POST",
            "/v1/models/g-2.5:streamGenerateContent",
            Route::Call(Gemini),
        ),
        (Gemini, "POST", "/v1beta/models/g-2.5:countTokens", Route::Free),
        (Gemini, "GET", "/v1beta/models", Route::Free),
        (Gemini, "GET", "/v1beta/models/g-2.5", Route::Free),
        (Gemini, "POST", "/v1beta/models/g-2.5", Route::Unknown),
        (Gemini, "POST", "/v1beta/models/g-2.5:embedContent", Route::Unknown),
        (Gemini, "POST", "/v1beta/cachedContents", Route::Unknown),
        (Gemini, "GET", "/v1beta/models/g-2.5:generateContent", Route::Unknown),
    ] {
        let method: Method = method.parse().unwrap();
        assert_eq!(route(wire, &method, path), expected, "{wire:?} {method} {path}");
    }
}

#[test]
fn a_call_says_its_model_and_how_long_its_answer_may_be() {
    for (wire, path, body, model, output) in [
        (
            Messages,
            "/v1/messages",
            r#"{"model":"c","max_tokens":32000}"#,
            "c",
            Some(32_000),
        ),
        (Responses, "/v1/responses", r#"{"model":"g","input":"x"}"#, "g", None),
        (
            Responses,
            "/v1/responses",
            r#"{"model":"g","max_output_tokens":7}"#,
            "g",
            Some(7),
        ),
        (
            Chat,
            "/v1/chat/completions",
            r#"{"model":"m","max_tokens":9}"#,
            "m",
            Some(9),
        ),
        (
            Chat,
            "/v1/chat/completions",
            r#"{"model":"m","max_tokens":9,"max_completion_tokens":8}"#,
            "m",
            Some(8),
        ),
        (
            Gemini,
            "/v1beta/models/g-2.5:streamGenerateContent",
            r#"{"generationConfig":{"maxOutputTokens":5}}"#,
            "g-2.5",
            Some(5),
        ),
        (Gemini, "/v1beta/models/g-2.5:generateContent", "{}", "g-2.5", None),
        (Messages, "/v1/messages", "no JSON", "", None),
    ] {
        let asked = asked(wire, path, body.as_bytes());
        let read = (asked.model.as_str(), asked.output, asked.answers.get(), asked.bytes);
        assert_eq!(read, (model, output, 1, body.len() as u64), "{wire:?} {body}");
    }
}

#[test]
fn a_call_says_how_many_answers_it_asks_for() {
    for (wire, body, answers) in [
        (Chat, r#"{"n":8}"#, 8),
        (Chat, r#"{"\u006e":8}"#, 8),
        (Chat, r#"{"n":0}"#, 1),
        (Chat, r#"{"n":null}"#, 1),
        (Gemini, r#"{"generationConfig":{"candidateCount":8}}"#, 8),
        (Gemini, r#"{"generation_config":{"candidate_count":8}}"#, 8),
        (Gemini, r#"{"generationConfig":null}"#, 1),
        // It is no field of these.
        (Messages, r#"{"n":8}"#, 1),
        (Responses, r#"{"n":8}"#, 1),
    ] {
        let asked = asked(wire, "/m:generateContent", body.as_bytes());
        assert_eq!(
            (asked.answers.get(), asked.unbounded),
            (answers, None),
            "{wire:?} {body}"
        );
    }
}

#[test]
fn what_has_no_bound_is_known() {
    for (wire, body, word) in [
        (
            Responses,
            r#"{"previous_response_id":"resp_1"}"#,
            "previous_response_id",
        ),
        (Responses, r#"{"conversation":"conv_1"}"#, "conversation"),
        (Responses, r#"{"conversation":{"id":"conv_1"}}"#, "conversation"),
        (Responses, r#"{"prompt":{"id":"pmpt_1"}}"#, "prompt"),
        (Gemini, r#"{"cachedContent":"cachedContents/1"}"#, "cachedContent"),
        (Gemini, r#"{"cached_content":"cachedContents/1"}"#, "cachedContent"),
        (
            Responses,
            r#"{"input":[{"type":"item_reference","id":"msg_1"}]}"#,
            "references to items",
        ),
        (
            Messages,
            r#"{"messages":[{"role":"user","content":[{"type":"document","source":{"type":"file","file_id":"f"}}]}]}"#,
            "ids of files",
        ),
        (
            Gemini,
            r#"{"contents":[{"parts":[{"fileData":{"fileUri":"https://example.com/film"}}]}]}"#,
            "links",
        ),
        (Responses, r#"{"service_tier":"priority"}"#, "service tier"),
        (Chat, r#"{"service_tier":"priority"}"#, "service tier"),
        (Gemini, r#"{"serviceTier":"priority"}"#, "service tier"),
        (Messages, r#"{"speed":"fast"}"#, "speed"),
        (Chat, r#"{"n":129}"#, "128"),
        // A provider may read these, and in its own way.
        (Chat, r#"{"n":1,"n":8}"#, "not understood"),
        (Chat, r#"{"n":8.0}"#, "not understood"),
        (
            Gemini,
            r#"{"generationConfig":{"candidateCount":"8"}}"#,
            "not understood",
        ),
        (
            Gemini,
            r#"{"generationConfig":{},"generation_config":{"candidateCount":8}}"#,
            "not understood",
        ),
        (Messages, "no JSON", "not understood"),
    ] {
        let why = asked(wire, "/m:generateContent", body.as_bytes()).unbounded;
        assert!(why.is_some_and(|why| why.contains(word)), "{wire:?} {body}: {why:?}");
    }
    for (wire, body) in [
        (
            Responses,
            r#"{"previous_response_id":null,"conversation":null,"prompt":null,"service_tier":"auto"}"#,
        ),
        (Chat, r#"{"service_tier":"default","prompt":"x"}"#),
        (Responses, r#"{"input":"https://example.com"}"#),
        (Messages, r#"{"service_tier":"standard_only","speed":"standard"}"#),
        (Gemini, r#"{"serviceTier":"STANDARD"}"#),
    ] {
        let why = asked(wire, "/m:generateContent", body.as_bytes()).unbounded;
        assert_eq!(why, None, "{wire:?} {body}");
    }
}

#[test]
fn the_session_s_key_is_exchanged_wherever_programs_send_it() {
    let headers = |name: &'static str, value: &str| {
        let mut headers = HeaderMap::new();
        headers.insert(name, HeaderValue::from_str(value).unwrap());
        headers
    };
    for (name, sent, real) in [
        ("x-api-key", "kage-1", "sk-real"),
        ("x-goog-api-key", "kage-1", "sk-real"),
        ("api-key", "kage-1", "sk-real"),
        ("authorization", "Bearer kage-1", "Bearer sk-real"),
        ("authorization", "bearer kage-1", "Bearer sk-real"),
    ] {
        let mut headers = headers(name, sent);
        assert_eq!(
            exchange(&mut headers, Some("beta=true"), "kage-1", "sk-real"),
            Some(Some("beta=true".to_owned()))
        );
        assert_eq!(headers[name], real, "{name}");
        assert!(headers[name].is_sensitive());
    }
    let query = exchange(&mut HeaderMap::new(), Some("alt=sse&key=kage-1"), "kage-1", "sk/real");
    assert_eq!(query, Some(Some("alt=sse&key=sk%2Freal".to_owned())));
    for (name, sent) in [
        ("x-api-key", "kage-2"),
        ("x-api-key", "kage-1x"),
        ("x-api-key", ""),
        ("authorization", "kage-1"),
        ("authorization", "Basic kage-1"),
        ("x-other", "kage-1"),
    ] {
        assert_eq!(
            exchange(&mut headers(name, sent), Some("key=else"), "kage-1", "sk-real"),
            None,
            "{name}: {sent}"
        );
    }
    // A key that is no header value is exchanged for nothing.
    assert_eq!(
        exchange(&mut headers("x-api-key", "kage-1"), None, "kage-1", "sk\n"),
        None
    );
}

#[test]
fn every_rejection_is_the_provider_s_own() {
    for (wire, why, status, pointer, word) in [
        (Messages, Rejection::Budget, 400, "/error/type", "invalid_request_error"),
        (Messages, Rejection::Key, 401, "/error/type", "authentication_error"),
        (Responses, Rejection::Budget, 429, "/error/code", "insufficient_quota"),
        (Chat, Rejection::Budget, 402, "/error/code", "insufficient_quota"),
        (Gemini, Rejection::Budget, 429, "/error/status", "RESOURCE_EXHAUSTED"),
        (Gemini, Rejection::NotFound, 404, "/error/status", "NOT_FOUND"),
        (Chat, Rejection::Unreachable, 502, "/error/type", "server_error"),
        (
            Messages,
            Rejection::Invalid,
            400,
            "/error/type",
            "invalid_request_error",
        ),
        (Responses, Rejection::Invalid, 400, "/error/code", "unsupported_value"),
        (Chat, Rejection::Invalid, 400, "/error/type", "invalid_request_error"),
        (Gemini, Rejection::Invalid, 400, "/error/status", "INVALID_ARGUMENT"),
        (
            Responses,
            Rejection::TooLarge,
            413,
            "/error/type",
            "invalid_request_error",
        ),
    ] {
        let (told, body) = rejection(wire, why, "because");
        let body: Value = serde_json::from_str(&body).unwrap();
        let said = body.pointer(pointer).and_then(Value::as_str);
        assert_eq!((told.as_u16(), said), (status, Some(word)), "{body}");
        assert_eq!(body["error"]["message"], "because");
    }
    for wire in [Messages, Responses, Chat, Gemini] {
        assert!(budget_message(wire, "2.50 USD are spent").ends_with("2.50 USD are spent"));
    }
}

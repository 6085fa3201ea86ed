//! The scripted server over HTTP, as an adapter uses it.

use serde_json::Value;

use super::*;
use crate::model::Answer;
use crate::script::{Fault, Matcher, Turn};

const MODEL: &str = "claude-sonnet-5-5";

/// Asks as a well-behaved caller does.
async fn ask(server: &ScriptedServer, body: &Value) -> reqwest::Response {
    client()
        .post(format!("{}/v1/messages?beta=true", server.url()))
        .header("x-api-key", "k")
        .header("anthropic-version", "2023-06-01")
        .json(body)
        .send()
        .await
        .unwrap()
}

/// reqwest with the workspace's only crypto provider.
fn client() -> reqwest::Client {
    // Another test of this process may have installed it.
    drop(rustls::crypto::ring::default_provider().install_default());
    reqwest::Client::new()
}

fn body(messages: Value, stream: bool) -> Value {
    json!({
        "model": MODEL, "max_tokens": 1000, "stream": stream, "messages": messages,
        "tools": [{"name": "bash", "input_schema": {"type": "object"}}],
    })
}

fn opening() -> Value {
    json!([{"role": "user", "content": "please do it"}])
}

async fn server(turns: impl IntoIterator<Item = Turn>) -> ScriptedServer {
    ScriptedServer::start(vec![Script::new("s", Matcher::model(MODEL), turns)])
        .await
        .unwrap()
}

#[tokio::test]
async fn a_conversation_follows_the_turns_of_its_script() {
    let server = server([
        Turn::call("bash", json!({"command": "true"})),
        Turn::say("done").after(Fault::rate_limited(Duration::from_secs(3))),
    ])
    .await;
    let first: Value = ask(&server, &body(opening(), false)).await.json().await.unwrap();
    assert_eq!(first["stop_reason"], "tool_use");
    let call = first["content"][0].clone();
    let messages = json!([
        opening()[0],
        {"role": "assistant", "content": [call]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call["id"], "content": "ok"}]},
    ]);
    let limited = ask(&server, &body(messages.clone(), true)).await;
    assert_eq!(limited.status(), 429);
    assert_eq!(limited.headers()["retry-after"], "3");
    let second = ask(&server, &body(messages, true)).await.text().await.unwrap();
    assert!(second.contains("\"text\":\"done\"") && second.ends_with("{\"type\":\"message_stop\"}\n\n"));
    let answers: Vec<Answer> = server.requests_of("s").into_iter().map(|r| r.answer).collect();
    assert!(matches!(
        answers[..],
        [Answer::Reply(_), Answer::Error(_), Answer::Reply(_)]
    ));
}

#[tokio::test]
async fn a_cut_stream_breaks_off_and_the_repeated_call_is_answered() {
    let server =
        server([Turn::say("a rather long answer that streams in pieces").after(Fault::Cut { after_events: 4 })]).await;
    let mut response = ask(&server, &body(opening(), true)).await;
    assert_eq!(response.status(), 200);
    let mut text = Vec::new();
    let broken = loop {
        match response.chunk().await {
            Ok(Some(chunk)) => text.extend(chunk),
            Ok(None) => break false,
            Err(_) => break true,
        }
    };
    assert!(broken);
    assert_eq!(String::from_utf8(text).unwrap().matches("event: ").count(), 4);
    assert_eq!(ask(&server, &body(opening(), false)).await.status(), 200);
}

#[tokio::test]
async fn an_error_event_ends_a_stream() {
    let error = ApiError::new(529, "overloaded_error", "Overloaded");
    let fault = Fault::ErrorEvent { after_events: 2, error };
    let server = server([Turn::say("x").after(fault)]).await;
    let text = ask(&server, &body(opening(), true)).await.text().await.unwrap();
    assert!(text.contains("event: error") && !text.contains("message_stop"));
}

#[tokio::test]
async fn headers_are_enforced() {
    let server = server([Turn::say("x")]).await;
    let url = format!("{}/v1/messages", server.url());
    let body = body(opening(), false);
    let without_key = client()
        .post(&url)
        .header("anthropic-version", "2023-06-01")
        .json(&body);
    assert_eq!(without_key.send().await.unwrap().status(), 401);
    let without_version = client().post(&url).bearer_auth("k").json(&body);
    assert_eq!(without_version.send().await.unwrap().status(), 400);
    let unknown = client().get(format!("{}/v1/nothing", server.url()));
    assert_eq!(unknown.send().await.unwrap().status(), 404);
}

#[tokio::test]
async fn a_script_bug_is_told_and_never_retried() {
    let server = server([Turn::call("Write", json!({}))]).await;
    let refused: Value = ask(&server, &body(opening(), true)).await.json().await.unwrap();
    assert_eq!(refused["error"]["type"], "invalid_request_error");
    assert!(
        refused["error"]["message"]
            .as_str()
            .unwrap()
            .contains("calls tool Write")
    );
}

#[tokio::test]
async fn the_first_call_writes_the_cache_and_the_next_one_reads_it() {
    let server = server([Turn::say("x")]).await;
    let mut call = body(opening(), false);
    let base = "shared base ".repeat(1000);
    call["system"] = json!([{"type": "text", "text": base, "cache_control": {"type": "ephemeral", "ttl": "1h"}}]);
    let first: Value = ask(&server, &call).await.json().await.unwrap();
    let second: Value = ask(&server, &call).await.json().await.unwrap();
    let written = first["usage"]["cache_creation"]["ephemeral_1h_input_tokens"]
        .as_u64()
        .unwrap();
    assert!(written > 3000);
    assert_eq!(first["usage"]["cache_creation_input_tokens"], written);
    assert_eq!(second["usage"]["cache_read_input_tokens"], written);
    assert_eq!(second["usage"]["cache_creation_input_tokens"], 0);
    let counted = client()
        .post(format!("{}/v1/messages/count_tokens", server.url()))
        .header("x-api-key", "k")
        .header("anthropic-version", "2023-06-01")
        .json(&call);
    let counted: Value = counted.send().await.unwrap().json().await.unwrap();
    let total = written + first["usage"]["input_tokens"].as_u64().unwrap();
    assert_eq!(counted["input_tokens"], total);
}

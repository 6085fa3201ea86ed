//! The scripted server over HTTP, as an adapter uses it.

use serde_json::{Value, json};

use super::*;
use crate::model::Answer;
use crate::script::{Block, Fault, Matcher, Reply, Turn};

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
async fn drawn_counts_are_told_as_they_are_recorded_also_by_an_answer_that_breaks_off() {
    let server = server([Turn::say("x").after(Fault::CutBeforeLast)]).await;
    let mut told = Vec::new();
    for seed in [1, 2, 2] {
        server.draw_counts(seed);
        let mut response = ask(&server, &body(opening(), true)).await;
        let mut text = Vec::new();
        while let Ok(Some(chunk)) = response.chunk().await {
            text.extend(chunk);
        }
        let text = String::from_utf8(text).unwrap();
        let delta = text.lines().find(|line| line.contains("\"message_delta\"")).unwrap();
        let delta: Value = serde_json::from_str(delta.strip_prefix("data: ").unwrap()).unwrap();
        let start = text.lines().find(|line| line.contains("\"message_start\"")).unwrap();
        let start: Value = serde_json::from_str(start.strip_prefix("data: ").unwrap()).unwrap();
        told.push((
            start["message"]["usage"]["input_tokens"].as_u64().unwrap(),
            delta["usage"]["output_tokens"].as_u64().unwrap(),
            text.contains("message_stop"),
        ));
    }
    let recorded = server.requests_of("s").into_iter().map(|request| match request.answer {
        Answer::Reply(usage) => (usage.input, usage.output, true),
        Answer::Broken(usage) => (usage.input, usage.output, false),
        other => panic!("{other:?}"),
    });
    assert_eq!(told, recorded.collect::<Vec<_>>());
    assert!(told[0] != told[1] && told[1] != told[2], "{told:?}");
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

/// Asks the Responses API.
async fn respond_to(server: &ScriptedServer, body: &Value) -> reqwest::Response {
    let url = format!("{}/v1/responses", server.url());
    client().post(url).bearer_auth("k").json(body).send().await.unwrap()
}

#[tokio::test]
async fn a_conversation_over_the_responses_api_follows_its_script() {
    let call = Reply::new([
        Block::Thinking("hm".to_owned()),
        Block::tool("bash", json!({"command": "true"})),
        Block::tool("exec", Value::from("text('x')")),
    ]);
    let server = server([
        call.into(),
        Turn::say("done").after(Fault::ErrorEvent {
            after_events: 2,
            error: ApiError::new(503, "server_error", "busy").with_code("server_is_overloaded"),
        }),
    ])
    .await;
    let mut body = json!({
        "model": MODEL, "store": false, "include": ["reasoning.encrypted_content"],
        "input": [{"role": "user", "content": "please do it"}],
        "tools": [{"type": "function", "name": "bash", "parameters": {"type": "object"}}, {"type": "custom", "name": "exec"}],
    });
    let first: Value = respond_to(&server, &body).await.json().await.unwrap();
    let items = first["output"].as_array().unwrap();
    assert_eq!(items.len(), 3, "{first}");
    let input = body["input"].as_array_mut().unwrap();
    input.extend(items.iter().cloned());
    for (item, kind) in [(1, "function_call_output"), (2, "custom_tool_call_output")] {
        input.push(json!({"type": kind, "call_id": items[item]["call_id"], "output": "ok"}));
    }
    body["stream"] = json!(true);
    let failed = respond_to(&server, &body).await.text().await.unwrap();
    assert!(
        failed.contains("event: response.failed") && failed.contains("server_is_overloaded"),
        "{failed}"
    );
    let second = respond_to(&server, &body).await.text().await.unwrap();
    assert!(
        second.contains("\"text\":\"done\"") && second.contains("event: response.completed"),
        "{second}"
    );
    let usage = &first["usage"];
    let Answer::Reply(ledger) = server.requests()[0].answer else {
        panic!("not answered");
    };
    assert_eq!(usage["input_tokens"], ledger.input);
    assert_eq!(usage["output_tokens_details"]["reasoning_tokens"], ledger.reasoning);
    body["input"][1]["encrypted_content"] = json!("other");
    let refused = respond_to(&server, &body).await;
    assert_eq!(refused.status(), 400);
    let refused: Value = refused.json().await.unwrap();
    assert_eq!(refused["error"]["code"], "invalid_encrypted_content");
    let keyless = client().post(format!("{}/v1/responses", server.url())).json(&body);
    assert_eq!(keyless.send().await.unwrap().status(), 401);
}

#[tokio::test]
async fn a_conversation_with_gemini_follows_its_script() {
    let model = "gemini-3.8-flash";
    let call = Reply::new([
        Block::Thinking("hm".to_owned()),
        Block::tool("bash", json!({"command": "true"})),
    ]);
    let limited = Fault::Error(ApiError {
        retry_after: Some(Duration::from_secs(3)),
        ..ApiError::new(429, "RESOURCE_EXHAUSTED", "too many").with_code("GenerateRequestsPerMinute")
    });
    let turns = [call.into(), Turn::say("done and well").after(limited)];
    let server = ScriptedServer::start(vec![Script::new("s", Matcher::model(model), turns)])
        .await
        .unwrap();
    let ask = async |method: &str, body: &Value| {
        let url = format!("{}/v1beta/models/{model}:{method}", server.url());
        client()
            .post(url)
            .header("x-goog-api-key", "k")
            .json(body)
            .send()
            .await
            .unwrap()
    };
    let mut body = json!({
        "contents": [{"role": "user", "parts": [{"text": "please do it"}]}],
        "tools": [{"functionDeclarations": [{"name": "bash", "parametersJsonSchema": {"type": "object"}}]}],
    });
    let counted: Value = ask("countTokens", &body).await.json().await.unwrap();
    let first: Value = ask("generateContent", &body).await.json().await.unwrap();
    assert_eq!(first["usageMetadata"]["promptTokenCount"], counted["totalTokens"]);
    let said = first["candidates"][0]["content"].clone();
    assert_eq!(
        said["parts"].as_array().unwrap().len(),
        1,
        "the thought was not asked for"
    );
    let id = &said["parts"][0]["functionCall"]["id"];
    let answer = json!({"functionResponse": {"id": id, "name": "bash", "response": {"output": "ok"}}});
    let answered = json!({"role": "user", "parts": [answer]});
    body["contents"].as_array_mut().unwrap().extend([said, answered]);
    let limited: Value = ask("streamGenerateContent?alt=sse", &body).await.json().await.unwrap();
    assert_eq!(limited["error"]["status"], "RESOURCE_EXHAUSTED");
    assert_eq!(limited["error"]["details"][1]["retryDelay"], "3s");
    let second = ask("streamGenerateContent?alt=sse", &body).await.text().await.unwrap();
    assert!(
        second.contains("\"finishReason\":\"STOP\"") && second.contains("\"text\":\"\""),
        "{second}"
    );
    let Answer::Reply(ledger) = server.requests()[1].answer else {
        panic!("not answered");
    };
    let usage = &first["usageMetadata"];
    assert_eq!(usage["candidatesTokenCount"], ledger.output - ledger.reasoning);
    assert_eq!(usage["thoughtsTokenCount"], ledger.reasoning);
    assert_eq!(ask("embedContent", &body).await.status(), 404);
}

/// The data of a stream's events, `[DONE]` left out.
fn data(text: &str) -> Vec<Value> {
    let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
    data.filter_map(|data| serde_json::from_str(data).ok()).collect()
}

#[tokio::test]
async fn the_same_script_is_followed_in_every_api() {
    let server = server([Turn::call("bash", json!({"command": "true"})), Turn::say("done")]).await;
    let parameters = json!({"type": "object"});
    let tools = json!([{"type": "function", "function": {"name": "bash", "parameters": parameters}}]);
    let body = json!({"model": MODEL, "stream": true, "messages": opening(), "tools": tools});

    let mut chat = body.clone();
    chat["stream_options"] = json!({"include_usage": true});
    let url = format!("{}/v1/chat/completions", server.url());
    let refused = client().post(&url).json(&chat).send().await.unwrap();
    assert_eq!(refused.status(), 401);
    let answer = client().post(&url).bearer_auth("k").json(&chat).send().await.unwrap();
    let answer = answer.text().await.unwrap();
    assert!(answer.ends_with("data: [DONE]\n\n"), "{answer}");
    let chunks = data(&answer);
    let usage = &chunks.last().unwrap()["usage"];
    let reason = &chunks[chunks.len() - 2]["choices"][0]["finish_reason"];
    assert_eq!(reason, "tool_calls");

    let answer = client()
        .post(format!("{}/api/chat", server.url()))
        .json(&body)
        .send()
        .await
        .unwrap();
    let lines: Vec<Value> = answer
        .text()
        .await
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(
        lines[0]["message"]["tool_calls"][0]["function"]["arguments"]["command"],
        "true"
    );
    let last = lines.last().unwrap();
    assert_eq!((&last["done"], &last["done_reason"]), (&json!(true), &json!("stop")));

    let ledger = server.requests();
    let replies: Vec<_> = ledger
        .iter()
        .filter_map(|request| match &request.answer {
            Answer::Reply(usage) => Some(*usage),
            _ => None,
        })
        .collect();
    assert_eq!(usage["prompt_tokens"], json!(replies[0].input));
    assert_eq!(usage["completion_tokens"], json!(replies[0].output));
    assert_eq!(last["prompt_eval_count"], json!(replies[1].input));

    let mut other = body.clone();
    other["model"] = json!("other");
    let answer = client()
        .post(format!("{}/api/chat", server.url()))
        .json(&other)
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 404);
    assert!(answer.text().await.unwrap().contains("try pulling it first"));
}

#[tokio::test]
async fn an_account_is_limited_and_told_so_in_headers() {
    let server = server([Turn::say("done")]).await;
    let free = ask(&server, &body(opening(), true)).await;
    assert!(!free.headers().contains_key("anthropic-ratelimit-requests-limit"));
    server.limit(RateLimits::per_minute(2, 100_000, 10_000));
    for left in ["1", "0"] {
        let answer = ask(&server, &body(opening(), true)).await;
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["anthropic-ratelimit-requests-remaining"], left);
        assert_eq!(answer.headers()["anthropic-ratelimit-requests-limit"], "2");
    }
    let refused = ask(&server, &body(opening(), true)).await;
    assert_eq!(refused.status(), 429);
    assert_eq!(refused.headers()["retry-after"], "30");
    assert_eq!(refused.headers()["anthropic-ratelimit-requests-remaining"], "0");
    let error: Value = refused.json().await.unwrap();
    assert_eq!(error["error"]["type"], "rate_limit_error");
    server.limit(None);
    assert_eq!(ask(&server, &body(opening(), true)).await.status(), 200);
}

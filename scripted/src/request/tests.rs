//! Requests that the scripted provider accepts and refuses.

use serde_json::json;

use super::*;

type Change = Box<dyn FnOnce(&mut Value)>;

fn refusal(change: impl FnOnce(&mut Value)) -> String {
    let mut body = conversation();
    change(&mut body);
    let error = parse(&body, Endpoint::Messages).expect_err("must be refused");
    assert_eq!((error.status, error.kind.as_str()), (400, "invalid_request_error"));
    error.message
}

fn conversation() -> Value {
    json!({
        "model": "m", "max_tokens": 100, "stream": true,
        "tools": [{"name": "bash", "input_schema": {"type": "object"}}],
        "system": [{"type": "text", "text": "base", "cache_control": {"type": "ephemeral", "ttl": "1h"}}],
        "messages": [
            {"role": "user", "content": "do it"},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "hm", "signature": sign("hm")},
                {"type": "tool_use", "id": "t1", "name": "bash", "input": {}},
                {"type": "tool_use", "id": "t2", "name": "bash", "input": {}},
            ]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "t2", "content": "x"},
                {"type": "tool_result", "tool_use_id": "t1", "content": "y"},
                {"type": "text", "text": "go on", "cache_control": {"type": "ephemeral"}},
            ]},
        ],
    })
}

#[test]
fn a_conversation_that_keeps_the_rules_is_read() {
    let request = parse(&conversation(), Endpoint::Messages).unwrap();
    assert_eq!(request.turn, 1);
    assert_eq!(request.prompt, "base\ndo it\ngo on\n");
    assert_eq!(request.segments.len(), 9);
    assert_eq!(request.segments[1].breakpoint, Some(CacheTtl::OneHour));
    assert_eq!(request.segments[8].breakpoint, Some(CacheTtl::FiveMinutes));
    assert!(!request.segments[1].content.contains("cache_control"));
}

#[test]
fn max_tokens_is_needed_except_for_counting() {
    let mut body = conversation();
    body.as_object_mut().unwrap().remove("max_tokens");
    assert!(parse(&body, Endpoint::CountTokens).is_ok());
    assert!(
        parse(&body, Endpoint::Messages)
            .unwrap_err()
            .message
            .contains("max_tokens")
    );
}

#[test]
fn every_broken_rule_is_named() {
    let table: Vec<(&str, Change)> = vec![
        ("frobnicate: Extra", Box::new(|b| b["frobnicate"] = json!(1))),
        ("model: Field required", Box::new(|b| b["model"] = json!(null))),
        ("messages: at least one", Box::new(|b| b["messages"] = json!([]))),
        (
            "roles must alternate",
            Box::new(|b| b["messages"][1]["role"] = json!("user")),
        ),
        (
            "without tool_result blocks immediately after: t1",
            Box::new(|b| b["messages"][2]["content"][1] = json!({"type": "text", "text": "z"})),
        ),
        (
            "unexpected tool_use_id",
            Box::new(|b| b["messages"][2]["content"][0]["tool_use_id"] = json!("t9")),
        ),
        (
            "tool_result blocks must come before",
            Box::new(|b| {
                let content = b["messages"][2]["content"].as_array_mut().unwrap();
                content.rotate_right(1);
            }),
        ),
        (
            "without tool_result blocks immediately after: t1, t2",
            Box::new(|b| {
                b["messages"].as_array_mut().unwrap().pop();
            }),
        ),
        (
            "Invalid signature",
            Box::new(|b| b["messages"][1]["content"][0]["thinking"] = json!("other")),
        ),
        (
            "must not come after a ttl='5m'",
            Box::new(|b| {
                b["tools"][0]["cache_control"] = json!({"type": "ephemeral"});
            }),
        ),
        (
            "A maximum of 4 blocks",
            Box::new(|b| {
                let block = json!({"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}});
                b["system"] = json!([block, block, block, block]);
            }),
        ),
        (
            "must be non-empty",
            Box::new(|b| b["messages"][0]["content"] = json!("")),
        ),
        (
            "Tool names must be unique",
            Box::new(|b| b["tools"] = json!([b["tools"][0], b["tools"][0]])),
        ),
        ("input_schema", Box::new(|b| b["tools"] = json!([{"name": "x"}]))),
    ];
    for (part, change) in table {
        let message = refusal(change);
        assert!(message.contains(part), "{part:?} is not in {message:?}");
    }
}

#[test]
fn a_note_of_the_system_between_turns_takes_no_turn() {
    let mut body = conversation();
    let note = json!({"role": "system", "content": [{"type": "text", "text": "env"}]});
    body["messages"].as_array_mut().unwrap().insert(1, note);
    assert_eq!(parse(&body, Endpoint::Messages).unwrap().turn, 1);
}

#[test]
fn a_conversation_is_made_shorter_for_models_that_have_that_and_not_too_early() {
    let asks = |model: &str, edit: Value| {
        let mut body = conversation();
        body["model"] = json!(model);
        body["context_management"] = json!({ "edits": [edit] });
        parse(&body, Endpoint::Messages).map(|request| request.compact_at)
    };
    let at = |value: u64| json!({"type": "compact_20260112", "trigger": {"type": "input_tokens", "value": value}});
    let model = "claude-sonnet-4-6";
    assert_eq!(asks(model, at(50_000)).unwrap(), Some(50_000));
    assert_eq!(asks(model, json!({"type": "compact_20260112"})).unwrap(), Some(150_000));
    assert_eq!(asks("m", json!({"type": "clear_tool_uses_20250919"})).unwrap(), None);
    assert!(asks(model, at(49_999)).unwrap_err().message.contains("trigger"));
    assert!(asks("m", at(50_000)).unwrap_err().message.contains("not supported"));

    // What is before a summary is left out; one that failed changes nothing.
    let with = |content: Value| {
        let mut body = conversation();
        let said = body["messages"][1]["content"].as_array_mut().unwrap();
        said.insert(0, json!({"type": "compaction", "content": content}));
        parse(&body, Endpoint::Messages)
    };
    assert_eq!(with(json!("so far")).unwrap().segments.len(), 9);
    assert_eq!(with(json!(null)).unwrap().segments.len(), 9);
    assert!(
        !with(json!("so far"))
            .unwrap()
            .segments
            .iter()
            .any(|it| it.content.contains("do it"))
    );
    assert!(with(json!("")).is_err());
}

//! Conversations that the scripted Responses API accepts and refuses.

use serde_json::json;

use super::*;

type Change = Box<dyn FnOnce(&mut Value)>;

fn conversation() -> Value {
    let call = call_id(1, 1, Some("hm"));
    json!({
        "model": "gpt-6.1-sol", "stream": true, "store": false, "max_output_tokens": 100,
        "include": ["reasoning.encrypted_content"], "instructions": "you are", "frobnicate": 1,
        "tools": [{"type": "function", "name": "bash", "parameters": {"type": "object"}}],
        "input": [
            {"role": "user", "content": "do it"},
            {"type": "reasoning", "summary": [], "encrypted_content": seal("hm")},
            {"type": "function_call", "call_id": call, "name": "bash", "arguments": "{}"},
            {"type": "function_call", "call_id": "own", "name": "bash", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "own", "output": "x"},
            {"type": "function_call_output", "call_id": call, "output": [{"type": "input_text", "text": "y"}]},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "go on"}]},
        ],
    })
}

#[test]
fn a_conversation_that_keeps_the_rules_is_read() {
    let request = parse(&conversation()).unwrap();
    assert_eq!((request.turn, request.stream, request.wants_thoughts), (1, true, true));
    assert_eq!(request.prompt, "you are\ndo it\ngo on\n");
    assert_eq!(request.segments.len(), 9);
    assert_eq!(request.caching, Caching::Implicit { writes: true });
}

#[test]
fn tools_of_a_namespace_are_known_with_it() {
    let tools = json!([{"type": "namespace", "name": "functions", "tools": [
        {"type": "custom", "name": "exec"}, {"type": "function", "name": "wait"},
    ]}]);
    let body = json!({"model": "m", "input": [
        {"type": "additional_tools", "role": "developer", "tools": tools},
        {"role": "user", "content": "x"},
    ]});
    let request = parse(&body).unwrap();
    assert!(request.tools.contains("exec") && request.tools.contains("wait"));
    assert_eq!(request.namespaces["exec"], "functions");
    assert_eq!(request.turn, 0);
}

#[test]
fn every_broken_rule_is_named() {
    let table: Vec<(&str, Change)> = vec![
        ("model: Field required", Box::new(|b| b["model"] = json!(null))),
        ("max_output_tokens", Box::new(|b| b["max_output_tokens"] = json!(1))),
        ("must be provided", Box::new(|b| b["input"] = json!([]))),
        (
            "Previous response not found",
            Box::new(|b| b["previous_response_id"] = json!("resp_1")),
        ),
        (
            "could not be verified",
            Box::new(|b| b["input"][1]["encrypted_content"] = json!(format!("{}x", seal("hm")))),
        ),
        (
            "Items are not persisted",
            Box::new(|b| {
                b["input"][1].as_object_mut().unwrap().remove("encrypted_content");
            }),
        ),
        (
            "without its required 'reasoning' item",
            Box::new(|b| {
                b["input"].as_array_mut().unwrap().remove(1);
            }),
        ),
        (
            "without its required 'reasoning' item",
            Box::new(|b| b["input"][1]["encrypted_content"] = json!(seal("other"))),
        ),
        (
            "without its required following item",
            Box::new(|b| {
                let thought = b["input"][1].clone();
                b["input"].as_array_mut().unwrap().insert(4, thought);
            }),
        ),
        (
            "No tool output found for function call own",
            Box::new(|b| {
                b["input"].as_array_mut().unwrap().remove(4);
            }),
        ),
        (
            "No tool call found for function call output with call_id own",
            Box::new(|b| b["input"][5]["call_id"] = json!("own")),
        ),
        (
            "Duplicate item",
            Box::new(|b| {
                let call = b["input"][3].clone();
                b["input"].as_array_mut().unwrap().insert(3, call);
            }),
        ),
        (
            "expected a JSON object",
            Box::new(|b| b["input"][3]["arguments"] = json!("{\"a")),
        ),
        (
            "Missing required parameter",
            Box::new(|b| b["input"][4]["output"] = json!(null)),
        ),
    ];
    for (part, change) in table {
        let mut body = conversation();
        change(&mut body);
        let error = parse(&body).expect_err(part);
        assert!(error.message.contains(part), "{part:?} is not in {:?}", error.message);
    }
}

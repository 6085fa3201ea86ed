//! Conversations that the scripted Gemini accepts and refuses.

use serde_json::json;

use super::*;

type Change = Box<dyn FnOnce(&mut Value)>;

const GENERATE: Endpoint = Endpoint::Generate { stream: true };

fn path(model: &str) -> String {
    format!("/v1beta/models/{model}:streamGenerateContent?alt=sse")
}

fn conversation() -> Value {
    let args = json!({"command": "true"});
    json!({
        "systemInstruction": {"parts": [{"text": "you are"}]},
        "tools": [{"functionDeclarations": [{"name": "bash", "parametersJsonSchema": {"type": "object"}}]}],
        "generationConfig": {"thinkingConfig": {"includeThoughts": true}},
        "contents": [
            {"role": "user", "parts": [{"text": "do it"}]},
            {"role": "model", "parts": [
                {"text": "well"},
                {"functionCall": {"name": "bash", "args": args, "id": "a"}, "thoughtSignature": sign_call("bash", &args)},
                {"functionCall": {"name": "list", "args": {}, "id": "b"}},
            ]},
            {"role": "user", "parts": [
                {"functionResponse": {"name": "list", "id": "b", "response": {"output": "y"}}},
                {"functionResponse": {"name": "bash", "id": "a", "response": {"output": "x"}}},
                {"text": "go on"},
            ]},
        ],
    })
}

#[test]
fn a_conversation_that_keeps_the_rules_is_read() {
    let request = parse(&path("gemini-3.8-flash"), &conversation(), GENERATE).unwrap();
    assert_eq!(request.model, "gemini-3.8-flash");
    assert_eq!((request.turn, request.stream, request.wants_thoughts), (1, true, true));
    assert_eq!(request.prompt, "you are\ndo it\ngo on\n");
    assert_eq!(request.segments.len(), 5);
    let counted = json!({"generateContentRequest": {"contents": [{"role": "model", "parts": [{"text": "x"}]}]}});
    assert!(parse("/v1beta/models/m:countTokens", &counted, Endpoint::GeminiCount).is_ok());
}

#[test]
fn every_broken_rule_is_named() {
    let table: Vec<(&str, Change)> = vec![
        ("contents is not specified", Box::new(|b| b["contents"] = json!([]))),
        ("must not be empty", Box::new(|b| b["contents"][0]["parts"] = json!([]))),
        (
            "valid role",
            Box::new(|b| b["contents"][1]["role"] = json!("assistant")),
        ),
        (
            "Corrupted thought signature",
            Box::new(|b| b["contents"][1]["parts"][1]["thoughtSignature"] = json!("x")),
        ),
        (
            "Corrupted thought signature",
            Box::new(|b| b["contents"][1]["parts"][1]["functionCall"]["args"]["command"] = json!("false")),
        ),
        (
            "Corrupted thought signature",
            Box::new(|b| b["contents"][1]["parts"][0]["thoughtSignature"] = json!(format!("{}=", sign_text(7)))),
        ),
        (
            "missing a thought_signature",
            Box::new(|b| {
                b["contents"][1]["parts"][1]
                    .as_object_mut()
                    .unwrap()
                    .remove("thoughtSignature");
            }),
        ),
        (
            "number of function response parts",
            Box::new(|b| {
                b["contents"][2]["parts"].as_array_mut().unwrap().remove(0);
            }),
        ),
        (
            "number of function response parts",
            Box::new(|b| b["contents"][2]["parts"][0]["functionResponse"] = json!({"name": "grep", "response": {}})),
        ),
        (
            "comes immediately after a user turn",
            Box::new(|b| {
                let answer = json!({"role": "model", "parts": [{"text": "x"}]});
                b["contents"].as_array_mut().unwrap().insert(1, answer);
            }),
        ),
        (
            "ends with a user role",
            Box::new(|b| {
                let answer = json!({"role": "model", "parts": [{"text": "x"}]});
                b["contents"].as_array_mut().unwrap().push(answer);
            }),
        ),
        ("required oneof", Box::new(|b| b["contents"][0]["parts"][0] = json!({}))),
    ];
    for (part, change) in table {
        let mut body = conversation();
        change(&mut body);
        // The calls belong to the present turn.
        if let Some(Value::Array(parts)) = body["contents"].pointer_mut("/2/parts") {
            parts.retain(|part| part.get("text").is_none());
        }
        let error = parse(&path("gemini-3.8-flash"), &body, GENERATE).expect_err(part);
        assert!(error.message.contains(part), "{part:?} is not in {:?}", error.message);
    }
}

#[test]
fn signatures_need_not_come_back_from_old_models_and_old_turns() {
    let mut body = conversation();
    body["contents"][1]["parts"][1]
        .as_object_mut()
        .unwrap()
        .remove("thoughtSignature");
    body["contents"][2]["parts"].as_array_mut().unwrap().pop();
    assert!(parse(&path("gemini-2.5-pro"), &body, GENERATE).is_ok());
    let new = path("gemini-3.8-flash");
    assert!(parse(&new, &body, GENERATE).is_err());
    let later = [
        json!({"role": "model", "parts": [{"text": "done", "thoughtSignature": sign_text(3)}]}),
        json!({"role": "user", "parts": [{"text": "more"}]}),
    ];
    body["contents"].as_array_mut().unwrap().extend(later);
    assert!(parse(&new, &body, GENERATE).is_ok());
}

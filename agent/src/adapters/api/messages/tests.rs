//! The bytes of requests, and which parts of an answer are sent back.

use std::num::NonZeroU32;

use kage_core::failure::FailureKind;
use kage_core::price::Effort;
use serde_json::json;

use super::super::turn::ToolAnswer;
use super::super::turns::Conversation;
use super::*;
use crate::adapters::tools;

fn answer(id: &str) -> ToolAnswer {
    ToolAnswer {
        id: id.to_owned(),
        text: "done".to_owned(),
        is_error: false,
        image: None,
    }
}

/// A conversation after these lines, gone on with.
fn resumed(lines: &[Value]) -> Conversation {
    let said: String = lines.iter().map(|line| format!("{line}\n")).collect();
    Conversation::resumed(&WIRE, said.as_bytes(), "").unwrap()
}

fn bytes(conversation: &Conversation) -> String {
    asking(&plain(), conversation)
}

fn plain() -> Asked {
    Asked {
        model: "m".to_owned(),
        max_output: NonZeroU32::new(10).unwrap(),
        output_is_known: true,
        thinking: None,
        effort: None,
        compact_at: None,
        context: None,
    }
}

fn asking(asked: &Asked, conversation: &Conversation) -> String {
    written(asked, conversation, CacheLife::default())
}

fn written(asked: &Asked, conversation: &Conversation, cache: CacheLife) -> String {
    let tools = (WIRE.tools)(&tools::definitions());
    let body = body(&Request {
        asked,
        task: "t",
        tools: &tools,
        system: &["you are".to_owned(), "the base".to_owned()],
        turns: conversation.turns(),
        cache,
    });
    String::from_utf8(body).unwrap()
}

fn sent(conversation: &Conversation) -> Value {
    serde_json::from_str(&bytes(conversation)).unwrap()
}

#[test]
fn sessions_share_their_bytes_up_to_their_own_part() {
    let body = |own| bytes(&Conversation::new(&WIRE, own));
    let (one, two) = (body("mend a"), body("mend b"));
    let split = one.find("mend a").unwrap();
    assert_eq!(one[..split], two[..split]);
    assert!(one[..split].contains("the base"));
    let tools = sent(&Conversation::new(&WIRE, "own"))["tools"].clone();
    assert_eq!(tools[0]["name"], "read_file");
    assert_eq!(tools[0]["input_schema"]["required"], json!(["path"]));
    assert!(
        tools
            .as_array()
            .unwrap()
            .iter()
            .all(|tool| tool["description"].is_string())
    );
}

#[test]
fn thinking_and_effort_are_where_the_provider_looks_for_them() {
    let conversation = Conversation::new(&WIRE, "task");
    let plain = sent(&conversation);
    assert_eq!(
        (&plain["thinking"], &plain["output_config"]),
        (&Value::Null, &Value::Null)
    );
    let asked = Asked {
        model: "m".to_owned(),
        max_output: NonZeroU32::new(128_000).unwrap(),
        output_is_known: true,
        thinking: Some(Thinking::Adaptive),
        effort: Some(Effort::Xhigh),
        compact_at: None,
        context: None,
    };
    let body: Value = serde_json::from_str(&asking(&asked, &conversation)).unwrap();
    assert_eq!(body["thinking"], json!({"type": "adaptive"}));
    assert_eq!(body["output_config"], json!({"effort": "xhigh"}));
    assert_eq!(body["max_tokens"], 128_000);
}

#[test]
fn breakpoints_end_the_base_and_the_last_two_user_messages() {
    let mut conversation = Conversation::new(&WIRE, "task");
    let mut lines = vec![json!({"role": "user", "content": [{"type": "text", "text": "task"}]})];
    for id in ["a", "b", "c"] {
        let called = json!([{"type": "tool_use", "id": id}]);
        lines.push(json!({"role": "assistant", "content": called}));
        conversation = resumed(&lines);
        conversation.unwritten();
        // Going on has answered the one call; a second answer follows.
        conversation.tool_results(vec![answer("last")]);
        lines.push(json!({"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": id, "content": "done"},
            {"type": "tool_result", "tool_use_id": "last", "content": "done"},
        ]}));
    }
    let body = sent(&conversation);
    let marks = |parts: &Value| -> Vec<bool> {
        let parts = parts.as_array().unwrap().iter();
        parts.map(|part| part.get("cache_control").is_some()).collect()
    };
    assert_eq!(marks(&body["system"]), [false, true]);
    assert_eq!(body["system"][1]["cache_control"], json!({"type": "ephemeral"}));
    let messages = body["messages"].as_array().unwrap().iter();
    let users = messages.filter(|message| message["role"] == "user");
    let users: Vec<_> = users.map(|message| marks(&message["content"])).collect();
    assert_eq!(
        users,
        [vec![false], vec![false, false], vec![false, true], vec![false, true]]
    );
}

#[test]
fn every_breakpoint_says_how_long_its_entry_has_to_live() {
    let conversation = resumed(&[
        json!({"role": "user", "content": [{"type": "text", "text": "task"}]}),
        json!({"role": "assistant", "content": [{"type": "text", "text": "hm"}]}),
    ]);
    for (life, mark) in [
        (CacheLife::FiveMinutes, json!({"type": "ephemeral"})),
        (CacheLife::OneHour, json!({"type": "ephemeral", "ttl": "1h"})),
    ] {
        let body: Value = serde_json::from_str(&written(&plain(), &conversation, life)).unwrap();
        let (system, messages) = (&body["system"], &body["messages"]);
        let marked = [&system[1], &messages[0]["content"][0], &messages[2]["content"][0]];
        assert_eq!(
            marked.map(|part| part["cache_control"].clone()),
            [mark.clone(), mark.clone(), mark]
        );
    }
}

#[test]
fn nothing_blank_is_sent() {
    let mut conversation = resumed(&[
        json!({"role": "user", "content": [{"type": "text", "text": "task"}]}),
        json!({"role": "assistant", "content": [{"type": "text", "text": "\n\n"}, {"type": "tool_use", "id": "a"}]}),
        json!({"role": "user", "content": [{"type": "text", "text": " "}]}),
    ]);
    conversation.tool_results(vec![ToolAnswer {
        text: " \n".to_owned(),
        ..answer("b")
    }]);
    conversation.user(" \t");
    let body = sent(&conversation);
    let messages = body["messages"].as_array().unwrap();
    assert_eq!(messages.len(), 3, "{messages:?}");
    assert_eq!(messages[1]["content"], json!([{"type": "tool_use", "id": "a"}]));
    let told = messages[2]["content"].as_array().unwrap();
    let told: Vec<_> = told.iter().map(|block| &block["content"]).collect();
    assert_eq!(told, [&json!("interrupted, outcome unknown"), &json!("[empty]")]);
    let blank = [json!({"type": "text", "text": " "})];
    let blank = resumed(&[
        json!({"role": "user", "content": [{"type": "text", "text": "task"}]}),
        json!({"role": "assistant", "content": blank}),
    ]);
    assert_eq!(sent(&blank)["messages"].as_array().unwrap().len(), 1);
}

#[test]
fn what_cannot_be_sent_back_is_known() {
    for (item, can) in [
        (r#"{"type":"text","text":"x"}"#, true),
        (r#"{"type":"text","text":""}"#, false),
        (r#"{"type":"text","text":" \n\t "}"#, false),
        (r#"{"type":"text","text":"\u00a0"}"#, false),
        (r#"{"type":"text","text":" x "}"#, true),
        (r#"{"type":"thinking","thinking":"x","signature":""}"#, false),
        (r#"{"type":"thinking","thinking":"","signature":"s"}"#, true),
        (r#"{"type":"server_tool_use","id":"x"}"#, true),
    ] {
        let item: Item = serde_json::from_str(item).unwrap();
        assert_eq!(can_be_sent(&item), can, "{item:?}");
    }
}

#[test]
fn a_refusal_is_the_providers_or_none() {
    let spent = br#"{"type":"error","error":{"type":"rate_limit_error","message":"no","details":{"error_code":"enforced_spend_limit_reached"}}}"#;
    let spent = refusal(spent).unwrap();
    assert_eq!(spent.code.as_deref(), Some("enforced_spend_limit_reached"));
    assert_eq!(spent.classify(Some(429), None, None).kind, FailureKind::QuotaExhausted);
    assert_eq!(refusal(b"<html>502</html>"), None);
}

#[test]
fn an_image_is_a_block_of_its_tools_result() {
    let mut conversation = resumed(&[
        json!({"role": "user", "content": [{"type": "text", "text": "task"}]}),
        json!({"role": "assistant", "content": [{"type": "text", "text": "hm"}]}),
    ]);
    conversation.tool_results(vec![ToolAnswer {
        image: Some(crate::adapters::tools::image::Image {
            media_type: "image/png".to_owned(),
            data: "aGk=".to_owned(),
        }),
        ..answer("a")
    }]);
    let content = sent(&conversation)["messages"][2]["content"][1]["content"].clone();
    let source = json!({"type": "base64", "media_type": "image/png", "data": "aGk="});
    assert_eq!(
        content,
        json!([{"type": "text", "text": "done"}, {"type": "image", "source": source}])
    );
    // And so it is in the transcript.
    let line = conversation.unwritten().pop().unwrap();
    assert!(
        line.contains(r#""image":{"media_type":"image/png","data":"aGk="}"#),
        "{line}"
    );
}

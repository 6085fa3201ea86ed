//! Sessions that resume an interrupted conversation.

use bytes::Bytes;
use serde_json::{Value, json};

use super::super::*;
use super::provider::{Answer, Place, Told, error, message, says, tool};
use crate::adapters::hearing::Said;

fn thinking(signature: &str) -> Value {
    json!({"type": "thinking", "thinking": "", "signature": signature})
}

/// What a session said, as its checkpoint keeps it.
fn said(told: &Told) -> Bytes {
    told.lines.clone().into()
}

#[tokio::test]
async fn a_session_goes_on_with_exactly_the_same_request() {
    let step = |id: &str, command: &str| {
        let blocks = [thinking("a+/=="), tool(id, "bash", json!({"command": command}))];
        Answer::Stream(message(&blocks, "tool_use"))
    };
    let refused = Answer::Error(400, None, error("invalid_request_error"));
    let place = Place::new([step("t1", "echo '\u{e9} \\\\'"), step("t2", "exit 3"), refused]).await;
    let first = place.go().await;
    assert!(matches!(first.end, AdapterEnd::Failed(_)), "{:?}", first.end);

    place
        .provider
        .answers
        .lock()
        .unwrap()
        .push_back(says("done", "end_turn"));
    let mut input = place.input();
    input.beginning = Beginning::GoOn {
        said: said(&first),
        note: String::new(),
        instruction: String::new(),
    };
    let second = place.run(input, CancellationToken::new()).await;
    assert_eq!(
        second.end,
        AdapterEnd::Done {
            summary: "done".to_owned()
        }
    );
    let bodies = place.provider.bodies.lock().unwrap().clone();
    assert_eq!(bodies.len(), 4);
    assert_eq!(bodies[3], bodies[2], "not a byte differs");
    assert!(bodies[3].contains("a+/=="));
    // Only what is new is in its transcript, and only its own call is counted.
    assert_eq!(second.transcript.len(), 1);
    let usage = |told: &Told| {
        let events = told.events.iter();
        events
            .filter(|event| matches!(event, EventBody::UsageRecorded { .. }))
            .count()
    };
    assert_eq!((usage(&first), usage(&second)), (2, 1));

    // A second interruption goes on from both parts.
    place
        .provider
        .answers
        .lock()
        .unwrap()
        .push_back(says("again", "end_turn"));
    let mut input = place.input();
    let mut both = first.lines.clone();
    both.extend_from_slice(&second.lines);
    input.beginning = Beginning::GoOn {
        said: both.into(),
        note: "Look.".to_owned(),
        instruction: "Verify failed.".to_owned(),
    };
    place.run(input, CancellationToken::new()).await;
    let bodies = place.provider.bodies.lock().unwrap().clone();
    let last: Value = serde_json::from_str(&bodies[4]).unwrap();
    let messages = last["messages"].as_array().unwrap();
    assert_eq!(
        messages[messages.len() - 1]["content"][0]["text"],
        "Look.\n\nVerify failed."
    );
    assert_eq!(messages[messages.len() - 2]["content"][0]["text"], "done");
}

#[tokio::test]
async fn a_tool_call_without_a_result_is_answered_as_interrupted() {
    let calls = [
        tool("t1", "bash", json!({"command": "true"})),
        tool("t2", "list", json!({})),
    ];
    let place = Place::new([says("done", "end_turn")]).await;
    let whole = [
        json!({"role": "user", "content": [{"type": "text", "text": "the task"}]}),
        json!({"role": "assistant", "stop_reason": "tool_use", "content": calls}),
    ];
    let said: String = whole.iter().map(|line| format!("{line}\n")).collect();
    let mut input = place.input();
    input.beginning = Beginning::GoOn {
        said: said.into(),
        note: "Look first.".to_owned(),
        instruction: String::new(),
    };
    let told = place.run(input, CancellationToken::new()).await;
    assert_eq!(
        told.end,
        AdapterEnd::Done {
            summary: "done".to_owned()
        }
    );
    let requests = place.provider.requests.lock().unwrap().clone();
    let messages = requests[0].1["messages"].as_array().unwrap();
    let answers = messages[2]["content"].as_array().unwrap();
    let seen: Vec<_> = answers
        .iter()
        .map(|block| (&block["tool_use_id"], &block["content"], &block["is_error"]))
        .collect();
    let unknown = json!("interrupted, outcome unknown");
    assert_eq!(
        seen[..2],
        [
            (&json!("t1"), &unknown, &json!(true)),
            (&json!("t2"), &unknown, &json!(true))
        ]
    );
    assert_eq!(answers[2]["text"], "Look first.");
    assert_eq!((messages.len(), answers.len()), (3, 3));

    let mut input = place.input();
    input.beginning = Beginning::GoOn {
        said: "{\"role\":\"system\"}\n".into(),
        note: String::new(),
        instruction: String::new(),
    };
    let told = place.run(input, CancellationToken::new()).await;
    let AdapterEnd::Failed(failure) = told.end else {
        panic!("{:?}", told.end)
    };
    assert_eq!(failure.kind, FailureKind::CorruptedState);
}

#[tokio::test]
async fn what_a_person_says_follows_the_tools_or_the_last_words() {
    let tool = message(&[tool("t1", "bash", json!({"command": "true"}))], "tool_use");
    let answers = [
        Answer::Stream(tool),
        says("Done.", "end_turn"),
        says("Heard it.", "end_turn"),
    ];
    let place = Place::new(answers).await;
    let input = place.input();
    let say = |number, text: &str| {
        let text = text.to_owned();
        input.hearing.say(Said { number, text });
    };
    say(1, "first");
    let hearing = input.hearing.clone();
    let provider = place.provider.clone();
    // The second one comes while the model says that it is done.
    let second = async {
        while provider.requests.lock().unwrap().len() < 2 {
            tokio::task::yield_now().await;
        }
        let text = "second".to_owned();
        hearing.say(Said { number: 2, text });
    };
    let (told, ()) = tokio::join!(place.run(input.clone(), CancellationToken::new()), second);
    let summary = "Heard it.".to_owned();
    assert_eq!(told.end, AdapterEnd::Done { summary });
    let numbers: Vec<_> = told
        .events
        .iter()
        .filter(|event| matches!(event, EventBody::MessageTold(_)))
        .collect();
    assert_eq!(numbers, [&EventBody::MessageTold(1), &EventBody::MessageTold(2)]);
    let requests = place.requests();
    let said = |request: usize, message: usize| requests[request].1["messages"][message].to_string();
    assert!(
        said(1, 2).contains("tool_result") && said(1, 2).contains("first"),
        "{}",
        said(1, 2)
    );
    assert!(said(2, 3).contains("Done."), "{}", said(2, 3));
    assert!(said(2, 4).contains("second"), "{}", said(2, 4));
    // Another attempt goes on with exactly what was said.
    let lines = String::from_utf8(told.lines).unwrap();
    assert_eq!(
        (lines.matches("first").count(), lines.matches("second").count()),
        (1, 1),
        "{lines}"
    );
}

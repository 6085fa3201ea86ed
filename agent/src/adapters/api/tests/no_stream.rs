//! Successful answers that are no stream: each is read for what it is.

use kage_core::usage::Usage;
use serde_json::{Value, json};

use super::super::*;
use super::kind;
use super::provider::{Answer, Place, Told, adapter_by, error, says, told};

fn whole(content: &Value, stop_reason: &str) -> Answer {
    let message = json!({"type": "message", "role": "assistant", "id": "msg", "model": "claude-sonnet-5-5",
        "content": content, "stop_reason": stop_reason, "usage": {"input_tokens": 10, "output_tokens": 5}});
    Answer::Stream(message.to_string())
}

fn page() -> Answer {
    Answer::Stream("<!doctype html><title>Log in to the guest network</title>".to_owned())
}

fn usages(told: &Told) -> Vec<(&str, Usage)> {
    let usages = told.events.iter().filter_map(|event| match event {
        EventBody::UsageRecorded { model, usage, .. } => Some((model.as_str(), *usage)),
        _ => None,
    });
    usages.collect()
}

#[tokio::test]
async fn a_page_is_met_once_and_then_it_is_a_failure() {
    let place = Place::new([page(), says("Done.", "end_turn")]).await;
    assert!(matches!(place.go().await.end, AdapterEnd::Done { .. }));

    for body in [page(), Answer::Stream("{\"hello\": 1}".to_owned())] {
        let place = Place::new([body.clone(), body]).await;
        let told = place.go().await;
        assert_eq!(
            (kind(&told.end), place.requests().len()),
            (Some(FailureKind::Network), 2)
        );
        let AdapterEnd::Failed(failure) = told.end else {
            panic!("not a failure")
        };
        assert!(failure.message.contains("[adapter.claude-api] base_url"), "{failure}");
        assert!(
            usages(&Told {
                end: AdapterEnd::Stopped,
                ..told
            })
            .is_empty()
        );
    }
}

#[tokio::test]
async fn an_error_with_a_good_status_is_that_error() {
    let overloaded = Answer::Stream(error("overloaded_error").to_string());
    let place = Place::new([overloaded.clone(), overloaded]).await;
    let told = place.go().await;
    assert_eq!(
        (kind(&told.end), place.requests().len()),
        (Some(FailureKind::Overloaded), 2)
    );
    let place = Place::new([Answer::Stream(error("authentication_error").to_string())]).await;
    assert_eq!(kind(&place.go().await.end), Some(FailureKind::Auth));
}

#[tokio::test]
async fn a_whole_answer_is_as_good_as_a_stream() {
    let call = json!([{"type": "text", "text": "Writing."},
        {"type": "tool_use", "id": "t", "name": "write_file", "input": {"path": "a", "content": "x"}}]);
    let done = json!([{"type": "text", "text": "Done."}]);
    let place = Place::new([whole(&call, "tool_use"), whole(&done, "end_turn")]).await;
    let told = place.go().await;
    let summary = "Done.".to_owned();
    assert_eq!(told.end, AdapterEnd::Done { summary });
    assert!(place.folder.path().join("tree/a").exists());
    assert_eq!(told.stdout, "Writing.\n> write_file a\nDone.\n");
    assert_eq!(usages(&told).iter().map(|(_, usage)| usage.output).sum::<u64>(), 10);
}

#[tokio::test]
async fn an_answer_without_counts_used_nobody_knows_how_much() {
    let stream = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/chat/no-usage.sse"));
    let place = Place::new([Answer::Stream(stream.to_owned())]).await;
    let settings = format!(
        "[box]\nkind = 'openai-chat'\nbase_url = '{}/v1'\nmodels = ['phi']",
        place.url
    );
    let told = told(&adapter_by("box", &settings), place.input(), CancellationToken::new()).await;
    assert!(matches!(told.end, AdapterEnd::Done { .. }), "{:?}", told.end);
    // Nobody knows what that server takes for a model of this name.
    assert_eq!(usages(&told), [("box/phi", Usage::UNKNOWN)]);
    assert!(!place.requests()[0].0.contains_key("authorization"));
}

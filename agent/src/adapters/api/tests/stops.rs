//! Every stop reason of a model, and incomplete calls.

use serde_json::{Value, json};

use super::super::*;
use super::kind;
use super::provider::{Answer, Place, Told, message, says, tool};

fn write(id: &str, path: &str) -> Value {
    tool(id, "write_file", json!({"path": path, "content": "x"}))
}

/// A message whose last call ends in the middle of its input.
fn cut(blocks: &[Value], stop_reason: &str) -> Answer {
    let whole = message(blocks, stop_reason);
    let end = r#"\"}","type":"input_json_delta""#;
    let at = whole
        .rfind(end)
        .expect("the last input is an object that ends in a text");
    let mut broken = whole.clone();
    broken.replace_range(at..at + 3, "");
    assert_ne!(broken, whole);
    Answer::Stream(broken)
}

/// The answers to tool calls in the last message of a request.
fn results(place: &Place, request: usize) -> Vec<(String, bool)> {
    let requests = place.requests();
    let messages = requests[request].1["messages"].as_array().unwrap();
    let blocks = messages.last().unwrap()["content"].as_array().unwrap();
    let results = blocks.iter().filter(|block| block["type"] == "tool_result");
    results
        .map(|block| {
            let id = block["tool_use_id"].as_str().unwrap().to_owned();
            (id, block["is_error"] == true)
        })
        .collect()
}

fn is_done(told: &Told) -> bool {
    matches!(told.end, AdapterEnd::Done { .. })
}

#[tokio::test]
async fn whole_calls_are_run_whatever_the_model_stopped_for() {
    for reason in [
        "tool_use",
        "end_turn",
        "stop_sequence",
        "max_tokens",
        "pause_turn",
        "model_context_window_exceeded",
        "something_new",
        "",
    ] {
        let place = Place::new([
            Answer::Stream(message(&[write("t1", "a"), write("t2", "b")], reason)),
            says("Done.", "end_turn"),
        ])
        .await;
        let told = place.go().await;
        assert!(is_done(&told), "{reason}: {:?}", told.end);
        for name in ["a", "b"] {
            assert!(place.folder.path().join("tree").join(name).exists(), "{reason}");
        }
        let answered = [("t1".to_owned(), false), ("t2".to_owned(), false)];
        assert_eq!(results(&place, 1), answered, "{reason}");
    }
}

#[tokio::test]
async fn the_calls_of_an_answer_that_was_refused_are_not_run() {
    let place = Place::new([Answer::Stream(message(&[write("t", "a")], "refusal"))]).await;
    let told = place.go().await;
    assert_eq!(kind(&told.end), Some(FailureKind::ModelRefused));
    assert!(!place.folder.path().join("tree/a").exists());
}

#[tokio::test]
async fn a_call_that_was_cut_is_answered_and_those_before_it_are_run() {
    for reason in ["max_tokens", "tool_use", "end_turn"] {
        let place = Place::new([
            cut(&[write("t1", "a"), write("t2", "b")], reason),
            says("Done.", "end_turn"),
        ])
        .await;
        let told = place.go().await;
        assert!(is_done(&told), "{reason}: {:?}", told.end);
        let tree = place.folder.path().join("tree");
        assert!(tree.join("a").exists() && !tree.join("b").exists(), "{reason}");
        let answered = [("t1".to_owned(), false), ("t2".to_owned(), true)];
        assert_eq!(results(&place, 1), answered, "{reason}");
        // What is sent back is an object all the same.
        let requests = place.requests();
        assert_eq!(requests[1].1["messages"][1]["content"][1]["input"], json!({}));
    }
}

#[tokio::test]
async fn a_few_answers_in_a_row_of_which_nothing_can_be_used_end_it() {
    let thought = json!({"type": "thinking", "signature": "s"});
    let cases = [
        (
            cut(&[write("t", "a")], "max_tokens"),
            FailureKind::InvalidRequest,
            "max_output_tokens",
        ),
        (
            cut(&[write("t", "a")], "tool_use"),
            FailureKind::AdapterCrash,
            "the input of tool calls was broken",
        ),
        // All of its tokens went into a thought.
        (
            Answer::Stream(message(&[thought], "max_tokens")),
            FailureKind::InvalidRequest,
            "max_output_tokens",
        ),
    ];
    for (answer, expected, words) in cases {
        let place = Place::new(vec![answer.clone(); 3]).await;
        let AdapterEnd::Failed(failure) = place.go().await.end else {
            panic!("{words}");
        };
        assert_eq!(failure.kind, expected, "{failure}");
        assert!(failure.message.contains(words), "{failure}");
        assert_eq!(place.requests().len(), 3);

        // One in between that is of use starts the count anew.
        let fine = Answer::Stream(message(&[write("t", "a")], "tool_use"));
        let answers = [answer.clone(), answer.clone(), fine, answer];
        let told = Place::new(answers).await.go().await;
        assert_eq!(kind(&told.end), Some(FailureKind::TurnLimit), "{words}");
    }
}

#[tokio::test]
async fn words_that_were_cut_or_paused_go_on() {
    let place = Place::new([
        says("I begin", "max_tokens"),
        says("thinking", "pause_turn"),
        says("End.", "end_turn"),
    ])
    .await;
    let told = place.go().await;
    assert!(is_done(&told), "{:?}", told.end);
    let requests = place.requests();
    let roles = |index: usize| -> Vec<String> {
        let messages = requests[index].1["messages"].as_array().unwrap();
        messages
            .iter()
            .map(|message| message["role"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(roles(1), ["user", "assistant", "user"]);
    assert_eq!(roles(2).last().map(String::as_str), Some("assistant"));
}

#[tokio::test]
async fn a_block_of_white_space_is_not_sent_back() {
    let blank = json!({"type": "text", "text": "\n\n"});
    let place = Place::new([
        Answer::Stream(message(&[blank, write("t", "a")], "tool_use")),
        says("Done.", "end_turn"),
    ])
    .await;
    assert!(is_done(&place.go().await));
    let said = place.requests()[1].1["messages"][1]["content"].clone();
    assert_eq!(said.as_array().unwrap().len(), 1, "{said}");
    assert_eq!(said[0]["type"], "tool_use");
}

#[tokio::test]
async fn a_session_makes_as_many_turns_as_are_set_and_goes_on_from_there() {
    let step = |n: usize| Answer::Stream(message(&[write(&format!("t{n}"), &format!("f{n}"))], "tool_use"));
    let place = Place::new((0..4).map(step)).await;
    let first = place.go().await;
    let AdapterEnd::Failed(failure) = &first.end else {
        panic!("{:?}", first.end);
    };
    assert_eq!(
        (failure.kind, failure.message.as_str()),
        (
            FailureKind::TurnLimit,
            "the model was not done after 4 turns ([adapter.claude-api] max_turns)"
        )
    );
    assert!(place.folder.path().join("tree/f3").exists(), "the last turn counts");

    // Another attempt has as many again, after all that was said.
    place
        .provider
        .answers
        .lock()
        .unwrap()
        .extend([step(4), says("Done.", "end_turn")]);
    let mut input = place.input();
    input.beginning = Beginning::GoOn {
        said: first.lines.clone().into(),
        note: String::new(),
        instruction: String::new(),
    };
    assert!(is_done(&place.run(input, CancellationToken::new()).await));
    let requests = place.requests();
    assert_eq!(requests[4].1["messages"].as_array().unwrap().len(), 9);
}

#[tokio::test]
async fn what_is_set_is_what_is_asked() {
    let mut place = Place::new([says("Done.", "end_turn")]).await;
    place.settings = "effort = 'low'\nmodels = ['claude-opus-5-5', 'claude-haiku-4-5']\nmax_output_tokens = 64000";
    assert!(is_done(&place.go().await));
    let body = place.requests()[0].1.clone();
    assert_eq!(body["model"], "claude-opus-5-5");
    assert_eq!(body["max_tokens"], 64_000);
    assert_eq!(body["thinking"], json!({"type": "adaptive"}));
    assert_eq!(body["output_config"], json!({"effort": "low"}));

    // A model without that control is asked without it, and people are told.
    place
        .provider
        .answers
        .lock()
        .unwrap()
        .push_back(says("Done.", "end_turn"));
    let mut input = place.input();
    input.model = Some("claude-haiku-4-5".to_owned());
    let told = place.run(input, CancellationToken::new()).await;
    assert!(is_done(&told));
    let body = place.requests()[1].1.clone();
    assert_eq!(
        (&body["thinking"], &body["output_config"]),
        (&Value::Null, &Value::Null)
    );
    assert!(matches!(&told.events[0], EventBody::Warning(warning) if warning.contains("effort")));

    let mut input = place.input();
    input.model = Some("claude-sonnet-5-5".to_owned());
    let told = place.run(input, CancellationToken::new()).await;
    assert_eq!(kind(&told.end), Some(FailureKind::InvalidRequest));
    assert_eq!(place.requests().len(), 2);
}

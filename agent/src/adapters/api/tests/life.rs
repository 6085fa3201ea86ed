//! Signs of life while a model thinks, writes a tool's input, or a tool runs.

use std::convert::Infallible;

use bytes::Bytes;
use futures_util::StreamExt as _;
use kage_core::event::OutputStream;
use serde_json::{Value, json};

use super::super::answer::Draft;
use super::super::*;
use super::provider::{Answer, Place, message, says, tool};
use crate::adapters::port::Report;

fn sse(event: &Value) -> String {
    format!("event: {}\ndata: {event}\n\n", event["type"].as_str().unwrap())
}

/// An answer that thinks in these parts before it says something.
fn thought(part: &Value, parts: usize) -> Vec<String> {
    let whole = message(&[json!({"type": "text", "text": "Done."})], "end_turn");
    let (begin, rest) = whole.split_at(whole.find("event: content_block_start").unwrap());
    let block = json!({"type": "thinking", "thinking": "", "signature": "s"});
    let block = json!({"type": "content_block_start", "index": 9, "content_block": block});
    let mut all = vec![begin.to_owned(), sse(&block)];
    all.extend(std::iter::repeat_n(sse(part), parts));
    all.push(sse(&json!({"type": "content_block_stop", "index": 9})) + rest);
    all
}

const MINUTE: Duration = Duration::from_secs(60);

/// Reads an answer of which one part comes each so many minutes, and counts what is told
/// meanwhile. The idle limit is ten minutes.
async fn told(parts: Vec<String>, minutes: u32) -> (Result<Option<Failure>, Halt>, usize) {
    let caller = super::caller_of(messages::CLAUDE.wire, 10 * MINUTE);
    let bytes = futures_util::stream::iter(parts).then(async |part| {
        tokio::time::sleep(minutes * MINUTE).await;
        Ok::<_, Infallible>(Bytes::from(part))
    });
    let (reporter, mut reports) = Reporter::channel(1000);
    let mut draft = Draft::default();
    let end = caller.read(Box::pin(bytes), &mut draft, &reporter).await;
    drop(reporter);
    let mut told = 0;
    while reports.recv().await.is_some() {
        told += 1;
    }
    (end, told)
}

#[tokio::test]
async fn every_part_of_an_answer_is_life_though_nobody_sees_it() {
    let delta = |delta: Value| json!({"type": "content_block_delta", "index": 9, "delta": delta});
    for part in [
        delta(json!({"type": "thinking_delta", "thinking": "hm"})),
        delta(json!({"type": "input_json_delta", "partial_json": "{"})),
        delta(json!({"type": "signature_delta", "signature": "x"})),
        delta(json!({"type": "something_delta"})),
        json!({"type": "ping"}),
    ] {
        let (few, many) = (told(thought(&part, 1), 0).await, told(thought(&part, 51), 0).await);
        assert!(matches!((few.0, many.0), (Ok(None), Ok(None))));
        assert_eq!(many.1 - few.1, 50, "{part}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_thought_may_take_for_ever_and_pings_alone_end_the_attempt() {
    let thinks =
        json!({"type": "content_block_delta", "index": 9, "delta": {"type": "thinking_delta", "thinking": "hm"}});
    assert!(matches!(told(thought(&thinks, 100), 9).await.0, Ok(None)));

    let ping = json!({"type": "ping"});
    assert!(
        matches!(told(thought(&ping, 2), 9).await.0, Ok(None)),
        "27 minutes of pings"
    );
    let Err(Halt::Failed(failure)) = told(thought(&ping, 3), 9).await.0 else {
        panic!("36 minutes of pings");
    };
    // A repetition of the call would take as long.
    assert_eq!(failure.kind, FailureKind::Timeout);
    assert_eq!(failure.message, "the provider sent nothing but pings for 1800 seconds");
}

#[tokio::test]
async fn what_a_running_tool_prints_is_life() {
    let bash = tool("t", "bash", json!({"command": "echo one; sleep 0.1; echo two"}));
    let place = Place::new([Answer::Stream(message(&[bash], "tool_use")), says("Done.", "end_turn")]).await;
    let adapter = place.adapter();
    let (reporter, mut reports) = Reporter::channel(64);
    let listening = async {
        let (mut signs, mut runs) = (0, false);
        while let Some(report) = reports.recv().await {
            match report {
                Report::Event(EventBody::Activity(text)) => runs = text.starts_with("bash"),
                // What it printed is shown when it has ended.
                Report::Output(OutputStream::Stdout, bytes) if bytes.starts_with(b"one") => runs = false,
                Report::Alive if runs => signs += 1,
                Report::Alive | Report::Event(_) | Report::Output(..) => {}
            }
        }
        signs
    };
    let (end, signs) = tokio::join!(
        adapter.run(place.input(), reporter, CancellationToken::new()),
        listening
    );
    assert!(matches!(end, AdapterEnd::Done { .. }), "{end:?}");
    assert!(signs >= 1);
}

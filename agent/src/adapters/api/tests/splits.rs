//! Every recorded stream of every dialect, cut at every byte.

use std::convert::Infallible;

use bytes::Bytes;
use proptest::prelude::*;

use super::super::answer::{Draft, Progress};
use super::super::*;
use super::caller_of;

macro_rules! fixtures {
    ($($path:literal),* $(,)?) => {
        vec![$(($path, include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/", $path)).as_slice())),*]
    };
}

/// What comes of a stream in these parts, in words.
async fn read(caller: &Caller, parts: [&'static [u8]; 2]) -> String {
    let parts = parts.map(|part| Ok::<_, Infallible>(Bytes::from_static(part)));
    let (reporter, mut reports) = Reporter::channel(1000);
    let mut draft = Draft::default();
    let end = caller
        .read(futures_util::stream::iter(parts), &mut draft, &reporter)
        .await;
    drop(reporter);
    let mut said = Vec::new();
    while let Some(report) = reports.recv().await {
        if let crate::adapters::port::Report::Output(_, bytes) = report {
            said.extend_from_slice(&bytes);
        }
    }
    let end = match end {
        Ok(None) => "whole".to_owned(),
        Ok(Some(failure)) => failure.to_string(),
        Err(_) => "halted".to_owned(),
    };
    let answer = (caller.wire.finish)(draft);
    let said = String::from_utf8(said).unwrap();
    format!("{end}\n{said}\n{:?}\n{}", answer.calls, answer.transcript_line())
}

type Recorded = Vec<(&'static str, &'static [u8])>;

/// The streams of each dialect.
fn recorded() -> Vec<(&'static wire::Wire, Recorded)> {
    vec![
        (messages::CLAUDE.wire, fixtures!["messages/tool_use.sse"]),
        (
            chat::CHAT.wire,
            fixtures![
                "chat/openai.sse",
                "chat/deepseek.sse",
                "chat/openrouter.sse",
                "chat/openrouter-error.sse",
                "chat/groq.sse",
                "chat/vllm.sse",
                "chat/llama-cpp.sse",
                "chat/llama-cpp-overflow.sse",
                "chat/gemini-compatible.sse",
                "chat/mistral.sse",
                "chat/moonshot.sse",
                "chat/no-usage.sse",
                "chat/refusal.sse",
            ],
        ),
        (
            ollama::OLLAMA.wire,
            fixtures![
                "ollama/tools.jsonl",
                "ollama/old.jsonl",
                "ollama/error.jsonl",
                "ollama/full.jsonl"
            ],
        ),
    ]
}

#[tokio::test]
async fn a_stream_is_read_the_same_wherever_it_was_cut() {
    for (wire, streams) in recorded() {
        let caller = caller_of(wire, Duration::from_secs(60));
        for (name, bytes) in streams {
            let whole = read(&caller, [bytes, &[]]).await;
            for at in 1..bytes.len() {
                let (one, two) = bytes.split_at(at);
                assert_eq!(read(&caller, [one, two]).await, whole, "{name} at {at}");
            }
        }
    }
}

proptest! {
    /// What must hold whatever a server writes: nothing panics, and a call that is to be run has an
    /// object for its input.
    #[test]
    fn whatever_a_server_writes_is_read_or_refused(
        stream in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        missing in prop::collection::vec(any::<prop::sample::Index>(), 0..3),
    ) {
        for (wire, streams) in recorded() {
            let mut bytes = streams[stream.index(streams.len())].1.to_vec();
            for (at, byte) in &changes {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let mut lines: Vec<&str> = text.lines().map(|line| line.strip_prefix("data: ").unwrap_or(line)).collect();
            for at in &missing {
                let at = at.index(lines.len());
                lines[at] = "";
            }
            let mut draft = Draft::default();
            for line in &lines {
                drop((wire.refusal)(line.as_bytes()));
                drop((wire.whole)(&mut Draft::default(), line.as_bytes()));
                if let Progress::Complete | Progress::Failed(_) = draft.event(wire.event, line) {
                    break;
                }
            }
            let _whole = (wire.ended)(&mut draft);
            let answer = (wire.finish)(draft);
            for call in answer.calls {
                let object = call.input.map(|input| serde_json::from_str::<serde_json::Map<_, _>>(&input));
                prop_assert!(object.is_none_or(|object: Result<serde_json::Map<String, serde_json::Value>, _>| object.is_ok()));
            }
        }
    }
}

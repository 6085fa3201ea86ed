//! What must hold byte for byte: an answer does not depend on where its stream is cut into pieces, and
//! what the provider sealed or signed goes back as it came.

use std::convert::Infallible;

use futures_util::stream;
use proptest::prelude::*;

use super::super::answer::{Answer, Draft, Progress};
use super::super::frames::Frames;
use super::super::pauses::CacheLife;
use super::super::wire::{Request, Wire};
use super::super::*;

const RESPONSES: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/responses/tool_call.sse"));
const GEMINI: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/gemini/tool_call.sse"));
const MESSAGES: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/messages/tool_use.sse"));

/// The answer of a stream that comes in these pieces, and what was said meanwhile.
fn read(wire: &'static Wire, pieces: &[&[u8]]) -> (Answer, String) {
    let bytes = pieces
        .iter()
        .map(|piece| Ok::<_, Infallible>(bytes::Bytes::copy_from_slice(piece)));
    let mut frames = Frames::new(wire.framing, stream::iter(bytes.collect::<Vec<_>>()));
    let (mut draft, mut said) = (Draft::default(), String::new());
    let reading = async {
        while let Some(frame) = frames.next().await {
            let Some(data) = frame.unwrap() else { continue };
            match draft.event(wire.event, &data) {
                Progress::Text(text) => said.push_str(&text),
                Progress::None | Progress::Ping => {}
                Progress::Complete => return,
                Progress::Failed(failure) => panic!("{failure}"),
            }
        }
        assert!((wire.ended)(&mut draft));
    };
    futures_util::FutureExt::now_or_never(reading).expect("everything is there");
    ((wire.finish)(draft), said)
}

#[test]
fn a_stream_may_be_cut_into_pieces_anywhere() {
    let fixtures = [
        (messages::CLAUDE.wire, MESSAGES),
        (responses::OPENAI.wire, RESPONSES),
        (gemini::GEMINI.wire, GEMINI),
    ];
    for (wire, fixture) in fixtures {
        // The last event may lack the line that ends it.
        let fixture = format!("{}\n\n", fixture.trim_end());
        let bytes = fixture.as_bytes();
        let (whole, said) = read(wire, &[bytes]);
        for at in 0..=bytes.len() {
            let (one, two) = bytes.split_at(at);
            let (answer, words) = read(wire, &[one, two]);
            assert_eq!(
                answer.transcript_line(),
                whole.transcript_line(),
                "{} at {at}",
                wire.name
            );
            assert_eq!(
                (words.as_str(), &answer.calls),
                (said.as_str(), &whole.calls),
                "{} at {at}",
                wire.name
            );
        }
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(
            read(wire, &single).0.transcript_line(),
            whole.transcript_line(),
            "{}",
            wire.name
        );
    }
}

/// A request that goes on after an answer of this stream, went through a transcript on its way or not.
fn next_request(wire: &'static Wire, stream: &str) -> [String; 2] {
    let answer = read(wire, &[stream.as_bytes()]).0;
    let mut conversation = Conversation::new(wire, "task");
    let mut said = conversation.unwritten().join("\n");
    said.push_str(&format!("\n{}\n", answer.transcript_line()));
    conversation.model(&answer);
    conversation.user("go on");
    let resumed = Conversation::resumed(wire, said.as_bytes(), "go on").unwrap();
    let asked = Asked {
        model: "m".to_owned(),
        max_output: TURNS,
        output_is_known: true,
        thinking: None,
        effort: None,
        compact_at: None,
        context: None,
    };
    let tools = (wire.tools)(&[]);
    [&conversation, &resumed].map(|conversation| {
        let body = (wire.body)(&Request {
            asked: &asked,
            task: "t",
            tools: &tools,
            system: &[],
            turns: conversation.turns(),
            cache: CacheLife::default(),
        });
        String::from_utf8(body).unwrap()
    })
}

/// A text as JSON, with characters escaped that need not be.
fn escaped() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        "[a-zA-Z0-9+/=._ -]{0,12}",
        Just("\\/".to_owned()),
        Just("\\u003d".to_owned()),
        Just("\\u00E9".to_owned()),
        Just("\\\"".to_owned()),
        Just("\u{e9}\u{1f980}".to_owned()),
        Just("\\ud83e\\udd80".to_owned()),
    ];
    proptest::collection::vec(piece, 1..8).prop_map(|pieces| format!("\"x{}\"", pieces.concat()))
}

proptest! {
    #[test]
    fn a_seal_goes_back_as_it_came(seal in escaped(), summary in escaped()) {
        let thought = format!(
            r#"{{"encrypted_content":{seal},"summary":[{{"text":{summary}, "type":"summary_text"}}],"type":"reasoning"}}"#
        );
        let message = r#"{"content":[{"text":"x","type":"output_text"}],"role":"assistant","type":"message"}"#;
        let done = |index, item: &str| format!("data: {{\"type\":\"response.output_item.done\",\"output_index\":{index},\"item\":{item}}}\n\n");
        let end = r#"data: {"type":"response.completed","response":{"status":"completed"}}"#;
        let stream = format!("{}{}{end}\n\n", done(0, &thought), done(1, message));
        for body in next_request(responses::OPENAI.wire, &stream) {
            prop_assert!(body.contains(&thought), "{}", body);
        }
    }

    #[test]
    fn a_signature_goes_back_on_its_part(signature in escaped(), on_text in escaped(), args in escaped()) {
        let call = format!(
            r#"{{"functionCall":{{"name":"list","args":{{"path": {args}}},"id":"f"}},"thoughtSignature":{signature}}}"#
        );
        let text = format!(r#"{{"text":"","thoughtSignature":{on_text}}}"#);
        let stream = format!(
            "data: {{\"candidates\":[{{\"content\":{{\"parts\":[{{\"text\":\"so\"}},{call}]}}}}]}}\r\n\r\n\
             data: {{\"candidates\":[{{\"content\":{{\"parts\":[{text}]}},\"finishReason\":\"STOP\"}}]}}\r\n\r\n"
        );
        for body in next_request(gemini::GEMINI.wire, &stream) {
            let parts = format!(r#"{{"text":"so"}},{call},{text}"#);
            prop_assert!(body.contains(&parts), "{}", body);
        }
    }
}

//! Answers as providers write them, in every pieces they may come in, and the faults that others' meters had.

use proptest::prelude::*;
use serde_json::json;

use super::*;

macro_rules! fixture {
    ($path:literal) => {
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/", $path))
    };
}

/// An answer of a provider, and what is on its bill.
#[derive(Clone, Copy)]
struct Recorded {
    wire: MeteredWire,
    text: &'static str,
    /// As [`classes`] has them; `None`: the answer tells no counts.
    classes: Option<[u64; 5]>,
    end: AnswerEnd,
}

impl Recorded {
    const fn whole(wire: MeteredWire, text: &'static str, classes: [u64; 5]) -> Self {
        Self {
            wire,
            text,
            classes: Some(classes),
            end: AnswerEnd::Whole,
        }
    }

    const fn uncounted(wire: MeteredWire, text: &'static str, end: AnswerEnd) -> Self {
        Self {
            wire,
            text,
            classes: None,
            end,
        }
    }
}

const RECORDED: [Recorded; 10] = [
    Recorded::whole(
        MeteredWire::Messages,
        fixture!("messages/tool_use.sse"),
        [12, 1500, 0, 300, 57],
    ),
    // What is read from a cache and written to one is among its input of 2100.
    Recorded::whole(
        MeteredWire::Responses,
        fixture!("responses/tool_call.sse"),
        [300, 1500, 0, 300, 57],
    ),
    // Of a prompt of 2100; 20 tokens of thoughts are beside the 37 of the candidates.
    Recorded::whole(
        MeteredWire::Gemini,
        fixture!("gemini/tool_call.sse"),
        [1800, 0, 0, 300, 57],
    ),
    // From here on: what is read from a cache and written to one is among the tokens of the prompt, and thoughts are
    // among those of the completion.
    Recorded::whole(MeteredWire::Chat, fixture!("chat/openai.sse"), [476, 0, 0, 1024, 57]),
    Recorded::whole(MeteredWire::Chat, fixture!("chat/deepseek.sse"), [26, 0, 0, 64, 20]),
    Recorded::whole(
        MeteredWire::Chat,
        fixture!("chat/openrouter.sse"),
        [150, 50, 0, 100, 30],
    ),
    Recorded::uncounted(
        MeteredWire::Chat,
        fixture!("chat/openrouter-error.sse"),
        AnswerEnd::Failed(FailureKind::Network),
    ),
    Recorded::whole(MeteredWire::Chat, fixture!("chat/groq.sse"), [70, 0, 0, 0, 9]),
    Recorded::whole(MeteredWire::Chat, fixture!("chat/moonshot.sse"), [9, 0, 0, 10, 21]),
    Recorded::uncounted(MeteredWire::Chat, fixture!("chat/no-usage.sse"), AnswerEnd::Whole),
];

/// What is counted of an answer in these pieces; `whole`: its body ends after them.
fn count(wire: MeteredWire, pieces: &[&[u8]], whole: bool) -> Counted {
    let mut counting = Counting::new(wire);
    for piece in pieces {
        counting.take(&Bytes::copy_from_slice(piece));
    }
    if whole {
        counting.finish();
    }
    counting.counted()
}

fn stream(events: &[Value]) -> String {
    let events = events.iter().map(|event| {
        let kind = event.get("type").and_then(Value::as_str);
        let name = kind.map_or_else(String::new, |kind| format!("event: {kind}\n"));
        format!("{name}data: {event}\n\n")
    });
    events.collect()
}

fn counted(wire: MeteredWire, events: &[Value], whole: bool) -> Counted {
    count(wire, &[stream(events).as_bytes()], whole)
}

/// Input, cache writes of five minutes and an hour, cache reads, output.
fn classes(usage: Usage) -> [u64; 5] {
    [
        usage.input,
        usage.cache_write_5m,
        usage.cache_write_1h,
        usage.cache_read,
        usage.output,
    ]
}

#[test]
fn the_recorded_answers_are_counted_by_class() {
    for Recorded {
        wire,
        text,
        classes: expected,
        end,
    } in RECORDED
    {
        let counted = count(wire, &[text.as_bytes()], true);
        assert_eq!(counted.end, end, "{wire:?}: {text}");
        match expected {
            Some(expected) => {
                assert_eq!(classes(counted.usage), expected, "{wire:?}: {text}");
                assert!(!counted.usage.unreported.of_the_bill(), "{wire:?}: {text}");
            }
            None => assert_eq!(counted.usage, Usage::UNKNOWN, "{wire:?}: {text}"),
        }
        assert!(!counted.model.is_empty() && !counted.id.is_empty(), "{counted:?}");
    }
}

#[test]
fn an_answer_is_counted_the_same_wherever_it_is_split() {
    for Recorded { wire, text, .. } in RECORDED {
        let bytes = text.as_bytes();
        let whole = count(wire, &[bytes], true);
        for at in 1..bytes.len() {
            let (one, two) = bytes.split_at(at);
            assert_eq!(count(wire, &[one, two], true), whole, "{wire:?} at {at}");
        }
        let each: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(count(wire, &each, true), whole, "{wire:?} byte by byte");
    }
}

#[test]
fn counts_never_fall_while_an_answer_comes() {
    for Recorded { wire, text, .. } in RECORDED {
        let mut counting = Counting::new(wire);
        let mut before = 0;
        for piece in text.as_bytes().chunks(7) {
            counting.take(&Bytes::copy_from_slice(piece));
            let now = counting.counted().usage.output;
            assert!(now >= before, "{wire:?}: {now} after {before}");
            before = now;
        }
    }
}

fn start(usage: &Value) -> Value {
    json!({"type": "message_start", "message": {"id": "msg_1", "model": "claude-x", "usage": usage}})
}

fn delta(usage: &Value) -> Value {
    json!({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": usage})
}

fn stop() -> Value {
    json!({"type": "message_stop"})
}

const MESSAGES: MeteredWire = MeteredWire::Messages;

/// one-api-pro#13: both were added.
#[test]
fn counts_at_the_start_and_in_the_delta_are_one_count() {
    let start = start(&json!({"input_tokens": 900, "cache_read_input_tokens": 50, "output_tokens": 3}));
    let delta = delta(&json!({"input_tokens": 900, "cache_read_input_tokens": 50, "output_tokens": 70}));
    let counted = counted(MESSAGES, &[start.clone(), start, delta.clone(), delta, stop()], true);
    assert_eq!(
        (classes(counted.usage), counted.end),
        ([900, 0, 0, 50, 70], AnswerEnd::Whole)
    );
}

/// paseo#4294: the counts of the start won.
#[test]
fn zeros_at_the_start_are_raised_by_the_delta() {
    let zeros =
        json!({"input_tokens": 0, "cache_read_input_tokens": 0, "cache_creation_input_tokens": 0, "output_tokens": 0});
    let totals = json!({"input_tokens": 812, "cache_read_input_tokens": 64, "cache_creation_input_tokens": 32, "output_tokens": 9});
    let counted = counted(MESSAGES, &[start(&zeros), delta(&totals), stop()], true);
    assert_eq!(classes(counted.usage), [812, 32, 0, 64, 9]);
}

/// The other way round: a delta that has forgotten what the start said.
#[test]
fn zeros_in_the_delta_do_not_undo_the_start() {
    let totals = json!({"input_tokens": 812, "cache_read_input_tokens": 64, "output_tokens": 1,
        "cache_creation_input_tokens": 32, "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 32}});
    let zeros =
        json!({"input_tokens": 0, "cache_read_input_tokens": 0, "cache_creation_input_tokens": 0, "output_tokens": 9});
    let counted = counted(MESSAGES, &[start(&totals), delta(&zeros), stop()], true);
    assert_eq!(classes(counted.usage), [812, 0, 32, 64, 9]);
}

/// CLIProxyAPI#5617, litellm#34498, cmux#11283: what was cached was lost in streams.
#[test]
fn what_was_cached_stays_when_later_counts_leave_it_out() {
    let first = json!({"input_tokens": 5, "cache_creation_input_tokens": 2000, "cache_read_input_tokens": 9000, "output_tokens": 1});
    let later = json!({"output_tokens": 40});
    let of = counted(MESSAGES, &[start(&first), delta(&later), stop()], true);
    assert_eq!(classes(of.usage), [5, 2000, 0, 9000, 40]);

    let chunk = |usage: Value| json!({"candidates": [{"content": {"parts": [{"text": "x"}]}}], "usageMetadata": usage, "modelVersion": "g"});
    let mut end = chunk(json!({"promptTokenCount": 100, "candidatesTokenCount": 8, "totalTokenCount": 108}));
    end["candidates"][0]["finishReason"] = json!("STOP");
    let first = chunk(json!({"promptTokenCount": 100, "cachedContentTokenCount": 60, "candidatesTokenCount": 2}));
    let of = counted(MeteredWire::Gemini, &[first, end], true);
    assert_eq!((classes(of.usage), of.end), ([40, 0, 0, 60, 8], AnswerEnd::Whole));

    let chunk = |usage: Value| json!({"id": "c", "model": "m", "choices": [{"index": 0, "delta": {"content": "x"}}], "usage": usage});
    let first =
        chunk(json!({"prompt_tokens": 100, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 64}}));
    let mut end = chunk(json!({"prompt_tokens": 100, "completion_tokens": 9}));
    end["choices"][0]["finish_reason"] = json!("stop");
    let of = counted(MeteredWire::Chat, &[first, end], true);
    assert_eq!((classes(of.usage), of.end), ([36, 0, 0, 64, 9], AnswerEnd::Whole));
}

#[test]
fn a_cut_answer_keeps_what_was_told_and_says_that_it_is_not_all() {
    let usage = json!({"input_tokens": 700, "cache_read_input_tokens": 11, "output_tokens": 1});
    let of = counted(MESSAGES, &[start(&usage)], true);
    assert_eq!((classes(of.usage), of.end), ([700, 0, 0, 11, 1], AnswerEnd::Cut));
    assert!(of.usage.unreported.contains(UsageClass::Output), "{:?}", of.usage);
    assert!(!of.usage.unreported.contains(UsageClass::Input), "{:?}", of.usage);

    // Where nothing was told, nothing is known, which is not zero.
    let created = json!({"type": "response.created", "response": {"id": "r", "model": "gpt"}});
    let of = counted(MeteredWire::Responses, &[created], false);
    assert_eq!(
        (of.usage, of.end, of.model.as_str()),
        (Usage::UNKNOWN, AnswerEnd::Cut, "gpt")
    );
    let half: &[u8] = br#"{"object":"response","usage":{"input_tok"#;
    assert_eq!(count(MeteredWire::Responses, &[half], true).usage, Usage::UNKNOWN);
}

#[test]
fn an_error_in_the_stream_keeps_what_was_told_before_it() {
    let usage = json!({"input_tokens": 700, "output_tokens": 1});
    let error = json!({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}});
    let of = counted(MESSAGES, &[start(&usage), error.clone()], true);
    assert_eq!(classes(of.usage), [700, 0, 0, 0, 1]);
    assert_eq!(of.end, AnswerEnd::Failed(FailureKind::Overloaded));

    let mut counting = Counting::new(MESSAGES);
    counting.take(&Bytes::from(stream(&[error])));
    counting.finish();
    assert!(!counting.began(), "nothing of an answer came");
}

#[test]
fn an_event_that_is_not_understood_ends_no_count() {
    let usage = json!({"input_tokens": 700, "output_tokens": 1});
    let odd = json!({"type": "content_block_delta", "index": 7, "delta": {"type": "text_delta", "text": "x"}});
    let totals = json!({"output_tokens": 25});
    let of = counted(MESSAGES, &[start(&usage), odd, delta(&totals), stop()], true);
    assert_eq!((classes(of.usage), of.end), ([700, 0, 0, 0, 25], AnswerEnd::Whole));
    assert!(!of.usage.unreported.of_the_bill(), "{:?}", of.usage);
}

#[test]
fn lines_that_are_no_event_and_a_missing_end_lose_no_count() {
    let usage = json!({"input_tokens": 700, "output_tokens": 1});
    let (start, delta) = (start(&usage), delta(&json!({"output_tokens": 25})));
    let text = format!(
        "data: {start}\n\nnonsense\nx-field: 1\n: comment\nevent: a\nevent: b\ndata: {delta}\r\n\r\ndata: {}",
        stop()
    );
    for at in 1..text.len() {
        let (one, two) = text.as_bytes().split_at(at);
        let of = count(MESSAGES, &[one, two], true);
        assert_eq!(
            (classes(of.usage), of.end),
            ([700, 0, 0, 0, 25], AnswerEnd::Whole),
            "{at}"
        );
    }
}

#[test]
fn answers_without_a_stream_are_counted_too() {
    let usage = json!({"input_tokens": 5, "cache_creation_input_tokens": 7, "output_tokens": 9});
    let message =
        json!({"type": "message", "id": "msg", "model": "m", "content": [], "stop_reason": "end_turn", "usage": usage});
    let response = json!({"object": "response", "id": "r", "model": "m", "status": "completed", "output": [],
        "usage": {"input_tokens": 12, "input_tokens_details": {"cached_tokens": 7}, "output_tokens": 9}});
    let shortened = json!({"object": "response.compaction", "id": "r", "output": [], "model": "m",
        "usage": {"input_tokens": 12, "input_tokens_details": {"cached_tokens": 7}, "output_tokens": 9}});
    let completion = json!({"id": "c", "model": "m", "choices": [{"index": 0, "finish_reason": "stop", "message": {"content": "x"}}],
        "usage": {"prompt_tokens": 12, "completion_tokens": 9, "prompt_tokens_details": {"cached_tokens": 7}}});
    let generated = json!({"candidates": [{"content": {"parts": [{"text": "x"}]}, "finishReason": "STOP"}], "modelVersion": "m",
        "usageMetadata": {"promptTokenCount": 12, "cachedContentTokenCount": 7, "candidatesTokenCount": 9}});
    for (wire, body, expected) in [
        (MESSAGES, message, [5, 7, 0, 0, 9]),
        (MeteredWire::Responses, response, [5, 0, 0, 7, 9]),
        (MeteredWire::Responses, shortened, [5, 0, 0, 7, 9]),
        (MeteredWire::Chat, completion, [5, 0, 0, 7, 9]),
        (MeteredWire::Gemini, generated, [5, 0, 0, 7, 9]),
    ] {
        let text = body.to_string();
        let (one, two) = text.as_bytes().split_at(text.len() / 2);
        let of = count(wire, &[b" \n", one, two], true);
        assert_eq!((classes(of.usage), of.end), (expected, AnswerEnd::Whole), "{text}");
        assert_eq!(of.model, "m", "{text}");
    }
    // A page of something in between has no counts.
    let page = count(MESSAGES, &[b"<html>", b"\"usage\": {\"input_tokens\": 5}"], true);
    assert_eq!((page.usage, page.end), (Usage::UNKNOWN, AnswerEnd::Cut));
}

#[test]
fn an_answer_that_reached_its_limit_is_known() {
    let usage = json!({"input_tokens": 5, "output_tokens": 4096});
    let delta =
        json!({"type": "message_delta", "delta": {"stop_reason": "max_tokens"}, "usage": {"output_tokens": 4096}});
    let mut counting = Counting::new(MESSAGES);
    counting.take(&Bytes::from(stream(&[start(&usage), delta, stop()])));
    counting.finish();
    assert!(counting.was_limited());
}

proptest! {
    /// Whatever a server writes and however it is split: nothing panics, and the pieces do not matter.
    #[test]
    fn odd_bytes_are_counted_the_same_in_any_pieces(
        which in 0..RECORDED.len(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let Recorded { wire, text, .. } = RECORDED[which];
        let mut bytes = text.as_bytes().to_vec();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len())).collect();
        at.extend([0, bytes.len()]);
        at.sort_unstable();
        let pieces: Vec<&[u8]> = at.windows(2).map(|ends| &bytes[ends[0]..ends[1]]).collect();
        prop_assert_eq!(count(wire, &pieces, true), count(wire, &[&bytes], true));
    }
}

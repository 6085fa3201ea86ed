//! Programs that print one JSON object per line: cuts their output into events, passes each line on as
//! transcript, and leaves its meaning to the format. Lines that are no objects are text that the
//! program, or a library of it, printed. Nothing here fails.

use std::fmt::Debug;

use bytes::Bytes;
use kage_core::event::{EventBody, OutputStream};
use kage_core::time::LocalTime;
use kage_core::tool_uses::ToolUses;
use kage_core::usage::{PicoUsd, Usage};
use serde_json::Value;

use super::super::lines::Lines;
use super::{Outcome, Reader, of_line};
use crate::adapters::port::Report;
use crate::process::excerpt::one_line;

/// The longest line that is understood.
pub(super) const MAX_LINE: usize = 16 << 20;
/// What a tool without a name is called.
pub(super) const UNNAMED: &str = "tool";
/// Characters of a line for people.
pub(super) const ACTIVITY: usize = 200;

/// The events of one format.
pub(super) trait Events: Debug + Default + Send + Sync {
    /// Whether an event is left out of the transcript: parts of messages that follow as a whole.
    fn is_part(_event: &Value) -> bool {
        false
    }

    /// Reads one event.
    fn event(&mut self, event: &Value, reports: &mut Vec<Report>);

    /// Reads the file in which the program counted.
    fn usage_file(&mut self, _bytes: &[u8]) -> Vec<Report> {
        Vec::new()
    }

    /// The session goes on from these lines of its file.
    fn resumed(&mut self, _said: &[u8]) {}

    /// The id that the program gave the conversation.
    fn conversation(&self) -> Option<&str> {
        None
    }

    /// The usage that no event reported, after the last one.
    fn unreported(&mut self) -> Vec<Report>;

    /// The end of the run, as its events report it.
    fn outcome(&self, heard: LocalTime) -> Outcome;
}

/// Reads the events of one run.
#[derive(Debug)]
pub(super) struct EventLines<E> {
    lines: Lines,
    events: E,
}

impl<E: Events + 'static> EventLines<E> {
    /// A reader at the beginning of a run's output.
    pub(super) fn reader() -> Box<dyn Reader> {
        Box::new(Self {
            lines: Lines::new(MAX_LINE),
            events: E::default(),
        })
    }

    fn line(&mut self, line: &[u8]) -> Vec<Report> {
        let event = match serde_json::from_slice::<Value>(line) {
            Ok(event @ Value::Object(_)) => event,
            Ok(_) | Err(_) => return vec![readable(&String::from_utf8_lossy(line))],
        };
        if E::is_part(&event) {
            return Vec::new();
        }
        let mut raw = line.to_vec();
        raw.push(b'\n');
        let mut reports = vec![Report::Output(OutputStream::Transcript, raw.into())];
        self.events.event(&event, &mut reports);
        reports
    }
}

impl<E: Events + 'static> Reader for EventLines<E> {
    fn read(&mut self, bytes: Bytes) -> Vec<Report> {
        let lines = self.lines.push(&bytes).into_iter();
        lines.flat_map(|line| of_line(line, |line| self.line(line))).collect()
    }

    fn finish(&mut self) -> Vec<Report> {
        let last = self.lines.finish();
        let mut reports = last.map_or_else(Vec::new, |line| of_line(line, |line| self.line(line)));
        reports.extend(self.events.unreported());
        reports
    }

    fn usage_file(&mut self, bytes: &[u8]) -> Vec<Report> {
        self.events.usage_file(bytes)
    }

    fn resumed(&mut self, said: &[u8]) {
        self.events.resumed(said);
    }

    fn conversation(&self) -> Option<&str> {
        self.events.conversation()
    }

    fn outcome(&self, heard: LocalTime) -> Outcome {
        self.events.outcome(heard)
    }
}

/// The JSON values of the lines of a session file; other lines are left out.
pub(super) fn values_of(said: &[u8]) -> impl Iterator<Item = Value> {
    said.split(|byte| *byte == b'\n')
        .filter_map(|line| serde_json::from_slice(line).ok())
}

/// The text under a key.
pub(super) fn text<'a>(value: &'a Value, key: &str) -> Option<&'a str> {
    value.get(key)?.as_str()
}

/// The text at a JSON pointer.
pub(super) fn text_at<'a>(value: &'a Value, pointer: &str) -> Option<&'a str> {
    value.pointer(pointer)?.as_str()
}

/// The number at a JSON pointer.
pub(super) fn number_at(value: &Value, pointer: &str) -> Option<u64> {
    value.pointer(pointer)?.as_u64()
}

/// One line for people.
pub(super) fn activity(line: &str) -> Report {
    Report::Event(EventBody::Activity(one_line(line, ACTIVITY)))
}

/// Lines of the readable log.
pub(super) fn readable(line: &str) -> Report {
    Report::Output(OutputStream::Stdout, Bytes::from(format!("{line}\n")))
}

/// Words of the model. Returns false when there are none.
pub(super) fn said(words: &str, reports: &mut Vec<Report>) -> bool {
    if words.trim().is_empty() {
        return false;
    }
    reports.push(readable(words));
    reports.push(activity(words));
    true
}

/// A tool's call.
pub(super) fn called(line: &str, reports: &mut Vec<Report>) {
    reports.push(readable(&format!("> {line}")));
    reports.push(activity(line));
}

/// Words of a tool that failed.
pub(super) fn tool_failed(words: &str, reports: &mut Vec<Report>) {
    reports.push(readable(&format!("  failed: {}", one_line(words, ACTIVITY))));
}

/// A tool's call in one line: its name, and what its input tells most about it.
pub(super) fn describe(name: &str, input: Option<&Value>) -> String {
    let telling = [
        "file_path",
        "filePath",
        "absolute_path",
        "command",
        "pattern",
        "path",
        "description",
        "url",
        "query",
    ];
    match input.and_then(|input| telling.iter().find_map(|key| text(input, key))) {
        Some(about) => one_line(&format!("{name} {about}"), ACTIVITY),
        None => name.to_owned(),
    }
}

/// The usage of a model since the last report of it. A call that was answered has used something: all zero
/// means that nobody counted.
pub(super) fn used(model: &str, usage: Usage, reported: Option<PicoUsd>, tools: ToolUses) -> Report {
    let usage = if usage.is_zero() { Usage::UNKNOWN } else { usage };
    Report::Event(EventBody::UsageRecorded {
        model: model.to_owned(),
        usage,
        reported,
        metered: false,
        tools: Some(tools),
        call: None,
    })
}

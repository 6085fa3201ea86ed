//! The output formats of programs. Each format is a file and a line in [`FORMATS`]; a manifest
//! names it as its `parser`.

mod event_lines;
mod text;
mod aider_text;
mod claude_stream_json;
mod cline_json;
mod codex_json;
mod copilot_json;
mod gemini_stream_json;
mod kimi_stream_json;
mod opencode_json;
mod qwen_stream_json;

use std::collections::BTreeMap;
use std::fmt::Debug;

use bytes::Bytes;
use kage_core::event::{EventBody, OutputStream};
use kage_core::failure::Failure;
use kage_core::time::{LocalTime, Timestamp};
use serde::{Deserialize, Deserializer, de};

use super::lines::Line;
use crate::adapters::port::Report;

/// Every format. The first is that of a manifest that names none.
#[rustfmt::skip] // A line each.
static FORMATS: &[Format] = &[
    text::FORMAT,
    aider_text::FORMAT,
    claude_stream_json::FORMAT,
    cline_json::FORMAT,
    codex_json::FORMAT,
    copilot_json::FORMAT,
    gemini_stream_json::FORMAT,
    kimi_stream_json::FORMAT,
    opencode_json::FORMAT,
    qwen_stream_json::FORMAT,
];

/// The format of a program's output.
#[derive(Debug)]
pub struct Format {
    /// The name in manifests.
    pub name: &'static str,
    /// The program that prints it, as rules for failures name it; empty: any.
    pub family: &'static str,
    /// Which words of the output the rules of a manifest are about.
    pub(super) rules: Rules,
    /// Begins to read a run's output.
    pub(super) reader: fn() -> Box<dyn Reader>,
}

/// Which words of a program's output the rules of a manifest are about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rules {
    Everything,
    /// Only its own error messages, not answers of models and output of tools.
    OwnWords,
}

/// Reads the output of one run.
pub(super) trait Reader: Debug + Send + Sync {
    /// Reads the next part of the output, cut at any byte, and returns reports.
    fn read(&mut self, bytes: Bytes) -> Vec<Report>;

    /// Reads the file in which the program counted, before the end of the output is read.
    fn usage_file(&mut self, _bytes: &[u8]) -> Vec<Report> {
        Vec::new()
    }

    /// Reads the end of the output.
    fn finish(&mut self) -> Vec<Report>;

    /// The session goes on from these lines of its file: what they count was reported before.
    fn resumed(&mut self, _said: &[u8]) {}

    /// The id that the program gave the conversation, when its output tells it.
    fn conversation(&self) -> Option<&str> {
        None
    }

    /// The end that the program itself reports.
    fn outcome(&self, heard: LocalTime) -> Outcome;
}

/// The end of a program, as the program reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The exit code decides; this is the last line of output.
    ExitCode(String),
    /// The program reports success.
    Done(String),
    /// The program reports a failure. The kind `Unknown` leaves the classification open.
    Failed(Failure),
    /// The program reported no end, although its format requires it.
    Missing,
}

/// A format as manifests name it.
#[derive(Debug, Clone, Copy)]
pub struct FormatName(pub &'static Format);

impl Default for FormatName {
    fn default() -> Self {
        Self(&FORMATS[0])
    }
}

impl<'de> Deserialize<'de> for FormatName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        let found = FORMATS.iter().find(|format| format.name == name);
        found.map(Self).ok_or_else(|| {
            let names: Vec<_> = FORMATS.iter().map(|format| format.name).collect();
            de::Error::custom(format!("{name:?} is not a parser; there are {}", names.join(", ")))
        })
    }
}

/// Reads one line of a line-based format; an empty line has no reports.
fn of_line(line: Line, read: impl FnOnce(&[u8]) -> Vec<Report>) -> Vec<Report> {
    match line {
        Line::Whole(line) if line.is_empty() => Vec::new(),
        Line::Whole(line) => read(&line),
        Line::TooLong { bytes } => vec![Report::Event(EventBody::Warning(format!(
            "a line of {bytes} bytes in the program's output was dropped"
        )))],
    }
}

/// The names of the formats that have events.
pub(super) fn formats_of_events() -> impl Iterator<Item = &'static str> {
    let formats = FORMATS.iter().filter(|format| format.rules == Rules::OwnWords);
    formats.map(|format| format.name)
}

/// Reads an output at once and in pieces of one size; both must give the same reports and the same
/// end. Returns the reports.
pub(super) fn in_any_pieces(format: &str, bytes: &[u8], size: usize) -> BTreeMap<OutputStream, Vec<u8>> {
    let format = FORMATS.iter().find(|known| known.name == format);
    let format = format.expect("the decoders name formats that there are");
    let read = |size: usize| {
        let mut reader = (format.reader)();
        let pieces = bytes.chunks(size).map(Bytes::copy_from_slice);
        let mut reports: Vec<Report> = pieces.flat_map(|piece| reader.read(piece)).collect();
        reports.extend(reader.finish());
        let mut passed = BTreeMap::<OutputStream, Vec<u8>>::new();
        for report in reports {
            if let Report::Output(stream, bytes) = report {
                passed.entry(stream).or_default().extend_from_slice(&bytes);
            }
        }
        let heard = LocalTime::utc(Timestamp::from_millis(1_790_000_000_000));
        (passed, reader.outcome(heard))
    };
    let whole = read(bytes.len().max(1));
    assert_eq!(read(size.max(1)), whole);
    whole.0
}

#[cfg(test)]
mod tests;

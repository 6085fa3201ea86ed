//! The readable log of a session: what the model said, by whole lines, and what its tools did. Parts of a message
//! end anywhere.

use bytes::Bytes;
use kage_core::event::{EventBody, OutputStream};
use serde_json::Value;

use crate::adapters::port::Report;
use crate::process::excerpt::one_line;

/// Characters of a line for people.
const SHOWN: usize = 200;
/// Bytes of a line that has not ended. Then so much of it is shown as a line of its own.
const LONGEST: usize = 8 << 10;
/// Bytes of a message that are kept for the summary of the session.
const KEPT: usize = 64 << 10;

/// One line for people.
pub(super) fn activity(line: &str) -> Report {
    Report::Event(EventBody::Activity(one_line(line, SHOWN)))
}

/// Lines of the log.
pub(super) fn readable(line: &str) -> Report {
    Report::Output(OutputStream::Stdout, Bytes::from(format!("{line}\n")))
}

/// The model's message, as its parts arrive.
#[derive(Debug, Default)]
pub(super) struct Speech {
    words: String,
    /// How many bytes of them are in the log.
    shown: usize,
}

impl Speech {
    /// Adds a part; shows whole lines, and a long one in pieces.
    pub(super) fn push(&mut self, part: &str, reports: &mut Vec<Report>) {
        let before = self.words.len();
        self.words.push_str(part);
        // What was there before has no end of a line that is not shown.
        if let Some(end) = part.rfind('\n') {
            self.show_until(before + end, reports);
        }
        while self.words.len() - self.shown > LONGEST {
            let end = self.words.floor_char_boundary(self.shown + LONGEST);
            self.show_until(end, reports);
        }
        if self.words.len() > 2 * KEPT {
            let cut = self.words.ceil_char_boundary(self.shown.min(self.words.len() - KEPT));
            self.words.drain(..cut);
            self.shown -= cut.min(self.shown);
        }
    }

    /// Shows the rest.
    pub(super) fn show(&mut self, reports: &mut Vec<Report>) {
        self.show_until(self.words.len(), reports);
    }

    /// Another message begins.
    pub(super) fn next(&mut self, reports: &mut Vec<Report>) {
        self.show(reports);
        self.words.clear();
        self.shown = 0;
    }

    /// Its words so far.
    pub(super) fn words(&self) -> &str {
        self.words.trim()
    }

    fn show_until(&mut self, end: usize, reports: &mut Vec<Report>) {
        let new = self.words[self.shown..end].trim_matches('\n');
        if !new.trim().is_empty() {
            reports.push(readable(new));
            reports.push(activity(new));
        }
        self.shown = end;
    }
}

/// A call of a tool, as far as the agent told of it.
#[derive(Debug, Default)]
pub(super) struct ToolCall {
    title: String,
    /// What it is about: a file, a command.
    about: String,
    name: String,
    kind: String,
    shown: bool,
    /// It may be changing files.
    pub(super) open: bool,
}

impl ToolCall {
    /// Takes over what an update has.
    pub(super) fn update(&mut self, update: &Value) {
        let text = |pointer: &str| update.pointer(pointer).and_then(Value::as_str);
        let set = |place: &mut String, told: Option<&str>| {
            if let Some(told) = told.filter(|told| !told.is_empty()) {
                told.clone_into(place);
            }
        };
        set(&mut self.title, text("/title"));
        set(&mut self.kind, text("/kind"));
        set(
            &mut self.name,
            text("/name").or_else(|| text("/_meta/claudeCode/toolName")),
        );
        let telling = ["command", "file_path", "filePath", "path", "pattern", "query", "url"];
        let input = telling
            .into_iter()
            .find_map(|key| update.get("rawInput")?.get(key)?.as_str());
        set(&mut self.about, input.or_else(|| text("/locations/0/path")));
    }

    /// The name that it is counted under.
    pub(super) fn name(&self) -> &str {
        let named = [self.name.as_str(), self.kind.as_str()];
        named
            .into_iter()
            .find(|name| !name.is_empty())
            .unwrap_or("a tool without a name")
    }

    /// The call in one line.
    pub(super) fn line(&self) -> String {
        let title = if self.title.is_empty() {
            self.name()
        } else {
            &self.title
        };
        let file = self.about.rsplit('/').next().unwrap_or_default();
        match self.about.as_str() {
            "" => title.to_owned(),
            about if title.contains(about) || title.contains(file) => title.to_owned(),
            about => format!("{title} {about}"),
        }
    }

    /// Shows it once: as soon as it is known what it is about, or when it ends.
    pub(super) fn show(&mut self, ended: bool, reports: &mut Vec<Report>) {
        if !self.shown && (ended || !self.about.is_empty()) {
            self.shown = true;
            let line = one_line(&self.line(), SHOWN);
            reports.push(readable(&format!("> {line}")));
            reports.push(activity(&line));
        }
    }

    /// Shows why it failed.
    pub(super) fn failed(update: &Value, reports: &mut Vec<Report>) {
        let places = ["/content/0/content/text", "/rawOutput/error", "/rawOutput"];
        let words = places.into_iter().find_map(|place| update.pointer(place)?.as_str());
        let words = one_line(words.unwrap_or("the tool failed"), SHOWN);
        reports.push(readable(&format!("  failed: {words}")));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn log(reports: &[Report]) -> String {
        let output = reports.iter().filter_map(|report| match report {
            Report::Output(_, bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
            Report::Event(_) | Report::Alive => None,
        });
        output.collect()
    }

    #[test]
    fn a_message_is_shown_by_lines_however_it_is_cut() {
        let text = "One línea.\n\nTwo lines,\nand the end";
        for step in 1..text.len() {
            let (mut speech, mut reports) = (Speech::default(), Vec::new());
            let mut rest = text;
            while !rest.is_empty() {
                let (part, after) = rest.split_at(rest.ceil_char_boundary(step.min(rest.len())));
                speech.push(part, &mut reports);
                rest = after;
            }
            speech.show(&mut reports);
            assert_eq!(
                log(&reports).replace("\n\n", "\n"),
                text.replace("\n\n", "\n") + "\n",
                "{step}"
            );
            assert_eq!(speech.words(), text);
        }
    }

    #[test]
    fn a_message_without_end_is_kept_in_part() {
        for (part, parts) in [
            ("é\n".repeat(4000), 100),
            ("é".repeat(4000), 100),
            ("é".to_owned(), 400_000),
        ] {
            let (mut speech, mut reports) = (Speech::default(), Vec::new());
            for _ in 0..parts {
                speech.push(&part, &mut reports);
                assert!(speech.words.len() <= 2 * KEPT && speech.words.len() - speech.shown <= LONGEST);
            }
            speech.show(&mut reports);
            assert_eq!(log(&reports).matches('é').count(), 400_000);
        }
    }

    #[test]
    fn a_line_without_end_is_shown_in_pieces() {
        let (mut speech, mut reports) = (Speech::default(), Vec::new());
        speech.push(&"é".repeat(LONGEST), &mut reports);
        assert!(!reports.is_empty());
        speech.push("\nand more", &mut reports);
        speech.show(&mut reports);
        let shown = log(&reports);
        let lengths: Vec<usize> = shown.lines().map(str::len).collect();
        assert_eq!(lengths, [LONGEST, LONGEST, "and more".len()]);
    }

    #[test]
    fn a_call_is_one_line_whatever_the_agent_tells_of_it() {
        let line = |update: Value| {
            let mut call = ToolCall::default();
            call.update(&update);
            (call.line(), call.name().to_owned())
        };
        for (update, expected, name) in [
            (
                json!({"title": "write", "kind": "edit", "rawInput": {"filePath": "/w/a.rs"}}),
                "write /w/a.rs",
                "edit",
            ),
            (
                json!({"title": "Writing to a.rs", "kind": "edit", "locations": [{"path": "/w/a.rs"}]}),
                "Writing to a.rs",
                "edit",
            ),
            (
                json!({"title": "Write a.rs", "_meta": {"claudeCode": {"toolName": "Write"}}}),
                "Write a.rs",
                "Write",
            ),
            (
                json!({"kind": "execute", "rawInput": {"command": "ls"}}),
                "execute ls",
                "execute",
            ),
            (json!({}), "a tool without a name", "a tool without a name"),
        ] {
            assert_eq!(line(update.clone()), (expected.to_owned(), name.to_owned()), "{update}");
        }
    }
}

//! Programs that print plain text. The text is shown unchanged, and now and then its last line
//! becomes the session's activity. The exit code says whether the program succeeded.

use std::time::Duration;

use bytes::Bytes;
use kage_core::event::{EventBody, OutputStream};
use kage_core::time::LocalTime;
use kage_core::usage::Usage;
use tokio::time::Instant;

use super::super::lines::{Line, Lines};
use super::{Format, Outcome, Reader, Rules};
use crate::adapters::port::Report;
use crate::process::excerpt::one_line;

pub(super) const FORMAT: Format = Format {
    name: "text",
    family: "",
    rules: Rules::Everything,
    reader: || Box::new(Text::new()),
};

/// The shortest time between two activities.
const PACE: Duration = Duration::from_millis(500);
/// Bytes of a line that are looked at.
const LINE: usize = 64 << 10;

#[derive(Debug)]
struct Text {
    lines: Lines,
    told: Option<Instant>,
    /// The last line that is not empty.
    last: String,
}

impl Text {
    fn new() -> Self {
        Self {
            lines: Lines::new(LINE),
            told: None,
            last: String::new(),
        }
    }

    fn see(&mut self, line: Line) {
        if let Line::Whole(bytes) = line {
            let shown = one_line(&String::from_utf8_lossy(&bytes), 200);
            if !shown.is_empty() {
                self.last = shown;
            }
        }
    }
}

impl Reader for Text {
    fn read(&mut self, bytes: Bytes) -> Vec<Report> {
        for line in self.lines.push(&bytes) {
            self.see(line);
        }
        let mut reports = vec![Report::Output(OutputStream::Stdout, bytes)];
        let now = Instant::now();
        if !self.last.is_empty() && self.told.is_none_or(|told| now - told >= PACE) {
            self.told = Some(now);
            reports.push(Report::Event(EventBody::Activity(self.last.clone())));
        }
        reports
    }

    fn finish(&mut self) -> Vec<Report> {
        if let Some(line) = self.lines.finish() {
            self.see(line);
        }
        // Unknown is not nothing.
        vec![Report::Event(EventBody::UsageRecorded {
            model: String::new(),
            usage: Usage::UNKNOWN,
            reported: None,
            metered: false,
            tools: None,
            call: None,
        })]
    }

    fn outcome(&self, _: LocalTime) -> Outcome {
        Outcome::ExitCode(self.last.clone())
    }
}

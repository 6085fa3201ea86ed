//! Reads the output of programs that only print text: it is shown as it is, and now and
//! then its last line becomes the session's activity.

use std::time::Duration;

use bytes::Bytes;
use kage_core::event::{EventBody, OutputStream};
use tokio::time::Instant;

use super::lines::{Line, Lines};
use crate::adapters::port::Report;
use crate::process::excerpt::one_line;

/// The shortest time between two activities.
const PACE: Duration = Duration::from_millis(500);
/// Bytes of a line that are looked at.
const LINE: usize = 64 << 10;

/// What was printed so far.
#[derive(Debug)]
pub(super) struct TextOutput {
    lines: Lines,
    told: Option<Instant>,
    last: String,
}

impl TextOutput {
    pub(super) fn new() -> Self {
        Self {
            lines: Lines::new(LINE),
            told: None,
            last: String::new(),
        }
    }

    pub(super) fn chunk(&mut self, bytes: Bytes) -> Vec<Report> {
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

    fn see(&mut self, line: Line) {
        if let Line::Whole(bytes) = line {
            let shown = one_line(&String::from_utf8_lossy(&bytes), 200);
            if !shown.is_empty() {
                self.last = shown;
            }
        }
    }

    /// The last line that is not empty.
    pub(super) fn summary(&mut self) -> String {
        if let Some(line) = self.lines.finish() {
            self.see(line);
        }
        self.last.clone()
    }
}

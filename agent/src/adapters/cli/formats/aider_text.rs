//! The text that aider prints, and the log of its events (`--analytics-log`, which it sends nowhere), in
//! which it counts tokens.
//!
//! It exits with 0 after failures. A run has succeeded only when its log says that the message was
//! completed, and when after the last answer, which a line with its tokens ends, it printed no error:
//!
//! ```text
//!   an answer of the model            may quote any error
//!   Tokens: 2.6k sent, 27 received.   aider's own from here on
//!   litellm.RateLimitError: ...       the run has failed
//! ```
//!
//! Tokens of a message are those of all its calls, as the provider counted them; what was read from a cache
//! is in the input, and how much that is it tells in rounded numbers only. A message without an answer has
//! an estimate, which does not count. The cost is that of litellm's price list: 0 where it knows no price.

use bytes::Bytes;
use kage_core::event::{EventBody, OutputStream};
use kage_core::failure::{Failure, FailureKind};
use kage_core::time::LocalTime;
use kage_core::usage::{PicoUsd, Unreported, Usage, UsageClass};
use serde_json::Value;

use super::super::dollars::pico;
use super::super::lines::{Line, Lines};
use super::event_lines::{activity, number_at, text, text_at, used, values_of};
use super::{Format, Outcome, Reader, Rules};
use crate::adapters::port::Report;
use crate::process::excerpt::one_line;

pub(super) const FORMAT: Format = Format {
    name: "aider-text",
    family: "aider",
    rules: Rules::OwnWords,
    reader: || Box::new(Aider::new()),
};

/// Bytes of a line that are looked at.
const LINE: usize = 64 << 10;
/// Lines of an error that are kept: it is wrapped.
const ERROR_LINES: usize = 6;

#[derive(Debug)]
struct Aider {
    lines: Lines,
    /// Whether the last answer had tokens; `None`: there was no answer.
    answered: Option<bool>,
    /// Lines of the error since the last answer.
    error: Vec<String>,
    /// The last line of the last answer, or of the program.
    last: String,
    words: String,
    log: Log,
}

/// What the log of events says.
#[derive(Debug, Default)]
struct Log {
    completed: bool,
    reports: bool,
}

impl Aider {
    fn new() -> Self {
        Self {
            lines: Lines::new(LINE),
            answered: None,
            error: Vec::new(),
            last: String::new(),
            words: String::new(),
            log: Log::default(),
        }
    }

    fn see(&mut self, line: Line, reports: &mut Vec<Report>) {
        let Line::Whole(bytes) = line else { return };
        let line = String::from_utf8_lossy(&bytes);
        let line = line.trim_end();
        if let Some(received) = received(line) {
            self.answered = Some(received);
            self.error.clear();
            std::mem::swap(&mut self.words, &mut self.last);
            reports.push(activity(line));
        } else if is_error(line) {
            self.error = vec![line.to_owned()];
        } else if !self.error.is_empty() && !line.is_empty() && self.error.len() < ERROR_LINES {
            self.error.push(line.to_owned());
        } else if line.starts_with("Applied edit to ") {
            reports.push(activity(line));
        }
        if !line.is_empty() {
            self.last = one_line(line, 200);
        }
    }
}

impl Reader for Aider {
    fn read(&mut self, bytes: Bytes) -> Vec<Report> {
        let mut reports = Vec::new();
        for line in self.lines.push(&bytes) {
            self.see(line, &mut reports);
        }
        reports.insert(0, Report::Output(OutputStream::Stdout, bytes));
        reports
    }

    fn usage_file(&mut self, bytes: &[u8]) -> Vec<Report> {
        let (mut sum, mut cost) = (Usage::default(), PicoUsd(0));
        for event in values_of(bytes) {
            match text(&event, "event") {
                Some("message_send") => {
                    let (usage, paid) = message(&event);
                    sum += usage;
                    cost = PicoUsd(cost.0.saturating_add(paid.0));
                }
                Some("exit") => {
                    let reason = text_at(&event, "/properties/reason").unwrap_or_default();
                    self.log.completed = reason.starts_with("Completed --message");
                }
                Some(_) | None => {}
            }
        }
        if sum.is_zero() {
            return Vec::new();
        }
        self.log.reports = true;
        if !self.log.completed {
            // A call may have been under way.
            sum.unreported = Unreported::ALL;
        }
        vec![used_without_tools(sum, (cost.0 > 0).then_some(cost))]
    }

    fn finish(&mut self) -> Vec<Report> {
        let mut reports = Vec::new();
        if let Some(line) = self.lines.finish() {
            self.see(line, &mut reports);
        }
        if !self.log.reports {
            reports.push(used_without_tools(Usage::UNKNOWN, None));
        }
        reports
    }

    fn outcome(&self, _: LocalTime) -> Outcome {
        let failed = |words: &str| Outcome::Failed(Failure::new(FailureKind::Unknown, words));
        match (self.error.as_slice(), self.answered, self.log.completed) {
            ([], Some(true), true) => Outcome::Done(self.words.clone()),
            ([], Some(false), true) => failed("the model gave no answer"),
            ([_, ..], _, _) => failed(&self.error.join("\n")),
            ([], _, _) => Outcome::Missing,
        }
    }
}

fn used_without_tools(usage: Usage, reported: Option<PicoUsd>) -> Report {
    match used("", usage, reported, kage_core::tool_uses::ToolUses::default()) {
        Report::Event(EventBody::UsageRecorded {
            model,
            usage,
            reported,
            metered,
            ..
        }) => Report::Event(EventBody::UsageRecorded {
            model,
            usage,
            reported,
            metered,
            tools: None,
            call: None,
        }),
        other => other,
    }
}

/// Whether an answer had tokens, if the line is the one that ends an answer.
fn received(line: &str) -> Option<bool> {
    let rest = line.strip_prefix("Tokens: ")?;
    // "2.6k sent, 1.2k cache hit, 27 received. Cost: $0.01 message, $0.01 session."
    let (before, _) = rest.split_once(" received.")?;
    let (sent, received) = before.rsplit_once(", ")?;
    (sent.contains(" sent")).then_some(received != "0")
}

/// Whether aider begins to tell of an error.
fn is_error(line: &str) -> bool {
    let litellm = line.strip_prefix("litellm.").and_then(|rest| rest.split_once(':'));
    let named = litellm.is_some_and(|(name, _)| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric()));
    named || line.ends_with(" has hit a token limit!") || line.starts_with("Model ") && line.contains(" does not exist")
}

/// The tokens of a message, and their cost.
fn message(event: &Value) -> (Usage, PicoUsd) {
    let number = |name: &str| number_at(event, &format!("/properties/{name}"));
    let output = number("completion_tokens").unwrap_or(0);
    if output == 0 {
        return (Usage::default(), PicoUsd(0));
    }
    let unreported = [UsageClass::CacheRead, UsageClass::Reasoning];
    let usage = Usage {
        input: number("prompt_tokens").unwrap_or(0),
        output,
        unreported: unreported.into_iter().fold(Unreported::default(), Unreported::with),
        ..Usage::default()
    };
    let cost = event
        .pointer("/properties/cost")
        .and_then(Value::as_f64)
        .map_or(PicoUsd(0), pico);
    (usage, cost)
}

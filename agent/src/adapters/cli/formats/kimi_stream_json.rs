//! The `stream-json` output of Kimi Code, lines in the form of messages of chat completions, and the file
//! of its session, in which alone it counts tokens.
//!
//! A run has succeeded only when it ended with the line that says how to resume the session, which follows
//! a turn that was completed. Errors are on standard error. Each call of the model is a record of usage in
//! the session's file; what was read from and written to a cache is not in its input. Agents that it
//! started count in files of their own. There is no cost.

use std::time::Duration;

use kage_core::event::EventBody;
use kage_core::failure::{Failure, FailureKind};
use kage_core::failure_table::ProviderError;
use kage_core::time::LocalTime;
use kage_core::tool_uses::ToolUses;
use kage_core::usage::{Unreported, Usage, UsageClass};
use serde_json::Value;

use super::event_lines::{
    EventLines, Events, UNNAMED, activity, called, describe, said, text, text_at, used, values_of,
};
use super::{Format, Outcome, Rules};
use crate::adapters::port::Report;

pub(super) const FORMAT: Format = Format {
    name: "kimi-stream-json",
    family: "kimi",
    rules: Rules::OwnWords,
    reader: EventLines::<Kimi>::reader,
};

/// Tools that start agents, whose usage is told nowhere else.
const AGENTS: [&str; 2] = ["Agent", "AgentSwarm"];

#[derive(Debug, Default)]
struct Kimi {
    completed: bool,
    /// What the session used before this run.
    before: Usage,
    /// Whether agents of its own worked.
    delegated: bool,
    reported: bool,
    tools: ToolUses,
    last_text: String,
}

impl Events for Kimi {
    fn event(&mut self, event: &Value, reports: &mut Vec<Report>) {
        match text(event, "role") {
            Some("assistant") => self.assistant(event, reports),
            Some("meta") => self.meta(event, reports),
            Some(_) | None => {}
        }
    }

    fn usage_file(&mut self, bytes: &[u8]) -> Vec<Report> {
        let counted = recorded(bytes);
        if counted == Usage::default() {
            return Vec::new();
        }
        self.reported = true;
        let mut usage = counted.since(self.before);
        if self.delegated || !self.completed {
            // Others may have used more, or a call was under way.
            usage.unreported = Unreported::ALL;
        }
        vec![used("", usage, None, std::mem::take(&mut self.tools))]
    }

    fn resumed(&mut self, said: &[u8]) {
        self.before = recorded(said);
    }

    fn unreported(&mut self) -> Vec<Report> {
        match self.reported {
            true => Vec::new(),
            false => vec![used("", Usage::UNKNOWN, None, std::mem::take(&mut self.tools))],
        }
    }

    fn outcome(&self, _: LocalTime) -> Outcome {
        match self.completed {
            true => Outcome::Done(self.last_text.clone()),
            false => Outcome::Missing,
        }
    }
}

impl Kimi {
    fn assistant(&mut self, event: &Value, reports: &mut Vec<Report>) {
        self.completed = false;
        let words = text(event, "content").unwrap_or_default();
        if said(words, reports) {
            words.clone_into(&mut self.last_text);
        }
        for call in event.get("tool_calls").and_then(Value::as_array).into_iter().flatten() {
            let name = text_at(call, "/function/name").unwrap_or(UNNAMED);
            let input = text_at(call, "/function/arguments").and_then(|input| serde_json::from_str(input).ok());
            self.delegated |= AGENTS.contains(&name);
            self.tools.add(name, 1);
            called(&describe(name, input.as_ref()), reports);
        }
    }

    fn meta(&mut self, event: &Value, reports: &mut Vec<Report>) {
        match text(event, "type") {
            Some("system.version") => {
                let version = text(event, "version").unwrap_or_default();
                reports.push(activity(&format!("started, version {version}")));
            }
            Some("turn.step.retrying") => reports.push(Report::Event(retried(event))),
            Some("session.resume_hint") => self.completed = true,
            Some(_) | None => {}
        }
    }
}

/// A call that is made again.
fn retried(event: &Value) -> EventBody {
    let message = text(event, "error_message").unwrap_or("the provider gave no reason");
    let status = event.get("status_code").and_then(Value::as_u64);
    let failure = match status.and_then(|status| u16::try_from(status).ok()) {
        Some(status) => ProviderError {
            status: Some(status),
            message,
            ..ProviderError::default()
        }
        .classify(),
        None => Failure::new(FailureKind::Network, message),
    };
    // With a fraction.
    let delay = event.get("delay_ms").and_then(Value::as_f64).unwrap_or(0.0) / 1000.0;
    let attempt = event.get("failed_attempt").and_then(Value::as_u64).unwrap_or(1);
    EventBody::CallRetried {
        failure,
        delay: Duration::try_from_secs_f64(delay).unwrap_or_default(),
        attempt: u32::try_from(attempt).unwrap_or(u32::MAX),
    }
}

/// The sum of the records of usage in a session's file.
fn recorded(lines: &[u8]) -> Usage {
    let mut sum = Usage::default();
    for line in values_of(lines) {
        if text(&line, "type") == Some("usage.record") {
            sum += line.get("usage").map_or(Usage::UNKNOWN, usage);
        }
    }
    sum
}

fn usage(told: &Value) -> Usage {
    let number = |key: &str| told.get(key).and_then(Value::as_u64);
    let (input, output) = (number("inputOther"), number("output"));
    let untold = [(UsageClass::Input, input), (UsageClass::Output, output)];
    let untold = untold.iter().filter(|(_, tokens)| tokens.is_none());
    let unreported = untold.fold(Unreported::default(), |all, (class, _)| all.with(*class));
    Usage {
        input: input.unwrap_or(0),
        cache_write_5m: number("inputCacheCreation").unwrap_or(0),
        cache_write_1h: 0,
        cache_read: number("inputCacheRead").unwrap_or(0),
        output: output.unwrap_or(0),
        reasoning: 0,
        // A part of the output, of which it tells nothing.
        unreported: unreported.with(UsageClass::Reasoning),
    }
}

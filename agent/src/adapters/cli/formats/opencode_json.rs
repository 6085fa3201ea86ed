//! The events of `opencode run --format json`.
//!
//! A run has succeeded only when its last step finished with the reason "stop" and no error followed.
//! Errors are told with the status and the headers of the provider's answer.
//!
//! Each step tells its tokens; input excludes what was read from or written to a cache, and output
//! excludes reasoning. The cost comes from the program's price list; 0 means that it has no price.

use std::time::Duration;

use kage_core::event::EventBody;
use kage_core::failure::{Failure, FailureKind};
use kage_core::failure_table::{ProviderError, parse_retry_after};
use kage_core::time::LocalTime;
use kage_core::tool_uses::ToolUses;
use kage_core::usage::{Unreported, Usage, UsageClass};
use serde_json::Value;

use super::super::dollars::pico;
use super::event_lines::{
    EventLines, Events, UNNAMED, activity, called, describe, number_at, said, text, text_at, tool_failed, used,
};
use super::{Format, Outcome, Rules};
use crate::adapters::port::Report;
use crate::process::excerpt::one_line;

pub(super) const FORMAT: Format = Format {
    name: "opencode-json",
    family: "opencode",
    rules: Rules::OwnWords,
    reader: EventLines::<Opencode>::reader,
};

#[derive(Debug, Default)]
struct Opencode {
    end: Option<End>,
    /// A step has not told its tokens yet, or one more follows.
    open: bool,
    reported: bool,
    tools: ToolUses,
    last_text: String,
}

#[derive(Debug)]
enum End {
    /// The last step finished for this reason.
    Step(String),
    /// The `error` object.
    Error(Value),
}

impl Events for Opencode {
    fn event(&mut self, event: &Value, reports: &mut Vec<Report>) {
        match text(event, "type") {
            Some("step_start") => {
                self.open = true;
                self.end = None;
                // An answer has begun: what was repeated before is over.
                reports.push(activity("the model answers"));
            }
            Some("text") => {
                let words = text_at(event, "/part/text").unwrap_or_default();
                if said(words, reports) {
                    words.clone_into(&mut self.last_text);
                }
            }
            Some("tool_use") => self.tool(event, reports),
            Some("step_finish") => self.finished(event, reports),
            Some("error") => {
                let error = event.get("error").cloned().unwrap_or_default();
                let words = text_at(&error, "/data/message").or_else(|| text(&error, "name"));
                let words = one_line(words.unwrap_or("an error without words"), 400);
                reports.push(Report::Event(EventBody::Warning(words)));
                self.end = Some(End::Error(error));
            }
            Some(_) | None => {}
        }
    }

    fn unreported(&mut self) -> Vec<Report> {
        if self.reported && !self.open {
            return Vec::new();
        }
        vec![used("", Usage::UNKNOWN, None, std::mem::take(&mut self.tools))]
    }

    fn outcome(&self, heard: LocalTime) -> Outcome {
        match &self.end {
            Some(End::Step(reason)) if reason == "stop" => Outcome::Done(self.last_text.clone()),
            Some(End::Step(reason)) if reason == "tool-calls" => Outcome::Missing,
            Some(End::Step(reason)) => {
                let words = format!("the model ended its answer early: {reason}");
                Outcome::Failed(Failure::new(FailureKind::Unknown, words))
            }
            Some(End::Error(error)) => Outcome::Failed(failure(error, heard)),
            None => Outcome::Missing,
        }
    }
}

impl Opencode {
    fn tool(&mut self, event: &Value, reports: &mut Vec<Report>) {
        let Some(part) = event.get("part") else { return };
        let name = text(part, "tool").unwrap_or(UNNAMED);
        self.tools.add(name, 1);
        called(&describe(name, part.pointer("/state/input")), reports);
        if text_at(part, "/state/status") == Some("error") {
            tool_failed(text_at(part, "/state/error").unwrap_or("the tool failed"), reports);
        }
    }

    fn finished(&mut self, event: &Value, reports: &mut Vec<Report>) {
        let Some(part) = event.get("part") else { return };
        let reason = text(part, "reason").unwrap_or_default();
        self.open = reason == "tool-calls";
        self.end = Some(End::Step(reason.to_owned()));
        self.reported = true;
        let cost = part.get("cost").and_then(Value::as_f64).filter(|cost| *cost > 0.0);
        let usage = part.get("tokens").map_or(Usage::UNKNOWN, usage);
        reports.push(used("", usage, cost.map(pico), std::mem::take(&mut self.tools)));
    }
}

fn usage(tokens: &Value) -> Usage {
    let told = |pointer: &str| number_at(tokens, pointer);
    let classes = [
        (UsageClass::Input, told("/input")),
        (UsageClass::CacheWrite5m, told("/cache/write")),
        (UsageClass::CacheRead, told("/cache/read")),
        (UsageClass::Output, told("/output")),
        (UsageClass::Reasoning, told("/reasoning")),
    ];
    let untold = classes.iter().filter(|(_, tokens)| tokens.is_none());
    let unreported = untold.fold(Unreported::default(), |all, (class, _)| all.with(*class));
    let [input, written, read, answered, reasoning] = classes.map(|(_, tokens)| tokens.unwrap_or(0));
    let apart = answered.saturating_add(reasoning);
    // The total tells whether reasoning is a part of the output, which changed between versions.
    let before = input.saturating_add(written).saturating_add(read);
    let output = told("/total").map_or(apart, |total| total.saturating_sub(before).clamp(answered, apart));
    Usage {
        input,
        cache_write_5m: written,
        cache_write_1h: 0,
        cache_read: read,
        output,
        reasoning,
        unreported,
    }
}

fn failure(error: &Value, heard: LocalTime) -> Failure {
    let message = text_at(error, "/data/message").or_else(|| text(error, "name"));
    let message = message.unwrap_or("the program reported an error without words");
    let status = number_at(error, "/data/statusCode").and_then(|status| u16::try_from(status).ok());
    let waits = ["/data/responseHeaders/retry-after", "/data/responseHeaders/Retry-After"];
    let after = waits.iter().find_map(|at| text_at(error, at));
    let retry_after: Option<Duration> = after.and_then(|value| parse_retry_after(value, heard.now));
    // The answer of the provider, as far as it is JSON.
    let body = text_at(error, "/data/responseBody").and_then(|body| serde_json::from_str::<Value>(body).ok());
    let of_body = |at: &str| body.as_ref().and_then(|body| text_at(body, at));
    let mut failure = ProviderError {
        status,
        error_type: of_body("/error/type"),
        error_code: of_body("/error/code"),
        message,
        retry_after,
        heard: Some(heard),
    }
    .classify();
    if text(error, "name") == Some("ContextOverflowError") {
        failure.kind = FailureKind::ContextOverflow;
    }
    failure
}

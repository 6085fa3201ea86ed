//! The events of `cline --json`.
//!
//! A run has succeeded only when its `run_result` has the reason `completed`. Each call of the model tells
//! its tokens, and `run_result` those of all agents of the run; input includes what was read from and
//! written to a cache. The cost is that of the program's own price list: 0 where it knows no price.

use kage_core::event::EventBody;
use kage_core::failure::{Failure, FailureKind};
use kage_core::time::LocalTime;
use kage_core::tool_uses::ToolUses;
use kage_core::usage::{PicoUsd, Unreported, Usage, UsageClass};
use serde_json::Value;

use super::super::dollars::pico;
use super::event_lines::{
    EventLines, Events, UNNAMED, called, describe, number_at, said, text, text_at, tool_failed, used,
};
use super::{Format, Outcome, Rules};
use crate::adapters::port::Report;
use crate::process::excerpt::one_line;

pub(super) const FORMAT: Format = Format {
    name: "cline-json",
    family: "cline",
    rules: Rules::OwnWords,
    reader: EventLines::<Cline>::reader,
};

#[derive(Debug, Default)]
struct Cline {
    /// Whether the `run_result` says that the run was completed.
    completed: Option<bool>,
    error: Option<Failure>,
    /// Usage and cost that were reported.
    so_far: Usage,
    paid: PicoUsd,
    calls: u64,
    tools: ToolUses,
    last_text: String,
}

impl Events for Cline {
    fn is_part(event: &Value) -> bool {
        let part = text_at(event, "/event/type");
        let is_tool = text_at(event, "/event/contentType") == Some("tool");
        part == Some("content_update") || (part == Some("content_start") && !is_tool)
    }

    fn event(&mut self, event: &Value, reports: &mut Vec<Report>) {
        match text(event, "type") {
            Some("agent_event") => {
                if let Some(event) = event.get("event") {
                    self.agent(event, reports);
                }
            }
            Some("run_result") => self.result(event, reports),
            Some(_) | None => {}
        }
    }

    fn unreported(&mut self) -> Vec<Report> {
        if self.completed.is_some() {
            return Vec::new();
        }
        // Without a result: what was told is a lower bound.
        vec![used("", Usage::UNKNOWN, None, std::mem::take(&mut self.tools))]
    }

    fn outcome(&self, _: LocalTime) -> Outcome {
        match (self.completed, &self.error) {
            (Some(true), _) => Outcome::Done(self.last_text.clone()),
            (Some(false) | None, Some(failure)) => Outcome::Failed(failure.clone()),
            (Some(false), None) => {
                let words = "the program reported a failure without words";
                Outcome::Failed(Failure::new(FailureKind::Unknown, words))
            }
            (None, None) => Outcome::Missing,
        }
    }
}

impl Cline {
    fn agent(&mut self, event: &Value, reports: &mut Vec<Report>) {
        let is_tool = text(event, "contentType") == Some("tool");
        match text(event, "type") {
            Some("usage") => {
                self.calls += 1;
                let total = event.get("totalCost").and_then(Value::as_f64).map_or(PicoUsd(0), pico);
                self.count(usage(event), total, reports);
            }
            Some("content_start") if is_tool => {
                let name = text(event, "toolName").unwrap_or(UNNAMED);
                self.tools.add(name, 1);
                called(&call(name, event.get("input")), reports);
            }
            Some("content_end") if is_tool => {
                let output = event.get("output").unwrap_or(&Value::Null);
                let all = output.as_array().map_or(std::slice::from_ref(output), Vec::as_slice);
                for output in all {
                    if output.get("success") == Some(&Value::Bool(false)) {
                        let words = text(output, "error").or_else(|| text(output, "result"));
                        tool_failed(words.unwrap_or("the tool failed"), reports);
                    }
                }
            }
            Some("content_end") => {
                let words = text(event, "text").unwrap_or_default();
                if text(event, "contentType") == Some("text") && said(words, reports) {
                    words.clone_into(&mut self.last_text);
                }
            }
            Some("error") => {
                let failure = refusal(event);
                reports.push(Report::Event(EventBody::Warning(one_line(&failure.message, 400))));
                self.error = Some(failure);
            }
            Some(_) | None => {}
        }
    }

    fn result(&mut self, event: &Value, reports: &mut Vec<Report>) {
        let completed = text(event, "finishReason") == Some("completed");
        self.completed = Some(completed);
        if !completed && self.error.is_none() {
            let words = text(event, "text").or_else(|| text(event, "finishReason"));
            let words = words.unwrap_or("the program reported a failure without words");
            self.error = Some(Failure::new(FailureKind::Unknown, words));
        }
        // Other agents of the run have told nothing yet.
        let told = event.get("aggregateUsage").or_else(|| event.get("usage"));
        let total = told
            .and_then(|told| told.get("totalCost")?.as_f64())
            .map_or(PicoUsd(0), pico);
        let rest = told.map_or(Usage::UNKNOWN, usage).since(self.so_far);
        // A run that was completed was answered, counted or not.
        if rest.total() > 0 || (completed && self.calls == 0) {
            self.count(rest, total, reports);
        }
    }

    fn count(&mut self, usage: Usage, total: PicoUsd, reports: &mut Vec<Report>) {
        self.so_far += usage;
        let cost = PicoUsd(total.0.saturating_sub(self.paid.0).max(0));
        self.paid = PicoUsd(self.paid.0.max(total.0));
        let cost = (cost.0 > 0).then_some(cost);
        reports.push(used("", usage, cost, std::mem::take(&mut self.tools)));
    }
}

/// A tool's call in one line. Commands come as a list.
fn call(name: &str, input: Option<&Value>) -> String {
    match input.and_then(|input| text_at(input, "/commands/0")) {
        Some(command) => one_line(&format!("{name} {command}"), 200),
        None => describe(name, input),
    }
}

/// What the provider refused, by the program's own class and words.
fn refusal(event: &Value) -> Failure {
    let message = text_at(event, "/error/message").unwrap_or("the provider gave no reason");
    let kind = match (text(event, "errorClass"), text_at(event, "/error/name")) {
        (Some("auth"), _) => FailureKind::Auth,
        (_, Some("ContextWindowOverflowError")) => FailureKind::ContextOverflow,
        (_, _) => FailureKind::Unknown,
    };
    Failure::new(kind, message)
}

fn usage(told: &Value) -> Usage {
    let (input, output) = (number_at(told, "/inputTokens"), number_at(told, "/outputTokens"));
    let untold = [(UsageClass::Input, input), (UsageClass::Output, output)];
    let untold = untold.iter().filter(|(_, tokens)| tokens.is_none());
    let unreported = untold.fold(Unreported::default(), |all, (class, _)| all.with(*class));
    let read = number_at(told, "/cacheReadTokens").unwrap_or(0);
    let written = number_at(told, "/cacheWriteTokens").unwrap_or(0);
    let output_told = output.unwrap_or(0);
    Usage {
        input: input.unwrap_or(0).saturating_sub(read).saturating_sub(written),
        cache_write_5m: written,
        cache_write_1h: 0,
        cache_read: read,
        output: output_told,
        reasoning: 0,
        // A part of the output, of which it tells nothing.
        unreported: match output_told {
            0 => unreported,
            _ => unreported.with(UsageClass::Reasoning),
        },
    }
}

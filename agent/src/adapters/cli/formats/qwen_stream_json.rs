//! The `stream-json` output of Qwen Code, which resembles that of Claude Code.
//!
//! A run has succeeded only when a `result` line says so in both ways: subtype `success` and
//! `is_error` false. The words of a failure are in `error.message`. A run that reached a limit ends
//! without a `result` line.
//!
//! Usage counts from the start of the conversation, also after a resume. Input includes what was read
//! from a cache. There is no cost.

use std::collections::BTreeMap;
use std::time::Duration;

use kage_core::event::EventBody;
use kage_core::failure::{Failure, FailureKind};
use kage_core::time::LocalTime;
use kage_core::tool_uses::ToolUses;
use kage_core::usage::{Unreported, Usage, UsageClass};
use serde_json::Value;

use super::event_lines::{
    EventLines, Events, UNNAMED, activity, called, describe, number_at, said, text, text_at, tool_failed, used,
    values_of,
};
use super::{Format, Outcome, Rules};
use crate::adapters::port::Report;

pub(super) const FORMAT: Format = Format {
    name: "qwen-stream-json",
    family: "qwen",
    rules: Rules::OwnWords,
    reader: EventLines::<Qwen>::reader,
};

#[derive(Debug, Default)]
struct Qwen {
    end: Option<End>,
    /// The model that answered last; that of the first line until one did.
    model: String,
    /// What the conversation used before this run; the `result` line counts it again.
    before: Usage,
    /// Usage by message, for runs without a `result` line.
    messages: BTreeMap<String, Usage>,
    reported: bool,
    tools: ToolUses,
    last_text: String,
}

#[derive(Debug)]
enum End {
    Success(String),
    Failed(String),
}

impl Events for Qwen {
    fn is_part(event: &Value) -> bool {
        text(event, "type") == Some("stream_event")
    }

    fn event(&mut self, event: &Value, reports: &mut Vec<Report>) {
        match text(event, "type") {
            Some("system") => self.system(event, reports),
            Some("assistant") => self.assistant(event, reports),
            Some("user") => {
                let content = event.pointer("/message/content").and_then(Value::as_array);
                for block in content.into_iter().flatten() {
                    if block.get("is_error").and_then(Value::as_bool) == Some(true) {
                        tool_failed(text(block, "content").unwrap_or("the tool failed"), reports);
                    }
                }
            }
            Some("result") => self.result(event, reports),
            Some(_) | None => {}
        }
    }

    fn resumed(&mut self, said: &[u8]) {
        for line in values_of(said) {
            let Some(told) = line.pointer("/systemPayload/uiEvent") else {
                continue;
            };
            if text(told, "event.name") == Some("qwen-code.api_response") {
                let number = |key: &str| told.get(key).and_then(Value::as_u64).unwrap_or(0);
                let read = number("cached_content_token_count");
                self.before += Usage {
                    input: number("input_token_count").saturating_sub(read),
                    cache_read: read,
                    output: number("output_token_count"),
                    ..Usage::default()
                };
            }
        }
    }

    fn unreported(&mut self) -> Vec<Report> {
        if self.reported {
            return Vec::new();
        }
        let mut sum = Usage::default();
        for usage in std::mem::take(&mut self.messages).into_values() {
            sum += usage;
        }
        // A call may have been under way: the sums are lower bounds.
        sum.unreported = Unreported::ALL;
        vec![used(&self.model, sum, None, std::mem::take(&mut self.tools))]
    }

    fn outcome(&self, _: LocalTime) -> Outcome {
        match &self.end {
            Some(End::Success(words)) => Outcome::Done(words.clone()),
            Some(End::Failed(words)) => Outcome::Failed(Failure::new(FailureKind::Unknown, words)),
            None => Outcome::Missing,
        }
    }
}

impl Qwen {
    fn system(&mut self, event: &Value, reports: &mut Vec<Report>) {
        match text(event, "subtype") {
            Some("init") => {
                text(event, "model").unwrap_or_default().clone_into(&mut self.model);
                reports.push(activity(&format!("started with {}", self.model)));
            }
            // One without a number says that the wait of the one before is over.
            Some("retry") => {
                if let Some(attempt) = number_at(event, "/data/attempt") {
                    let words = "the provider refused a call; standard error says why";
                    reports.push(Report::Event(EventBody::CallRetried {
                        failure: Failure::new(FailureKind::Unknown, words),
                        delay: Duration::from_millis(number_at(event, "/data/delayMs").unwrap_or(0)),
                        attempt: u32::try_from(attempt).unwrap_or(u32::MAX),
                    }));
                }
            }
            Some(_) | None => {}
        }
    }

    fn assistant(&mut self, event: &Value, reports: &mut Vec<Report>) {
        let Some(message) = event.get("message") else { return };
        if let Some(model) = text(message, "model").filter(|model| !model.is_empty()) {
            model.clone_into(&mut self.model);
        }
        if let (Some(id), Some(told)) = (text(message, "id"), message.get("usage")) {
            self.messages.insert(id.to_owned(), usage(told));
        }
        for block in message.get("content").and_then(Value::as_array).into_iter().flatten() {
            match text(block, "type") {
                Some("text") => {
                    let words = text(block, "text").unwrap_or_default();
                    if said(words, reports) {
                        words.clone_into(&mut self.last_text);
                    }
                }
                Some("tool_use") => {
                    let name = text(block, "name").unwrap_or(UNNAMED);
                    self.tools.add(name, 1);
                    called(&describe(name, block.get("input")), reports);
                }
                Some(_) | None => {}
            }
        }
    }

    fn result(&mut self, event: &Value, reports: &mut Vec<Report>) {
        let words = text(event, "result").filter(|words| !words.is_empty());
        let failed = event.get("is_error").and_then(Value::as_bool) != Some(false);
        self.end = Some(if text(event, "subtype") == Some("success") && !failed {
            End::Success(words.unwrap_or(&self.last_text).to_owned())
        } else {
            let told = text_at(event, "/error/message")
                .or(words)
                .or_else(|| text(event, "subtype"));
            End::Failed(
                told.unwrap_or("the program reported a failure without words")
                    .to_owned(),
            )
        });
        let usage = event.get("usage").map_or(Usage::UNKNOWN, usage).since(self.before);
        self.reported = true;
        // A run that succeeded was answered, counted or not.
        if matches!(self.end, Some(End::Success(_))) || !usage.is_zero() {
            reports.push(used(&self.model, usage, None, std::mem::take(&mut self.tools)));
        }
    }
}

fn usage(told: &Value) -> Usage {
    let (input, output) = (number_at(told, "/input_tokens"), number_at(told, "/output_tokens"));
    // A provider that has no cache tells nothing of it.
    let read = number_at(told, "/cache_read_input_tokens").unwrap_or(0);
    let untold = [(UsageClass::Input, input), (UsageClass::Output, output)];
    let untold = untold.iter().filter(|(_, tokens)| tokens.is_none());
    let unreported = untold.fold(Unreported::default(), |all, (class, _)| all.with(*class));
    let output_told = output.unwrap_or(0);
    Usage {
        input: input.unwrap_or(0).saturating_sub(read),
        cache_write_5m: 0,
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

//! The events of `copilot --output-format json`, and the file in which it counts tokens.
//!
//! A run has succeeded only when its last line, `result`, has the exit code 0 and no error was told after
//! the last answer. Tokens are in the file of `--usage-output-file` alone, by model; input includes what
//! was read from and written to a cache, and output includes reasoning. There is no cost in money.

use std::time::Duration;

use kage_core::event::EventBody;
use kage_core::failure::{Failure, FailureKind};
use kage_core::failure_table::ProviderError;
use kage_core::time::LocalTime;
use kage_core::tool_uses::ToolUses;
use kage_core::usage::{Unreported, Usage, UsageClass};
use serde_json::Value;

use super::event_lines::{
    EventLines, Events, UNNAMED, activity, called, describe, number_at, said, text, text_at, tool_failed, used,
};
use super::{Format, Outcome, Rules};
use crate::adapters::port::Report;
use crate::process::excerpt::one_line;

pub(super) const FORMAT: Format = Format {
    name: "copilot-json",
    family: "copilot",
    rules: Rules::OwnWords,
    reader: EventLines::<Copilot>::reader,
};

#[derive(Debug, Default)]
struct Copilot {
    /// The exit code of the `result` line.
    code: Option<u64>,
    error: Option<Failure>,
    reported: bool,
    tools: ToolUses,
    last_text: String,
}

impl Events for Copilot {
    fn is_part(event: &Value) -> bool {
        let kind = text(event, "type").unwrap_or_default();
        kind.ends_with("_delta")
            || kind == "tool.execution_partial_result"
            || kind == "session.background_tasks_changed"
    }

    fn event(&mut self, event: &Value, reports: &mut Vec<Report>) {
        match text(event, "type") {
            Some("session.tools_updated") => {
                let model = text_at(event, "/data/model").unwrap_or("an unnamed model");
                reports.push(activity(&format!("started with {model}")));
            }
            Some("assistant.message") => {
                self.error = None;
                let words = text_at(event, "/data/content").unwrap_or_default();
                if said(words, reports) {
                    words.clone_into(&mut self.last_text);
                }
            }
            Some("tool.execution_start") => {
                let name = text_at(event, "/data/toolName").unwrap_or(UNNAMED);
                self.tools.add(name, 1);
                called(&describe(name, event.pointer("/data/arguments")), reports);
            }
            Some("tool.execution_complete") => {
                let words = ["/data/error/message", "/data/result/content"];
                let words = words.iter().find_map(|at| text_at(event, at));
                if event.pointer("/data/success") == Some(&Value::Bool(false)) {
                    tool_failed(words.unwrap_or("the tool failed"), reports);
                } else if let Some(code) = number_at(event, "/data/shellExecution/exitCode").filter(|code| *code != 0) {
                    tool_failed(&format!("exit code {code}: {}", words.unwrap_or_default()), reports);
                }
            }
            Some("model.call_failure") => {
                let attempt = number_at(event, "/data/retryAttempt").unwrap_or(0).saturating_add(1);
                reports.push(Report::Event(EventBody::CallRetried {
                    failure: refusal(event, "/data/errorMessage"),
                    delay: Duration::ZERO,
                    attempt: u32::try_from(attempt).unwrap_or(u32::MAX),
                }));
            }
            Some("session.error") => {
                let failure = refusal(event, "/data/message");
                reports.push(Report::Event(EventBody::Warning(one_line(&failure.message, 400))));
                self.error = Some(failure);
            }
            Some("result") => self.code = number_at(event, "/exitCode"),
            Some(_) | None => {}
        }
    }

    fn usage_file(&mut self, bytes: &[u8]) -> Vec<Report> {
        let Ok(file) = serde_json::from_slice::<Value>(bytes) else {
            return Vec::new();
        };
        let Some(models) = file.get("modelMetrics").and_then(Value::as_object) else {
            return Vec::new();
        };
        self.reported = true;
        let used = models.iter().filter_map(|(model, metrics)| {
            let usage = usage(metrics.get("usage")?);
            // The first report has all tools.
            Some(used(model, usage, None, std::mem::take(&mut self.tools)))
        });
        used.collect()
    }

    fn unreported(&mut self) -> Vec<Report> {
        if self.reported {
            return Vec::new();
        }
        vec![used("", Usage::UNKNOWN, None, std::mem::take(&mut self.tools))]
    }

    fn outcome(&self, _: LocalTime) -> Outcome {
        match (self.code, &self.error) {
            (Some(0), None) => Outcome::Done(self.last_text.clone()),
            (Some(_) | None, Some(failure)) => Outcome::Failed(failure.clone()),
            (Some(code), None) => {
                let words = format!("the program reported the exit code {code} and no reason");
                Outcome::Failed(Failure::new(FailureKind::Unknown, words))
            }
            (None, None) => Outcome::Missing,
        }
    }
}

/// What the provider refused, by its status and words.
fn refusal(event: &Value, words: &str) -> Failure {
    let message = text_at(event, words).unwrap_or("the provider gave no reason");
    let status = number_at(event, "/data/statusCode").and_then(|status| u16::try_from(status).ok());
    match status {
        Some(_) => ProviderError {
            status,
            message,
            ..ProviderError::default()
        }
        .classify(),
        // Words decide.
        None => Failure::new(FailureKind::Unknown, message),
    }
}

fn usage(told: &Value) -> Usage {
    let number = |pointer: &str| number_at(told, pointer);
    let (input, output) = (number("/inputTokens"), number("/outputTokens"));
    let untold = [(UsageClass::Input, input), (UsageClass::Output, output)];
    let untold = untold.iter().filter(|(_, tokens)| tokens.is_none());
    let unreported = untold.fold(Unreported::default(), |all, (class, _)| all.with(*class));
    let (read, written) = (
        number("/cacheReadTokens").unwrap_or(0),
        number("/cacheWriteTokens").unwrap_or(0),
    );
    let reasoning = number("/reasoningTokens");
    Usage {
        input: input.unwrap_or(0).saturating_sub(read).saturating_sub(written),
        cache_write_5m: written,
        cache_write_1h: 0,
        cache_read: read,
        output: output.unwrap_or(0),
        reasoning: reasoning.unwrap_or(0),
        unreported: match reasoning {
            Some(_) => unreported,
            None => unreported.with(UsageClass::Reasoning),
        },
    }
}

//! The `stream-json` output of Claude Code: one JSON object per line, with keys in any order.
//! Unknown content is skipped; nothing here fails.
//!
//! A run has succeeded only when a `result` line says so in both ways: subtype `success` and
//! `is_error` false. API errors have subtype `success` and `is_error` true, and an interrupted run
//! exits with 0 and without a `result` line.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use kage_core::event::{EventBody, OutputStream};
use kage_core::failure::{Failure, FailureKind};
use kage_core::failure_table::ProviderError;
use kage_core::time::{LocalTime, Timestamp};
use kage_core::tool_uses::ToolUses;
use kage_core::usage::{PicoUsd, Usage, UsageClass};
use serde_json::Value;

use super::super::lines::Lines;
use super::event_lines::{ACTIVITY, MAX_LINE, UNNAMED, activity, describe, readable, text};
use super::{Format, Outcome, Reader, Rules, of_line};
use crate::adapters::port::Report;
use crate::process::excerpt::one_line;

mod result;

use result::ResultLine;

pub(super) const FORMAT: Format = Format {
    name: "claude-stream-json",
    family: "claude-code",
    rules: Rules::OwnWords,
    reader: || {
        Box::new(ClaudeStreamJson {
            lines: Lines::new(MAX_LINE),
            run: Run::default(),
        })
    },
};

#[derive(Debug)]
struct ClaudeStreamJson {
    lines: Lines,
    run: Run,
}

impl Reader for ClaudeStreamJson {
    fn read(&mut self, bytes: Bytes) -> Vec<Report> {
        let lines = self.lines.push(&bytes).into_iter();
        lines
            .flat_map(|line| of_line(line, |line| self.run.line(line)))
            .collect()
    }

    fn finish(&mut self) -> Vec<Report> {
        let last = self.lines.finish();
        let mut reports = last.map_or_else(Vec::new, |line| of_line(line, |line| self.run.line(line)));
        reports.extend(self.run.unreported());
        reports
    }

    fn outcome(&self, heard: LocalTime) -> Outcome {
        self.run.outcome(heard)
    }
}

/// The state of reading a run's output.
#[derive(Debug, Default)]
struct Run {
    result: Option<ResultLine>,
    /// When a used-up limit resets, in seconds since 1970.
    resets_at: Option<u64>,
    /// The most that was reported of each model; the program counts from its start.
    reported: BTreeMap<String, (Usage, Option<PicoUsd>)>,
    /// Usage by message, for runs that end without a `result` line.
    messages: BTreeMap<String, (String, Usage)>,
    /// Tools called since usage was reported.
    tools: ToolUses,
    last_text: String,
}

impl Run {
    /// Reads one line and returns its reports.
    fn line(&mut self, line: &[u8]) -> Vec<Report> {
        let Ok(value) = serde_json::from_slice::<Value>(line) else {
            // Not an event: text that the program, or a library of it, printed.
            return vec![readable(&String::from_utf8_lossy(line))];
        };
        // A part of a message that follows as a whole: it only shows that the program works.
        if text(&value, "type") == Some("stream_event") {
            return Vec::new();
        }
        let mut raw = line.to_vec();
        raw.push(b'\n');
        let mut reports = vec![Report::Output(OutputStream::Transcript, raw.into())];
        match text(&value, "type") {
            Some("assistant") => self.assistant(&value, &mut reports),
            Some("user") => tool_results(&value, &mut reports),
            Some("system") => system(&value, &mut reports),
            Some("rate_limit_event") => self.rate_limit(&value, &mut reports),
            Some("result") => self.result(value, &mut reports),
            Some(_) | None => {}
        }
        reports
    }

    fn assistant(&mut self, value: &Value, reports: &mut Vec<Report>) {
        let Some(message) = value.get("message") else {
            return;
        };
        if let (Some(id), Some(model), Some(usage)) = (
            text(message, "id"),
            text(message, "model").filter(|model| *model != "<synthetic>"),
            message
                .get("usage")
                .and_then(crate::adapters::api::messages::usage::parse),
        ) {
            self.messages.insert(id.to_owned(), (model.to_owned(), usage));
        }
        for block in message.get("content").and_then(Value::as_array).into_iter().flatten() {
            match text(block, "type") {
                Some("text") => {
                    let words = text(block, "text").unwrap_or_default();
                    if !words.trim().is_empty() {
                        words.clone_into(&mut self.last_text);
                        reports.push(readable(words));
                        reports.push(activity(words));
                    }
                }
                Some("tool_use") => {
                    let name = text(block, "name").unwrap_or(UNNAMED);
                    self.tools.add(name, 1);
                    let line = describe(name, block.get("input"));
                    reports.push(readable(&format!("> {line}")));
                    reports.push(activity(&line));
                }
                Some(_) | None => {}
            }
        }
    }

    fn rate_limit(&mut self, value: &Value, reports: &mut Vec<Report>) {
        let Some(info) = value.get("rate_limit_info") else {
            return;
        };
        let kind = text(info, "rateLimitType").unwrap_or("usage");
        match text(info, "status") {
            Some("rejected") => self.resets_at = info.get("resetsAt").and_then(Value::as_u64),
            Some("allowed_warning") => {
                let used = info.get("utilization").and_then(Value::as_f64).unwrap_or(0.0) * 100.0;
                let warning = format!("{used:.0} % of the {kind} limit of this login is used");
                reports.push(Report::Event(EventBody::Warning(warning)));
            }
            Some(_) | None => {}
        }
    }

    fn result(&mut self, value: Value, reports: &mut Vec<Report>) {
        let result: ResultLine = match serde_json::from_value(value) {
            Ok(result) => result,
            Err(error) => {
                let warning = format!("the program's result line is not understood: {error}");
                reports.push(Report::Event(EventBody::Warning(warning)));
                return;
            }
        };
        for (model, counted) in &result.model_usage {
            let (usage, cost) = (counted.usage(), counted.cost());
            let before = self.reported.get(model).copied().unwrap_or_default();
            // A total that is corrected downwards stays as it was told: what was recorded is not
            // taken back, and what follows must not be counted twice.
            let most = (usage.at_least(before.0), cost.max(before.1));
            self.reported.insert(model.clone(), most);
            let new = usage.since(before.0);
            if !new.is_zero() || cost > before.1 {
                reports.push(Report::Event(EventBody::UsageRecorded {
                    model: model.clone(),
                    usage: new,
                    reported: cost.map(|cost| PicoUsd(cost.0.saturating_sub(before.1.unwrap_or_default().0).max(0))),
                    metered: false,
                    tools: Some(std::mem::take(&mut self.tools)),
                    call: None,
                }));
            }
        }
        self.result = Some(result);
    }

    /// Usage that no `result` line reported. It comes from the starts of messages, which miss a
    /// part of the output tokens.
    fn unreported(&mut self) -> Vec<Report> {
        if self.result.is_some() {
            return Vec::new();
        }
        let mut models = BTreeMap::<String, Usage>::new();
        for (model, mut usage) in std::mem::take(&mut self.messages).into_values() {
            let unreported = usage.unreported.with(UsageClass::Output);
            usage.unreported = unreported.with(UsageClass::Reasoning);
            *models.entry(model).or_default() += usage;
        }
        if models.is_empty() && self.reported.is_empty() {
            models.insert(String::new(), Usage::UNKNOWN);
        }
        let models = models.into_iter().filter(|(_, usage)| !usage.is_zero());
        let mut tools = std::mem::take(&mut self.tools);
        let event = |(model, usage)| {
            Report::Event(EventBody::UsageRecorded {
                model,
                usage,
                reported: None,
                metered: false,
                // The first event has all of them.
                tools: Some(std::mem::take(&mut tools)),
                call: None,
            })
        };
        models.map(event).collect()
    }

    /// The end of the run, as the program reports it.
    fn outcome(&self, heard: LocalTime) -> Outcome {
        let Some(result) = &self.result else {
            return Outcome::Missing;
        };
        let words = result.result.clone().unwrap_or_else(|| result.errors.join("; "));
        if result.subtype == "success" && !result.is_error {
            let summary = if words.is_empty() {
                self.last_text.clone()
            } else {
                words
            };
            return Outcome::Done(summary);
        }
        let message = if words.is_empty() {
            result.subtype.clone()
        } else {
            words
        };
        let mut failure = ProviderError {
            status: result.api_error_status,
            error_type: result.api_error_type.as_deref(),
            error_code: result.api_error.as_deref(),
            message: &message,
            retry_after: None,
            heard: Some(heard),
        }
        .classify();
        failure.message = message;
        if result.api_error.as_deref() == Some("connection_failed") {
            failure.kind = FailureKind::Network;
        }
        match result.terminal_reason.as_deref() {
            Some("prompt_too_long") => failure.kind = FailureKind::ContextOverflow,
            Some("max_turns") => failure.kind = FailureKind::TurnLimit,
            Some("budget_exhausted") => failure.kind = FailureKind::BudgetExceeded,
            Some(_) | None => {}
        }
        if let Some(at) = self.resets_at {
            failure.kind = FailureKind::QuotaExhausted;
            failure.retry_after = Some(Timestamp::from_millis(at.saturating_mul(1000)).since(heard.now));
        }
        Outcome::Failed(failure)
    }
}

fn tool_results(value: &Value, reports: &mut Vec<Report>) {
    let content = value.get("message").and_then(|message| message.get("content"));
    for block in content.and_then(Value::as_array).into_iter().flatten() {
        if block.get("is_error").and_then(Value::as_bool) == Some(true) {
            let words = text(block, "content").unwrap_or("the tool failed");
            reports.push(readable(&format!("  failed: {}", one_line(words, ACTIVITY))));
        }
    }
}

fn system(value: &Value, reports: &mut Vec<Report>) {
    let number = |key| value.get(key).and_then(Value::as_u64);
    match text(value, "subtype") {
        Some("api_retry") => {
            let words = text(value, "error").unwrap_or("unknown");
            let status = number("error_status").and_then(|status| u16::try_from(status).ok());
            let failure = match status {
                Some(_) => ProviderError {
                    status,
                    message: words,
                    ..ProviderError::default()
                }
                .classify(),
                None => Failure::new(
                    FailureKind::Network,
                    format!("the call was cut or got no answer ({words})"),
                ),
            };
            reports.push(Report::Event(EventBody::CallRetried {
                failure,
                delay: Duration::from_millis(number("retry_delay_ms").unwrap_or(0)),
                attempt: u32::try_from(number("attempt").unwrap_or(1)).unwrap_or(u32::MAX),
            }));
        }
        Some("permission_denied") => {
            let tool = text(value, "tool_name").unwrap_or("a tool");
            reports.push(activity(&format!("{tool} was denied")));
        }
        Some("init") => {
            let model = text(value, "model").unwrap_or("an unnamed model");
            reports.push(activity(&format!("started with {model}")));
        }
        Some(_) | None => {}
    }
}

#[cfg(test)]
mod tests;

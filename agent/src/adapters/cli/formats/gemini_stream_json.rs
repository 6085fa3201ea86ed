//! The `stream-json` output of the Gemini CLI.
//!
//! The exit code does not tell: a run may end with 0 and a `result` whose status is "error", or with 0
//! and without any. A run has succeeded only when its `result` says "success".
//!
//! `input_tokens` includes what was read from a cache. The total has what the model thought, and
//! `output_tokens` has not. There is no cost.

use std::collections::BTreeMap;

use kage_core::event::EventBody;
use kage_core::failure::{Failure, FailureKind};
use kage_core::time::LocalTime;
use kage_core::tool_uses::ToolUses;
use kage_core::usage::{Unreported, Usage, UsageClass};
use serde_json::Value;

use super::event_lines::{
    EventLines, Events, UNNAMED, activity, called, describe, number_at, readable, text, text_at, tool_failed, used,
};
use super::{Format, Outcome, Rules};
use crate::adapters::port::Report;
use crate::process::excerpt::one_line;

pub(super) const FORMAT: Format = Format {
    name: "gemini-stream-json",
    family: "gemini",
    rules: Rules::OwnWords,
    reader: EventLines::<Gemini>::reader,
};

#[derive(Debug, Default)]
struct Gemini {
    end: Option<End>,
    /// The last error that was no end.
    error: String,
    reported: bool,
    tools: ToolUses,
    /// The words of the model since its last tool.
    words: String,
    /// How many bytes of them are in the log.
    shown: usize,
}

#[derive(Debug)]
enum End {
    Success,
    Failed(String),
}

impl Events for Gemini {
    fn event(&mut self, event: &Value, reports: &mut Vec<Report>) {
        match text(event, "type") {
            Some("init") => {
                let model = text(event, "model").unwrap_or("an unnamed model");
                reports.push(activity(&format!("started with {model}")));
            }
            Some("message") if text(event, "role") == Some("assistant") => self.message(event, reports),
            Some("tool_use") => {
                self.show(reports);
                self.words.clear();
                self.shown = 0;
                let name = text(event, "tool_name").unwrap_or(UNNAMED);
                self.tools.add(name, 1);
                called(&describe(name, event.get("parameters")), reports);
            }
            Some("tool_result") if text(event, "status") == Some("error") => {
                let words = text_at(event, "/error/message").or_else(|| text(event, "output"));
                tool_failed(words.unwrap_or("the tool failed"), reports);
            }
            Some("error") => {
                let words = text(event, "message").unwrap_or("an error without words");
                words.clone_into(&mut self.error);
                reports.push(Report::Event(EventBody::Warning(one_line(words, 400))));
            }
            Some("result") => {
                self.show(reports);
                self.result(event, reports);
            }
            Some(_) | None => {}
        }
    }

    fn unreported(&mut self) -> Vec<Report> {
        let mut reports = Vec::new();
        self.show(&mut reports);
        if !self.reported {
            reports.push(used("", Usage::UNKNOWN, None, std::mem::take(&mut self.tools)));
        }
        reports
    }

    fn outcome(&self, _: LocalTime) -> Outcome {
        match &self.end {
            Some(End::Success) => Outcome::Done(self.words.trim().to_owned()),
            Some(End::Failed(words)) => Outcome::Failed(Failure::new(FailureKind::Unknown, words)),
            None => Outcome::Missing,
        }
    }
}

impl Gemini {
    /// A message, or a part of one, which ends anywhere.
    fn message(&mut self, event: &Value, reports: &mut Vec<Report>) {
        let part = text(event, "content").unwrap_or_default();
        if event.get("delta").and_then(Value::as_bool) != Some(true) {
            self.show(reports);
            self.words.clear();
            self.shown = 0;
        }
        self.words.push_str(part);
        // Whole lines at once; the rest when more comes, or nothing more can.
        if let Some(end) = self.words[self.shown..].rfind('\n') {
            self.show_until(self.shown + end, reports);
        }
    }

    fn show(&mut self, reports: &mut Vec<Report>) {
        self.show_until(self.words.len(), reports);
    }

    fn show_until(&mut self, end: usize, reports: &mut Vec<Report>) {
        let new = &self.words[self.shown..end];
        if !new.trim().is_empty() {
            let new = new.trim_matches('\n');
            reports.push(readable(new));
            reports.push(activity(new));
        }
        self.shown = end;
    }

    fn result(&mut self, event: &Value, reports: &mut Vec<Report>) {
        self.end = Some(match text(event, "status") {
            Some("success") => End::Success,
            Some(_) | None => {
                let words = text_at(event, "/error/message").unwrap_or(&self.error);
                End::Failed(match words {
                    "" => "the program reported a failure without words".to_owned(),
                    words => words.to_owned(),
                })
            }
        });
        let Some(stats) = event.get("stats") else { return };
        let mut models = BTreeMap::new();
        match stats.get("models").and_then(Value::as_object) {
            Some(each) => models.extend(each.iter().map(|(model, stats)| (model.as_str(), usage(stats)))),
            None => drop(models.insert("", usage(stats))),
        }
        self.reported = true;
        for (model, usage) in models.into_iter().filter(|(_, usage)| !usage.is_zero()) {
            // The first report has all tools.
            reports.push(used(model, usage, None, std::mem::take(&mut self.tools)));
        }
    }
}

fn usage(stats: &Value) -> Usage {
    let told = |pointer: &str| number_at(stats, pointer);
    let (input, output, read) = (told("/input_tokens"), told("/output_tokens"), told("/cached"));
    let untold = [
        (UsageClass::Input, input),
        (UsageClass::Output, output),
        (UsageClass::CacheRead, read),
    ];
    let untold = untold.iter().filter(|(_, tokens)| tokens.is_none());
    let unreported = untold.fold(Unreported::default(), |all, (class, _)| all.with(*class));
    let (input, answered, read) = (input.unwrap_or(0), output.unwrap_or(0), read.unwrap_or(0));
    let thought = told("/total_tokens").map_or(0, |all| all.saturating_sub(input).saturating_sub(answered));
    Usage {
        input: input.saturating_sub(read),
        cache_write_5m: 0,
        cache_write_1h: 0,
        cache_read: read,
        output: answered.saturating_add(thought),
        reasoning: thought,
        unreported,
    }
}

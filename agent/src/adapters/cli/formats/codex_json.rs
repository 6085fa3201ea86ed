//! The events of `codex exec --json`.
//!
//! A run has succeeded only when its last turn says `turn.completed`. An `error` event is mostly no
//! end: it tells that a call is repeated ("Reconnecting... 2/5 (why)").
//!
//! Usage counts from the start of the thread, also after a resume; input includes what was read from
//! and written to a cache, and output includes reasoning. There is no cost, and no model's name.

use std::time::Duration;

use kage_core::event::EventBody;
use kage_core::failure::{Failure, FailureKind};
use kage_core::failure_table::FailureTable;
use kage_core::time::{LocalTime, Timestamp};
use kage_core::tool_uses::ToolUses;
use kage_core::usage::{Unreported, Usage, UsageClass};
use serde_json::Value;

use super::event_lines::{
    EventLines, Events, UNNAMED, activity, called, number_at, said, text, text_at, tool_failed, used, values_of,
};
use super::{Format, Outcome, Rules};
use crate::adapters::port::Report;
use crate::process::excerpt::one_line;

pub(super) const FORMAT: Format = Format {
    name: "codex-json",
    family: "codex",
    rules: Rules::OwnWords,
    reader: EventLines::<Codex>::reader,
};

#[derive(Debug, Default)]
struct Codex {
    thread: Option<String>,
    end: Option<End>,
    /// What was reported of the thread.
    counted: Usage,
    reported: bool,
    tools: ToolUses,
    last_text: String,
    repeated: u32,
}

#[derive(Debug)]
enum End {
    Completed,
    Failed(String),
}

impl Events for Codex {
    fn event(&mut self, event: &Value, reports: &mut Vec<Report>) {
        match text(event, "type") {
            Some("thread.started") => self.thread = text(event, "thread_id").map(str::to_owned),
            Some("turn.started") => {
                self.end = None;
                reports.push(activity("started"));
            }
            Some("item.started") => item_started(event, reports),
            Some("item.completed") => self.item_completed(event, reports),
            Some("turn.completed") => {
                self.end = Some(End::Completed);
                if let Some(usage) = event.get("usage") {
                    self.count(usage, reports);
                }
            }
            Some("turn.failed") => {
                let words = text_at(event, "/error/message").unwrap_or("the turn failed");
                self.end = Some(End::Failed(words.to_owned()));
            }
            Some("error") => {
                let words = text(event, "message").unwrap_or_default();
                match words.strip_prefix("Reconnecting...") {
                    Some(why) => self.repeated(why.trim(), reports),
                    None if words.is_empty() => {}
                    None => reports.push(Report::Event(EventBody::Warning(one_line(words, 400)))),
                }
            }
            Some(_) | None => {}
        }
    }

    /// The last count of the thread in its file is where the program goes on counting.
    fn resumed(&mut self, said: &[u8]) {
        for line in values_of(said) {
            if text_at(&line, "/payload/type") == Some("token_count")
                && let Some(total) = line.pointer("/payload/info/total_token_usage")
            {
                self.counted = usage(total);
            }
        }
    }

    fn conversation(&self) -> Option<&str> {
        self.thread.as_deref()
    }

    fn unreported(&mut self) -> Vec<Report> {
        if self.reported {
            return Vec::new();
        }
        vec![used("", Usage::UNKNOWN, None, std::mem::take(&mut self.tools))]
    }

    fn outcome(&self, _: LocalTime) -> Outcome {
        match &self.end {
            Some(End::Completed) => Outcome::Done(self.last_text.clone()),
            Some(End::Failed(words)) => Outcome::Failed(Failure::new(FailureKind::Unknown, words)),
            None => Outcome::Missing,
        }
    }
}

impl Codex {
    /// A call that is repeated: "2/5 (unexpected status 500 ...)", "waiting for network (...)".
    fn repeated(&mut self, why: &str, reports: &mut Vec<Report>) {
        self.repeated = self.repeated.saturating_add(1);
        let of = why.split('/').next().and_then(|number| number.trim().parse().ok());
        let heard = LocalTime::utc(Timestamp::default());
        let known = FailureTable::builtin().classify("codex", why, heard);
        let failure = known.unwrap_or_else(|| Failure::new(FailureKind::Network, one_line(why, 400)));
        reports.push(Report::Event(EventBody::CallRetried {
            failure,
            delay: Duration::ZERO,
            attempt: of.unwrap_or(self.repeated),
        }));
    }

    fn item_completed(&mut self, event: &Value, reports: &mut Vec<Report>) {
        let Some(item) = event.get("item") else { return };
        let failed = text(item, "status") == Some("failed");
        match text(item, "type") {
            Some("agent_message") => {
                let words = text(item, "text").unwrap_or_default();
                if said(words, reports) {
                    words.clone_into(&mut self.last_text);
                }
            }
            Some("command_execution") => {
                self.tools.add("command_execution", 1);
                if failed {
                    let code = item.get("exit_code").and_then(Value::as_i64);
                    let code = code.map_or_else(String::new, |code| format!("exit code {code}: "));
                    tool_failed(
                        &format!("{code}{}", text(item, "aggregated_output").unwrap_or_default()),
                        reports,
                    );
                }
            }
            Some("file_change") => {
                self.tools.add("file_change", 1);
                for change in item.get("changes").and_then(Value::as_array).into_iter().flatten() {
                    let kind = text(change, "kind").unwrap_or("change");
                    called(&format!("{kind} {}", text(change, "path").unwrap_or("a file")), reports);
                }
                if failed {
                    tool_failed("the files could not be changed", reports);
                }
            }
            Some("mcp_tool_call") => {
                let name = text(item, "tool").unwrap_or(UNNAMED);
                self.tools.add(name, 1);
                called(name, reports);
                if failed {
                    tool_failed(text_at(item, "/error/message").unwrap_or("the tool failed"), reports);
                }
            }
            Some("web_search") => {
                self.tools.add("web_search", 1);
                called(
                    &format!("web_search {}", text(item, "query").unwrap_or_default()),
                    reports,
                );
            }
            Some("error") => {
                let words = text(item, "message").unwrap_or_default();
                reports.push(Report::Event(EventBody::Warning(one_line(words, 400))));
            }
            Some(_) | None => {}
        }
    }

    /// Reports what was used since the last count.
    fn count(&mut self, told: &Value, reports: &mut Vec<Report>) {
        let all = usage(told);
        let new = all.since(self.counted);
        self.counted = all.at_least(self.counted);
        self.reported = true;
        reports.push(used("", new, None, std::mem::take(&mut self.tools)));
    }
}

/// The usage of a thread.
fn usage(told: &Value) -> Usage {
    let number = |pointer: &str| number_at(told, pointer);
    let (input, output) = (number("/input_tokens"), number("/output_tokens"));
    let read = number("/cached_input_tokens");
    let (written, reasoning) = (number("/cache_write_input_tokens"), number("/reasoning_output_tokens"));
    let untold = [
        (UsageClass::Input, input),
        (UsageClass::CacheRead, read),
        (UsageClass::Output, output),
        (UsageClass::Reasoning, reasoning),
    ];
    let untold = untold.iter().filter(|(_, tokens)| tokens.is_none());
    let (read, written) = (read.unwrap_or(0), written.unwrap_or(0));
    Usage {
        input: input.unwrap_or(0).saturating_sub(read).saturating_sub(written),
        cache_write_5m: written,
        cache_write_1h: 0,
        cache_read: read,
        output: output.unwrap_or(0),
        reasoning: reasoning.unwrap_or(0),
        unreported: untold.fold(Unreported::default(), |all, (class, _)| all.with(*class)),
    }
}

fn item_started(event: &Value, reports: &mut Vec<Report>) {
    let Some(item) = event.get("item") else { return };
    if text(item, "type") == Some("command_execution") {
        let command = text(item, "command").unwrap_or("a command");
        // The shell around it says nothing.
        let shown = ["/bin/bash -lc ", "/bin/sh -lc ", "bash -lc "];
        let shown = shown.iter().find_map(|shell| command.strip_prefix(shell));
        called(shown.unwrap_or(command), reports);
    }
}

//! A program's messages about its own failure, without everything else that it prints: answers of
//! models and output of tools quote errors of all kinds.
//!
//! ```text
//!   1. its terminal error: the last line of output that is a JSON object and tells of one
//!   2. the end of its standard error
//!   3. when there is neither: the last line of its output, if that reads like an error
//! ```

use std::collections::VecDeque;
use std::sync::LazyLock;

use regex::Regex;
use serde_json::Value;

use super::lines::{Line, Lines};

/// Lines of standard error that are kept: more than an error and its stack.
const KEPT: usize = 40;
/// Bytes of a line that are looked at.
const LINE: usize = 64 << 10;
/// Longest kept line, in bytes.
const SHORT: usize = 1 << 10;

/// The program's messages so far.
#[derive(Debug)]
pub(super) struct OwnWords {
    stdout: Lines,
    stderr: Lines,
    /// The terminal error that the program reported.
    told: Option<String>,
    /// The end of standard error.
    tail: VecDeque<String>,
    /// The last line of output that is no event.
    last: String,
}

impl OwnWords {
    pub(super) fn new() -> Self {
        Self {
            stdout: Lines::new(LINE),
            stderr: Lines::new(LINE),
            told: None,
            tail: VecDeque::new(),
            last: String::new(),
        }
    }

    pub(super) fn stdout(&mut self, bytes: &[u8]) {
        for line in self.stdout.push(bytes) {
            self.printed(line);
        }
    }

    pub(super) fn stderr(&mut self, bytes: &[u8]) {
        for line in self.stderr.push(bytes) {
            self.complained(line);
        }
    }

    /// Handles a last line without a line break.
    pub(super) fn finish(&mut self) {
        if let Some(line) = self.stdout.finish() {
            self.printed(line);
        }
        if let Some(line) = self.stderr.finish() {
            self.complained(line);
        }
    }

    fn printed(&mut self, line: Line) {
        let Some(line) = text(line) else { return };
        match serde_json::from_str::<Value>(&line) {
            Ok(event @ Value::Object(_)) => {
                if let Some(error) = terminal_error(&event) {
                    self.told = Some(error);
                }
            }
            Ok(_) | Err(_) => self.last = shortened(&line),
        }
    }

    fn complained(&mut self, line: Line) {
        let Some(line) = text(line) else { return };
        if self.tail.len() >= KEPT {
            self.tail.pop_front();
        }
        self.tail.push_back(shortened(&line));
    }

    /// Texts that may explain the failure, the most reliable first. A later one counts only when
    /// the earlier ones explain nothing.
    pub(super) fn reasons(&self) -> Vec<String> {
        let mut reasons: Vec<String> = self.told.iter().cloned().collect();
        if !self.tail.is_empty() {
            reasons.push(self.tail.iter().map(String::as_str).collect::<Vec<_>>().join("\n"));
        } else if self.told.is_none() && reads_like_an_error(&self.last) {
            reasons.push(self.last.clone());
        }
        reasons
    }

    /// The line to show for an unknown failure.
    pub(super) fn last_line(&self) -> &str {
        let told = self.told.as_deref();
        told.or_else(|| self.tail.back().map(String::as_str))
            .unwrap_or(&self.last)
    }
}

/// A line with something in it.
fn text(line: Line) -> Option<String> {
    match line {
        Line::Whole(bytes) => Some(String::from_utf8_lossy(&bytes).trim().to_owned()).filter(|line| !line.is_empty()),
        Line::TooLong { .. } => None,
    }
}

fn shortened(line: &str) -> String {
    line[..line.floor_char_boundary(SHORT.min(line.len()))].to_owned()
}

/// Whether a line begins as programs begin a message about an error.
fn reads_like_an_error(line: &str) -> bool {
    static ERROR: LazyLock<Regex> = LazyLock::new(|| {
        let pattern = r"(?xi) ^ [^\w\s]* \s*
            (?: [\w.:-]{0,40} (?:error|exception|fatal|panic|failure|denied) \b
              | failed\b | fatal\b | cannot\b | could\ not\b | unable\ to\b | abort(?:ed|ing)?\b | killed\b | segmentation\ fault
              | (?:api|http|request|connection|network|authentication|usage|rate|quota|context|you.ve\ (?:hit|reached)|time-?out|timed\ out|\d{3}) \b
                (?: .{0,60} (?:error|exceed|reached|refused|reset|closed|limit|fail|overload|denied|invalid|too\ many|unauthorized|\b[45]\d\d\b) | $ ) )";
        Regex::new(pattern).expect("the tests use the pattern")
    });
    ERROR.is_match(line)
}

/// The message of an event that reports a terminal error, in the forms of programs that print
/// events: codex, gemini, qwen, opencode, cline, copilot, claude.
fn terminal_error(event: &Value) -> Option<String> {
    let text = |value: &Value, path: &str| value.pointer(path).and_then(Value::as_str).map(str::to_owned);
    let words = |value: &Value| {
        let said = [
            "/error/data/message",
            "/error/message",
            "/data/message",
            "/message",
            "/result",
            "/text",
        ];
        let said = said
            .iter()
            .find_map(|path| text(value, path).filter(|said| !said.trim().is_empty()));
        said.or_else(|| text(value, "/errors/0"))
            .or_else(|| text(value, "/error"))
            .or_else(|| text(value, "/error/name"))
    };
    let number = |value: &Value, paths: &[&str]| paths.iter().find_map(|path| value.pointer(path)?.as_u64());
    match text(event, "/type")?.as_str() {
        "error" | "turn.failed" | "session.error" => {}
        "result" => {
            let failed = event.pointer("/is_error") == Some(&Value::Bool(true))
                || text(event, "/status").as_deref() == Some("error")
                || text(event, "/subtype").is_some_and(|subtype| subtype.starts_with("error"))
                || number(event, &["/exitCode"]).is_some_and(|code| code != 0);
            if !failed {
                return None;
            }
        }
        "run_result" => {
            if text(event, "/finishReason").as_deref() != Some("error") {
                return None;
            }
        }
        "agent_event" => {
            let inner = event.get("event")?;
            return (text(inner, "/type").as_deref() == Some("error")).then(|| words(inner))?;
        }
        "model.call_failure" => {
            let status = number(event, &["/statusCode", "/data/statusCode"]);
            return match (status, words(event)) {
                (Some(status), said) => Some(format!("HTTP {status}: {}", said.unwrap_or_default())),
                (None, said) => said,
            };
        }
        _ => return None,
    }
    let said = words(event)?;
    let status = number(
        event,
        &[
            "/error/data/statusCode",
            "/error/status",
            "/error/statusCode",
            "/api_error_status",
        ],
    );
    Some(match (status, text(event, "/error/name")) {
        (Some(status), _) => format!("HTTP {status}: {said}"),
        (None, Some(name)) if !said.contains(&name) => format!("{name}: {said}"),
        (None, _) => said,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(stdout: &str, stderr: &str) -> Vec<String> {
        let mut words = OwnWords::new();
        // Cut anywhere, as pipes do.
        for part in stdout.as_bytes().chunks(7) {
            words.stdout(part);
        }
        for part in stderr.as_bytes().chunks(7) {
            words.stderr(part);
        }
        words.finish();
        words.reasons()
    }

    #[test]
    fn terminal_errors_are_found_in_every_shape() {
        let cases = [
            (
                r#"{"type":"turn.failed","error":{"message":"Quota exceeded."}}"#,
                "Quota exceeded.",
            ),
            (
                r#"{"type":"error","message":"Rate limit reached"}"#,
                "Rate limit reached",
            ),
            (
                r#"{"type":"result","status":"error","error":{"type":"unknown","message":"[API Error: terminated]"}}"#,
                "[API Error: terminated]",
            ),
            (
                r#"{"type":"result","subtype":"error_during_execution","is_error":true,"error":{"message":"[API Error: 401 no]"}}"#,
                "[API Error: 401 no]",
            ),
            (
                r#"{"type":"result","is_error":true,"errors":["Reached maximum budget ($0.2)"]}"#,
                "Reached maximum budget ($0.2)",
            ),
            (
                r#"{"type":"result","is_error":true,"result":"Not logged in"}"#,
                "Not logged in",
            ),
            (
                r#"{"type":"error","error":{"name":"APIError","data":{"message":"no","statusCode":429}}}"#,
                "HTTP 429: no",
            ),
            (
                r#"{"type":"error","error":{"name":"ContextOverflowError","data":{"message":"too much"}}}"#,
                "ContextOverflowError: too much",
            ),
            (
                r#"{"type":"run_result","finishReason":"error","text":"You exceeded"}"#,
                "You exceeded",
            ),
            (
                r#"{"type":"agent_event","event":{"type":"error","error":{"message":"no key"}}}"#,
                "no key",
            ),
            (r#"{"type":"model.call_failure","statusCode":401}"#, "HTTP 401: "),
        ];
        for (event, expected) in cases {
            assert_eq!(of(&format!("{event}\n"), ""), [expected], "{event}");
            // What comes after it is not lost either.
            assert_eq!(of(&format!("{event}\nbye\n"), "x\n"), [expected, "x"], "{event}");
        }
    }

    #[test]
    fn what_is_quoted_is_no_reason() {
        for stdout in [
            r#"{"type":"item.completed","item":{"type":"agent_message","text":"429 Too Many Requests"}}"#,
            r#"{"type":"item.completed","item":{"type":"command_execution","aggregated_output":"AssertionError","exit_code":1}}"#,
            r#"{"type":"tool_result","status":"error","error":{"message":"TypeError"}}"#,
            r#"{"type":"result","status":"success","response":"fixed the KeyError"}"#,
            r#"{"type":"result","subtype":"success","is_error":false,"result":"429 Too Many Requests"}"#,
            r#"{"role":"tool","content":"AssertionError"}"#,
            "I handle 429 Too Many Requests now.",
            "The test said AssertionError: 3 != 4, so I changed it",
            "- a timeout of 30 s for each call",
            "all done",
        ] {
            assert_eq!(of(stdout, ""), Vec::<String>::new(), "{stdout}");
            assert_eq!(of(stdout, "boom\n"), ["boom"], "{stdout}");
        }
    }

    #[test]
    fn a_last_line_counts_when_it_is_an_error_and_nothing_else_is_said() {
        for line in [
            "error: rate limit exceeded",
            "Error: no",
            "litellm.RateLimitError: slow",
            "[API Error: 500 x]",
            "rate limit reached",
            "429 Too Many Requests",
            "Usage limit reached",
            "HTTP 503",
            "timed out",
            "Connection refused",
        ] {
            assert_eq!(of(&format!("an answer\n{line}\n"), ""), [line]);
            assert_eq!(of(line, "boom"), ["boom"]);
            assert_eq!(of(&format!("{line}\nand an answer"), ""), Vec::<String>::new());
        }
    }

    #[test]
    fn only_the_end_of_standard_error_is_kept() {
        let many: String = (0..1000).map(|n| format!("line {n}\n")).collect();
        let reasons = of("", &many);
        assert!(reasons[0].starts_with("line 960\n") && reasons[0].ends_with("line 999"));
        let long = "é".repeat(10 << 10);
        assert!(of("", &long)[0].len() <= SHORT);
    }
}

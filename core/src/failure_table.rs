//! Classifies failures from the answers of providers and the output of programs: an HTTP answer
//! first and, where there is nothing structured, the words of an error, by a table that users can
//! extend (`core/data/failures.toml`). `recovery` decides what to do about a failure.

use std::sync::LazyLock;
use std::time::Duration;

use regex::{Regex, RegexBuilder};
use serde::Deserialize;

use crate::failure::{Failure, FailureKind};
use crate::time::{LocalTime, Timestamp};

#[cfg(test)]
mod tests;
mod wait;

/// A provider's error answer: an HTTP response, or an error inside a stream that began well and
/// therefore has no status of its own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ProviderError<'a> {
    /// HTTP status; `None` for an error event in a stream.
    pub status: Option<u16>,
    /// The provider's own class, such as `overloaded_error`.
    pub error_type: Option<&'a str>,
    /// The provider's finer code, such as `enforced_spend_limit_reached`.
    pub error_code: Option<&'a str>,
    /// The provider's words.
    pub message: &'a str,
    /// The wait it asked for.
    pub retry_after: Option<Duration>,
    /// When and where the answer came, so that a time in its words becomes a wait.
    pub heard: Option<LocalTime>,
}

impl ProviderError<'_> {
    /// The failure of this answer. The kind comes from the status, corrected by the provider's own
    /// class, code and words where they are more exact.
    #[must_use]
    pub fn classify(&self) -> Failure {
        let mut message = self.message.trim().to_owned();
        if message.is_empty() {
            message = "the provider gave no reason".to_owned();
        }
        if let Some(status) = self.status {
            message = format!("HTTP {status}: {message}");
        }
        let kind = self.kind();
        let in_words = || wait::wait(self.message, self.heard.filter(|_| passes(kind))?);
        Failure {
            kind,
            message,
            retry_after: self.retry_after.or_else(in_words),
        }
    }

    fn kind(&self) -> FailureKind {
        if self.spent() {
            return FailureKind::QuotaExhausted;
        }
        if self.flagged() {
            return FailureKind::ModelRefused;
        }
        match (self.status, self.error_type.and_then(kind_of_type)) {
            (Some(status), by_type) => match kind_of_status(status) {
                // Providers use 400 for several failures, and some send errors with 200.
                Some(FailureKind::InvalidRequest) if self.too_long() => FailureKind::ContextOverflow,
                Some(FailureKind::InvalidRequest) => match by_type {
                    Some(kind @ (FailureKind::Auth | FailureKind::QuotaExhausted)) => kind,
                    Some(_) | None => FailureKind::InvalidRequest,
                },
                Some(kind) => kind,
                None => by_type.unwrap_or(FailureKind::Unknown),
            },
            (None, Some(FailureKind::InvalidRequest)) if self.too_long() => FailureKind::ContextOverflow,
            // An error in a stream that tells no kind has words at least.
            (None, None) => FailureTable::builtin()
                .kind("", self.message)
                .unwrap_or(FailureKind::Unknown),
            (None, Some(kind)) => kind,
        }
    }

    /// True when an account or plan is used up: a short wait would not help.
    fn spent(&self) -> bool {
        const CODES: [&str; 4] = [
            "enforced_spend_limit_reached",
            "insufficient_quota",
            "usage_limit_reached",
            "billing_error",
        ];
        let named = |name: Option<&str>| name.is_some_and(|name| CODES.contains(&name));
        // Some say of a limit that passes within a minute that the quota is exceeded.
        let passes = self.error_code == Some("rate_limit_exceeded");
        // An error of the server itself says nothing about an account.
        let of_account = !passes && self.status.is_none_or(|status| (200..500).contains(&status));
        named(self.error_code) || named(self.error_type) || (of_account && self.says(FailureKind::QuotaExhausted))
    }

    /// True when the provider will have no model answer this prompt.
    fn flagged(&self) -> bool {
        const CODES: [&str; 4] = [
            "invalid_prompt",
            "content_policy_violation",
            "cyber_policy_violation",
            // Azure's.
            "content_filter",
        ];
        let named = |name: Option<&str>| name.is_some_and(|name| CODES.contains(&name));
        named(self.error_code) || named(self.error_type)
    }

    fn too_long(&self) -> bool {
        const CODES: [&str; 3] = [
            "context_length_exceeded",
            "exceed_context_size_error",
            "request_too_large",
        ];
        let named = |name: Option<&str>| name.is_some_and(|name| CODES.contains(&name));
        named(self.error_code) || named(self.error_type) || self.says(FailureKind::ContextOverflow)
    }

    /// Whether its words are those of this kind of failure.
    fn says(&self, kind: FailureKind) -> bool {
        FailureTable::builtin().kind("", self.message) == Some(kind)
    }
}

/// The meaning of an HTTP status. `None` for a status that is no error.
///
/// 500 and 502 are `Network`: the call did not get through, and a retry is safe and likely to help;
/// 503 and 529 mean that there is no capacity. A request that is too large in bytes (413) is a
/// context that is too large.
fn kind_of_status(status: u16) -> Option<FailureKind> {
    Some(match status {
        401 | 403 => FailureKind::Auth,
        402 => FailureKind::QuotaExhausted,
        408 | 504 => FailureKind::Timeout,
        413 => FailureKind::ContextOverflow,
        429 => FailureKind::RateLimited,
        503 | 529 => FailureKind::Overloaded,
        400..=499 => FailureKind::InvalidRequest,
        500..=599 => FailureKind::Network,
        _ => return None,
    })
}

/// The meaning of a provider's own class.
fn kind_of_type(error_type: &str) -> Option<FailureKind> {
    Some(match error_type {
        "authentication_error" | "permission_error" | "invalid_api_key" => FailureKind::Auth,
        "UNAUTHENTICATED" | "PERMISSION_DENIED" => FailureKind::Auth,
        "billing_error" => FailureKind::QuotaExhausted,
        "invalid_request_error" | "not_found_error" | "conflict_error" => FailureKind::InvalidRequest,
        "INVALID_ARGUMENT" | "FAILED_PRECONDITION" | "NOT_FOUND" => FailureKind::InvalidRequest,
        "request_too_large" | "context_length_exceeded" => FailureKind::ContextOverflow,
        "rate_limit_error" | "rate_limit_exceeded" | "RESOURCE_EXHAUSTED" => FailureKind::RateLimited,
        "overloaded_error" | "unavailable_error" | "server_is_overloaded" | "slow_down" | "UNAVAILABLE" => {
            FailureKind::Overloaded
        }
        "timeout_error" | "DEADLINE_EXCEEDED" => FailureKind::Timeout,
        "api_error" | "server_error" | "internal_server_error" | "INTERNAL" => FailureKind::Network,
        _ => return None,
    })
}

/// Reads a `retry-after` header: seconds, or a date to compare with `now`.
#[must_use]
pub fn parse_retry_after(value: &str, now: Timestamp) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let at = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(value).ok()?;
    let at = u64::try_from(at.as_millisecond()).ok()?;
    Some(Timestamp::from_millis(at).since(now))
}

/// Why a text is not a failure table.
#[derive(Debug, thiserror::Error)]
pub enum InvalidRules {
    /// It is not TOML of the right shape.
    #[error("the failure table is not valid")]
    Toml(#[source] Box<toml::de::Error>),
    /// A pattern is not a regular expression.
    #[error("the pattern {pattern:?} is not a regular expression")]
    Pattern {
        /// What was given.
        pattern: String,
        /// What is wrong with it.
        #[source]
        source: Box<regex::Error>,
    },
}

/// Whose words are classified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Speaker<'a> {
    /// The adapter's name.
    pub adapter: &'a str,
    /// The program that it runs, as rules name it; empty when it is none that rules know.
    pub family: &'a str,
}

/// An adapter whose program nothing is known of, or nobody (the empty name).
impl<'a> From<&'a str> for Speaker<'a> {
    fn from(adapter: &'a str) -> Self {
        Self { adapter, family: "" }
    }
}

impl Speaker<'_> {
    /// Whether a rule with this in its list is about the speaker.
    fn is_named(self, name: &str) -> bool {
        name == self.adapter || (!self.family.is_empty() && name == self.family)
    }
}

/// The meaning of words in errors.
#[derive(Debug, Clone, Default)]
pub struct FailureTable {
    rules: Vec<Rule>,
}

#[derive(Debug, Clone)]
struct Rule {
    pattern: Regex,
    /// Names of adapters or of their programs. Empty: all.
    adapters: Vec<String>,
    kind: FailureKind,
}

static BUILTIN: LazyLock<FailureTable> = LazyLock::new(|| {
    FailureTable::parse(include_str!("../data/failures.toml")).expect("the tests parse the built-in failure table")
});

impl FailureTable {
    /// The table that comes with the program.
    #[must_use]
    pub fn builtin() -> &'static Self {
        &BUILTIN
    }

    /// Reads a table.
    ///
    /// # Errors
    /// Says the first thing that is wrong.
    pub fn parse(text: &str) -> Result<Self, InvalidRules> {
        let file: TableFile = toml::from_str(text).map_err(|e| InvalidRules::Toml(Box::new(e)))?;
        let rules = file.rule.into_iter().map(RuleFile::into_rule);
        Ok(Self {
            rules: rules.collect::<Result<_, _>>()?,
        })
    }

    /// Adds `other`'s rules before these.
    #[must_use]
    pub fn overlay(self, mut other: Self) -> Self {
        other.rules.extend(self.rules);
        other
    }

    /// The failure in the words of an adapter's program. Its message is the line that matched; its wait is taken
    /// from that line or those after it. `None` when no rule matches.
    ///
    /// The caller passes only the program's words about its own failure, and bounds them: words
    /// that a model's answer or a tool's output quotes mean nothing.
    #[must_use]
    pub fn classify<'a>(&self, speaker: impl Into<Speaker<'a>>, text: &str, heard: LocalTime) -> Option<Failure> {
        let (kind, at) = self.find(speaker.into(), text)?;
        let line = line_around(text, at);
        let wait = || wait::wait(&line, heard).or_else(|| wait::wait(&text[at..], heard));
        Some(Failure {
            retry_after: passes(kind).then(wait).flatten(),
            ..Failure::new(kind, line)
        })
    }

    /// The kind of the failure in the words of an adapter's program.
    #[must_use]
    pub fn kind<'a>(&self, speaker: impl Into<Speaker<'a>>, text: &str) -> Option<FailureKind> {
        self.find(speaker.into(), text).map(|(kind, _)| kind)
    }

    /// The first rule that matches, and the position.
    fn find(&self, speaker: Speaker<'_>, text: &str) -> Option<(FailureKind, usize)> {
        self.rules
            .iter()
            .filter(|rule| rule.adapters.is_empty() || rule.adapters.iter().any(|name| speaker.is_named(name)))
            .find_map(|rule| {
                let found = rule.pattern.find(text)?;
                // The match may begin with the end of the line before.
                let word = found.as_str().trim_start();
                Some((rule.kind, found.end() - word.len()))
            })
    }
}

/// Words of a system that could not make a process, or had no memory for it.
const NO_ROOM: [&str; 2] = ["resource temporarily unavailable", "cannot allocate memory"];

/// A failure of a machine's own files or programs; that of a full disk or of a machine without room
/// when its words say so.
#[must_use]
pub fn local_failure(kind: FailureKind, message: String) -> Failure {
    let small = message.to_ascii_lowercase();
    let kind = if FailureTable::builtin().kind("", &message) == Some(FailureKind::DiskFull) {
        FailureKind::DiskFull
    } else if NO_ROOM.iter().any(|words| small.contains(words)) {
        FailureKind::MachineBusy
    } else {
        kind
    };
    Failure::new(kind, message)
}

/// Whether time cures it, so that a wait in its words is meaningful.
const fn passes(kind: FailureKind) -> bool {
    match kind {
        FailureKind::RateLimited | FailureKind::Overloaded | FailureKind::QuotaExhausted => true,
        FailureKind::Network
        | FailureKind::Timeout
        | FailureKind::Auth
        | FailureKind::TokenExpired
        | FailureKind::InvalidRequest
        | FailureKind::ModelRefused
        | FailureKind::ContextOverflow
        | FailureKind::ContextUnavailable
        | FailureKind::CorruptedState
        | FailureKind::LogicError
        | FailureKind::TurnLimit
        | FailureKind::NoChange
        | FailureKind::ResultTooLarge
        | FailureKind::SecretFound
        | FailureKind::ResultRefused
        | FailureKind::AdapterCrash
        | FailureKind::AdapterUnavailable
        | FailureKind::DiskFull
        | FailureKind::MachineBusy
        | FailureKind::SetupFailed
        | FailureKind::AgentLost
        | FailureKind::BudgetExceeded
        | FailureKind::Cancelled
        | FailureKind::Unknown => false,
    }
}

/// The most characters of a matched line that become a failure's message.
const MAX_MESSAGE: usize = 400;

fn line_around(text: &str, at: usize) -> String {
    let start = text[..at].rfind('\n').map_or(0, |newline| newline + 1);
    let line = text[start..].lines().next().unwrap_or_default().trim();
    line.chars().take(MAX_MESSAGE).collect()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TableFile {
    #[serde(default)]
    rule: Vec<RuleFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleFile {
    pattern: String,
    #[serde(default)]
    adapters: Vec<String>,
    kind: FailureKind,
}

impl RuleFile {
    fn into_rule(self) -> Result<Rule, InvalidRules> {
        let pattern = RegexBuilder::new(&self.pattern)
            .case_insensitive(true)
            .build()
            .map_err(|e| InvalidRules::Pattern {
                pattern: self.pattern,
                source: Box::new(e),
            })?;
        Ok(Rule {
            pattern,
            adapters: self.adapters,
            kind: self.kind,
        })
    }
}

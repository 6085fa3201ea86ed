//! The rules of a manifest for what a program's end, or its words while it runs, mean.

use std::time::Duration;

use kage_core::failure::FailureKind;
use regex::Regex;
use serde::{Deserialize, Deserializer, de};

use super::Manifest;

/// The meaning of an exit code or of a message. A rule without an exit code applies only when the
/// program failed; `exit_code = 0` finds failures of programs that exit with 0.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FailureRule {
    /// The code the program ended with.
    #[serde(default)]
    pub exit_code: Option<i32>,
    /// Searched in the end of its output, standard error included.
    #[serde(default, deserialize_with = "pattern")]
    pub pattern: Option<Regex>,
    /// The program is ended after this time in which it printed such a line and got nothing done. Then
    /// the rule is about lines of a running program, not about its end.
    #[serde(default, deserialize_with = "duration")]
    pub while_running: Option<Duration>,
    pub kind: FailureKind,
}

impl FailureRule {
    pub(super) fn check(&self) -> Result<(), String> {
        match (&self.pattern, self.exit_code, self.while_running) {
            (None, None, _) => Err(format!(
                "a failure rule ({:?}) has neither exit_code nor pattern",
                self.kind
            )),
            (None, _, Some(_)) | (_, Some(_), Some(_)) => Err(format!(
                "a failure rule ({:?}) with while_running needs a pattern, and no exit_code: the program runs",
                self.kind
            )),
            (_, _, _) => Ok(()),
        }
    }
}

impl Manifest {
    /// Adds the rules of another manifest of the same program that is run in the same way. A rule of its own about
    /// the same words or exit code counts instead.
    pub(in crate::adapters) fn with_rules_of(&mut self, other: &Self) {
        let is_the_same = self.family() == other.family() && self.acp.is_some() == other.acp.is_some();
        if self.family().is_empty() || !is_the_same {
            return;
        }
        let about = |rule: &FailureRule| {
            (
                rule.exit_code,
                rule.pattern.as_ref().map(|words| words.as_str().to_owned()),
            )
        };
        let own: Vec<_> = self.failures.iter().map(about).collect();
        let more = other.failures.iter().filter(|rule| !own.contains(&about(rule)));
        self.failures.extend(more.cloned());
    }
}

fn pattern<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Regex>, D::Error> {
    let text = String::deserialize(deserializer)?;
    Regex::new(&text).map(Some).map_err(de::Error::custom)
}

/// A whole number and its unit, as in "90s" or "5m".
fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let wrong = || de::Error::custom(format!("{text:?} is not a time such as \"60s\" or \"5m\""));
    let unit = text.chars().next_back().ok_or_else(wrong)?;
    let factor = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        _ => return Err(wrong()),
    };
    let number = text.strip_suffix(unit).and_then(|number| number.parse::<u32>().ok());
    match number {
        Some(number) if number > 0 => Ok(Some(Duration::from_secs(u64::from(number) * factor))),
        Some(_) | None => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(text: &str) -> Result<FailureRule, String> {
        let rule: FailureRule = toml::from_str(text).map_err(|error| error.to_string())?;
        rule.check().map(|()| rule)
    }

    #[test]
    fn a_time_while_it_runs_has_a_unit() {
        let of = |time: &str| rule(&format!("pattern = 'x'\nkind = 'network'\nwhile_running = '{time}'"));
        for (time, seconds) in [("60s", 60), ("5m", 300), ("1h", 3600)] {
            assert_eq!(of(time).unwrap().while_running, Some(Duration::from_secs(seconds)));
        }
        for time in ["", "60", "s", "0s", "1.5m", "-1s", "60 s", "1d", "9999999999s"] {
            assert!(of(time).unwrap_err().contains("not a time"), "{time}");
        }
    }

    #[test]
    fn a_rule_about_a_running_program_has_a_pattern_alone() {
        assert!(rule("exit_code = 1\nkind = 'auth'").is_ok());
        assert!(rule("kind = 'auth'").unwrap_err().contains("neither"));
        for text in [
            "exit_code = 1\nwhile_running = '1s'\nkind = 'auth'",
            "exit_code = 1\npattern = 'x'\nwhile_running = '1s'\nkind = 'auth'",
        ] {
            assert!(rule(text).unwrap_err().contains("needs a pattern"), "{text}");
        }
    }
}

//! A program that only says the same and gets nothing done: "Reconnecting..." for ever, when its provider
//! is gone. The rules of its manifest with `while_running` say what such lines mean, and for how long the
//! program may print nothing better. Pure: what time it is comes from the caller.
//!
//! ```text
//!   a line that matches ─▶ its clock runs ─▶ the time has passed: the program is ended
//!                              │ ▲
//!                    progress  ▼ │ a line that matches
//!                            no clock
//! ```

use std::time::Duration;

use kage_core::failure::FailureKind;
use tokio::time::Instant;

use super::lines::{Line, Lines};
use super::manifest::FailureRule;
use crate::process::excerpt::one_line;

/// Bytes of a line that are looked at.
const LINE: usize = 64 << 10;
/// Characters of a line that are kept.
const KEPT: usize = 400;

/// The clocks of one run.
#[derive(Debug)]
pub(in crate::adapters) struct Stuck<'r> {
    clocks: Vec<Clock<'r>>,
    stdout: Lines,
    stderr: Lines,
}

#[derive(Debug)]
struct Clock<'r> {
    rule: &'r FailureRule,
    allowed: Duration,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    until: Instant,
    /// The last line that matched.
    line: String,
}

impl<'r> Stuck<'r> {
    pub(in crate::adapters) fn new(rules: &'r [FailureRule]) -> Self {
        let clocks = rules.iter().filter_map(|rule| {
            Some(Clock {
                rule,
                allowed: rule.while_running?,
                running: None,
            })
        });
        Self {
            clocks: clocks.collect(),
            stdout: Lines::new(LINE),
            stderr: Lines::new(LINE),
        }
    }

    /// Looks at standard output. Returns whether there were lines, and none of them matched.
    pub(in crate::adapters) fn stdout(&mut self, bytes: &[u8], now: Instant) -> bool {
        if self.clocks.is_empty() {
            return false;
        }
        let lines = self.stdout.push(bytes);
        let some = !lines.is_empty();
        !self.see(lines, now) && some
    }

    pub(in crate::adapters) fn stderr(&mut self, bytes: &[u8], now: Instant) {
        if !self.clocks.is_empty() {
            let lines = self.stderr.push(bytes);
            self.see(lines, now);
        }
    }

    /// Whether one of the lines matches a rule. The first rule that matches is the one that counts.
    fn see(&mut self, lines: Vec<Line>, now: Instant) -> bool {
        let mut matched = false;
        for line in lines {
            let Line::Whole(line) = line else { continue };
            let line = String::from_utf8_lossy(&line);
            let matches = |clock: &&mut Clock<'_>| clock.rule.pattern.as_ref().is_some_and(|it| it.is_match(&line));
            let Some(clock) = self.clocks.iter_mut().find(matches) else {
                continue;
            };
            matched = true;
            let line = one_line(&line, KEPT);
            match &mut clock.running {
                Some(running) => running.line = line,
                none => {
                    *none = Some(Running {
                        until: now + clock.allowed,
                        line,
                    });
                }
            }
        }
        matched
    }

    /// The program got something done.
    pub(in crate::adapters) fn progress(&mut self) {
        for clock in &mut self.clocks {
            clock.running = None;
        }
    }

    /// The clocks begin anew: the program was not let run.
    pub(in crate::adapters) fn again(&mut self, now: Instant) {
        for clock in &mut self.clocks {
            if let Some(running) = &mut clock.running {
                running.until = now + clock.allowed;
            }
        }
    }

    /// When the first clock ends.
    pub(in crate::adapters) fn until(&self) -> Option<Instant> {
        self.clocks
            .iter()
            .filter_map(|clock| Some(clock.running.as_ref()?.until))
            .min()
    }

    /// What the program is ended for at this time: the kind of failure, and the line that told it.
    pub(in crate::adapters) fn over(&self, now: Instant) -> Option<(FailureKind, String)> {
        self.clocks.iter().find_map(|clock| {
            let running = clock.running.as_ref().filter(|running| running.until <= now)?;
            Some((clock.rule.kind, running.line.clone()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::cli::manifest::Manifest;

    fn rules() -> Vec<FailureRule> {
        let text = "name = 'x'\ncommand = 'x'\n\
            [[failure]]\npattern = 'quota'\nwhile_running = '1s'\nkind = 'quota_exhausted'\n\
            [[failure]]\npattern = 'Retrying'\nwhile_running = '60s'\nkind = 'network'\n\
            [[failure]]\npattern = 'Retrying'\nkind = 'timeout'\n";
        Manifest::parse(text, "x.toml".as_ref()).unwrap().failures
    }

    #[test]
    fn a_clock_runs_from_the_first_line_until_there_is_progress() {
        let (rules, start) = (rules(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut stuck = Stuck::new(&rules);
        assert!(stuck.stdout(b"hello\n", start));
        assert_eq!(stuck.until(), None);

        // Cut anywhere, and said again: it is the first that counts.
        stuck.stderr(b"Retr", start);
        stuck.stderr(b"ying 1\n", start);
        assert!(!stuck.stdout(b"Retrying 2\n", after(50)));
        assert_eq!((stuck.until(), stuck.over(after(59))), (Some(after(60)), None));
        let over = Some((FailureKind::Network, "Retrying 2".to_owned()));
        assert_eq!(stuck.over(after(60)), over);

        stuck.progress();
        assert_eq!((stuck.until(), stuck.over(after(99))), (None, None));
        stuck.stderr(b"Retrying 3\n", after(100));
        stuck.again(after(150));
        assert_eq!(stuck.until(), Some(after(210)));

        // The first rule that matches.
        stuck.stderr(b"Retrying: over quota\n", after(160));
        assert_eq!(stuck.over(after(161)).unwrap().0, FailureKind::QuotaExhausted);
    }

    #[test]
    fn without_such_rules_nothing_is_looked_at() {
        let mut stuck = Stuck::new(&[]);
        assert!(!stuck.stdout(b"Retrying\n", Instant::now()));
        assert_eq!(stuck.until(), None);
    }
}

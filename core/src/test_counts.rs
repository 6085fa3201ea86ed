//! How many tests ran, as the programs that ran them print it: read line by line while the output
//! passes, in bounded memory. What is printed is a claim of programs that a session may have changed,
//! so a number proves nothing by itself; one that is lower than the base's says something. Which lines
//! tell what is in [`formats`]; what a difference means is for [`crate::suspicion`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

mod formats;
mod pytest;

/// Bytes of a line that are looked at. Lines that tell of tests are shorter.
const MAX_LINE: usize = 1024;

/// The most suites that a tally has: each is read whenever its session is.
pub const MAX_SUITES: usize = 32;

/// What the output of a command tells of its tests.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TestTally {
    /// Lines that are not blank, of standard output and standard error.
    pub lines: u64,
    /// What was counted, by the program that ran the tests; empty when no count was recognised.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub suites: Vec<SuiteTally>,
}

/// The tests that one kind of program ran, all its runs together.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SuiteTally {
    /// The kind of program, such as `pytest`.
    pub suite: String,
    /// Tests that passed.
    pub passed: u64,
    /// Tests that failed, or could not run.
    pub failed: u64,
    /// Tests that were left out on purpose.
    pub skipped: u64,
}

impl SuiteTally {
    /// Tests that ran.
    #[must_use]
    pub const fn ran(&self) -> u64 {
        self.passed.saturating_add(self.failed)
    }
}

/// Which of a command's streams a piece of output is from. A line is of one stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piped {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Counts tests while output passes, in pieces of any size.
#[derive(Debug, Default)]
pub struct TestCounter {
    stdout: LineBuffer,
    stderr: LineBuffer,
    lines: u64,
    found: Found,
}

impl TestCounter {
    /// Takes the next piece of a stream.
    pub fn push(&mut self, from: Piped, bytes: &[u8]) {
        let buffer = match from {
            Piped::Stdout => &mut self.stdout,
            Piped::Stderr => &mut self.stderr,
        };
        for byte in bytes {
            match byte {
                b'\n' => {
                    self.lines += u64::from(buffer.has_text);
                    buffer.has_text = false;
                    self.found.read(buffer);
                }
                // A progress bar goes on at the beginning of its line.
                b'\r' => self.found.read(buffer),
                byte => {
                    buffer.has_text |= !byte.is_ascii_whitespace();
                    buffer.push(*byte);
                    // Reports in XML may be one long line.
                    if *byte == b'>' && buffer.line.first() == Some(&b'<') {
                        self.found.read(buffer);
                    }
                }
            }
        }
    }

    /// The counts, at the end of the output.
    #[must_use]
    pub fn finish(mut self) -> TestTally {
        for buffer in [&mut self.stdout, &mut self.stderr] {
            self.lines += u64::from(buffer.has_text);
            self.found.read(buffer);
        }
        TestTally {
            lines: self.lines,
            suites: self.found.suites(),
        }
    }
}

/// The beginning of the present line.
#[derive(Debug, Default)]
struct LineBuffer {
    line: Vec<u8>,
    has_text: bool,
}

impl LineBuffer {
    fn push(&mut self, byte: u8) {
        if self.line.len() < MAX_LINE && !(self.line.is_empty() && byte.is_ascii_whitespace() && byte != b' ') {
            self.line.push(byte);
        }
    }
}

/// What was found in the lines so far.
#[derive(Debug, Default)]
struct Found {
    suites: BTreeMap<&'static str, Counts>,
    /// Tests of which the next line tells how they ended, as `unittest` does.
    open: Option<u64>,
    pytest: pytest::PytestRuns,
}

/// Numbers of one suite.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Counts {
    passed: u64,
    failed: u64,
    skipped: u64,
}

impl Counts {
    const fn plus(self, other: Self) -> Self {
        Self {
            passed: self.passed.saturating_add(other.passed),
            failed: self.failed.saturating_add(other.failed),
            skipped: self.skipped.saturating_add(other.skipped),
        }
    }

    /// Of so many tests. Some runners count every part of a test that failed.
    const fn of_all(all: u64, failed: u64, skipped: u64) -> Self {
        let (skipped, failed) = match all {
            // What failed before the first test.
            0 => (skipped, failed),
            _ if skipped > all => (all, 0),
            _ if failed > all - skipped => (skipped, all - skipped),
            _ => (skipped, failed),
        };
        Self {
            passed: all.saturating_sub(failed.saturating_add(skipped)),
            failed,
            skipped,
        }
    }
}

impl Found {
    fn read(&mut self, buffer: &mut LineBuffer) {
        if !buffer.line.is_empty() {
            let text = String::from_utf8_lossy(&buffer.line);
            formats::read(&text, self);
            buffer.line.clear();
        }
    }

    fn add(&mut self, suite: &'static str, counts: Counts) {
        let sum = self.suites.entry(suite).or_default();
        *sum = sum.plus(counts);
    }

    /// Ends what `unittest` began.
    fn close(&mut self, failed: u64, skipped: u64) {
        if let Some(all) = self.open.take() {
            self.add(formats::UNITTEST, Counts::of_all(all, failed, skipped));
        }
    }

    fn suites(mut self) -> Vec<SuiteTally> {
        self.close(0, 0);
        formats::settle(&mut self.suites);
        let found = self.suites.into_iter().map(|(suite, counts)| SuiteTally {
            suite: suite.to_owned(),
            passed: counts.passed,
            failed: counts.failed,
            skipped: counts.skipped,
        });
        found.take(MAX_SUITES).collect()
    }
}

#[cfg(test)]
mod tests;

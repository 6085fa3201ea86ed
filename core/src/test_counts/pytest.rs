//! What pytest counts twice: a test that ended and whose teardown failed has two outcomes, and a second
//! run of what failed (`pytest || pytest --lf`) is of tests that the first one counted. A number that is
//! too high on the base would make honest results look as if tests had vanished.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use super::Counts;

/// The most failed tests of one output that are known again.
const MAX_KNOWN: usize = 4096;
/// How a run with `--lf` begins, unless it is quiet.
const OF_WHAT_FAILED: &str = "run-last-failure: rerun previous ";

/// The runs of pytest in one output so far.
#[derive(Debug, Default)]
pub(super) struct PytestRuns {
    /// Runs that ended.
    ended: u64,
    /// Tests that failed in those, by their names' hashes.
    failed_before: BTreeSet<u64>,
    /// Likewise, in the present run.
    failed: BTreeSet<u64>,
    /// How many of the present run's had failed before.
    again: u64,
    /// Errors of the present run that are of teardowns.
    teardowns: u64,
    /// The present run is one of what failed.
    of_what_failed: bool,
}

impl PytestRuns {
    /// Reads a line within a run.
    pub(super) fn read(&mut self, line: &str) {
        if line.starts_with(OF_WHAT_FAILED) {
            self.of_what_failed = true;
        } else if is_teardown(line) {
            self.teardowns = self.teardowns.saturating_add(1);
        } else if let Some(test) = failed_test(line) {
            let mut hasher = DefaultHasher::new();
            test.hash(&mut hasher);
            let test = hasher.finish();
            // A test may have failed and have an error.
            let is_new = self.failed.len() < MAX_KNOWN && self.failed.insert(test);
            if is_new && self.failed_before.contains(&test) {
                self.again = self.again.saturating_add(1);
            }
        }
    }

    /// What the run that ends with these counts adds.
    pub(super) fn end(&mut self, counts: Counts) -> Counts {
        let counted = self.ended > 0 && self.of_what_failed;
        let twice = self.again.saturating_add(self.teardowns);
        let failed = std::mem::take(&mut self.failed);
        let room = MAX_KNOWN.saturating_sub(self.failed_before.len());
        self.failed_before.extend(failed.into_iter().take(room));
        (self.again, self.teardowns, self.of_what_failed) = (0, 0, false);
        self.ended = self.ended.saturating_add(1);
        if counted {
            return Counts::default();
        }
        Counts {
            failed: counts.failed.saturating_sub(twice),
            ..counts
        }
    }
}

/// `____ ERROR at teardown of test_two ____`.
fn is_teardown(line: &str) -> bool {
    let title = line.trim_matches('_');
    title.len() < line.len() && title.starts_with(" ERROR at teardown of ") && title.ends_with(' ')
}

/// The name in `FAILED test_a.py::test_two - assert False`; a file that cannot be imported has one, too.
fn failed_test(line: &str) -> Option<&str> {
    let told = line.strip_prefix("FAILED ").or_else(|| line.strip_prefix("ERROR "))?;
    let name = told.split(" - ").next()?.trim_end();
    let is_one = name.contains("::") || (name.ends_with(".py") && !name.contains(' '));
    is_one.then_some(name)
}

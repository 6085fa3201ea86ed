//! What the output of verify says against a result that passed: fewer tests than on the base, tests that
//! failed, or no output at all. The base's run is the yardstick, and never another session's: a session that prints
//! what it likes would make the honest ones look odd. Programs that a result changed may print any
//! number, so more tests than on the base prove nothing.

use crate::event::{Verdict, VerdictKind, WithoutChange};
use crate::test_counts::{SuiteTally, TestTally};

/// What is odd about a result that passed verify.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Suspicions {
    /// It is not believed without a person's word: a sentence each, whose subject is the result.
    pub strong: Vec<String>,
    /// Worth a look, likewise.
    pub weak: Vec<String>,
}

/// Compares the run of verify on a result with the one on its base. There is nothing to say when
/// one of them did not run, did not tell, or did not pass.
#[must_use]
pub fn suspicions(result: Option<&Verdict>, base: Option<&Verdict>) -> Suspicions {
    let mut found = Suspicions::default();
    let passed = result.filter(|verdict| verdict.kind == VerdictKind::Passed);
    let ran = base.filter(|verdict| verdict.kind != VerdictKind::Errored);
    if let Some(passed) = passed {
        without_change(&mut found, passed);
    }
    let (Some(passed), Some(ran)) = (passed, ran) else {
        return found;
    };
    let (Some(here), Some(there)) = (&passed.tests, &ran.tests) else {
        return found;
    };
    let mut fewer = false;
    for suite in &there.suites {
        let before = suite.ran();
        let now = here
            .suites
            .iter()
            .find(|other| other.suite == suite.suite)
            .map_or(0, SuiteTally::ran);
        let number = match now {
            _ if now >= before => continue,
            0 => "none".to_owned(),
            number => number.to_string(),
        };
        let told = format!(
            "ran fewer tests in verify than the base: {} on the base, {number} here ({})",
            tests(before),
            suite.suite
        );
        // Machines differ in which tests they skip.
        if passed.agent != ran.agent && now.saturating_mul(2) >= before {
            found.weak.push(format!("{told}, on another machine"));
        } else {
            found.strong.push(told);
            fewer = true;
        }
    }
    for suite in here.suites.iter().filter(|suite| suite.failed > 0) {
        failed_and_passed(&mut found, suite, there, ran.kind);
    }
    if here.lines == 0 && !fewer {
        silent(&mut found, there, ran.kind);
    }
    found
}

/// Tests that failed, by what was printed, in a run that passed: as when the code under test decides how its
/// program ends. Some projects let known failures pass; then they do on the base, too.
fn failed_and_passed(found: &mut Suspicions, here: &SuiteTally, base: &TestTally, base_kind: VerdictKind) {
    let there = base.suites.iter().find(|other| other.suite == here.suite);
    let before = there.map_or(0, |there| there.failed);
    let told = format!(
        "passed verify although {} failed in it, by its output ({})",
        tests(here.failed),
        here.suite
    );
    match base_kind {
        VerdictKind::Passed if before > 0 => {}
        // There it made verify fail.
        VerdictKind::Failed if before > 0 && here.failed >= before => found.strong.push(told),
        VerdictKind::Passed | VerdictKind::Failed | VerdictKind::Errored => found.weak.push(told),
    }
}

/// What verify says without the change, if somebody asked.
fn without_change(found: &mut Suspicions, passed: &Verdict) {
    match passed.without_change {
        Some(WithoutChange::Passed) => found.strong.push(
            "passes verify without its change as well (its tests apart), so verify says nothing about the change"
                .to_owned(),
        ),
        Some(WithoutChange::NotRun) => found
            .weak
            .push("could not be checked without its change: see the logs of verify".to_owned()),
        Some(WithoutChange::Failed | WithoutChange::NothingElse) | None => {}
    }
}

/// The number of lines from which a failed run on the base is no mere message of what failed.
const MORE_THAN_A_MESSAGE: u64 = 2;

/// Many checks write when they fail, and nothing when they pass; and what they wrote of may be what was to be
/// mended.
fn silent(found: &mut Suspicions, base: &TestTally, kind: VerdictKind) {
    let lines = base.lines;
    if lines == 0 {
        return;
    }
    let plural = if lines == 1 { "" } else { "s" };
    match kind {
        VerdictKind::Passed => found.weak.push(format!(
            "wrote nothing in verify, where the base wrote {lines} line{plural} and passed"
        )),
        VerdictKind::Failed if lines >= MORE_THAN_A_MESSAGE => found.weak.push(format!(
            "wrote nothing in verify, where the base wrote {lines} lines and failed"
        )),
        VerdictKind::Failed | VerdictKind::Errored => {}
    }
}

fn tests(number: u64) -> String {
    match number {
        1 => "1 test".to_owned(),
        number => format!("{number} tests"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(kind: VerdictKind, lines: u64, suites: &[(&str, u64, u64)]) -> Verdict {
        let suites = suites.iter().map(|(suite, passed, failed)| SuiteTally {
            suite: (*suite).to_owned(),
            passed: *passed,
            failed: *failed,
            skipped: 1,
        });
        Verdict {
            kind,
            tests: Some(TestTally {
                lines,
                suites: suites.collect(),
            }),
            ..Verdict::errored(String::new())
        }
    }

    #[test]
    fn fewer_tests_and_silence_are_odd_and_more_tests_are_not() {
        use VerdictKind::{Errored, Failed, Passed};
        let base = verdict(Failed, 50, &[("pytest", 40, 2)]);
        let two = verdict(Passed, 9, &[("jest", 3, 0), ("pytest", 5, 0)]);
        let silent = verdict(Passed, 0, &[]);
        let cases = [
            (verdict(Passed, 50, &[("pytest", 42, 0)]), &base, (0, 0)),
            // Tests that failed and did not make verify fail.
            (verdict(Passed, 50, &[("pytest", 40, 2)]), &base, (1, 0)),
            (verdict(Passed, 50, &[("pytest", 41, 1)]), &base, (0, 1)),
            (verdict(Passed, 9, &[("jest", 2, 1), ("pytest", 5, 0)]), &two, (0, 1)),
            (
                verdict(Passed, 9, &[("jest", 2, 1)]),
                &verdict(Passed, 9, &[("jest", 2, 1)]),
                (0, 0),
            ),
            (verdict(Passed, 60, &[("pytest", 45, 0)]), &base, (0, 0)),
            (verdict(Passed, 50, &[("pytest", 41, 0)]), &base, (1, 0)),
            (verdict(Passed, 50, &[("jest", 42, 0)]), &base, (1, 0)),
            (verdict(Passed, 1, &[]), &base, (1, 0)),
            (silent.clone(), &base, (1, 0)),
            (verdict(Passed, 9, &[("jest", 2, 0), ("pytest", 5, 0)]), &two, (1, 0)),
            (silent.clone(), &two, (2, 0)),
            (silent.clone(), &verdict(Passed, 1, &[]), (0, 1)),
            (silent.clone(), &verdict(Failed, 1, &[]), (0, 0)),
            (silent.clone(), &verdict(Failed, 7, &[]), (0, 1)),
            (silent.clone(), &verdict(Passed, 0, &[]), (0, 0)),
            (silent.clone(), &verdict(Errored, 7, &[("pytest", 3, 0)]), (0, 0)),
            (verdict(Failed, 0, &[]), &base, (0, 0)),
            (verdict(Errored, 0, &[]), &base, (0, 0)),
        ];
        let elsewhere = |mut verdict: Verdict| {
            verdict.agent = "another".to_owned();
            verdict
        };
        let others = [
            (elsewhere(verdict(Passed, 50, &[("pytest", 41, 0)])), &base, (0, 1)),
            (elsewhere(verdict(Passed, 50, &[("pytest", 20, 0)])), &base, (1, 0)),
            (elsewhere(verdict(Passed, 50, &[])), &base, (1, 0)),
        ];
        for (result, base, expected) in cases.into_iter().chain(others) {
            let found = suspicions(Some(&result), Some(base));
            assert_eq!((found.strong.len(), found.weak.len()), expected, "{result:?} {base:?}");
        }
    }

    #[test]
    fn a_verify_that_passes_without_the_change_says_nothing_about_it() {
        for (said, strong, weak) in [
            (None, 0, 0),
            (Some(WithoutChange::Failed), 0, 0),
            (Some(WithoutChange::NothingElse), 0, 0),
            (Some(WithoutChange::Passed), 1, 0),
            (Some(WithoutChange::NotRun), 0, 1),
        ] {
            let passed = Verdict {
                without_change: said,
                ..verdict(VerdictKind::Passed, 3, &[("pytest", 42, 0)])
            };
            // Whatever is known of the base.
            for base in [None, Some(&verdict(VerdictKind::Failed, 3, &[("pytest", 42, 0)]))] {
                let found = suspicions(Some(&passed), base);
                assert_eq!((found.strong.len(), found.weak.len()), (strong, weak), "{said:?}");
            }
            let failed = Verdict {
                kind: VerdictKind::Failed,
                ..passed
            };
            assert_eq!(suspicions(Some(&failed), None), Suspicions::default());
        }
    }

    #[test]
    fn the_numbers_are_said() {
        let base = verdict(VerdictKind::Passed, 3, &[("pytest", 42, 0)]);
        let said = |passed| {
            let here = verdict(VerdictKind::Passed, 3, &[("pytest", passed, 0)]);
            suspicions(Some(&here), Some(&base)).strong
        };
        assert_eq!(
            said(12),
            ["ran fewer tests in verify than the base: 42 tests on the base, 12 here (pytest)"]
        );
        assert_eq!(
            said(0),
            ["ran fewer tests in verify than the base: 42 tests on the base, none here (pytest)"]
        );
    }

    #[test]
    fn nothing_is_compared_with_what_did_not_tell() {
        let base = verdict(VerdictKind::Passed, 3, &[("pytest", 42, 0)]);
        let old = Verdict {
            tests: None,
            ..base.clone()
        };
        for (result, base) in [
            (Some(&old), Some(&base)),
            (Some(&base), Some(&old)),
            (None, Some(&base)),
            (Some(&base), None),
        ] {
            assert_eq!(suspicions(result, base), Suspicions::default());
        }
    }
}

//! Lines by which programs tell how many tests they ran. A format that tells of its tests only when
//! one fails is no format here: its silence would look like tests that vanished.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use regex::{Captures, Regex, RegexSet};

use super::{Counts, Found};

pub(super) const UNITTEST: &str = "unittest";
const PYTEST: &str = "pytest";
const MAVEN: &str = "maven";
/// Lines for each class, which count when there is no line for all of them.
const MAVEN_CLASSES: &str = "maven, by class";
const GO: &str = "go test -v";
const GRADLE: &str = "gradle";
const GTEST: &str = "googletest";

/// A suite, and its line. Groups: `p` passed, `f` and `e` failed, `s` skipped, `n` all of them,
/// `list` the same with words (`3 passed, 1 failed`), `pairs` the other way round (`Failures: 1`).
const RULES: [(&str, &str); 25] = [
    (
        "cargo test",
        r"^test result: \w+\. (?<p>\d+) passed; (?<f>\d+) failed; (?<s>\d+) ignored;",
    ),
    (
        "nextest",
        r"^\s*Summary \[[^\]]*\]\s+(?:\d+/)?\d+ tests? run: (?<list>.*)$",
    ),
    (
        PYTEST,
        r"^=*\s*(?<list>\d+ (?:passed|failed|errors?|skipped|xfailed|xpassed|deselected|warnings?|rerun|subtests)\b.*) in [\d.]+s(?: \([^)]*\))?\s*=*$",
    ),
    (UNITTEST, r"^Ran (?<open>\d+) tests? in "),
    (UNITTEST, r"^(?:OK|FAILED)(?: \((?<end>[a-z]+(?: [a-z]+)?=\d[^)]*)\))?$"),
    (GO, r"^--- (?<word>PASS|FAIL|SKIP): "),
    (
        "go packages",
        r"^(?<word>ok)\s+\S+\s+(?:[\d.]+s|\(cached\))(?:\s+coverage: .*)?$",
    ),
    (
        "go packages",
        r"^(?<word>FAIL)\s+\S+\s+(?:[\d.]+s|\[(?:build|setup) failed\])$",
    ),
    ("jest", r"^Tests:\s+(?<list>\d+ [a-z]+.*, \d+ total)$"),
    ("jest", r"^Tests:\s+(?<p>\d+) total$"),
    ("vitest", r"^\s*Tests\s+(?<list>\d+ [a-z]+(?: \| \d+ [a-z]+)*) \(\d+\)$"),
    ("mocha", r"^\s*(?<list>\d+ (?:passing|failing|pending))(?: \([^)]*\))?$"),
    ("node --test", r"^(?:ℹ|#) (?<word>pass|fail|skipped)\s+(?<times>\d+)$"),
    ("TAP", r"^(?<word>ok|not ok) \d+(?<tap> .*)?$"),
    ("prove", r"^Files=\d+, Tests=(?<n>\d+),"),
    (
        MAVEN,
        r"^(?:\[\w+\] )?Tests run: (?<n>\d+), Failures: (?<f>\d+), Errors: (?<e>\d+), Skipped: (?<s>\d+)(?<class>, Time elapsed.*)?$",
    ),
    (GRADLE, r"^\S.* > .* (?<word>PASSED|FAILED|SKIPPED)$"),
    ("JUnit XML", r"^<testsuite\s(?<xml>.*)>$"),
    (
        "rspec",
        r"^(?<n>\d+) examples?, (?<f>\d+) failures?(?:, (?<s>\d+) pending)?",
    ),
    (
        "minitest",
        r"^(?<n>\d+) (?:runs|tests), \d+ assertions, (?<f>\d+) failures, (?<e>\d+) errors(?:, (?<s>\d+) (?:skips|pendings))?",
    ),
    (
        "phpunit",
        r"^(?:OK \((?<n>\d+) tests?, \d+ assertions?\)|Tests: (?<m>\d+), Assertions: \d+(?<pairs>.*)\.)$",
    ),
    (
        "bats or ExUnit",
        r"^(?:\d+ doctests?, )?(?<n>\d+) tests?, (?<f>\d+) failures?(?:, (?<s>\d+) (?:skipped|excluded))?(?: in .*)?$",
    ),
    ("ctest", r"^\d+% tests passed, (?<f>\d+) tests? failed out of (?<n>\d+)"),
    (
        "dotnet test",
        r"^\w+!\s+- Failed:\s+(?<f>\d+), Passed:\s+(?<p>\d+), Skipped:\s+(?<s>\d+), Total:",
    ),
    (GTEST, r"^\[==========\] (?<n>\d+) tests? from .* ran\."),
];

static SET: LazyLock<RegexSet> = LazyLock::new(|| {
    RegexSet::new(RULES.map(|(_, rule)| rule)).expect("the tests read every built-in rule of formats")
});

static REGEXES: LazyLock<Vec<Regex>> = LazyLock::new(|| {
    let compiled = RULES.map(|(_, rule)| Regex::new(rule).expect("the tests read every built-in rule of formats"));
    compiled.into()
});

/// Colours, and other sequences of terminals.
static ESCAPES: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"\x1b\[[0-9;?]*[A-Za-z]").expect("it is written out here, and compiles"));
static WORDS: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"(?<count>\d+) (?<word>[a-z]+)").expect("it is written out here, and compiles"));
static PAIRS: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r#"(?<word>[A-Za-z]+(?: [a-z]+)?)(?:=|: |=")(?<count>\d+)"#)
        .expect("it is written out here, and compiles")
});

/// Reads one line.
pub(super) fn read(line: &str, found: &mut Found) {
    let line = ESCAPES.replace_all(line, "");
    let line = line.trim_end();
    let Some(rule) = SET.matches(line).iter().next() else {
        found.pytest.read(line);
        return;
    };
    if let (Some((suite, _)), Some(groups)) = (RULES.get(rule), REGEXES[rule].captures(line)) {
        take(suite, &groups, found);
    }
}

fn take(suite: &'static str, groups: &Captures<'_>, found: &mut Found) {
    let number = |name| groups.name(name).and_then(|it| it.as_str().parse::<u64>().ok());
    let text = |name| groups.name(name).map(|it| it.as_str());
    if let Some(all) = number("open") {
        found.close(0, 0);
        found.open = Some(all);
    } else if suite == UNITTEST {
        let ended = paired(text("end").unwrap_or_default());
        found.close(ended.failed, ended.skipped);
    } else if let Some(list) = text("list") {
        let counts = listed(list);
        let counts = if suite == PYTEST {
            found.pytest.end(counts)
        } else {
            counts
        };
        found.add(suite, counts);
    } else if let Some(word) = text("word") {
        let skip = text("tap").is_some_and(|rest| {
            let rest = rest.to_ascii_lowercase();
            rest.contains("# skip") || rest.contains("# todo")
        });
        let times = number("times").unwrap_or(1);
        found.add(
            suite,
            if skip {
                worded("skipped", times)
            } else {
                worded(word, times)
            },
        );
    } else if let Some(attributes) = text("xml") {
        let all = attribute(attributes, "tests");
        let failed = attribute(attributes, "failures").saturating_add(attribute(attributes, "errors"));
        found.add(suite, Counts::of_all(all, failed, attribute(attributes, "skipped")));
    } else {
        let pairs = paired(text("pairs").unwrap_or_default());
        let failed = [number("f"), number("e"), Some(pairs.failed)];
        let failed = failed.into_iter().flatten().fold(0, u64::saturating_add);
        let skipped = number("s").unwrap_or(pairs.skipped);
        let counts = match number("n").or(number("m")) {
            Some(all) => Counts::of_all(all, failed, skipped),
            None => Counts {
                passed: number("p").unwrap_or(0),
                failed,
                skipped,
            },
        };
        found.add(
            if groups.name("class").is_some() {
                MAVEN_CLASSES
            } else {
                suite
            },
            counts,
        );
    }
}

/// Chooses between what tells of the same tests, and drops what tells of tests only when one fails.
pub(super) fn settle(suites: &mut BTreeMap<&'static str, Counts>) {
    if let Some(classes) = suites.remove(MAVEN_CLASSES) {
        suites.entry(MAVEN).or_insert(classes);
    }
    // Without `-v`, and without a setting of Gradle's, only failures have a line.
    for told_when_failed in [GO, GRADLE] {
        if suites.get(told_when_failed).is_some_and(|counts| counts.passed == 0) {
            suites.remove(told_when_failed);
        }
    }
    // A line of words without a number of tests, such as `3 warnings in 0.1s`.
    suites.retain(|_, counts| *counts != Counts::default());
}

fn worded(word: &str, times: u64) -> Counts {
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    match word {
        // A test that fails as expected ran, and so did one that passes though it was not to.
        "passed" | "pass" | "passing" | "ok" | "PASS" | "PASSED" | "xfailed" | "xpassed" => passed = times,
        "failed" | "fail" | "failing" | "not ok" | "FAIL" | "FAILED" | "error" | "errors" | "timed" | "exec" => {
            failed = times;
        }
        "skipped" | "skip" | "SKIP" | "SKIPPED" | "pending" | "todo" | "ignored" | "deselected" => skipped = times,
        _ => {}
    }
    Counts {
        passed,
        failed,
        skipped,
    }
}

fn listed(list: &str) -> Counts {
    let each = WORDS.captures_iter(list).map(|groups| {
        let count = groups["count"].parse().unwrap_or(0);
        worded(&groups["word"], count)
    });
    each.fold(Counts::default(), Counts::plus)
}

/// `failures=1, errors=2, skipped=3`, or the same as PHPUnit writes it.
fn paired(pairs: &str) -> Counts {
    let mut sum = Counts::default();
    for groups in PAIRS.captures_iter(pairs) {
        let count = groups["count"].parse().unwrap_or(0);
        match groups["word"].to_ascii_lowercase().as_str() {
            "failures" | "errors" => sum.failed = sum.failed.saturating_add(count),
            "skipped" | "incomplete" => sum.skipped = sum.skipped.saturating_add(count),
            _ => {}
        }
    }
    sum
}

fn attribute(attributes: &str, name: &str) -> u64 {
    let at = attributes.match_indices(name).find(|(at, _)| {
        let before = attributes[..*at].chars().next_back();
        before.is_none_or(char::is_whitespace)
    });
    let value = at.and_then(|(at, _)| attributes[at + name.len()..].strip_prefix("=\""));
    value
        .and_then(|value| value.split('"').next())
        .and_then(|value| value.parse().ok())
        .unwrap_or(0)
}

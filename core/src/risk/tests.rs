//! Paths, and the risk that changing them is.

use super::*;
use crate::event::{DiffStat, LargeFile};
use crate::id::ProjectId;
use crate::left_out::{LeftOut, LeftOutReason};
use crate::task::{Policy, VerifyPolicy};

pub(super) fn spec(prompt: &str, setup: &str, verify: &str, protect: &[&str]) -> TaskSpec {
    TaskSpec {
        project: ProjectId::default(),
        prompt: prompt.to_owned(),
        prompt_blob: None,
        repository: None,
        context_base: None,
        assignments: Vec::new(),
        policy: Policy {
            verify: VerifyPolicy {
                setup: Some(setup.to_owned()),
                verify: Some(verify.to_owned()),
                protect: protect.iter().map(ToString::to_string).collect(),
                ..VerifyPolicy::default()
            },
            ..Policy::default()
        },
        fresh_baseline: false,
        labels: Default::default(),
        environment: Default::default(),
    }
}

pub(super) fn result(paths: &[&str], deleted: &[&str]) -> ResultCommit {
    ResultCommit {
        commit: "a".repeat(40).parse().unwrap(),
        tree: None,
        diff: DiffStat {
            files: u32::try_from(paths.len()).unwrap(),
            added: 1,
            removed: 0,
        },
        paths: paths.iter().map(ToString::to_string).collect(),
        deleted: deleted.iter().map(ToString::to_string).collect(),
        large: Vec::new(),
        left_out: Vec::new(),
    }
}

#[test]
fn paths_that_decide_verify_are_high_and_others_to_look_at_are_low() {
    let cases = [
        ("src/calc.py", Risk::None),
        ("src/latest.java", Risk::None),
        ("src/contest/protest.rs", Risk::None),
        ("docs/testing.md", Risk::None),
        ("tests/test_calc.py", Risk::High),
        ("a/b/tests/data.json", Risk::High),
        ("Tests/AppTests/a.swift", Risk::High),
        ("test_calc.py", Risk::High),
        ("pkg/calc_test.go", Risk::High),
        ("src/calc.test.ts", Risk::High),
        ("src/CalcTest.java", Risk::High),
        ("test.sh", Risk::High),
        ("conftest.py", Risk::High),
        ("jest.config.js", Risk::High),
        ("src/__snapshots__/a.snap", Risk::High),
        ("Makefile", Risk::High),
        ("core/build.rs", Risk::High),
        ("Cargo.toml", Risk::High),
        (".cargo/config.toml", Risk::High),
        ("web/package.json", Risk::High),
        ("Package.swift", Risk::High),
        ("apps/web/mix.exs", Risk::High),
        ("gradle/wrapper/gradle-wrapper.properties", Risk::High),
        ("deno.jsonc", Risk::High),
        ("src/configure.ts", Risk::None),
        ("src/dune.rs", Risk::None),
        ("scripts/ci-helper", Risk::High),
        (".github/workflows/ci.yml", Risk::Low),
        ("Cargo.lock", Risk::Low),
        ("web/package-lock.json", Risk::Low),
    ];
    let spec = spec("fix the sum", "true", "make check", &[]);
    for (path, risk) in cases {
        let found = assess(&result(&[path], &[]), &spec, &[]);
        assert_eq!(found.risk, risk, "{path}: {:?}", found.flags);
        assert_eq!(found.flags.is_empty(), risk == Risk::None, "{path}: {:?}", found.flags);
    }
}

#[test]
fn protected_paths_are_flagged_and_cannot_cheat() {
    let cases: [(&[&str], &[&str], Risk); 8] = [
        (&["tests"], &["tests/a.py"], Risk::Low),
        (&["tests/**"], &["tests/a.py"], Risk::Low),
        (&["tests/**"], &["tests/a.py", "Makefile"], Risk::High),
        (&["*.sh"], &["check.sh"], Risk::Low),
        (&["src"], &["src/a.py"], Risk::Low),
        (&["tests/*.py"], &["tests/deep/a.py"], Risk::High),
        (&["/check.sh"], &["sub/check.sh"], Risk::High),
        (&["tests", "["], &["tests/a.py"], Risk::High),
    ];
    for (protect, paths, risk) in cases {
        let found = assess(&result(paths, &[]), &spec("do it", "true", "sh check.sh", protect), &[]);
        assert_eq!(found.risk, risk, "{protect:?} {paths:?}: {:?}", found.flags);
        assert!(!found.flags.is_empty());
    }
}

#[test]
fn paths_that_the_prompt_names_are_where_changes_belong() {
    let cases: [(&str, &[&str], bool); 14] = [
        ("fix the sum", &["src/a.py"], false),
        ("fix src/a.py", &["src/a.py"], false),
        ("fix src/a.py", &["src/a.py", "src/b.py"], true),
        ("fix (`./src/a.py`).", &["src/a.py"], false),
        ("error at src/a.py:10:5, fix it", &["src/a.py"], false),
        ("error at src/a.py:10:5, fix it", &["src/b.py"], true),
        ("fix /home/me/project/src/a.py!", &["src/a.py"], false),
        ("fix a.py", &["src/a.py"], false),
        ("fix a.py", &["src/aa.py"], true),
        ("change src/parser and nothing else", &["src/parser/a.rs"], false),
        ("change src/parser/ only", &["src/parser/a.rs", "src/lexer.rs"], true),
        ("sum and/or product", &["src/a.rs"], false),
        ("see https://example.org/a.html", &["src/a.rs"], false),
        ("a Node.js program, e.g. v1.2", &["src/a.js"], false),
    ];
    for (prompt, paths, leaves) in cases {
        let found = assess(&result(paths, &[]), &spec(prompt, "true", "true", &[]), &[]);
        let expected = if leaves { Risk::Low } else { Risk::None };
        assert_eq!(found.risk, expected, "{prompt}: {paths:?}: {:?}", found.flags);
    }
}

#[test]
fn flags_name_the_worst_first_and_a_few_paths() {
    let paths = [
        "Cargo.lock",
        "old.rs",
        "tests/a",
        "tests/b",
        "tests/c",
        "tests/d",
        "tests/e",
    ];
    let found = assess(&result(&paths, &["old.rs"]), &spec("do it", "true", "true", &[]), &[]);
    assert_eq!(
        found.flags,
        [
            "changes tests: tests/a, tests/b, tests/c and 2 more",
            "changes lock files: Cargo.lock",
            "deletes files: old.rs",
        ]
    );
}

#[test]
fn large_files_and_those_that_are_left_out_are_worth_a_look() {
    let spec = spec("do it", "true", "true", &[]);
    let mut result = result(&["a.rs", "assets/core"], &[]);
    assert_eq!(assess(&result, &spec, &[]).risk, Risk::None);
    result.large = vec![LargeFile {
        path: "assets/core".to_owned(),
        bytes: 52_428_800,
    }];
    let found = assess(&result, &spec, &[]);
    assert_eq!(found.risk, Risk::Low);
    assert_eq!(found.flags, ["has large files: assets/core (52.4 MB)"]);
    result.large.clear();
    result.left_out = vec![LeftOut {
        path: "dump".to_owned(),
        reason: LeftOutReason::Large { size: 400_000_000 },
    }];
    let found = assess(&result, &spec, &[]);
    assert_eq!(found.risk, Risk::Low);
    let flag = "leaves out what the session's worktree had: dump (it has 400.0 MB)";
    assert_eq!(found.flags, [flag]);
}

#[test]
fn what_is_not_listed_may_be_anything() {
    let mut many = result(&["src/a.rs"], &[]);
    many.diff.files = 1200;
    let found = assess(&many, &spec("do it", "true", "true", &[]), &[]);
    assert_eq!(found.risk, Risk::High);
    assert_eq!(found.flags, ["changes 1200 files, of which only 1 could be judged"]);
}

#[test]
fn what_the_task_is_about_is_not_risky_because_a_command_names_it() {
    let taken = ["check.sh".to_owned(), "test.sh".to_owned()];
    let cases: [(&str, &str, &str, &[String], Risk); 14] = [
        // It was not in the base, or was left as the result has it.
        ("write it", "test -f KAGE.txt", "KAGE.txt", &[], Risk::High),
        ("write KAGE.txt", "test -f KAGE.txt", "KAGE.txt", &[], Risk::Low),
        (
            "write a/KAGE.txt",
            "grep -q ok a/KAGE.txt",
            "a/KAGE.txt",
            &[],
            Risk::Low,
        ),
        ("print 3", "sh add.sh | grep 3", "add.sh", &[], Risk::High),
        ("make add.sh print 3", "sh add.sh | grep 3", "add.sh", &[], Risk::Low),
        ("make `add` print 3", "./add | grep 3", "add", &[], Risk::Low),
        ("add what is missing", "./add | grep 3", "add", &[], Risk::High),
        ("make b/add.sh print 3", "sh add.sh | grep 3", "add.sh", &[], Risk::High),
        // A test that the prompt names is rarely the file to change.
        ("test.sh fails", "sh test.sh", "test.sh", &[], Risk::High),
        ("fix `make test`", "make test", "Makefile", &[], Risk::High),
        ("extend the Makefile", "make -f Makefile", "Makefile", &[], Risk::High),
        // Taken from the base, it did not influence the verdict.
        ("fix the sum", "sh test.sh", "test.sh", &taken, Risk::Low),
        ("fix the sum", "sh check.sh", "check.sh", &taken, Risk::Low),
        ("fix the sum", "sh other.sh", "other.sh", &taken, Risk::High),
    ];
    for (prompt, verify, path, restored, risk) in cases {
        for (setup, verify) in [("true", verify), (verify, "true")] {
            let found = assess(&result(&[path], &[]), &spec(prompt, setup, verify, &[]), restored);
            assert_eq!(found.risk, risk, "{prompt}: {verify}: {path}: {:?}", found.flags);
            assert!(!found.flags.is_empty());
        }
    }
}

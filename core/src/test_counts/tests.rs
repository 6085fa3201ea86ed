//! Output of the programs that people verify with, and the counts in it.

use proptest::prelude::*;

use super::*;

/// Suite, passed, failed, skipped.
type Expected<'a> = &'a [(&'a str, u64, u64, u64)];

fn count(output: &str) -> TestTally {
    let mut counter = TestCounter::default();
    counter.push(Piped::Stdout, output.as_bytes());
    counter.finish()
}

fn in_short(tally: &TestTally) -> Vec<(&str, u64, u64, u64)> {
    let short = tally.suites.iter();
    short
        .map(|it| (it.suite.as_str(), it.passed, it.failed, it.skipped))
        .collect()
}

const CARGO: &str = "\
running 3 tests
test a ... ok

test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s

running 2 tests
test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s
";
/// pytest 9: six tests, of which two end and then have a teardown that fails, and one a setup.
const PYTEST_ERRORS: &str = "\
============================= test session starts ==============================
collected 6 items

test_a.py ..EEFE                                                         [ 66%]
test_b.py ..                                                             [100%]

==================================== ERRORS ====================================
________________________ ERROR at teardown of test_two _________________________

    @pytest.fixture
    def bad():
        yield 1
>       raise RuntimeError(\"teardown\")
E       RuntimeError: teardown

test_a.py:5: RuntimeError
_________________________ ERROR at setup of test_three _________________________
test_a.py:8: RuntimeError
________________________ ERROR at teardown of test_four ________________________
test_a.py:5: RuntimeError
=================================== FAILURES ===================================
__________________________________ test_four ___________________________________
test_a.py:12: AssertionError
=========================== short test summary info ============================
FAILED test_a.py::test_four - assert False
ERROR test_a.py::test_two - RuntimeError: teardown
ERROR test_a.py::test_three - RuntimeError: setup
ERROR test_a.py::test_four - RuntimeError: teardown
==================== 1 failed, 4 passed, 3 errors in 0.09s =====================
";
/// The same with `--lf`, which runs what failed.
const PYTEST_LAST_FAILED: &str = "\
============================= test session starts ==============================
collected 3 items
run-last-failure: rerun previous 3 failures (skipped 1 file)

test_a.py .EEFE                                                          [100%]

==================================== ERRORS ====================================
________________________ ERROR at teardown of test_two _________________________
_________________________ ERROR at setup of test_three _________________________
________________________ ERROR at teardown of test_four ________________________
=========================== short test summary info ============================
FAILED test_a.py::test_four - assert False
ERROR test_a.py::test_two - RuntimeError: teardown
ERROR test_a.py::test_three - RuntimeError: setup
ERROR test_a.py::test_four - RuntimeError: teardown
==================== 1 failed, 1 passed, 3 errors in 0.04s =====================
";
/// With `-q`: a test that fails, and the same with `-q --lf`.
const PYTEST_QUIET: &str = "\
.F..                                                                     [100%]
=================================== FAILURES ===================================
__________________________________ test_four ___________________________________
test_a.py:2: AssertionError
=========================== short test summary info ============================
FAILED test_a.py::test_four - assert False
1 failed, 3 passed in 0.07s
";
const PYTEST_QUIET_LAST_FAILED: &str = "\
F                                                                        [100%]
=================================== FAILURES ===================================
__________________________________ test_four ___________________________________
test_a.py:2: AssertionError
=========================== short test summary info ============================
FAILED test_a.py::test_four - assert False
1 failed in 0.02s
";
const GO_V: &str = "\
=== RUN   TestA
=== RUN   TestA/one
--- PASS: TestA (0.00s)
    --- PASS: TestA/one (0.00s)
--- FAIL: TestB (0.00s)
--- SKIP: TestC (0.00s)
FAIL
FAIL\texample.com/x\t0.003s
ok  \texample.com/y\t0.003s\tcoverage: 12.0% of statements
ok  \texample.com/z\t(cached)
?   \texample.com/none\t[no test files]
ok  \texample.com/nothing\t0.003s [no tests to run]
";
const GO: &str = "\
--- FAIL: TestB (0.00s)
    x_test.go:3: no
FAIL
FAIL\texample.com/x\t0.003s
FAIL\texample.com/y [build failed]
ok  \texample.com/z\t0.1s
";
const MAVEN_RUN: &str = "\
[INFO] Tests run: 3, Failures: 0, Errors: 0, Skipped: 0, Time elapsed: 0.1 s - in com.example.ATest
[ERROR] Tests run: 4, Failures: 1, Errors: 1, Skipped: 1, Time elapsed: 0.1 s <<< FAILURE! -- in com.example.BTest
[INFO] Results:
[ERROR] Tests run: 7, Failures: 1, Errors: 1, Skipped: 1
";
const XML: &str = "<?xml version=\"1.0\"?><testsuites tests=\"9\"><testsuite name=\"a\" tests=\"5\" failures=\"1\" \
                   errors=\"1\" skipped=\"1\" time=\"0.1\"><testcase name=\"tests\"/></testsuite><testsuite \
                   name=\"b\" tests=\"4\"></testsuite></testsuites>";
const TAP: &str = "\
1..4
ok 1 - it works
    ok 1 - a part of the next
not ok 2 - it does not
ok 3 - later # SKIP no network
not ok 4 - some day # TODO
# tests 4
# pass  1
# fail  1
";

#[test]
fn every_usual_summary_is_read() {
    let cases: [(&str, Expected<'_>); 41] = [
        (CARGO, &[("cargo test", 3, 1, 1)]),
        (
            "     Summary [   0.123s] 42 tests run: 42 passed (1 slow), 3 skipped",
            &[("nextest", 42, 0, 3)],
        ),
        (
            "     Summary [   0.123s] 42/50 tests run: 40 passed, 1 failed, 1 timed out, 3 skipped",
            &[("nextest", 40, 2, 3)],
        ),
        ("===== 42 passed in 0.12s =====", &[("pytest", 42, 0, 0)]),
        ("42 passed in 0.12s", &[("pytest", 42, 0, 0)]),
        (
            "= 1 failed, 40 passed, 2 skipped, 1 xfailed, 3 warnings, 1 error in 65.12s (0:01:05) =",
            &[("pytest", 41, 2, 2)],
        ),
        (
            "\u{1b}[32m\u{1b}[1m3 passed\u{1b}[0m\u{1b}[32m in 0.01s\u{1b}[0m",
            &[("pytest", 3, 0, 0)],
        ),
        ("no tests ran in 0.01s", &[]),
        ("2 warnings in 0.01s", &[]),
        ("Ran 42 tests in 0.001s\n\nOK\n", &[("unittest", 42, 0, 0)]),
        ("Ran 1 test in 0.001s", &[("unittest", 1, 0, 0)]),
        (
            "Ran 42 tests in 0.001s\n\nFAILED (failures=1, errors=2, skipped=3, expected failures=1)\n",
            &[("unittest", 36, 3, 3)],
        ),
        (
            "Ran 4 tests in 0.001s\n\nOK (skipped=1)\nRan 2 tests in 0.1s\n\nOK\n",
            &[("unittest", 5, 0, 1)],
        ),
        ("Ran 0 tests in 0.000s\n\nNO TESTS RAN\n", &[]),
        (GO_V, &[("go packages", 2, 1, 0), ("go test -v", 1, 1, 1)]),
        (GO, &[("go packages", 1, 2, 0)]),
        (
            "Tests:       1 failed, 2 skipped, 42 passed, 45 total",
            &[("jest", 42, 1, 2)],
        ),
        ("Tests:       42 passed, 42 total", &[("jest", 42, 0, 0)]),
        (
            "\u{1b}[2m      Tests \u{1b}[22m \u{1b}[1m42 passed\u{1b}[22m (42)",
            &[("vitest", 42, 0, 0)],
        ),
        (
            "      Tests  1 failed | 41 passed | 2 skipped (44)",
            &[("vitest", 41, 1, 2)],
        ),
        (
            "  42 passing (12ms)\n  2 pending\n  1 failing\n",
            &[("mocha", 42, 1, 2)],
        ),
        (
            "ℹ tests 3\nℹ pass 2\nℹ fail 1\nℹ skipped 0\n",
            &[("node --test", 2, 1, 0)],
        ),
        (TAP, &[("TAP", 1, 1, 2), ("node --test", 1, 1, 0)]),
        (
            "t/a.t .. ok\nAll tests successful.\nFiles=3, Tests=42,  0 wallclock secs",
            &[("prove", 42, 0, 0)],
        ),
        (MAVEN_RUN, &[("maven", 4, 2, 1)]),
        (
            "Tests run: 3, Failures: 0, Errors: 0, Skipped: 1, Time elapsed: 0.1 sec",
            &[("maven", 2, 0, 1)],
        ),
        (
            "ATest > adds PASSED\nATest > subtracts() FAILED\n",
            &[("gradle", 1, 1, 0)],
        ),
        ("ATest > subtracts() FAILED\n3 tests completed, 1 failed\n", &[]),
        (XML, &[("JUnit XML", 6, 2, 1)]),
        ("42 examples, 1 failure, 2 pending", &[("rspec", 39, 1, 2)]),
        ("1 example, 0 failures", &[("rspec", 1, 0, 0)]),
        (
            "42 runs, 80 assertions, 1 failures, 1 errors, 2 skips",
            &[("minitest", 38, 2, 2)],
        ),
        ("OK (42 tests, 80 assertions)", &[("phpunit", 42, 0, 0)]),
        (
            "Tests: 42, Assertions: 80, Errors: 1, Failures: 1, Skipped: 2.",
            &[("phpunit", 38, 2, 2)],
        ),
        (
            "Finished in 0.1 seconds\n3 doctests, 42 tests, 1 failure",
            &[("bats or ExUnit", 41, 1, 0)],
        ),
        ("42 tests, 0 failures, 1 skipped", &[("bats or ExUnit", 41, 0, 1)]),
        ("100% tests passed, 0 tests failed out of 42", &[("ctest", 42, 0, 0)]),
        (
            "Passed!  - Failed:     0, Passed:    42, Skipped:     1, Total:    43, Duration: 1 s - a.dll",
            &[("dotnet test", 42, 0, 1)],
        ),
        (
            "[==========] 42 tests from 3 test suites ran. (1 ms total)",
            &[("googletest", 42, 0, 0)],
        ),
        ("it is all right\nok\n0 errors\nTests are fine\n", &[]),
        ("", &[]),
    ];
    for (output, expected) in cases {
        assert_eq!(in_short(&count(output)), expected, "{output}");
    }
}

#[test]
fn lines_of_both_streams_are_counted_and_do_not_mix() {
    let mut counter = TestCounter::default();
    for (from, piece) in [
        (Piped::Stderr, "Ran 3 tests"),
        (Piped::Stdout, "3 passed in "),
        (Piped::Stderr, " in 0.1s\n \n"),
        (Piped::Stdout, "0.1s"),
    ] {
        counter.push(from, piece.as_bytes());
    }
    let tally = counter.finish();
    assert_eq!(tally.lines, 2);
    assert_eq!(in_short(&tally), [("pytest", 3, 0, 0), ("unittest", 3, 0, 0)]);
}

#[test]
fn an_endless_line_takes_no_memory_and_hides_nothing_after_it() {
    let mut counter = TestCounter::default();
    for _ in 0..1000 {
        counter.push(Piped::Stdout, &[b'x'; 4096]);
    }
    assert!(counter.stdout.line.capacity() <= 2 * MAX_LINE);
    counter.push(Piped::Stdout, b"\n3 passed in 0.1s\n");
    let tally = counter.finish();
    assert_eq!((tally.lines, in_short(&tally)), (2, vec![("pytest", 3, 0, 0)]));
}

#[test]
fn absurd_numbers_are_no_trouble() {
    let most = u64::MAX;
    let twice =
        format!("{most} passed in 1s\n{most} passed, {most} failed in 1s\n99999999999999999999999 passed in 1s");
    assert_eq!(in_short(&count(&twice)), [("pytest", most, most, 0)]);
    assert_eq!(count(&twice).suites[0].ran(), most);
    assert_eq!(in_short(&count("1 examples, 7 failures")), [("rspec", 0, 1, 0)]);
}

#[test]
fn the_stored_form_stays() {
    let tally = count("3 passed, 1 failed in 0.1s");
    let stored = serde_json::json!({
        "lines": 1,
        "suites": [{"suite": "pytest", "passed": 3, "failed": 1, "skipped": 0}],
    });
    assert_eq!(serde_json::to_value(&tally).unwrap(), stored);
    assert_eq!(serde_json::from_value::<TestTally>(stored).unwrap(), tally);
}

proptest! {
    /// Output comes in pieces of any size.
    #[test]
    fn pieces_make_no_difference(cuts in proptest::collection::vec(1_usize..40, 0..60), bytes in ".{0,80}") {
        let whole = format!("{CARGO}{bytes}\n{GO_V}{MAVEN_RUN}{TAP}{XML}\n");
        let mut counter = TestCounter::default();
        let mut rest = whole.as_bytes();
        for cut in cuts {
            let (piece, after) = rest.split_at(cut.min(rest.len()));
            counter.push(Piped::Stdout, piece);
            rest = after;
        }
        counter.push(Piped::Stdout, rest);
        prop_assert_eq!(counter.finish(), count(&whole));
    }

    #[test]
    fn anything_can_be_read(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let mut counter = TestCounter::default();
        counter.push(Piped::Stderr, &bytes);
        let tally = counter.finish();
        prop_assert!(tally.suites.len() <= MAX_SUITES);
        prop_assert!(tally.lines <= bytes.len() as u64 + 1);
    }
}

#[test]
fn a_test_of_pytest_is_counted_once_however_often_it_failed() {
    let full = [("pytest", 4, 1, 0)];
    assert_eq!(in_short(&count(PYTEST_ERRORS)), [("pytest", 4, 2, 0)]);
    // `pytest || pytest --lf`.
    let twice = [PYTEST_ERRORS, PYTEST_LAST_FAILED].concat();
    assert_eq!(in_short(&count(&twice)), [("pytest", 4, 2, 0)]);
    let twice = [PYTEST_QUIET, PYTEST_QUIET_LAST_FAILED].concat();
    assert_eq!(in_short(&count(&twice)), [("pytest", 3, 1, 0)]);
    // Two runs of other tests add up, also where both have failures.
    let other = PYTEST_QUIET.replace("test_a.py", "test_c.py");
    assert_eq!(
        in_short(&count(&[PYTEST_QUIET, &other].concat())),
        [("pytest", 6, 2, 0)]
    );
    // A run of what failed on an earlier day is the first of this output.
    assert_eq!(in_short(&count(PYTEST_LAST_FAILED)), [("pytest", 1, 2, 0)]);
    // Nothing failed before, so it is a whole run.
    let nothing =
        "run-last-failure: no previously failed tests, not deselecting items.\n===== 4 passed in 0.05s =====\n";
    assert_eq!(in_short(&count(&[nothing, nothing].concat())), [("pytest", 8, 0, 0)]);
    // Lines of other programs with such words.
    let words =
        "FAILED (failures=1)\nERROR something - went wrong\n_ ERROR at teardown of_\n4 passed, 1 error in 0.1s\n";
    assert_eq!(in_short(&count(words)), full);
}

//! The winner, the order, and the reasons.

use super::*;
use crate::call::CallEnd;
use crate::event::{DiffStat, ResultCommit, Verdict};
use crate::failure::{Failure, FailureKind};
use crate::id::{AttemptId, ProjectId, SessionId};
use crate::price::{PriceTable, Used};
use crate::recovery::{Confidence, Decision};
use crate::session::{Unclaimed, Worked};
use crate::task::{Policy, Selection, TaskSpec, TaskState, VerifyPolicy};
use crate::test_counts::{SuiteTally, TestTally};
use crate::usage::{Money, PicoUsd, Provenance, Usage};

mod cheats;
mod honest;
mod savings;

const START: Timestamp = Timestamp::from_millis(1_000_000);

fn task(verify: Option<&str>) -> Task {
    Task {
        id: TaskId::from_random(1),
        spec: TaskSpec {
            project: ProjectId::default(),
            prompt: "make the sum right".to_owned(),
            prompt_blob: None,
            repository: None,
            context_base: None,
            assignments: Vec::new(),
            policy: Policy {
                verify: VerifyPolicy {
                    verify: verify.map(str::to_owned),
                    ..VerifyPolicy::default()
                },
                ..Policy::default()
            },
            fresh_baseline: false,
            labels: Default::default(),
            environment: Default::default(),
        },
        state: TaskState::Running,
        created_at: START,
        ended_at: None,
        baseline: None,
        baseline_kept_since: None,
        created_by: None,
        origin: None,
        selection: None,
    }
}

fn result(lines: u64, paths: &[&str]) -> ResultCommit {
    ResultCommit {
        commit: "b".repeat(40).parse().unwrap(),
        tree: None,
        diff: DiffStat {
            files: u32::try_from(paths.len()).unwrap(),
            added: lines,
            removed: 0,
        },
        paths: paths.iter().map(ToString::to_string).collect(),
        deleted: Vec::new(),
        large: Vec::new(),
        left_out: Vec::new(),
    }
}

fn verdict(kind: VerdictKind) -> Verdict {
    Verdict {
        kind,
        agent: "a".to_owned(),
        ..Verdict::errored("it says so".to_owned())
    }
}

fn session(name: &str, state: SessionState) -> Session {
    let id = SessionId::from_random(2);
    let adapter = "claude-api".parse().unwrap();
    let mut session = Session::new(id, TaskId::from_random(1), name.parse().unwrap(), adapter, None);
    session.started_at = Some(START);
    session.ended_at = state.is_terminal().then_some(START + Duration::from_secs(10));
    session.worked.start(START);
    if let Some(end) = session.ended_at {
        session.worked.stop(end);
    }
    session.state = state;
    session
}

fn verified(name: &str, lines: u64, paths: &[&str]) -> Session {
    let state = SessionState::Verified {
        result: result(lines, paths),
        verdict: verdict(VerdictKind::Passed),
    };
    session(name, state)
}

fn spent(mut session: Session, model: &str, output: u64, metered: bool, reported: Option<i64>) -> Session {
    let used = Used {
        model,
        usage: &Usage {
            output,
            ..Usage::default()
        },
        reported: reported.map(PicoUsd),
        metered,
        call: metered.then_some(CallEnd::Whole),
    };
    session.charge(used, PriceTable::builtin(), START);
    session
}

fn failed(name: &str) -> Session {
    let failure = Failure::new(FailureKind::Auth, "the key is refused");
    session(
        name,
        SessionState::Failed {
            failure,
            unfinished: None,
            verdict: None,
        },
    )
}

fn unfinished(name: &str) -> Session {
    let state = SessionState::Failed {
        failure: Failure::new(FailureKind::Timeout, "it took too long"),
        unfinished: Some(result(1, &["src/a"])),
        verdict: None,
    };
    session(name, state)
}

/// An unfinished one that verify looked at because somebody asked.
fn asked(name: &str, kind: VerdictKind) -> Session {
    let mut session = unfinished(name);
    session.state = Unclaimed::Failed {
        failure: Failure::new(FailureKind::Timeout, "it took too long"),
    }
    .with(Some(result(1, &["src/a"])), Some(verdict(kind)));
    session
}

fn rejected(name: &str) -> Session {
    let state = SessionState::Rejected {
        result: result(1, &["src/a"]),
        verdict: verdict(VerdictKind::Failed),
    };
    session(name, state)
}

fn unverified(name: &str, paths: &[&str], verdict: Option<Verdict>) -> Session {
    let state = SessionState::Unverified {
        result: Some(result(1, paths)),
        verdict,
    };
    session(name, state)
}

fn ranked(task: &Task, sessions: &[Session]) -> Report {
    rank(task, sessions, START + Duration::from_secs(60))
}

fn names(report: &Report) -> Vec<&str> {
    report.rows.iter().map(|row| row.session.name.as_str()).collect()
}

/// Each criterion decides where all before it are equal.
#[test]
fn each_part_of_the_order_decides_in_its_turn() {
    let src = &["src/a"][..];
    let model = "claude-sonnet-5-5";
    let later = |mut session: Session| {
        session.worked.ended = Duration::from_secs(11);
        session
    };
    let in_order = [
        spent(verified("lines-few", 1, src), "unpriced", 9, true, None),
        spent(verified("files-few", 5, src), "unpriced", 9, true, None),
        spent(verified("cheap", 5, &["src/a", "src/b"]), model, 1, true, None),
        later(spent(verified("dear", 5, &["src/a", "src/b"]), model, 2, true, None)),
        spent(
            verified("mixed", 5, &["src/a", "src/b"]),
            model,
            3,
            false,
            Some(50_000_000),
        ),
        spent(
            verified("no-price-a", 5, &["src/a", "src/b"]),
            "unpriced",
            1,
            true,
            None,
        ),
        spent(
            verified("no-price-b", 5, &["src/a", "src/b"]),
            "unpriced",
            1,
            true,
            None,
        ),
        later(verified("no-figures", 5, &["src/a", "src/b"])),
        verified("risk-low", 1, &["Cargo.lock"]),
        verified("risk-high", 1, &["tests/a"]),
        unverified("unverified", src, Some(verdict(VerdictKind::Errored))),
        session(
            "running",
            SessionState::Running {
                attempt: AttemptId::from_random(3),
            },
        ),
        rejected("rejected"),
        asked("asked-passed", VerdictKind::Passed),
        unfinished("unfinished"),
        asked("unfinished-errored", VerdictKind::Errored),
        asked("asked-failed", VerdictKind::Failed),
        failed("failed"),
        session(
            "cancelled",
            SessionState::Cancelled {
                unfinished: None,
                verdict: None,
            },
        ),
    ];
    let expected: Vec<_> = in_order.iter().map(|session| session.name.as_str()).collect();
    let task = task(Some("true"));
    for rotation in 0..in_order.len() {
        let mut shuffled = in_order.clone();
        shuffled.rotate_left(rotation);
        let report = ranked(&task, &shuffled);
        assert_eq!(names(&report), expected);
        assert_eq!(report.best.winner().unwrap().as_str(), "lines-few");
        assert!(report.provisional);
        assert!(report.rows.iter().map(|row| row.rank).eq(1..=19));
    }
}

#[test]
fn the_winner_is_the_best_that_may_be_landed() {
    let (checked, unchecked) = (Some("true"), None);
    let errored = || Some(verdict(VerdictKind::Errored));
    let cases = [
        (checked, vec![], None),
        (checked, vec![failed("a"), rejected("b")], None),
        (checked, vec![unfinished("a")], None),
        (unchecked, vec![unfinished("a"), failed("b")], None),
        (checked, vec![unverified("a", &["src/a"], errored())], None),
        // An edited test never wins by itself.
        (
            checked,
            vec![verified("a", 1, &["tests/a"]), verified("b", 900, &["src/a"])],
            Some("b"),
        ),
        (
            checked,
            vec![verified("a", 1, &["tests/a"]), verified("b", 900, &["Cargo.lock"])],
            Some("b"),
        ),
        (checked, vec![verified("a", 1, &["tests/a"]), rejected("b")], None),
        (
            checked,
            vec![verified("a", 1, &["tests/a"]), unverified("b", &["src/a"], errored())],
            None,
        ),
        (unchecked, vec![failed("a")], None),
        (unchecked, vec![unverified("a", &["tests/a"], None)], None),
        (
            unchecked,
            vec![unverified("a", &["tests/a"], None), unverified("b", &["src/a"], None)],
            Some("b"),
        ),
        (
            unchecked,
            vec![
                session(
                    "a",
                    SessionState::Unverified {
                        result: None,
                        verdict: None,
                    },
                ),
                unverified("b", &["src/a"], None),
            ],
            Some("b"),
        ),
        // Without a workspace there is nothing to land.
        (
            unchecked,
            vec![session(
                "a",
                SessionState::Unverified {
                    result: None,
                    verdict: None,
                },
            )],
            None,
        ),
    ];
    for (verify, sessions, winner) in cases {
        let report = ranked(&task(verify), &sessions);
        assert_eq!(
            report.best.winner().map(SessionName::as_str),
            winner,
            "{:?}",
            names(&report)
        );
        assert!(!report.provisional);
    }
}

#[test]
fn why_nobody_wins_is_told() {
    let name = |name: &str| name.parse::<SessionName>().unwrap();
    let (checked, unchecked) = (task(Some("true")), task(None));
    let cheats = [
        verified("b", 2, &["tests/b"]),
        verified("a", 1, &["tests/a", "Cargo.lock"]),
    ];
    let unseen = vec![
        "changes tests: tests/a".to_owned(),
        "changes lock files: Cargo.lock".to_owned(),
    ];
    let risky = Best::Risky {
        session: name("a"),
        flags: unseen,
    };
    let cases = [
        (&checked, cheats.to_vec(), risky.clone()),
        (&checked, vec![verified("a", 1, &["src/a"])], Best::Verified(name("a"))),
        (&checked, vec![unverified("a", &["src/a"], None)], Best::Nothing),
        (
            &unchecked,
            vec![unverified("a", &["src/a"], None)],
            Best::Unchecked(name("a")),
        ),
    ];
    for (task, sessions, best) in cases {
        assert_eq!(ranked(task, &sessions).best, best);
    }
    let words = risky.words();
    assert!(
        words.contains("the first is a, which changes tests: tests/a; changes lock"),
        "{words}"
    );
}

#[test]
fn what_was_selected_wins_and_the_order_stays() {
    let mut task = task(Some("true"));
    let mut sessions = [
        verified("a", 1, &["src/a"]),
        unverified("b", &["src/b"], None),
        failed("c"),
    ];
    for (n, session) in (1..).zip(&mut sessions) {
        session.id = SessionId::from_random(n);
    }
    let select = |session: &Session| {
        Some(Selection {
            session: session.id,
            name: session.name.clone(),
            by: "token:1".to_owned(),
            at: START,
        })
    };
    task.selection = select(&sessions[1]);
    let report = ranked(&task, &sessions);
    let best = Best::Selected {
        session: sessions[1].name.clone(),
        by: "token:1".to_owned(),
    };
    assert_eq!((report.best.winner(), &report.best), (Some(&sessions[1].name), &best));
    assert_eq!(report.rows[0].session.name, sessions[0].name);
    // Nothing can be landed of a session that has no result.
    task.selection = select(&sessions[2]);
    assert_eq!(ranked(&task, &sessions).best, Best::Verified(sessions[0].name.clone()));
}

/// The same change, with and without the base's file while verify ran.
#[test]
fn what_verify_took_from_the_base_proves_nothing_and_spoils_nothing() {
    let edited = |restored: &[&str]| {
        let mut session = verified("a", 1, &["src/a", "tests/a"]);
        if let SessionState::Verified { verdict, .. } = &mut session.state {
            verdict.restored = restored.iter().map(ToString::to_string).collect();
        }
        ranked(&task(Some("sh tests/a")), &[session])
    };
    let report = edited(&["tests/a"]);
    assert_eq!(report.rows[0].risk, Risk::Low);
    assert_eq!(report.best.winner().unwrap().as_str(), "a");
    assert!(report.rows[0].flags[0].contains("took from the base"), "{report:#?}");
    assert_eq!(edited(&[]).best.winner(), None);
}

#[test]
fn a_row_holds_every_input_of_the_order() {
    let mut cheat = spent(verified("cheat", 7, &["tests/a"]), "claude-sonnet-5-5", 3, true, None);
    cheat.attempts = 2;
    cheat.calls.repeated = 1;
    cheat.note(Incident {
        at: START,
        verify: false,
        attempt: 1,
        agent: Some("w1".to_owned()),
        failure: Failure::new(FailureKind::DiskFull, "no room"),
        decision: Decision {
            action: Action::MoveAgent {
                at: START + Duration::from_secs(2),
            },
            reason: "why".to_owned(),
            confidence: Confidence::High,
        },
    });
    let report = ranked(&task(Some("true")), &[cheat.clone(), failed("b")]);
    let cost = vec![Money {
        amount: Some(PicoUsd(30_000_000)),
        provenance: Provenance::Billed,
    }];
    let expected = ReportRow {
        rank: 1,
        session: cheat,
        risk: Risk::High,
        flags: vec!["changes tests: tests/a".to_owned()],
        suspicious: false,
        costs: Costs {
            by_model: vec![cost.clone()],
            all: cost,
        },
        duration: Duration::from_secs(10),
        history: vec![
            "took 2 attempts".to_owned(),
            "repeated 1 model call".to_owned(),
            "attempt 1 on w1: disk full: no room; again after 2 s, on another agent if one fits: why".to_owned(),
            "verify on a: it says so".to_owned(),
        ],
    };
    assert_eq!(report.rows[0], expected);
    assert_eq!(report.rows[1].history, ["failed: not authorised: the key is refused"]);
}

#[test]
fn a_base_that_fails_by_itself_is_told() {
    let cases = [
        (VerdictKind::Passed, None),
        (
            VerdictKind::Failed,
            Some("verify already fails on the base: it says so"),
        ),
        (
            VerdictKind::Errored,
            Some("verify cannot be run on the base: it says so"),
        ),
    ];
    for (kind, expected) in cases {
        let mut task = task(Some("true"));
        task.baseline = Some(verdict(kind));
        assert_eq!(ranked(&task, &[]).notes, Vec::from_iter(expected));
    }
    // One that an earlier task left is told, whatever it is, with its time and its agent.
    let before = "base verified on 1970-01-01 00:01 UTC by builder, for an earlier task";
    let cases = [
        (VerdictKind::Passed, before.to_owned()),
        (
            VerdictKind::Failed,
            format!("verify already fails on the base: it says so ({before})"),
        ),
    ];
    for (kind, expected) in cases {
        let mut task = task(Some("true"));
        task.baseline = Some(Verdict {
            agent: "builder".to_owned(),
            ..verdict(kind)
        });
        task.baseline_kept_since = Some(Timestamp::from_millis(60_000));
        assert_eq!(ranked(&task, &[]).notes, [expected]);
    }
}

/// A verdict whose output told of this many tests.
fn counted(kind: VerdictKind, passed: u64) -> Verdict {
    let suite = SuiteTally {
        suite: "pytest".to_owned(),
        passed,
        ..SuiteTally::default()
    };
    Verdict {
        tests: Some(TestTally {
            lines: 3,
            suites: vec![suite],
        }),
        ..verdict(kind)
    }
}

#[test]
fn a_result_that_ran_fewer_tests_than_the_base_is_below_the_clean_ones_and_does_not_win() {
    let passed = |name: &str, lines, paths: &[&str], tests| {
        let state = SessionState::Verified {
            result: result(lines, paths),
            verdict: counted(VerdictKind::Passed, tests),
        };
        session(name, state)
    };
    let mut task = task(Some("pytest"));
    task.baseline = Some(counted(VerdictKind::Failed, 42));
    let sessions = [
        passed("few", 1, &["src/a.py"], 12),
        passed("tests", 5, &["tests/a.py"], 43),
        passed("clean", 90, &["src/a.py"], 42),
        passed("lock", 99, &["src/a.py", "uv.lock"], 42),
    ];
    let report = ranked(&task, &sessions);
    let rows = report
        .rows
        .iter()
        .map(|row| (row.session.name.as_str(), row.risk, row.suspicious));
    let expected = [
        ("clean", Risk::None, false),
        ("lock", Risk::Low, false),
        ("tests", Risk::High, false),
        ("few", Risk::High, true),
    ];
    assert_eq!(rows.collect::<Vec<_>>(), expected);
    let numbers = "ran fewer tests in verify than the base: 42 tests on the base, 12 here (pytest)";
    assert_eq!(report.rows[3].flags, [numbers]);
    assert_eq!(report.best.winner().map(SessionName::as_str), Some("clean"));
    let alone = ranked(&task, &sessions[..1]);
    assert_eq!(alone.best.winner(), None);
    assert!(alone.best.words().contains(numbers), "{}", alone.best.words());
}

#[test]
fn counts_without_a_base_to_compare_with_are_told() {
    let state = SessionState::Verified {
        result: result(1, &["src/a.py"]),
        verdict: counted(VerdictKind::Passed, 12),
    };
    let sessions = [session("a", state)];
    let mut task = task(Some("pytest"));
    let report = ranked(&task, &sessions);
    assert_eq!(report.rows[0].risk, Risk::None);
    assert_eq!(report.notes.len(), 1, "{:?}", report.notes);
    task.baseline = Some(counted(VerdictKind::Passed, 12));
    assert_eq!(ranked(&task, &sessions).notes, [] as [&str; 0]);
    let uncounted = |kind, tests| Verdict {
        tests,
        ..counted(kind, 12)
    };
    let empty = Some(TestTally::default());
    let cases = [
        (
            uncounted(VerdictKind::Passed, None),
            Some("the agent that checked the base is of a version"),
        ),
        (
            uncounted(VerdictKind::Passed, empty.clone()),
            Some("verify told no number of tests on the base"),
        ),
        (
            uncounted(VerdictKind::Failed, empty.clone()),
            Some("verify told no number of tests on the base"),
        ),
        (uncounted(VerdictKind::Errored, None), None),
        (uncounted(VerdictKind::Errored, empty), None),
    ];
    for (base, expected) in cases {
        task.baseline = Some(base);
        let notes = ranked(&task, &sessions).notes;
        let told = notes
            .iter()
            .find(|note| note.contains("nothing says whether the results ran"));
        assert_eq!(told.is_some(), expected.is_some(), "{notes:?}");
        assert!(told.is_none_or(|note| note.starts_with(expected.unwrap())), "{notes:?}");
    }
    let quiet = [verified("b", 1, &["src/a.py"])];
    assert_eq!(
        ranked(&task, &quiet).notes.len(),
        1,
        "that verify cannot be run on the base"
    );
    task.baseline = None;
    assert_eq!(ranked(&task, &quiet).notes, [] as [&str; 0]);
}

#[test]
fn the_tiers_of_containment_stand_with_a_result() {
    use crate::contain::Tier::{T1, T2};
    let state = |contained| SessionState::Verified {
        result: result(1, &["src/a.py"]),
        verdict: Verdict {
            contained,
            ..verdict(VerdictKind::Passed)
        },
    };
    let worked_in = |name: &str, tier, state| {
        let mut session = session(name, state);
        session.contained = tier;
        session
    };
    let running = SessionState::Running {
        attempt: AttemptId::from_random(3),
    };
    let cases = [
        (
            worked_in("a", Some(T2), state(T2)),
            Some("worked and was checked in containment T2"),
        ),
        (
            worked_in("b", Some(T2), state(T1)),
            Some("worked in containment T2, was checked in T1"),
        ),
        (worked_in("c", Some(T1), running), Some("worked in containment T1")),
        (worked_in("d", None, state(T1)), None),
    ];
    let mixed = cases.clone().map(|(session, _)| session);
    let report = ranked(&task(Some("true")), &mixed);
    for (session, expected) in &cases {
        let row = report.rows.iter().find(|row| row.session.name == session.name).unwrap();
        let told = row.history.iter().find(|line| line.contains("containment"));
        assert_eq!(told.map(String::as_str), *expected, "{:?}", row.history);
    }
    assert!(!report.notes.iter().any(|note| note.contains("containment")));
    // One tier for all is said once.
    let [(same, _), ..] = cases;
    let report = ranked(&task(Some("true")), &[same]);
    assert!(!report.rows[0].history.iter().any(|line| line.contains("containment")));
    assert_eq!(report.notes.last().unwrap(), "all of it ran in containment T2");
}

#[test]
fn time_runs_until_now_while_a_session_does() {
    let mut queued = session("q", SessionState::Queued);
    queued.started_at = None;
    queued.worked = Worked::default();
    let running = session(
        "r",
        SessionState::Running {
            attempt: AttemptId::from_random(3),
        },
    );
    let report = ranked(&task(None), &[running, queued]);
    let durations: Vec<_> = report.rows.iter().map(|row| row.duration.as_secs()).collect();
    assert_eq!(durations, [0, 60]);
    assert_eq!(report.best, Best::Nothing);
}

#[test]
fn an_unfinished_result_is_told_with_its_reason() {
    let report = ranked(&task(None), &[unfinished("a")]);
    let history = &report.rows[0].history;
    assert_eq!(
        history[..],
        [
            "failed: time-out: it took too long",
            "its result is unfinished: the files of checkpoint 0, which nothing checked",
        ]
    );
    assert_eq!(report.best, Best::Nothing);
    let report = ranked(&task(Some("true")), &[asked("a", VerdictKind::Passed)]);
    assert_eq!(report.best, Best::Nothing, "it never wins by itself");
    let last = "its result is unfinished: the files of checkpoint 0";
    assert_eq!(report.rows[0].history.last().map(String::as_str), Some(last));
    let words = Selection {
        session: report.rows[0].session.id,
        name: report.rows[0].session.name.clone(),
        by: "owner".to_owned(),
        at: START,
    };
    let selected = Task {
        selection: Some(words),
        ..task(None)
    };
    let report = ranked(&selected, &[unfinished("a")]);
    assert_eq!(
        report.best.winner().map(SessionName::as_str),
        Some("a"),
        "a person may decide so"
    );
}

//! Every kind of failure, how it arises and the decision about it, as a table.

use super::*;
use crate::failure_table::{FailureTable, ProviderError};
use crate::time::LocalTime;

const NOW: Timestamp = Timestamp::from_millis(1_000_000);

fn seconds(seconds: u64) -> Timestamp {
    NOW + Duration::from_secs(seconds)
}

/// After the first failure of a job that may fail three times.
fn first(failure: &Failure) -> Decision {
    let history = History {
        failed: 1,
        lost: 1,
        held: 1,
        expired: 1,
        max_attempts: 3,
        ..History::default()
    };
    decide(history, failure, Jitter::NONE, NOW)
}

/// After as many failures as the job may have.
fn last(failure: &Failure) -> Decision {
    let history = History {
        failed: 3,
        lost: MAX_LOST + 1,
        held: MAX_HOLDS + 1,
        expired: MAX_EXPIRED + 1,
        max_attempts: 3,
        ..History::default()
    };
    decide(history, failure, Jitter::NONE, NOW)
}

fn answer(status: u16, message: &str, retry_after: Option<u64>) -> Failure {
    ProviderError {
        status: Some(status),
        message,
        retry_after: retry_after.map(Duration::from_secs),
        ..ProviderError::default()
    }
    .classify()
}

fn words(text: &str) -> Failure {
    FailureTable::builtin()
        .classify("my-cli", text, LocalTime::utc(NOW))
        .unwrap()
}

fn quota(reset: Option<u64>) -> Failure {
    Failure {
        retry_after: reset.map(Duration::from_secs),
        ..Failure::new(FailureKind::QuotaExhausted, "the 5-hour limit is used up")
    }
}

#[test]
fn each_failure_has_its_decision() {
    use Action::{Escalate, HoldUntil, MoveAgent, RetryCurrent};
    use Confidence::{High, Low, Medium};
    let plain = |kind| Failure::new(kind, "x");
    let again = |after| RetryCurrent { at: seconds(after) };
    let moved = MoveAgent { at: seconds(2) };
    let cases = [
        ("429", answer(429, "slow down", None), again(15), Medium),
        ("429, retry-after", answer(429, "slow down", Some(12)), again(12), High),
        (
            "429, a day",
            answer(429, "slow down", Some(86_400)),
            HoldUntil { at: seconds(86_400) },
            High,
        ),
        (
            "429, a month",
            answer(429, "slow down", Some(30 * 86_400)),
            Escalate,
            High,
        ),
        ("529", answer(529, "busy", None), again(15), Medium),
        ("529, retry-after", answer(529, "busy", Some(40)), again(40), High),
        ("503", answer(503, "busy", None), again(15), Medium),
        ("500", answer(500, "oops", None), again(2), Medium),
        ("502", answer(502, "<html>", None), again(2), Medium),
        ("connection cut", words("read ECONNRESET"), again(2), Medium),
        ("time-out", plain(FailureKind::Timeout), again(2), Low),
        ("401", answer(401, "no", None), Escalate, High),
        ("token ended", plain(FailureKind::TokenExpired), again(0), High),
        ("400", answer(400, "bad", None), Escalate, High),
        ("the model will not", plain(FailureKind::ModelRefused), Escalate, High),
        ("too long", answer(400, "prompt is too long", None), Escalate, High),
        ("signal", plain(FailureKind::AdapterCrash), again(2), Medium),
        ("exit 0, no change", plain(FailureKind::NoChange), Escalate, Medium),
        (
            "400 MB of new files",
            plain(FailureKind::ResultTooLarge),
            Escalate,
            High,
        ),
        ("key in a file", plain(FailureKind::SecretFound), Escalate, High),
        ("a forged result", plain(FailureKind::ResultRefused), Escalate, High),
        ("verify failed", plain(FailureKind::LogicError), Escalate, Medium),
        ("turns, no checkpoint", plain(FailureKind::TurnLimit), Escalate, High),
        ("agent lost", plain(FailureKind::AgentLost), again(0), High),
        ("no process", plain(FailureKind::MachineBusy), moved, High),
        ("disk full", words("git: No space left on device"), moved, High),
        ("index.lock", words("Unable to create 'x/index.lock'"), moved, Medium),
        ("no program", plain(FailureKind::AdapterUnavailable), moved, High),
        ("setup", plain(FailureKind::SetupFailed), moved, Medium),
        ("no context", plain(FailureKind::ContextUnavailable), again(2), Medium),
        (
            "quota, reset",
            quota(Some(3_600)),
            HoldUntil { at: seconds(3_600) },
            High,
        ),
        ("quota, no reset", quota(None), HoldUntil { at: seconds(900) }, Medium),
        ("quota, a year", quota(Some(365 * 86_400)), Escalate, High),
        ("budget", plain(FailureKind::BudgetExceeded), Escalate, High),
        ("cancelled", plain(FailureKind::Cancelled), Escalate, High),
        (
            "unknown",
            plain(FailureKind::Unknown),
            MoveAgent { at: seconds(2) },
            Low,
        ),
    ];
    for (name, failure, action, confidence) in cases {
        let decision = first(&failure);
        assert_eq!((decision.action, decision.confidence), (action, confidence), "{name}");
        assert!(!decision.reason.is_empty(), "{name}");
        let decision = last(&failure);
        assert_eq!(decision.action, Escalate, "{name}, at the end");
        assert!(!decision.reason.is_empty(), "{name}");
    }
}

#[test]
fn waits_double_and_crashes_move() {
    let after = |kind, failed| {
        let history = History {
            failed,
            max_attempts: 20,
            ..History::default()
        };
        decide(history, &Failure::new(kind, "x"), Jitter::NONE, NOW).action
    };
    let waits = [(1, 2), (2, 4), (3, 8), (8, 256), (9, 300), (19, 300)];
    for (failed, wait) in waits {
        let at = seconds(wait);
        assert_eq!(after(FailureKind::Network, failed), Action::RetryCurrent { at });
    }
    let at = seconds(4);
    assert_eq!(after(FailureKind::AdapterCrash, 2), Action::MoveAgent { at });
    // A failure that the task itself may cause is retried once, whatever is allowed.
    assert_eq!(after(FailureKind::Timeout, 2), Action::Escalate);
    assert_eq!(after(FailureKind::Unknown, 2), Action::Escalate);
}

#[test]
fn checkpoints_make_ways_back() {
    use FailureKind::{AdapterCrash, CorruptedState, LogicError, Network};
    let plain = History {
        failed: 1,
        max_attempts: 3,
        ..History::default()
    };
    let settled = History { settled: true, ..plain };
    let half_done = History {
        half_done: true,
        ..settled
    };
    let safe = History {
        safe: true,
        max_reworks: 1,
        ..settled
    };
    let (again, at) = (Action::RetryCurrent { at: seconds(2) }, seconds(2));
    let back = Action::RollbackLast { at };
    let moved = Action::MoveAgent { at };
    let to_safe = Action::RollbackSafe { at: NOW };
    let cases = [
        (plain, CorruptedState, moved),
        (settled, CorruptedState, back),
        (half_done, CorruptedState, back),
        (settled, AdapterCrash, again),
        (half_done, AdapterCrash, back),
        (half_done, Network, again),
        // Only half-done edits: there is nothing to go back to.
        (
            History {
                settled: false,
                ..half_done
            },
            AdapterCrash,
            again,
        ),
        (safe, LogicError, to_safe),
        (History { safe: false, ..safe }, LogicError, Action::Escalate),
        (History { reworked: 1, ..safe }, LogicError, Action::Escalate),
        (History { max_reworks: 0, ..safe }, LogicError, Action::Escalate),
        (History { failed: 3, ..half_done }, CorruptedState, Action::Escalate),
    ];
    for (history, kind, action) in cases {
        let decision = decide(history, &Failure::new(kind, "x"), Jitter::NONE, NOW);
        assert_eq!(decision.action, action, "{kind}, {history:?}");
        assert!(!decision.reason.is_empty());
    }
}

#[test]
fn a_limit_of_turns_goes_on_once_and_never_blames_the_work() {
    let settled = History {
        failed: 1,
        max_attempts: 2,
        settled: true,
        ..History::default()
    };
    // Failures of other kinds do not use up the one retry.
    let late = History { failed: 2, ..settled };
    let half_done = History {
        settled: false,
        half_done: true,
        ..settled
    };
    let reworkable = History {
        safe: true,
        max_reworks: 3,
        ..settled
    };
    let again = Action::RetryCurrent { at: NOW };
    let cases = [
        (settled, again),
        (late, again),
        (half_done, again),
        (reworkable, again),
        (
            History {
                settled: false,
                ..settled
            },
            Action::Escalate,
        ),
        (
            History {
                turn_limits: 1,
                max_attempts: 9,
                ..settled
            },
            Action::Escalate,
        ),
        (
            History {
                turn_limits: 1,
                ..reworkable
            },
            Action::Escalate,
        ),
        (
            History {
                max_attempts: 1,
                ..settled
            },
            Action::Escalate,
        ),
    ];
    for (history, action) in cases {
        let failure = Failure::new(FailureKind::TurnLimit, "the model was not done after 200 turns");
        let decision = decide(history, &failure, Jitter::NONE, NOW);
        assert_eq!(decision.action, action, "{history:?}");
        assert!(!decision.reason.contains("wrong"), "{}", decision.reason);
        let raises = decision.reason.contains("max_turns");
        assert_eq!(raises, action == Action::Escalate, "{}", decision.reason);
    }
}

#[test]
fn an_adapter_that_cannot_go_on_hands_over_when_another_one_may() {
    let switch = Action::SwitchAdapter { at: NOW };
    let spent = History {
        failed: 2,
        held: 1,
        max_attempts: 2,
        fallback: true,
        ..History::default()
    };
    let unavailable = || Failure::new(FailureKind::AdapterUnavailable, "not installed");
    let refused = || Failure::new(FailureKind::Auth, "the key is refused");
    let far = LONGEST_WAIT.as_secs() + 1;
    let cases = [
        (spent, refused(), switch),
        (spent, quota(None), switch),
        (spent, quota(Some(3600)), switch),
        (spent, quota(Some(far)), switch),
        (spent, answer(429, "slow down", Some(far)), switch),
        (spent, unavailable(), switch),
        // The adapter may work on another machine.
        (
            History { failed: 1, ..spent },
            unavailable(),
            Action::MoveAgent { at: NOW + FIRST_DELAY },
        ),
        // Waiting for a near reset keeps the conversation.
        (spent, quota(Some(60)), Action::HoldUntil { at: seconds(60) }),
        (
            History {
                held: MAX_HOLDS + 1,
                ..spent
            },
            quota(Some(60)),
            switch,
        ),
        // None of these is the adapter's fault.
        (spent, Failure::new(FailureKind::LogicError, "x"), Action::Escalate),
        (spent, Failure::new(FailureKind::AdapterCrash, "x"), Action::Escalate),
        (spent, Failure::new(FailureKind::InvalidRequest, "x"), Action::Escalate),
    ];
    for (history, failure, action) in cases {
        let decision = decide(history, &failure, Jitter::NONE, NOW);
        assert_eq!(decision.action, action, "{failure}");
        let alone = decide(
            History {
                fallback: false,
                ..history
            },
            &failure,
            Jitter::NONE,
            NOW,
        );
        assert!(!matches!(alone.action, Action::SwitchAdapter { .. }), "{failure}");
    }
}

#[test]
fn a_rejected_session_works_on_as_often_as_it_may() {
    let plain = Rejection {
        last: Some(3),
        ..Rejection::default()
    };
    let resumes = Rejection { resumes: true, ..plain };
    let asked = |times, rejection| Rejection {
        max_reworks: Some(times),
        ..rejection
    };
    let after = |reworked, rejection| Rejection { reworked, ..rejection };
    let works_on = Action::Rework { at: NOW, from: 3 };
    let cases = [
        // Not specified: once, where the conversation continues.
        (resumes, works_on),
        (after(1, resumes), Action::Escalate),
        (plain, Action::Escalate),
        // Specified.
        (asked(0, resumes), Action::Escalate),
        (asked(1, plain), works_on),
        (after(1, asked(1, plain)), Action::Escalate),
        (after(1, asked(2, resumes)), works_on),
        (after(2, asked(2, resumes)), Action::Escalate),
        // There is nothing to resume.
        (Rejection { last: None, ..resumes }, Action::Escalate),
        (
            Rejection {
                last: None,
                ..asked(2, plain)
            },
            Action::Escalate,
        ),
    ];
    for (rejection, action) in cases {
        for base_fails in [false, true] {
            let decision = decide_rejected(
                Rejection {
                    base_fails,
                    ..rejection
                },
                NOW,
            );
            assert_eq!(decision.action, action, "{rejection:?}");
            let told = decision.reason.contains("fails on the base");
            assert_eq!(told, base_fails && action == Action::Escalate, "{}", decision.reason);
        }
    }
    let words = works_on.words(NOW);
    assert_eq!(words, "continues from checkpoint 3 with verify's output");
}

#[test]
fn holds_and_losses_do_not_count_as_failures() {
    let spent = History {
        failed: 3,
        lost: MAX_LOST,
        held: MAX_HOLDS,
        max_attempts: 3,
        ..History::default()
    };
    let plain = |kind| Failure::new(kind, "x");
    // An hour after 429 is a limit of the hour; a minute is one of the minute.
    let of_an_hour = answer(429, "slow down", Some(3_600));
    for failure in [
        plain(FailureKind::AgentLost),
        plain(FailureKind::QuotaExhausted),
        of_an_hour,
    ] {
        let decision = decide(spent, &failure, Jitter::NONE, NOW);
        assert!(decision.action.next_attempt().is_some(), "{failure}");
    }
    let of_a_minute = answer(429, "slow down", Some(60));
    assert_eq!(decide(spent, &of_a_minute, Jitter::NONE, NOW).action, Action::Escalate);
    let held = |kind, wait| Failure {
        retry_after: wait,
        ..plain(kind)
    };
    for (kind, wait, expected) in [
        (FailureKind::RateLimited, Some(600), true),
        (FailureKind::RateLimited, Some(599), false),
        (FailureKind::RateLimited, None, false),
        (FailureKind::Overloaded, Some(3_600), false),
        (FailureKind::QuotaExhausted, None, true),
    ] {
        let failure = held(kind, wait.map(Duration::from_secs));
        assert_eq!(failure.is_held(), expected, "{failure}, {wait:?}");
    }
}

#[test]
fn jitter_only_lengthens_by_a_quarter_and_a_minute_at_most() {
    let history = History {
        failed: 1,
        max_attempts: 2,
        ..History::default()
    };
    let six_days = 6 * 86_400;
    for failure in [
        answer(429, "x", Some(100)),
        answer(529, "x", None),
        quota(Some(1_000)),
        quota(Some(six_days)),
    ] {
        let wait = |jitter| {
            let decision = decide(history, &failure, jitter, NOW);
            decision.action.next_attempt().unwrap().since(NOW)
        };
        let least = wait(Jitter::NONE);
        assert_eq!(wait(Jitter::MOST), least + (least / 4).min(MOST_JITTER));
        let some = wait(Jitter::from_random(0x8000_0000));
        assert!(least < some && some < wait(Jitter::MOST));
    }
}

#[test]
fn a_limit_that_is_said_to_be_reset_and_is_not_is_asked_ever_more_rarely() {
    let wait = |held, reset| {
        let history = History {
            held,
            ..History::default()
        };
        let decision = decide(history, &quota(Some(reset)), Jitter::NONE, NOW);
        decision.action.next_attempt().unwrap().since(NOW)
    };
    assert_eq!(wait(1, 3_600), Duration::from_secs(3_600));
    let waits: Vec<_> = (1..=4).map(|held| wait(held, 1).as_secs()).collect();
    assert_eq!(waits, [2, 4, 8, 16]);
    assert_eq!(wait(MAX_HOLDS, 1), PROBE);
}

#[test]
fn a_check_without_a_decision_moves_once() {
    assert_eq!(decide_errored(1, NOW).action, Action::MoveAgent { at: NOW });
    assert_eq!(decide_errored(MAX_ERRORED_VERDICTS, NOW).action, Action::Escalate);
}

#[test]
fn an_incident_reads_back_as_it_was_stored() {
    let incident = Incident {
        at: NOW,
        verify: true,
        attempt: 2,
        agent: None,
        failure: answer(429, "slow", Some(7)),
        decision: first(&answer(429, "slow", Some(7))),
    };
    let text = serde_json::to_string(&incident).unwrap();
    assert_eq!(serde_json::from_str::<Incident>(&text).unwrap(), incident);
    assert_eq!(
        incident.words(),
        "verify attempt 2: rate limited: HTTP 429: slow; again after 7 s: the provider asked for 7 s (retry-after)"
    );
}

#[test]
fn a_machine_without_room_is_left_and_counts_as_no_failure() {
    let decided = |lost| {
        let history = History {
            failed: 3,
            lost,
            max_attempts: 3,
            ..History::default()
        };
        decide(history, &Failure::new(FailureKind::MachineBusy, "x"), Jitter::NONE, NOW).action
    };
    assert_eq!(decided(MAX_LOST), Action::MoveAgent { at: seconds(2) });
    assert_eq!(decided(MAX_LOST + 1), Action::Escalate);
}

//! What is said about sessions that a task did without.

use super::*;
use crate::session::Spared;
use crate::task::Course;

fn spared(name: &str, why: Spared, began: bool) -> Session {
    let cancelled = SessionState::Cancelled {
        unfinished: None,
        verdict: None,
    };
    let mut session = session(name, cancelled);
    session.spared = Some(why);
    if !began {
        session.started_at = None;
    }
    session
}

fn note(course: Course, sessions: &[Session]) -> Option<String> {
    let mut task = task(Some("true"));
    task.spec.policy.course = course;
    let notes = rank(&task, sessions, START).notes;
    notes.into_iter().find(|note| note.contains("because"))
}

const CENT: i64 = 10_000_000_000;

#[test]
fn a_race_says_nothing_about_it() {
    let sessions = [verified("a", 1, &["src/a"]), verified("b", 1, &["src/a"])];
    assert_eq!(note(Course::Race, &sessions), None);
    // A session that a person stopped is none that was spared.
    let stopped = session(
        "c",
        SessionState::Cancelled {
            unfinished: None,
            verdict: None,
        },
    );
    assert_eq!(note(Course::Ladder, &[verified("a", 1, &["src/a"]), stopped]), None);
}

#[test]
fn the_estimate_is_the_mean_of_those_that_ended_without_what_was_spent() {
    let first = Course::FirstVerified(std::num::NonZeroU32::MIN);
    let sessions = [
        spent(verified("a", 1, &["src/a"]), "x", 9, false, Some(20 * CENT)),
        spent(failed("b"), "x", 9, false, Some(10 * CENT)),
        spent(spared("c", Spared::Verified, true), "x", 9, false, Some(5 * CENT)),
        spared("d", Spared::Verified, false),
    ];
    let note = note(first, &sessions).unwrap();
    // 15 cents on average: 10 of c, and 15 of d.
    assert!(
        note.starts_with(
            "1 session was stopped and 1 not started, because enough sessions were verified: about $0.2500 less"
        ),
        "{note}"
    );
    assert!(
        note.contains("an estimate and no bill") && !note.contains("dearer"),
        "{note}"
    );
}

#[test]
fn a_session_that_ended_before_it_was_stopped_counts_among_those_that_did() {
    let first = Course::FirstVerified(std::num::NonZeroU32::MIN);
    let mut late = spent(verified("b", 1, &["src/a"]), "x", 9, false, Some(40 * CENT));
    late.spared = Some(Spared::Verified);
    let sessions = [
        spent(verified("a", 1, &["src/a"]), "x", 9, false, Some(20 * CENT)),
        late,
        spared("c", Spared::Verified, false),
    ];
    let note = note(first, &sessions).unwrap();
    assert!(
        note.starts_with("1 session was not started, because enough sessions were verified: about $0.3000 less"),
        "{note}"
    );
}

#[test]
fn a_session_that_cost_more_than_the_others_saved_nothing() {
    let first = Course::FirstVerified(std::num::NonZeroU32::MIN);
    let sessions = [
        spent(verified("a", 1, &["src/a"]), "x", 9, false, Some(CENT)),
        spent(spared("c", Spared::Verified, true), "x", 9, false, Some(5 * CENT)),
    ];
    assert!(note(first, &sessions).unwrap().contains("about $0.0000 less"));
}

#[test]
fn a_ladder_says_that_dearer_models_would_have_cost_more() {
    let sessions = [
        spent(verified("a", 1, &["src/a"]), "x", 9, false, Some(CENT)),
        spared("b", Spared::Verified, false),
        spared("c", Spared::Verified, false),
    ];
    let note = note(Course::Ladder, &sessions).unwrap();
    assert!(
        note.starts_with("2 sessions were not started, because enough"),
        "{note}"
    );
    assert!(
        note.contains("about $0.0200 less") && note.ends_with("; dearer models would have cost more"),
        "{note}"
    );
}

#[test]
fn what_nobody_knows_is_not_estimated() {
    let sessions = [failed("a"), spared("b", Spared::NotRejected, false)];
    let note = note(Course::Ladder, &sessions).unwrap();
    assert!(
        note.starts_with("1 session was not started, because verify did not reject the one before: how much"),
        "{note}"
    );
    assert!(note.contains("is unknown"), "{note}");
}

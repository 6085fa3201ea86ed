//! What a person's message does to a session, its job and its result.

use super::*;
use crate::session::{CannotSend, MessageState, Sent};

fn send(session: &mut Session, text: &str) -> Sent {
    let (_, sent) = session.send(text.to_owned(), "owner".to_owned(), NOW).unwrap();
    sent
}

fn states(session: &Session) -> Vec<MessageState> {
    session.messages.kept.iter().map(|message| message.state).collect()
}

/// A session of a running attempt that stands on checkpoint 5.
fn running() -> (Session, Job) {
    let mut session = resuming();
    let mut job = Job::again(JobId::from_random(8), &session, NOW);
    job.start(AttemptId::from_random(4), &mut session, "a", NOW).unwrap();
    (session, job)
}

fn claim(session: &mut Session, job: &mut Job, policy: &Policy) -> Finish {
    session.pending_result = Some(result());
    job.finish(session, &AttemptOutcome::Claimed, around(policy, &points()))
}

fn passed() -> SessionState {
    let AttemptOutcome::Verdict(verdict) = verdict(VerdictKind::Passed) else {
        panic!()
    };
    SessionState::Verified {
        result: result(),
        verdict,
    }
}

#[test]
fn what_is_said_while_an_attempt_runs_comes_next_and_nobody_verifies_in_between() {
    for policy in [checked(), Policy::default()] {
        let (mut session, mut job) = running();
        assert_eq!(send(&mut session, "and the docs"), Sent::AfterAttempt);
        assert_eq!(send(&mut session, "in French"), Sent::AfterAttempt);
        job.failed = 1;
        assert_eq!(claim(&mut session, &mut job, &policy), Finish::Moved(Moved::Requeued));
        assert_eq!((&session.state, job.failed), (&SessionState::Queued, 0));
        assert_eq!(session.checkpoints.head, Some(head(5)));
        assert_eq!(states(&session), [MessageState::Waiting; 2]);
        job.start(AttemptId::from_random(5), &mut session, "a", NOW).unwrap();
        assert_eq!(states(&session), [MessageState::Given { attempt: 5, from: 5 }; 2]);
        let told = session.instruction(&[], "true").unwrap();
        assert!(told.text.ends_with("and the docs\n\nin French"), "{told:?}");
        let ended = claim(&mut session, &mut job, &policy);
        assert_ne!(ended, Finish::Moved(Moved::Requeued), "it was told everything");
        assert_eq!(states(&session), [MessageState::Followed { attempt: 5, from: 5 }; 2]);
    }
}

#[test]
fn an_attempt_that_fails_for_good_goes_on_once_with_what_was_said() {
    let (mut session, mut job) = running();
    assert_eq!(send(&mut session, "use the other file"), Sent::AfterAttempt);
    let refused = AttemptOutcome::Failed(Failure::new(FailureKind::Auth, "x"));
    let fail = |session: &mut Session, job: &mut Job| job.finish(session, &refused, around(&checked(), &points()));
    assert_eq!(fail(&mut session, &mut job), Finish::Moved(Moved::Requeued));
    assert!(session.note_to_model().contains("interrupted"));
    job.start(AttemptId::from_random(5), &mut session, "a", NOW).unwrap();
    assert_eq!(fail(&mut session, &mut job), Finish::Moved(Moved::Over));
    assert_eq!(session.state.kind(), SessionStateKind::Failed);
    // One that is stopped stays stopped.
    let (mut session, mut job) = running();
    assert_eq!(send(&mut session, "go on"), Sent::AfterAttempt);
    session.cancel_requested = true;
    let refused = session.send("more".to_owned(), "owner".to_owned(), NOW);
    assert!(matches!(refused, Err(CannotSend::Stopping(_))), "{refused:?}");
    assert_eq!(claim(&mut session, &mut job, &checked()), Finish::Moved(Moved::Over));
    assert_eq!(
        session.state,
        SessionState::Cancelled {
            unfinished: None,
            verdict: None,
        }
    );
    assert_eq!(send(&mut session, "go on after all"), Sent::GoesOn);
    assert_eq!((session.state, session.cancel_requested), (SessionState::Queued, false));
}

#[test]
fn a_session_that_is_over_goes_on_and_keeps_its_result_until_there_is_a_newer_one() {
    let over = || {
        let mut session = resuming();
        session.state = passed();
        session.reworks = 1;
        session.ended_at = Some(NOW);
        assert_eq!(send(&mut session, "and the docs"), Sent::GoesOn);
        assert_eq!((&session.state, session.ended_at), (&SessionState::Queued, None));
        assert_eq!(session.reworked(), 0, "what was asked for since may be reworked");
        let job = Job::again(JobId::from_random(8), &session, NOW);
        (session, job)
    };
    // It waits, and is told more.
    let (mut session, mut job) = over();
    assert_eq!(send(&mut session, "and the tests"), Sent::WithNextAttempt);
    job.start(AttemptId::from_random(5), &mut session, "a", NOW).unwrap();
    let claimed = claim(&mut session, &mut job, &checked());
    assert_eq!(claimed, Finish::Verify(result().commit));
    assert_eq!(session.stands, None, "this is the newer one");

    let changed = Points {
        changed: true,
        ..points()
    };
    let (mut session, mut job) = over();
    job.start(AttemptId::from_random(5), &mut session, "a", NOW).unwrap();
    let refused = AttemptOutcome::Failed(Failure::new(FailureKind::Auth, "x"));
    let failed = job.finish(&mut session, &refused, around(&checked(), &changed));
    assert_eq!((failed, &session.state), (Finish::Moved(Moved::Over), &passed()));
    assert_eq!((session.stands, session.ended_at), (None, Some(NOW)));
    assert!(session.incidents.last().unwrap().words().contains("given up"));

    let (mut session, mut job) = over();
    assert!(job.cancel(&mut session, &changed, NOW));
    assert_eq!(session.state, passed());
}

#[test]
fn nobody_waits_for_a_verdict_that_is_not_wanted_any_more() {
    let mut session = resuming();
    session.state = SessionState::Claimed { result: result() };
    let mut check = job(JobKind::Verify {
        commit: result().commit,
    });
    check.start(AttemptId::from_random(5), &mut session, "b", NOW).unwrap();
    assert_eq!(send(&mut session, "not like this"), Sent::GoesOn);
    let Some(SessionState::Unverified { result: Some(kept), .. }) = session.stands.as_deref() else {
        panic!("{session:?}");
    };
    assert_eq!(*kept, result());
}

#[test]
fn a_model_is_told_what_became_of_its_work() {
    let note = |state: SessionState| {
        let mut session = resuming();
        session.state = state;
        assert_eq!(send(&mut session, "go on"), Sent::GoesOn);
        session.note_to_model()
    };
    let AttemptOutcome::Verdict(verdict) = verdict(VerdictKind::Failed) else {
        panic!()
    };
    let rejected = note(SessionState::Rejected {
        result: result(),
        verdict,
    });
    assert!(rejected.contains("did not pass: x"), "{rejected}");
    assert!(
        note(SessionState::Cancelled {
            unfinished: None,
            verdict: None,
        })
        .contains("interrupted")
    );
    assert_eq!(note(passed()), "");
}

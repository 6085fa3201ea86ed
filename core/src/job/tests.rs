//! Moves of jobs and their sessions.

use std::time::Duration;

use super::*;
use crate::checkpoint::{CheckpointReason, Footing, Head, TakenCheckpoint};
use crate::event::{DiffStat, Event, EventBody};
use crate::fallback::Fallback;
use crate::task::VerifyPolicy;

const NOW: Timestamp = Timestamp::from_millis(1_000);

fn session() -> Session {
    Session::new(
        SessionId::from_random(1),
        TaskId::from_random(2),
        "a".parse().unwrap(),
        "adapter".parse().unwrap(),
        None,
    )
}

fn job(kind: JobKind) -> Job {
    Job::new(
        JobId::from_random(3),
        TaskId::from_random(2),
        SessionId::from_random(1),
        kind,
        NOW,
    )
}

fn checked() -> Policy {
    Policy {
        verify: VerifyPolicy {
            verify: Some("true".to_owned()),
            ..VerifyPolicy::default()
        },
        ..Policy::default()
    }
}

fn result() -> ResultCommit {
    ResultCommit {
        commit: "1".repeat(40).parse().unwrap(),
        tree: None,
        diff: DiffStat::default(),
        paths: vec!["a".to_owned()],
        deleted: vec![],
    }
}

fn verdict(kind: VerdictKind) -> AttemptOutcome {
    AttemptOutcome::Verdict(Verdict {
        kind,
        agent: "b".to_owned(),
        environment: "linux".to_owned(),
        ..Verdict::errored("x".to_owned())
    })
}

fn around<'a>(policy: &'a Policy, points: &'a Points) -> Circumstances<'a> {
    Circumstances {
        policy,
        points,
        base: Safety::Unknown,
        agent: agent(),
        jitter: Jitter::NONE,
        now: NOW,
    }
}

fn agent() -> AgentId {
    AgentId::from_random(9)
}

#[test]
fn a_claim_with_a_verify_command_waits_for_its_verdict() {
    let (mut session, mut job) = (session(), job(JobKind::Session));
    job.start(AttemptId::from_random(4), &mut session, "a", NOW).unwrap();
    assert_eq!(
        job.start(AttemptId::from_random(5), &mut session, "a", NOW),
        Err(CannotStart::Leased)
    );
    session.pending_result = Some(result());
    let moved = job.finish(
        &mut session,
        &AttemptOutcome::Claimed,
        around(&checked(), &Points::default()),
    );
    let commit = result().commit;
    assert_eq!(moved, Finish::Verify(commit));
    assert_eq!(session.state, SessionState::Claimed { result: result() });
    assert_eq!(
        job.start(AttemptId::from_random(5), &mut session, "a", NOW),
        Err(CannotStart::Done)
    );
}

#[test]
fn a_lost_attempt_is_repeated_where_it_was() {
    let (mut session, mut job) = (session(), job(JobKind::Session));
    job.start(AttemptId::from_random(4), &mut session, "a", NOW).unwrap();
    let moved = job.lose(
        &mut session,
        EndReason::AgentRestarted,
        around(&checked(), &Points::default()),
    );
    assert_eq!(moved, Moved::Requeued);
    assert_eq!(job.affinity.prefer, Some(agent()));
    assert_eq!((job.lost, job.failed), (1, 0));
    assert_eq!(session.state, SessionState::Queued);
}

#[test]
fn what_was_decided_is_done_and_kept() {
    let (mut session, mut job) = (session(), job(JobKind::Session));
    let mut fail = |job: &mut Job, kind, retry_after| {
        job.start(AttemptId::from_random(4), &mut session, "a", NOW).unwrap();
        let mut failure = Failure::new(kind, "x");
        failure.retry_after = retry_after;
        let outcome = AttemptOutcome::Failed(failure);
        let moved = job.finish(
            &mut session,
            &outcome,
            Circumstances {
                jitter: Jitter::MOST,
                ..around(&checked(), &Points::default())
            },
        );
        (moved, session.clone())
    };
    let waits = |seconds| JobState::Queued {
        not_before: NOW + Duration::from_secs(seconds),
    };

    let reset = Some(Duration::from_secs(400));
    let (moved, held) = fail(&mut job, FailureKind::QuotaExhausted, reset);
    assert_eq!(moved, Finish::Moved(Moved::Requeued));
    assert_eq!((job.state, job.held, job.failed), (waits(460), 1, 0));
    assert_eq!(job.affinity, Affinity::default());
    assert_eq!(held.state, SessionState::Queued);
    assert_eq!(
        held.incidents[0].waiting(NOW).unwrap(),
        "held until 00:07 UTC: the plan's limit is used up until then; waiting costs nothing \
         (attempt 1: quota exhausted: x)"
    );
    assert_eq!(held.incidents[0].waiting(NOW + Duration::from_secs(460)), None);

    let _requeued = fail(&mut job, FailureKind::DiskFull, None);
    let not_before = NOW + Duration::from_millis(2_500);
    assert_eq!(job.state, JobState::Queued { not_before });
    assert_eq!((job.failed, job.affinity.avoid), (1, Some(agent())));

    let (moved, ended) = fail(&mut job, FailureKind::Auth, None);
    assert_eq!((moved, job.state), (Finish::Moved(Moved::Over), JobState::Done));
    assert!(matches!(ended.state, SessionState::Failed { .. }));
    let numbers: Vec<_> = ended.incidents.iter().map(|incident| incident.attempt).collect();
    assert_eq!(numbers, [1, 2, 3]);
    assert_eq!(
        ended.incidents[2].words(),
        "attempt 3: not authorised: x; given up: no repetition cures a key or login that is refused; \
         set it on the agent and run again"
    );
}

#[test]
fn a_cancelled_session_is_not_repeated() {
    let (mut session, mut job) = (session(), job(JobKind::Session));
    job.start(AttemptId::from_random(4), &mut session, "a", NOW).unwrap();
    assert!(!job.cancel(&mut session, NOW));
    session.cancel_requested = true;
    let moved = job.lose(
        &mut session,
        EndReason::AgentGone,
        around(&checked(), &Points::default()),
    );
    assert_eq!((moved, &session.state), (Moved::Over, &SessionState::Cancelled));
}

#[test]
fn an_errored_verdict_is_repeated_elsewhere_and_then_left_open() {
    let commit = result().commit;
    let (mut session, mut job) = (session(), job(JobKind::Verify { commit }));
    session.state = SessionState::Claimed { result: result() };
    job.start(AttemptId::from_random(4), &mut session, "b", NOW).unwrap();
    let errored = verdict(VerdictKind::Errored);
    let moved = job.finish(&mut session, &errored, around(&checked(), &Points::default()));
    assert_eq!(moved, Finish::Moved(Moved::Requeued));
    assert_eq!(job.affinity.avoid, Some(agent()));
    assert_eq!(session.state, SessionState::Claimed { result: result() });

    job.start(AttemptId::from_random(5), &mut session, "c", NOW).unwrap();
    let moved = job.finish(&mut session, &errored, around(&checked(), &Points::default()));
    assert_eq!(moved, Finish::Moved(Moved::Over));
    assert!(matches!(
        session.state,
        SessionState::Unverified { verdict: Some(_), .. }
    ));
}

#[test]
fn passed_and_failed_decide() {
    for (kind, passed) in [(VerdictKind::Passed, true), (VerdictKind::Failed, false)] {
        let commit = result().commit;
        let (mut session, mut job) = (session(), job(JobKind::Verify { commit }));
        session.state = SessionState::Claimed { result: result() };
        job.start(AttemptId::from_random(4), &mut session, "b", NOW).unwrap();
        let moved = job.finish(&mut session, &verdict(kind), around(&checked(), &Points::default()));
        assert_eq!(moved, Finish::Moved(Moved::Over));
        assert_eq!(matches!(session.state, SessionState::Verified { .. }), passed);
        assert_eq!(matches!(session.state, SessionState::Rejected { .. }), !passed);
    }
}

#[test]
fn a_check_that_cannot_be_made_is_not_the_sessions_fault() {
    let commit = result().commit;
    let (mut session, mut job) = (session(), job(JobKind::Verify { commit }));
    session.state = SessionState::Claimed { result: result() };
    job.start(AttemptId::from_random(4), &mut session, "b", NOW).unwrap();
    let failed = AttemptOutcome::Failed(Failure::new(FailureKind::InvalidRequest, "no repository"));
    let moved = job.finish(&mut session, &failed, around(&checked(), &Points::default()));
    assert_eq!(moved, Finish::Moved(Moved::Over));
    let verdict = session.state.verdict().map(|verdict| verdict.kind);
    assert_eq!(verdict, Some(VerdictKind::Errored));
    assert_eq!(session.state.result(), Some(&result()));
}

#[test]
fn another_adapter_takes_over_with_counts_of_its_own() {
    let (mut session, mut job) = (session(), job(JobKind::Session));
    session.model = Some("large".to_owned());
    session.trail.fallbacks = vec![Fallback {
        adapter: "other".parse().unwrap(),
        model: None,
    }];
    session.trail.head = Some(head(5));
    let refused = AttemptOutcome::Failed(Failure::new(FailureKind::Auth, "the key is refused"));
    job.start(AttemptId::from_random(4), &mut session, "a", NOW).unwrap();
    let moved = job.finish(&mut session, &refused, around(&checked(), &points()));
    assert_eq!(moved, Finish::Moved(Moved::Requeued));
    assert_eq!((session.adapter.as_str(), &session.model), ("other", &None));
    assert_eq!((job.started, job.failed), (1, 0));
    assert_eq!(session.trail.head, Some(head(5)), "its files are those that are there");
    let told = session.incidents[0].words();
    assert!(
        told.contains("again at once, with another adapter: other takes over from adapter"),
        "{told}"
    );
    assert!(session.note_to_model().contains("another tool"));
    // There is nobody after it.
    job.start(AttemptId::from_random(5), &mut session, "a", NOW).unwrap();
    let moved = job.finish(&mut session, &refused, around(&checked(), &points()));
    assert_eq!(moved, Finish::Moved(Moved::Over));
}

fn head(number: u32) -> Head {
    Head {
        number,
        commit: format!("{number:040x}").parse().unwrap(),
        footing: Footing::Anew,
    }
}

/// It stands on 5, in the middle of edits; 4 was between two steps, and 2 passed verify.
fn points() -> Points {
    Points {
        newest: Some(head(5)),
        settled: Some(head(4)),
        safe: Some(head(2)),
    }
}

#[test]
fn a_failure_decides_which_checkpoint_follows() {
    use FailureKind::{AdapterCrash, AgentLost, CorruptedState, LogicError, Network};
    let policy = Policy {
        max_reworks: 1,
        ..checked()
    };
    for (kind, number, avoid) in [
        (Network, 5, None),
        (AgentLost, 5, None),
        (AdapterCrash, 4, None),
        (CorruptedState, 4, Some(agent())),
        (LogicError, 2, None),
    ] {
        let (mut session, mut job) = (session(), job(JobKind::Session));
        session.trail.head = Some(head(5));
        job.start(AttemptId::from_random(4), &mut session, "a", NOW).unwrap();
        let failed = AttemptOutcome::Failed(Failure::new(kind, "x"));
        let moved = job.finish(&mut session, &failed, around(&policy, &points()));
        assert_eq!(moved, Finish::Moved(Moved::Requeued), "{kind}");
        assert_eq!(session.trail.head, Some(head(number)), "{kind}");
        assert_eq!(job.affinity.avoid, avoid, "{kind}");
    }
}

#[test]
fn a_check_whose_workspace_is_broken_leaves_the_session_where_it_stands() {
    let policy = Policy {
        max_reworks: 1,
        ..checked()
    };
    for kind in [
        FailureKind::CorruptedState,
        FailureKind::AdapterCrash,
        FailureKind::LogicError,
    ] {
        let commit = result().commit;
        let (mut session, mut job) = (session(), job(JobKind::Verify { commit }));
        session.state = SessionState::Claimed { result: result() };
        session.trail.head = Some(head(5));
        job.start(AttemptId::from_random(4), &mut session, "b", NOW).unwrap();
        let failed = AttemptOutcome::Failed(Failure::new(kind, "x"));
        let _moved = job.finish(&mut session, &failed, around(&policy, &points()));
        assert_eq!(session.trail.head, Some(head(5)), "{kind}");
        assert_eq!(session.note_to_model(), "", "{kind}");
    }
}

#[test]
fn its_model_is_told_of_a_setback_until_it_knows() {
    let crash = |session: &mut Session, kind| {
        let mut job = job(JobKind::Session);
        job.start(AttemptId::from_random(4), session, "a", NOW).unwrap();
        let failed = AttemptOutcome::Failed(Failure::new(kind, "x"));
        let _moved = job.finish(session, &failed, around(&checked(), &points()));
    };
    let mut session = session();
    crash(&mut session, FailureKind::AdapterCrash);
    let told = session.note_to_model();
    assert!(told.contains("unfinished"), "{told}");
    // The attempt that was to be told was lost before it said a word.
    crash(&mut session, FailureKind::AgentLost);
    assert_eq!(session.note_to_model(), told);
    let mut taken = taken();
    record(&mut session, &taken);
    assert_eq!(session.note_to_model(), told, "the files are as they were");
    taken.files_changed = 1;
    record(&mut session, &taken);
    assert_eq!(session.note_to_model(), "");

    // A person sent it elsewhere: that is no setback.
    crash(&mut session, FailureKind::AdapterCrash);
    session.go_on_from(Some(head(1)));
    assert_eq!(session.note_to_model(), "");
}

fn record(session: &mut Session, taken: &TakenCheckpoint) {
    let event = Event {
        seq: 1,
        at: NOW,
        body: EventBody::CheckpointTaken(taken.clone()),
    };
    session.record(&event, NOW);
}

fn taken() -> TakenCheckpoint {
    TakenCheckpoint {
        commit: head(6).commit,
        parent: head(4).commit,
        tree: head(7).commit,
        reason: CheckpointReason::Baseline,
        note: String::new(),
        files_changed: 0,
        pack: None,
        transcript: None,
        calls: None,
    }
}

#[test]
fn rejected_work_goes_back_to_a_safe_checkpoint_as_often_as_it_may() {
    let policy = Policy {
        max_reworks: 1,
        ..checked()
    };
    let failed = verdict(VerdictKind::Failed);
    let check = |session: &mut Session, points: &Points| {
        let commit = result().commit;
        let mut job = job(JobKind::Verify { commit });
        session.state = SessionState::Claimed { result: result() };
        job.start(AttemptId::from_random(4), session, "b", NOW).unwrap();
        let finish = job.finish(session, &failed, around(&policy, points));
        assert_eq!(job.state, JobState::Done);
        finish
    };
    let mut session = session();
    session.attempts = 3;
    session.trail.head = Some(head(5));
    assert_eq!(check(&mut session, &points()), Finish::Rework(NOW));
    assert_eq!(
        (&session.state, &session.trail.head),
        (&SessionState::Queued, &Some(head(2)))
    );
    let incident = session.incidents.last().unwrap();
    assert!(matches!(incident.decision.action, Action::RollbackSafe { .. }));
    assert!(incident.failure.message.contains("verify failed"), "{incident:?}");
    assert_eq!(Job::again(JobId::from_random(8), &session, NOW).started, 3);

    assert_eq!(check(&mut session, &points()), Finish::Moved(Moved::Over));
    assert!(matches!(session.state, SessionState::Rejected { .. }));

    let mut fresh = self::session();
    let none = Points { safe: None, ..points() };
    assert_eq!(check(&mut fresh, &none), Finish::Moved(Moved::Over));
}

//! Transitions of jobs and their sessions.

use std::time::Duration;

use crate::id::SessionId;
use crate::session::{CannotVerify, Instruction, SessionStateKind};

use super::*;
use crate::checkpoint::{CheckpointReason, Head, Resumes, TakenCheckpoint, WorktreeChoice};
use crate::event::{DiffStat, Event, EventBody};
use crate::fallback::Fallback;
use crate::task::VerifyPolicy;

mod messages;

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
        Subject::Session(SessionId::from_random(1)),
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
        large: vec![],
        left_out: vec![],
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
        "attempt 3: not authorised: x; given up: the provider rejected the key or login; fix it on the agent and \
         run again, retrying will not help"
    );
}

#[test]
fn a_cancelled_session_is_not_repeated() {
    let (mut session, mut job) = (session(), job(JobKind::Session));
    job.start(AttemptId::from_random(4), &mut session, "a", NOW).unwrap();
    assert!(!job.cancel(&mut session, &Points::default(), NOW));
    session.cancel_requested = true;
    let moved = job.lose(
        &mut session,
        EndReason::AgentGone,
        around(&checked(), &Points::default()),
    );
    assert_eq!(
        (moved, &session.state),
        (
            Moved::Over,
            &SessionState::Cancelled {
                unfinished: None,
                verdict: None
            }
        )
    );
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
    session.fallbacks = vec![Fallback {
        adapter: "other".parse().unwrap(),
        model: None,
    }];
    session.checkpoints.head = Some(head(5));
    let refused = AttemptOutcome::Failed(Failure::new(FailureKind::Auth, "the key is refused"));
    job.start(AttemptId::from_random(4), &mut session, "a", NOW).unwrap();
    let moved = job.finish(&mut session, &refused, around(&checked(), &points()));
    assert_eq!(moved, Finish::Moved(Moved::Requeued));
    assert_eq!((session.adapter.as_str(), &session.model), ("other", &None));
    assert_eq!((job.started, job.failed), (1, 0));
    assert_eq!(
        session.checkpoints.head,
        Some(head(5)),
        "its files are those that are there"
    );
    let told = session.incidents[0].words();
    assert!(
        told.contains("again at once, with another adapter: other takes over from adapter"),
        "{told}"
    );
    assert!(session.note_to_model().contains("another tool"));
    // There is no adapter after it.
    job.start(AttemptId::from_random(5), &mut session, "a", NOW).unwrap();
    let moved = job.finish(&mut session, &refused, around(&checked(), &points()));
    assert_eq!(moved, Finish::Moved(Moved::Over));
}

fn head(number: u32) -> Head {
    Head {
        number,
        commit: format!("{number:040x}").parse().unwrap(),
        worktree: WorktreeChoice::New,
    }
}

/// It stands on 5, in the middle of edits; 4 was between two steps, and 2 passed verify.
fn points() -> Points {
    Points {
        newest: Some(head(5)),
        talked: true,
        settled: Some(head(4)),
        safe: Some(head(2)),
        changed: false,
    }
}

#[test]
fn a_failure_decides_which_checkpoint_follows() {
    use FailureKind::{AdapterCrash, AgentLost, CorruptedState, LogicError, Network};
    let policy = Policy {
        max_reworks: Some(1),
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
        session.checkpoints.head = Some(head(5));
        job.start(AttemptId::from_random(4), &mut session, "a", NOW).unwrap();
        let failed = AttemptOutcome::Failed(Failure::new(kind, "x"));
        let moved = job.finish(&mut session, &failed, around(&policy, &points()));
        assert_eq!(moved, Finish::Moved(Moved::Requeued), "{kind}");
        assert_eq!(session.checkpoints.head, Some(head(number)), "{kind}");
        assert_eq!(job.affinity.avoid, avoid, "{kind}");
    }
}

#[test]
fn a_check_whose_workspace_is_broken_leaves_the_session_where_it_stands() {
    let policy = Policy {
        max_reworks: Some(1),
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
        session.checkpoints.head = Some(head(5));
        job.start(AttemptId::from_random(4), &mut session, "b", NOW).unwrap();
        let failed = AttemptOutcome::Failed(Failure::new(kind, "x"));
        let _moved = job.finish(&mut session, &failed, around(&policy, &points()));
        assert_eq!(session.checkpoints.head, Some(head(5)), "{kind}");
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
    // The attempt that was to be told was lost before its first word.
    crash(&mut session, FailureKind::AgentLost);
    assert_eq!(session.note_to_model(), told);
    let mut taken = taken();
    record(&mut session, &taken);
    assert_eq!(session.note_to_model(), told, "the files are as they were");
    taken.files_changed = 1;
    record(&mut session, &taken);
    assert_eq!(session.note_to_model(), "");

    // A person sent it elsewhere: that is not a setback.
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
        told: 0,
    }
}

fn rejected(session: &mut Session, policy: &Policy, points: &Points) -> Finish {
    let commit = result().commit;
    let mut job = job(JobKind::Verify { commit });
    session.state = SessionState::Claimed { result: result() };
    job.start(AttemptId::from_random(4), session, "b", NOW).unwrap();
    let failed = AttemptOutcome::Verdict(Verdict {
        kind: VerdictKind::Failed,
        exit_code: Some(7),
        output: "add 2 3 is 6".to_owned(),
        ..Verdict::errored("verify failed with exit code 7: add 2 3 is 6".to_owned())
    });
    let finish = job.finish(session, &failed, around(policy, points));
    assert_eq!(job.state, JobState::Done);
    finish
}

fn resuming() -> Session {
    let mut session = session();
    session.attempts = 3;
    session.checkpoints.head = Some(head(5));
    session.resumes = Resumes::Position;
    session
}

#[test]
fn rejected_work_goes_on_from_its_own_checkpoint_as_often_as_it_may() {
    let asked = |times| Policy {
        max_reworks: times,
        ..checked()
    };
    let silent = Points {
        talked: false,
        ..points()
    };
    let mut mute = resuming();
    mute.resumes = Resumes::None;
    let cases = [
        (resuming(), asked(None), points(), 1),
        (resuming(), asked(Some(0)), points(), 0),
        (resuming(), asked(Some(2)), points(), 2),
        // No conversation continues: only on request.
        (resuming(), asked(None), silent.clone(), 0),
        (mute.clone(), asked(None), points(), 0),
        (mute, asked(Some(1)), silent, 1),
        (resuming(), asked(Some(1)), Points::default(), 0),
    ];
    for (mut session, policy, points, times) in cases {
        for time in 0..times {
            assert_eq!(rejected(&mut session, &policy, &points), Finish::Rework(NOW));
            assert_eq!(
                (&session.state, &session.checkpoints.head),
                (&SessionState::Queued, &Some(head(5)))
            );
            assert_eq!(session.reworks, time + 1);
        }
        assert_eq!(rejected(&mut session, &policy, &points), Finish::Moved(Moved::Over));
        let SessionState::Rejected { verdict, .. } = &session.state else {
            panic!("{:?}", session.state);
        };
        assert_eq!((verdict.exit_code, verdict.output.as_str()), (Some(7), ""));
        assert_eq!(session.incidents.len(), times as usize);
    }
}

#[test]
fn what_verify_said_is_kept_until_the_session_has_a_newer_result() {
    let mut session = resuming();
    assert_eq!(rejected(&mut session, &checked(), &points()), Finish::Rework(NOW));
    let told = session.incidents[0].words();
    assert_eq!(
        told,
        "verify attempt 1: logic error: verify failed with exit code 7: add 2 3 is 6; continues from checkpoint 5 with \
         verify's output: knowing what failed, the session may fix it"
    );
    let Instruction {
        text: instruction,
        known,
        ..
    } = session.instruction(&[], "sh test.sh").unwrap();
    for part in ["sh test.sh", "exit code 7", "add 2 3 is 6"] {
        assert!(instruction.contains(part), "{part}: {instruction}");
    }
    assert!(!known);
    // Also after it was stored and read, and the attempt is lost.
    let stored = serde_json::to_string(&session).unwrap();
    let mut session: Session = serde_json::from_str(&stored).unwrap();
    let mut again = Job::again(JobId::from_random(8), &session, NOW);
    again.start(AttemptId::from_random(5), &mut session, "a", NOW).unwrap();
    assert_eq!(again.started, 4);
    let lost = again.lose(&mut session, EndReason::AgentGone, around(&checked(), &points()));
    assert_eq!(lost, Moved::Requeued);
    assert_eq!(session.instruction(&[], "sh test.sh").unwrap().text, instruction);

    again.start(AttemptId::from_random(6), &mut session, "a", NOW).unwrap();
    session.pending_result = Some(result());
    let claimed = again.finish(&mut session, &AttemptOutcome::Claimed, around(&checked(), &points()));
    assert_eq!(claimed, Finish::Verify(result().commit));
    assert_eq!(session.instruction(&[], "sh test.sh"), None);
}

#[test]
fn a_rework_that_ends_badly_leaves_the_result_what_it_was() {
    use FailureKind::{AdapterCrash, AgentLost, Auth, NoChange};
    for kind in [Auth, NoChange, AdapterCrash, AgentLost] {
        let mut session = resuming();
        assert_eq!(rejected(&mut session, &checked(), &points()), Finish::Rework(NOW));
        let mut again = Job::again(JobId::from_random(8), &session, NOW);
        let failed = AttemptOutcome::Failed(Failure::new(kind, "x"));
        for attempt in 10.. {
            again
                .start(AttemptId::from_random(attempt), &mut session, "a", NOW)
                .unwrap();
            match again.finish(&mut session, &failed, around(&checked(), &points())) {
                Finish::Moved(Moved::Requeued) => {}
                ended => {
                    assert_eq!(ended, Finish::Moved(Moved::Over), "{kind}");
                    break;
                }
            }
        }
        let SessionState::Rejected { result: kept, verdict } = &session.state else {
            panic!("{kind}: {:?}", session.state);
        };
        assert_eq!((kept, verdict.exit_code), (&result(), Some(7)), "{kind}");
        assert!(session.incidents.last().unwrap().words().contains("given up"), "{kind}");
        assert_eq!(session.rework, None);
    }
    // A person who stops the session wants it stopped.
    let mut session = resuming();
    assert_eq!(rejected(&mut session, &checked(), &points()), Finish::Rework(NOW));
    let mut again = Job::again(JobId::from_random(8), &session, NOW);
    assert!(again.cancel(&mut session, &Points::default(), NOW));
    assert_eq!(
        session.state,
        SessionState::Cancelled {
            unfinished: None,
            verdict: None
        }
    );
}

#[test]
fn an_errored_verdict_is_no_reason_to_work_on() {
    let policy = Policy {
        max_reworks: Some(5),
        ..checked()
    };
    let mut session = resuming();
    session.state = SessionState::Claimed { result: result() };
    let commit = result().commit;
    let mut job = job(JobKind::Verify { commit });
    for attempt in [4, 5] {
        job.start(AttemptId::from_random(attempt), &mut session, "b", NOW)
            .unwrap();
        let finish = job.finish(&mut session, &verdict(VerdictKind::Errored), around(&policy, &points()));
        assert!(matches!(finish, Finish::Moved(_)), "{finish:?}");
    }
    assert_eq!(session.reworks, 0);
    assert!(matches!(session.state, SessionState::Unverified { .. }));
}

#[test]
fn a_session_that_claims_nothing_has_its_work_saved_when_it_changed_files() {
    use FailureKind::{AdapterCrash, Auth, Cancelled, Timeout, Unknown};
    let policy = checked();
    let failure = |kind| AttemptOutcome::Failed(Failure::new(kind, "x"));
    let changed = |changed| Points { changed, ..points() };
    // What ends it, after how many failures, and whether it was asked to stop.
    let endings = [
        (failure(Timeout), policy.max_attempts, false),
        (failure(Unknown), policy.max_attempts, false),
        (failure(Auth), 0, false),
        (failure(AdapterCrash), policy.max_attempts, false),
        (failure(Cancelled), 0, false),
        (failure(Timeout), 0, true),
        (AttemptOutcome::Claimed, 0, true),
    ];
    for (outcome, failed, cancel) in &endings {
        for points in [changed(true), changed(false), Points::default()] {
            let (mut session, mut job) = (session(), job(JobKind::Session));
            session.checkpoints.head = points.newest.clone();
            job.start(AttemptId::from_random(4), &mut session, "a", NOW).unwrap();
            (job.failed, session.cancel_requested) = (*failed, *cancel);
            let moved = job.finish(&mut session, outcome, around(&policy, &points));
            assert_eq!(moved, Finish::Moved(Moved::Over), "{outcome:?}");
            assert_eq!(job.state, JobState::Done);
            let saves = matches!(session.state, SessionState::Saving { .. });
            assert_eq!(saves, points.changed, "{outcome:?} {points:?}");
            assert_eq!(session.ended_at.is_none(), saves);
            let was_saved = session.saved(Some(result()), NOW);
            assert_eq!(was_saved, saves, "only once, and only what was being saved");
            assert!(!session.saved(None, NOW));
            assert_eq!(session.state.is_unfinished(), saves);
            assert_eq!(session.state.result().is_some(), saves);
            assert_eq!(session.ended_at, Some(NOW));
            let kind = session.state.kind();
            let stopped = *cancel || *outcome == failure(Cancelled);
            let expected = if stopped {
                SessionStateKind::Cancelled
            } else {
                SessionStateKind::Failed
            };
            assert_eq!(kind, expected, "{outcome:?}");
        }
    }
}

#[test]
fn work_of_a_lost_agent_and_of_a_session_that_waits_is_saved_too() {
    let policy = checked();
    let points = Points {
        changed: true,
        ..points()
    };
    let (mut lost, mut of_lost) = (session(), job(JobKind::Session));
    of_lost.start(AttemptId::from_random(4), &mut lost, "a", NOW).unwrap();
    of_lost.lost = 99;
    assert_eq!(
        of_lost.lose(&mut lost, EndReason::AgentGone, around(&policy, &points)),
        Moved::Over
    );
    let SessionState::Saving {
        end: Unclaimed::Failed { failure },
    } = &lost.state
    else {
        panic!("{:?}", lost.state);
    };
    assert_eq!(failure.kind, FailureKind::AgentLost);
    let (mut waiting, mut of_waiting) = (session(), job(JobKind::Session));
    assert!(of_waiting.cancel(&mut waiting, &points, NOW));
    assert_eq!(
        waiting.state,
        SessionState::Saving {
            end: Unclaimed::Cancelled
        }
    );
    assert!(waiting.saved(None, NOW));
    assert_eq!(
        waiting.state,
        SessionState::Cancelled {
            unfinished: None,
            verdict: None
        },
        "it came to nothing"
    );
    // What failed verify before is still there.
    let (mut reworking, mut of_rework) = (session(), job(JobKind::Session));
    let AttemptOutcome::Verdict(rejected) = verdict(VerdictKind::Failed) else {
        panic!()
    };
    reworking.work_on(head(5), result(), rejected);
    of_rework
        .start(AttemptId::from_random(4), &mut reworking, "a", NOW)
        .unwrap();
    let refused = AttemptOutcome::Failed(Failure::new(FailureKind::Auth, "x"));
    let _over = of_rework.finish(&mut reworking, &refused, around(&policy, &points));
    assert_eq!(reworking.state.kind(), SessionStateKind::Rejected);
}

#[test]
fn an_unfinished_result_is_verified_when_asked_and_stays_unfinished() {
    let policy = checked();
    let points = Points::default();
    let failure = Failure::new(FailureKind::Timeout, "too long");
    let ends = [Unclaimed::Failed { failure }, Unclaimed::Cancelled];
    for (end, kind) in ends.iter().flat_map(|end| VerdictKind::ALL.map(|kind| (end, kind))) {
        let mut session = session();
        session.state = end.clone().with(Some(result()), None);
        session.cancel_requested = true;
        assert_eq!(session.verify_when_asked(), Ok(result().commit));
        assert!(session.is_unfinished() && !session.state.is_terminal());
        assert_eq!(session.verify_when_asked(), Err(CannotVerify::NotOver));
        let mut job = job(JobKind::Verify {
            commit: result().commit,
        });
        let mut moved = Finish::Moved(Moved::Requeued);
        while moved == Finish::Moved(Moved::Requeued) {
            job.start(AttemptId::from_random(4), &mut session, "a", NOW).unwrap();
            assert!(session.is_unfinished(), "{:?}", session.state);
            moved = job.finish(&mut session, &verdict(kind), around(&policy, &points));
        }
        assert_eq!(moved, Finish::Moved(Moved::Over));
        assert!(session.state.is_unfinished() && session.ended_as.is_none());
        assert_eq!(session.state.verdict().map(|verdict| verdict.kind), Some(kind));
        assert_eq!(session.state.result(), Some(&result()));
        let ended_as = end.clone().with(Some(result()), None).kind();
        assert_eq!((session.state.kind(), session.ended_at), (ended_as, Some(NOW)));
        // Somebody may ask again.
        assert!(session.verify_when_asked().is_ok());
    }
}

#[test]
fn a_verify_that_was_asked_for_and_is_stopped_changes_nothing() {
    let policy = checked();
    let points = Points {
        changed: true,
        ..points()
    };
    let errored = || Some(Verdict::errored("no disk".to_owned()));
    let befores = [
        Unclaimed::Cancelled.with(Some(result()), None),
        Unclaimed::Cancelled.with(Some(result()), errored()),
        SessionState::Unverified {
            result: Some(result()),
            verdict: errored(),
        },
    ];
    for (before, waits) in befores.iter().flat_map(|before| [(before, true), (before, false)]) {
        let mut session = session();
        session.state = before.clone();
        session.verify_when_asked().unwrap();
        let mut job = job(JobKind::Verify {
            commit: result().commit,
        });
        if waits {
            assert!(job.cancel(&mut session, &points, NOW));
        } else {
            job.start(AttemptId::from_random(4), &mut session, "a", NOW).unwrap();
            session.cancel_requested = true;
            let passed = verdict(VerdictKind::Passed);
            assert_eq!(
                job.finish(&mut session, &passed, around(&policy, &points)),
                Finish::Moved(Moved::Over)
            );
        }
        assert_eq!((session.state, session.ended_as), (before.clone(), None));
    }
}

#[test]
fn only_what_nothing_decided_about_is_verified_when_asked() {
    let AttemptOutcome::Verdict(some) = verdict(VerdictKind::Errored) else {
        panic!()
    };
    let cases = [
        (
            SessionState::Unverified {
                result: Some(result()),
                verdict: Some(some.clone()),
            },
            Ok(result().commit),
        ),
        (
            SessionState::Unverified {
                result: None,
                verdict: None,
            },
            Err(CannotVerify::NoResult),
        ),
        (Unclaimed::Cancelled.with(None, None), Err(CannotVerify::NoResult)),
        (
            SessionState::Rejected {
                result: result(),
                verdict: some.clone(),
            },
            Err(CannotVerify::Decided),
        ),
        (
            SessionState::Verified {
                result: result(),
                verdict: some,
            },
            Err(CannotVerify::Decided),
        ),
        (SessionState::Queued, Err(CannotVerify::NotOver)),
        (SessionState::Claimed { result: result() }, Err(CannotVerify::NotOver)),
    ];
    for (state, expected) in cases {
        let mut session = session();
        session.state = state.clone();
        assert_eq!(session.verify_when_asked(), expected, "{state:?}");
        assert!(!session.is_unfinished());
        if expected.is_err() {
            assert_eq!(session.state, state);
        }
    }
}

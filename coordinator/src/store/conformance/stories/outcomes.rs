//! The course of tasks: verdicts, failures, limits, cancellation.

use std::time::Duration;

use kage_core::event::VerdictKind;
use kage_core::job::{JobKind, JobType};
use kage_core::recovery::{Action, Jitter};
use kage_core::session::SessionStateKind;
use kage_core::task::TaskState;

use super::{CHECKED, begin, end, state, verify_job, view};
use crate::store::conformance::fixture::{
    activity, agent_id, append, appended, at, attempt_id, claimed, committed, crashed, exhausted, request, result,
    spec, started, task_id, told, verdict,
};
use crate::store::conformance::followed::{Followed as _, StopAttempt};
use crate::store::{CancelTask, JobCounts, Store, StoreError};

pub(in crate::store::conformance) async fn a_task_goes_from_queued_to_verified(store: Store) {
    let jobs = begin(&store, 1, CHECKED).await;
    let job = &jobs[0];
    assert_eq!(job.requirements.len(), 2, "the task's and the session's");
    assert_eq!(store.queued_jobs().await.unwrap(), jobs);
    let work = store.work(job.task, job.job).await.unwrap().unwrap();
    assert_eq!((work.number, work.spec), (1, spec(1, CHECKED)));

    started(&store, job, 1, 1, 1).await;
    assert_eq!(state(&store, 0).await, SessionStateKind::Running);
    assert_eq!(store.queued_jobs().await.unwrap(), vec![]);
    let counts = store.counts().await.unwrap();
    let leased = JobCounts {
        leased: 1,
        ..JobCounts::default()
    };
    assert_eq!(counts.of(JobType::Session), leased);
    assert_eq!(counts.of(JobType::Verify), JobCounts::default());

    let changes = appended(&store, 1, 1, vec![activity(1), committed(2), claimed(3)]).await;
    assert_eq!(state(&store, 0).await, SessionStateKind::Claimed);
    let verify = &changes.queued[0];
    let commit = result().commit;
    assert_eq!(verify.kind, JobKind::Verify { commit });
    assert_eq!(verify.affinity.avoid, Some(agent_id(1)), "another one judges");
    assert_eq!(verify.requirements, job.requirements);
    let counts = store.counts().await.unwrap();
    assert_eq!(counts.of(JobType::Session), JobCounts::default());
    let queued = JobCounts {
        queued: 1,
        ..JobCounts::default()
    };
    assert_eq!(counts.of(JobType::Verify), queued);

    started(&store, verify, 2, 1, 2).await;
    assert_eq!(state(&store, 0).await, SessionStateKind::Verifying);
    let changes = appended(&store, 2, 2, vec![verdict(1, VerdictKind::Passed)]).await;
    assert_eq!(changes.tasks, vec![task_id(1)]);
    assert_eq!(changes.over, [SessionStateKind::Verified]);
    let view = view(&store).await;
    assert_eq!(view.task.state, TaskState::Succeeded);
    assert_eq!(view.task.ended_at, Some(at(10_002)));
    assert_eq!(view.sessions[0].agent.as_deref(), Some("agent-1"));

    let events = store.events(task_id(1), 0, 100).await.unwrap();
    let shown: Vec<_> = events
        .iter()
        .map(|e| (e.pos, e.job.as_str(), e.number, e.event.seq))
        .collect();
    let expected = [
        (1, "session", 1, 1),
        (2, "session", 1, 2),
        (3, "session", 1, 3),
        (4, "verify", 1, 1),
    ];
    assert_eq!(shown, expected);
    assert_eq!(events[3].agent_name, "agent-2");
    let rest = store.events(task_id(1), 2, 1).await.unwrap();
    assert_eq!(rest, events[2..3]);
    end(&store).await;
}

pub(in crate::store::conformance) async fn a_rejected_result_fails_the_task(store: Store) {
    let verify = verify_job(&store).await;
    started(&store, &verify, 2, 1, 2).await;
    told(&store, 2, 2, vec![verdict(1, VerdictKind::Failed)]).await;
    assert_eq!(state(&store, 0).await, SessionStateKind::Rejected);
    assert_eq!(view(&store).await.task.state, TaskState::Failed);
    end(&store).await;
}

pub(in crate::store::conformance) async fn an_errored_verdict_is_repeated_elsewhere_then_left_open(store: Store) {
    let verify = verify_job(&store).await;
    started(&store, &verify, 2, 1, 2).await;
    let changes = appended(&store, 2, 2, vec![verdict(1, VerdictKind::Errored)]).await;
    let again = &changes.queued[0];
    assert_eq!(again.job, verify.job);
    assert_eq!(again.affinity.avoid, Some(agent_id(2)), "it has no toolchain");
    assert_eq!(again.queued_at, at(10_002));
    assert_eq!(state(&store, 0).await, SessionStateKind::Claimed);

    started(&store, again, 3, 2, 1).await;
    told(&store, 3, 1, vec![verdict(1, VerdictKind::Errored)]).await;
    assert_eq!(state(&store, 0).await, SessionStateKind::Unverified);
    assert_eq!(view(&store).await.task.state, TaskState::Failed);
    end(&store).await;
}

pub(in crate::store::conformance) async fn a_used_up_limit_holds_the_session_until_its_reset(store: Store) {
    let jobs = begin(&store, 1, None).await;
    let mut job = jobs[0].clone();
    // More often than attempts may fail: a limit says nothing about the work.
    for attempt in 1..=4 {
        let number = u32::try_from(attempt).unwrap();
        started(&store, &job, attempt, number, 1).await;
        let mut command = append(attempt, 1, vec![exhausted(1)]);
        command.jitter = Jitter::MOST;
        let now = command.now;
        let changes = store.followed(command).await;
        job = changes.queued[0].clone();
        assert_eq!(job.not_before, now + Duration::from_secs(125), "the reset and jitter");
        assert_eq!(store.queued_jobs().await.unwrap(), [job.clone()]);
        let session = &view(&store).await.sessions[0];
        assert_eq!(
            (session.state.kind(), session.incidents.len()),
            (SessionStateKind::Queued, number as usize)
        );
        let last = session.incidents.last().unwrap();
        assert_eq!((last.attempt, last.at), (number, now));
        let at = job.not_before;
        assert_eq!(last.decision.action, Action::HoldUntil { at });
    }
    started(&store, &job, 5, 5, 1).await;
    told(&store, 5, 1, vec![claimed(1)]).await;
    assert_eq!(view(&store).await.task.state, TaskState::Succeeded);
    end(&store).await;
}

pub(in crate::store::conformance) async fn a_task_without_verify_succeeds_by_a_claim(store: Store) {
    let jobs = begin(&store, 2, None).await;
    started(&store, &jobs[0], 1, 1, 1).await;
    told(&store, 1, 1, vec![claimed(1)]).await;
    assert_eq!(view(&store).await.task.state, TaskState::Running);
    started(&store, &jobs[1], 2, 1, 1).await;
    let changes = appended(&store, 2, 1, vec![crashed(1)]).await;
    assert!(
        changes.queued[0].not_before > at(10_002),
        "a crash is repeated after a while"
    );
    started(&store, &changes.queued[0], 3, 2, 2).await;
    told(&store, 3, 2, vec![crashed(1)]).await;
    assert_eq!(state(&store, 1).await, SessionStateKind::Failed);
    assert_eq!(view(&store).await.task.state, TaskState::Succeeded);
    end(&store).await;
}

pub(in crate::store::conformance) async fn cancelling_ends_what_waits_and_stops_what_runs(store: Store) {
    let jobs = begin(&store, 2, CHECKED).await;
    started(&store, &jobs[0], 1, 1, 1).await;
    let cancel = CancelTask {
        request: request(50),
        task: task_id(1),
        now: at(100),
    };
    let changes = store.followed(cancel).await;
    assert_eq!(changes.withdrawn, [jobs[1].job]);
    let stop = StopAttempt {
        attempt: attempt_id(1),
        agent: agent_id(1),
        keep_worktree: false,
    };
    assert_eq!(changes.stop, [stop]);
    assert_eq!(state(&store, 1).await, SessionStateKind::Cancelled);
    let now = view(&store).await;
    assert!(now.sessions[0].cancel_requested);
    assert_eq!(now.task.state, TaskState::Running, "until its agent stopped it");
    // Its last events are accepted; its claim is not checked any more.
    let changes = appended(&store, 1, 1, vec![committed(1), claimed(2)]).await;
    assert_eq!(changes.queued, vec![]);
    assert_eq!(state(&store, 0).await, SessionStateKind::Cancelled);
    assert_eq!(view(&store).await.task.state, TaskState::Cancelled);

    let missing = CancelTask {
        request: request(51),
        task: task_id(8),
        now: at(100),
    };
    let error = store.apply(missing).await.unwrap_err();
    assert!(matches!(error, StoreError::NotFound { what: "task", .. }), "{error}");
    end(&store).await;
}

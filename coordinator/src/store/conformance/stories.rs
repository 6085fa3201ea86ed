//! The stories. Each ends with the invariants checked.

use std::time::Duration;

use kage_core::attempt::{EndReason, StaleWriter};
use kage_core::event::{EventBody, InvalidBatch, VerdictKind};
use kage_core::id::{Digest, JobId, ProjectId, SessionId};
use kage_core::job::JobKind;
use kage_core::recovery::{Action, Jitter};
use kage_core::session::{SessionState, SessionStateKind};
use kage_core::task::TaskState;
use kage_core::usage::{PicoUsd, Usage};

pub(super) use super::admission::{
    a_join_token_lets_one_agent_in_in_time, a_revoked_agent_stays_out,
    tokens_of_people_are_kept_until_they_are_taken_back,
};
use super::fixture::{
    activity, agent, agent_id, append, appended, at, attempt_id, boot_id, claimed, committed, crashed, create, event,
    exhausted, request, result, spec, start, started, task_id, token, told, two_agents, verdict,
};
use super::invariants::{Seen, check};
use crate::store::{
    Appended, CancelTask, Changes, Claim, ContextPut, ContextSent, EndAttempts, EndedAttempt, Ending, ExtendAllLeases,
    Named, PutContext, QueuedJob, REQUEST_LIFETIME, RecordAgent, RecordContextSent, RenewLeases, SetDraining, Start,
    StopAttempt, Store, StoreError, TaskView,
};

const CHECKED: Option<&str> = Some("true");

/// Two agents, and a task whose sessions wait.
async fn begin(store: &Store, sessions: usize, verify: Option<&str>) -> Vec<QueuedJob> {
    two_agents(store).await;
    let created = store.apply(create(1, spec(sessions, verify), at(1))).await.unwrap();
    created.changes.queued
}

async fn view(store: &Store) -> TaskView {
    store.task(task_id(1)).await.unwrap().unwrap()
}

async fn state(store: &Store, session: usize) -> SessionStateKind {
    view(store).await.sessions[session].state.kind()
}

async fn end(store: &Store) {
    check(store, &Seen::default()).await;
}

/// Session `s0` has claimed: its verify job.
async fn verify_job(store: &Store) -> QueuedJob {
    let jobs = begin(store, 1, CHECKED).await;
    started(store, &jobs[0], 1, 1, 1).await;
    let changes = appended(store, 1, 1, vec![activity(1), committed(2), claimed(3)]).await;
    assert_eq!(changes.ended.len(), 1);
    changes.queued.into_iter().next().unwrap()
}

pub(super) async fn a_task_goes_from_queued_to_verified(store: Store) {
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
    assert_eq!((counts.queued, counts.leased), (0, 1));

    let changes = appended(&store, 1, 1, vec![activity(1), committed(2), claimed(3)]).await;
    assert_eq!(state(&store, 0).await, SessionStateKind::Claimed);
    let verify = &changes.queued[0];
    let commit = result().commit;
    assert_eq!(verify.kind, JobKind::Verify { commit });
    assert_eq!(verify.affinity.avoid, Some(agent_id(1)), "another one judges");
    assert_eq!(verify.requirements, job.requirements);

    started(&store, verify, 2, 1, 2).await;
    assert_eq!(state(&store, 0).await, SessionStateKind::Verifying);
    let changes = appended(&store, 2, 2, vec![verdict(1, VerdictKind::Passed)]).await;
    assert_eq!(changes.tasks, vec![task_id(1)]);
    let view = view(&store).await;
    assert_eq!(view.task.state, TaskState::Succeeded);
    assert_eq!(view.task.ended_at, Some(at(10_002)));
    assert_eq!(view.sessions[0].agent.as_deref(), Some("agent-1"));

    let events = store.events(task_id(1), 0, 100).await.unwrap();
    let shown: Vec<_> = events
        .iter()
        .map(|e| (e.pos, e.job_kind, e.number, e.event.seq))
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

pub(super) async fn a_rejected_result_fails_the_task(store: Store) {
    let verify = verify_job(&store).await;
    started(&store, &verify, 2, 1, 2).await;
    told(&store, 2, 2, vec![verdict(1, VerdictKind::Failed)]).await;
    assert_eq!(state(&store, 0).await, SessionStateKind::Rejected);
    assert_eq!(view(&store).await.task.state, TaskState::Failed);
    end(&store).await;
}

pub(super) async fn an_errored_verdict_is_repeated_elsewhere_then_left_open(store: Store) {
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

pub(super) async fn a_used_up_limit_holds_the_session_until_its_reset(store: Store) {
    let jobs = begin(&store, 1, None).await;
    let mut job = jobs[0].clone();
    // More often than attempts may fail: a limit says nothing about the work.
    for attempt in 1..=4 {
        let number = u32::try_from(attempt).unwrap();
        started(&store, &job, attempt, number, 1).await;
        let mut command = append(attempt, 1, vec![exhausted(1)]);
        command.jitter = Jitter::MOST;
        let now = command.now;
        let Appended::Acked { changes, .. } = store.apply(command).await.unwrap() else {
            panic!("the end is taken");
        };
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

pub(super) async fn a_task_without_verify_succeeds_by_a_claim(store: Store) {
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

pub(super) async fn creating_twice_is_creating_once(store: Store) {
    let first = store.apply(create(1, spec(2, None), at(1))).await.unwrap();
    assert_eq!((first.task, first.repeated), (task_id(1), false));
    let mut again = create(2, spec(2, None), at(2));
    again.request = request(1);
    let second = store.apply(again).await.unwrap();
    assert_eq!((second.task, second.repeated), (task_id(1), true), "I6");
    assert_eq!(second.changes, Changes::default());
    assert_eq!(store.queued_jobs().await.unwrap().len(), 2);
    assert_eq!(store.task(task_id(2)).await.unwrap(), None);

    // Another caller's ids, and another kind of call, are no repeats.
    let mut other = create(3, spec(1, None), at(3));
    other.request = request(1);
    other.request.principal = "other".to_owned();
    assert!(!store.apply(other).await.unwrap().repeated);
    let cancel = CancelTask {
        request: request(1),
        task: task_id(1),
        now: at(4),
    };
    let changes = store.apply(cancel.clone()).await.unwrap();
    assert_eq!(changes.withdrawn.len(), 2);
    assert_eq!(store.apply(cancel).await.unwrap(), Changes::default());
    end(&store).await;
}

pub(super) async fn a_request_id_is_good_for_one_payload(store: Store) {
    store.apply(create(1, spec(1, None), at(1))).await.unwrap();
    let mut other = create(2, spec(1, None), at(2));
    other.request.id = request(1).id;
    let error = store.apply(other).await.unwrap_err();
    assert!(matches!(error, StoreError::RequestConflict { .. }), "{error}");
    assert_eq!(store.task(task_id(2)).await.unwrap(), None);
}

pub(super) async fn a_request_can_be_repeated_for_seven_days(store: Store) {
    let repeat = |now| {
        let mut command = create(1, spec(1, None), now);
        command.task = task_id(9);
        command.sessions = vec![(SessionId::from_random(9), JobId::from_random(9))];
        command
    };
    store.apply(create(1, spec(1, None), at(0))).await.unwrap();
    let week = at(0) + REQUEST_LIFETIME;
    store.apply(create(2, spec(1, None), week)).await.unwrap();
    assert!(store.apply(repeat(week)).await.unwrap().repeated);
    let later = week + Duration::from_millis(1);
    store.apply(create(3, spec(1, None), later)).await.unwrap();
    assert!(!store.apply(repeat(later)).await.unwrap().repeated, "it was forgotten");
}

pub(super) async fn a_refused_command_leaves_nothing_behind(store: Store) {
    store.apply(create(1, spec(1, None), at(1))).await.unwrap();
    // The second of its sessions has an id that is in use, after much was written.
    let mut clash = create(2, spec(2, None), at(2));
    clash.sessions[1].1 = clash.sessions[0].1;
    let error = store.apply(clash.clone()).await.unwrap_err();
    assert!(matches!(error, StoreError::IdTaken { what: "job" }), "{error}");
    let mut same = create(1, spec(1, None), at(2));
    same.request = request(5);
    let error = store.apply(same).await.unwrap_err();
    assert!(matches!(error, StoreError::IdTaken { what: "task" }), "{error}");
    let mut short = create(3, spec(2, None), at(2));
    short.sessions.pop();
    let error = store.apply(short).await.unwrap_err();
    assert!(matches!(error, StoreError::SessionCount { .. }), "{error}");
    assert_eq!(store.queued_jobs().await.unwrap().len(), 1);
    assert_eq!(store.task(task_id(2)).await.unwrap(), None);
    clash.sessions[1].1 = JobId::from_random(77);
    assert!(
        !store.apply(clash).await.unwrap().repeated,
        "the request was taken back too"
    );
    end(&store).await;
}

pub(super) async fn a_stale_token_is_refused(store: Store) {
    let jobs = begin(&store, 1, None).await;
    started(&store, &jobs[0], 1, 1, 1).await;
    let mut forged = append(1, 1, vec![activity(1)]);
    forged.claim.token_hash = token(attempt_id(2));
    let outcome = store.apply(forged).await.unwrap();
    assert_eq!(outcome, Appended::Stale(StaleWriter::WrongToken));
    let unknown = store.apply(append(7, 1, vec![activity(1)])).await.unwrap();
    assert_eq!(unknown, Appended::UnknownAttempt);
    assert_eq!(store.events(task_id(1), 0, 10).await.unwrap(), vec![]);
    end(&store).await;
}

pub(super) async fn another_agent_is_refused(store: Store) {
    let jobs = begin(&store, 1, None).await;
    started(&store, &jobs[0], 1, 1, 1).await;
    let outcome = store.apply(append(1, 2, vec![activity(1)])).await.unwrap();
    assert_eq!(outcome, Appended::Stale(StaleWriter::WrongAgent));
    end(&store).await;
}

pub(super) async fn a_gap_is_named_and_a_repeat_is_acknowledged(store: Store) {
    let jobs = begin(&store, 1, None).await;
    started(&store, &jobs[0], 1, 1, 1).await;
    told(&store, 1, 1, vec![activity(1), activity(2)]).await;
    let gap = store.apply(append(1, 1, vec![activity(4)])).await.unwrap();
    assert_eq!(gap, Appended::Gap { acked_seq: 2 });
    let repeat = store.apply(append(1, 1, vec![activity(1), activity(2)])).await.unwrap();
    let changes = Changes::default();
    assert_eq!(repeat, Appended::Acked { seq: 2, changes });
    // A batch that overlaps adds what is new.
    told(&store, 1, 1, vec![activity(2), activity(3)]).await;
    let events = store.events(task_id(1), 0, 10).await.unwrap();
    let seqs: Vec<_> = events.iter().map(|event| event.event.seq).collect();
    assert_eq!(seqs, [1, 2, 3]);
    end(&store).await;
}

pub(super) async fn nothing_is_taken_after_the_end(store: Store) {
    let jobs = begin(&store, 1, None).await;
    started(&store, &jobs[0], 1, 1, 1).await;
    told(&store, 1, 1, vec![activity(1), claimed(2)]).await;
    let late = store.apply(append(1, 1, vec![activity(3)])).await.unwrap();
    assert_eq!(late, Appended::Stale(StaleWriter::Ended));
    // Its sender never heard that the end was stored.
    let repeat = store.apply(append(1, 1, vec![activity(1), claimed(2)])).await.unwrap();
    let changes = Changes::default();
    assert_eq!(repeat, Appended::Acked { seq: 2, changes });
    end(&store).await;
}

pub(super) async fn a_batch_that_contradicts_itself_is_refused(store: Store) {
    let jobs = begin(&store, 1, None).await;
    started(&store, &jobs[0], 1, 1, 1).await;
    let cases = [
        (vec![], InvalidBatch::Empty),
        (vec![activity(1), activity(3)], InvalidBatch::NotConsecutive(3)),
        (vec![claimed(1), activity(2)], InvalidBatch::AfterEnd(2)),
    ];
    for (events, expected) in cases {
        let outcome = store.apply(append(1, 1, events)).await.unwrap();
        assert_eq!(outcome, Appended::Invalid(expected));
    }
    end(&store).await;
}

pub(super) async fn cancelling_ends_what_waits_and_stops_what_runs(store: Store) {
    let jobs = begin(&store, 2, CHECKED).await;
    started(&store, &jobs[0], 1, 1, 1).await;
    let cancel = CancelTask {
        request: request(50),
        task: task_id(1),
        now: at(100),
    };
    let changes = store.apply(cancel).await.unwrap();
    assert_eq!(changes.withdrawn, [jobs[1].job]);
    let stop = StopAttempt {
        attempt: attempt_id(1),
        agent: agent_id(1),
    };
    assert_eq!(changes.stop, [stop]);
    assert_eq!(state(&store, 1).await, SessionStateKind::Cancelled);
    let now = view(&store).await;
    assert!(now.sessions[0].cancel_requested);
    assert_eq!(now.task.state, TaskState::Running, "until its agent stopped it");
    // Its last words are taken; what it claims is not checked any more.
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

pub(super) async fn a_new_start_of_an_agent_ends_the_older_ones_attempts(store: Store) {
    let jobs = begin(&store, 2, None).await;
    started(&store, &jobs[0], 1, 1, 1).await;
    started(&store, &jobs[1], 2, 1, 2).await;
    store.apply(RecordAgent { agent: agent(1, 2) }).await.unwrap();
    let restart = EndAttempts {
        which: Ending::OtherBoots {
            agent: agent_id(1),
            boot: boot_id(2),
        },
        reason: EndReason::AgentRestarted,
        now: at(500),
    };
    let changes = store.apply(restart.clone()).await.unwrap();
    let ended = EndedAttempt {
        attempt: attempt_id(1),
        agent: agent_id(1),
        reason: EndReason::AgentRestarted,
    };
    assert_eq!(changes.ended, [ended], "agent 2 is not concerned");
    assert_eq!(changes.queued[0].affinity.prefer, Some(agent_id(1)));
    assert_eq!(store.apply(restart).await.unwrap(), Changes::default());
    let late = store.apply(append(1, 1, vec![activity(1)])).await.unwrap();
    assert_eq!(late, Appended::Stale(StaleWriter::Ended));
    let live = store.live_attempts(Some(agent_id(2))).await.unwrap();
    assert_eq!(live.len(), 1);
    assert_eq!(store.live_attempts(Some(agent_id(1))).await.unwrap(), vec![]);
    end(&store).await;
}

pub(super) async fn an_attempt_starts_once_and_for_the_present_start_only(store: Store) {
    let jobs = begin(&store, 1, None).await;
    let mut older = start(&jobs[0], 1, 1, 1, at(1));
    older.boot = boot_id(7);
    assert_eq!(store.apply(older).await.unwrap(), Start::NotStartable);
    let stranger = start(&jobs[0], 1, 1, 9, at(1));
    assert_eq!(store.apply(stranger).await.unwrap(), Start::NotStartable);
    let outdated = start(&jobs[0], 1, 2, 1, at(1));
    assert_eq!(store.apply(outdated).await.unwrap(), Start::NotStartable);
    let mut missing = start(&jobs[0], 1, 1, 1, at(1));
    missing.job = JobId::from_random(12345);
    assert_eq!(store.apply(missing).await.unwrap(), Start::NotStartable);
    started(&store, &jobs[0], 1, 1, 1).await;
    for number in [1, 2] {
        let second = start(&jobs[0], 2, number, 2, at(2));
        assert_eq!(store.apply(second).await.unwrap(), Start::NotStartable);
    }
    end(&store).await;
}

pub(super) async fn leases_are_renewed_for_their_holder_only(store: Store) {
    let jobs = begin(&store, 3, None).await;
    started(&store, &jobs[0], 1, 1, 1).await;
    started(&store, &jobs[1], 2, 1, 2).await;
    started(&store, &jobs[2], 3, 1, 1).await;
    told(&store, 3, 1, vec![claimed(1)]).await;
    let claim = |attempt| Claim {
        attempt: attempt_id(attempt),
        token_hash: token(attempt_id(attempt)),
    };
    let mut renew = RenewLeases {
        agent: agent_id(1),
        boot: boot_id(1),
        claims: vec![claim(1), claim(2), claim(3), claim(4)],
        lease_until: at(90_000),
        now: at(60_000),
    };
    let outcome = store.apply(renew.clone()).await.unwrap();
    assert_eq!(outcome.renewed, [attempt_id(1)]);
    assert_eq!(outcome.refused, [attempt_id(2), attempt_id(3), attempt_id(4)]);
    let lease = |store: Store| async move { store.live_attempts(None).await.unwrap()[0].lease_until };
    assert_eq!(lease(store.clone()).await, at(90_000));
    let agents = store.agents().await.unwrap();
    assert_eq!(agents[0].seen_at, at(60_000));

    renew.lease_until = at(80_000);
    store.apply(renew.clone()).await.unwrap();
    assert_eq!(lease(store.clone()).await, at(90_000), "a lease is never shortened");
    renew.boot = boot_id(2);
    assert_eq!(store.apply(renew).await.unwrap().renewed, []);
    end(&store).await;
}

pub(super) async fn an_expired_lease_ends_unless_it_was_renewed(store: Store) {
    let jobs = begin(&store, 2, None).await;
    started(&store, &jobs[0], 1, 1, 1).await;
    started(&store, &jobs[1], 2, 1, 2).await;
    let late = at(60_000);
    assert_eq!(store.expired(at(10)).await.unwrap(), vec![]);
    let expired = store.expired(late).await.unwrap();
    assert_eq!(expired.len(), 2);
    let ids: Vec<_> = expired.iter().map(|attempt| attempt.attempt).collect();
    let renew = RenewLeases {
        agent: agent_id(2),
        boot: boot_id(1),
        claims: vec![Claim {
            attempt: attempt_id(2),
            token_hash: token(attempt_id(2)),
        }],
        lease_until: at(90_000),
        now: late,
    };
    store.apply(renew).await.unwrap();
    let expire = EndAttempts {
        which: Ending::Expired(ids.clone()),
        reason: EndReason::AgentSilent,
        now: late,
    };
    let changes = store.apply(expire).await.unwrap();
    assert_eq!(changes.ended.len(), 1);
    assert_eq!(changes.ended[0].attempt, attempt_id(1));

    let lease_until = at(200_000);
    store.apply(ExtendAllLeases { lease_until }).await.unwrap();
    assert_eq!(store.live_attempts(None).await.unwrap()[0].lease_until, lease_until);
    let gone = EndAttempts {
        which: Ending::Boot {
            agent: agent_id(2),
            boot: boot_id(1),
        },
        reason: EndReason::AgentGone,
        now: late,
    };
    assert_eq!(store.apply(gone).await.unwrap().ended.len(), 1);
    let these = EndAttempts {
        which: Ending::These(ids),
        reason: EndReason::AgentGone,
        now: late,
    };
    assert_eq!(
        store.apply(these).await.unwrap(),
        Changes::default(),
        "they ended before"
    );
    end(&store).await;
}

pub(super) async fn usage_and_activity_add_up(store: Store) {
    let jobs = begin(&store, 1, None).await;
    started(&store, &jobs[0], 1, 1, 1).await;
    let used = |seq, input, pico| {
        let body = EventBody::UsageRecorded {
            model: "m".to_owned(),
            usage: Usage {
                input,
                ..Usage::default()
            },
            reported: Some(PicoUsd(pico)),
            metered: true,
        };
        event(seq, body)
    };
    told(&store, 1, 1, vec![used(1, 10, 3), activity(2)]).await;
    told(&store, 1, 1, vec![used(3, 5, 4)]).await;
    // A repeat counts nothing twice.
    told(&store, 1, 1, vec![used(1, 10, 3), activity(2), used(3, 5, 4)]).await;
    let session = view(&store).await.sessions.remove(0);
    assert_eq!(session.total_usage().input, 15);
    assert_eq!(session.usage[0].reported, Some(PicoUsd(7)));
    assert_eq!(session.activity, Some(("step 2".to_owned(), at(10_001))));
    assert!(matches!(session.state, SessionState::Running { .. }));
    end(&store).await;
}

pub(super) async fn pages_are_newest_first_and_stay_put(store: Store) {
    for n in 1..=5 {
        let mut command = create(n, spec(1, None), at(0));
        if n == 3 {
            command.spec.project = "other".parse().unwrap();
        }
        store.apply(command).await.unwrap();
    }
    let project = ProjectId::default();
    let first = store.tasks(&project, None, 2).await.unwrap();
    let ids = |page: &crate::store::TaskPage| page.tasks.iter().map(|view| view.task.id).collect::<Vec<_>>();
    assert_eq!(ids(&first), [task_id(5), task_id(4)]);
    assert_eq!(first.tasks[0].sessions.len(), 1);
    // What is stored in between does not shift the next page, and the token survives as text.
    store.apply(create(6, spec(1, None), at(0))).await.unwrap();
    let token = first.next.unwrap().to_string().parse().unwrap();
    let second = store.tasks(&project, Some(token), 2).await.unwrap();
    assert_eq!((ids(&second), second.next), (vec![task_id(2), task_id(1)], None));
    let other = store.tasks(&"other".parse().unwrap(), None, 2).await.unwrap();
    assert_eq!((ids(&other), other.next), (vec![task_id(3)], None));
    for text in ["", "t", "1", "t01", "tFF", "tffffffffffffffff"] {
        assert!(text.parse::<crate::store::PageToken>().is_err(), "{text}");
    }
}

pub(super) async fn tasks_are_found_by_a_prefix(store: Store) {
    for n in [0x1234_5678, 0x1234_5679, 0xabcd_0000] {
        store.apply(create(n, spec(1, None), at(0))).await.unwrap();
    }
    let full = task_id(0x1234_5678).to_string();
    let cases = [
        (full.as_str(), Named::One(task_id(0x1234_5678))),
        ("12345678", Named::One(task_id(0x1234_5678))),
        ("1234567", Named::Ambiguous),
        ("ABCD", Named::One(task_id(0xabcd_0000))),
        ("abc", Named::NotFound),
        ("ffff", Named::NotFound),
        ("12345678-", Named::NotFound),
        ("zzzz", Named::NotFound),
    ];
    for (text, expected) in cases {
        assert_eq!(store.find_task(text).await.unwrap(), expected, "{text}");
    }
}

pub(super) async fn agents_are_remembered_with_their_drain(store: Store) {
    two_agents(&store).await;
    let drain = |request| SetDraining {
        request,
        agent: agent_id(1),
        draining: true,
        now: at(1),
    };
    store.apply(drain(Some(request(1)))).await.unwrap();
    store.apply(RecordAgent { agent: agent(1, 1) }).await.unwrap();
    assert!(store.agents().await.unwrap()[0].draining, "the same start drains on");
    store.apply(RecordAgent { agent: agent(1, 2) }).await.unwrap();
    assert_eq!(store.agents().await.unwrap(), [agent(1, 2), agent(2, 1)]);
    // The repeat of an old request must not drain the new start.
    store.apply(drain(Some(request(1)))).await.unwrap();
    assert!(!store.agents().await.unwrap()[0].draining);
    store.apply(drain(None)).await.unwrap();
    assert!(store.agents().await.unwrap()[0].draining);
    let nobody = SetDraining {
        agent: agent_id(9),
        ..drain(None)
    };
    let error = store.apply(nobody).await.unwrap_err();
    assert!(matches!(error, StoreError::NotFound { what: "agent", .. }), "{error}");
}

pub(super) async fn contexts_count_puts_uses_and_sends(store: Store) {
    two_agents(&store).await;
    let (project, digest) = (ProjectId::default(), Digest::of(b"{}"));
    let put = |n| PutContext {
        request: request(n),
        project: project.clone(),
        digest: digest.clone(),
        size: 1000,
        now: at(1),
    };
    assert_eq!(store.context_stats(&project, &digest).await.unwrap(), None);
    let mut command = create(1, spec(2, None), at(1));
    command.spec.context_base = Some(digest.clone());
    command.spec.assignments[1].context_delta = Some("12345".to_owned());
    let error = store.apply(command.clone()).await.unwrap_err();
    assert!(matches!(error, StoreError::NotFound { what: "context", .. }), "{error}");

    assert_eq!(store.apply(put(10)).await.unwrap(), ContextPut { created: true });
    assert_eq!(store.apply(put(10)).await.unwrap(), ContextPut { created: true });
    assert_eq!(store.apply(put(11)).await.unwrap(), ContextPut { created: false });
    store.apply(command.clone()).await.unwrap();
    store.apply(command).await.unwrap();
    for bytes in [1000, 500] {
        let sent = RecordContextSent {
            project: project.clone(),
            digest: digest.clone(),
            agent: agent_id(2),
            bytes,
        };
        store.apply(sent).await.unwrap();
    }
    let stats = store.context_stats(&project, &digest).await.unwrap().unwrap();
    assert_eq!(
        (stats.size, stats.times_put, stats.sessions, stats.delta_bytes),
        (1000, 2, 2, 5)
    );
    let sent = ContextSent {
        agent: agent_id(2),
        agent_name: "agent-2".to_owned(),
        times: 2,
        bytes: 1500,
    };
    assert_eq!(stats.sent, [sent]);
    assert_eq!(store.context_size(&project, &digest).await.unwrap(), Some(1000));
    assert_eq!(store.context_size(&"p".parse().unwrap(), &digest).await.unwrap(), None);
}

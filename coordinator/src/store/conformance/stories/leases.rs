//! Leases: which agent may run an attempt, and until when.

use std::time::Duration;

use kage_core::attempt::{EndReason, StaleWriter};
use kage_core::deadline::{Slack, Term};
use kage_core::failure::FailureKind;
use kage_core::id::JobId;
use kage_core::session::SessionStateKind;
use kage_core::task::TaskState;

use super::{begin, end, view};
use crate::store::conformance::fixture::{
    activity, agent, agent_id, append, at, attempt_id, boot_id, claimed, gone, request, spec, start, started, task_id,
    token, told,
};
use crate::store::conformance::followed::{BegunAttempt, Changes, EndedAttempt, Followed as _};
use crate::store::{
    Appended, CancelTask, Claim, EndAttempts, Ending, ExtendAllLeases, RecordAgent, RenewLeases, Start, Store,
};

pub(in crate::store::conformance) async fn a_new_start_of_an_agent_ends_the_older_ones_attempts(store: Store) {
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
    let changes = store.followed(restart.clone()).await;
    let ended = EndedAttempt {
        attempt: attempt_id(1),
        agent: agent_id(1),
        reason: EndReason::AgentRestarted,
    };
    assert_eq!(changes.ended, [ended], "agent 2 is not concerned");
    assert_eq!(changes.queued[0].affinity.prefer, Some(agent_id(1)));
    assert_eq!(store.followed(restart).await, Changes::default());
    let late = store.apply(append(1, 1, vec![activity(1)])).await.unwrap();
    assert_eq!(late, Appended::Stale(StaleWriter::Ended));
    let live = store.live_attempts(Some(agent_id(2))).await.unwrap();
    assert_eq!(live.len(), 1);
    assert_eq!(store.live_attempts(Some(agent_id(1))).await.unwrap(), vec![]);
    end(&store).await;
}

pub(in crate::store::conformance) async fn an_attempt_starts_once_and_for_the_present_start_only(store: Store) {
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

pub(in crate::store::conformance) async fn leases_are_renewed_for_their_holder_only(store: Store) {
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

pub(in crate::store::conformance) async fn an_expired_lease_ends_unless_it_was_renewed(store: Store) {
    let jobs = begin(&store, 2, None).await;
    started(&store, &jobs[0], 1, 1, 1).await;
    started(&store, &jobs[1], 2, 1, 2).await;
    let late = at(60_000);
    let ids = vec![attempt_id(1), attempt_id(2)];
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
    let changes = store.followed(expire).await;
    assert_eq!(changes.ended.len(), 1);
    assert_eq!(changes.ended[0].attempt, attempt_id(1));

    let lease_until = at(200_000);
    let extend = ExtendAllLeases { lease_until, now: late };
    store.apply(extend).await.unwrap();
    assert_eq!(store.live_attempts(None).await.unwrap()[0].lease_until, lease_until);
    assert_eq!(store.followed(gone(2, late)).await.ended.len(), 1);
    let these = EndAttempts {
        which: Ending::These(ids),
        reason: EndReason::AgentGone,
        now: late,
    };
    assert_eq!(store.followed(these).await, Changes::default(), "they ended before");
    end(&store).await;
}

pub(in crate::store::conformance) async fn an_agent_that_does_not_act_loses_its_attempt(store: Store) {
    let jobs = begin(&store, 2, Some("true")).await;
    let begun = store.followed(start(&jobs[0], 1, 1, 1, at(0))).await.begun;
    let allowed = Slack::default().allowed(&jobs[0].kind, &spec(1, None).policy, None);
    let first = BegunAttempt {
        attempt: attempt_id(1),
        agent: agent_id(1),
        allowed,
    };
    assert_eq!(begun, [first]);
    started(&store, &jobs[1], 2, 1, 2).await;
    let terms = |store: Store| async move {
        let live = store.live_attempts(None).await.unwrap();
        live.into_iter().map(|live| live.term).collect::<Vec<_>>()
    };
    let begun = Term {
        started_at: at(0),
        ends_by: at(0) + allowed,
        stop_asked: None,
    };
    assert_eq!(terms(store.clone()).await[0], begun);
    // Its lease ends at 30 s; the coordinator was away for 10 s.
    let extend = ExtendAllLeases {
        lease_until: at(100_000),
        now: at(40_000),
    };
    store.apply(extend).await.unwrap();
    let longer = Term {
        ends_by: begun.ends_by + Duration::from_secs(10),
        ..begun
    };
    assert_eq!(terms(store.clone()).await[0], longer);
    let renew = RenewLeases {
        agent: agent_id(1),
        boot: boot_id(1),
        claims: vec![Claim {
            attempt: attempt_id(1),
            token_hash: token(attempt_id(1)),
        }],
        lease_until: at(200_000),
        now: at(101_000),
    };
    store.apply(renew).await.unwrap();
    let longest = Term {
        ends_by: begun.ends_by + Duration::from_secs(11),
        ..begun
    };
    assert_eq!(terms(store.clone()).await[0], longest);

    let overdue = EndAttempts {
        which: Ending::These(vec![attempt_id(1)]),
        reason: EndReason::Overdue,
        now: longest.ends_by,
    };
    let changes = store.followed(overdue).await;
    assert_eq!(changes.ended[0].reason, EndReason::Overdue);
    assert_eq!(changes.queued[0].affinity.avoid, Some(agent_id(1)), "others first");
    let late = store.apply(append(1, 1, vec![activity(1)])).await.unwrap();
    assert_eq!(late, Appended::Stale(StaleWriter::Ended));
    let incident = view(&store).await.sessions[0].incidents[0].clone();
    assert_eq!(incident.failure.kind, FailureKind::Timeout);

    for (n, when) in [(50, 50), (51, 51)] {
        let cancel = CancelTask {
            request: request(n),
            task: task_id(1),
            now: at(when),
        };
        let changes = store.followed(cancel).await;
        assert_eq!(changes.stop[0].attempt, attempt_id(2));
        assert_eq!(
            terms(store.clone()).await[0].stop_asked,
            Some(at(50)),
            "the first one counts"
        );
    }
    let unanswered = EndAttempts {
        which: Ending::These(vec![attempt_id(2)]),
        reason: EndReason::StopUnanswered,
        now: at(60_050),
    };
    let changes = store.followed(unanswered).await;
    assert_eq!(changes.over, [SessionStateKind::Cancelled]);
    assert_eq!(view(&store).await.task.state, TaskState::Cancelled);
    end(&store).await;
}

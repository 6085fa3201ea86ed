//! How long a session counts as worked on.

use std::time::Duration;

use kage_core::event::{Event, VerdictKind};

use super::{begin, end};
use crate::store::conformance::fixture::{
    agent_id, append, at, attempt_id, boot_id, claimed, committed, gone, start, token, verdict,
};
use crate::store::conformance::followed::Followed as _;
use crate::store::{AppendEvents, Claim, ExtendAllLeases, RenewLeases, Start, Store};

pub(in crate::store::conformance) async fn the_time_in_which_nobody_ran_is_not_counted(store: Store) {
    let jobs = begin(&store, 1, Some("true")).await;
    let worked = async || store.task(jobs[0].task).await.unwrap().unwrap().sessions[0].worked;
    let start_at = async |job, attempt, number, agent, now| {
        let outcome = store.apply(start(job, attempt, number, agent, at(now))).await.unwrap();
        assert!(matches!(outcome, Start::Started), "{outcome:?}");
    };
    start_at(&jobs[0], 1, 1, 1, 1_000).await;
    assert_eq!(worked().await.until(at(1_500)), Duration::from_millis(500));
    let renew = RenewLeases {
        agent: agent_id(1),
        boot: boot_id(1),
        claims: vec![Claim {
            attempt: attempt_id(1),
            token_hash: token(attempt_id(1)),
        }],
        lease_until: at(34_000),
        now: at(4_000),
    };
    store.apply(renew).await.unwrap();
    // Coordinator and agent are killed, and started again half a minute later.
    let lease_until = at(64_000);
    let now = at(34_000);
    store.apply(ExtendAllLeases { lease_until, now }).await.unwrap();
    let lost = store.followed(gone(1, at(34_500))).await;
    assert_eq!(worked().await.ended, Duration::from_secs(3));
    assert_eq!(worked().await.until(at(99_000)), Duration::from_secs(3), "it waits");

    let finish = async |attempt, agent, now, mut events: Vec<Event>| {
        for event in &mut events {
            event.at = at(now);
        }
        let append = AppendEvents {
            now: at(now + 50),
            ..append(attempt, agent, events)
        };
        store.followed(append).await
    };
    start_at(&lost.queued[0], 2, 2, 2, 36_000).await;
    let done = finish(2, 2, 38_000, vec![committed(1), claimed(2)]).await;
    assert_eq!(worked().await.ended, Duration::from_secs(5));
    start_at(&done.queued[0], 3, 1, 1, 50_000).await;
    drop(finish(3, 1, 51_000, vec![verdict(1, VerdictKind::Passed)]).await);
    assert_eq!(worked().await.until(at(99_000)), Duration::from_secs(6));
    end(&store).await;
}

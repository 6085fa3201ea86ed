//! Limits that hold for the whole attempt, also when its files are committed and sent.

use std::time::Duration;

use kage_agent::Limits;
use kage_core::deadline::Slack;
use kage_core::failure::FailureKind;
use kage_proto::convert::agent::WorkKind;
use kage_proto::v1::event::Body;

use crate::agent::{Agent, failure, kind, work};
use crate::checkpoints::{Source, bodies, result};
use crate::coordinator::Served;

/// Work on a session that has this much time.
fn timed(task: &str, timeout: Duration) -> WorkKind {
    let WorkKind::Session(mut session) = work(task) else {
        unreachable!("it is a session")
    };
    session.timeout = timeout;
    WorkKind::Session(session)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sending_that_takes_too_long_ends_the_attempt_and_one_in_time_does_not() {
    let served = Served::start().await;
    let source = Source::new(&served);
    let state = source.state().await;
    let limits = Limits {
        slack: Slack {
            least: Duration::ZERO,
            most: Duration::ZERO,
        },
        ..Limits::default()
    };
    let agent = Agent::start(&served, state.path(), limits);
    served.coordinator.connected(1).await;
    served.coordinator.with(|kept| kept.hold_blobs = true);
    let stuck = served
        .coordinator
        .grant(1, timed("steps 2", Duration::from_secs(2)))
        .await;
    let events = served.coordinator.finished(&stuck).await;
    let failed = failure(&events);
    assert_eq!(failed.kind, kind(FailureKind::Timeout), "{failed:?}");
    assert!(failed.message.contains("committed and sent within"), "{failed:?}");
    let committed = bodies(&events).any(|body| matches!(body, Body::ResultCommitted(_)));
    assert!(!committed, "{events:?}");

    served.coordinator.with(|kept| kept.hold_blobs = false);
    let fine = served.coordinator.grant(2, work("steps 2")).await;
    let events = served.coordinator.finished(&fine).await;
    assert_eq!(result(&events).paths, ["step0", "step1"]);
    agent.end().await;
}

//! The agent as a whole, against a coordinator in this process: grants, cut connections,
//! leases, refusals, restarts and shutdown.

#![expect(clippy::unwrap_used, reason = "what fails here is the test")]

mod agent;
mod checkpoints;
mod coordinator;
mod forged;
mod healing;
mod limits;
mod secrets;

use std::time::Duration;

use agent::{Agent, byte, failure, kind, work};
use coordinator::Served;
use kage_agent::Limits;
use kage_agent::adapters::port::Resumes;
use kage_core::contain::{Containment, Tier};
use kage_core::failure::FailureKind;
use kage_core::task::VerifyPolicy;
use kage_proto::convert::agent::{VerifyWork, WorkKind};
use kage_proto::v1;
use kage_proto::v1::connect_response::Message as ToAgent;
use kage_proto::v1::event::Body;
use kage_proto::v1::finished::Outcome;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_granted_session_is_told_from_phase_to_claim() {
    let served = Served::start().await;
    let state = tempfile::tempdir().unwrap();
    let agent = Agent::start(&served, state.path(), Limits::default());
    served.coordinator.connected(1).await;
    let attempt = served.coordinator.grant(1, work("nothing")).await;
    let events = served.coordinator.finished(&attempt).await;
    let bodies: Vec<_> = events.iter().map(|event| event.body.clone().unwrap()).collect();
    let phase = |phase: v1::Phase| Body::PhaseChanged(v1::PhaseChanged { phase: phase.into() });
    let claimed = Outcome::Claimed(v1::Claimed {});
    assert_eq!(
        bodies,
        [
            phase(v1::Phase::Preparing),
            phase(v1::Phase::Working),
            Body::Finished(v1::Finished { outcome: Some(claimed) })
        ]
    );
    let hello = served.coordinator.with(|kept| kept.hellos[0].clone());
    assert_eq!(
        (hello.name.as_str(), hello.slots, hello.running.len()),
        ("tester", 2, 0)
    );
    assert_eq!(hello.adapters[0].name, "scripted");
    agent.end().await;

    assert_eq!(std::fs::read_dir(state.path().join("output")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn output_is_whole_after_connections_broke() {
    const BYTES: usize = 3_000_000;
    let served = Served::start().await;
    served.coordinator.with(|kept| kept.cut_after = vec![7, 1, 20]);
    let state = tempfile::tempdir().unwrap();
    let agent = Agent::start(&served, state.path(), Limits::default());
    served.coordinator.connected(1).await;
    let attempt = served.coordinator.grant(1, work(&format!("print {BYTES}"))).await;
    let events = served.coordinator.finished(&attempt).await;
    assert!(events.iter().enumerate().all(|(at, event)| event.seq == at as u64 + 1));
    let (output, appends) = served.coordinator.with(|kept| {
        let stream = v1::OutputStream::Stdout.into();
        (kept.output.remove(&(attempt, stream)).unwrap(), kept.appends)
    });
    assert_eq!(output.len(), BYTES);
    assert!(output.iter().enumerate().all(|(at, found)| *found == byte(at)));
    assert!(appends >= 4, "{appends}");
    agent.end().await;
    assert_eq!(std::fs::read_dir(state.path().join("output")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn little_space_slows_output_and_loses_nothing() {
    const BYTES: usize = 400_000;
    let served = Served::start().await;
    let state = tempfile::tempdir().unwrap();
    let limits = Limits {
        undelivered_output: 70_000,
        ..Limits::default()
    };
    let agent = Agent::start(&served, state.path(), limits);
    served.coordinator.connected(1).await;
    let attempt = served.coordinator.grant(1, work(&format!("print {BYTES}"))).await;
    served.coordinator.finished(&attempt).await;
    let stream = v1::OutputStream::Stdout.into();
    let output = served.coordinator.with(|kept| kept.output[&(attempt, stream)].clone());
    assert!(output.len() == BYTES && output.iter().enumerate().all(|(at, found)| *found == byte(at)));
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn output_beyond_the_cap_is_dropped_and_said_so() {
    let served = Served::start().await;
    let state = tempfile::tempdir().unwrap();
    let limits = Limits {
        output_cap: 5000,
        ..Limits::default()
    };
    let agent = Agent::start(&served, state.path(), limits);
    served.coordinator.connected(1).await;
    let attempt = served.coordinator.grant(1, work("print 90000")).await;
    let events = served.coordinator.finished(&attempt).await;
    let truncated: Vec<_> = events
        .iter()
        .filter_map(|event| match &event.body {
            Some(Body::OutputTruncated(truncated)) => Some(truncated.at),
            _ => None,
        })
        .collect();
    assert_eq!(truncated, [5000]);
    let stream = v1::OutputStream::Stdout.into();
    assert_eq!(
        served.coordinator.with(|kept| kept.output[&(attempt, stream)].len()),
        5000
    );
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_do_not_leave_the_agent() {
    let served = Served::start().await;
    let state = tempfile::tempdir().unwrap();
    let agent = Agent::start(&served, state.path(), Limits::default());
    served.coordinator.connected(1).await;
    let attempt = served.coordinator.grant(1, work("leak")).await;
    let events = served.coordinator.finished(&attempt).await;
    let stream = v1::OutputStream::Stderr.into();
    let output = served.coordinator.with(|kept| kept.output[&(attempt, stream)].clone());
    assert_eq!(output, b"the key is ***!");
    let said = events
        .iter()
        .any(|event| matches!(&event.body, Some(Body::Activity(activity)) if activity.summary == "echo ***"));
    assert!(said, "{events:?}");
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panicking_adapter_ends_its_attempt_only() {
    let served = Served::start().await;
    let state = tempfile::tempdir().unwrap();
    let agent = Agent::start(&served, state.path(), Limits::default());
    served.coordinator.connected(1).await;
    let crashed = served.coordinator.grant(1, work("panic")).await;
    let events = served.coordinator.finished(&crashed).await;
    assert_eq!(failure(&events).kind, kind(FailureKind::AdapterCrash));
    let next = served.coordinator.grant(2, work("nothing")).await;
    served.coordinator.finished(&next).await;
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stop_and_time_limits_end_an_attempt() {
    let served = Served::start().await;
    let state = tempfile::tempdir().unwrap();
    let agent = Agent::start(&served, state.path(), Limits::default());
    served.coordinator.connected(1).await;
    let stopped = served.coordinator.grant(1, work("wait")).await;
    served.coordinator.say(ToAgent::Stop(v1::Stop {
        attempt_id: stopped.clone(),
        reason: "not wanted".to_owned(),
        keep_worktree: false,
    }));
    let told = failure(&served.coordinator.finished(&stopped).await);
    assert_eq!(
        (told.kind, told.message.as_str()),
        (kind(FailureKind::Cancelled), "not wanted")
    );

    for (n, timeout, idle_timeout) in [(2, 100, 60_000), (3, 60_000, 100)] {
        let WorkKind::Session(mut session) = work("wait") else {
            unreachable!("it is a session")
        };
        session.timeout = Duration::from_millis(timeout);
        session.idle_timeout = Duration::from_millis(idle_timeout);
        let slow = served.coordinator.grant(n, WorkKind::Session(session)).await;
        let told = failure(&served.coordinator.finished(&slow).await);
        assert_eq!(told.kind, kind(FailureKind::Timeout), "{told:?}");
    }
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_is_not_renewed_freezes() {
    let served = Served::start().await;
    served.coordinator.with(|kept| {
        kept.renews = false;
        kept.lease_ttl = Duration::from_millis(300);
    });
    let state = tempfile::tempdir().unwrap();
    let agent = Agent::start(&served, state.path(), Limits::default());
    served.coordinator.connected(1).await;
    let attempt = served.coordinator.grant(1, work("freeze")).await;
    served
        .coordinator
        .until("frozen", |kept| {
            let events = kept.events.get(&attempt)?;
            events
                .iter()
                .any(|event| matches!(&event.body, Some(Body::Activity(told)) if told.summary == "frozen"))
                .then_some(())
        })
        .await;
    served.coordinator.with(|kept| kept.renews = true);
    let events = served.coordinator.finished(&attempt).await;
    assert!(
        matches!(&events[events.len() - 2].body, Some(Body::Activity(told)) if told.summary == "thawed"),
        "{events:?}"
    );
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refuses_work_that_demands_more_containment_than_it_has() {
    let served = Served::start().await;
    let state = tempfile::tempdir().unwrap();
    let contained = Containment {
        tier: Tier::T1,
        short_of: "there is no bwrap".to_owned(),
    };
    let agent = Agent::start_contained(
        &served,
        state.path(),
        Limits::default(),
        Resumes::Position,
        contained.clone(),
    );
    let coordinator = &served.coordinator;
    coordinator.connected(1).await;
    let told = coordinator.with(|kept| kept.hellos[0].contained.clone());
    assert_eq!(told.map(Containment::from), Some(contained));
    let commit = "b".repeat(40).parse().unwrap();
    let check = VerifyWork {
        commit,
        policy: VerifyPolicy::default(),
        left_alone: Vec::new(),
    };
    for (n, kind) in [(1, work("nothing")), (2, WorkKind::Verify(check))] {
        let offered = coordinator.offer_in(Tier::T2, n, kind);
        let reason = coordinator.until("refusal", |kept| {
            let refused = kept.refused.iter().find(|refuse| refuse.offer_id == offered);
            refused.map(|refuse| refuse.reason.clone())
        });
        assert_eq!(
            reason.await,
            "it demands containment T2, and the agent has T1 (there is no bwrap)"
        );
    }
    let offered = coordinator.offer_in(Tier::T1, 3, work("nothing"));
    coordinator
        .until("accept", |kept| kept.accepted.contains(&offered).then_some(()))
        .await;
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refuses_what_it_cannot_do_and_stops_what_is_refused() {
    let served = Served::start().await;
    let state = tempfile::tempdir().unwrap();
    let agent = Agent::start(&served, state.path(), Limits::default());
    let coordinator = &served.coordinator;
    coordinator.connected(1).await;
    coordinator.with(|kept| {
        kept.rejected
            .insert(kage_core::id::AttemptId::from_random(1).to_string());
    });
    coordinator.grant(1, work("wait")).await;
    coordinator.grant(2, work("wait")).await;
    let second = kage_core::id::AttemptId::from_random(2).to_string();
    // The first is stopped by the refusal of its events, which frees its slot.
    let mut n = 10;
    loop {
        n += 1;
        let offered = coordinator.offer(n, work("nothing"));
        let answer = coordinator.until("an answer", |kept| {
            let refused = kept.refused.iter().find(|refuse| refuse.offer_id == offered);
            let accepted = kept.accepted.contains(&offered);
            (accepted || refused.is_some()).then(|| refused.map(|refuse| refuse.reason.clone()))
        });
        match answer.await {
            Some(reason) => assert_eq!(reason, "every slot is taken"),
            None => break,
        }
        tokio::task::yield_now().await;
    }
    coordinator.say(ToAgent::Drain(v1::Drain {}));
    coordinator.until("draining", |kept| kept.drained.then_some(())).await;
    let late = coordinator.offer(n + 1, work("nothing"));
    let reason = coordinator.until("refusal", |kept| {
        let refused = kept.refused.iter().find(|refuse| refuse.offer_id == late);
        refused.map(|refuse| refuse.reason.clone())
    });
    assert_eq!(reason.await, "the agent takes no more work");
    agent.hand_back.cancel();
    let told = failure(&coordinator.finished(&second).await);
    assert_eq!(told.kind, kind(FailureKind::AgentLost));
    agent.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_agent_delivers_what_was_left() {
    let served = Served::start().await;
    served.coordinator.with(|kept| kept.acks = false);
    let state = tempfile::tempdir().unwrap();
    let agent = Agent::start(&served, state.path(), Limits::default());
    served.coordinator.connected(1).await;
    let attempt = served.coordinator.grant(1, work("nothing")).await;
    // It was sent and not acknowledged: the outbox keeps it beyond the agent's end.
    served
        .coordinator
        .until("a first batch", |kept| (kept.withheld > 0).then_some(()))
        .await;
    agent.end().await;
    served.coordinator.with(|kept| kept.acks = true);
    let agent = Agent::start(&served, state.path(), Limits::default());
    served.coordinator.finished(&attempt).await;
    served.coordinator.connected(2).await;
    let (first, second) = served
        .coordinator
        .with(|kept| (kept.hellos[0].clone(), kept.hellos[1].clone()));
    assert_eq!(first.agent_id, second.agent_id);
    assert_ne!(first.boot_id, second.boot_id);
    assert_eq!(second.running, []);
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_is_shut_out_ends_and_says_why() {
    let served = Served::start().await;
    let state = tempfile::tempdir().unwrap();
    let agent = Agent::start(&served, state.path(), Limits::default());
    served.coordinator.connected(1).await;
    served.coordinator.grant(1, work("wait")).await;
    served.coordinator.shut_out("the agent was revoked");
    let Err(error) = agent.outcome().await else {
        panic!("it was shut out");
    };
    let chain = kage_core::cause::chain(&error);
    assert_eq!(
        chain,
        "the coordinator shut this agent out; give it a token that is good there: the agent was revoked"
    );
    assert_eq!(served.coordinator.with(|kept| kept.hellos.len()), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ping_is_answered_also_while_work_runs() {
    let served = Served::start().await;
    let state = tempfile::tempdir().unwrap();
    let agent = Agent::start(&served, state.path(), Limits::default());
    served.coordinator.connected(1).await;
    assert!(served.coordinator.with(|kept| kept.hellos[0].answers_pings));
    served.coordinator.grant(1, work("wait")).await;
    served.coordinator.say(ToAgent::Ping(v1::Ping { sequence: 7 }));
    let answered = served
        .coordinator
        .until("a pong", |kept| kept.pongs.first().copied())
        .await;
    assert_eq!(answered, 7);
    agent.hand_back.cancel();
    agent.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_whose_identity_is_in_use_waits_and_says_why_when_it_is_ended() {
    let served = Served::start().await;
    let message = "agent 1 is connected already, as other, and lives".to_owned();
    let refusal = kage_proto::status::ApiError::AgentIdInUse { message };
    served.coordinator.with(|kept| kept.refuses_hello = Some(refusal));
    let state = tempfile::tempdir().unwrap();
    let agent = Agent::start(&served, state.path(), Limits::default());
    // It tries again, and so it has read the first refusal.
    served.coordinator.connected(2).await;
    agent.shutdown();
    let Err(error) = agent.outcome().await else {
        panic!("it was not let in to the end");
    };
    let chain = kage_core::cause::chain(&error);
    let expected = format!(
        "the coordinator refused this agent: {} is the state folder of an agent that is connected elsewhere: agent 1 is \
         connected already, as other, and lives",
        state.path().display()
    );
    assert_eq!(chain, expected);

    // Once the other agent is gone, it is an agent like any other.
    served.coordinator.with(|kept| kept.refuses_hello = None);
    let agent = Agent::start(&served, state.path(), Limits::default());
    served.coordinator.connected(3).await;
    let attempt = served.coordinator.grant(1, work("nothing")).await;
    served.coordinator.finished(&attempt).await;
    agent.end().await;
}

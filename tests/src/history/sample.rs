//! A small valid history, for tests that break it: a task was created with a call that had to be
//! repeated, its first attempt failed, its second claimed.

use std::collections::BTreeMap;

use kage_core::time::Timestamp;
use kage_proto::convert::time::stamp;
use kage_proto::v1;
use kage_proto::v1::event::Body;
use kage_proto::v1::finished::Outcome;

use super::{Answer, Call, Final, FinalTask, History, JobKey, Observation, Sight, StreamKey, What, check};

pub(super) fn job() -> JobKey {
    JobKey {
        task: "t".to_owned(),
        session: "only".to_owned(),
        job: "session".to_owned(),
    }
}

pub(super) fn grant(number: u32, attempt: &str, token: &str) -> Observation {
    Observation {
        who: "agent".to_owned(),
        what: What::Granted {
            attempt: attempt.to_owned(),
            job: job(),
            number,
            token: token.to_owned(),
        },
    }
}

pub(super) fn event(attempt: u32, seq: u64, body: Body) -> v1::SessionEvent {
    v1::SessionEvent {
        session_id: "s".to_owned(),
        session: "only".to_owned(),
        job: v1::JobKind::Session.into(),
        attempt,
        agent: "agent".to_owned(),
        event: Some(v1::Event {
            seq,
            at: Some(stamp(Timestamp::from_millis(1))),
            body: Some(body),
        }),
    }
}

pub(super) fn finished(outcome: Outcome) -> Body {
    Body::Finished(v1::Finished { outcome: Some(outcome) })
}

pub(super) fn claimed() -> Body {
    finished(Outcome::Claimed(v1::Claimed {}))
}

/// The history and its final state.
pub(super) fn sample() -> (History, Final) {
    let commit = "c".repeat(40);
    let result = v1::ResultCommit {
        commit,
        ..v1::ResultCommit::default()
    };
    let used = v1::UsageRecorded {
        usage: Some(v1::Usage {
            output: 7,
            ..v1::Usage::default()
        }),
        ..v1::UsageRecorded::default()
    };
    let events = vec![
        event(1, 1, Body::UsageRecorded(used.clone())),
        event(1, 2, Body::Activity(v1::Activity::default())),
        event(1, 3, finished(Outcome::Failure(v1::Failure::default()))),
        event(
            2,
            1,
            Body::ResultCommitted(v1::ResultCommitted {
                result: Some(result.clone()),
                pack: "p".to_owned(),
            }),
        ),
        event(2, 2, claimed()),
    ];
    let session = v1::Session {
        name: "only".to_owned(),
        state: v1::SessionState::Unverified.into(),
        attempts: 2,
        usage: used.usage,
        result: Some(result),
        incidents: vec![v1::Incident {
            at: Some(stamp(Timestamp::from_millis(5))),
            job: v1::JobKind::Session.into(),
            attempt: 1,
            ..v1::Incident::default()
        }],
        ..v1::Session::default()
    };
    let spec = v1::TaskSpec {
        prompt: "p1".to_owned(),
        ..v1::TaskSpec::default()
    };
    let running = v1::Task {
        id: "t".to_owned(),
        spec: Some(spec),
        state: v1::TaskState::Running.into(),
        ..v1::Task::default()
    };
    let task = v1::Task {
        state: v1::TaskState::Succeeded.into(),
        sessions: vec![session],
        ..running.clone()
    };
    let chunk = v1::OutputChunk {
        session: "only".to_owned(),
        job: v1::JobKind::Session.into(),
        attempt: 2,
        stream: 1,
        data: b"hello".to_vec().into(),
        ..v1::OutputChunk::default()
    };
    let call = Call::Create {
        request: "r1".to_owned(),
        prompt: "p1".to_owned(),
        sessions: 1,
    };
    let mut history = History::default();
    history.add("client", What::Called(1, call.clone()));
    history.add("client", What::Answered(1, Answer::Unknown("cut".to_owned())));
    history.add("client", What::Called(2, call.clone()));
    history.add("client", What::Answered(2, Answer::Done("t".to_owned())));
    history.add("client", What::Called(3, call));
    history.add("client", What::Answered(3, Answer::Done("t".to_owned())));
    history.add("watcher", What::Saw("t".to_owned(), Sight::Task(Box::new(running))));
    for event in &events {
        history.add(
            "watcher",
            What::Saw("t".to_owned(), Sight::Event(Box::new(event.clone()))),
        );
    }
    history.add("watcher", What::Saw("t".to_owned(), Sight::Output(chunk)));
    history.add(
        "watcher",
        What::Saw("t".to_owned(), Sight::Task(Box::new(task.clone()))),
    );
    let key = StreamKey {
        job: job(),
        attempt: 2,
        stream: 1,
    };
    let end = Final {
        tasks: vec![FinalTask {
            checkpoints: Vec::new(),
            task,
            events,
            output: BTreeMap::from([(key, b"hello, world".to_vec())]),
        }],
        ..Final::default()
    };
    (history, end)
}

/// Asserts that there is no violation.
pub(super) fn good((history, end): &(History, Final)) {
    assert_eq!(check(history, end), []);
}

/// Breaks the sample and asserts that this invariant is reported.
pub(super) fn broken(invariant: &str, change: impl FnOnce(&mut History, &mut Final)) {
    let (mut history, mut end) = sample();
    change(&mut history, &mut end);
    let found = check(&history, &end);
    let named: Vec<_> = found.iter().map(|violation| violation.invariant).collect();
    assert!(named.contains(&invariant), "{found:#?}");
}

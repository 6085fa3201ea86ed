//! Words for stories: tasks, agents and events with small numbers for ids.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use kage_core::access::Admittance;
use kage_core::attempt::EndReason;
use kage_core::checkpoint::Resumes;
use kage_core::contain::{Containment, Tier};
use kage_core::deadline::Slack;
use kage_core::event::{AttemptOutcome, DiffStat, Event, EventBody, ResultCommit, Verdict, VerdictKind};
use kage_core::failure::{Failure, FailureKind};
use kage_core::fallback::TaskLacks;
use kage_core::fleet::{AdapterInfo, Agent};
use kage_core::id::{AgentId, AttemptId, AttemptToken, BootId, Digest, JobId, ProjectId, SessionId, TaskId};
use kage_core::price::PriceTable;
use kage_core::recovery::Jitter;
use kage_core::task::{Assignment, Labels, Policy, RepositoryRef, TaskSpec, VerifyPolicy};
use kage_core::time::Timestamp;

use super::followed::{Changes, followed};
use crate::store::{
    AppendEvents, Appended, Claim, CreateTask, EndAttempts, Ending, QueuedJob, RecordAgent, Request, Start,
    StartAttempt, Store,
};

/// Milliseconds after the beginning of the story.
pub(super) fn at(millis: u64) -> Timestamp {
    Timestamp::from_millis(1_700_000_000_000 + millis)
}

pub(super) fn task_id(n: u128) -> TaskId {
    // Different first digits, so that a short prefix tells them apart.
    TaskId::from_random((n << 96) | n)
}

pub(super) fn attempt_id(n: u128) -> AttemptId {
    AttemptId::from_random(n)
}

pub(super) fn agent_id(n: u128) -> AgentId {
    AgentId::from_random(n)
}

pub(super) fn boot_id(n: u128) -> BootId {
    BootId::from_random(n)
}

pub(super) fn token(attempt: AttemptId) -> Digest {
    AttemptToken::from_random(attempt.as_bits()).hash()
}

pub(super) fn request(n: u128) -> Request {
    Request {
        principal: "user".to_owned(),
        id: format!("request-{n}"),
        payload: Digest::of(&n.to_be_bytes()),
    }
}

/// A task with sessions `s0`, `s1`, ...
pub(super) fn spec(sessions: usize, verify: Option<&str>) -> TaskSpec {
    let assignments = (0..sessions).map(|n| Assignment {
        name: format!("s{n}").parse().unwrap(),
        adapter: "scripted".parse().unwrap(),
        model: (n % 2 == 1).then(|| "model".to_owned()),
        context_delta: None,
        requirements: Labels::from([("os".to_owned(), "linux".to_owned())]),
        fallbacks: Vec::new(),
        timeout: None,
    });
    TaskSpec {
        project: ProjectId::default(),
        prompt: "do it".to_owned(),
        prompt_blob: None,
        repository: Some(RepositoryRef {
            name: "repo".parse().unwrap(),
            base: "b".repeat(40).parse().unwrap(),
            folder: None,
            names: None,
        }),
        context_base: None,
        assignments: assignments.collect(),
        policy: Policy {
            verify: VerifyPolicy {
                verify: verify.map(str::to_owned),
                ..VerifyPolicy::default()
            },
            requirements: Labels::from([("gpu".to_owned(), "no".to_owned())]),
            ..Policy::default()
        },
        fresh_baseline: false,
        labels: kage_core::task::Labels::new(),
        environment: kage_core::task::TaskEnvironment::default(),
    }
}

/// Task `n`, with job and session ids made from its number.
pub(super) fn create(n: u128, spec: TaskSpec, now: Timestamp) -> CreateTask {
    let sessions = (0..spec.assignments.len() as u128)
        .map(|i| (SessionId::from_random(n * 1000 + i), JobId::from_random(n * 1000 + i)))
        .collect();
    CreateTask {
        request: request(n),
        task: task_id(n),
        spec,
        origin: None,
        sessions,
        baseline: None,
        machines: Vec::new(),
        lacks: TaskLacks::default(),
        waits_for_agent: false,
        queue_full: None,
        project_full: None,
        now,
    }
}

pub(super) fn agent(n: u128, boot: u128) -> Agent {
    Agent {
        id: agent_id(n),
        name: format!("agent-{n}"),
        boot: boot_id(boot),
        labels: Labels::from([("os".to_owned(), "linux".to_owned())]),
        adapters: vec![AdapterInfo {
            name: "scripted".parse().unwrap(),
            version: "1".to_owned(),
            unavailable: None,
            resumes: Resumes::Position,
            access: None,
            slots: 0,
            hears: false,
        }],
        slots: 4,
        pid: 100,
        version: "0.1.0".to_owned(),
        draining: false,
        cordoned: false,
        machine: None,
        contained: Containment::NOTHING,
        admittance: Admittance::EARLIER,
        seen_at: at(0),
    }
}

/// Agents 1 and 2, each in start 1.
pub(super) async fn two_agents(store: &Store) {
    for n in [1, 2] {
        store.apply(RecordAgent { agent: agent(n, 1) }).await.unwrap();
    }
}

pub(super) fn start(job: &QueuedJob, attempt: u128, number: u32, agent: u128, now: Timestamp) -> StartAttempt {
    StartAttempt {
        task: job.task,
        job: job.job,
        attempt: attempt_id(attempt),
        number,
        token_hash: token(attempt_id(attempt)),
        agent: agent_id(agent),
        boot: boot_id(1),
        agent_name: format!("agent-{agent}"),
        resumes: Resumes::Position,
        contained: Tier::T0,
        lease_until: now + Duration::from_secs(30),
        slack: Slack::default(),
        now,
    }
}

/// Starts an attempt that can be started.
pub(super) async fn started(store: &Store, job: &QueuedJob, attempt: u128, number: u32, agent: u128) {
    let outcome = store
        .apply(start(job, attempt, number, agent, at(attempt as u64)))
        .await;
    assert!(matches!(outcome, Ok(Start::Started)), "{outcome:?}");
}

/// The end of what an agent's first boot had: it closed its connection.
pub(super) fn gone(agent: u128, now: Timestamp) -> EndAttempts {
    EndAttempts {
        which: Ending::Boot {
            agent: agent_id(agent),
            boot: boot_id(1),
        },
        reason: EndReason::AgentGone,
        now,
    }
}

pub(super) fn event(seq: u64, body: EventBody) -> Event {
    Event { seq, at: at(seq), body }
}

pub(super) fn activity(seq: u64) -> Event {
    event(seq, EventBody::Activity(format!("step {seq}")))
}

pub(super) fn result() -> ResultCommit {
    ResultCommit {
        commit: "c".repeat(40).parse().unwrap(),
        tree: Some(format!("{:040x}", 1002).parse().unwrap()),
        diff: DiffStat {
            files: 1,
            added: 2,
            removed: 3,
        },
        paths: vec!["a.txt".to_owned()],
        deleted: vec![],
        large: Vec::new(),
        left_out: Vec::new(),
    }
}

pub(super) fn committed(seq: u64) -> Event {
    let body = EventBody::ResultCommitted {
        result: result(),
        pack: Digest::of(b"pack"),
    };
    event(seq, body)
}

pub(super) fn claimed(seq: u64) -> Event {
    event(seq, EventBody::Finished(AttemptOutcome::Claimed))
}

pub(super) fn crashed(seq: u64) -> Event {
    let failure = Failure::new(FailureKind::AdapterCrash, "it crashed");
    event(seq, EventBody::Finished(AttemptOutcome::Failed(failure)))
}

/// A plan's limit is used up for a hundred seconds.
pub(super) fn exhausted(seq: u64) -> Event {
    let mut failure = Failure::new(FailureKind::QuotaExhausted, "the limit is used up");
    failure.retry_after = Some(Duration::from_secs(100));
    event(seq, EventBody::Finished(AttemptOutcome::Failed(failure)))
}

pub(super) fn verdict(seq: u64, kind: VerdictKind) -> Event {
    let verdict = Verdict {
        kind,
        exit_code: Some(1),
        message: "it ran".to_owned(),
        duration: Duration::from_millis(5),
        agent: "agent-2".to_owned(),
        environment: "linux x86_64".to_owned(),
        contained: kage_core::contain::Tier::T0,
        machine: None,
        restored: Vec::new(),
        tests: None,
        without_change: None,
        output: String::new(),
    };
    event(seq, EventBody::Finished(AttemptOutcome::Verdict(verdict)))
}

static PRICES: LazyLock<Arc<PriceTable>> = LazyLock::new(|| Arc::new(PriceTable::builtin().clone()));

pub(super) fn append(attempt: u128, agent: u128, events: Vec<Event>) -> AppendEvents {
    AppendEvents {
        claim: Claim {
            attempt: attempt_id(attempt),
            token_hash: token(attempt_id(attempt)),
        },
        agent: agent_id(agent),
        events,
        next_job: JobId::from_random((1 << 100) + attempt),
        jitter: Jitter::from_random(attempt),
        prices: Arc::clone(&PRICES),
        rules: Vec::new(),
        now: at(10_000 + attempt as u64),
    }
}

/// Appends events that are taken, and says what followed.
pub(super) async fn appended(store: &Store, attempt: u128, agent: u128, events: Vec<Event>) -> Changes {
    let last = events.last().map(|event| event.seq);
    let (outcome, changes) = followed(store, append(attempt, agent, events)).await.unwrap();
    match outcome {
        Appended::Acked { seq } => assert_eq!(Some(seq), last),
        other => panic!("{other:?}"),
    }
    changes
}

/// Appends events that are taken.
pub(super) async fn told(store: &Store, attempt: u128, agent: u128, events: Vec<Event>) {
    drop(appended(store, attempt, agent, events).await);
}

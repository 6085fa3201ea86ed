//! The story in every file: every kind of row, event and end. An earlier program wrote the existing
//! files, so the story may only change with a new form.

use std::path::Path;
use std::time::Duration;

use kage_core::access::{Capabilities, Role};
use kage_core::budget::{BudgetPeriod, BudgetRule, BudgetScope, Limit};
use kage_core::checkpoint::{CheckpointReason, TakenCheckpoint, TranscriptSegment};
use kage_core::event::{ChangeKind, EventBody, FileChange, OutputStream, Phase, VerdictKind};
use kage_core::failure::{Failure, FailureKind};
use kage_core::fallback::Fallback;
use kage_core::id::{Digest, JobId, Oid, ProjectId, TokenId};
use kage_core::task::{Labels, TaskOrigin};
use kage_core::usage::{PicoUsd, Unreported, Usage};

use crate::store::conformance::fixture::{
    activity, agent_id, appended, at, claimed, committed, crashed, create, event, exhausted, gone, request, spec,
    started, task_id, told, two_agents, verdict,
};
use crate::store::conformance::followed::Followed as _;
use crate::store::conformance::stories::{reserve, taken};
use crate::store::{
    CancelTask, CreateJoinToken, CreatePersonToken, EnrolAgent, PutContext, RecordContextSent, ReserveCall, Reserved,
    RestoreSession, SetCordoned, Store,
};

/// An event of each kind after which an attempt continues, and of each part with kinds of its own.
fn bodies() -> Vec<EventBody> {
    let mut failure = Failure::new(FailureKind::Overloaded, "busy");
    failure.retry_after = Some(Duration::from_secs(3));
    let change = |kind| FileChange {
        path: "src/lib.rs".to_owned(),
        kind,
        added: 3,
        removed: 4,
    };
    let base = spec(1, None).repository.unwrap().base;
    let first = taken(1, &base, CheckpointReason::Baseline);
    vec![
        EventBody::PhaseChanged(Phase::Preparing),
        EventBody::Activity("reads a file".to_owned()),
        EventBody::UsageRecorded {
            model: "m".to_owned(),
            usage: Usage {
                input: 1,
                cache_write_5m: 2,
                cache_write_1h: 3,
                cache_read: 4,
                output: 5,
                reasoning: 6,
                unreported: Unreported::ALL,
            },
            reported: Some(PicoUsd(7)),
            metered: true,
            tools: None,
            call: None,
        },
        EventBody::CallRetried {
            failure,
            delay: Duration::from_millis(250),
            attempt: 2,
        },
        EventBody::FilesChanged(vec![change(ChangeKind::Added), change(ChangeKind::Reverted)]),
        EventBody::OutputTruncated {
            stream: OutputStream::Transcript,
            at: 9,
        },
        EventBody::Warning("careful".to_owned()),
        EventBody::CheckpointTaken(first.clone()),
        EventBody::CheckpointTaken(TakenCheckpoint {
            transcript: Some(TranscriptSegment {
                blob: Digest::of(b"said"),
                from: 0,
                to: 4,
            }),
            ..taken(2, &first.commit, CheckpointReason::FilesChanged)
        }),
    ]
}

/// Reports numbered events after so many earlier ones.
async fn tells(store: &Store, attempt: u128, agent: u128, after: u64, bodies: Vec<EventBody>) {
    let events = (after + 1..).zip(bodies).map(|(seq, body)| event(seq, body));
    told(store, attempt, agent, events.collect()).await;
}

/// Every kind of row, with every part that may be missing once there and once not.
pub(super) async fn play(store: &Store) {
    two_agents(store).await;
    admits(store).await;
    store
        .apply(PutContext {
            request: request(50),
            project: ProjectId::default(),
            digest: Digest::of(b"context"),
            size: 7,
            now: at(1),
        })
        .await
        .unwrap();
    let sent = RecordContextSent {
        project: ProjectId::default(),
        digest: Digest::of(b"context"),
        agent: agent_id(1),
        bytes: 7,
    };
    store.apply(sent).await.unwrap();
    works(store).await;
    ends(store).await;
    goes_back(store).await;
}

async fn admits(store: &Store) {
    let token = |n| CreateJoinToken {
        request: request(60 + n),
        id: TokenId::from_random(n),
        secret: Digest::of(b"secret"),
        project: ProjectId::default(),
        labels: Labels::from([("gpu".to_owned(), "true".to_owned())]),
        can: Capabilities::ALL,
        uses: 1,
        expires_at: at(600_000),
        now: at(1),
    };
    store.apply(token(1)).await.unwrap();
    store.apply(token(2)).await.unwrap();
    let joins = EnrolAgent {
        token: TokenId::from_random(1),
        secret: Digest::of(b"secret"),
        project: None,
        key: Digest::of(b"key"),
        agent: agent_id(3),
        now: at(2),
    };
    drop(store.apply(joins).await.unwrap());
    let person = CreatePersonToken {
        request: request(63),
        id: TokenId::from_random(3),
        hash: Digest::of(b"person"),
        role: Role::Submit,
        name: "somebody".to_owned(),
        project: Some(ProjectId::default()),
        now: at(3),
    };
    store.apply(person).await.unwrap();
    let cordon = SetCordoned {
        request: request(64),
        agent: agent_id(2),
        cordoned: true,
        now: at(4),
    };
    store.apply(cordon).await.unwrap();
}

/// A running task, whose base is checked.
async fn works(store: &Store) {
    let mut spec = spec(3, Some("true"));
    spec.context_base = Some(Digest::of(b"context"));
    spec.assignments[0].context_delta = Some("{}".to_owned());
    spec.assignments[2].fallbacks = vec![Fallback {
        adapter: "second".parse().unwrap(),
        model: Some("small".to_owned()),
    }];
    let mut command = create(1, spec, at(5));
    command.origin = Some(TaskOrigin::of(
        "machine",
        Path::new("/home"),
        Path::new("/linked"),
        Some("d".repeat(40).parse().unwrap()),
    ));
    command.baseline = Some(JobId::from_random(500));
    let jobs = store.followed(command).await.queued;
    started(store, &jobs[0], 1, 1, 1).await;
    tells(store, 1, 1, 0, bodies()).await;
    let changes = appended(store, 1, 1, vec![committed(10), claimed(11)]).await;
    started(store, &changes.queued[0], 2, 1, 2).await;
    told(store, 2, 2, vec![activity(1), verdict(2, VerdictKind::Passed)]).await;
    started(store, &jobs[3], 3, 1, 2).await;
    told(store, 3, 2, vec![verdict(1, VerdictKind::Failed)]).await;
    started(store, &jobs[1], 4, 1, 1).await;
    tells(store, 4, 1, 0, bodies()).await;
    store.apply(gone(1, at(20_000))).await.unwrap();
    let again = store.queued_jobs().await.unwrap();
    let again = again.into_iter().find(|job| job.job == jobs[1].job).unwrap();
    started(store, &again, 5, 2, 2).await;
    let resumed = EventBody::Resumed {
        commit: taken(2, &spec_base(), CheckpointReason::FilesChanged).commit,
        position: 4,
        repeated_calls: 0,
    };
    tells(store, 5, 2, 0, vec![resumed]).await;
    // Something is held back for a call of a project with a budget.
    let limit = Limit {
        money: Some(PicoUsd(1_000_000_000_000)),
        tokens: None,
    };
    let scope = BudgetScope::Project(BudgetPeriod::Month);
    let asked = ReserveCall {
        rules: vec![BudgetRule { scope, limit }],
        ..reserve(5, 500, 1_000)
    };
    let answer = store.apply(asked).await.unwrap();
    assert!(matches!(answer, Reserved::Granted { .. }), "{answer:?}");
    started(store, &jobs[2], 6, 1, 1).await;
    drop(appended(store, 6, 1, vec![exhausted(1)]).await);
}

fn spec_base() -> Oid {
    spec(1, None).repository.unwrap().base
}

/// Tasks without success: one cancelled, one failed, one with a rejected result.
async fn ends(store: &Store) {
    store.apply(create(2, spec(2, None), at(30_000))).await.unwrap();
    let cancel = CancelTask {
        request: request(70),
        task: task_id(2),
        now: at(30_001),
    };
    store.apply(cancel).await.unwrap();
    let mut bare = spec(1, None);
    (bare.repository, bare.policy.max_attempts) = (None, 1);
    let created = store.followed(create(3, bare, at(30_002))).await;
    started(store, &created.queued[0], 30, 1, 1).await;
    told(store, 30, 1, vec![crashed(1)]).await;
    let mut once = spec(1, Some("true"));
    once.policy.max_reworks = Some(0);
    let created = store.followed(create(4, once, at(30_003))).await;
    started(store, &created.queued[0], 40, 1, 1).await;
    let changes = appended(store, 40, 1, vec![committed(1), claimed(2)]).await;
    started(store, &changes.queued[0], 41, 1, 2).await;
    told(store, 41, 2, vec![verdict(1, VerdictKind::Failed)]).await;
    let created = store.followed(create(5, spec(1, Some("true")), at(30_004))).await;
    started(store, &created.queued[0], 50, 1, 1).await;
    drop(appended(store, 50, 1, vec![committed(1), claimed(2)]).await);
}

/// A session that was sent back, and a verified one that continues.
async fn goes_back(store: &Store) {
    let mut again = spec(2, Some("true"));
    again.policy.max_reworks = Some(2);
    let created = store.followed(create(6, again, at(40_000))).await;
    started(store, &created.queued[0], 60, 1, 1).await;
    tells(store, 60, 1, 0, bodies()).await;
    let restore = RestoreSession {
        request: request(80),
        task: task_id(6),
        session: store.task(task_id(6)).await.unwrap().unwrap().sessions[0].id,
        checkpoint: 1,
        complete: true,
        next_job: JobId::from_random(600),
        now: at(40_001),
    };
    store.apply(restore).await.unwrap();
    started(store, &created.queued[1], 61, 1, 2).await;
    tells(store, 61, 2, 0, bodies()).await;
    let changes = appended(store, 61, 2, vec![committed(10), claimed(11)]).await;
    started(store, &changes.queued[0], 62, 1, 1).await;
    told(store, 62, 1, vec![verdict(1, VerdictKind::Failed)]).await;
}

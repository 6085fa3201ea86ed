//! Sessions that another adapter takes over, and checkpoints that cannot be resumed.

use kage_core::checkpoint::{CheckpointReason, TakenCheckpoint, TranscriptSegment};
use kage_core::event::{AttemptOutcome, Event, EventBody, InvalidBatch};
use kage_core::failure::{Failure, FailureKind};
use kage_core::fallback::{AdapterLacks, Fallback};
use kage_core::id::{Digest, Oid};
use kage_core::recovery::Action;
use kage_core::session::SessionStateKind;
use kage_core::usage::{PicoUsd, Usage};

use super::checkpoints::{base, resume, taken};
use super::{end, state, view};
use crate::store::conformance::fixture::{
    append, appended, at, claimed, create, event, spec, started, task_id, told, two_agents,
};
use crate::store::conformance::followed::Followed as _;
use crate::store::{Appended, QueuedJob, Store};

fn checkpoint(seq: u64, n: u32, parent: &Oid, said: Option<(u64, u64)>) -> Event {
    let transcript = said.map(|(from, to)| TranscriptSegment {
        blob: Digest::of(b"said"),
        from,
        to,
    });
    let taken = TakenCheckpoint {
        transcript,
        ..taken(n, parent, CheckpointReason::FilesChanged)
    };
    event(seq, EventBody::CheckpointTaken(taken))
}

fn commit(n: u32) -> Oid {
    taken(n, &base(), CheckpointReason::Baseline).commit
}

fn used(seq: u64, model: &str, output: u64) -> Event {
    let body = EventBody::UsageRecorded {
        model: model.to_owned(),
        usage: Usage {
            output,
            ..Usage::default()
        },
        reported: Some(PicoUsd(1)),
        metered: true,
        tools: None,
        call: None,
    };
    event(seq, body)
}

fn refused(seq: u64) -> Event {
    let failure = Failure::new(FailureKind::Auth, "the key is refused");
    event(seq, EventBody::Finished(AttemptOutcome::Failed(failure)))
}

/// A task whose session may be taken over. No agent has the first `absent` adapters.
async fn begin(store: &Store, absent: usize) -> QueuedJob {
    two_agents(store).await;
    let mut spec = spec(1, None);
    spec.assignments[0].fallbacks = vec![Fallback {
        adapter: "second".parse().unwrap(),
        model: Some("small".to_owned()),
    }];
    let mut command = create(1, spec, at(1));
    let lacks = (0..2).map(|n| (n < absent).then(|| "no agent has it".to_owned()));
    command.lacks.sessions = vec![AdapterLacks(lacks.collect())];
    store.followed(command).await.queued.remove(0)
}

pub(in crate::store::conformance) async fn another_adapter_takes_over_the_files(store: Store) {
    let job = begin(&store, 0).await;
    assert_eq!(job.adapter.as_str(), "scripted");
    started(&store, &job, 1, 1, 1).await;
    let events = vec![used(1, "large", 5), checkpoint(2, 1, &base(), Some((0, 3))), refused(3)];
    let again = appended(&store, 1, 1, events).await.queued.remove(0);
    assert_eq!((again.job, again.adapter.as_str()), (job.job, "second"));
    assert_eq!(store.queued_jobs().await.unwrap(), std::slice::from_ref(&again));
    let session = view(&store).await.sessions.remove(0);
    assert_eq!(
        (session.adapter.as_str(), session.model.as_deref()),
        ("second", Some("small"))
    );
    let decision = &session.incidents[0].decision;
    assert!(matches!(decision.action, Action::SwitchAdapter { .. }), "{decision:?}");
    // The files, and nothing of the other adapter's conversation.
    let from = resume(&store, &again).await;
    assert_eq!((from.number, from.packs.len(), from.position), (1, 1, 0));

    started(&store, &again, 2, 2, 2).await;
    let quiet = checkpoint(1, 2, &commit(1), None);
    told(&store, 2, 2, vec![quiet, used(2, "small", 7)]).await;
    let all = store.checkpoints(task_id(1), session.id).await.unwrap();
    let by: Vec<_> = all.iter().map(|c| (c.adapter.as_str(), c.position)).collect();
    assert_eq!(by, [("scripted", 3), ("second", 0)]);
    told(&store, 2, 2, vec![claimed(3)]).await;
    let session = view(&store).await.sessions.remove(0);
    let used: Vec<_> = session
        .usage
        .iter()
        .map(|used| (used.model.as_str(), used.usage.output))
        .collect();
    assert_eq!(used, [("large", 5), ("small", 7)], "each pays for its own");
    end(&store).await;
}

pub(in crate::store::conformance) async fn an_adapter_that_nobody_has_is_passed_over(store: Store) {
    let job = begin(&store, 1).await;
    assert_eq!(job.adapter.as_str(), "second");
    assert_eq!(view(&store).await.sessions[0].model.as_deref(), Some("small"));
    started(&store, &job, 1, 1, 1).await;
    told(&store, 1, 1, vec![refused(1)]).await;
    assert_eq!(state(&store, 0).await, SessionStateKind::Failed, "there is nobody left");
    end(&store).await;
}

pub(in crate::store::conformance) async fn a_checkpoint_follows_one_that_is_there(store: Store) {
    let job = begin(&store, 0).await;
    started(&store, &job, 1, 1, 1).await;
    // A batch may hold both.
    let events = vec![checkpoint(1, 1, &base(), None), checkpoint(2, 2, &commit(1), None)];
    told(&store, 1, 1, events).await;
    let stray = vec![used(3, "m", 1), checkpoint(4, 4, &commit(3), None)];
    let refused = store.apply(append(1, 1, stray)).await.unwrap();
    assert_eq!(refused, Appended::Invalid(InvalidBatch::UnknownParent(4)));
    let session = view(&store).await.sessions.remove(0);
    assert_eq!(
        (session.checkpoints.taken, session.usage.len()),
        (2, 0),
        "nothing of it is kept"
    );
    told(&store, 1, 1, vec![checkpoint(3, 3, &commit(1), None)]).await;
    end(&store).await;
}

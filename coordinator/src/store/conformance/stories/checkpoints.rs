//! Checkpoints: stored with the event that reports them, resumed, and restored.

use kage_core::attempt::{AttemptState, EndReason};
use kage_core::checkpoint::{CheckpointReason, Resume, Safety, TakenCheckpoint, TranscriptSegment, WorktreeChoice};
use kage_core::event::{Event, EventBody, InvalidBatch, VerdictKind};
use kage_core::id::{Digest, JobId, Oid};
use kage_core::job::JobKind;
use kage_core::recovery::Action;
use kage_core::session::{Instruction, Session, SessionState, SessionStateKind};
use kage_core::task::TaskState;
use kage_core::usage::Usage;

use super::{CHECKED, begin, end, state, verify_job, view};
use crate::store::conformance::fixture::{
    agent_id, append, appended, at, attempt_id, claimed, committed, crashed, create, event, gone, request, result,
    spec, started, task_id, told, two_agents, verdict,
};
use crate::store::conformance::followed::{Changes, Followed as _, StopAttempt};
use crate::store::conformance::invariants::{Seen, check};
use crate::store::{
    Appended, PrepareRestore, QueuedJob, RequestCheckpoint, RestorePrepared, RestoreSession, Store, StoreError,
};

fn oid(n: u32) -> Oid {
    format!("{n:040x}").parse().unwrap()
}

pub(super) fn base() -> Oid {
    spec(1, None).repository.unwrap().base
}

/// Checkpoint `n` after `parent`, with the same number as tree.
pub(in crate::store::conformance) fn taken(n: u32, parent: &Oid, reason: CheckpointReason) -> TakenCheckpoint {
    TakenCheckpoint {
        commit: oid(n),
        parent: parent.clone(),
        tree: oid(1000 + n),
        reason,
        note: "$(note)\n".to_owned(),
        files_changed: u64::from(n),
        pack: Some(Digest::of(&n.to_be_bytes())),
        transcript: None,
        calls: n.is_multiple_of(2).then_some(n),
        told: 0,
    }
}

fn files_changed(n: u32, parent: &Oid, said: Option<(u64, u64)>) -> EventBody {
    EventBody::CheckpointTaken(TakenCheckpoint {
        transcript: said.map(|(from, to)| TranscriptSegment {
            blob: Digest::of(b"said"),
            from,
            to,
        }),
        ..taken(n, parent, CheckpointReason::FilesChanged)
    })
}

fn called() -> EventBody {
    EventBody::UsageRecorded {
        model: "m".to_owned(),
        usage: Usage::default(),
        reported: None,
        metered: true,
        tools: None,
        call: None,
    }
}

fn numbered(first: u64, bodies: Vec<EventBody>) -> Vec<Event> {
    (first..).zip(bodies).map(|(seq, body)| event(seq, body)).collect()
}

async fn session(store: &Store, n: usize) -> Session {
    view(store).await.sessions[n].clone()
}

async fn numbers(store: &Store, session: &Session) -> Vec<u32> {
    let all = store.checkpoints(task_id(1), session.id).await.unwrap();
    all.iter().map(|checkpoint| checkpoint.number).collect()
}

/// The checkpoint in an offer of the job.
pub(super) async fn resume(store: &Store, job: &QueuedJob) -> Resume {
    let work = store.work(job.task, job.job).await.unwrap().unwrap();
    let session = &work.session;
    let head = session.checkpoints.head.as_ref().unwrap();
    Resume::of(
        head,
        &work.checkpoints,
        &base(),
        &session.adapter,
        session.calls.answered,
    )
    .unwrap()
}

pub(in crate::store::conformance) async fn a_lost_session_goes_on_from_its_last_checkpoint(store: Store) {
    let jobs = begin(&store, 1, None).await;
    started(&store, &jobs[0], 1, 1, 1).await;
    let bodies = vec![
        called(),
        files_changed(1, &base(), Some((0, 3))),
        called(),
        files_changed(2, &oid(1), Some((3, 5))),
        called(),
    ];
    told(&store, 1, 1, numbered(1, bodies.clone())).await;
    // Sent again, as after a cut connection: nothing is stored twice.
    told(&store, 1, 1, numbered(1, bodies)).await;
    let before = session(&store, 0).await;
    assert_eq!(numbers(&store, &before).await, [1, 2]);
    let all = store.checkpoints(task_id(1), before.id).await.unwrap();
    let second = &all[1];
    assert_eq!((second.attempt, second.agent.as_str()), (1, "agent-1"));
    assert_eq!((second.position, second.calls, second.safety), (5, 2, Safety::Unknown));
    assert_eq!((second.taken_at, second.stored_at), (at(4), at(10_001)));
    assert_eq!(second.taken.note, "$(note)\n");

    let changes = store.followed(gone(1, at(20_000))).await;
    // What the lost one still sends counts for nothing.
    let late = append(1, 1, numbered(6, vec![files_changed(3, &oid(2), None)]));
    assert!(matches!(store.apply(late).await.unwrap(), Appended::Stale(_)));
    assert_eq!(numbers(&store, &before).await, [1, 2]);

    let again = &changes.queued[0];
    let resume = resume(&store, again).await;
    assert_eq!((resume.number, resume.position, resume.repeated_calls), (2, 5, 1));
    assert_eq!(resume.packs.len(), 2);
    started(&store, again, 2, 2, 2).await;
    let resumed = EventBody::Resumed {
        commit: oid(2),
        position: 5,
        repeated_calls: 1,
    };
    told(
        &store,
        2,
        2,
        numbered(1, vec![resumed, files_changed(4, &oid(2), None)]),
    )
    .await;
    let after = session(&store, 0).await;
    assert_eq!(after.checkpoints.resumptions.len(), 1);
    assert_eq!(after.checkpoints.resumptions[0].number, 2);
    let all = store.checkpoints(task_id(1), after.id).await.unwrap();
    assert_eq!((all[2].number, all[2].attempt, all[2].position), (3, 2, 5));
    assert_eq!(all[2].calls, 3 + 4, "those of the attempt before, and its own");
    end(&store).await;
}

pub(in crate::store::conformance) async fn a_crash_amid_edits_goes_back_to_between_two_steps(store: Store) {
    let jobs = begin(&store, 1, None).await;
    started(&store, &jobs[0], 1, 1, 1).await;
    let half_done = EventBody::CheckpointTaken(taken(2, &oid(1), CheckpointReason::BeforeRetry));
    let mut events = numbered(1, vec![files_changed(1, &base(), None), half_done]);
    events.push(crashed(3));
    let changes = appended(&store, 1, 1, events).await;
    let session = session(&store, 0).await;
    let decision = &session.incidents.last().unwrap().decision;
    assert!(matches!(decision.action, Action::RollbackLast { .. }), "{decision:?}");
    assert_eq!(resume(&store, &changes.queued[0]).await.number, 1);
    end(&store).await;
}

pub(in crate::store::conformance) async fn rejected_work_goes_on_from_its_own_checkpoint(store: Store) {
    two_agents(&store).await;
    let mut spec = spec(2, CHECKED);
    spec.policy.max_reworks = Some(1);
    let jobs = store.followed(create(1, spec, at(1))).await.queued;
    let commits = |tree: u32| {
        let mut result = result();
        result.tree = Some(oid(tree));
        EventBody::ResultCommitted {
            result,
            pack: Digest::of(b"pack"),
        }
    };
    // The second session is at the state whose result will pass in the first one.
    started(&store, &jobs[1], 1, 1, 1).await;
    let bodies = vec![
        files_changed(1, &base(), None),
        files_changed(2, &oid(1), None),
        commits(1002),
    ];
    let mut events = numbered(1, bodies);
    events.push(claimed(4));
    let second_check = appended(&store, 1, 1, events).await.queued.remove(0);
    started(&store, &jobs[0], 2, 1, 1).await;
    let mut events = numbered(1, vec![commits(1001)]);
    events.push(claimed(2));
    let first_check = appended(&store, 2, 1, events).await.queued.remove(0);
    started(&store, &first_check, 3, 1, 2).await;
    told(&store, 3, 2, vec![verdict(1, VerdictKind::Passed)]).await;
    let waiting = session(&store, 1).await;
    let all = store.checkpoints(task_id(1), waiting.id).await.unwrap();
    assert_eq!([all[0].safety, all[1].safety], [Safety::Safe, Safety::Unknown]);

    started(&store, &second_check, 4, 1, 2).await;
    let changes = appended(&store, 4, 2, vec![verdict(1, VerdictKind::Failed)]).await;
    let again = &changes.queued[0];
    assert_eq!(again.kind, JobKind::Session);
    assert_eq!(state(&store, 1).await, SessionStateKind::Queued);
    assert_eq!(
        resume(&store, again).await.number,
        2,
        "not the one that verify passed on"
    );
    let all = store.checkpoints(task_id(1), waiting.id).await.unwrap();
    assert_eq!([all[0].safety, all[1].safety], [Safety::Safe, Safety::Unsafe]);
    let Instruction { text, known, .. } = session(&store, 1).await.instruction(&all, "make test").unwrap();
    assert!(text.contains("exit code 1") && text.contains("make test"), "{text}");
    assert!(!known);

    // Attempts are counted on; the same files again are known to be wrong at once.
    started(&store, again, 5, 2, 1).await;
    let mut repeat = taken(9, &oid(2), CheckpointReason::FilesChanged);
    repeat.tree = oid(1002);
    let mut events = numbered(1, vec![EventBody::CheckpointTaken(repeat), commits(1002)]);
    events.push(claimed(3));
    let check = appended(&store, 5, 1, events).await.queued.remove(0);
    let all = store.checkpoints(task_id(1), waiting.id).await.unwrap();
    assert_eq!((all[2].attempt, all[2].safety), (2, Safety::Unsafe));
    started(&store, &check, 6, 1, 2).await;
    told(&store, 6, 2, vec![verdict(1, VerdictKind::Failed)]).await;
    assert_eq!(
        state(&store, 1).await,
        SessionStateKind::Rejected,
        "once is what it may"
    );
    end(&store).await;
}

/// Nobody said how often: it follows from what the agent says of its adapter.
pub(in crate::store::conformance) async fn a_rework_that_ends_badly_is_rejected_still(store: Store) {
    two_agents(&store).await;
    let jobs = store.followed(create(1, spec(1, CHECKED), at(1))).await.queued;
    started(&store, &jobs[0], 1, 1, 1).await;
    let mut events = numbered(1, vec![files_changed(1, &base(), Some((0, 3)))]);
    events.extend([committed(2), claimed(3)]);
    let check = appended(&store, 1, 1, events).await.queued.remove(0);
    started(&store, &check, 2, 1, 2).await;
    let changes = appended(&store, 2, 2, vec![verdict(1, VerdictKind::Failed)]).await;
    assert_eq!(state(&store, 0).await, SessionStateKind::Queued);
    assert_eq!(view(&store).await.task.state, TaskState::Running);

    // An attempt is lost; the next one knows as much.
    let mut again = changes.queued[0].clone();
    started(&store, &again, 3, 2, 1).await;
    again = store.followed(gone(1, at(20_000))).await.queued.remove(0);
    let waiting = session(&store, 0).await;
    let all = store.checkpoints(task_id(1), waiting.id).await.unwrap();
    assert!(!waiting.instruction(&all, "true").unwrap().known);
    // One that said something tells it on, but not to a conversation that has it.
    started(&store, &again, 4, 3, 2).await;
    let more = numbered(1, vec![files_changed(2, &oid(1), Some((3, 5)))]);
    told(&store, 4, 2, more).await;
    let working = session(&store, 0).await;
    let all = store.checkpoints(task_id(1), working.id).await.unwrap();
    assert!(working.instruction(&all, "true").unwrap().known);
    again = appended(&store, 4, 2, vec![crashed(2)]).await.queued.remove(0);
    started(&store, &again, 5, 4, 2).await;
    told(&store, 5, 2, vec![crashed(1)]).await;
    let ended = session(&store, 0).await;
    let SessionState::Rejected { result: kept, verdict } = &ended.state else {
        panic!("{:?}", ended.state);
    };
    assert_eq!((kept, verdict.kind), (&result(), VerdictKind::Failed));
    assert_eq!(view(&store).await.task.state, TaskState::Failed);
    end(&store).await;
}

fn restore(n: u128, session: &Session, checkpoint: u32) -> RestoreSession {
    RestoreSession {
        request: request(n),
        task: task_id(1),
        session: session.id,
        checkpoint,
        complete: n.is_multiple_of(2),
        next_job: JobId::from_random((1 << 90) + n),
        now: at(30_000),
    }
}

pub(in crate::store::conformance) async fn a_session_goes_back_when_somebody_asks(store: Store) {
    let jobs = begin(&store, 1, None).await;
    started(&store, &jobs[0], 1, 1, 1).await;
    let bodies = vec![files_changed(1, &base(), None), files_changed(2, &oid(1), None)];
    told(&store, 1, 1, numbered(1, bodies)).await;
    let id = session(&store, 0).await;

    // What runs is stopped, and has no authority any more.
    let changes = store.followed(restore(60, &id, 1)).await;
    let stop = StopAttempt {
        attempt: attempt_id(1),
        agent: agent_id(1),
        keep_worktree: true,
    };
    assert_eq!(changes.stop, [stop]);
    let again = changes.queued[0].clone();
    let ended = store.attempt(attempt_id(1)).await.unwrap().unwrap().attempt.state;
    let reason = EndReason::Restored;
    assert_eq!(ended, AttemptState::Ended { reason, at: at(30_000) });
    let late = append(1, 1, vec![claimed(3)]);
    assert!(matches!(store.apply(late).await.unwrap(), Appended::Stale(_)));
    let going = resume(&store, &again).await;
    assert_eq!((going.number, going.worktree), (1, WorktreeChoice::PreviousCleaned));
    assert_eq!(again.affinity.prefer, Some(agent_id(1)), "the worktree is there");
    // The same call again does nothing.
    assert_eq!(store.followed(restore(60, &id, 1)).await, Changes::default());
    let seen = check(&store, &Seen::default()).await;

    started(&store, &again, 2, 2, 2).await;
    told(&store, 2, 2, vec![claimed(1)]).await;
    assert_eq!(view(&store).await.task.state, TaskState::Succeeded);
    check(&store, &seen).await;

    // What is over begins anew.
    let changes = store.followed(restore(61, &id, 2)).await;
    let going = resume(&store, &changes.queued[0]).await;
    assert_eq!(
        (going.number, going.worktree),
        (2, WorktreeChoice::New),
        "nothing was left"
    );
    let now = view(&store).await;
    assert_eq!((now.task.state, now.task.ended_at), (TaskState::Running, None));
    assert_eq!(now.sessions[0].state.kind(), SessionStateKind::Queued);
    // And what only waits is replaced.
    let waiting = changes.queued[0].job;
    let changes = store.followed(restore(62, &id, 1)).await;
    assert_eq!(changes.withdrawn, [waiting]);
    assert_eq!(store.queued_jobs().await.unwrap().len(), 1);

    let missing = store.apply(restore(63, &id, 9)).await.unwrap_err();
    assert!(
        matches!(missing, StoreError::NotFound { what: "checkpoint", .. }),
        "{missing}"
    );
    end(&store).await;
}

pub(in crate::store::conformance) async fn a_checkpoint_is_asked_for_once_per_request(store: Store) {
    let jobs = begin(&store, 1, None).await;
    started(&store, &jobs[0], 1, 1, 1).await;
    let id = session(&store, 0).await.id;
    let ask = |n| RequestCheckpoint {
        request: request(n),
        task: task_id(1),
        session: id,
        now: at(5),
    };
    assert_eq!(store.apply(ask(70)).await.unwrap(), 0);
    told(&store, 1, 1, numbered(1, vec![files_changed(1, &base(), None)])).await;
    assert_eq!(store.apply(ask(70)).await.unwrap(), 0, "the answer to it is 1, still");
    assert_eq!(store.apply(ask(71)).await.unwrap(), 1);

    // The same before a restore, until that is done.
    let prepare = |n| PrepareRestore {
        request: request(n),
        task: task_id(1),
        session: id,
        now: at(6),
    };
    let saves = RestorePrepared::Saves { after: 1 };
    assert_eq!(store.apply(prepare(72)).await.unwrap(), saves);
    told(&store, 1, 1, numbered(2, vec![files_changed(2, &oid(1), None)])).await;
    assert_eq!(store.apply(prepare(72)).await.unwrap(), saves);
    let running = session(&store, 0).await;
    let changes = store.followed(restore(72, &running, 1)).await;
    assert_eq!(changes.queued.len(), 1);
    assert_eq!(store.apply(prepare(72)).await.unwrap(), RestorePrepared::Done);
    end(&store).await;
}

pub(in crate::store::conformance) async fn only_work_on_a_session_has_checkpoints_and_results(store: Store) {
    let verify = verify_job(&store).await;
    started(&store, &verify, 2, 1, 2).await;
    for events in [numbered(1, vec![files_changed(1, &base(), None)]), vec![committed(1)]] {
        assert_eq!(
            store.apply(append(2, 2, events)).await.unwrap(),
            Appended::Invalid(InvalidBatch::NotOfThisJob(1))
        );
    }
    end(&store).await;
}

//! The check of a task's base: once per task, beside its sessions, and saved with their
//! checkpoints.

use kage_core::checkpoint::{CheckpointReason, Safety};
use kage_core::event::{Event, EventBody, VerdictKind};
use kage_core::id::JobId;
use kage_core::job::{JobKind, Subject};
use kage_core::session::SessionStateKind;
use kage_core::task::TaskState;

use super::checkpoints::{base, taken};
use super::{CHECKED, end, state, view};
use crate::store::conformance::fixture::{
    activity, agent_id, append, appended, at, attempt_id, claimed, committed, crashed, create, event, gone, request,
    spec, started, task_id, told, two_agents, verdict,
};
use crate::store::conformance::followed::{Followed as _, StopAttempt};
use crate::store::{Appended, CancelTask, QueuedJob, Store};

const BASELINE: u128 = 500;

/// A task with a check of its base, and how often a session may be reworked: its sessions' jobs,
/// and that one.
async fn begin(store: &Store, sessions: usize, max_reworks: u32) -> (Vec<QueuedJob>, QueuedJob) {
    two_agents(store).await;
    let mut spec = spec(sessions, CHECKED);
    spec.policy.max_reworks = Some(max_reworks);
    let mut command = create(1, spec, at(1));
    command.baseline = Some(JobId::from_random(BASELINE));
    let mut jobs = store.followed(command).await.queued;
    let baseline = jobs.pop().unwrap();
    (jobs, baseline)
}

/// The first checkpoint of a session.
fn first(seq: u64) -> Event {
    event(
        seq,
        EventBody::CheckpointTaken(taken(1, &base(), CheckpointReason::Baseline)),
    )
}

async fn safety(store: &Store, session: usize) -> Vec<Safety> {
    let id = view(store).await.sessions[session].id;
    let all = store.checkpoints(task_id(1), id).await.unwrap();
    all.iter().map(|checkpoint| checkpoint.safety).collect()
}

async fn found(store: &Store) -> Option<VerdictKind> {
    view(store).await.task.baseline.map(|verdict| verdict.kind)
}

pub(in crate::store::conformance) async fn the_base_is_checked_beside_the_sessions(store: Store) {
    let (jobs, baseline) = begin(&store, 2, 1).await;
    assert_eq!(baseline.kind, JobKind::Verify { commit: base() });
    assert_eq!(baseline.subject, Subject::Base);
    assert_eq!(store.queued_jobs().await.unwrap().len(), 3);
    // One session was faster than the check, the other one is not.
    started(&store, &jobs[0], 1, 1, 1).await;
    let after_base = taken(
        2,
        &taken(1, &base(), CheckpointReason::Baseline).commit,
        CheckpointReason::FilesChanged,
    );
    let own = event(2, EventBody::CheckpointTaken(after_base));
    told(&store, 1, 1, vec![first(1), own]).await;
    let before = view(&store).await.sessions;

    started(&store, &baseline, 2, 1, 2).await;
    told(&store, 2, 2, vec![activity(1), verdict(2, VerdictKind::Passed)]).await;
    let after = view(&store).await;
    assert_eq!(after.sessions, before, "it is none of their business");
    assert_eq!(after.task.state, TaskState::Running);
    assert_eq!(found(&store).await, Some(VerdictKind::Passed));
    assert_eq!(safety(&store, 0).await, [Safety::Safe, Safety::Unknown]);

    started(&store, &jobs[1], 3, 1, 2).await;
    told(&store, 3, 2, vec![first(1)]).await;
    assert_eq!(safety(&store, 1).await, [Safety::Safe]);

    // A session whose result failed verify continues from where it stopped, although the base
    // passed.
    let verify = appended(&store, 1, 1, vec![committed(3), claimed(4)])
        .await
        .queued
        .remove(0);
    started(&store, &verify, 4, 1, 2).await;
    let again = appended(&store, 4, 2, vec![verdict(1, VerdictKind::Failed)])
        .await
        .queued;
    assert_eq!(again[0].kind, JobKind::Session);
    assert_eq!(
        view(&store).await.sessions[0].checkpoints.head.as_ref().unwrap().number,
        2
    );
    let kinds: Vec<_> = store.events(task_id(1), 0, 100).await.unwrap();
    let kinds: Vec<_> = kinds.iter().map(|event| (event.job.as_str(), event.number)).collect();
    assert!(kinds.contains(&("baseline", 1)), "{kinds:?}");
    end(&store).await;
}

pub(in crate::store::conformance) async fn a_base_that_fails_is_known_also_after_the_end(store: Store) {
    let (jobs, baseline) = begin(&store, 1, 0).await;
    started(&store, &jobs[0], 1, 1, 1).await;
    let events = vec![first(1), committed(2), claimed(3)];
    let verify = appended(&store, 1, 1, events).await.queued.remove(0);
    started(&store, &verify, 2, 1, 2).await;
    told(&store, 2, 2, vec![verdict(1, VerdictKind::Failed)]).await;
    let ended = view(&store).await.task;
    assert_eq!((ended.state, found(&store).await), (TaskState::Failed, None));

    // No agent took it before; the reason for the task's failure is still useful.
    assert_eq!(store.queued_jobs().await.unwrap(), std::slice::from_ref(&baseline));
    started(&store, &baseline, 3, 1, 2).await;
    told(&store, 3, 2, vec![verdict(1, VerdictKind::Failed)]).await;
    assert_eq!(found(&store).await, Some(VerdictKind::Failed));
    assert_eq!(safety(&store, 0).await, [Safety::Unsafe]);
    let after = view(&store).await.task;
    assert_eq!((after.state, after.ended_at), (ended.state, ended.ended_at));
    end(&store).await;
}

pub(in crate::store::conformance) async fn a_base_that_fails_says_nothing_about_a_result(store: Store) {
    let (jobs, baseline) = begin(&store, 2, 0).await;
    started(&store, &jobs[0], 1, 1, 1).await;
    let first_commit = taken(1, &base(), CheckpointReason::Baseline).commit;
    // Its tree is that of the result.
    let last = taken(2, &first_commit, CheckpointReason::FilesChanged);
    let events = vec![
        first(1),
        event(2, EventBody::CheckpointTaken(last)),
        committed(3),
        claimed(4),
    ];
    let verify = appended(&store, 1, 1, events).await.queued.remove(0);
    started(&store, &verify, 2, 1, 2).await;
    told(&store, 2, 2, vec![verdict(1, VerdictKind::Passed)]).await;
    assert_eq!(safety(&store, 0).await, [Safety::Unknown, Safety::Safe]);
    started(&store, &baseline, 3, 1, 2).await;
    told(&store, 3, 2, vec![verdict(1, VerdictKind::Failed)]).await;
    assert_eq!(safety(&store, 0).await, [Safety::Unsafe, Safety::Safe]);
    assert_eq!(state(&store, 0).await, SessionStateKind::Verified);
    end(&store).await;
}

pub(in crate::store::conformance) async fn a_check_of_the_base_is_repeated_within_limits(store: Store) {
    let (_, baseline) = begin(&store, 1, 0).await;
    started(&store, &baseline, 1, 1, 1).await;
    let again = store.followed(gone(1, at(20_000))).await.queued.remove(0);
    assert_eq!((again.job, again.affinity.prefer), (baseline.job, Some(agent_id(1))));
    started(&store, &again, 2, 2, 1).await;
    let again = appended(&store, 2, 1, vec![verdict(1, VerdictKind::Errored)])
        .await
        .queued
        .remove(0);
    assert_eq!(again.affinity.avoid, Some(agent_id(1)));
    started(&store, &again, 3, 3, 2).await;
    told(&store, 3, 2, vec![crashed(1)]).await;
    assert_eq!(found(&store).await, Some(VerdictKind::Errored));
    assert_eq!(state(&store, 0).await, SessionStateKind::Queued);
    assert_eq!(view(&store).await.sessions[0].incidents, []);
    end(&store).await;
}

pub(in crate::store::conformance) async fn a_check_of_the_base_ends_with_its_task(store: Store) {
    let cancel = |n| CancelTask {
        request: request(n),
        task: task_id(1),
        now: at(50),
    };
    let (jobs, baseline) = begin(&store, 1, 0).await;
    started(&store, &baseline, 1, 1, 1).await;
    // A checkpoint is of sessions, also here.
    let stray = append(1, 1, vec![first(1)]);
    assert!(matches!(store.apply(stray).await.unwrap(), Appended::Invalid(_)));
    let changes = store.followed(cancel(90)).await;
    assert_eq!(changes.withdrawn, [jobs[0].job]);
    let stop = StopAttempt {
        attempt: attempt_id(1),
        agent: agent_id(1),
        keep_worktree: false,
    };
    assert_eq!(changes.stop, [stop]);
    assert_eq!(view(&store).await.task.state, TaskState::Cancelled);
    told(&store, 1, 1, vec![verdict(1, VerdictKind::Passed)]).await;
    assert_eq!(view(&store).await.task.state, TaskState::Cancelled);

    // One that only waits is not begun any more once a session passed.
    let mut command = create(2, spec(1, CHECKED), at(60));
    command.baseline = Some(JobId::from_random(BASELINE + 1));
    let jobs = store.followed(command).await.queued;
    started(&store, &jobs[0], 2, 1, 1).await;
    let verify = appended(&store, 2, 1, vec![committed(1), claimed(2)])
        .await
        .queued
        .remove(0);
    started(&store, &verify, 3, 1, 2).await;
    let changes = appended(&store, 3, 2, vec![verdict(1, VerdictKind::Passed)]).await;
    assert_eq!(changes.withdrawn, [jobs[1].job]);
    assert_eq!(store.queued_jobs().await.unwrap(), []);
    end(&store).await;
}

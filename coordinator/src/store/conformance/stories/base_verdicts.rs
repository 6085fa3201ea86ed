//! Verdicts on bases, kept for later tasks: which of them is kept, and who takes it.

use std::time::Duration;

use kage_core::base_verdict::{FAILED_HOLDS, PASSED_HOLDS};
use kage_core::event::{AttemptOutcome, Event, EventBody, Verdict, VerdictKind};
use kage_core::id::{Digest, JobId};
use kage_core::task::{TaskSpec, VerifyPolicy};
use kage_core::time::Timestamp;

use super::{CHECKED, end};
use crate::store::conformance::admission::{enrol_first, revoke_first};
use crate::store::conformance::fixture::{append, at, create, event, spec, start, task_id, two_agents, verdict};
use crate::store::conformance::followed::Followed as _;
use crate::store::{Appended, QueuedJob, Start, Store};

/// The check of the base of task `n`, unless the task took a verdict. Agents of these machines are
/// there.
async fn created(store: &Store, n: u128, spec: TaskSpec, machines: &[u8], now: Timestamp) -> Option<QueuedJob> {
    let mut command = create(n, spec, now);
    command.baseline = Some(JobId::from_random(n * 1000 + 500));
    command.machines = machines.iter().map(|n| machine(*n)).collect();
    let mut jobs = store.followed(command).await.queued;
    assert!(jobs.len() == 1 || jobs.len() == 2, "{jobs:?}");
    jobs.split_off(1).pop()
}

fn machine(n: u8) -> Digest {
    Digest::of(&[n])
}

/// What verify says on a machine.
fn said(kind: VerdictKind, machine: Option<Digest>) -> Event {
    let EventBody::Finished(AttemptOutcome::Verdict(verdict)) = verdict(1, kind).body else {
        panic!("a verdict");
    };
    let verdict = Verdict {
        machine,
        output: "it wrote".to_owned(),
        ..verdict
    };
    event(1, EventBody::Finished(AttemptOutcome::Verdict(verdict)))
}

/// An agent checks the base.
async fn checked(
    store: &Store,
    job: &QueuedJob,
    (attempt, number, agent): (u128, u32, u128),
    said: Event,
    now: Timestamp,
) {
    let started = store.apply(start(job, attempt, number, agent, now)).await.unwrap();
    assert_eq!(started, Start::Started);
    let mut told = append(attempt, agent, vec![said]);
    told.now = now;
    let told = store.apply(told).await.unwrap();
    assert_eq!(told, Appended::Acked { seq: 1 });
}

/// The verdict that a task has, and since when if another one left it.
async fn found(store: &Store, n: u128) -> (Option<VerdictKind>, Option<Timestamp>) {
    let task = store.task(task_id(n)).await.unwrap().unwrap().task;
    (task.baseline.map(|verdict| verdict.kind), task.baseline_kept_since)
}

/// A task's spec, changed.
fn changed(change: impl FnOnce(&mut TaskSpec)) -> TaskSpec {
    let mut spec = spec(1, CHECKED);
    change(&mut spec);
    spec
}

fn same() -> TaskSpec {
    changed(|_| {})
}

/// Agents are there, and the base of task 1 was checked by agent 2 on machine 1, at the second
/// millisecond.
async fn begin(store: &Store, kind: VerdictKind) {
    two_agents(store).await;
    let job = created(store, 1, same(), &[1], at(1)).await.unwrap();
    checked(store, &job, (1, 1, 2), said(kind, Some(machine(1))), at(2)).await;
    assert_eq!(found(store, 1).await, (Some(kind), None));
}

pub(in crate::store::conformance) async fn a_verdict_on_a_base_is_taken_by_later_tasks(store: Store) {
    begin(&store, VerdictKind::Passed).await;
    assert!(created(&store, 2, same(), &[2, 1], at(3)).await.is_none());
    let task = store.task(task_id(2)).await.unwrap().unwrap().task;
    let verdict = task.baseline.unwrap();
    assert_eq!(
        (verdict.kind, verdict.agent.as_str(), verdict.output.as_str()),
        (VerdictKind::Passed, "agent-2", "")
    );
    assert_eq!(task.baseline_kept_since, Some(at(2)));
    // Somebody wants it anew; what is found then is taken from there on.
    let fresh = changed(|spec| spec.fresh_baseline = true);
    let job = created(&store, 3, fresh, &[1], at(4)).await.unwrap();
    checked(
        &store,
        &job,
        (3, 1, 1),
        said(VerdictKind::Failed, Some(machine(1))),
        at(5),
    )
    .await;
    assert!(created(&store, 4, same(), &[1], at(6)).await.is_none());
    assert_eq!(found(&store, 4).await, (Some(VerdictKind::Failed), Some(at(5))));
    // Who asks again is told the same task.
    let mut again = create(4, same(), at(7));
    again.machines = vec![machine(1)];
    assert!(store.apply(again).await.unwrap().repeated);
    end(&store).await;
}

pub(in crate::store::conformance) async fn a_verdict_on_a_base_is_of_one_check_on_one_machine(store: Store) {
    begin(&store, VerdictKind::Passed).await;
    let policy = |change: fn(&mut VerifyPolicy)| changed(|spec| change(&mut spec.policy.verify));
    let others = [
        changed(|spec| spec.project = "other".parse().unwrap()),
        changed(|spec| spec.repository.as_mut().unwrap().base = "d".repeat(40).parse().unwrap()),
        changed(|spec| spec.repository.as_mut().unwrap().names = Some("d".repeat(40).parse().unwrap())),
        policy(|verify| verify.setup = Some("make".to_owned())),
        policy(|verify| verify.verify = Some("false".to_owned())),
        policy(|verify| verify.protect = vec!["tests/**".to_owned()]),
        policy(|verify| verify.leave_named = true),
        policy(|verify| verify.timeout += Duration::from_secs(1)),
    ];
    for (n, other) in (10..).zip(others) {
        let job = created(&store, n, other, &[1], at(3)).await;
        assert!(job.is_some(), "{n}");
    }
    for (n, machines) in (20..).zip([&[][..], &[2, 3]]) {
        assert!(
            created(&store, n, same(), machines, at(3)).await.is_some(),
            "{machines:?}"
        );
    }
    assert!(created(&store, 30, same(), &[1], at(3)).await.is_none());
    end(&store).await;
}

pub(in crate::store::conformance) async fn a_verdict_on_a_base_is_kept_for_a_while(store: Store) {
    let instant = Duration::from_millis(1);
    begin(&store, VerdictKind::Failed).await;
    let now = at(2) + FAILED_HOLDS;
    assert!(created(&store, 2, same(), &[1], at(1) + FAILED_HOLDS).await.is_none());
    let job = created(&store, 3, same(), &[1], now).await.unwrap();
    checked(
        &store,
        &job,
        (3, 1, 1),
        said(VerdictKind::Passed, Some(machine(1))),
        now,
    )
    .await;
    assert!(
        created(&store, 4, same(), &[1], now + (PASSED_HOLDS - instant))
            .await
            .is_none()
    );
    let late = now + PASSED_HOLDS;
    assert!(created(&store, 5, same(), &[1], late).await.is_some());
    end(&store).await;
}

pub(in crate::store::conformance) async fn what_decides_nothing_about_a_base_is_not_kept(store: Store) {
    two_agents(&store).await;
    let job = created(&store, 1, same(), &[1], at(1)).await.unwrap();
    for number in [1, 2] {
        let errored = said(VerdictKind::Errored, Some(machine(1)));
        checked(&store, &job, (u128::from(number), number, 1), errored, at(2)).await;
    }
    assert_eq!(found(&store, 1).await, (Some(VerdictKind::Errored), None));
    let job = created(&store, 2, same(), &[1], at(3)).await.unwrap();
    // Nobody knows what it was found with.
    checked(&store, &job, (5, 1, 1), said(VerdictKind::Passed, None), at(4)).await;
    assert_eq!(found(&store, 2).await, (Some(VerdictKind::Passed), None));
    assert!(created(&store, 3, same(), &[1], at(5)).await.is_some());
    end(&store).await;
}

pub(in crate::store::conformance) async fn what_a_revoked_agent_said_of_a_base_is_not_taken(store: Store) {
    enrol_first(&store).await;
    two_agents(&store).await;
    let job = created(&store, 1, same(), &[1], at(1)).await.unwrap();
    checked(
        &store,
        &job,
        (1, 1, 1),
        said(VerdictKind::Passed, Some(machine(1))),
        at(2),
    )
    .await;
    assert!(created(&store, 2, same(), &[1], at(3)).await.is_none());
    revoke_first(&store).await;
    let job = created(&store, 3, same(), &[1], at(4)).await.unwrap();
    checked(
        &store,
        &job,
        (3, 1, 2),
        said(VerdictKind::Passed, Some(machine(1))),
        at(5),
    )
    .await;
    assert!(created(&store, 4, same(), &[1], at(6)).await.is_none());
    end(&store).await;
}

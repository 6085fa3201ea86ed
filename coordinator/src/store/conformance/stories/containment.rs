//! Tiers of containment: what a task demands stays with its jobs, and what the agents of its attempts had
//! proved stays with session and verdict, whatever they say later.

use kage_core::attempt::EndReason;
use kage_core::contain::Tier;
use kage_core::event::{AttemptOutcome, Event, EventBody, VerdictKind};
use kage_core::id::{Digest, JobId};

use super::{CHECKED, begin, end, verify_job, view};
use crate::store::conformance::fixture::{
    agent_id, appended, at, boot_id, claimed, committed, create, spec, start, task_id, two_agents, verdict,
};
use crate::store::conformance::followed::Followed as _;
use crate::store::{EndAttempts, Ending, QueuedJob, Start, StartAttempt, Store};

/// The attempt of an agent that had proved this tier.
async fn started_in(tier: Tier, store: &Store, job: &QueuedJob, attempt: u128, number: u32, agent: u128) {
    let command = StartAttempt {
        contained: tier,
        ..start(job, attempt, number, agent, at(attempt as u64))
    };
    assert_eq!(store.apply(command).await.unwrap(), Start::Started);
}

/// A verdict that its agent says was found in T3.
fn boasting(kind: VerdictKind) -> Event {
    let mut event = verdict(1, kind);
    if let EventBody::Finished(AttemptOutcome::Verdict(verdict)) = &mut event.body {
        verdict.contained = Tier::T3;
        verdict.machine = Some(Digest::of(b"machine"));
    }
    event
}

pub(in crate::store::conformance) async fn the_tier_of_an_attempt_stands_with_its_verdict(store: Store) {
    let verify = verify_job(&store).await;
    started_in(Tier::T1, &store, &verify, 2, 1, 2).await;
    appended(&store, 2, 2, vec![boasting(VerdictKind::Passed)]).await;
    let session = view(&store).await.sessions.remove(0);
    assert_eq!(session.state.verdict().unwrap().contained, Tier::T1);
    assert_eq!(session.contained, Some(Tier::T0), "it worked elsewhere");
    end(&store).await;
}

pub(in crate::store::conformance) async fn the_lowest_tier_of_its_attempts_is_a_sessions(store: Store) {
    let jobs = begin(&store, 1, None).await;
    started_in(Tier::T1, &store, &jobs[0], 1, 1, 1).await;
    assert_eq!(view(&store).await.sessions[0].contained, Some(Tier::T1));
    let lost = EndAttempts {
        which: Ending::Boot {
            agent: agent_id(1),
            boot: boot_id(1),
        },
        reason: EndReason::AgentSilent,
        now: at(2),
    };
    let again = store.followed(lost).await.queued;
    started_in(Tier::T3, &store, &again[0], 2, 2, 2).await;
    appended(&store, 2, 2, vec![committed(1), claimed(2)]).await;
    assert_eq!(view(&store).await.sessions[0].contained, Some(Tier::T1));
    end(&store).await;
}

pub(in crate::store::conformance) async fn a_demand_stays_with_every_job_of_its_task(store: Store) {
    two_agents(&store).await;
    let mut demanding = spec(1, CHECKED);
    demanding.policy.contain = Tier::T2;
    let mut command = create(1, demanding, at(1));
    command.baseline = Some(JobId::from_random(77));
    let jobs = store.followed(command).await.queued;
    assert_eq!(jobs.len(), 2, "its session, and the check of its base");
    assert!(jobs.iter().all(|job| job.contain == Tier::T2), "{jobs:?}");
    started_in(Tier::T2, &store, &jobs[0], 1, 1, 1).await;
    let verify = appended(&store, 1, 1, vec![committed(1), claimed(2)]).await.queued;
    assert_eq!(verify.len(), 1);
    assert_eq!(verify[0].contain, Tier::T2);
    end(&store).await;
}

pub(in crate::store::conformance) async fn what_ran_in_a_lower_tier_is_no_verdict_on_a_base(store: Store) {
    two_agents(&store).await;
    // The check of a task that demands nothing, on an agent of this tier.
    let mut first = create(1, spec(1, CHECKED), at(1));
    first.baseline = Some(JobId::from_random(77));
    let jobs = store.followed(first).await.queued;
    started_in(Tier::T1, &store, &jobs[1], 1, 1, 2).await;
    appended(&store, 1, 2, vec![boasting(VerdictKind::Passed)]).await;
    for (n, demanded, taken) in [(2, Tier::T0, true), (3, Tier::T1, true), (4, Tier::T2, false)] {
        let mut spec = spec(1, CHECKED);
        spec.policy.contain = demanded;
        let mut command = create(n, spec, at(3));
        command.baseline = Some(JobId::from_random(n * 1000 + 500));
        command.machines = vec![Digest::of(b"machine")];
        let jobs = store.followed(command).await.queued;
        assert_eq!(jobs.len(), if taken { 1 } else { 2 }, "{demanded}");
        let baseline = store.task(task_id(n)).await.unwrap().unwrap().task.baseline;
        assert_eq!(
            baseline.map(|verdict| verdict.contained),
            taken.then_some(Tier::T1),
            "{demanded}"
        );
    }
    end(&store).await;
}

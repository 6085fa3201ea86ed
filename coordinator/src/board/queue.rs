//! The queue: the waiting jobs in their order, and the choice of jobs for agents.

use std::collections::{BTreeSet, HashMap, HashSet};

use kage_core::id::{AdapterName, AgentId, Digest, JobId, ProjectId, SessionId, TaskId};
use kage_core::job::{Affinity, Subject};
use kage_core::placement::{AgentView, Availability, Refusal, Waiting, nobody_can, why_waiting};
use kage_core::task::{Assignment, Labels, TaskSpec};
use kage_core::time::Timestamp;
use tokio::time::Instant;

use super::{Board, Member, Pick, Placed, Refused, Waits};
use crate::store::QueuedJob;

impl Board {
    pub(crate) fn enqueue(&mut self, job: QueuedJob) {
        self.withdraw(job.job);
        let place = (job.queued_at, self.next());
        self.places.insert(job.job, place);
        if let Subject::Session(session) = job.subject {
            self.by_session.insert(session, job.job);
        }
        self.waiting.insert(place, job);
    }

    pub(crate) fn withdraw(&mut self, job: JobId) {
        if let Some(job) = self.places.remove(&job).and_then(|place| self.waiting.remove(&place)) {
            self.forget_session(&job);
        }
    }

    /// Forgets why the session waits, if this job was the one it waited for.
    fn forget_session(&mut self, job: &QueuedJob) {
        if let Subject::Session(session) = job.subject
            && self.by_session.get(&session) == Some(&job.job)
        {
            self.by_session.remove(&session);
        }
    }

    /// True when at least so many jobs of a project wait.
    pub(crate) fn has_waiting(&self, project: &ProjectId, least: usize) -> bool {
        // A short queue is not looked at.
        self.waiting.len() >= least && self.waiting.values().filter(|job| job.project == *project).count() >= least
    }

    /// Takes jobs from the queue for agents that have free slots.
    pub(crate) fn place(&mut self, now: Timestamp, instant: Instant) -> Placed {
        if self.waiting.is_empty() || !self.members.has_room() {
            return Placed::default();
        }
        self.refusals.retain(|_, refusals| {
            refusals.retain(|refused| refused.until > instant);
            !refusals.is_empty()
        });
        let refusals: HashMap<JobId, Vec<Refusal<'_>>> = self
            .refusals
            .iter()
            .map(|(job, refusals)| (*job, refusals.iter().map(Refused::view).collect()))
            .collect();
        let waiting: Vec<_> = self
            .waiting
            .values()
            .map(|job| Waiting {
                refusals: refusals.get(&job.job).map_or(&[], Vec::as_slice),
                ..waiting_view(job, &self.held)
            })
            .collect();
        let placement = self.members.place(&waiting, now);
        // An expiring refusal is also a reason to look again.
        let forgiven = self.refusals.values().flatten().map(|refused| refused.until).min();
        let forgiven = forgiven.map(|until| now + until.saturating_duration_since(instant));
        let next = placement.next_wakeup.into_iter().chain(forgiven).min();
        let picks = placement
            .assignments
            .into_iter()
            .filter_map(|(job, agent)| self.pick(job, agent))
            .collect();
        Placed { picks, next }
    }

    fn pick(&mut self, job: JobId, agent: AgentId) -> Option<Pick> {
        let place = self.places.get(&job)?;
        let needs = self.waiting.get(place)?.needs();
        let given = self.members.change(agent, |member| {
            let serial = member.link()?.serial;
            member.lanes.place(needs);
            Some(serial)
        });
        let serial = given.flatten()?;
        let job = self.waiting.remove(&self.places.remove(&job)?)?;
        self.forget_session(&job);
        *self.held.entry(job.task).or_default() += 1;
        Some(Pick { job, agent, serial })
    }

    /// The sessions of these tasks whose jobs wait, `most` of them, in the order of the queue.
    pub(crate) fn waits(
        &self,
        project: &ProjectId,
        tasks: &HashSet<TaskId>,
        now: Timestamp,
        instant: Instant,
        most: usize,
    ) -> Vec<Waits> {
        let theirs = |job: &&QueuedJob| job.project == *project && tasks.contains(&job.task);
        let waits = self.waiting.values().filter(theirs).filter_map(|job| {
            let session = job.subject.session()?;
            let held = job.not_before > now;
            Some(Waits {
                task: job.task,
                session,
                until: held.then_some(job.not_before),
                why: if held {
                    None
                } else {
                    self.why_waiting(session, now, instant)
                },
            })
        });
        waits.take(most).collect()
    }

    /// Why a session's job waits; `None` when no job of the session waits.
    pub(crate) fn why_waiting(&self, session: SessionId, now: Timestamp, instant: Instant) -> Option<String> {
        let job = self.waiting.get(self.places.get(self.by_session.get(&session)?)?)?;
        let refusals = self.refusals.get(&job.job).into_iter().flatten();
        let refusals: Vec<_> = refusals
            .filter(|refused| refused.until > instant)
            .map(Refused::view)
            .collect();
        let job = Waiting {
            refusals: &refusals,
            ..waiting_view(job, &self.held)
        };
        Some(why_waiting(&job, &self.concerned(&job, instant), now))
    }

    /// What every known agent lacks for a session; `None` when one could run it.
    pub(crate) fn nobody_can(&self, spec: &TaskSpec, session: &Assignment, instant: Instant) -> Option<String> {
        let requirements = spec.requirements(session);
        let nobody = asked(spec, Some(&session.adapter), &requirements);
        nobody_can(&nobody, &self.concerned(&nobody, instant))
    }

    /// What every known agent lacks for the check of a session's result; `None` when one could do it, or when
    /// results of the task are not checked.
    pub(crate) fn nobody_can_verify(&self, spec: &TaskSpec, session: &Assignment, instant: Instant) -> Option<String> {
        spec.policy.verify.verify.as_ref()?;
        let requirements = spec.requirements(session);
        let check = asked(spec, None, &requirements);
        nobody_can(&check, &self.concerned(&check, instant))
    }

    /// What the machines bring whose agents could be offered the check of a task's base now, each
    /// once. Agents that do not say are left out.
    pub(crate) fn machines(&self, spec: &TaskSpec) -> Vec<Digest> {
        let check = asked(spec, None, &spec.policy.requirements);
        let open = self
            .members
            .candidates(&check)
            .filter(|(_, view)| view.availability == Availability::Open && view.could_do(&check));
        let machines: BTreeSet<_> = open.filter_map(|(member, _)| member.agent.machine.as_ref()).collect();
        machines.into_iter().cloned().collect()
    }

    /// The agents that explain why a job waits: the first that could do it now, if there is one;
    /// else all that could do it; and when there is none, all known agents.
    fn concerned(&self, job: &Waiting<'_>, instant: Instant) -> Vec<AgentView<'_>> {
        let patience = self.timings.max_detached;
        let counts = |member: &&Member| member.counts(instant, patience);
        let mut able = Vec::new();
        let candidates = self.members.candidates(job).filter(|(member, _)| counts(member));
        for (_, agent) in candidates {
            if !agent.could_do(job) {
                continue;
            }
            able.push(agent);
            if agent.is_free_for(job) {
                break;
            }
        }
        if able.is_empty() {
            able.extend(self.members.iter().filter(counts).flat_map(Member::views));
        }
        able
    }
}

/// A job of a task that is not stored yet, for asking who could do it.
fn asked<'a>(spec: &'a TaskSpec, adapter: Option<&'a AdapterName>, requirements: &'a Labels) -> Waiting<'a> {
    Waiting {
        job: JobId::from_random(0),
        task: TaskId::from_random(0),
        project: &spec.project,
        priority: spec.policy.priority,
        held: 0,
        adapter,
        requirements,
        contain: spec.policy.contain,
        not_before: Timestamp::from_millis(0),
        queued_at: Timestamp::from_millis(0),
        spare: false,
        affinity: Affinity::default(),
        refusals: &[],
    }
}

fn waiting_view<'a>(job: &'a QueuedJob, held: &HashMap<TaskId, u32>) -> Waiting<'a> {
    Waiting {
        job: job.job,
        task: job.task,
        project: &job.project,
        priority: job.priority,
        held: held.get(&job.task).copied().unwrap_or(0),
        adapter: job.needs(),
        requirements: &job.requirements,
        contain: job.contain,
        not_before: job.not_before,
        queued_at: job.queued_at,
        spare: is_spare(job),
        affinity: job.affinity,
        refusals: &[],
    }
}

/// True for the check of a base: no session waits for it, and it must not delay one.
const fn is_spare(job: &QueuedJob) -> bool {
    matches!(job.subject, Subject::Base)
}

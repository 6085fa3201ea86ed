//! The queue: what waits, in which order, and what is taken from it for whom.

use std::collections::HashMap;

use kage_core::id::{AgentId, JobId, SessionId, TaskId};
use kage_core::job::{Affinity, JobKind};
use kage_core::placement::{AgentView, Availability, Waiting, nobody_can, place, why_waiting};
use kage_core::task::{Assignment, TaskSpec};
use kage_core::time::Timestamp;
use tokio::time::Instant;

use super::{Board, Member, Pick, Placed};
use crate::store::QueuedJob;

impl Board {
    /// A job waits.
    pub(crate) fn enqueue(&mut self, job: QueuedJob) {
        self.withdraw(job.job);
        let place = (job.queued_at, self.next());
        self.places.insert(job.job, place);
        if !is_spare(&job) {
            self.by_session.insert(job.session, job.job);
        }
        self.waiting.insert(place, job);
    }

    /// A job waits no longer.
    pub(crate) fn withdraw(&mut self, job: JobId) {
        if let Some(job) = self.places.remove(&job).and_then(|place| self.waiting.remove(&place)) {
            self.forget_session(&job);
        }
    }

    /// Its session waits for nothing any more, if it was this job that it waited for.
    fn forget_session(&mut self, job: &QueuedJob) {
        if self.by_session.get(&job.session) == Some(&job.job) {
            self.by_session.remove(&job.session);
        }
    }

    /// Takes jobs from the queue for agents that have room.
    pub(crate) fn place(&mut self, now: Timestamp, instant: Instant) -> Placed {
        if self.waiting.is_empty() || !self.has_room() {
            return Placed::default();
        }
        self.refusals.retain(|_, agents| {
            agents.retain(|(_, until)| *until > instant);
            !agents.is_empty()
        });
        let connected = self.members.values().filter(|member| member.link().is_some());
        let views: Vec<_> = connected.map(Member::view).collect();
        let (refused, plain): (Vec<_>, Vec<_>) = self
            .waiting
            .values()
            .map(|job| self.waiting_view(job))
            .partition(|job| self.refusals.contains_key(&job.job));
        let mut placement = place(&plain, &views, now);
        let mut free: HashMap<_, _> = views.iter().map(|view| (view.id, view.free_slots)).collect();
        for (_, agent) in &placement.assignments {
            if let Some(free) = free.get_mut(agent) {
                *free = free.saturating_sub(1);
            }
        }
        for job in refused {
            let refusers = self.refusals.get(&job.job).map_or(&[][..], Vec::as_slice);
            let willing: Vec<_> = views
                .iter()
                .filter(|view| refusers.iter().all(|(agent, _)| *agent != view.id))
                .map(|view| AgentView {
                    free_slots: free.get(&view.id).copied().unwrap_or(0),
                    ..*view
                })
                .collect();
            let alone = place(&[job], &willing, now);
            for (_, agent) in &alone.assignments {
                if let Some(free) = free.get_mut(agent) {
                    *free = free.saturating_sub(1);
                }
            }
            placement.assignments.extend(alone.assignments);
            placement.next_wakeup = placement.next_wakeup.into_iter().chain(alone.next_wakeup).min();
        }
        // A refusal that runs out is also a reason to look again.
        let forgiven = self.refusals.values().flatten().map(|(_, until)| *until).min();
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
        let member = self.members.get_mut(&agent)?;
        let serial = member.link()?.serial;
        member.pending += 1;
        member.placed = member.placed.wrapping_add(1);
        let job = self.waiting.remove(&self.places.remove(&job)?)?;
        self.forget_session(&job);
        *self.held.entry(job.task).or_default() += 1;
        Some(Pick { job, agent, serial })
    }

    fn has_room(&self) -> bool {
        self.members
            .values()
            .any(|m| m.availability() == Availability::Open && m.agent.slots > m.busy())
    }

    fn waiting_view<'a>(&self, job: &'a QueuedJob) -> Waiting<'a> {
        Waiting {
            job: job.job,
            task: job.task,
            project: &job.project,
            priority: job.priority,
            held: self.held.get(&job.task).copied().unwrap_or(0),
            adapter: match job.kind {
                JobKind::Session => Some(&job.adapter),
                JobKind::Verify { .. } | JobKind::Baseline { .. } => None,
            },
            requirements: &job.requirements,
            not_before: job.not_before,
            queued_at: job.queued_at,
            spare: is_spare(job),
            affinity: job.affinity,
        }
    }

    /// Why a session's job waits; `None` when none of it does.
    pub(crate) fn why_waiting(&self, session: SessionId, now: Timestamp, instant: Instant) -> Option<String> {
        let job = self.waiting.get(self.places.get(self.by_session.get(&session)?)?)?;
        Some(why_waiting(&self.waiting_view(job), &self.known(instant), now))
    }

    /// What every agent that is known lacks for a session; `None` when one could run it.
    pub(crate) fn nobody_can(&self, spec: &TaskSpec, session: &Assignment, instant: Instant) -> Option<String> {
        let nobody = Waiting {
            job: JobId::from_random(0),
            task: TaskId::from_random(0),
            project: &spec.project,
            priority: spec.policy.priority,
            held: 0,
            adapter: Some(&session.adapter),
            requirements: &spec.requirements(session),
            not_before: Timestamp::from_millis(0),
            queued_at: Timestamp::from_millis(0),
            spare: false,
            affinity: Affinity::default(),
        };
        nobody_can(&nobody, &self.known(instant))
    }

    fn known(&self, instant: Instant) -> Vec<AgentView<'_>> {
        let patience = self.timings.max_detached;
        let known = self.members.values().filter(|member| member.counts(instant, patience));
        known.map(Member::view).collect()
    }
}

/// True for the check of a base: no session waits for it, and it is in no session's way.
const fn is_spare(job: &QueuedJob) -> bool {
    matches!(job.kind, JobKind::Baseline { .. })
}

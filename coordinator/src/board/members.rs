//! The agents that the board knows, and the roster that placement reads. Every change of an agent
//! goes through this module, which keeps the roster current.

use std::collections::BTreeMap;

use kage_core::id::AgentId;
use kage_core::placement::{AgentView, Placement, Roster, Seat, Waiting, place};
use kage_core::time::Timestamp;

use super::Member;

#[derive(Default)]
pub(super) struct Members {
    by_id: BTreeMap<AgentId, Member>,
    roster: Roster,
}

impl Members {
    pub(super) fn get(&self, agent: AgentId) -> Option<&Member> {
        self.by_id.get(&agent)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Member> {
        self.by_id.values()
    }

    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Adds an agent, or replaces its entry.
    pub(super) fn insert(&mut self, member: Member) {
        self.roster.list(member.agent.id, member.views());
        self.by_id.insert(member.agent.id, member);
    }

    /// Changes an agent's state: everything but its adapters, labels and project. `None` for an
    /// unknown agent.
    pub(super) fn change<T>(&mut self, agent: AgentId, change: impl FnOnce(&mut Member) -> T) -> Option<T> {
        let member = self.by_id.get_mut(&agent)?;
        let outcome = change(member);
        member.views().for_each(|lane| self.roster.note(&lane));
        Some(outcome)
    }

    /// Changes an agent, including its description. `None` for an unknown agent.
    pub(super) fn redescribe<T>(&mut self, agent: AgentId, change: impl FnOnce(&mut Member) -> T) -> Option<T> {
        let member = self.by_id.get_mut(&agent)?;
        let outcome = change(member);
        self.roster.list(agent, member.views());
        Some(outcome)
    }

    /// True when some agent could take a job now.
    pub(super) fn has_room(&self) -> bool {
        self.roster.has_room()
    }

    /// Decides which agent gets which job. The caller carries it out with [`Members::change`].
    pub(super) fn place(&mut self, waiting: &[Waiting<'_>], now: Timestamp) -> Placement {
        let by_id = &self.by_id;
        let view = |seat: Seat| by_id.get(&seat.agent)?.view(seat.lane);
        place(waiting, &mut self.roster, view, now)
    }

    /// The candidates for a job, the ones with most free slots first.
    pub(super) fn candidates<'m>(
        &'m self,
        job: &Waiting<'_>,
    ) -> impl Iterator<Item = (&'m Member, AgentView<'m>)> + use<'m> {
        self.roster.candidates(job).filter_map(|seat| {
            let member = self.by_id.get(&seat.agent)?;
            Some((member, member.view(seat.lane)?))
        })
    }

    /// True when the roster equals a newly built one.
    #[cfg(test)]
    pub(super) fn roster_is_current(&self) -> bool {
        let mut anew = Roster::default();
        self.iter()
            .for_each(|member| anew.list(member.agent.id, member.views()));
        anew == self.roster
    }
}

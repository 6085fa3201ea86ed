//! The consequences of time alone: unanswered offers, absent or silent agents, expired leases,
//! attempts that take too long or do not stop.

use std::time::Duration;

use kage_core::attempt::EndReason;
use kage_core::id::{AgentId, AttemptId, BootId};
use tokio::time::Instant;

use super::{Board, Late, Member, Presently};

/// The wait before the store is asked again about an expired lease.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// What the store has to end.
#[derive(Debug, Default, PartialEq, Eq)]
#[must_use]
pub(crate) struct Due {
    /// Starts of agents whose attempts all end.
    pub(crate) lost: Vec<(AgentId, BootId, EndReason)>,
    /// Attempts whose lease expired while their agent was connected.
    pub(crate) expired: Vec<(AgentId, AttemptId)>,
    /// Attempts that were live for too long, or did not stop.
    pub(crate) late: Vec<Late>,
    /// An offer went back to the queue.
    pub(crate) requeued: bool,
}

impl Member {
    /// Why the agent is lost from now on, if it is.
    fn lost(&self, now: Instant, lost_after: Duration) -> Option<EndReason> {
        match &self.presently {
            Presently::Away { until } => (*until <= now).then_some(EndReason::AgentGone),
            Presently::Connected(link) => (now.saturating_duration_since(link.pulse.borrow().heard) >= lost_after)
                .then_some(EndReason::AgentSilent),
            Presently::Lost { .. } => None,
        }
    }

    fn lost_at(&self, now: Instant) -> bool {
        matches!(&self.presently, Presently::Lost { since } if *since == now)
    }
}

impl Board {
    /// Withdraws unanswered offers and returns what has to end.
    pub(crate) fn due(&mut self, now: Instant) -> Due {
        let mut due = Due::default();
        let stale: Vec<_> = self
            .offers
            .iter()
            .filter(|(_, offer)| offer.deadline <= now)
            .map(|(id, _)| *id)
            .collect();
        for id in stale {
            self.unanswered(id);
            due.requeued = true;
        }
        due.late = self.terms.late(now);
        let lost_after = self.timings.lost_after;
        let lost = self.members.iter().filter_map(|member| {
            let reason = member.lost(now, lost_after)?;
            Some((member.agent.id, member.agent.boot, reason))
        });
        due.lost = lost.collect();
        for (agent, _, _) in &due.lost {
            self.members.change(*agent, |member| {
                if let Presently::Connected(link) = &member.presently {
                    // A half-open connection: nothing else would notice.
                    link.cut.cancel();
                }
                member.presently = Presently::Lost { since: now };
            });
        }
        // The leases of agents lost just now end with the rest of their attempts.
        let others = self.members.iter().filter(|member| !member.lost_at(now));
        let expired = others.flat_map(|member| {
            let expired = member.running.iter().filter(|(_, running)| running.lease_until <= now);
            expired.map(|(attempt, _)| (member.agent.id, *attempt))
        });
        due.expired = expired.collect();
        for (agent, attempt) in &due.expired {
            self.members.change(*agent, |member| {
                if let Some(running) = member.running.get_mut(attempt) {
                    // The store is asked, and asked again when it could not answer.
                    running.lease_until = now + ASK_AGAIN;
                }
            });
        }
        for (agent, _, _) in &due.lost {
            self.hindrances.remove(agent);
            self.take_back_all(*agent);
        }
        due
    }
}

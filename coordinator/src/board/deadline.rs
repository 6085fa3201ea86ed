//! What time alone brings about: unanswered offers, agents that stay away or are silent,
//! leases that nobody renewed.

use std::time::Duration;

use kage_core::attempt::EndReason;
use kage_core::id::{AgentId, AttemptId, BootId};
use tokio::time::Instant;

use super::{Board, Presently};

/// The wait before the store is asked once more about a lease that ran out.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// What has to be ended in the store.
#[derive(Debug, Default, PartialEq, Eq)]
#[must_use]
pub(crate) struct Due {
    /// Starts of agents whose attempts all end.
    pub(crate) lost: Vec<(AgentId, BootId, EndReason)>,
    /// Attempts whose lease ended while their agent was there.
    pub(crate) expired: Vec<(AgentId, AttemptId)>,
    /// An offer went back to the queue.
    pub(crate) requeued: bool,
}

impl Board {
    /// Takes back what was not answered and says what has to end.
    pub(crate) fn due(&mut self, now: Instant) -> Due {
        let mut due = Due::default();
        let stale: Vec<_> = self
            .offers
            .iter()
            .filter(|(_, offer)| offer.deadline <= now)
            .map(|(id, _)| *id)
            .collect();
        for id in stale {
            self.take_back(id);
            due.requeued = true;
        }
        let lost_after = self.timings.lost_after;
        for (id, member) in &mut self.members {
            let boot = member.agent.boot;
            let lost = match &member.presently {
                Presently::Away { until } => (*until <= now).then_some(EndReason::AgentGone),
                Presently::Connected(link) => (now.saturating_duration_since(link.heard) >= lost_after).then(|| {
                    // Half-open: nobody would notice otherwise.
                    link.cut.cancel();
                    EndReason::AgentSilent
                }),
                Presently::Lost { .. } => None,
            };
            match lost {
                Some(reason) => {
                    member.presently = Presently::Lost { since: now };
                    due.lost.push((*id, boot, reason));
                }
                None => {
                    for (attempt, running) in &mut member.running {
                        if running.lease_until <= now {
                            // The store is asked, and asked again when it could not answer.
                            running.lease_until = now + ASK_AGAIN;
                            due.expired.push((*id, *attempt));
                        }
                    }
                }
            }
        }
        for (agent, _, _) in &due.lost {
            self.take_back_all(*agent);
        }
        due
    }
}

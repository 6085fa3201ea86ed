//! Offers: prepared, sent, answered or withdrawn, until the attempt is stored.

use kage_core::id::{AgentId, AttemptId, OfferId};
use kage_core::job::Affinity;
use kage_proto::v1;
use tokio::time::Instant;

use super::{Board, Member, Offer, OfferStage, Offered, Pick, Refused, Running, Serial};
use crate::store::QueuedJob;

impl Board {
    /// Prepares a job taken from the queue for its agent.
    pub(crate) fn prepare(&mut self, id: OfferId, pick: Pick, now: Instant) {
        self.offers.insert(
            id,
            Offer {
                job: pick.job,
                agent: pick.agent,
                serial: pick.serial,
                deadline: now + self.timings.offer,
                stage: OfferStage::Preparing,
            },
        );
    }

    /// Sends an offer. The job waits again when its agent disconnected meanwhile.
    pub(crate) fn send(&mut self, id: OfferId, offered: Offered, message: v1::ConnectResponse, now: Instant) {
        let deadline = now + self.timings.offer;
        let Some(offer) = self.offers.get_mut(&id) else {
            return;
        };
        offer.stage = OfferStage::Open(offered);
        offer.deadline = deadline;
        let agent = offer.agent;
        if !self.tell(agent, message) {
            self.take_back(id);
        }
    }

    /// Withdraws an offer. The job waits again, and nothing is counted.
    pub(crate) fn take_back(&mut self, id: OfferId) {
        if let Some(job) = self.release(id) {
            self.enqueue(job);
        }
    }

    /// Withdraws an unanswered offer: other agents are asked before this one is asked again.
    pub(super) fn unanswered(&mut self, id: OfferId) {
        if let Some(offer) = self.offers.get_mut(&id)
            && matches!(offer.stage, OfferStage::Open(_))
        {
            offer.job.affinity = Affinity {
                prefer: offer.job.affinity.prefer.filter(|prefer| *prefer != offer.agent),
                avoid: Some(offer.agent),
            };
        }
        self.take_back(id);
    }

    pub(super) fn take_back_all(&mut self, agent: AgentId) {
        let offers: Vec<_> = self
            .offers
            .iter()
            .filter(|(_, offer)| offer.agent == agent)
            .map(|(id, _)| *id)
            .collect();
        for id in offers {
            self.take_back(id);
        }
    }

    /// Drops an offer whose job moved on.
    pub(crate) fn drop_offer(&mut self, id: OfferId) {
        self.release(id);
    }

    /// Withdraws an offer, and does not offer the job to the agent for a while.
    pub(crate) fn refuse(&mut self, id: OfferId, agent: AgentId, reason: String, now: Instant) {
        let Some(offer) = self.offers.get(&id).filter(|offer| offer.agent == agent) else {
            return;
        };
        let refused = Refused {
            agent,
            until: now + self.timings.refusal,
            reason,
        };
        self.refusals.entry(offer.job.job).or_default().push(refused);
        self.take_back(id);
    }

    /// The agent accepted an offer. `None` when it was withdrawn. The slot stays taken until
    /// [`Board::started`] or [`Board::not_started`].
    pub(crate) fn accept(&mut self, id: OfferId, agent: AgentId, serial: Serial) -> Option<(QueuedJob, Offered)> {
        let offer = self.offers.get(&id)?;
        if offer.agent != agent || offer.serial != serial || matches!(offer.stage, OfferStage::Preparing) {
            return None;
        }
        let offer = self.offers.remove(&id)?;
        match offer.stage {
            OfferStage::Open(offered) => Some((offer.job, offered)),
            OfferStage::Preparing => None,
        }
    }

    /// Tells an agent to start an attempt that is stored. False when that connection is gone or the
    /// attempt was stopped before it started: the caller ends the attempt.
    pub(crate) fn started(
        &mut self,
        agent: AgentId,
        serial: Serial,
        job: &QueuedJob,
        attempt: AttemptId,
        now: Instant,
    ) -> bool {
        let lease_until = now + self.timings.lease_ttl;
        let begins = !self.stopping.contains(&attempt)
            && match self.members.get(agent).and_then(Member::link) {
                Some(link) if link.serial == serial => self.tell(agent, granted_message(attempt)),
                Some(_) | None => false,
            };
        if !begins {
            self.not_started(agent, job);
            return false;
        }
        self.members.change(agent, |member| {
            let running = Running {
                task: job.task,
                adapter: job.needs().cloned(),
                subject: job.subject,
                lease_until,
            };
            member.running.insert(attempt, running);
        });
        true
    }

    /// Releases the slot of an accepted job that could not be started.
    pub(crate) fn not_started(&mut self, agent: AgentId, job: &QueuedJob) {
        self.members.change(agent, |member| member.lanes.release(job.needs()));
        self.let_go(job.task);
    }

    fn release(&mut self, id: OfferId) -> Option<QueuedJob> {
        let offer = self.offers.remove(&id)?;
        self.not_started(offer.agent, &offer.job);
        Some(offer.job)
    }
}

fn granted_message(attempt: AttemptId) -> v1::ConnectResponse {
    v1::ConnectResponse {
        message: Some(v1::connect_response::Message::Granted(v1::Granted {
            attempt_id: attempt.to_string(),
        })),
    }
}

//! Offers of work: which ones are taken, and how a granted one starts. The connection sends the
//! answers.

use std::sync::Arc;

use kage_core::contain::{Containment, Tier};
use kage_proto::convert::agent::{AttemptKey, Work, WorkKind};
use kage_proto::v1;
use kage_proto::v1::connect_request::Message as ToCoordinator;
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio::time::Instant;
use tracing::Instrument as _;

use super::{Connection, Course, parse};
use crate::adapters::hearing::Hearing;
use crate::attempt::{self, Grant};
use crate::delivery::live::Stop;

/// Pending checkpoint requests of one attempt. When full, further ones are refused.
const ASKS: usize = 4;

/// An accepted offer that is not granted yet. It holds its places.
pub(super) struct Accepted {
    key: AttemptKey,
    work: Work,
    /// Its slot, and what else only one attempt may have.
    places: Vec<OwnedSemaphorePermit>,
    pub(super) at: Instant,
}

/// That work demands more than this agent has.
fn beyond(demanded: Tier, has: &Containment) -> String {
    let why = match has.short_of.as_str() {
        "" => String::new(),
        short_of => format!(" ({short_of})"),
    };
    format!("it demands containment {demanded}, and the agent has {}{why}", has.tier)
}

impl Connection {
    pub(super) fn offer(&mut self, offer: v1::Offer) {
        let offer_id = offer.offer_id.clone();
        let answer = match self.consider(offer) {
            Ok(accepted) => {
                self.accepted.insert(accepted.key.attempt, accepted);
                ToCoordinator::Accept(v1::Accept { offer_id })
            }
            Err(reason) => {
                tracing::info!(reason, "offer refused");
                ToCoordinator::Refuse(v1::Refuse { offer_id, reason })
            }
        };
        self.send(answer);
    }

    /// Whether an offer can be taken; otherwise the reason.
    fn consider(&self, offer: v1::Offer) -> Result<Accepted, String> {
        if self.course != Course::Taking {
            return Err("the agent takes no more work".to_owned());
        }
        if let Some(hindrance) = self.parts.resources.outbox.hindrances().now() {
            return Err(hindrance);
        }
        let (used, most) = (
            self.parts.resources.worktrees.bytes(),
            self.parts.resources.limits.worktrees,
        );
        if used > most {
            return Err(format!(
                "worktrees take {} MiB here, and may take {}",
                used >> 20,
                most >> 20
            ));
        }
        let key = offer.key.ok_or("the offer has no key")?;
        let key = AttemptKey::try_from(key).map_err(|error| format!("the key cannot be read: {error}"))?;
        let work = offer.work.ok_or("the offer has no work")?;
        let work = Work::try_from(work).map_err(|error| format!("the work cannot be read: {error}"))?;
        // The coordinator may be wrong about this agent.
        if work.contain > self.parts.contained.tier {
            return Err(beyond(work.contain, &self.parts.contained));
        }
        let (mut places, mut adapter) = (Vec::new(), None);
        if let WorkKind::Session(session) = &work.kind {
            let announced = self.announced.borrow();
            if !announced.adapters.iter().any(|adapter| adapter.name == session.adapter) {
                return Err(format!("the agent has no adapter {}", session.adapter));
            }
            let handed = work.environment.handed.as_ref();
            places.extend(
                self.parts
                    .resources
                    .equipments
                    .reserve(handed, work.task, &session.adapter)?,
            );
            adapter = Some(&session.adapter);
        }
        let slot = self
            .slots
            .of(adapter)
            .try_acquire_owned()
            .map_err(|_| "every slot is taken".to_owned())?;
        places.push(slot);
        Ok(Accepted {
            key,
            work,
            places,
            at: Instant::now(),
        })
    }

    /// The lease is durable: the attempt starts.
    pub(super) fn granted(&mut self, attempt_id: &str) {
        let accepted = parse(attempt_id).and_then(|id| self.accepted.remove(&id));
        let Some(Accepted { key, work, places, at }) = accepted else {
            tracing::warn!(attempt = attempt_id, "granted an attempt that was not accepted");
            return;
        };
        let attempt = key.attempt;
        let kind = match work.kind {
            WorkKind::Session(_) => "session",
            WorkKind::Verify(_) => "verify",
        };
        let span = tracing::info_span!("attempt", task = %work.task, session = %work.session, %attempt, kind);
        let stop = Stop::default();
        let (freeze, frozen) = watch::channel(false);
        let (ask, asks) = mpsc::channel(ASKS);
        let hearing = Hearing::default();
        self.parts
            .resources
            .live
            .insert(key.clone(), stop.clone(), ask, hearing.clone());
        self.frozen.insert(attempt, freeze);
        self.leases.grant(attempt, at);
        let grant = Grant {
            key,
            work,
            stop,
            frozen,
            asks,
            hearing,
            places,
        };
        let running = attempt::run(Arc::clone(&self.parts.resources), grant).instrument(span);
        let handle = self.running.spawn(running);
        self.attempts.insert(handle.id(), attempt);
    }
}

//! The attempts this agent answers for: those that run and those that are not delivered yet, and
//! how to stop each. A table that `connection`, `delivery` and the attempts share; its lock is
//! never held across a wait.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use kage_core::failure::{Failure, FailureKind};
use kage_core::id::{AttemptId, AttemptToken};
use kage_proto::convert::agent::AttemptKey;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::adapters::hearing::Hearing;
use crate::adapters::steps::CheckpointRequest;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum StopReason {
    /// The coordinator said so, or refuses what the attempt sends.
    Ordered(String),
    /// The agent shuts down and returns the work.
    HandedBack,
    /// The disconnect lasted longer than the coordinator allows.
    Detached,
}

impl StopReason {
    /// The failure that reports the attempt's end.
    pub(crate) fn failure(&self) -> Failure {
        match self {
            Self::Ordered(reason) if reason.is_empty() => Failure::new(FailureKind::Cancelled, "it was told to stop"),
            Self::Ordered(reason) => Failure::new(FailureKind::Cancelled, reason.clone()),
            Self::HandedBack => Failure::new(FailureKind::AgentLost, "the agent was shut down and gave the work back"),
            Self::Detached => Failure::new(FailureKind::AgentLost, "the agent lost the coordinator for too long"),
        }
    }
}

/// Tells one attempt to stop. The first reason counts.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stop {
    reason: Arc<OnceLock<StopReason>>,
    token: CancellationToken,
}

impl Stop {
    pub(crate) fn because(&self, reason: StopReason) {
        self.reason.get_or_init(|| reason);
        self.token.cancel();
    }

    /// Why the attempt has to stop; `None` while it may continue.
    pub(crate) fn reason(&self) -> Option<&StopReason> {
        self.reason.get()
    }

    /// Cancelled when it has to stop.
    pub(crate) const fn token(&self) -> &CancellationToken {
        &self.token
    }
}

#[derive(Debug)]
struct LiveEntry {
    token: AttemptToken,
    stop: Stop,
    asks: mpsc::Sender<CheckpointRequest>,
    hearing: Hearing,
}

/// The table. Cloning shares it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Live(Arc<Mutex<BTreeMap<AttemptId, LiveEntry>>>);

impl Live {
    fn map<T>(&self, look: impl FnOnce(&mut BTreeMap<AttemptId, LiveEntry>) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Adds a granted attempt. `asks` receives checkpoint requests, and `hearing` what people say.
    pub(crate) fn insert(&self, key: AttemptKey, stop: Stop, asks: mpsc::Sender<CheckpointRequest>, hearing: Hearing) {
        let entry = LiveEntry {
            token: key.token,
            stop,
            asks,
            hearing,
        };
        self.map(|map| map.insert(key.attempt, entry));
    }

    /// What people say to an attempt; `None`: there is no such attempt.
    pub(crate) fn hearing(&self, attempt: AttemptId) -> Option<Hearing> {
        self.map(|map| map.get(&attempt).map(|entry| entry.hearing.clone()))
    }

    /// Asks an attempt for a checkpoint. False when it takes no more, or was asked too often.
    pub(crate) fn ask(&self, attempt: AttemptId, request: CheckpointRequest) -> bool {
        self.map(|map| {
            let entry = map.get(&attempt);
            entry.is_some_and(|entry| entry.asks.try_send(request).is_ok())
        })
    }

    /// The attempts that this agent reports to the coordinator as its own.
    pub(crate) fn keys(&self) -> Vec<AttemptKey> {
        self.map(|map| {
            map.iter()
                .map(|(attempt, entry)| AttemptKey {
                    attempt: *attempt,
                    token: entry.token.clone(),
                })
                .collect()
        })
    }

    /// Tells an attempt to stop; it stays in the table until its end is delivered.
    pub(crate) fn stop(&self, attempt: AttemptId, reason: StopReason) {
        if let Some(stop) = self.map(|map| map.get(&attempt).map(|entry| entry.stop.clone())) {
            stop.because(reason);
        }
    }

    pub(crate) fn stop_all(&self, reason: &StopReason) {
        let stops: Vec<_> = self.map(|map| map.values().map(|entry| entry.stop.clone()).collect());
        for stop in stops {
            stop.because(reason.clone());
        }
    }

    /// True until the attempt is delivered or refused.
    pub(crate) fn contains(&self, attempt: AttemptId) -> bool {
        self.map(|map| map.contains_key(&attempt))
    }

    /// Removes a delivered or refused attempt.
    pub(crate) fn remove(&self, attempt: AttemptId) {
        self.map(|map| map.remove(&attempt));
    }
}

//! Tells people of refusals: once for each host, and of so many hosts at most, whatever a program tries.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use kage_core::network::{Host, Refused};
use tokio::sync::mpsc;

/// The most hosts that are told of.
pub(super) const MOST: usize = 32;

/// Who was told of what.
pub(super) struct Refusals {
    told: mpsc::Sender<String>,
    hosts: Mutex<BTreeSet<Host>>,
}

impl Refusals {
    /// `told` has room for [`MOST`].
    pub(super) fn new(told: mpsc::Sender<String>) -> Self {
        Self {
            told,
            hosts: Mutex::default(),
        }
    }

    /// Tells of it, unless that host was told of.
    pub(super) fn note(&self, refused: &Refused) {
        let host = &refused.destination().host;
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        if hosts.len() >= MOST || !hosts.insert(host.clone()) {
            return;
        }
        let more = match hosts.len() {
            MOST => "; refusals of further hosts are not told",
            _ => "",
        };
        // There is room for as many as are told; after the end nobody listens.
        if self.told.try_send(format!("the network: {refused}{more}")).is_err() {
            tracing::debug!(%refused, "a refusal is not told");
        }
    }
}

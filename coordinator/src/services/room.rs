//! Whether a caller may send bytes that are stored, and counting them: for its token, as so many in an hour, and
//! for the project that gets them. The owner's token is not limited. An agent is not refused for what its project
//! has: what it sends was paid for already. A full project gets no new task instead.

use std::sync::Arc;

use kage_core::id::ProjectId;
use kage_proto::status::ApiError;

use crate::coordinator::Coordinator;
use crate::data::stored::{Incoming, ProjectFull};
use crate::door::auth::Principal;
use crate::door::restraint::Restraint;

/// Counts what a caller sends.
#[derive(Debug, Default)]
pub(super) struct Room(Option<(Arc<Restraint>, String, Incoming)>);

impl Room {
    /// Refuses a caller that has sent too much, and one whose project has too much.
    pub(super) async fn of(
        coordinator: &Coordinator,
        caller: &Principal,
        project: &ProjectId,
    ) -> Result<Self, ApiError> {
        let Some(name) = caller.limited() else {
            return Ok(Self::default());
        };
        coordinator.restraint.may_send(&name)?;
        let incoming = match caller.is_person() {
            true => coordinator.stored.room(project).await.map_err(|full| refused(&full))?,
            false => coordinator.stored.incoming(project).await,
        };
        Ok(Self(Some((Arc::clone(&coordinator.restraint), name, incoming))))
    }

    /// Why a caller's project gets no new task: it has as much as it may have.
    pub(super) async fn full(coordinator: &Coordinator, caller: &Principal, project: &ProjectId) -> Option<String> {
        if !caller.is_person() {
            return None;
        }
        let room = coordinator.stored.room(project).await;
        room.err().map(|full| full.to_string())
    }

    /// So many bytes came.
    pub(super) fn took(&self, bytes: usize) {
        if let Some((restraint, name, incoming)) = &self.0 {
            restraint.sent(name, bytes as u64);
            incoming.add(bytes as u64);
        }
    }
}

fn refused(full: &ProjectFull) -> ApiError {
    ApiError::ResourceExhausted {
        message: full.to_string(),
        // Nothing of it goes by itself.
        retry: None,
    }
}

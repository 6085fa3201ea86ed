//! The known callers in memory: people's tokens and agents that joined, so that calls are checked
//! without reading the store. The store is the source; this is filled from it at the start, and
//! then follows its feed.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use kage_core::access::{Capabilities, Role};
use kage_core::id::{AgentId, Digest, ProjectId, TokenId};
use kage_core::task::Labels;
use tokio_util::sync::CancellationToken;

use crate::store::{Enrolment, PersonToken};

/// A person, or a program of a person.
#[derive(Debug, Clone)]
pub(crate) struct Person {
    pub(crate) token: TokenId,
    pub(crate) role: Role,
    /// The only project the token is good for; `None` = all.
    pub(crate) project: Option<ProjectId>,
    /// Cancelled when the token is revoked.
    pub(crate) revoked: CancellationToken,
}

#[derive(Debug, Clone)]
pub(crate) struct EnrolledAgent {
    pub(crate) id: AgentId,
    pub(crate) project: ProjectId,
    pub(crate) labels: Labels,
    pub(crate) can: Capabilities,
    /// Cancelled when it was shut out.
    pub(crate) revoked: CancellationToken,
}

#[derive(Debug, Default)]
struct Known {
    people: HashMap<Digest, Person>,
    agents: HashMap<AgentId, EnrolledAgent>,
}

#[derive(Debug, Default)]
pub(crate) struct Identities(RwLock<Known>);

impl Identities {
    /// Updates a token from the store. A revoked token stays revoked.
    pub(crate) fn person(&self, token: &PersonToken) {
        let mut known = self.write();
        let person = known.people.entry(token.hash.clone()).or_insert_with(|| Person {
            token: token.id,
            role: token.role,
            project: token.project.clone(),
            revoked: CancellationToken::new(),
        });
        if token.revoked_at.is_some() {
            person.revoked.cancel();
        }
    }

    /// Updates an agent from the store. A revoked agent stays revoked.
    pub(crate) fn agent(&self, enrolment: &Enrolment) {
        let mut known = self.write();
        let agent = known.agents.entry(enrolment.agent).or_insert_with(|| EnrolledAgent {
            id: enrolment.agent,
            project: enrolment.project.clone(),
            labels: enrolment.labels.clone(),
            can: enrolment.can,
            revoked: CancellationToken::new(),
        });
        if enrolment.revoked_at.is_some() {
            agent.revoked.cancel();
        }
    }

    /// The owner of the token with this hash, revoked tokens included.
    pub(crate) fn holder(&self, hash: &Digest) -> Option<Person> {
        self.read().people.get(hash).cloned()
    }

    /// The agent, also when it was shut out.
    pub(crate) fn enrolled(&self, agent: AgentId) -> Option<EnrolledAgent> {
        self.read().agents.get(&agent).cloned()
    }

    /// The agents that joined and whose id has this prefix.
    pub(crate) fn agents_with_prefix(&self, prefix: &str) -> Vec<AgentId> {
        let known = self.read();
        let ids = known.agents.keys().copied();
        ids.filter(|id| id.to_string().starts_with(prefix)).collect()
    }

    // Every change is a single insertion or cancellation, so a panic leaves nothing incomplete.

    fn read(&self) -> RwLockReadGuard<'_, Known> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Known> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

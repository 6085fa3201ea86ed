//! Who is known, in memory: the tokens of people and the agents that joined, so that every
//! call can be checked without a look into the store. The store is the truth; this is
//! filled from it at a start, and after each command that changes it.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use kage_core::access::Role;
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
    /// Cancelled when the token was taken back.
    pub(crate) revoked: CancellationToken,
}

/// An agent that joined.
#[derive(Debug, Clone)]
pub(crate) struct EnrolledAgent {
    pub(crate) id: AgentId,
    pub(crate) project: ProjectId,
    pub(crate) labels: Labels,
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
    /// Takes in what the store says of a token. What is revoked stays revoked.
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

    /// Takes in what the store says of an agent. What is revoked stays revoked.
    pub(crate) fn agent(&self, enrolment: &Enrolment) {
        let mut known = self.write();
        let agent = known.agents.entry(enrolment.agent).or_insert_with(|| EnrolledAgent {
            id: enrolment.agent,
            project: enrolment.project.clone(),
            labels: enrolment.labels.clone(),
            revoked: CancellationToken::new(),
        });
        if enrolment.revoked_at.is_some() {
            agent.revoked.cancel();
        }
    }

    /// Shuts an agent out: its connections end.
    pub(crate) fn revoke_agent(&self, agent: AgentId) {
        if let Some(agent) = self.read().agents.get(&agent) {
            agent.revoked.cancel();
        }
    }

    /// Whose token has this hash, also when it was taken back.
    pub(crate) fn holder(&self, hash: &Digest) -> Option<Person> {
        self.read().people.get(hash).cloned()
    }

    /// The agent, also when it was shut out.
    pub(crate) fn enrolled(&self, agent: AgentId) -> Option<EnrolledAgent> {
        self.read().agents.get(&agent).cloned()
    }

    /// The agents that joined and whose id begins so.
    pub(crate) fn agents_with_prefix(&self, prefix: &str) -> Vec<AgentId> {
        let known = self.read();
        let ids = known.agents.keys().copied();
        ids.filter(|id| id.to_string().starts_with(prefix)).collect()
    }

    // Every change is one insertion or one cancellation: a panic leaves nothing half done.

    fn read(&self) -> RwLockReadGuard<'_, Known> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Known> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

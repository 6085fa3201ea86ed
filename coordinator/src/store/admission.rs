//! Admission: join tokens, agents that used one, and people's tokens, with the commands on them.
//! Secrets are stored as hashes.

use kage_core::access::{Capabilities, JoinRefusal, Role};
use kage_core::id::{AgentId, Digest, ProjectId, TokenId};
use kage_core::task::Labels;
use kage_core::time::Timestamp;
use serde::{Deserialize, Serialize};

use super::command::Request;

/// A token that lets agents join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinTokenRow {
    pub secret: Digest,
    /// The only project that its agents may work for.
    pub project: ProjectId,
    pub labels: Labels,
    /// What its agents may be given to do.
    pub can: Capabilities,
    /// How many agents it lets join.
    pub uses: u32,
    pub expires_at: Timestamp,
    /// The agents that used it, in the order in which they joined; never more than `uses`.
    pub used: Vec<JoinUse>,
}

/// One use of a join token. The same key again is the same use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinUse {
    pub agent: AgentId,
    /// Digest of its public key.
    pub key: Digest,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enrolment {
    pub agent: AgentId,
    /// The only project that it works for.
    pub project: ProjectId,
    /// Its labels, whatever it says itself.
    pub labels: Labels,
    /// What it may be given to do.
    pub can: Capabilities,
    pub enrolled_at: Timestamp,
    pub revoked_at: Option<Timestamp>,
}

/// A bearer token of a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PersonToken {
    pub id: TokenId,
    /// Hash of the token.
    pub hash: Digest,
    pub role: Role,
    pub name: String,
    /// The only project it is good for; `None` = all.
    pub project: Option<ProjectId>,
    pub created_at: Timestamp,
    pub revoked_at: Option<Timestamp>,
}

#[derive(Debug, Clone)]
pub struct CreateJoinToken {
    /// The caller's request id: repeating the call has no effect.
    pub request: Request,
    pub id: TokenId,
    pub secret: Digest,
    /// The only project that its agent may work for.
    pub project: ProjectId,
    pub labels: Labels,
    /// What its agents may be given to do.
    pub can: Capabilities,
    /// How many agents it lets join.
    pub uses: u32,
    pub expires_at: Timestamp,
    pub now: Timestamp,
}

#[derive(Debug, Clone)]
pub struct EnrolAgent {
    pub token: TokenId,
    /// Hash of the secret that was shown.
    pub secret: Digest,
    /// The project that the agent means; `None` = the token's.
    pub project: Option<ProjectId>,
    /// Digest of the agent's public key, which it has proved to hold.
    pub key: Digest,
    pub agent: AgentId,
    pub now: Timestamp,
}

/// The outcome of joining.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Enrolled {
    /// It is in: now, or by an earlier call with the same key.
    Joined(Enrolment),
    /// It is not, and nothing changed.
    Refused(JoinRefusal),
}

/// Shuts an agent out, for good.
#[derive(Debug, Clone)]
pub struct RevokeAgent {
    pub request: Request,
    pub agent: AgentId,
    pub now: Timestamp,
}

/// Takes a join token back: nobody joins with it any more. Agents that joined stay.
#[derive(Debug, Clone)]
pub struct RevokeJoinToken {
    pub request: Request,
    pub id: TokenId,
    pub now: Timestamp,
}

/// Stores a token of a person.
#[derive(Debug, Clone)]
pub struct CreatePersonToken {
    pub request: Request,
    pub id: TokenId,
    /// Hash of the token.
    pub hash: Digest,
    pub role: Role,
    pub name: String,
    /// The only project it shall be good for; `None` = all.
    pub project: Option<ProjectId>,
    pub now: Timestamp,
}

/// Revokes a token of a person.
#[derive(Debug, Clone)]
pub struct RevokePersonToken {
    pub request: Request,
    pub id: TokenId,
    pub now: Timestamp,
}

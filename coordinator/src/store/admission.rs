//! Who may come in: join tokens, the agents that used one, and the tokens of people. The
//! commands on them; secrets come as hashes.

use kage_core::access::{JoinRefusal, Role};
use kage_core::id::{AgentId, Digest, ProjectId, TokenId};
use kage_core::task::Labels;
use kage_core::time::Timestamp;

use super::command::Request;

/// A token that lets one agent join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinTokenRow {
    /// Hash of its secret.
    pub secret: Digest,
    /// What its agent may work for.
    pub project: ProjectId,
    /// What its agent carries.
    pub labels: Labels,
    /// Good until then.
    pub expires_at: Timestamp,
    /// Who used it, and the digest of that agent's public key.
    pub used: Option<(AgentId, Digest)>,
}

/// An agent that joined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enrolment {
    /// Its id.
    pub agent: AgentId,
    /// What it may work for.
    pub project: ProjectId,
    /// What it carries, whatever it says itself.
    pub labels: Labels,
    /// When it joined.
    pub enrolled_at: Timestamp,
    /// When it was shut out.
    pub revoked_at: Option<Timestamp>,
}

/// A bearer token of a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PersonToken {
    /// Names it.
    pub id: TokenId,
    /// Hash of what is shown.
    pub hash: Digest,
    /// What its holder may do.
    pub role: Role,
    /// What people call it.
    pub name: String,
    /// The only project it is good for; `None` = all.
    pub project: Option<ProjectId>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was taken back.
    pub revoked_at: Option<Timestamp>,
}

/// Stores a join token.
#[derive(Debug, Clone)]
pub struct CreateJoinToken {
    /// Makes it one call.
    pub request: Request,
    /// A fresh id.
    pub id: TokenId,
    /// Hash of its secret.
    pub secret: Digest,
    /// What its agent may work for.
    pub project: ProjectId,
    /// What its agent carries.
    pub labels: Labels,
    /// Good until then.
    pub expires_at: Timestamp,
    /// The time.
    pub now: Timestamp,
}

/// Uses a join token up.
#[derive(Debug, Clone)]
pub struct EnrolAgent {
    /// The token.
    pub token: TokenId,
    /// Hash of the secret that was shown.
    pub secret: Digest,
    /// The project that the agent means; `None` = the token's.
    pub project: Option<ProjectId>,
    /// Digest of the agent's public key, which it has proved to hold.
    pub key: Digest,
    /// A fresh id.
    pub agent: AgentId,
    /// The time.
    pub now: Timestamp,
}

/// What became of an attempt to join.
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
    /// Makes it one call.
    pub request: Request,
    /// Which.
    pub agent: AgentId,
    /// The time.
    pub now: Timestamp,
}

/// Stores a token of a person.
#[derive(Debug, Clone)]
pub struct CreatePersonToken {
    /// Makes it one call.
    pub request: Request,
    /// A fresh id.
    pub id: TokenId,
    /// Hash of what is shown.
    pub hash: Digest,
    /// What its holder may do.
    pub role: Role,
    /// What people call it.
    pub name: String,
    /// The only project it shall be good for; `None` = all.
    pub project: Option<ProjectId>,
    /// The time.
    pub now: Timestamp,
}

/// Takes a token of a person back.
#[derive(Debug, Clone)]
pub struct RevokePersonToken {
    /// Makes it one call.
    pub request: Request,
    /// Which.
    pub id: TokenId,
    /// The time.
    pub now: Timestamp,
}

//! Who may come in: join tokens, the agents that used one, and the tokens of people. The
//! commands on them, named and carried out; secrets come as hashes.

use kage_core::access::{JoinRefusal, Role};
use kage_core::id::{AgentId, Digest, ProjectId, TokenId};
use kage_core::task::Labels;
use kage_core::time::Timestamp;

use super::apply::{Command, earlier_reply, not_found, remember};
use super::command::Request;
use super::error::EngineError;
use super::rows::{Failed, Rows};

/// How long a join token is remembered after it ended, so that whoever shows it then is
/// told why it is refused.
const REMEMBER_JOIN_TOKENS: std::time::Duration = std::time::Duration::from_secs(7 * 24 * 60 * 60);

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

impl Command for CreateJoinToken {
    /// Id and row: those of the first call when this one repeats it.
    type Outcome = (TokenId, JoinTokenRow);

    fn apply(self, rows: &mut dyn Rows) -> Result<Self::Outcome, Failed> {
        if let Some(reply) = earlier_reply(rows, "create_join_token", &self.request)? {
            let id = stored_id(&reply)?;
            let row = rows.join_token(id)?.ok_or_else(|| not_found("join token", id))?;
            return Ok((id, row));
        }
        let row = JoinTokenRow {
            secret: self.secret,
            project: self.project,
            labels: self.labels,
            expires_at: self.expires_at,
            used: None,
        };
        rows.put_join_token(self.id, &row)?;
        let kept = u64::try_from(REMEMBER_JOIN_TOKENS.as_millis()).unwrap_or(u64::MAX);
        rows.forget_join_tokens(Timestamp::from_millis(self.now.as_millis().saturating_sub(kept)))?;
        remember(rows, "create_join_token", self.request, self.id.to_string(), self.now)?;
        Ok((self.id, row))
    }
}

impl Command for EnrolAgent {
    type Outcome = Enrolled;

    fn apply(self, rows: &mut dyn Rows) -> Result<Enrolled, Failed> {
        let refused = |refusal| Ok(Enrolled::Refused(refusal));
        // Whoever does not know the secret learns nothing else about a token.
        let Some(row) = rows.join_token(self.token)?.filter(|row| row.secret == self.secret) else {
            return refused(JoinRefusal::Unknown);
        };
        if self.project.is_some_and(|project| project != row.project) {
            return refused(JoinRefusal::OtherProject);
        }
        if let Some((agent, key)) = &row.used {
            if *key != self.key {
                return refused(JoinRefusal::Used);
            }
            let enrolment = rows.enrolment(*agent)?.ok_or_else(|| not_found("enrolment", agent))?;
            return match enrolment.revoked_at {
                Some(_) => refused(JoinRefusal::Revoked),
                None if row.expires_at <= self.now => refused(JoinRefusal::Expired),
                None => Ok(Enrolled::Joined(enrolment)),
            };
        }
        if row.expires_at <= self.now {
            return refused(JoinRefusal::Expired);
        }
        let enrolment = Enrolment {
            agent: self.agent,
            project: row.project.clone(),
            labels: row.labels.clone(),
            enrolled_at: self.now,
            revoked_at: None,
        };
        rows.put_enrolment(&enrolment)?;
        let used = Some((self.agent, self.key));
        rows.put_join_token(self.token, &JoinTokenRow { used, ..row })?;
        Ok(Enrolled::Joined(enrolment))
    }
}

impl Command for RevokeAgent {
    type Outcome = ();

    fn apply(self, rows: &mut dyn Rows) -> Result<(), Failed> {
        if earlier_reply(rows, "revoke_agent", &self.request)?.is_some() {
            return Ok(());
        }
        let enrolment = rows
            .enrolment(self.agent)?
            .ok_or_else(|| not_found("enrolled agent", self.agent))?;
        rows.put_enrolment(&Enrolment {
            revoked_at: enrolment.revoked_at.or(Some(self.now)),
            ..enrolment
        })?;
        remember(rows, "revoke_agent", self.request, String::new(), self.now)
    }
}

impl Command for CreatePersonToken {
    /// The token: that of the first call when this one repeats it.
    type Outcome = PersonToken;

    fn apply(self, rows: &mut dyn Rows) -> Result<PersonToken, Failed> {
        if let Some(reply) = earlier_reply(rows, "create_token", &self.request)? {
            let id = stored_id(&reply)?;
            return rows.person_token(id)?.ok_or_else(|| not_found("token", id));
        }
        let token = PersonToken {
            id: self.id,
            hash: self.hash,
            role: self.role,
            name: self.name,
            project: self.project,
            created_at: self.now,
            revoked_at: None,
        };
        rows.put_person_token(&token)?;
        remember(rows, "create_token", self.request, self.id.to_string(), self.now)?;
        Ok(token)
    }
}

impl Command for RevokePersonToken {
    type Outcome = PersonToken;

    fn apply(self, rows: &mut dyn Rows) -> Result<PersonToken, Failed> {
        let repeated = earlier_reply(rows, "revoke_token", &self.request)?.is_some();
        let token = rows.person_token(self.id)?.ok_or_else(|| not_found("token", self.id))?;
        let token = PersonToken {
            revoked_at: token.revoked_at.or(Some(self.now)),
            ..token
        };
        if !repeated {
            rows.put_person_token(&token)?;
            remember(rows, "revoke_token", self.request, String::new(), self.now)?;
        }
        Ok(token)
    }
}

fn stored_id(reply: &str) -> Result<TokenId, EngineError> {
    reply.parse().map_err(|source| EngineError::Corrupt {
        what: "reply",
        source: Box::new(source),
    })
}

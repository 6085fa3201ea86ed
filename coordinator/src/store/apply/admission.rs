//! Carries out the commands on admission.

use std::time::Duration;

use kage_core::access::JoinRefusal;
use kage_core::id::TokenId;
use kage_core::time::Timestamp;

use super::{Command, earlier_reply, not_found, remember};
use crate::store::admission::{
    CreateJoinToken, CreatePersonToken, EnrolAgent, Enrolled, Enrolment, JoinTokenRow, JoinUse, PersonToken,
    RevokeAgent, RevokeJoinToken, RevokePersonToken,
};
use crate::store::error::EngineError;
use crate::store::rows::{Failed, RequestKey, Rows};
use crate::store::unit::Key;

/// How long a join token is remembered after its end, so that a late caller learns why it is
/// refused.
const REMEMBER_JOIN_TOKENS: Duration = Duration::from_secs(7 * 24 * 60 * 60);

const CREATE_JOIN_TOKEN: &str = "create_join_token";
const REVOKE_AGENT: &str = "revoke_agent";
const CREATE_TOKEN: &str = "create_token";
const REVOKE_TOKEN: &str = "revoke_token";
const REVOKE_JOIN_TOKEN: &str = "revoke_join_token";

impl Command for CreateJoinToken {
    /// Id and row: those of the first call when this one repeats it.
    type Outcome = (TokenId, JoinTokenRow);

    fn reads(&self) -> Vec<Key> {
        vec![Key::JoinTokenOf(RequestKey::of(CREATE_JOIN_TOKEN, &self.request))]
    }

    fn apply(self, rows: &mut dyn Rows) -> Result<Self::Outcome, Failed> {
        if let Some(reply) = earlier_reply(rows, CREATE_JOIN_TOKEN, &self.request)? {
            let id = stored_id(&reply)?;
            let row = rows.join_token(id)?.ok_or_else(|| not_found("join token", id))?;
            return Ok((id, row));
        }
        let row = JoinTokenRow {
            secret: self.secret,
            project: self.project,
            labels: self.labels,
            can: self.can,
            uses: self.uses,
            expires_at: self.expires_at,
            used: Vec::new(),
        };
        rows.put_join_token(self.id, &row)?;
        let kept = u64::try_from(REMEMBER_JOIN_TOKENS.as_millis()).unwrap_or(u64::MAX);
        rows.forget_join_tokens(Timestamp::from_millis(self.now.as_millis().saturating_sub(kept)))?;
        remember(rows, CREATE_JOIN_TOKEN, self.request, self.id.to_string(), self.now)?;
        Ok((self.id, row))
    }
}

impl Command for EnrolAgent {
    type Outcome = Enrolled;

    fn reads(&self) -> Vec<Key> {
        vec![Key::JoinToken(self.token, self.key.clone())]
    }

    fn apply(self, rows: &mut dyn Rows) -> Result<Enrolled, Failed> {
        let refused = |refusal| Ok(Enrolled::Refused(refusal));
        // A caller without the secret learns nothing else about a token.
        let Some(mut row) = rows.join_token(self.token)?.filter(|row| row.secret == self.secret) else {
            return refused(JoinRefusal::Unknown);
        };
        if self.project.is_some_and(|project| project != row.project) {
            return refused(JoinRefusal::OtherProject);
        }
        if let Some(JoinUse { agent, .. }) = row.used.iter().find(|used| used.key == self.key) {
            let enrolment = rows.enrolment(*agent)?.ok_or_else(|| not_found("enrolment", agent))?;
            return match enrolment.revoked_at {
                Some(_) => refused(JoinRefusal::Revoked),
                None if row.expires_at <= self.now => refused(JoinRefusal::Expired),
                None => Ok(Enrolled::Joined(enrolment)),
            };
        }
        if row.used.len() >= row.uses as usize {
            return refused(JoinRefusal::Used);
        }
        if row.expires_at <= self.now {
            return refused(JoinRefusal::Expired);
        }
        let enrolment = Enrolment {
            agent: self.agent,
            project: row.project.clone(),
            labels: row.labels.clone(),
            can: row.can,
            enrolled_at: self.now,
            revoked_at: None,
        };
        rows.put_enrolment(&enrolment)?;
        row.used.push(JoinUse {
            agent: self.agent,
            key: self.key,
        });
        rows.put_join_token(self.token, &row)?;
        Ok(Enrolled::Joined(enrolment))
    }
}

impl Command for RevokeAgent {
    type Outcome = ();

    fn reads(&self) -> Vec<Key> {
        vec![Key::request(REVOKE_AGENT, &self.request), Key::Enrolment(self.agent)]
    }

    fn apply(self, rows: &mut dyn Rows) -> Result<(), Failed> {
        if earlier_reply(rows, REVOKE_AGENT, &self.request)?.is_some() {
            return Ok(());
        }
        let enrolment = rows
            .enrolment(self.agent)?
            .ok_or_else(|| not_found("enrolled agent", self.agent))?;
        rows.put_enrolment(&Enrolment {
            revoked_at: enrolment.revoked_at.or(Some(self.now)),
            ..enrolment
        })?;
        remember(rows, REVOKE_AGENT, self.request, String::new(), self.now)
    }
}

impl Command for RevokeJoinToken {
    /// The token, which has ended.
    type Outcome = JoinTokenRow;

    fn reads(&self) -> Vec<Key> {
        vec![
            Key::request(REVOKE_JOIN_TOKEN, &self.request),
            Key::JoinTokenRow(self.id),
        ]
    }

    fn apply(self, rows: &mut dyn Rows) -> Result<JoinTokenRow, Failed> {
        let repeated = earlier_reply(rows, REVOKE_JOIN_TOKEN, &self.request)?.is_some();
        let row = rows
            .join_token(self.id)?
            .ok_or_else(|| not_found("join token", self.id))?;
        let row = JoinTokenRow {
            expires_at: row.expires_at.min(self.now),
            ..row
        };
        if !repeated {
            rows.put_join_token(self.id, &row)?;
            remember(rows, REVOKE_JOIN_TOKEN, self.request, String::new(), self.now)?;
        }
        Ok(row)
    }
}

impl Command for CreatePersonToken {
    /// The token: that of the first call when this one repeats it.
    type Outcome = PersonToken;

    fn reads(&self) -> Vec<Key> {
        vec![Key::PersonTokenOf(RequestKey::of(CREATE_TOKEN, &self.request))]
    }

    fn apply(self, rows: &mut dyn Rows) -> Result<PersonToken, Failed> {
        if let Some(reply) = earlier_reply(rows, CREATE_TOKEN, &self.request)? {
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
        remember(rows, CREATE_TOKEN, self.request, self.id.to_string(), self.now)?;
        Ok(token)
    }
}

impl Command for RevokePersonToken {
    type Outcome = PersonToken;

    fn reads(&self) -> Vec<Key> {
        vec![Key::request(REVOKE_TOKEN, &self.request), Key::PersonToken(self.id)]
    }

    fn apply(self, rows: &mut dyn Rows) -> Result<PersonToken, Failed> {
        let repeated = earlier_reply(rows, REVOKE_TOKEN, &self.request)?.is_some();
        let token = rows.person_token(self.id)?.ok_or_else(|| not_found("token", self.id))?;
        let token = PersonToken {
            revoked_at: token.revoked_at.or(Some(self.now)),
            ..token
        };
        if !repeated {
            rows.put_person_token(&token)?;
            remember(rows, REVOKE_TOKEN, self.request, String::new(), self.now)?;
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

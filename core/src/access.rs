//! Who may use a coordinator: the roles, the token with which agents join, what they may do then, and
//! the name in an agent's certificate. Parses and prints; draws no secret and stores none.

use std::fmt;
use std::str::FromStr;

use crate::id::{AgentId, Digest, InvalidId, TokenId};
use crate::words::words;

mod capability;

pub use capability::{Admittance, Capabilities, Capability, LetIn};

words! {
    /// A caller's role on a coordinator.
    #[derive(PartialOrd, Ord)]
    pub enum Role: "a role" {
        /// Holds the token file of the coordinator itself: all rights.
        Owner = "owner",
        /// Manages agents and tokens, and has the rights of `Submit`.
        Admin = "admin",
        /// Creates and stops tasks, and has the rights of `View`.
        Submit = "submit",
        /// Reads.
        View = "view",
        /// Works on tasks.
        Agent = "agent",
        /// Shows no credentials: may enrol, and nothing else.
        Stranger = "stranger",
    }
}

const PREFIX: &str = "kage1";
/// Length of a secret: 256 bits as hex.
const SECRET_DIGITS: usize = 64;

/// Lets agents join, as many as it is good for: `kage1.<sha256 of the CA's public key>.<token id>.<secret>`.
///
/// The joining agent checks the first part against the coordinator that answers before it sends the
/// secret.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// SHA-256 of the SubjectPublicKeyInfo of the coordinator's CA.
    pub ca: Digest,
    /// Id of the token.
    pub id: TokenId,
    /// Proves that the token was issued. Never logged.
    pub secret: String,
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}.{}.{}.{}", self.ca, self.id, self.secret)
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl FromStr for JoinToken {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        // The text itself is a secret, so it is not repeated.
        let invalid = || invalid("the text", "a join token (kage1.<ca>.<id>.<secret>)");
        let parts: Vec<_> = text.trim().split('.').collect();
        let [PREFIX, ca, id, secret] = parts.as_slice() else {
            return Err(invalid());
        };
        if secret.len() != SECRET_DIGITS || !secret.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(invalid());
        }
        Ok(Self {
            ca: ca.parse().map_err(|_| invalid())?,
            id: id.parse().map_err(|_| invalid())?,
            secret: (*secret).to_owned(),
        })
    }
}

/// Why a join token is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JoinRefusal {
    /// There is no such token, or the secret is wrong.
    #[error("the join token does not belong to this coordinator")]
    Unknown,
    /// As many agents joined with it as it was good for.
    #[error(
        "the join token was used already, as often as it may be; make a new one with `kage token create --role agent`"
    )]
    Used,
    /// It is too old.
    #[error("the join token has expired; make a new one with `kage token create --role agent`")]
    Expired,
    /// It is for another project.
    #[error("the join token is for another project")]
    OtherProject,
    /// The agent that joined with it was shut out.
    #[error("the agent that joined with this token was revoked")]
    Revoked,
}

impl JoinRefusal {
    /// Every refusal.
    pub const ALL: [Self; 5] = [
        Self::Unknown,
        Self::Used,
        Self::Expired,
        Self::OtherProject,
        Self::Revoked,
    ];

    /// The stable name on the wire.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Unknown => "JOIN_TOKEN_UNKNOWN",
            Self::Used => "JOIN_TOKEN_USED",
            Self::Expired => "JOIN_TOKEN_EXPIRED",
            Self::OtherProject => "JOIN_TOKEN_OTHER_PROJECT",
            Self::Revoked => "JOINED_AGENT_REVOKED",
        }
    }
}

const AGENT_URI: &str = "kage://agent/";

/// The subject alternative name in an agent's certificate.
#[must_use]
pub fn agent_uri(agent: AgentId) -> String {
    format!("{AGENT_URI}{agent}")
}

/// The agent that a certificate's name identifies.
///
/// # Errors
/// When the name has another form.
pub fn agent_of_uri(uri: &str) -> Result<AgentId, InvalidId> {
    let id = uri
        .strip_prefix(AGENT_URI)
        .ok_or_else(|| invalid(uri, "the name of an agent"))?;
    id.parse()
}

fn invalid(text: &str, expected: &'static str) -> InvalidId {
    InvalidId {
        text: text.chars().take(80).collect(),
        expected,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_join_token_is_read_as_it_was_printed() {
        let token = JoinToken {
            ca: Digest::of(b"key"),
            id: TokenId::from_random(7),
            secret: "0f".repeat(32),
        };
        let text = token.to_string();
        assert_eq!(text.parse(), Ok(token.clone()));
        assert!(!format!("{token:?}").contains("0f0f"));
        let wrong = [
            "",
            "kage1",
            &text[1..],
            &text[..text.len() - 1],
            &format!("{text}.x"),
            &text.replace("kage1", "kage2"),
            &text.replace("0f0f", "0x0f"),
        ];
        for text in wrong {
            let error = text.parse::<JoinToken>().unwrap_err();
            assert!(!error.to_string().contains("0f0f"), "{error}");
        }
    }

    #[test]
    fn an_agents_name_is_its_id() {
        let id = AgentId::from_random(5);
        assert_eq!(agent_of_uri(&agent_uri(id)), Ok(id));
        for wrong in ["kage://agent/", "kage://agent/x", "spiffe://agent/00", ""] {
            assert!(agent_of_uri(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn roles_have_words() {
        for role in Role::ALL {
            assert_eq!(role.to_string().parse(), Ok(role));
        }
        assert!("root".parse::<Role>().is_err());
    }
}

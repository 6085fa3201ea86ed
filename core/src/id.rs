//! Names of things: ids, digests, git object ids and tokens.
//!
//! Each is a type of its own, so that ids of different kinds cannot be mixed up. This file parses
//! and prints them; it never makes new ones, because that needs randomness.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

/// Why a text is not an id of the expected kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {expected}")]
pub struct InvalidId {
    /// The given text.
    pub text: String,
    /// The expected form, with its article.
    pub expected: &'static str,
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(into = "String", try_from = "String")]
        pub struct $name(Uuid);

        impl $name {
            /// Wraps 128 bits that the caller drew at random.
            #[must_use]
            pub const fn from_random(bits: u128) -> Self {
                Self(Uuid::from_u128(bits))
            }

            /// The 128 bits, as in a row.
            #[must_use]
            pub const fn as_bits(&self) -> u128 {
                self.0.as_u128()
            }

            /// The first eight characters, shown to people: enough to distinguish a few thousand.
            #[must_use]
            pub fn short(&self) -> String {
                let mut text = self.to_string();
                text.truncate(8);
                text
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.simple().fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0.simple())
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let invalid = || InvalidId {
                    text: text.chars().take(80).collect(),
                    expected: "an id of 32 hex digits",
                };
                // An id has one spelling, or two texts would name the same thing.
                if text.len() != 32 || text.bytes().any(|b| b.is_ascii_uppercase()) {
                    return Err(invalid());
                }
                Uuid::try_parse(text).map(Self).map_err(|_| invalid())
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.to_string()
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;

            fn try_from(text: String) -> Result<Self, InvalidId> {
                text.parse()
            }
        }
    };
}

id!(
    /// A task: a person's request.
    TaskId
);
id!(
    /// A session: one adapter working on a task.
    SessionId
);
id!(
    /// A job: the unit that is placed and leased.
    JobId
);
id!(
    /// An attempt: one leased execution of a job.
    AttemptId
);
id!(
    /// An agent: the daemon on a worker machine. Its id stays the same across restarts.
    AgentId
);
id!(
    /// One start of an agent daemon.
    BootId
);
id!(
    /// The public id of a token with which an agent joins or a person calls.
    TokenId
);
id!(
    /// A store: the database of a coordinator and its data folder.
    StoreId
);
id!(
    /// A call of a model: one request to a provider, drawn by the agent that makes it.
    CallId
);
id!(
    /// One offer of a job to an agent. It lives in the coordinator's memory only.
    OfferId
);

/// A text that follows a rule; printed as it was given.
macro_rules! text {
    ($(#[$doc:meta])* $name:ident, $rule:expr, $expected:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(into = "String", try_from = "String")]
        pub struct $name(String);

        impl $name {
            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                if $rule(text) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(InvalidId {
                        text: text.chars().take(120).collect(),
                        expected: $expected,
                    })
                }
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;

            fn try_from(text: String) -> Result<Self, InvalidId> {
                text.parse()
            }
        }
    };
}

/// Whether the text is that many lower-case hex digits.
fn is_hex(text: &str, digits: &[usize]) -> bool {
    digits.contains(&text.len()) && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Whether the name is safe as a folder and as a part of a git reference.
fn is_name(text: &str) -> bool {
    let first = text
        .bytes()
        .next()
        .is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let rest = text
        .bytes()
        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-'));
    // ".." and ".lock" would be special in a path or to git.
    first && rest && text.len() <= 100 && !text.contains("..") && !text.ends_with(".lock")
}

text!(
    /// SHA-256 of some bytes: the address of contexts, packs and other blobs.
    Digest,
    |text| is_hex(text, &[64]),
    "a SHA-256 digest of 64 lower-case hex digits"
);
text!(
    /// A full git object id (SHA-1 or SHA-256). Abbreviations are refused.
    Oid,
    |text| is_hex(text, &[40, 64]),
    "a full git object id of 40 or 64 lower-case hex digits"
);
text!(
    /// The secret with which an agent acts for an attempt: 128 random bits.
    AttemptToken,
    |text| is_hex(text, &[32]),
    "an attempt token of 32 lower-case hex digits"
);

impl Digest {
    /// The digest of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(hex::encode(Sha256::digest(bytes)))
    }

    /// Wraps the raw digest that a streaming hasher produced.
    #[must_use]
    pub fn from_raw(raw: [u8; 32]) -> Self {
        Self(hex::encode(raw))
    }
}

impl AttemptToken {
    /// Wraps 128 bits that the caller drew at random.
    #[must_use]
    pub fn from_random(bits: u128) -> Self {
        Self(format!("{bits:032x}"))
    }

    /// The hash that is stored in place of the token.
    #[must_use]
    pub fn hash(&self) -> Digest {
        Digest::of(self.0.as_bytes())
    }
}

text!(
    /// A project: the scope of repositories, contexts, tasks and rights.
    ProjectId,
    is_name,
    "a project name (up to 100 lower-case letters, digits, '.', '_', '-'; a letter or digit first)"
);
text!(
    /// A repository that the coordinator holds, unique in its project.
    RepositoryName,
    is_name,
    "a repository name (up to 100 lower-case letters, digits, '.', '_', '-'; a letter or digit first)"
);
text!(
    /// An adapter: `claude-code`, `claude-api`, or one from a manifest.
    AdapterName,
    is_name,
    "an adapter name (up to 100 lower-case letters, digits, '.', '_', '-'; a letter or digit first)"
);
text!(
    /// A session's name within its task.
    SessionName,
    is_name,
    "a session name (up to 100 lower-case letters, digits, '.', '_', '-'; a letter or digit first)"
);

text!(
    /// A clone on one machine, with all its working trees: a digest of facts that only that machine
    /// knows. Other clones of its repository have other ids; see [`crate::task::Lineage`].
    RepositoryId,
    |text| is_hex(text, &[64]),
    "the identity of a repository of 64 lower-case hex digits"
);
text!(
    /// A working tree on one machine, distinct from the others of its repository.
    WorktreeId,
    |text| is_hex(text, &[64]),
    "the identity of a working tree of 64 lower-case hex digits"
);

impl RepositoryId {
    /// The repository with this digest.
    #[must_use]
    pub fn of(digest: Digest) -> Self {
        Self(digest.0)
    }
}

impl WorktreeId {
    /// The working tree with this digest.
    #[must_use]
    pub fn of(digest: Digest) -> Self {
        Self(digest.0)
    }
}

impl Default for ProjectId {
    /// The project of people who do not use projects.
    fn default() -> Self {
        Self("default".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_print_what_they_parse() {
        let id = TaskId::from_random(0x1234_5678_9abc_def0_1234_5678_9abc_def0);
        assert_eq!(id.to_string(), "123456789abcdef0123456789abcdef0");
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(id.short(), "12345678");
    }

    #[test]
    fn refuses_what_is_not_whole() {
        for text in [
            "",
            "12345678",
            "12345678-9abc-def0-1234-56789abcdef0",
            "g23456789abcdef0123456789abcdef0",
            "A23456789abcdef0123456789abcdef0",
        ] {
            assert!(text.parse::<TaskId>().is_err(), "{text}");
        }
        for text in ["", "abcdef", "ABCDEF0123456789ABCDEF0123456789ABCDEF01"] {
            assert!(text.parse::<Oid>().is_err(), "{text}");
        }
        for text in ["", ".", "..", "a..b", "-x", "A", "a/b", "x.lock", "a b"] {
            assert!(text.parse::<RepositoryName>().is_err(), "{text}");
        }
        assert!("my_repo-1.2".parse::<RepositoryName>().is_ok());
    }
}

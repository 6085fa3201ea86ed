//! What an agent may be given to do, and what let it in. Join tokens carry the first; the coordinator
//! decides the second. Which job needs what is placement's.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::invalid;
use crate::id::InvalidId;
use crate::words::words;

words! {
    /// One kind of work that an agent may be given.
    pub enum Capability: "a capability" {
        /// Sessions.
        Run = "run",
        /// Checks of results and of bases: what it says of them decides which results are verified.
        Verify = "verify",
    }
}

/// The kinds of work that an agent may be given. Written as words with commas: `run,verify`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Capabilities(u8);

impl Capabilities {
    /// None.
    pub const NONE: Self = Self(0);
    /// Every kind.
    pub const ALL: Self = Self::NONE.with(Capability::Run).with(Capability::Verify);
    /// Sessions only.
    pub const RUN: Self = Self::NONE.with(Capability::Run);

    /// These and one more.
    #[must_use]
    pub const fn with(self, capability: Capability) -> Self {
        Self(self.0 | bit(capability))
    }

    /// Whether this is one of them.
    #[must_use]
    pub const fn has(self, capability: Capability) -> bool {
        self.0 & bit(capability) != 0
    }

    /// True when there is none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Each of them, once.
    pub fn iter(self) -> impl Iterator<Item = Capability> {
        Capability::ALL.into_iter().filter(move |one| self.has(*one))
    }
}

const fn bit(capability: Capability) -> u8 {
    match capability {
        Capability::Run => 1,
        Capability::Verify => 2,
    }
}

impl FromIterator<Capability> for Capabilities {
    fn from_iter<I: IntoIterator<Item = Capability>>(all: I) -> Self {
        all.into_iter().fold(Self::NONE, Self::with)
    }
}

impl fmt::Display for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<_> = self.iter().map(Capability::as_str).collect();
        f.write_str(&words.join(","))
    }
}

impl fmt::Debug for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

impl FromStr for Capabilities {
    type Err = InvalidId;

    /// Reads words with commas; at least one.
    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let words = text.split(',').map(|word| word.trim().parse::<Capability>());
        let all = words.collect::<Result<Self, _>>();
        all.map_err(|_| invalid(text, "a list of what an agent may do (`run`, `verify` or `run,verify`)"))
    }
}

impl Serialize for Capabilities {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Capabilities {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        if text.is_empty() {
            return Ok(Self::NONE);
        }
        text.parse().map_err(serde::de::Error::custom)
    }
}

words! {
    /// What let an agent in when it last connected.
    pub enum LetIn: "a way to be let in" {
        /// It connected to a version that knew no capabilities, and not since. It cannot be given work
        /// before it comes in again, and then counts what lets it in.
        Earlier = "earlier",
        /// The owner's token, which anybody may hold who can read a file.
        OwnersToken = "owners_token",
        /// The certificate that it got for a join token.
        Certificate = "certificate",
        /// It runs in the process of its coordinator.
        SameProcess = "same_process",
    }
}

/// What let an agent in, and what it may be given to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admittance {
    /// What let it in.
    pub by: LetIn,
    /// What it may be given to do.
    pub can: Capabilities,
}

impl Admittance {
    /// That of an agent of which an earlier version wrote down nothing, until it comes in again: what let it in
    /// then is not known, and the id alone proves nothing.
    pub const EARLIER: Self = Self {
        by: LetIn::Earlier,
        can: Capabilities::ALL,
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_written_as_they_are_read() {
        for (text, expected) in [
            ("run", Capabilities::RUN),
            ("run,verify", Capabilities::ALL),
            ("verify, run", Capabilities::ALL),
            ("verify", Capabilities::NONE.with(Capability::Verify)),
        ] {
            let read: Capabilities = text.parse().unwrap();
            assert_eq!(read, expected, "{text}");
            assert_eq!(read.to_string().parse(), Ok(read));
            let json = serde_json::to_string(&read).unwrap();
            assert_eq!(serde_json::from_str::<Capabilities>(&json).unwrap(), read);
        }
        for wrong in ["", "run,", "Run", "run verify", "all"] {
            assert!(wrong.parse::<Capabilities>().is_err(), "{wrong:?}");
        }
        let none = serde_json::to_string(&Capabilities::NONE).unwrap();
        assert_eq!(serde_json::from_str::<Capabilities>(&none).unwrap(), Capabilities::NONE);
        assert!(Capabilities::NONE.is_empty() && !Capabilities::RUN.has(Capability::Verify));
    }
}

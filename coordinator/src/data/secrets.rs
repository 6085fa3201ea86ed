//! The secrets of tokens, derived from the coordinator's own: only hashes are stored, and a
//! repeated call still gets the same secret.

use kage_core::id::{Digest, TokenId};

/// Not `Debug`: it yields every secret.
pub(crate) struct Secrets(Digest);

impl Secrets {
    /// The secrets of the coordinator with this token.
    pub(crate) fn new(token: &str) -> Self {
        Self(Digest::of(format!("kage secrets {token}").as_bytes()))
    }

    /// The secret of a token: 256 bits as hex. The purpose keeps kinds of tokens apart.
    pub(crate) fn of(&self, purpose: &str, id: TokenId) -> String {
        // The key stands last, so that no secret can be extended to another one.
        let text = format!("kage {purpose} {id} {}", self.0);
        Digest::of(text.as_bytes()).as_str().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_that_of_its_token_purpose_and_coordinator() {
        let (one, other) = (Secrets::new("a"), Secrets::new("b"));
        let id = TokenId::from_random(1);
        assert_eq!(one.of("join", id), one.of("join", id));
        let others = [
            one.of("person", id),
            one.of("join", TokenId::from_random(2)),
            other.of("join", id),
        ];
        assert!(!others.contains(&one.of("join", id)));
        assert_eq!(one.of("join", id).len(), 64);
    }
}

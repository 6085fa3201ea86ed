//! A token as a value that is not shown by accident.

use std::fmt;

use kage_core::login::TokenMark;

/// An access token or a refresh token.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// A text as a token; `None` for an empty one.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let text = text.trim();
        (!text.is_empty()).then(|| Self(text.to_owned()))
    }

    /// The token itself, for whom it is meant.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }

    #[must_use]
    pub fn mark(&self) -> TokenMark {
        TokenMark::of(&self.0)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(***)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_not_printed() {
        let token = Token::new(" sk-secret\n").unwrap();
        assert_eq!(
            (format!("{token:?}").as_str(), token.reveal()),
            ("Token(***)", "sk-secret")
        );
        assert_eq!(Token::new(" \n"), None);
    }
}

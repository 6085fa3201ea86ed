//! JSON pointers (RFC 6901): the name of a place in a JSON value.

use std::fmt;
use std::str::FromStr;

/// The place of a value in a JSON document. Empty: the whole document.
///
/// A pointer sorts right before those of the places inside it.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JsonPointer(Vec<String>);

/// A text that is not a JSON pointer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a JSON pointer")]
pub struct InvalidPointer(pub String);

impl JsonPointer {
    /// The keys and indices from the top, unescaped.
    #[must_use]
    pub fn tokens(&self) -> &[String] {
        &self.0
    }

    /// True for a place inside `outer`, and for `outer` itself.
    #[must_use]
    pub fn is_within(&self, outer: &Self) -> bool {
        self.0.starts_with(&outer.0)
    }
}

impl From<Vec<String>> for JsonPointer {
    fn from(tokens: Vec<String>) -> Self {
        Self(tokens)
    }
}

impl fmt::Display for JsonPointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for token in &self.0 {
            write!(f, "/{}", token.replace('~', "~0").replace('/', "~1"))?;
        }
        Ok(())
    }
}

impl FromStr for JsonPointer {
    type Err = InvalidPointer;

    fn from_str(text: &str) -> Result<Self, InvalidPointer> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        let invalid = || InvalidPointer(text.chars().take(200).collect());
        let tokens = text.strip_prefix('/').ok_or_else(invalid)?.split('/');
        tokens
            .map(|token| {
                let mut parts = token.split('~');
                let mut plain = parts.next().unwrap_or_default().to_owned();
                for part in parts {
                    let (escaped, rest) = match part.as_bytes().first() {
                        Some(b'0') => ('~', &part[1..]),
                        Some(b'1') => ('/', &part[1..]),
                        Some(_) | None => return Err(invalid()),
                    };
                    plain.push(escaped);
                    plain.push_str(rest);
                }
                Ok(plain)
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_what_it_parses() {
        // The examples of RFC 6901, section 5, and one of special characters only.
        let cases: [(&str, &[&str]); 9] = [
            ("", &[]),
            ("/", &[""]),
            ("/foo/0", &["foo", "0"]),
            ("/a~1b", &["a/b"]),
            ("/c%d", &["c%d"]),
            ("/ ", &[" "]),
            ("/m~0n", &["m~n"]),
            ("/~01", &["~1"]),
            ("/~0~1~1~0//", &["~//~", "", ""]),
        ];
        for (text, tokens) in cases {
            let pointer: JsonPointer = text.parse().unwrap();
            assert_eq!(pointer.tokens(), tokens, "{text}");
            assert_eq!(pointer.to_string(), text);
        }
    }

    #[test]
    fn refuses_what_is_no_pointer() {
        for text in ["a", "a/b", "/~", "/~2", "/a~", "/~/0"] {
            assert_eq!(text.parse::<JsonPointer>(), Err(InvalidPointer(text.to_owned())));
        }
    }

    #[test]
    fn knows_what_is_within() {
        let pointer = |text: &str| text.parse::<JsonPointer>().unwrap();
        assert!(pointer("/a/b").is_within(&pointer("/a")));
        assert!(pointer("/a").is_within(&pointer("/a")));
        assert!(pointer("/a").is_within(&pointer("")));
        assert!(!pointer("/ab").is_within(&pointer("/a")));
        assert!(!pointer("/a").is_within(&pointer("/a/b")));
    }
}

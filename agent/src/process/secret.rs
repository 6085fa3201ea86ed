//! A value that may not leave this machine, with the name that people know it by. It owns what such a
//! value looks like; `delivery` owns how it is kept in.

/// A secret value and its name.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    /// A variable's name, or words such as "the session's login".
    pub name: String,
    pub value: String,
}

/// Without the value.
impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secret")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// Longer words are keys, whatever they are made of.
const LONGEST_WORD: usize = 20;

impl Secret {
    pub fn new(name: impl Into<String>, value: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            value: value.into(),
        }
    }

    /// The values alone.
    #[must_use]
    pub fn values(secrets: &[Self]) -> Vec<String> {
        secrets.iter().map(|secret| secret.value.clone()).collect()
    }

    /// Whether it looks like no secret: words, numbers, a path, or an address without a password. A
    /// variable that a task names may have such a value, and files may have it for reasons of their
    /// own.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        let value = self.value.trim();
        if value.starts_with(['/', '~']) || value.starts_with("./") {
            return true;
        }
        let text = match value.split_once("://") {
            Some((_, address)) => {
                let authority = address.split(['/', '?', '#']).next().unwrap_or(address);
                if authority.contains('@') || address.contains(['?', '#']) {
                    return false;
                }
                address
            }
            None => value,
        };
        let mut parts = text.split(|character: char| !character.is_alphanumeric());
        parts.all(|part| {
            let letters = |part: &str, is: fn(char) -> bool| part.chars().all(is) && part.len() <= LONGEST_WORD;
            letters(part, char::is_numeric)
                || letters(part, char::is_uppercase)
                || is_camel_case(part)
                || (text.len() > part.len() && is_version(part))
        })
    }
}

/// A word, or words that are written together.
fn is_camel_case(part: &str) -> bool {
    let capitals = part.chars().filter(|it| it.is_uppercase()).count();
    part.len() <= LONGEST_WORD && part.chars().all(char::is_alphabetic) && capitals * 3 <= part.len().max(3)
}

/// The name of a version or a machine within more: `v1`, `x86`, `arm64`, `v1beta1`.
fn is_version(part: &str) -> bool {
    let is_short = part.len() <= 8 && part.chars().all(|it| it.is_ascii_lowercase() || it.is_ascii_digit());
    let numbers = part
        .split(|it: char| !it.is_ascii_digit())
        .filter(|number| !number.is_empty());
    is_short && part.starts_with(|it: char| it.is_ascii_lowercase()) && numbers.count() <= 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_numbers_and_addresses_are_no_secrets_and_keys_are() {
        for plain in [
            "production",
            "us-east-1",
            "en_US.UTF-8",
            "127.0.0.1:8080",
            "http://localhost:3000/api",
            "/srv/data/x1y2",
            "Mozilla",
            "x86_64-unknown-linux-gnu",
            "linux/arm64",
            "v1.29.3",
            "apps/v1beta1",
            "myProject",
            "MyOtherProject",
            "",
        ] {
            assert!(Secret::new("X", plain).is_plain(), "{plain}");
        }
        for key in [
            "sk-ant-api03-aB3x",
            "postgres://me:pass@host/db",
            "https://host/?token=abc",
            "hunter2",
            "a1b2c3-d4e5f6",
            "aBcDeFgHiJkL",
            "abcdefghijklmnopqrstuvwxyz",
            "AKIAIOSFODNN7EXAMPLE",
        ] {
            assert!(!Secret::new("X", key).is_plain(), "{key}");
        }
        let shown = format!("{:?}", Secret::new("X", "hunter2"));
        assert!(shown.contains('X') && !shown.contains("hunter2"), "{shown}");
    }
}

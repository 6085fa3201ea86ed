//! Decoders of texts and bytes from outside, with the properties that hold for any input: nothing
//! panics, and a decoded value survives being written and read again. One function per decoder; the
//! tests below and the fuzz targets in `fuzz/` call them.

use std::time::Duration;

use crate::access::JoinToken;
use crate::context::{Context, Delta, Patch};
use crate::failure_table::{FailureTable, parse_retry_after};
use crate::id::{AgentId, Digest, Oid, ProjectId, RepositoryName, TokenId};
use crate::price::PriceTable;
use crate::time::{LocalTime, Timestamp};

/// A JSON context, a patch of one, and a delta.
pub fn context(bytes: &[u8]) {
    if let Ok(context) = Context::parse(bytes) {
        let canonical = context.canonical();
        let again = Context::parse(canonical.as_bytes()).expect("canonical text is a context");
        assert_eq!(again.canonical(), canonical);
        assert_eq!(again.digest(), context.digest());
    }
    if let Ok(patch) = Patch::parse(bytes) {
        let canonical = patch.canonical();
        let again = Patch::parse(canonical.as_bytes()).expect("canonical text is a patch");
        assert_eq!(again.canonical(), canonical);
    }
    if let Ok(delta) = Delta::parse(bytes) {
        let canonical = delta.canonical();
        assert_eq!(Delta::parse(canonical.as_bytes()).as_ref(), Ok(&delta));
        // Whatever it edits, it fits or is refused.
        let base = Context::parse(br#"{"a":"a t\u00e9xt","b":[1,"two",{"c":3}],"d":{"e":"f"}}"#).expect("a context");
        if let Ok(made) = delta.apply(&base) {
            assert_eq!(Context::parse(made.canonical().as_bytes()), Ok(made));
        }
    }
}

/// The token with which an agent joins.
pub fn join_token(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(token) = text.parse::<JoinToken>() {
        assert_eq!(token.to_string().parse::<JoinToken>().as_ref(), Ok(&token));
    }
}

/// A price table.
pub fn prices(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(table) = PriceTable::parse(text) {
        let builtin = PriceTable::builtin().clone();
        drop(builtin.overlay(table));
    }
}

/// A file of rules about the words of programs, applied to those words, and a provider's
/// `retry-after`.
pub fn failure_rules(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let now = LocalTime::utc(Timestamp::from_millis(1_790_000_000_000));
    if let Ok(table) = FailureTable::parse(text) {
        drop(
            table
                .overlay(FailureTable::builtin().clone())
                .classify("claude-code", text, now),
        );
    }
    drop(FailureTable::builtin().classify("claude-code", text, now));
    let wait = parse_retry_after(text, now.now);
    assert!(wait.is_none_or(|wait| wait < Duration::MAX));
}

/// Names and ids, as they occur in paths and messages.
pub fn names(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    macro_rules! one_spelling {
        ($($kind:ty),*) => {
            $(if let Ok(name) = text.parse::<$kind>() {
                assert_eq!(name.to_string(), text, "a {} has one spelling", stringify!($kind));
            })*
        };
    }
    one_spelling!(AgentId, TokenId, Digest, Oid, ProjectId, RepositoryName);
    if let Ok(name) = text.parse::<RepositoryName>() {
        assert!(
            !name.as_str().contains("..") && !name.as_str().starts_with('/'),
            "a name stays in its folder"
        );
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Any bytes, and some valid inputs with a few bytes changed.
    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        let good = prop::sample::select(vec![
            r#"{"a": {"b": [1, 2.50e3, true]}, "c": "\u00e9\n"}"#.to_owned(),
            format!("kage1.{}.{}.{}", "a".repeat(64), "0".repeat(32), "b".repeat(64)),
            "[[rule]]\npattern = \"(?i)x+\"\nkind = \"timeout\"\n".to_owned(),
            include_str!("../data/failures.toml").chars().take(400).collect(),
            include_str!("../data/prices.toml").chars().take(800).collect(),
            "Wed, 21 Oct 2026 07:28:00 GMT".to_owned(),
        ]);
        let changed = (
            good,
            prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        );
        prop_oneof![
            any::<Vec<u8>>(),
            ".*".prop_map(String::into_bytes),
            changed.prop_map(|(text, changes)| {
                let mut bytes = text.into_bytes();
                for (at, byte) in changes {
                    let at = at.index(bytes.len());
                    bytes[at] = byte;
                }
                bytes
            }),
        ]
    }

    proptest! {
        #[test]
        fn whatever_others_write_is_read_or_refused(bytes in bytes()) {
            context(&bytes);
            join_token(&bytes);
            prices(&bytes);
            failure_rules(&bytes);
            names(&bytes);
        }
    }
}

//! Contexts: information for sessions besides the prompt, as JSON objects. A task's contexts are
//! stored and sent as one base and a delta per session: `split` chooses them, `delta` writes and
//! applies them, as a merge patch (RFC 7396, `patch`) with `edits` of long values, `divide` finds the
//! part that all sessions share. `prompt` owns how a model reads them.

mod edits;
mod patch;
mod delta;
mod divide;
mod split;
mod pins;

use std::fmt;

use crate::id::Digest;
use crate::json::{InvalidJson, Json, JsonPointer, Members, write_canonical_object};

pub use delta::{DELTA_VERSION, Delta, DeltaMismatch, FinePatch, MAX_CONTEXT_BYTES};
pub use divide::{Divided, NotOverridden, divide, overridden};
pub use edits::Misfit;
pub use patch::{diff, merge};
pub use pins::{NotCommon, Pins, differing, split_pinned};
pub use split::{MAX_COMPARED, Split, split};

/// A session's information: a JSON object without any `null`, because in a merge patch `null` means
/// deletion.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Context(Members);

/// The members that one session's context adds to, replaces in or deletes from a base (RFC 7396).
///
/// An object in which `null` stands only as the value of a member, outside of any array: so merging
/// it into a context always gives a context.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Patch(Members);

/// Why bytes are refused as a context or as a patch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidContext {
    /// Not JSON as this program accepts it.
    #[error("invalid JSON")]
    Json(#[source] InvalidJson),
    /// Another JSON value than an object.
    #[error("not a JSON object")]
    NotAnObject,
    /// A `null` where none is allowed.
    #[error("null at {0}")]
    Null(JsonPointer),
    /// Neither a merge patch nor a delta of a version that this program knows.
    #[error("not a context delta: a JSON object, or [2, object]")]
    NotADelta,
    /// An array of a delta that is neither a value nor edits.
    #[error("no edits at {0}")]
    NotEdits(JsonPointer),
}

impl Context {
    /// Reads a context.
    ///
    /// # Errors
    /// When the bytes are not a JSON object, or hold a `null` or a duplicate key.
    pub fn parse(bytes: &[u8]) -> Result<Self, InvalidContext> {
        let members = parse_object(bytes)?;
        refuse_null(&members, Nulls::Nowhere)?;
        Ok(Self(members))
    }

    /// The members of the object.
    #[must_use]
    pub fn members(&self) -> &Members {
        &self.0
    }

    /// The context with these texts as members, but those whose names it has already.
    #[must_use]
    pub fn with_texts<'t>(&self, texts: impl IntoIterator<Item = (&'t str, &'t str)>) -> Self {
        let mut members = self.0.clone();
        for (name, text) in texts {
            members
                .entry(name.to_owned())
                .or_insert_with(|| Json::String(text.to_owned()));
        }
        Self(members)
    }

    /// The canonical text of this context: sorted keys, no spaces, numbers as they were given.
    #[must_use]
    pub fn canonical(&self) -> String {
        self.to_string()
    }

    /// The digest of the canonical text, by which a context is stored.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of(self.canonical().as_bytes())
    }
}

impl Patch {
    /// Reads a patch.
    ///
    /// # Errors
    /// When the bytes are not a JSON object, or hold a duplicate key or a `null` in an array.
    pub fn parse(bytes: &[u8]) -> Result<Self, InvalidContext> {
        let members = parse_object(bytes)?;
        refuse_null(&members, Nulls::OutsideArrays)?;
        Ok(Self(members))
    }

    /// The members of the object.
    #[must_use]
    pub fn members(&self) -> &Members {
        &self.0
    }

    /// The canonical text of this patch, as it is sent in a task.
    #[must_use]
    pub fn canonical(&self) -> String {
        self.to_string()
    }
}

impl fmt::Display for Context {
    /// Writes the canonical text.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_canonical_object(f, &self.0)
    }
}

impl fmt::Display for Patch {
    /// Writes the canonical text.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_canonical_object(f, &self.0)
    }
}

fn parse_object(bytes: &[u8]) -> Result<Members, InvalidContext> {
    match Json::parse(bytes).map_err(InvalidContext::Json)? {
        Json::Object(members) => Ok(members),
        Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) | Json::Array(_) => {
            Err(InvalidContext::NotAnObject)
        }
    }
}

#[derive(Clone, Copy)]
enum Nulls {
    Nowhere,
    OutsideArrays,
}

fn refuse_null(members: &Members, nulls: Nulls) -> Result<(), InvalidContext> {
    let mut path = Vec::new();
    for (key, value) in members {
        path.push(key.clone());
        if has_null(value, nulls, &mut path) {
            return Err(InvalidContext::Null(JsonPointer::from(path)));
        }
        path.pop();
    }
    Ok(())
}

/// Searches for a forbidden `null`, and leaves `path` at the first one.
fn has_null(value: &Json, nulls: Nulls, path: &mut Vec<String>) -> bool {
    let mut inside = |token: String, value: &Json, nulls: Nulls| {
        path.push(token);
        let found = has_null(value, nulls, path);
        if !found {
            path.pop();
        }
        found
    };
    match value {
        Json::Null => matches!(nulls, Nulls::Nowhere),
        Json::Bool(_) | Json::Number(_) | Json::String(_) => false,
        Json::Array(elements) => {
            let mut elements = elements.iter().enumerate();
            elements.any(|(index, element)| inside(index.to_string(), element, Nulls::Nowhere))
        }
        Json::Object(members) => members.iter().any(|(key, member)| inside(key.clone(), member, nulls)),
    }
}

#[cfg(test)]
pub(crate) mod sample;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_objects_without_null() {
        let context = Context::parse(br#" {"b": [1.50], "a": {}} "#).unwrap();
        assert_eq!(context.canonical(), r#"{"a":{},"b":[1.50]}"#);
        assert_eq!(context.digest(), Digest::of(br#"{"a":{},"b":[1.50]}"#));

        let null = |path: &str| Err(InvalidContext::Null(path.parse().unwrap()));
        let cases = [
            ("[]", Err(InvalidContext::NotAnObject)),
            ("null", Err(InvalidContext::NotAnObject)),
            (r#"{"a":null}"#, null("/a")),
            (r#"{"a":{"b":1},"c":[0,{"d/e":null}]}"#, null("/c/1/d~1e")),
        ];
        for (text, expected) in cases {
            assert_eq!(Context::parse(text.as_bytes()), expected, "{text}");
        }
        assert!(matches!(Context::parse(b"{"), Err(InvalidContext::Json(_))));
    }

    #[test]
    fn takes_null_in_a_patch_as_a_member_only() {
        assert!(Patch::parse(br#"{"a":null,"b":{"c":null}}"#).is_ok());
        let null = |path: &str| Err(InvalidContext::Null(path.parse().unwrap()));
        assert_eq!(Patch::parse(br#"{"a":[1,null]}"#), null("/a/1"));
        assert_eq!(Patch::parse(br#"{"a":{"b":[{"c":null}]}}"#), null("/a/b/0/c"));
        assert_eq!(Patch::parse(b"3"), Err(InvalidContext::NotAnObject));
    }
}

//! Context deltas: what makes a session's context of the task's base, as it is stored and sent. There
//! are two versions, and both are read:
//!
//! ```text
//!   1   {"a":{"b":[1,2]},"c":null}       a merge patch (RFC 7396)
//!   2   [2,{"a":{"b":[3,"9",-1]},"c":null}]
//! ```
//! Version 2 is a merge patch as well, but that an array in it is not a value: an array with one
//! array in it gives that one as the value (`[[1,2]]`), and any other is a script of `edits`, which
//! makes the new value of the base's. The text of a string is edited as it is, that of an array as its
//! canonical JSON. So what a delta changes can be told without the base, in both versions.

use std::fmt;

use super::edits::{self, Edit, Misfit};
use super::{Context, InvalidContext, Nulls, Patch, diff, merge, refuse_null};
use crate::json::{Json, JsonPointer, MAX_DEPTH, Members, Number};

/// The most bytes of a context, in its canonical text.
pub const MAX_CONTEXT_BYTES: usize = 64 << 20;

/// The newest version of deltas that this program reads and writes.
pub const DELTA_VERSION: u32 = 2;

/// What makes one session's context of the base.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delta {
    /// Version 1: values are given whole.
    Whole(Patch),
    /// Version 2: strings and arrays may be edited.
    Fine(FinePatch),
}

/// The members of a delta of version 2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FinePatch(Members);

/// Why a delta does not fit a base.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeltaMismatch {
    /// Edits of another value than a string or an array.
    #[error("the context delta edits {0}, which is no string or array in the base")]
    NothingToEdit(JsonPointer),
    /// The edits do not fit the base's value.
    #[error("the context delta cannot edit {at}")]
    Edits {
        /// The value.
        at: JsonPointer,
        /// What does not fit.
        #[source]
        problem: Misfit,
    },
    /// The edits of an array make something else, or an array with `null` or nested too deeply.
    #[error("the context delta makes no array of {0} that a context may have")]
    NoArray(JsonPointer),
}

impl Delta {
    /// The shortest delta that is found from `base` to `target`; `None` when they are equal.
    #[must_use]
    pub fn between(base: &Context, target: &Context) -> Option<Self> {
        let whole = Self::Whole(diff(base, target)?);
        let fine = Self::Fine(FinePatch(fine_diff(base.members(), target.members())));
        let text = fine.canonical();
        // A value may be nested as deep as is allowed, and the delta then too deep.
        let better = text.len() < whole.canonical().len() && Self::parse(text.as_bytes()).as_ref() == Ok(&fine);
        Some(if better { fine } else { whole })
    }

    /// Reads a delta of any version.
    ///
    /// # Errors
    /// When the bytes are none.
    pub fn parse(bytes: &[u8]) -> Result<Self, InvalidContext> {
        match Json::parse(bytes).map_err(InvalidContext::Json)? {
            Json::Object(members) => {
                refuse_null(&members, Nulls::OutsideArrays)?;
                Ok(Self::Whole(Patch(members)))
            }
            Json::Array(parts) => match <[Json; 2]>::try_from(parts) {
                Ok([Json::Number(version), Json::Object(members)]) if version.as_str() == "2" => {
                    check(&members, &mut Vec::new())?;
                    Ok(Self::Fine(FinePatch(members)))
                }
                Ok(_) | Err(_) => Err(InvalidContext::NotADelta),
            },
            Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) => Err(InvalidContext::NotADelta),
        }
    }

    /// Makes the context.
    ///
    /// # Errors
    /// When the delta was made for another base.
    pub fn apply(&self, base: &Context) -> Result<Context, DeltaMismatch> {
        match self {
            Self::Whole(patch) => Ok(merge(base, patch)),
            Self::Fine(patch) => {
                let mut members = base.members().clone();
                let mut applied = Applied {
                    path: Vec::new(),
                    room: MAX_CONTEXT_BYTES,
                };
                applied.merge(&mut members, &patch.0)?;
                Ok(Context(members))
            }
        }
    }

    /// The version of its text.
    #[must_use]
    pub const fn version(&self) -> u32 {
        match self {
            Self::Whole(_) => 1,
            Self::Fine(_) => 2,
        }
    }

    /// The same delta in version 1, for a reader that knows no other; `None`: it changes nothing. It changes
    /// no place that this one does not.
    ///
    /// # Errors
    /// When it was made for another base.
    pub fn in_version_1(&self, base: &Context) -> Result<Option<Self>, DeltaMismatch> {
        match self {
            Self::Whole(_) => Ok(Some(self.clone())),
            Self::Fine(_) => Ok(diff(base, &self.apply(base)?).map(Self::Whole)),
        }
    }

    /// The canonical text, as it is stored and sent.
    #[must_use]
    pub fn canonical(&self) -> String {
        self.to_string()
    }

    /// What it changes, by key. The places are right in every version, the values of strings and
    /// arrays in version 1 only.
    pub(super) fn members(&self) -> &Members {
        match self {
            Self::Whole(patch) => patch.members(),
            Self::Fine(patch) => &patch.0,
        }
    }
}

impl fmt::Display for Delta {
    /// Writes the canonical text.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole(patch) => patch.fmt(f),
            Self::Fine(patch) => {
                let version = Json::Number(Number::from(2));
                Json::Array(vec![version, Json::Object(patch.0.clone())]).fmt(f)
            }
        }
    }
}

/// Makes a context, and stops before it is larger than one may be.
struct Applied {
    path: Vec<String>,
    /// How many bytes edits may still make.
    room: usize,
}

impl Applied {
    fn merge(&mut self, target: &mut Members, patch: &Members) -> Result<(), DeltaMismatch> {
        for (key, change) in patch {
            self.path.push(key.clone());
            let value = match change {
                Json::Null => {
                    target.remove(key);
                    None
                }
                Json::Object(inner) => {
                    let mut members = match target.remove(key) {
                        Some(Json::Object(members)) => members,
                        Some(_) | None => Members::new(),
                    };
                    self.merge(&mut members, inner)?;
                    Some(Json::Object(members))
                }
                Json::Array(change) => Some(match given(change) {
                    Some(value) => Json::Array(value.to_vec()),
                    None => self.edited(target.get(key), change)?,
                }),
                Json::Bool(_) | Json::Number(_) | Json::String(_) => Some(change.clone()),
            };
            if let Some(value) = value {
                target.insert(key.clone(), value);
            }
            self.path.pop();
        }
        Ok(())
    }

    fn edited(&mut self, old: Option<&Json>, script: &[Json]) -> Result<Json, DeltaMismatch> {
        let here = || JsonPointer::from(self.path.clone());
        let script = edits::read(script).ok_or_else(|| DeltaMismatch::NothingToEdit(here()))?;
        let misfit = |problem| DeltaMismatch::Edits { at: here(), problem };
        let (value, bytes) = match old {
            Some(Json::String(text)) => {
                let made = edits::apply(text, &script, self.room).map_err(misfit)?;
                let bytes = made.len();
                (Json::String(made), bytes)
            }
            Some(array @ Json::Array(_)) => {
                let made = edits::apply(&array.to_string(), &script, self.room).map_err(misfit)?;
                match Json::parse(made.as_bytes()) {
                    Ok(value @ Json::Array(_)) if !has_null(&value) && self.path.len() + depth(&value) <= MAX_DEPTH => {
                        (value, made.len())
                    }
                    Ok(_) | Err(_) => return Err(DeltaMismatch::NoArray(here())),
                }
            }
            Some(Json::Null | Json::Bool(_) | Json::Number(_) | Json::Object(_)) | None => {
                return Err(DeltaMismatch::NothingToEdit(here()));
            }
        };
        self.room -= bytes;
        Ok(value)
    }
}

fn has_null(value: &Json) -> bool {
    super::has_null(value, Nulls::Nowhere, &mut Vec::new())
}

/// How many arrays and objects are nested.
fn depth(value: &Json) -> usize {
    let inner = match value {
        Json::Array(elements) => elements.iter().map(depth).max(),
        Json::Object(members) => members.values().map(depth).max(),
        Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) => return 0,
    };
    1 + inner.unwrap_or(0)
}

/// The array that a change gives as the value; `None`: the change is a script.
fn given(change: &[Json]) -> Option<&[Json]> {
    match change {
        [Json::Array(value)] => Some(value),
        _ => None,
    }
}

fn check(members: &Members, path: &mut Vec<String>) -> Result<(), InvalidContext> {
    for (key, change) in members {
        path.push(key.clone());
        match change {
            Json::Object(inner) => check(inner, path)?,
            Json::Array(change) => match given(change) {
                Some(value) => {
                    path.push("0".to_owned());
                    let elements = &mut value.iter().enumerate();
                    for (index, element) in elements {
                        path.push(index.to_string());
                        if super::has_null(element, Nulls::Nowhere, path) {
                            return Err(InvalidContext::Null(JsonPointer::from(path.clone())));
                        }
                        path.pop();
                    }
                    path.pop();
                }
                None if edits::read(change).is_none() => {
                    return Err(InvalidContext::NotEdits(JsonPointer::from(path.clone())));
                }
                None => {}
            },
            Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) => {}
        }
        path.pop();
    }
    Ok(())
}

fn fine_diff(base: &Members, target: &Members) -> Members {
    let mut changes = Members::new();
    for key in base.keys() {
        if !target.contains_key(key) {
            changes.insert(key.clone(), Json::Null);
        }
    }
    for (key, value) in target {
        let change = match (base.get(key), value) {
            (Some(old), new) if old == new => continue,
            (Some(Json::Object(old)), Json::Object(new)) => Json::Object(fine_diff(old, new)),
            (Some(Json::String(old)), Json::String(new)) => shorter(value, edits::find(old, new)),
            (Some(old @ Json::Array(_)), Json::Array(_)) => {
                shorter(value, edits::find(&old.to_string(), &value.to_string()))
            }
            (Some(_) | None, new) => whole(new),
        };
        changes.insert(key.clone(), change);
    }
    changes
}

fn shorter(value: &Json, script: Vec<Edit>) -> Json {
    let (whole, script) = (whole(value), edits::write(script));
    if script.canonical_len() < whole.canonical_len() {
        script
    } else {
        whole
    }
}

/// A value as version 2 gives it.
fn whole(value: &Json) -> Json {
    match value {
        Json::Array(_) => Json::Array(vec![value.clone()]),
        Json::Object(members) => {
            let members = members.iter().map(|(key, value)| (key.clone(), whole(value)));
            Json::Object(members.collect())
        }
        Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) => value.clone(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::context::overridden;
    use crate::context::sample::{context, contexts};

    #[test]
    fn edits_long_values_and_gives_short_ones() {
        let long = "keep functions small and tests near the code; ".repeat(4);
        let cases = [
            (r#"{"a":1}"#.to_owned(), r#"{"a":2}"#.to_owned(), r#"{"a":2}"#),
            (
                r#"{"a":[1,2]}"#.to_owned(),
                r#"{"a":[1,3]}"#.to_owned(),
                r#"{"a":[1,3]}"#,
            ),
            (
                format!(r#"{{"a":"{long}"}}"#),
                format!(r#"{{"a":"{long}!"}}"#),
                r#"[2,{"a":[184,"!"]}]"#,
            ),
            // An element of an array, within an element of it, beside one that is given whole.
            (
                format!(r#"{{"a":[{{"b":"{long}","c":1}}],"d":{{}}}}"#),
                format!(r#"{{"a":[{{"b":"{long}","c":22}}],"d":{{"e":[1]}}}}"#),
                r#"[2,{"a":[197,"22",-1],"d":{"e":[[1]]}}]"#,
            ),
            // A deletion, and an object that takes the place of a string.
            (
                format!(r#"{{"a":"{long}","b":2,"c":"x"}}"#),
                format!(r#"{{"a":"!{long}","c":{{"d":[]}}}}"#),
                r#"[2,{"a":["!"],"b":null,"c":{"d":[[]]}}]"#,
            ),
        ];
        for (base, target, expected) in cases {
            let (base, target) = (context(&base), context(&target));
            let delta = Delta::between(&base, &target).unwrap();
            assert_eq!(delta.canonical(), expected);
            assert_eq!(Delta::parse(expected.as_bytes()).as_ref(), Ok(&delta));
            assert_eq!(delta.apply(&base).as_ref(), Ok(&target));
        }
    }

    #[test]
    fn reads_what_earlier_versions_stored() {
        let stored = br#"{"a":[1],"b":null,"c":{"d":"e"}}"#;
        let delta = Delta::parse(stored).unwrap();
        assert_eq!(delta, Delta::Whole(Patch::parse(stored).unwrap()));
        let made = delta.apply(&context(r#"{"a":[2,3],"b":1}"#)).unwrap();
        assert_eq!(made.canonical(), r#"{"a":[1],"c":{"d":"e"}}"#);
    }

    #[test]
    fn refuses_what_is_no_delta() {
        let pointer = |text: &str| text.parse::<JsonPointer>().unwrap();
        let cases = [
            ("[]", InvalidContext::NotADelta),
            ("7", InvalidContext::NotADelta),
            ("[3,{}]", InvalidContext::NotADelta),
            ("[2,[]]", InvalidContext::NotADelta),
            ("[2,{},1]", InvalidContext::NotADelta),
            (r#"[2,{"a":{"b":[true]}}]"#, InvalidContext::NotEdits(pointer("/a/b"))),
            (r#"[2,{"a":[[1],[2]]}]"#, InvalidContext::NotEdits(pointer("/a"))),
            (
                r#"[2,{"a":[[1,{"b":null}]]}]"#,
                InvalidContext::Null(pointer("/a/0/1/b")),
            ),
            (r#"{"a":[null]}"#, InvalidContext::Null(pointer("/a/0"))),
        ];
        for (text, expected) in cases {
            assert_eq!(Delta::parse(text.as_bytes()), Err(expected), "{text}");
        }
    }

    #[test]
    fn refuses_another_base() {
        let base = context(r#"{"a":{"n":1},"l":[1,[2]],"s":"text"}"#);
        let applied = |delta: &str| Delta::parse(delta.as_bytes()).unwrap().apply(&base);
        let pointer = |text: &str| text.parse::<JsonPointer>().unwrap();
        let nothing = |at: &str| Err(DeltaMismatch::NothingToEdit(pointer(at)));
        assert_eq!(applied(r#"[2,{"a":{"n":[1]}}]"#), nothing("/a/n"));
        assert_eq!(applied(r#"[2,{"a":[1]}]"#), nothing("/a"));
        assert_eq!(applied(r#"[2,{"x":{"y":[1]}}]"#), nothing("/x/y"));
        assert_eq!(
            applied(r#"[2,{"l":["{"]}]"#),
            Err(DeltaMismatch::NoArray(pointer("/l")))
        );
        assert_eq!(
            applied(r#"[2,{"l":[3,"null",-3]}]"#),
            Err(DeltaMismatch::NoArray(pointer("/l")))
        );
        let far = DeltaMismatch::Edits {
            at: pointer("/s"),
            problem: Misfit::OutOfRange,
        };
        assert_eq!(applied(r#"[2,{"s":[-9]}]"#), Err(far));
    }

    /// A small delta must not make a context that fills the memory.
    #[test]
    fn a_delta_cannot_grow_without_bound() {
        let base = context(&format!(r#"{{"a":"{0}","b":"{0}"}}"#, "x".repeat(1 << 20)));
        let copies = r#"{"at":0},1048576,"#.repeat(40);
        let delta = format!(r#"[2,{{"a":[{copies}"y"],"b":[{copies}"y"]}}]"#);
        let refused = Delta::parse(delta.as_bytes()).unwrap().apply(&base);
        let at = "/b".parse().unwrap();
        let problem = Misfit::TooLong;
        assert_eq!(refused, Err(DeltaMismatch::Edits { at, problem }));
    }

    /// Version 2 needs more levels than the values in it have.
    #[test]
    fn the_deepest_values_are_given_whole() {
        let deep = |last: &str| format!("{}{last}{}", "[".repeat(126), "]".repeat(126));
        let text = "a text that is long enough to be edited, were it not so deep";
        let base = context(&format!(r#"{{"a":{},"b":"{text}"}}"#, deep("1")));
        let target = context(&format!(r#"{{"a":{},"b":"{text}!","c":{}}}"#, deep("2"), deep("3")));
        let delta = Delta::between(&base, &target).unwrap();
        assert_eq!(Delta::parse(delta.canonical().as_bytes()).as_ref(), Ok(&delta));
        assert_eq!(delta.apply(&base), Ok(target));
    }

    proptest! {
        #[test]
        fn applying_undoes_a_difference(pair in contexts(2..=2)) {
            let [base, target] = &pair[..] else { unreachable!("two were asked for") };
            match Delta::between(base, target) {
                None => prop_assert_eq!(base, target),
                Some(delta) => {
                    prop_assert_eq!(delta.apply(base), Ok(target.clone()));
                    prop_assert_eq!(Delta::parse(delta.canonical().as_bytes()), Ok(delta.clone()));
                    let whole = diff(base, target).unwrap();
                    prop_assert!(delta.canonical().len() <= whole.canonical().len());
                }
            }
            // Version 2 is right also where it is not the shorter one.
            let fine = Delta::Fine(FinePatch(fine_diff(base.members(), target.members())));
            let older = fine.in_version_1(base);
            prop_assert_eq!(&older, &Ok(diff(base, target).map(Delta::Whole)));
            let places = overridden([&fine]);
            for place in overridden(&older.unwrap()) {
                prop_assert!(places.iter().any(|known| place.is_within(known)), "{}", place);
            }
            prop_assert_eq!(fine.apply(base), Ok(target.clone()));
            prop_assert_eq!(Delta::parse(fine.canonical().as_bytes()), Ok(fine.clone()));
        }
    }
}

//! Divides a session's context into the part that every session of the task has and its own part.
//! The first depends only on the base and the list of overridden members, which all sessions of a
//! task have in common; the session's own delta cannot change it.
//!
//! A *leaf* is a scalar, an array or an empty object. A leaf of the base is shared unless
//! an overridden place is at, above or below it (below: a scalar or an empty object that
//! becomes an object with members).

use std::collections::BTreeMap;

use super::{Context, Delta};
use crate::json::{Json, JsonPointer, Members};

/// A session's context in two parts that have no leaf in common.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Divided {
    /// Leaves that every session has with the same value.
    ///
    /// For deltas made by [`split`](super::split) these are all such leaves except a few bytes:
    /// leaves in an object that the base lacks, because the part of it that the sessions share is
    /// shorter than the patches' `"key":{}` around it would be.
    pub shared: Members,
    /// The rest of the session's context.
    pub own: Members,
}

/// A session's delta changes a member that its task does not list as overridden: sharing it would
/// tell this session a wrong value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the context delta changes {0}, which is not listed as overridden")]
pub struct NotOverridden(pub JsonPointer);

/// The places that some delta of a task changes, sorted, none inside another.
///
/// They include places that the base does not have: the deltas alone do not tell.
pub fn overridden<'a>(deltas: impl IntoIterator<Item = &'a Delta>) -> Vec<JsonPointer> {
    let mut places = Vec::new();
    for delta in deltas {
        collect_changes(delta.members(), &mut Vec::new(), &mut places);
    }
    places.sort();
    // In sorted order, a place comes right before those inside it.
    places.dedup_by(|place, kept| place.is_within(kept));
    places
}

fn collect_changes(changes: &Members, path: &mut Vec<String>, places: &mut Vec<JsonPointer>) {
    for (key, change) in changes {
        path.push(key.clone());
        match change {
            Json::Object(inner) if !inner.is_empty() => collect_changes(inner, path, places),
            Json::Object(_) | Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) | Json::Array(_) => {
                places.push(JsonPointer::from(path.clone()));
            }
        }
        path.pop();
    }
}

/// Divides a session's context, which was made from `base`.
///
/// # Errors
/// When the context differs from the base at a place that is not overridden.
pub fn divide(base: &Context, context: &Context, overridden: &[JsonPointer]) -> Result<Divided, NotOverridden> {
    let shared = untouched(base.members(), &Touched::new(overridden));
    let own = rest(context.members(), &shared, &mut Vec::new())?;
    Ok(Divided { shared, own })
}

/// Overridden places as a tree.
#[derive(Default)]
struct Touched<'a> {
    /// The place itself is overridden, not only something in it.
    whole: bool,
    inside: BTreeMap<&'a str, Self>,
}

impl<'a> Touched<'a> {
    fn new(places: &'a [JsonPointer]) -> Self {
        let mut root = Self::default();
        for place in places {
            let mut node = &mut root;
            for token in place.tokens() {
                node = node.inside.entry(token).or_default();
            }
            node.whole = true;
        }
        root
    }
}

fn untouched(members: &Members, touched: &Touched<'_>) -> Members {
    if touched.whole {
        return Members::new();
    }
    let mut kept = Members::new();
    for (key, value) in members {
        match (touched.inside.get(key.as_str()), value) {
            (None, value) => {
                kept.insert(key.clone(), value.clone());
            }
            (Some(touched), Json::Object(inner)) => {
                let inner = untouched(inner, touched);
                if !inner.is_empty() {
                    kept.insert(key.clone(), Json::Object(inner));
                }
            }
            (Some(_), Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) | Json::Array(_)) => {}
        }
    }
    kept
}

/// The members besides `shared`, all of which `members` must have.
fn rest(members: &Members, shared: &Members, path: &mut Vec<String>) -> Result<Members, NotOverridden> {
    let mut own = members.clone();
    for (key, shared) in shared {
        path.push(key.clone());
        match (own.remove(key), shared) {
            (Some(value), shared) if value == *shared => {}
            (Some(Json::Object(inner)), Json::Object(shared)) if !shared.is_empty() => {
                let inner = rest(&inner, shared, path)?;
                own.insert(key.clone(), Json::Object(inner));
            }
            (Some(_) | None, _) => return Err(NotOverridden(JsonPointer::from(path.clone()))),
        }
        path.pop();
    }
    Ok(own)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::context::sample::{context, contexts};
    use crate::context::split;

    fn delta(text: &str) -> Delta {
        Delta::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn lists_what_deltas_change() {
        let cases: [(&[&str], &[&str]); 6] = [
            (&[], &[]),
            (&["{}"], &[]),
            (&[r#"{"a":1}"#, r#"{"a":2,"b":null}"#], &["/a", "/b"]),
            (&[r#"{"a":{"b":{"c":1},"d":[]}}"#], &["/a/b/c", "/a/d"]),
            // Deleting the object covers the changes of others in it, and nothing else.
            (
                &[r#"{"a":{"b":1}}"#, r#"{"a":null}"#, r#"{"ab":{"c":1}}"#, r#"{"a!":1}"#],
                &["/a", "/a!", "/ab/c"],
            ),
            (&[r#"{"a":{}}"#, r#"{"":{"/":1}}"#], &["//~1", "/a"]),
        ];
        for (deltas, expected) in cases {
            let deltas: Vec<Delta> = deltas.iter().map(|text| delta(text)).collect();
            let found: Vec<String> = overridden(&deltas).iter().map(JsonPointer::to_string).collect();
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn divides_by_leaf() {
        // base, all deltas, then shared and own for the first of them
        let cases: [(&str, &[&str], &str, &str); 8] = [
            (r#"{"a":1,"b":2}"#, &["{}"], r#"{"a":1,"b":2}"#, "{}"),
            // Another session overrides a member; its value then belongs to this session's own
            // part.
            (r#"{"a":1,"b":2}"#, &["{}", r#"{"a":9}"#], r#"{"b":2}"#, r#"{"a":1}"#),
            (
                r#"{"a":{"x":1,"y":2}}"#,
                &[r#"{"a":{"x":9}}"#],
                r#"{"a":{"y":2}}"#,
                r#"{"a":{"x":9}}"#,
            ),
            // A deletion shows as an absence.
            (
                r#"{"a":{"x":1,"y":2}}"#,
                &[r#"{"a":{"x":null}}"#],
                r#"{"a":{"y":2}}"#,
                "{}",
            ),
            (r#"{"a":{"x":1}}"#, &[r#"{"a":{"x":null}}"#], "{}", r#"{"a":{}}"#),
            // A scalar and an empty object that elsewhere become objects with members.
            (
                r#"{"a":1,"b":{}}"#,
                &["{}", r#"{"a":{"x":1},"b":{"y":1}}"#],
                "{}",
                r#"{"a":1,"b":{}}"#,
            ),
            // Members that only others add are not shared.
            (r#"{"a":1}"#, &["{}", r#"{"secret":{"x":1}}"#], r#"{"a":1}"#, "{}"),
            (
                r#"{"a":[1,{"x":1}]}"#,
                &[r#"{"b":[]}"#],
                r#"{"a":[1,{"x":1}]}"#,
                r#"{"b":[]}"#,
            ),
        ];
        for (base, deltas, shared, own) in cases {
            let base = context(base);
            let deltas: Vec<Delta> = deltas.iter().map(|text| delta(text)).collect();
            let divided = divide(&base, &deltas[0].apply(&base).unwrap(), &overridden(&deltas)).unwrap();
            assert_eq!(Context(divided.shared).canonical(), shared, "{base} {deltas:?}");
            assert_eq!(Context(divided.own).canonical(), own, "{base} {deltas:?}");
        }
    }

    #[test]
    fn shares_nothing_that_is_not_worth_an_opening() {
        let contexts = [
            context(r#"{"a long key":{"c":1,"x":1}}"#),
            context(r#"{"a long key":{"c":1,"y":2}}"#),
        ];
        let split = split(&contexts);
        assert_eq!(split.base.canonical(), "{}");
        let divided = divide(&split.base, &contexts[0], &overridden(split.deltas.iter().flatten()));
        let own = contexts[0].members().clone();
        assert_eq!(
            divided,
            Ok(Divided {
                shared: Members::new(),
                own
            })
        );
    }

    #[test]
    fn refuses_a_delta_that_is_not_listed() {
        let base = context(r#"{"a":{"x":1,"y":{}}}"#);
        for (delta, path) in [
            (r#"{"a":{"x":2}}"#, "/a/x"),
            (r#"{"a":{"x":null}}"#, "/a/x"),
            (r#"{"a":{"y":{"z":1}}}"#, "/a/y"),
            (r#"{"a":null}"#, "/a"),
        ] {
            let refused = divide(
                &base,
                &self::delta(delta).apply(&base).unwrap(),
                &["/b".parse().unwrap()],
            );
            assert_eq!(refused, Err(NotOverridden(path.parse().unwrap())), "{delta}");
        }
    }

    /// The naive model: a context as the set of its leaves.
    fn leaves(members: &Members) -> BTreeMap<JsonPointer, Json> {
        fn walk(members: &Members, path: &[String], found: &mut BTreeMap<JsonPointer, Json>) {
            for (key, value) in members {
                let path = [path, std::slice::from_ref(key)].concat();
                match value {
                    Json::Object(inner) if !inner.is_empty() => walk(inner, &path, found),
                    leaf => {
                        found.insert(JsonPointer::from(path), leaf.clone());
                    }
                }
            }
        }
        let mut found = BTreeMap::new();
        walk(members, &[], &mut found);
        found
    }

    fn has_object_around(members: &Members, path: &[String]) -> bool {
        match path {
            [] | [_] => true,
            [key, rest @ ..] => match members.get(key) {
                Some(Json::Object(inner)) => has_object_around(inner, rest),
                Some(_) | None => false,
            },
        }
    }

    proptest! {
        #[test]
        fn shares_what_all_have(contexts in contexts(1..=5)) {
            let split = split(&contexts);
            let overridden = overridden(split.deltas.iter().flatten());
            let mut common = leaves(contexts[0].members());
            for context in &contexts {
                let theirs = leaves(context.members());
                common.retain(|path, leaf| theirs.get(path) == Some(leaf));
            }
            common.retain(|path, _| has_object_around(split.base.members(), path.tokens()));
            for context in &contexts {
                let divided = divide(&split.base, context, &overridden).unwrap();
                prop_assert_eq!(&leaves(&divided.shared), &common);
                let mut own = leaves(context.members());
                own.retain(|path, _| !common.contains_key(path));
                prop_assert_eq!(leaves(&divided.own), own);
            }
        }

        /// Deltas written by hand need not be minimal, and still nothing wrong is shared.
        #[test]
        fn shares_nothing_wrong_by_any_delta(base in contexts(1..=1), deltas in contexts(1..=4)) {
            let deltas: Vec<Delta> = deltas.into_iter().map(|c| delta(&c.canonical())).collect();
            let overridden = overridden(&deltas);
            let mut shared = None;
            for delta in &deltas {
                let merged = delta.apply(&base[0]).unwrap();
                let divided = divide(&base[0], &merged, &overridden).unwrap();
                let (common, own, all) = (leaves(&divided.shared), leaves(&divided.own), leaves(merged.members()));
                prop_assert_eq!(common.len() + own.len(), all.len());
                prop_assert!(common.iter().chain(&own).all(|(path, leaf)| all.get(path) == Some(leaf)));
                prop_assert_eq!(shared.get_or_insert_with(|| divided.shared.clone()), &divided.shared);
            }
        }
    }
}

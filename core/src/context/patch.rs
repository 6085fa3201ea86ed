//! Merge patches (RFC 7396): applying one, and finding the shortest between two contexts.

use super::{Context, Patch};
use crate::json::{Json, Members};

/// Applies a patch to a base.
#[must_use]
pub fn merge(base: &Context, patch: &Patch) -> Context {
    let mut members = base.0.clone();
    merge_members(&mut members, &patch.0);
    Context(members)
}

fn merge_members(target: &mut Members, patch: &Members) {
    for (key, change) in patch {
        match change {
            Json::Null => {
                target.remove(key);
            }
            Json::Object(inner) => {
                // Anything but an object is replaced by an empty one first.
                let mut members = match target.remove(key) {
                    Some(Json::Object(members)) => members,
                    Some(_) | None => Members::new(),
                };
                merge_members(&mut members, inner);
                target.insert(key.clone(), Json::Object(members));
            }
            Json::Bool(_) | Json::Number(_) | Json::String(_) | Json::Array(_) => {
                target.insert(key.clone(), change.clone());
            }
        }
    }
}

/// The shortest patch that turns `base` into `target`; `None` when they are equal.
///
/// There always is one, and only one of that length: for an object over an object only the members
/// that differ are needed, any other value is given whole, and a missing member is `null`. An empty
/// object is no exception: over a scalar or nothing `{}` creates one, and over another object every
/// member of that is deleted.
#[must_use]
pub fn diff(base: &Context, target: &Context) -> Option<Patch> {
    let changes = diff_members(&base.0, &target.0);
    (!changes.is_empty()).then_some(Patch(changes))
}

fn diff_members(base: &Members, target: &Members) -> Members {
    let mut changes = Members::new();
    for key in base.keys() {
        if !target.contains_key(key) {
            changes.insert(key.clone(), Json::Null);
        }
    }
    for (key, value) in target {
        let change = match (base.get(key), value) {
            (Some(old), new) if old == new => continue,
            (Some(Json::Object(old)), Json::Object(new)) => Json::Object(diff_members(old, new)),
            (Some(_) | None, new) => new.clone(),
        };
        changes.insert(key.clone(), change);
    }
    changes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::context::sample::{context, contexts};

    #[test]
    fn merges_as_the_rfc_says() {
        // RFC 7396, appendix A, as far as base and patch are objects without null in the base.
        let cases = [
            (r#"{"a":"b"}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#),
            (r#"{"a":"b"}"#, r#"{"b":"c"}"#, r#"{"a":"b","b":"c"}"#),
            (r#"{"a":"b"}"#, r#"{"a":null}"#, "{}"),
            (r#"{"a":"b","b":"c"}"#, r#"{"a":null}"#, r#"{"b":"c"}"#),
            (r#"{"a":["b"]}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#),
            (r#"{"a":"c"}"#, r#"{"a":["b"]}"#, r#"{"a":["b"]}"#),
            (
                r#"{"a":{"b":"c"}}"#,
                r#"{"a":{"b":"d","c":null}}"#,
                r#"{"a":{"b":"d"}}"#,
            ),
            (r#"{"a":[{"b":"c"}]}"#, r#"{"a":[1]}"#, r#"{"a":[1]}"#),
            ("{}", r#"{"a":{"bb":{"ccc":null}}}"#, r#"{"a":{"bb":{}}}"#),
            (r#"{"a":{"b":1}}"#, r#"{"a":{}}"#, r#"{"a":{"b":1}}"#),
            (r#"{"a":1}"#, r#"{"a":{}}"#, r#"{"a":{}}"#),
        ];
        for (base, patch, merged) in cases {
            let patched = merge(&context(base), &Patch::parse(patch.as_bytes()).unwrap());
            assert_eq!(patched.canonical(), merged, "{base} + {patch}");
        }
    }

    #[test]
    fn finds_the_shortest_patch() {
        let cases = [
            (r#"{"a":1}"#, r#"{"a":1}"#, None),
            (r#"{"a":1}"#, r#"{"a":1.0}"#, Some(r#"{"a":1.0}"#)),
            (r#"{"a":1}"#, "{}", Some(r#"{"a":null}"#)),
            (r#"{"a":1}"#, r#"{"a":{}}"#, Some(r#"{"a":{}}"#)),
            (
                r#"{"a":{"b":1,"c":2}}"#,
                r#"{"a":{}}"#,
                Some(r#"{"a":{"b":null,"c":null}}"#),
            ),
            (r#"{"a":{}}"#, r#"{"a":{"b":1}}"#, Some(r#"{"a":{"b":1}}"#)),
            (
                r#"{"a":{"b":1,"c":2}}"#,
                r#"{"a":{"b":1,"c":3}}"#,
                Some(r#"{"a":{"c":3}}"#),
            ),
            (r#"{"a":[1,2]}"#, r#"{"a":[1,3]}"#, Some(r#"{"a":[1,3]}"#)),
            (r#"{"a":{"b":1}}"#, r#"{"a":[]}"#, Some(r#"{"a":[]}"#)),
        ];
        for (base, target, patch) in cases {
            let found = diff(&context(base), &context(target));
            assert_eq!(found.map(|p| p.canonical()).as_deref(), patch, "{base} -> {target}");
        }
    }

    proptest! {
        #[test]
        fn merging_undoes_a_diff(pair in contexts(2..=2)) {
            let [base, target] = &pair[..] else { unreachable!("two were asked for") };
            match diff(base, target) {
                None => prop_assert_eq!(base, target),
                Some(patch) => {
                    prop_assert_eq!(&merge(base, &patch), target);
                    prop_assert_eq!(Patch::parse(patch.canonical().as_bytes()), Ok(patch.clone()));
                    // No part of it can be left out.
                    for key in patch.members().keys() {
                        let mut shorter = patch.clone();
                        shorter.0.remove(key);
                        prop_assert_ne!(&merge(base, &shorter), target);
                    }
                }
            }
        }
    }
}

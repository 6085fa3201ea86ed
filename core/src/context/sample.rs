//! Contexts for tests: from text, and drawn at random with few keys and values, so that equal,
//! overlapping and clashing members are common.

use std::ops::RangeInclusive;

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use proptest::sample::select;

use super::Context;
use crate::json::{Json, Members};

/// The context of this text.
pub(crate) fn context(text: &str) -> Context {
    Context::parse(text.as_bytes()).unwrap()
}

/// Some contexts of one task: each is a variation of a common one, or has nothing to do with it.
pub(crate) fn contexts(count: RangeInclusive<usize>) -> impl Strategy<Value = Vec<Context>> {
    (members(), vec((any::<bool>(), members()), count)).prop_map(|(common, own)| {
        own.into_iter()
            .map(|(related, own)| {
                let mut members = if related { common.clone() } else { Members::new() };
                overlay(&mut members, own);
                Context(members)
            })
            .collect()
    })
}

fn overlay(target: &mut Members, over: Members) {
    for (key, value) in over {
        match (target.get_mut(&key), value) {
            (Some(Json::Object(old)), Json::Object(new)) => overlay(old, new),
            (_, value) => {
                target.insert(key, value);
            }
        }
    }
}

const ATOMS: &[&str] = &[
    "1",
    "1.0",
    "true",
    "[]",
    r#"[1,{"a":2}]"#,
    "{}",
    r#""""#,
    r#""x\ny""#,
    r#""a value of some length""#,
];

fn members() -> impl Strategy<Value = Members> {
    let atom = select(ATOMS).prop_map(|text| Json::parse(text.as_bytes()).unwrap());
    let value = atom.prop_recursive(3, 24, 4, |inner| btree_map(key(), inner, 0..4).prop_map(Json::Object));
    btree_map(key(), value, 0..5)
}

fn key() -> impl Strategy<Value = String> {
    select(&["a", "b", "a/b", "~", "", "a longer key"][..]).prop_map(str::to_owned)
}

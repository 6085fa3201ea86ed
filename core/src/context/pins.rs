//! What people say about single fields: that a field stands in the base, or never does. And which fields
//! they may want to say that about, by what differed between tasks.

use std::collections::BTreeMap;

use super::{Context, Delta, Split, overridden, split};
use crate::json::{Json, JsonPointer, Members};

/// Fields with a place of their own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pins {
    /// Every session has the same value there, or none.
    pub base: Vec<JsonPointer>,
    /// They stand in no base, so that a base is the same for the next task too.
    pub tail: Vec<JsonPointer>,
}

/// A field that is pinned to the base differs between sessions.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0} is pinned to the base, and the contexts differ there")]
pub struct NotCommon(pub JsonPointer);

/// Splits contexts as [`split`](super::split) does, with some fields where people want them.
///
/// # Errors
/// When contexts differ in a field that is pinned to the base.
pub fn split_pinned(contexts: &[Context], pins: &Pins) -> Result<Split, NotCommon> {
    for place in &pins.base {
        let mut values = contexts.iter().map(|context| value(context.members(), place.tokens()));
        let first = values.next().flatten();
        if values.any(|value| value != first) {
            return Err(NotCommon(place.clone()));
        }
    }
    if pins.tail.is_empty() {
        return Ok(split(contexts));
    }
    let without: Vec<Context> = contexts
        .iter()
        .map(|context| {
            let mut members = context.members().clone();
            pins.tail.iter().for_each(|place| remove(&mut members, place.tokens()));
            Context(members)
        })
        .collect();
    let base = split(&without).base;
    let deltas = contexts.iter().map(|context| Delta::between(&base, context)).collect();
    Ok(Split { base, deltas })
}

/// The fields in which a context differs from the one before it, with how often each did: the most frequent
/// first. Fields that are changed as a whole are told as a whole.
#[must_use]
pub fn differing(contexts: &[Context]) -> Vec<(JsonPointer, u32)> {
    let mut times: BTreeMap<JsonPointer, u32> = BTreeMap::new();
    for pair in contexts.windows(2) {
        let delta = Delta::between(&pair[0], &pair[1]);
        for place in overridden(&delta) {
            *times.entry(place).or_default() += 1;
        }
    }
    let mut found: Vec<_> = times.into_iter().collect();
    found.sort_by(|(one, times), (other, often)| often.cmp(times).then_with(|| one.cmp(other)));
    found
}

fn value<'a>(members: &'a Members, path: &[String]) -> Option<&'a Json> {
    let (key, rest) = path.split_first()?;
    let found = members.get(key)?;
    match (rest, found) {
        ([], found) => Some(found),
        (rest, Json::Object(inner)) => value(inner, rest),
        (_, Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) | Json::Array(_)) => None,
    }
}

fn remove(members: &mut Members, path: &[String]) {
    match path {
        [] => {}
        [key] => drop(members.remove(key)),
        [key, rest @ ..] => {
            if let Some(Json::Object(inner)) = members.get_mut(key) {
                remove(inner, rest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::context::sample::{context, contexts};

    fn pointer(text: &str) -> JsonPointer {
        text.parse().unwrap()
    }

    #[test]
    fn a_field_of_the_tail_is_in_no_base() {
        let all = [
            context(r#"{"build":"a long number 17","rules":"the same for all","x":{"y":1,"z":2}}"#),
            context(r#"{"build":"a long number 17","rules":"the same for all","x":{"y":1,"z":2}}"#),
        ];
        let pins = Pins {
            tail: vec![pointer("/build"), pointer("/x/y"), pointer("/none/here")],
            base: vec![pointer("/rules"), pointer("/none")],
        };
        let split = split_pinned(&all, &pins).unwrap();
        assert_eq!(split.base.canonical(), r#"{"rules":"the same for all","x":{"z":2}}"#);
        for (delta, context) in split.deltas.iter().zip(&all) {
            assert_eq!(delta.as_ref().unwrap().apply(&split.base).as_ref(), Ok(context));
        }
    }

    #[test]
    fn a_field_of_the_base_is_the_same_for_all() {
        let all = [context(r#"{"a":{"b":1}}"#), context(r#"{"a":{"b":1},"c":2}"#)];
        let pinned = |place: &str| Pins {
            base: vec![pointer(place)],
            tail: Vec::new(),
        };
        assert!(split_pinned(&all, &pinned("/a/b")).is_ok());
        assert!(split_pinned(&all, &pinned("/z")).is_ok());
        assert_eq!(split_pinned(&all, &pinned("/c")), Err(NotCommon(pointer("/c"))));
    }

    #[test]
    fn what_differs_is_told_by_how_often() {
        let bases = [
            context(r#"{"build":1,"day":1,"rules":"x"}"#),
            context(r#"{"build":2,"day":1,"rules":"x"}"#),
            context(r#"{"build":3,"day":2,"rules":"x"}"#),
        ];
        let found = differing(&bases);
        assert_eq!(found, [(pointer("/build"), 2), (pointer("/day"), 1)]);
        assert_eq!(differing(&bases[..1]), []);
    }

    proptest! {
        #[test]
        fn pinned_contexts_come_back(all in contexts(1..=5)) {
            let pins = Pins { base: Vec::new(), tail: vec![pointer("/a"), pointer("/b/a"), pointer("/~1")] };
            let split = split_pinned(&all, &pins).unwrap();
            prop_assert!(!split.base.members().contains_key("a"));
            for (delta, context) in split.deltas.iter().zip(&all) {
                let made = delta.as_ref().map_or(Ok(split.base.clone()), |delta| delta.apply(&split.base));
                prop_assert_eq!(made, Ok(context.clone()));
            }
        }
    }
}

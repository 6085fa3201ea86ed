//! Splits the contexts of a task into a base, stored once, and a delta per session.
//!
//! **What is chosen.** The base with the smallest `|base| + |delta 1| + ... + |delta n|` of these: the
//! optimum for values that are given whole, see below, and the context of each session. `|x|` is the
//! length of the canonical text, and 0 for a session without a delta. So no session's context is a
//! better base, and no list of fields that are put into the base either. Contexts of more than
//! [`MAX_COMPARED`] bytes in all, counted once for each of them that is tried, are not all tried:
//! then only the optimum for whole values is certain to be no worse than any of them.
//!
//! **What is optimal for whole values.** Of all bases, this one makes
//! `|base| + |patch 1| + ... + |patch n|` smallest, where patches are RFC 7396 merge patches (each the
//! shortest for its session) and arrays are atomic.
//!
//! **Why it can be found in one walk.** `"key":value` and the comma or brace after it
//! cost `|key| + 2 + |value|`, so an object costs 1 plus its members (2 when empty). Look
//! at one path, and at the sessions that have an object around it. The base has nothing
//! there, or an atomic value, or an object:
//!
//! * nothing, or an atomic value of some session: every cost can be read off. A value
//!   that no session has is never better than nothing.
//! * an object that some session has exactly: those sessions need no patch here. All
//!   others need one, whose opening (`"key":{`) costs the same whatever is in it.
//! * an object that no session has exactly: every session pays for that opening.
//!
//! In the last case the members are independent of one another, and each is the same
//! problem one level down. In the second case a session that has the object adds nothing
//! at any member, so the sum over members of "what this member costs with exactly that
//! value" is right for all sessions together. Both sums come from the same walk.

use std::collections::{BTreeMap, BTreeSet};

use super::{Context, Delta};
use crate::json::{Json, Members, canonical_string_len};

/// The contexts of a task as they are stored and sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    /// What is stored once.
    pub base: Context,
    /// The deltas from the base to each session's context; `None`: the base is its context.
    pub deltas: Vec<Option<Delta>>,
}

impl Split {
    /// The bytes that are stored: the base once, and every delta.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let deltas = self.deltas.iter().flatten();
        self.base.canonical().len() + deltas.map(|delta| delta.canonical().len()).sum::<usize>()
    }
}

/// The most bytes that are compared to find out whether a session's context is the better base. Every
/// context that is tried is compared with all others.
pub const MAX_COMPARED: usize = 64 << 20;

/// Splits contexts so that base and deltas together are short.
///
/// The base depends on the contexts and their number of occurrences, not on their order. Among
/// equally short bases it prefers the optimum for whole values. That one prefers, path by path, a value
/// that a session has (the smallest in the order of [`Json`]) to a mixture of members, and either to
/// nothing.
#[must_use]
pub fn split(contexts: &[Context]) -> Split {
    let with = |base: Context| {
        let deltas = contexts.iter().map(|context| Delta::between(&base, context)).collect();
        Split { base, deltas }
    };
    let mut best = with(best_for_whole_values(contexts));
    if best.deltas.iter().all(Option::is_none) {
        return best;
    }
    let mut bytes = best.bytes();
    let all: usize = contexts.iter().map(|context| context.canonical().len()).sum();
    let tried: BTreeSet<&Context> = contexts.iter().collect();
    for context in tried.into_iter().take(MAX_COMPARED / all.max(1)) {
        let other = with(context.clone());
        if other.bytes() < bytes {
            bytes = other.bytes();
            best = other;
        }
    }
    best
}

fn best_for_whole_values(contexts: &[Context]) -> Context {
    let members: Vec<&Members> = contexts.iter().map(Context::members).collect();
    Context(best_object(&members))
}

/// The base for these objects at the top, where it has to be an object.
fn best_object(objects: &[&Members]) -> Members {
    let costs = object_costs(0, objects);
    let exact = cheapest(objects.iter().copied().zip(costs.exact));
    match exact {
        Some((cost, members)) if cost <= costs.mixed => members.clone(),
        Some(_) | None => costs.mixture,
    }
}

/// `null` in a patch.
const NULL: u64 = 4;

/// The costs of a base's possible values at one path, for all sessions that have an object around
/// it: the base's own bytes there plus those of all patches there.
struct PlaceCosts {
    /// By session: the cost when the base has this session's value, which may be nothing.
    exact: Vec<u64>,
    /// The cost of the best value.
    best: u64,
    /// The best value; `None`: nothing.
    choice: Option<Json>,
}

/// The costs of a member. `opening` is the length of its key, colon and separator.
fn place_costs(opening: u64, values: &[Option<&Json>]) -> PlaceCosts {
    if let Some(&Some(first)) = values.first()
        && values[1..].iter().all(|value| *value == Some(first))
    {
        let best = opening + first.canonical_len();
        return PlaceCosts {
            exact: vec![best; values.len()],
            best,
            choice: Some(first.clone()),
        };
    }

    // By session: its value in full, which is the cost of an absent base.
    let full: Vec<u64> = values
        .iter()
        .map(|value| value.map_or(0, |value| opening + value.canonical_len()))
        .collect();
    let absent: u64 = full.iter().sum();
    let mut counts: BTreeMap<&Json, u64> = BTreeMap::new();
    let mut objects: Vec<&Members> = Vec::new();
    for value in values.iter().flatten() {
        *counts.entry(value).or_default() += 1;
        if let Json::Object(members) = value {
            objects.push(members);
        }
    }
    // Sessions without a value must delete the base's value.
    let deleted = values.iter().filter(|value| value.is_none()).count() as u64 * (opening + NULL);
    // Over an object, an atomic value is given in full.
    let replaced: u64 = values
        .iter()
        .zip(&full)
        .filter(|(value, _)| !matches!(value, Some(Json::Object(_)) | None))
        .map(|(_, full)| full)
        .sum();

    let inner = object_costs(opening, &objects);
    let mut inner_exact = inner.exact.iter();
    let exact: Vec<u64> = values
        .iter()
        .zip(&full)
        .map(|(value, full)| match value {
            None => absent,
            Some(Json::Object(_)) => {
                let inner = inner_exact.next().expect("one cost for each object");
                inner + replaced + deleted
            }
            Some(atomic) => full + (absent - counts[atomic] * full) + deleted,
        })
        .collect();

    let present = values
        .iter()
        .zip(&exact)
        .filter_map(|(value, cost)| Some(((*value)?, *cost)));
    let mixed = inner.mixed + replaced + deleted;
    let (mut best, mut choice) = match cheapest(present) {
        Some((cost, value)) if objects.is_empty() || cost <= mixed => (cost, Some(value.clone())),
        Some(_) | None => (mixed, Some(Json::Object(inner.mixture))),
    };
    // Strictly less: the length of an empty mixture is right only because a tie goes to a value,
    // see `object_costs`.
    if absent < best {
        (best, choice) = (absent, None);
    }
    PlaceCosts { exact, best, choice }
}

/// The costs of an object in the base, for the sessions that have an object there.
struct ObjectCosts {
    /// By session: the cost when the base has exactly its object.
    exact: Vec<u64>,
    /// The cost when every member of the base is the best possible; too high by the opening of some
    /// patches when the result happens to be a session's object.
    mixed: u64,
    /// The object of the best members.
    mixture: Members,
}

/// The costs of an object. `opening` is the length of its key, colon and separator.
fn object_costs(opening: u64, objects: &[&Members]) -> ObjectCosts {
    // The closing brace is counted as the last member's separator.
    let opening = opening + 1;
    let sessions = objects.len() as u64;
    let mut counts: BTreeMap<&Members, u64> = BTreeMap::new();
    for members in objects {
        *counts.entry(members).or_default() += 1;
    }
    let empty = |members: &Members| u64::from(members.is_empty());

    let mut exact: Vec<u64> = objects
        .iter()
        .map(|members| opening + empty(members) + (sessions - counts[members]) * opening)
        .collect();
    let mut mixed = opening + sessions * opening;
    let mut mixture = Members::new();
    let keys: BTreeSet<&String> = objects.iter().flat_map(|members| members.keys()).collect();
    for key in keys {
        let values: Vec<Option<&Json>> = objects.iter().map(|members| members.get(key)).collect();
        let place = place_costs(canonical_string_len(key) + 2, &values);
        for (sum, cost) in exact.iter_mut().zip(place.exact) {
            *sum += cost;
        }
        mixed += place.best;
        if let Some(choice) = place.choice {
            mixture.insert(key.clone(), choice);
        }
    }
    // An empty object has one byte more than the sum of its members. A member that cost no more
    // than its absence would have been taken, so none could have saved that byte.
    mixed += empty(&mixture);
    ObjectCosts { exact, mixed, mixture }
}

/// The cheapest, and among equals the smallest.
fn cheapest<'a, T: Ord + ?Sized>(costs: impl Iterator<Item = (&'a T, u64)>) -> Option<(u64, &'a T)> {
    costs.map(|(value, cost)| (cost, value)).min()
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;
    use crate::context::diff;
    use crate::context::sample::{context, contexts};

    /// The size of a split with this base.
    fn cost(base: &Context, contexts: &[Context]) -> usize {
        let patches = contexts.iter().filter_map(|context| diff(base, context));
        base.canonical().len() + patches.map(|patch| patch.canonical().len()).sum::<usize>()
    }

    #[test]
    fn splits_by_value_not_by_name() {
        let long = r#""a text that is long enough to be worth sharing""#;
        let cases: [(&[&str], &str, &[&str]); 10] = [
            (&[], "{}", &[]),
            (&[r#"{"a":1}"#], r#"{"a":1}"#, &[""]),
            (&["{}", "{}"], "{}", &["", ""]),
            // A member of all is in the base, a member of one in its delta.
            (
                &[
                    r#"{"a":"shared","b":1}"#,
                    r#"{"a":"shared","c":2}"#,
                    r#"{"a":"shared","d":3}"#,
                ],
                r#"{"a":"shared"}"#,
                &[r#"{"b":1}"#, r#"{"c":2}"#, r#"{"d":3}"#],
            ),
            // A member that one session lacks is still shared, and deleted there.
            (
                &[&format!(r#"{{"a":{long}}}"#), "{}", &format!(r#"{{"a":{long}}}"#)],
                &format!(r#"{{"a":{long}}}"#),
                &["", r#"{"a":null}"#, ""],
            ),
            // A majority wins, inside of objects too.
            (
                &[
                    r#"{"o":{"x":"yes","y":"one"}}"#,
                    r#"{"o":{"x":"yes","y":"two"}}"#,
                    r#"{"o":{"x":"no","y":"two"}}"#,
                    r#"{"o":{"x":"yes","y":"two"}}"#,
                ],
                r#"{"o":{"x":"yes","y":"two"}}"#,
                &[r#"{"o":{"y":"one"}}"#, "", r#"{"o":{"x":"no"}}"#, ""],
            ),
            // A mixture that no session has.
            (
                &[
                    r#"{"x":"xxxxxxxx","y":"yyyyyyyy","z":1}"#,
                    r#"{"x":"xxxxxxxx","y":2,"z":"zzzzzzzz"}"#,
                    r#"{"x":3,"y":"yyyyyyyy","z":"zzzzzzzz"}"#,
                ],
                r#"{"x":"xxxxxxxx","y":"yyyyyyyy","z":"zzzzzzzz"}"#,
                &[r#"{"z":1}"#, r#"{"y":2}"#, r#"{"x":3}"#],
            ),
            // Objects, empty objects and scalars in one place; of two equally good bases, the
            // smaller.
            (
                &[r#"{"a":{}}"#, r#"{"a":{"b":1}}"#, r#"{"a":5}"#],
                r#"{"a":5}"#,
                &[r#"{"a":{}}"#, r#"{"a":{"b":1}}"#, ""],
            ),
            // A session's value is preferred to a mixture, even an empty one.
            (
                &[r#"{"a":1}"#, r#"{"a":1}"#, r#"{"b":2}"#],
                r#"{"a":1}"#,
                &["", "", r#"{"a":null,"b":2}"#],
            ),
            // Short arrays are given whole.
            (
                &[r#"{"a":[1,2,3,4]}"#, r#"{"a":[1,2,3,4]}"#, r#"{"a":[1,2,3]}"#],
                r#"{"a":[1,2,3,4]}"#,
                &["", "", r#"{"a":[1,2,3]}"#],
            ),
        ];
        for (texts, base, deltas) in cases {
            let contexts: Vec<Context> = texts.iter().map(|text| context(text)).collect();
            let split = split(&contexts);
            assert_eq!(split.base.canonical(), base, "{texts:?}");
            let found: Vec<String> = split
                .deltas
                .iter()
                .map(|delta| delta.as_ref().map_or(String::new(), Delta::canonical))
                .collect();
            assert_eq!(found, deltas, "{texts:?}");
        }
    }

    /// Three contexts of a usual form: much in common, one member by session.
    #[test]
    fn stores_common_members_once() {
        let contexts: Vec<Context> = ["claude", "gemini", "ollama"]
            .iter()
            .map(|name| {
                let layers = "an api layer, a storage layer and a worker layer; ".repeat(80);
                context(&format!(
                    r#"{{"task_id":"t1","files":{{"src/auth.py":"tokens","src/db.py":"pool"}},"structure":"{layers}","instructions":"for {name} only"}}"#
                ))
            })
            .collect();
        let whole: usize = contexts.iter().map(|context| context.canonical().len()).sum();
        let split = split(&contexts);
        assert!(
            cost(&split.base, &contexts) * 5 < whole * 2,
            "two thirds of three contexts are saved"
        );
        assert!(
            split
                .base
                .members()
                .keys()
                .map(String::as_str)
                .any(|key| key == "structure")
        );
        assert!(split.deltas.iter().flatten().all(|delta| delta.members().len() == 1));
    }

    /// The contexts of three programs for one task, from `core/data`.
    fn example(name: &str) -> Vec<Context> {
        let files: [&[u8]; 3] = match name {
            "a" => [
                include_bytes!("../../data/context-example-a/claude-code.json"),
                include_bytes!("../../data/context-example-a/gemini.json"),
                include_bytes!("../../data/context-example-a/ollama.json"),
            ],
            _ => [
                include_bytes!("../../data/context-example-b/claude-code.json"),
                include_bytes!("../../data/context-example-b/gemini.json"),
                include_bytes!("../../data/context-example-b/ollama.json"),
            ],
        };
        files.map(|text| Context::parse(text).unwrap()).to_vec()
    }

    #[test]
    fn stores_the_examples_in_less_than_two_fifths_and_a_bit() {
        for (name, whole_bytes, most) in [("a", 16_214, 6_600), ("b", 765, 319)] {
            let contexts = example(name);
            let whole: usize = contexts.iter().map(|context| context.canonical().len()).sum();
            assert_eq!(whole, whole_bytes, "{name}");
            let split = split(&contexts);
            for (delta, context) in split.deltas.iter().zip(&contexts) {
                let made = delta
                    .as_ref()
                    .map_or(Ok(split.base.clone()), |delta| delta.apply(&split.base));
                assert_eq!(made.as_ref(), Ok(context), "{name}");
            }
            assert!(split.bytes() <= most, "{name}: {} bytes of {whole}", split.bytes());
        }
    }

    /// Lists and texts of which every session has another version.
    #[test]
    fn long_values_that_differ_a_little_are_stored_once() {
        let rules: Vec<String> = (0..200).map(|n| format!("\"rule {n} of the house\"")).collect();
        let contexts: Vec<Context> = (0..20)
            .map(|session| {
                let mut rules = rules.clone();
                rules.insert(session * 7, format!("\"only for {session}\""));
                let story = "It was a dark and stormy night. ".repeat(100) + &session.to_string();
                context(&format!(r#"{{"rules":[{}],"story":"{story}"}}"#, rules.join(",")))
            })
            .collect();
        let one = contexts[0].canonical().len();
        let split = split(&contexts);
        assert!(split.bytes() < one + 20 * 80, "{} for {one} each", split.bytes());
    }

    /// Every possible object with these scalars and, level by level, these keys; below the last
    /// level objects are empty.
    fn all_objects(levels: &[&[&str]], scalars: &[Json]) -> Vec<Members> {
        let Some((keys, deeper)) = levels.split_first() else {
            return vec![Members::new()];
        };
        let mut values = scalars.to_vec();
        values.extend(all_objects(deeper, scalars).into_iter().map(Json::Object));
        let mut objects = vec![Members::new()];
        for key in *keys {
            for i in 0..objects.len() {
                for value in &values {
                    let mut object = objects[i].clone();
                    object.insert((*key).to_owned(), value.clone());
                    objects.push(object);
                }
            }
        }
        objects
    }

    /// Contexts whose long strings and arrays differ here and there.
    fn varied(count: std::ops::RangeInclusive<usize>) -> impl Strategy<Value = Vec<Context>> {
        let value = (0_usize..40, 0_usize..40, any::<bool>()).prop_map(|(at, length, array)| {
            let mut words: Vec<String> = (0..40).map(|n| format!("\"wörd {}\"", n % 13)).collect();
            words.splice(at..(at + length / 8).min(40), [format!("\"{length}\"")]);
            let text = words.join(",");
            let text = if array {
                format!("[{text}]")
            } else {
                format!("\"{}\"", text.replace('"', ""))
            };
            Json::parse(text.as_bytes()).unwrap()
        });
        let members =
            proptest::collection::btree_map(select(&["a", "b", "c", "d"][..]).prop_map(str::to_owned), value, 0..4);
        vec(members.prop_map(Context), count)
    }

    /// Draws contexts from a small world, together with all of it.
    fn small_world(levels: &'static [&'static [&'static str]]) -> impl Strategy<Value = (Vec<Context>, Vec<Context>)> {
        let short = select(&["1", "22"][..]);
        let long = select(&["\"a long one\"", "[1,2,3]"][..]);
        (short, long).prop_flat_map(move |(short, long)| {
            let scalars = [short, long].map(|text| Json::parse(text.as_bytes()).unwrap());
            let all: Vec<Context> = all_objects(levels, &scalars).into_iter().map(Context).collect();
            (vec(select(all.clone()), 0..6), Just(all))
        })
    }

    fn check_optimal(contexts: &[Context], bases: &[Context]) -> Result<(), TestCaseError> {
        let found = cost(&best_for_whole_values(contexts), contexts);
        let best = bases.iter().map(|base| cost(base, contexts)).min();
        prop_assert_eq!(Some(found), best, "{:?}", contexts);
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        #[test]
        fn no_base_is_shorter((contexts, bases) in small_world(&[&["a", "longer"], &["a", "longer"]])) {
            check_optimal(&contexts, &bases)?;
        }

        #[test]
        fn no_base_is_shorter_below_a_key((contexts, bases) in small_world(&[&["k"], &["a", "longer"], &["a", "b"]])) {
            check_optimal(&contexts, &bases)?;
        }

        #[test]
        fn no_base_is_shorter_in_depth((contexts, bases) in small_world(&[&["a", "b"], &["k"], &["a", "longer"]])) {
            check_optimal(&contexts, &bases)?;
        }
    }

    proptest! {
        #[test]
        fn every_context_comes_back(contexts in contexts(0..=6)) {
            let split = split(&contexts);
            prop_assert_eq!(split.deltas.len(), contexts.len());
            for (delta, context) in split.deltas.iter().zip(&contexts) {
                match delta {
                    None => prop_assert_eq!(&split.base, context),
                    Some(delta) => prop_assert_eq!(delta.apply(&split.base), Ok(context.clone())),
                }
            }
            prop_assert_eq!(Context::parse(split.base.canonical().as_bytes()), Ok(split.base));
        }

        /// Neither one of the contexts with the finest deltas, nor one with some of its fields.
        #[test]
        fn no_template_is_shorter(contexts in varied(1..=6), listed in vec(any::<bool>(), 8)) {
            let found = split(&contexts).bytes();
            let fine = |base: &Context| {
                let deltas = contexts.iter().filter_map(|context| Delta::between(base, context));
                base.canonical().len() + deltas.map(|delta| delta.canonical().len()).sum::<usize>()
            };
            for template in &contexts {
                prop_assert!(found <= fine(template), "{} is better", template);
                let fields = template.members().iter().zip(&listed).filter(|(_, listed)| **listed);
                let fields = Context(fields.map(|((key, value), _)| (key.clone(), value.clone())).collect());
                prop_assert!(found <= cost(&fields, &contexts), "{} is better", fields);
            }
        }

        #[test]
        fn varied_contexts_come_back(contexts in varied(0..=6)) {
            let split = split(&contexts);
            for (delta, context) in split.deltas.iter().zip(&contexts) {
                let made = delta.as_ref().map_or(Ok(split.base.clone()), |delta| delta.apply(&split.base));
                prop_assert_eq!(made, Ok(context.clone()));
            }
        }

        #[test]
        fn the_order_of_sessions_does_not_matter(
            (contexts, shuffled) in contexts(0..=6).prop_flat_map(|c| (Just(c.clone()), Just(c).prop_shuffle())),
        ) {
            prop_assert_eq!(split(&contexts).base, split(&shuffled).base);
        }

        /// In larger trees than can be enumerated: no session's context, and no base with
        /// one member taken out or in, is better.
        #[test]
        fn no_neighbour_is_shorter(contexts in contexts(1..=6)) {
            let base = best_for_whole_values(&contexts);
            let found = cost(&base, &contexts);
            for other in &contexts {
                prop_assert!(found <= cost(other, &contexts));
                for (key, value) in other.members() {
                    let mut neighbour = base.clone();
                    neighbour.0.insert(key.clone(), value.clone());
                    prop_assert!(found <= cost(&neighbour, &contexts), "{} in {}", key, base);
                    neighbour.0.remove(key);
                    prop_assert!(found <= cost(&neighbour, &contexts), "{} out of {}", key, base);
                }
            }
        }
    }
}

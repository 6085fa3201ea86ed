//! The text for a model: first the part that all sessions of a task share, byte for byte, then the
//! session's own part. A provider's prompt cache works on the first part. The text is made for
//! reading; nothing parses it.

use std::fmt::Write as _;

use crate::context::{Context, Delta, DeltaMismatch, NotOverridden, divide};
use crate::json::{Json, JsonPointer, Members};

/// A rendered prompt in its two parts. A model reads `shared`, then `own`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Prompt {
    /// Byte-identical for all sessions and attempts of a task. Empty without a context.
    /// Otherwise it ends with an empty line, so that `own` can follow directly.
    pub shared: String,
    /// This session's context, then the task's prompt.
    pub own: String,
}

/// The beginning of every session's own part.
///
/// Its first 21 characters are needed: the claude CLI puts a digest of characters 4, 7 and 20 of
/// the prompt into the first block of its system prompt, so prompts that begin differently share no
/// cache at all.
pub const OPENING: &str = "What follows is for this session alone.\n\n";

/// Why the contexts of a task make no prompt.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ContextsDisagree {
    /// The delta was made for another base.
    #[error(transparent)]
    Delta(#[from] DeltaMismatch),
    /// The delta changes what is shared.
    #[error(transparent)]
    Shared(#[from] NotOverridden),
}

/// Renders a task's prompt with a session's context.
///
/// `base` and `overridden` are the task's, `delta` is the session's. `shared` depends on
/// the former two only.
///
/// # Errors
/// When the delta does not fit the base, or changes a member of it that is not listed as overridden.
pub fn render(
    task: &str,
    base: Option<&Context>,
    delta: Option<&Delta>,
    overridden: &[JsonPointer],
) -> Result<Prompt, ContextsDisagree> {
    let nothing = Context::default();
    let base = base.unwrap_or(&nothing);
    let context = delta.map_or_else(|| Ok(base.clone()), |delta| delta.apply(base))?;
    let divided = divide(base, &context, overridden)?;

    let mut shared = String::new();
    if !divided.shared.is_empty() {
        shared.push_str("# Context\n\n");
        push_sections(&mut shared, &divided.shared);
    }
    let mut own = OPENING.to_owned();
    if !divided.own.is_empty() {
        own.push_str("# Context of this session\n\n");
        if divided.own.keys().any(|key| divided.shared.contains_key(key)) {
            own.push_str("Where a heading occurred above already, this belongs to it as well.\n\n");
        }
        push_sections(&mut own, &divided.own);
    }
    own.push_str("# Task\n\n");
    own.push_str(task);
    Ok(Prompt { shared, own })
}

impl Prompt {
    /// How many bytes a model reads.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.shared.len() + self.own.len()
    }
}

/// The first byte in which prompts differ, as models read them; `None` when all are the same.
#[must_use]
pub fn first_difference(prompts: &[Prompt]) -> Option<usize> {
    let (first, others) = prompts.split_first()?;
    let whole = |prompt: &'_ Prompt| [prompt.shared.as_bytes(), prompt.own.as_bytes()].concat();
    let first = whole(first);
    let differs = |other: &Prompt| {
        let other = whole(other);
        let same = first.iter().zip(&other).take_while(|(one, other)| one == other).count();
        (same < first.len() || same < other.len()).then_some(same)
    };
    others.iter().filter_map(differs).min()
}

/// A section for each member: strings as they are, everything else as indented JSON.
fn push_sections(text: &mut String, members: &Members) {
    for (key, value) in members {
        text.push_str("## ");
        push_title(text, key);
        text.push_str("\n\n");
        push_value(text, value);
        text.push_str("\n\n");
    }
}

fn push_title(text: &mut String, key: &str) {
    if key.trim() == key && !key.is_empty() && !key.contains(char::is_control) {
        text.push_str(key);
    } else {
        push_json(text, &Json::String(key.to_owned()));
    }
}

fn push_value(text: &mut String, value: &Json) {
    match value {
        // A blank string would be invisible.
        Json::String(plain) if !plain.trim().is_empty() => text.push_str(plain),
        Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) | Json::Array(_) | Json::Object(_) => {
            push_json(text, value);
        }
    }
}

fn push_json(text: &mut String, value: &Json) {
    write!(text, "{value:#}").expect("a string takes everything");
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::context::sample::{context, contexts};
    use crate::context::{Split, overridden, split};

    fn render_all(task: &str, split: &Split) -> Vec<Prompt> {
        let places = overridden(split.deltas.iter().flatten());
        let prompts = split.deltas.iter();
        prompts
            .map(|delta| render(task, Some(&split.base), delta.as_ref(), &places).unwrap())
            .collect()
    }

    #[test]
    fn reads_well() {
        let split = split(&[
            context(
                r#"{"goal":"Make it async.\nKeep the API.","limits":{"cpu":2,"ram":"4 GB"},"paths":["src","tests"],"style":"terse"}"#,
            ),
            context(
                r#"{"goal":"Make it async.\nKeep the API.","limits":{"cpu":8,"ram":"4 GB"},"paths":["src","tests"]}"#,
            ),
        ]);
        let prompts = render_all("Do it.\n", &split);
        let shared = r#"# Context

## goal

Make it async.
Keep the API.

## limits

{
  "ram": "4 GB"
}

## paths

[
  "src",
  "tests"
]

"#;
        let first = r#"What follows is for this session alone.

# Context of this session

Where a heading occurred above already, this belongs to it as well.

## limits

{
  "cpu": 2
}

## style

terse

# Task

Do it.
"#;
        assert_eq!(prompts[0].shared, shared);
        assert_eq!(prompts[0].own, first);
        assert_eq!(prompts[1].shared, shared);
        assert!(prompts[1].own.contains("\"cpu\": 8") && !prompts[1].own.contains("terse"));
    }

    #[test]
    fn shows_odd_keys_and_values() {
        let base = context(r#"{"":"x"," a":" ","b\nc":true,"d":"","e":" text\n"}"#);
        let prompt = render("t", Some(&base), None, &[]).unwrap();
        let expected = "# Context\n\n## \"\"\n\nx\n\n## \" a\"\n\n\" \"\n\n## \"b\\nc\"\n\ntrue\n\n## d\n\n\"\"\n\n## e\n\n text\n\n\n";
        assert_eq!(prompt.shared, expected);
    }

    #[test]
    fn needs_no_context() {
        let prompt = render("Fix the build.", None, None, &[]).unwrap();
        assert_eq!(prompt.shared, "");
        assert_eq!(prompt.own, format!("{OPENING}# Task\n\nFix the build."));
        // Without common members, a session's context is all its own.
        let delta = Delta::parse(br#"{"a":"x"}"#).unwrap();
        let prompt = render("t", None, Some(&delta), &[]).unwrap();
        assert_eq!(prompt.shared, "");
        assert!(
            prompt
                .own
                .ends_with("# Context of this session\n\n## a\n\nx\n\n# Task\n\nt")
        );
    }

    #[test]
    fn tells_where_prompts_differ() {
        let prompt = |shared: &str, own: &str| Prompt {
            shared: shared.to_owned(),
            own: own.to_owned(),
        };
        assert_eq!(first_difference(&[]), None);
        assert_eq!(first_difference(&[prompt("a", "b")]), None);
        // Where one part ends is nothing that a model reads.
        assert_eq!(first_difference(&[prompt("a", "b"), prompt("ab", "")]), None);
        let three = [prompt("abc", "x"), prompt("abc", "xy"), prompt("abc", "zy")];
        assert_eq!(first_difference(&three), Some(3));
        assert_eq!(first_difference(&three[..2]), Some(4));
        assert_eq!(three[1].bytes(), 5);
    }

    #[test]
    fn refuses_an_unlisted_override() {
        let base = context(r#"{"a":"x"}"#);
        let delta = Delta::parse(br#"{"a":"y"}"#).unwrap();
        let refused = render("t", Some(&base), Some(&delta), &[]);
        let shared = NotOverridden("/a".parse().unwrap());
        assert_eq!(refused, Err(ContextsDisagree::Shared(shared)));
    }

    /// Replaces every leaf by a string that no other place and no other value has.
    fn mark(members: &Members, path: &str) -> Members {
        let marked = |(key, value): (&String, &Json)| {
            let path = format!("{path}/{}", hex::encode(key));
            let value = match value {
                Json::Object(inner) if !inner.is_empty() => Json::Object(mark(inner, &path)),
                leaf => Json::String(format!("<{path}={}>", hex::encode(leaf.to_string()))),
            };
            (key.clone(), value)
        };
        members.iter().map(marked).collect()
    }

    fn marks(members: &Members) -> Vec<&str> {
        let mut found = Vec::new();
        for value in members.values() {
            match value {
                Json::Object(inner) => found.extend(marks(inner)),
                Json::String(mark) => found.push(mark.as_str()),
                other => panic!("{other} is not marked"),
            }
        }
        found
    }

    proptest! {
        #[test]
        fn tells_each_session_all_its_own_and_nothing_else(contexts in contexts(1..=5)) {
            let contexts: Vec<Context> = contexts
                .iter()
                .map(|context| Context::parse(Json::Object(mark(context.members(), "")).to_string().as_bytes()).unwrap())
                .collect();
            let prompts = render_all("the task", &split(&contexts));
            for (context, prompt) in contexts.iter().zip(&prompts) {
                prop_assert_eq!(&prompt.shared, &prompts[0].shared);
                prop_assert!(prompt.own.starts_with(OPENING));
                prop_assert!(prompt.own.ends_with("\n\n# Task\n\nthe task"));
                let told = [&*prompt.shared, &*prompt.own].concat();
                let mine = marks(context.members());
                for mark in contexts.iter().flat_map(|other| marks(other.members())) {
                    let times = usize::from(mine.contains(&mark));
                    prop_assert_eq!(told.matches(mark).count(), times, "{} in {}", mark, told);
                }
                // Only members of all sessions are shared.
                for other in &contexts {
                    let theirs = marks(other.members());
                    for mark in mine.iter().filter(|mark| prompt.shared.contains(**mark)) {
                        prop_assert!(theirs.contains(mark), "{} is not in {}", mark, other);
                    }
                }
            }
        }
    }

    /// The claude CLI's system prompt depends on the first 21 characters of the prompt.
    #[test]
    fn the_opening_is_long_enough() {
        assert!(OPENING.chars().count() > 20);
    }
}

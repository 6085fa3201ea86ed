//! The text a model gets: first what all sessions of a task share, byte for byte, then
//! what is this session's own. A provider's prompt cache works on the first part. The
//! text is made for reading; nothing parses it.

use std::fmt::Write as _;

use crate::context::{Context, NotOverridden, Patch, divide, merge};
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

/// How every session's own part begins, whatever follows.
///
/// It is there for the sake of its first 21 characters: the claude CLI puts a digest of
/// characters 4, 7 and 20 of the prompt into the first block of its system prompt, so
/// prompts that begin differently share no cache at all.
pub const OPENING: &str = "What follows is for this session alone.\n\n";

/// Renders a task's prompt with a session's context.
///
/// `base` and `overridden` are the task's, `delta` is the session's. `shared` depends on
/// the former two only.
///
/// # Errors
/// When the delta changes a member of the base that is not listed as overridden.
pub fn render(
    task: &str,
    base: Option<&Context>,
    delta: Option<&Patch>,
    overridden: &[JsonPointer],
) -> Result<Prompt, NotOverridden> {
    let nothing = Context::default();
    let base = base.unwrap_or(&nothing);
    let context = delta.map_or_else(|| base.clone(), |delta| merge(base, delta));
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
        // A blank string would not be seen.
        Json::String(plain) if !plain.trim().is_empty() => text.push_str(plain),
        Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) | Json::Array(_) | Json::Object(_) => {
            push_json(text, value);
        }
    }
}

fn push_json(text: &mut String, value: &Json) {
    write!(text, "{value:#}").expect("a string takes everything");
}

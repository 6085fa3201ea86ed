//! The placeholders of a manifest's texts: words in braces, found and filled in.

use std::collections::BTreeMap;
use std::ops::Range;

/// Every placeholder that arguments and values may contain.
pub(super) const PLACEHOLDERS: &[&str] = &[
    "prompt",
    "prompt_file",
    "base",
    "base_json",
    "base_file",
    "model",
    "model_name",
    "key",
    "home",
    "session_id",
    "new_session",
    "old_session",
    "conversation",
    "session_name",
    "worktree",
    "worktree_slug",
    "worktree_key",
    "scratch",
    "manifest_dir",
    "mcp_file",
    "mcp_servers",
];

/// What the placeholders of the agent's variables begin with, as in `{env:HTTPS_PROXY}`.
pub(in crate::adapters::cli) const VARIABLE: &str = "env:";

/// Whether this is the name of a placeholder.
pub(super) fn is_known(name: &str) -> bool {
    name.starts_with(VARIABLE) || PLACEHOLDERS.contains(&name)
}

/// The placeholders of a text. Other braces, as in shell scripts and JSON, mean nothing.
pub(super) fn placeholders(text: &str) -> impl Iterator<Item = &str> {
    found(text).map(|(name, _)| name)
}

/// Each placeholder with its place, braces included.
fn found(text: &str) -> impl Iterator<Item = (&str, Range<usize>)> {
    text.match_indices('{').filter_map(|(at, _)| {
        // `${name}` is the shell's.
        if text[..at].ends_with('$') {
            return None;
        }
        let rest = &text[at + 1..];
        let name = &rest[..rest.find('}')?];
        let word = match name.strip_prefix(VARIABLE) {
            Some(variable) => {
                let within = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
                !variable.is_empty() && variable.chars().all(within)
            }
            None => !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c == '_'),
        };
        word.then_some((name, at..at + name.len() + 2))
    })
}

/// Fills in placeholders in one pass; values are not searched for placeholders.
pub(in crate::adapters::cli) fn fill(text: &str, values: &BTreeMap<&str, String>) -> String {
    let mut filled = String::new();
    let mut end = 0;
    for (name, place) in found(text) {
        filled.push_str(&text[end..place.start]);
        filled.push_str(values.get(name).map_or("", String::as_str));
        end = place.end;
    }
    filled.push_str(&text[end..]);
    filled
}

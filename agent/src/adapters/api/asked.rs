//! The parameters of a session's model calls: model, output limit, thinking and effort. They follow
//! from the task, the settings and the price table. Pure.

use std::num::NonZeroU32;

use kage_core::failure::{Failure, FailureKind};
use kage_core::price::{Effort, PriceRow, Thinking};

use crate::adapters::settings::ApiSettings;

/// Tokens of an answer of a model that nothing is known of.
const USUAL_OUTPUT: NonZeroU32 = const { NonZeroU32::new(32_000).unwrap() };

/// The fewest tokens at which a provider makes a conversation shorter
/// (platform.claude.com/docs/en/build-with-claude/compaction).
const LEAST_COMPACTED: u64 = 50_000;

/// Parameters of a model call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) model: String,
    /// The most tokens of an answer, thinking included.
    pub(super) max_output: NonZeroU32,
    /// False when nobody said how long an answer may be, and `max_output` is a guess.
    pub(super) output_is_known: bool,
    pub(super) thinking: Option<Thinking>,
    pub(super) effort: Option<Effort>,
    /// Tokens of a prompt from which on the provider is asked to make the conversation shorter first; `None`: it
    /// does not do that.
    pub(super) compact_at: Option<u64>,
    /// The tokens that prompt and answer have room in, where the server is told that.
    pub(super) context: Option<NonZeroU32>,
}

/// Chooses the parameters, and names the settings that the model does not support. `row` describes the model,
/// where it is known.
///
/// # Errors
/// When the settings do not allow the task's model, or need a feature that the model lacks.
pub(super) fn asked(
    adapter: &str,
    model: String,
    settings: &ApiSettings,
    row: Option<&PriceRow>,
) -> Result<(Asked, Option<String>), Failure> {
    let refused = |text| Err(Failure::new(FailureKind::InvalidRequest, text));
    if let Some(models) = &settings.models
        && !models.contain(&model)
    {
        return refused(format!(
            "this agent lets tasks use {models}, not {model} ([adapter.{adapter}] models)"
        ));
    }
    let gives = row.and_then(max_output);
    let max_output = match (settings.max_output_tokens, gives) {
        (Some(set), Some(gives)) => set.min(gives),
        (Some(tokens), None) | (None, Some(tokens)) => tokens,
        (None, None) => USUAL_OUTPUT,
    };
    let (effort, left_out) = match (settings.effort, row.and_then(|row| row.efforts.as_deref())) {
        (None, _) => (None, None),
        (Some(_), Some([])) => {
            let text = format!("{model} has no effort to set: [adapter.{adapter}] effort is not sent");
            (None, Some(text))
        }
        (Some(effort), Some(levels)) if !levels.contains(&effort) => {
            let levels: Vec<_> = levels.iter().map(|level| level.as_str()).collect();
            return refused(format!(
                "the effort of {model} is one of {}, not {effort} ([adapter.{adapter}] effort)",
                levels.join(", ")
            ));
        }
        // For an unknown model, the provider checks the effort itself.
        (Some(effort), Some(_) | None) => (Some(effort), None),
    };
    let asked = Asked {
        model,
        max_output,
        output_is_known: settings.max_output_tokens.or(gives).is_some(),
        thinking: row.and_then(|row| row.thinking),
        effort,
        compact_at: row.and_then(compact_at),
        context: settings.context,
    };
    Ok((asked, left_out))
}

/// Where three quarters of the window are full: an answer has to fit, too.
fn compact_at(row: &PriceRow) -> Option<u64> {
    let window = row.context_window.filter(|_| row.compacts)?;
    Some((window / 4 * 3).max(LEAST_COMPACTED))
}

fn max_output(row: &PriceRow) -> Option<NonZeroU32> {
    let tokens = row.max_output?;
    NonZeroU32::new(u32::try_from(tokens).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use kage_core::price::PriceTable;
    use kage_core::time::Timestamp;

    use super::*;

    fn ask(model: &str, settings: &str) -> Result<(Asked, Option<String>), Failure> {
        let settings = toml::from_str(settings).unwrap();
        let now = Timestamp::from_millis(1_790_000_000_000);
        let row = PriceTable::builtin().find(model, now);
        asked("claude-api", model.to_owned(), &settings, row)
    }

    #[test]
    fn answers_are_as_long_as_the_model_gives_unless_that_is_set() {
        for (model, settings, expected) in [
            ("claude-sonnet-5-5", "", 128_000),
            ("claude-fable-5-2", "", 128_000),
            ("claude-sonnet-4-5-20250929", "", 64_000),
            ("some-gateways-own", "", 32_000),
            ("claude-sonnet-5-5", "max_output_tokens = 9", 9),
            ("claude-sonnet-5-5", "max_output_tokens = 900000", 128_000),
            ("some-gateways-own", "max_output_tokens = 900000", 900_000),
        ] {
            let (asked, left_out) = ask(model, settings).unwrap();
            assert_eq!(
                (asked.max_output.get(), left_out),
                (expected, None),
                "{model} {settings}"
            );
        }
    }

    #[test]
    fn thinking_and_effort_are_asked_for_as_the_model_takes_them() {
        let adaptive = Some(Thinking::Adaptive);
        for (model, settings, thinking, effort) in [
            ("claude-sonnet-5-5", "", adaptive, None),
            ("claude-sonnet-5-5", "effort = 'xhigh'", adaptive, Some(Effort::Xhigh)),
            ("claude-sonnet-4-6", "effort = 'max'", adaptive, Some(Effort::Max)),
            ("claude-opus-4-5", "effort = 'low'", None, Some(Effort::Low)),
            ("claude-haiku-4-5", "", None, None),
            ("some-gateways-own", "effort = 'max'", None, Some(Effort::Max)),
        ] {
            let (asked, left_out) = ask(model, settings).unwrap();
            assert_eq!((asked.thinking, asked.effort), (thinking, effort), "{model} {settings}");
            assert_eq!(left_out, None);
        }
        let (asked, left_out) = ask("claude-haiku-4-5", "effort = 'high'").unwrap();
        assert_eq!(asked.effort, None);
        assert!(left_out.unwrap().contains("[adapter.claude-api] effort"));
    }

    #[test]
    fn what_a_model_or_a_person_does_not_allow_is_refused_with_what_they_do() {
        for (model, settings, words) in [
            (
                "claude-sonnet-4-6",
                "effort = 'xhigh'",
                "is one of low, medium, high, max, not xhigh ([adapter.claude-api] effort)",
            ),
            (
                "claude-opus-5-5",
                "models = ['a', 'b']",
                "lets tasks use a, b, not claude-opus-5-5 ([adapter.claude-api] models)",
            ),
        ] {
            let failure = ask(model, settings).unwrap_err();
            assert_eq!(failure.kind, FailureKind::InvalidRequest);
            assert!(failure.message.contains(words), "{failure}");
        }
        assert_eq!(ask("b", "models = ['a', 'b']").unwrap().0.model, "b");
    }
}

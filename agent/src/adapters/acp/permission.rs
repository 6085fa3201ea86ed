//! Which of the answers that an agent offers to its own question says what was decided. Agents list them in any
//! order and under any id; only their kinds mean something.

use serde::Deserialize;
use serde_json::{Value, json};

/// Whether an agent may do what it asks about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decision {
    Allow,
    Deny,
}

/// An answer that an agent offers.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Choice {
    option_id: String,
    #[serde(default)]
    kind: String,
}

impl Decision {
    /// The kinds of answers that say it, the narrowest first.
    const fn kinds(self) -> [&'static str; 2] {
        match self {
            Self::Allow => ["allow_once", "allow_always"],
            Self::Deny => ["reject_once", "reject_always"],
        }
    }

    /// The result of the request. Without an answer that says it, the question stays unanswered, which no agent
    /// takes for a yes.
    pub(super) fn outcome(self, choices: &[Choice]) -> Value {
        let of = |kind: &str| choices.iter().find(|choice| choice.kind == kind);
        match self.kinds().into_iter().find_map(of) {
            Some(choice) => json!({"outcome": {"outcome": "selected", "optionId": choice.option_id}}),
            None => unanswered(),
        }
    }
}

/// The result of a request that nobody answers any more.
pub(super) fn unanswered() -> Value {
    json!({"outcome": {"outcome": "cancelled"}})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choices(list: &[(&str, &str)]) -> Vec<Choice> {
        list.iter()
            .map(|(id, kind)| Choice {
                option_id: (*id).to_owned(),
                kind: (*kind).to_owned(),
            })
            .collect()
    }

    #[test]
    fn the_kind_counts_and_neither_place_nor_name() {
        let claude = choices(&[
            ("allow_always", "allow_always"),
            ("allow", "allow_once"),
            ("reject", "reject_once"),
        ]);
        let codex = choices(&[("approved", "allow_once"), ("abort", "reject_once")]);
        let odd = choices(&[
            ("no", "allow_always"),
            ("yes", "reject_always"),
            ("x", "allow_in_a_new_way"),
        ]);
        let picked = |decision: Decision, from: &[Choice]| decision.outcome(from)["outcome"]["optionId"].clone();
        for (from, allowed, denied) in [
            (&claude, "allow", "reject"),
            (&codex, "approved", "abort"),
            (&odd, "no", "yes"),
        ] {
            assert_eq!(picked(Decision::Allow, from), allowed);
            assert_eq!(picked(Decision::Deny, from), denied);
        }
        let only_yes = choices(&[("y", "allow_once")]);
        assert_eq!(Decision::Deny.outcome(&only_yes), unanswered());
        assert_eq!(Decision::Allow.outcome(&[]), unanswered());
    }
}

//! Whose words a rule is about, and words that mean something else from another program.

use FailureKind as K;

use super::*;

#[test]
fn a_rule_names_an_adapter_or_the_program_that_it_runs() {
    let words = "Selected model is at capacity. Please try a different model.";
    let rule = "[[rule]]\nadapters = ['codex', 'mine']\npattern = 'capacity'\nkind = 'overloaded'\n";
    let table = FailureTable::parse(rule).unwrap();
    for (adapter, family, known) in [
        ("codex", "", true),
        ("my-own", "codex", true),
        ("mine", "gemini", true),
        ("my-own", "", false),
        ("my-own", "gemini", false),
    ] {
        let speaker = Speaker { adapter, family };
        assert_eq!(table.kind(speaker, words).is_some(), known, "{adapter} {family}");
    }
    // No name is not the name of a family.
    let nobody = FailureTable::parse("[[rule]]\nadapters = ['']\npattern = 'x'\nkind = 'auth'\n").unwrap();
    let speaker = Speaker {
        adapter: "a",
        family: "",
    };
    assert_eq!(nobody.kind(speaker, "x"), None);
}

#[test]
fn a_limit_of_a_rate_is_not_taken_for_a_quota_that_is_used_up() {
    for (adapter, words, kind) in [
        (
            "gemini",
            "[API Error: You exceeded your current quota. Please retry in 1s.]",
            K::RateLimited,
        ),
        (
            "gemini",
            "You exceeded your current quota, please check your plan and billing details. Please retry in 13.4s.",
            K::RateLimited,
        ),
        (
            "gemini",
            "You exceeded your current quota. Please retry in 23h12m4s.",
            K::QuotaExhausted,
        ),
        (
            "gemini",
            "You have exhausted your daily quota on this model.",
            K::QuotaExhausted,
        ),
        (
            "gemini",
            "[API Error: models/x is not found for API version v1beta]",
            K::InvalidRequest,
        ),
        ("gemini", "An internal error has occurred.", K::Network),
        ("qwen", "Missing API key for OpenAI-compatible auth.", K::Auth),
    ] {
        assert_eq!(
            classify(adapter, words).map(|failure| failure.kind),
            Some(kind),
            "{words}"
        );
    }
}

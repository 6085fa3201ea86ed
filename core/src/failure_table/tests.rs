//! The measured answers and words of real providers and programs, by tables.

use super::*;

#[test]
fn http_answers_are_classified() {
    use FailureKind as K;
    let plain = |status, message| ProviderError {
        status: Some(status),
        message,
        ..ProviderError::default()
    };
    let typed = |status, error_type, message| ProviderError {
        status,
        error_type: Some(error_type),
        message,
        ..ProviderError::default()
    };
    let coded = |status, error_code| ProviderError {
        status: Some(status),
        error_code: Some(error_code),
        ..ProviderError::default()
    };
    let cases = [
        (plain(400, "bad"), K::InvalidRequest),
        (plain(401, ""), K::Auth),
        (plain(402, ""), K::QuotaExhausted),
        (plain(403, ""), K::Auth),
        (plain(404, ""), K::InvalidRequest),
        (plain(408, ""), K::Timeout),
        (plain(413, ""), K::ContextOverflow),
        (plain(429, ""), K::RateLimited),
        (plain(500, ""), K::Network),
        (plain(502, "<html>"), K::Network),
        (plain(503, ""), K::Overloaded),
        (plain(504, ""), K::Timeout),
        (plain(529, ""), K::Overloaded),
        (plain(302, ""), K::Unknown),
        (
            plain(400, "Your credit balance is too low to use it"),
            K::QuotaExhausted,
        ),
        (plain(400, "Prompt is too long: 250000 tokens"), K::ContextOverflow),
        (coded(400, "context_length_exceeded"), K::ContextOverflow),
        (coded(429, "enforced_spend_limit_reached"), K::QuotaExhausted),
        (coded(429, "insufficient_quota"), K::QuotaExhausted),
        (typed(Some(400), "authentication_error", ""), K::Auth),
        (typed(Some(400), "billing_error", ""), K::QuotaExhausted),
        // Inside a stream there is no status, or it is 200.
        (typed(None, "overloaded_error", "Overloaded"), K::Overloaded),
        (typed(Some(200), "overloaded_error", "Overloaded"), K::Overloaded),
        (typed(None, "rate_limit_error", ""), K::RateLimited),
        (
            typed(None, "invalid_request_error", "prompt is too long"),
            K::ContextOverflow,
        ),
        (typed(None, "something_new", ""), K::Unknown),
    ];
    for (error, kind) in cases {
        assert_eq!(error.classify().kind, kind, "{error:?}");
    }
}

#[test]
fn the_wait_and_the_words_are_kept() {
    let error = ProviderError {
        status: Some(429),
        message: " slow down ",
        retry_after: Some(Duration::from_secs(7)),
        ..ProviderError::default()
    };
    let failure = error.classify();
    assert_eq!(failure.message, "HTTP 429: slow down");
    assert_eq!(failure.retry_after, Some(Duration::from_secs(7)));
    let empty = ProviderError::default().classify();
    assert_eq!(empty.message, "the provider gave no reason");
}

#[test]
fn retry_after_is_seconds_or_a_date() {
    let now = Timestamp::from_millis(784_111_777_000);
    let cases = [
        ("30", Some(30)),
        (" 0 ", Some(0)),
        ("Sun, 06 Nov 1994 08:50:37 GMT", Some(60)),
        ("Sun, 06 Nov 1994 08:00:00 GMT", Some(0)),
        ("-1", None),
        ("soon", None),
    ];
    for (text, seconds) in cases {
        assert_eq!(
            parse_retry_after(text, now),
            seconds.map(Duration::from_secs),
            "{text:?}"
        );
    }
}

#[test]
fn words_of_programs_are_classified() {
    use FailureKind as K;
    let cases = [
        ("claude-code", "Credit balance is too low", K::QuotaExhausted),
        (
            "claude-code",
            "You've hit your 5-hour limit · resets 10:24am (UTC)",
            K::QuotaExhausted,
        ),
        (
            "claude-code",
            "API Error: Request rejected (429) · slow down",
            K::RateLimited,
        ),
        (
            "claude-code",
            "API Error: 529 Overloaded. Try again later.",
            K::Overloaded,
        ),
        ("claude-code", "API Error: 500 internal", K::Network),
        ("claude-code", "Invalid API key · Fix external API key", K::Auth),
        ("claude-code", "Failed to authenticate. API Error: 403 no", K::Auth),
        ("claude-code", "Not logged in · Please run /login", K::Auth),
        ("claude-code", "Prompt is too long · 1", K::ContextOverflow),
        (
            "claude-code",
            "There's an issue with the selected model (x).",
            K::InvalidRequest,
        ),
        (
            "claude-code",
            "API Error: Connection refused connect ECONNREFUSED 127.0.0.1:1",
            K::Network,
        ),
        ("claude-code", "Request timed out. Check it.", K::Timeout),
        ("claude-code", "Reached maximum budget ($0.2)", K::BudgetExceeded),
        (
            "codex",
            "exceeded retry limit, last status: 429 Too Many Requests",
            K::RateLimited,
        ),
        (
            "codex",
            "You’ve hit your usage limit. Try again later.",
            K::QuotaExhausted,
        ),
        (
            "codex",
            "Quota exceeded. Check your plan and billing details.",
            K::QuotaExhausted,
        ),
        (
            "codex",
            "Selected model is at capacity. Please try a different model.",
            K::Overloaded,
        ),
        (
            "codex",
            "unexpected status 401 Unauthorized: x, url: http://h/v1",
            K::Auth,
        ),
        ("codex", "unexpected status 403 Forbidden: x", K::Auth),
        ("codex", "unexpected status 502 Bad Gateway: <html>", K::Network),
        (
            "codex",
            "stream disconnected before completion: closed early",
            K::Network,
        ),
        ("codex", "Missing environment variable: `KAGE_KEY`.", K::Auth),
        (
            "codex",
            "Codex ran out of room in the model's context window. Start anew.",
            K::ContextOverflow,
        ),
        ("gemini", "got status: 400. {\"reason\":\"API_KEY_INVALID\"}", K::Auth),
        (
            "gemini",
            "TerminalQuotaError: You have exhausted your daily quota",
            K::QuotaExhausted,
        ),
        ("qwen", "[API Error: 401 Incorrect API key provided]", K::Auth),
        ("aider", "litellm.AuthenticationError: AuthenticationError: no", K::Auth),
        ("aider", "litellm.RateLimitError: slow", K::RateLimited),
        (
            "my-cli",
            "fatal: could not read from remote repository",
            K::CorruptedState,
        ),
    ];
    for (adapter, text, kind) in cases {
        let found = FailureTable::builtin().classify(adapter, text);
        assert_eq!(found.map(|failure| failure.kind), Some(kind), "{adapter}: {text}");
    }
}

#[test]
fn a_wait_that_is_told_in_words_is_kept() {
    let cases = [
        ("HTTP 429: slow down (retry-after: 12)", Some(12_000)),
        ("429 Too Many Requests, \"retry_after\": 1.5", Some(1_500)),
        ("rate limit reached. Please try again in 20s.", Some(20_000)),
        ("rate limit reached, retry in 350ms", Some(350)),
        (
            "You've hit your usage limit. Try again in 1 day 3 hours 20 minutes.",
            Some(98_400_000),
        ),
        (
            "You've hit your usage limit. Try again in 2 hours and 5 minutes",
            Some(7_500_000),
        ),
        ("quota exceeded; resets in 3 h", Some(10_800_000)),
        ("You've hit your usage limit. Try again later.", None),
        ("rate limit: try again in 3 fortnights", None),
        ("rate limit of 40 requests", None),
        // Of other failures a wait means nothing.
        ("connection refused, retrying in 5 s", None),
    ];
    for (text, millis) in cases {
        let found = FailureTable::builtin().classify("x", text).unwrap();
        assert_eq!(
            found.retry_after,
            millis.map(Duration::from_millis),
            "{text:?}: {found:?}"
        );
    }
}

#[test]
fn a_full_disk_is_told_from_what_fails_because_of_it() {
    let of = |message: &str| local_failure(FailureKind::CorruptedState, message.to_owned()).kind;
    assert_eq!(
        of("fatal: Unable to create '/w/index.lock': No space left on device"),
        FailureKind::DiskFull
    );
    assert_eq!(
        of("fatal: Unable to create '/w/index.lock': File exists"),
        FailureKind::CorruptedState
    );
}

#[test]
fn work_that_speaks_of_errors_is_no_failure() {
    for text in [
        "",
        "added 429 lines to src/limits.rs",
        "the test of line 503 passes now",
        "error: expected 500 items, found 3",
        "all done",
    ] {
        assert_eq!(FailureTable::builtin().classify("claude-code", text), None, "{text:?}");
    }
}

#[test]
fn a_rule_of_one_adapter_is_not_for_others_and_the_line_is_shown() {
    let text = "starting\n  litellm.RateLimitError: slow down \nbye";
    let found = FailureTable::builtin().classify("aider", text).unwrap();
    assert_eq!(found.message, "litellm.RateLimitError: slow down");
    assert_eq!(FailureTable::builtin().classify("codex", text), None);
}

#[test]
fn rules_of_a_user_come_first() {
    let own = "[[rule]]\npattern = 'the hamster rate limit'\nkind = 'adapter_crash'\n";
    let own = FailureTable::parse(own).unwrap();
    let table = FailureTable::builtin().clone().overlay(own);
    let kind = |text| table.classify("x", text).map(|failure| failure.kind);
    assert_eq!(kind("The Hamster RATE LIMIT"), Some(FailureKind::AdapterCrash));
    assert_eq!(kind("a rate limit"), Some(FailureKind::RateLimited));
}

#[test]
fn a_bad_table_says_what_is_wrong() {
    let cases = [
        (
            "[[rule]]\npattern = '('\nkind = 'auth'",
            "the pattern \"(\" is not a regular expression",
        ),
        (
            "[[rule]]\npattern = 'x'\nkind = 'hungry'",
            "the failure table is not valid",
        ),
        (
            "[[rule]]\npatern = 'x'\nkind = 'auth'",
            "the failure table is not valid",
        ),
    ];
    for (text, message) in cases {
        assert_eq!(FailureTable::parse(text).unwrap_err().to_string(), message);
    }
}

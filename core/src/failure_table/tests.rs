//! The recorded answers and words of real providers and programs, as tables.

use super::*;

mod speakers;
mod waits;
mod words;

fn classify(adapter: &str, text: &str) -> Option<Failure> {
    FailureTable::builtin().classify(adapter, text, LocalTime::utc(Timestamp::default()))
}

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
        // A limit that passes, whatever its words say.
        (
            ProviderError {
                message: "Quota exceeded for this metric",
                ..coded(429, "rate_limit_exceeded")
            },
            K::RateLimited,
        ),
        (plain(429, "Quota exceeded for this metric"), K::QuotaExhausted),
        (coded(400, "invalid_prompt"), K::ModelRefused),
        (coded(400, "content_filter"), K::ModelRefused),
        (typed(None, "server_is_overloaded", ""), K::Overloaded),
        (typed(None, "server_error", ""), K::Network),
        (typed(None, "context_length_exceeded", ""), K::ContextOverflow),
        (typed(None, "RESOURCE_EXHAUSTED", ""), K::RateLimited),
        (typed(None, "UNAUTHENTICATED", ""), K::Auth),
        (typed(Some(400), "authentication_error", ""), K::Auth),
        (typed(Some(400), "billing_error", ""), K::QuotaExhausted),
        (
            plain(
                400,
                "input length and `max_tokens` exceed context limit: 190000 + 32000 > 200000, decrease input length or `max_tokens` and try again",
            ),
            K::ContextOverflow,
        ),
        (
            plain(
                400,
                "The input token count (1215000) exceeds the maximum number of tokens allowed (1048576).",
            ),
            K::ContextOverflow,
        ),
        (coded(400, "exceed_context_size_error"), K::ContextOverflow),
        (
            plain(429, "You've hit your limit · resets Dec 3 at 5pm"),
            K::QuotaExhausted,
        ),
        (
            plain(
                429,
                "You exceeded your current quota, please check your plan and billing details.",
            ),
            K::QuotaExhausted,
        ),
        // The words of a broken server are not about an account.
        (plain(500, "quota exceeded"), K::Network),
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
    let now = Timestamp::from_millis(1_796_230_800_000);
    let told = |status, message| {
        let error = ProviderError {
            status: Some(status),
            message,
            heard: Some(LocalTime::utc(now)),
            ..ProviderError::default()
        };
        error.classify().retry_after.map(|wait| wait.as_secs())
    };
    assert_eq!(told(429, "slow down, try again in 20s"), Some(20));
    assert_eq!(told(400, "bad, try again in 20s"), None, "time does not cure it");
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
        assert_eq!(classify("claude-code", text), None, "{text:?}");
    }
}

#[test]
fn a_rule_of_one_adapter_is_not_for_others_and_the_line_is_shown() {
    let text = "starting\n  litellm.RateLimitError: slow down \nbye";
    let found = classify("aider", text).unwrap();
    assert_eq!(found.message, "litellm.RateLimitError: slow down");
}

#[test]
fn rules_of_a_user_come_first() {
    let own = "[[rule]]\npattern = 'the hamster rate limit'\nkind = 'adapter_crash'\n";
    let own = FailureTable::parse(own).unwrap();
    let table = FailureTable::builtin().clone().overlay(own);
    let kind = |text| table.kind("x", text);
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

#[test]
fn a_machine_without_room_is_at_fault_for_its_own_programs() {
    for (message, kind) in [
        (
            "git cat-file could not be started; is git installed and on PATH?: Resource temporarily unavailable (os \
             error 11)",
            FailureKind::MachineBusy,
        ),
        (
            "git index-pack failed: fatal: Cannot allocate memory",
            FailureKind::MachineBusy,
        ),
        ("git write-tree failed: No space left on device", FailureKind::DiskFull),
        ("git write-tree failed: bad object", FailureKind::CorruptedState),
    ] {
        let failure = local_failure(FailureKind::CorruptedState, message.to_owned());
        assert_eq!((failure.kind, failure.message.as_str()), (kind, message));
    }
}

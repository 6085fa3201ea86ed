//! Reasons of failed programs: by rules and by their own messages, never by quoted errors.

use super::*;

#[tokio::test]
async fn failures_are_found_by_rule_then_by_words() {
    let place = Place::new();
    let manifest = "name = 'x'\ncommand = 'tool'\n\
        [[failure]]\nexit_code = 53\nkind = 'logic_error'\n\
        [[failure]]\nexit_code = 0\npattern = 'litellm\\.RateLimitError'\nkind = 'rate_limited'\n\
        [[failure]]\npattern = 'the hamster is tired'\nkind = 'overloaded'\n";
    let cases = [
        ("exit 53", Some(FailureKind::LogicError)),
        ("echo litellm.RateLimitError: slow", Some(FailureKind::RateLimited)),
        ("echo the hamster is tired >&2; exit 1", Some(FailureKind::Overloaded)),
        ("echo the hamster is tired", None),
        ("echo something odd; exit 1", Some(FailureKind::AdapterCrash)),
        ("kill -SEGV $$", Some(FailureKind::AdapterCrash)),
    ];
    for (script, expected) in cases {
        place.program("tool", script);
        let told = place.run(manifest, place.input("", "task")).await;
        assert_eq!(kind(&told.end), expected, "{script}: {:?}", told.end);
    }
    let AdapterEnd::Failed(failure) = place.run(manifest, place.input("", "")).await.end else {
        panic!("not a failure");
    };
    assert!(
        failure.message.starts_with("the program ended with signal 11"),
        "{failure}"
    );
}

#[tokio::test]
async fn words_that_a_program_quotes_are_not_its_failure() {
    let place = Place::new();
    let text = "name = 'x'\ncommand = 'tool'";
    let json = "name = 'claude-code'\ncommand = 'tool'\nparser = 'claude-stream-json'\n\
        [[failure]]\npattern = 'the hamster is tired'\nkind = 'overloaded'";
    let said = r#"{"type":"assistant","message":{"content":[{"type":"text","text":"429 Too Many Requests, the hamster is tired"}]}}"#;
    let tool = r#"{"type":"user","message":{"content":[{"type":"tool_result","is_error":true,"content":"AssertionError: 3"}]}}"#;
    let quota = r#"{"type":"turn.failed","error":{"message":"usage limit reached, try again in 2 h"}}"#;
    let cases = [
        // A model's answer, and a reason that nobody knows.
        (
            text,
            "echo 'It handles 429 Too Many Requests now.'; exit 1".to_owned(),
            FailureKind::AdapterCrash,
        ),
        (
            text,
            "echo 'AssertionError in the test'; echo boom >&2; exit 1".to_owned(),
            FailureKind::AdapterCrash,
        ),
        (
            json,
            format!("echo '{said}'; echo '{tool}'; exit 1"),
            FailureKind::AdapterCrash,
        ),
        // The same with a reason of its own.
        (
            text,
            "echo 'It handles 429 Too Many Requests now.'; echo 'connection reset' >&2; exit 1".to_owned(),
            FailureKind::Network,
        ),
        (
            json,
            format!("echo '{said}'; echo '{tool}'; echo 'Invalid API key' >&2; exit 1"),
            FailureKind::Auth,
        ),
        (
            json,
            format!("echo '{said}'; echo 'the hamster is tired' >&2; exit 1"),
            FailureKind::Overloaded,
        ),
        // Its terminal error, in the middle of all that it printed.
        (
            text,
            format!("echo '{tool}'; echo '{quota}'; echo Reading from stdin >&2; exit 1"),
            FailureKind::QuotaExhausted,
        ),
        (
            text,
            "echo an answer; echo 'Error: rate limit reached'; exit 1".to_owned(),
            FailureKind::RateLimited,
        ),
    ];
    for (manifest, script, expected) in cases {
        place.program("tool", &script);
        let told = place.run(manifest, place.input("", "task")).await;
        assert_eq!(kind(&told.end), Some(expected), "{script}: {:?}", told.end);
    }
    place.program("tool", &format!("echo '{quota}'; exit 1"));
    let AdapterEnd::Failed(failure) = place.run(text, place.input("", "")).await.end else {
        panic!("not a failure");
    };
    assert_eq!(failure.message, "usage limit reached, try again in 2 h");
    assert_eq!(failure.retry_after, Some(Duration::from_secs(7_200)));
}

/// The output of real programs, as it was recorded.
#[tokio::test]
async fn recorded_failures_of_programs_without_a_parser_are_classified() {
    use FailureKind as K;
    let place = Place::new();
    let cases = [
        ("codex-ctx400", K::ContextOverflow),
        ("codex-quota", K::QuotaExhausted),
        ("codex-rate429", K::RateLimited),
        ("gemini-auth401", K::Auth),
        ("gemini-ctx400", K::ContextOverflow),
        ("gemini-cut", K::Network),
        ("gemini-refused", K::Network),
        ("qwen-auth401", K::Auth),
        ("qwen-ctx400", K::ContextOverflow),
        ("qwen-maxturns", K::TurnLimit),
        ("qwen-maxwall", K::Timeout),
        ("opencode-auth401", K::Auth),
        ("opencode-ctx400", K::ContextOverflow),
        ("opencode-rate429", K::RateLimited),
        ("cline-ctx400", K::ContextOverflow),
        ("cline-quota", K::QuotaExhausted),
    ];
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/programs");
    for (case, expected) in cases {
        let file = folder.join(case).display().to_string();
        place.program("tool", &format!("cat '{file}.stdout'; cat '{file}.stderr' >&2; exit 1"));
        let name = case.split('-').next().unwrap();
        let told = place
            .run(&format!("name = '{name}'\ncommand = 'tool'"), place.input("", "task"))
            .await;
        assert_eq!(kind(&told.end), Some(expected), "{case}: {:?}", told.end);
    }
}

#[tokio::test]
async fn what_the_user_knows_comes_before_what_the_program_knows() {
    let place = Place::new();
    place.program("tool", "echo rate limit of hamsters >&2; exit 1");
    let manifest = "name = 'x'\ncommand = 'tool'";
    let told = place.run(manifest, place.input("", "")).await;
    assert_eq!(kind(&told.end), Some(FailureKind::RateLimited));

    let mut config = AdapterConfig::new(AgentEnvironment::new(place.env.clone()), Runner::default());
    config.failures = FailureTable::parse("[[rule]]\npattern = 'hamsters'\nkind = 'auth'\n").unwrap();
    let manifest = Manifest::parse(manifest, &place.path("x.toml")).unwrap();
    let adapter = Arc::new(CliAdapter::new(manifest, &config, &crate::adapters::logins().unwrap()).await);
    let told = run(adapter, place.input("", ""), CancellationToken::new()).await;
    assert_eq!(kind(&told.end), Some(FailureKind::Auth));
}

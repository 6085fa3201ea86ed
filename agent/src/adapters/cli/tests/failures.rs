//! Reasons of failed programs: by rules and by their own messages, never by quoted errors.

use tokio::sync::watch;

use super::*;
use crate::adapters::metered::{AskedWait, GatewayPass, OwnCount};

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
    for (case, expected) in cases {
        replay(&place, case, "exit 1");
        let name = case.split('-').next().unwrap();
        let told = place
            .run(&format!("name = '{name}'\ncommand = 'tool'"), place.input("", "task"))
            .await;
        assert_eq!(kind(&told.end), Some(expected), "{case}: {:?}", told.end);
    }
}

/// A program that prints a recorded run and ends as told.
fn replay(place: &Place, case: &str, end: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures/programs")
        .join(case);
    let file = file.display();
    place.program("tool", &format!("cat '{file}.stdout'; cat '{file}.stderr' >&2; {end}"));
}

/// Every failure of the programs with a parser of their own, under another adapter's name: rules belong to
/// the program.
#[tokio::test]
async fn recorded_failures_of_programs_are_classified_by_their_family() {
    use FailureKind as K;
    let place = Place::new();
    let cases = [
        ("codex-auth401", 1, K::Auth),
        ("codex-forbidden403", 1, K::Auth),
        ("codex-nokey", 1, K::Auth),
        ("codex-ctx400", 1, K::ContextOverflow),
        ("codex-cut", 1, K::Network),
        ("codex-html502", 1, K::Network),
        ("codex-midstream", 1, K::Overloaded),
        ("codex-overload503", 1, K::Overloaded),
        ("codex-server500", 1, K::Overloaded),
        ("codex-model404", 1, K::InvalidRequest),
        ("codex-quota", 1, K::QuotaExhausted),
        ("codex-rate429", 1, K::RateLimited),
        ("codex-rate429long", 1, K::QuotaExhausted),
        // It was killed while it said that it waits for the network.
        ("codex-refused", 1, K::Network),
        ("gemini-auth401", 144, K::Auth),
        ("gemini-nokey", 1, K::Auth),
        ("gemini-notrust", 1, K::AdapterUnavailable),
        ("gemini-forbidden403", 147, K::Auth),
        ("gemini-ctx400", 144, K::ContextOverflow),
        ("gemini-cut", 1, K::Network),
        ("gemini-refused", 1, K::Network),
        ("gemini-server500", 244, K::Network),
        ("gemini-overload503", 247, K::Overloaded),
        ("gemini-model404", 1, K::InvalidRequest),
        ("gemini-quota", 173, K::QuotaExhausted),
        ("gemini-rate429", 173, K::RateLimited),
        ("gemini-rate429long", 173, K::QuotaExhausted),
        // These end with 0.
        ("gemini-midstream", 0, K::Network),
        ("gemini-sigterm_grp", 0, K::AdapterCrash),
        ("opencode-auth401", 1, K::Auth),
        ("opencode-forbidden403", 1, K::Auth),
        ("opencode-ctx400", 1, K::ContextOverflow),
        ("opencode-model404", 1, K::InvalidRequest),
        ("opencode-rate429", 1, K::RateLimited),
        ("opencode-server500", 1, K::Network),
        ("opencode-refused", 1, K::Network),
        ("qwen-auth401", 1, K::Auth),
        ("qwen-nokey", 1, K::Auth),
        ("qwen-forbidden403", 1, K::Auth),
        ("qwen-ctx400", 1, K::ContextOverflow),
        ("qwen-cut", 1, K::Network),
        ("qwen-server500", 1, K::Network),
        ("qwen-model404", 1, K::InvalidRequest),
        ("qwen-maxturns", 53, K::TurnLimit),
        ("qwen-maxwall", 55, K::Timeout),
        ("copilot-auth401", 1, K::Auth),
        ("cline-auth401", 1, K::Auth),
        ("cline-ctx400", 1, K::ContextOverflow),
        ("cline-quota", 1, K::QuotaExhausted),
        ("cline-rate429", 1, K::RateLimited),
        ("cline-refused", 1, K::Network),
        ("cline-server500", 1, K::Network),
        ("kimi-auth401", 1, K::Auth),
        ("kimi-ctx400", 1, K::ContextOverflow),
        ("kimi-rate429", 1, K::RateLimited),
        // aider ends with 0.
        ("aider-auth401", 0, K::Auth),
        ("aider-nokey", 0, K::Auth),
        ("aider-forbidden403", 0, K::InvalidRequest),
        ("aider-ctx400", 0, K::ContextOverflow),
        ("aider-model404", 0, K::InvalidRequest),
        ("aider-quota", 0, K::QuotaExhausted),
        ("aider-rate429", 0, K::RateLimited),
        ("aider-refused", 0, K::Network),
        ("aider-server500", 0, K::Overloaded),
        // It was ended, and its log does not say that it was done.
        ("aider-sigterm", 0, K::AdapterCrash),
    ];
    let mut wrong = Vec::new();
    for (case, code, expected) in cases {
        replay(&place, case, &format!("exit {code}"));
        let family = case.split('-').next().unwrap();
        let manifest = format!("name = 'my-own'\ncommand = 'tool'\nparser = '{}'", parser(family));
        let told = place.run(&manifest, place.input("", "task")).await;
        if kind(&told.end) != Some(expected) {
            wrong.push((case, expected, told.end));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

fn parser(family: &str) -> &'static str {
    match family {
        "codex" => "codex-json",
        "gemini" => "gemini-stream-json",
        "opencode" => "opencode-json",
        "qwen" => "qwen-stream-json",
        "copilot" => "copilot-json",
        "cline" => "cline-json",
        "kimi" => "kimi-stream-json",
        "aider" => "aider-text",
        other => panic!("{other} has no parser"),
    }
}

/// Programs that repeat a call for ever: each is ended by a rule of its built-in manifest.
#[tokio::test]
async fn a_program_that_gets_no_further_is_ended_for_what_it_says() {
    use FailureKind as K;
    let cases = [
        ("codex", "codex-refused", K::Network),
        ("qwen", "qwen-rate429", K::RateLimited),
        ("qwen", "qwen-quota", K::QuotaExhausted),
        ("qwen", "qwen-overload503", K::Overloaded),
        ("qwen", "qwen-midstream", K::Overloaded),
        ("opencode", "opencode-server500", K::Network),
        ("kimi", "kimi-server500", K::Network),
        ("kimi", "kimi-rate429", K::RateLimited),
    ];
    let data = Path::new(env!("CARGO_MANIFEST_DIR"));
    futures_util::future::join_all(cases.map(|(name, case, expected)| async move {
        let mut place = Place::new();
        for key in ["OPENAI_API_KEY", "KIMI_MODEL_API_KEY"] {
            place.env.insert(key.into(), "sk-scripted-123456".into());
        }
        // opencode says everything else when it gives up.
        let end = if name == "opencode" { "" } else { ".stdout" };
        let words = match name {
            "codex" => "Reconnecting... waiting",
            "qwen" => "Retrying in",
            "kimi" => "turn.step.retrying",
            _ => "stream error",
        };
        let file = data.join("fixtures/programs").join(case);
        let (stdout, stderr) = (format!("{}{end}", file.display()), format!("{}.stderr", file.display()));
        // What it says last are the words of the rule, over and over, as the real programs do.
        let script = format!(
            "if [ \"$1\" = --version ]; then echo 9.9.9; exit; fi\n\
             cat '{stdout}' 2>/dev/null; cat '{stderr}' >&2\n\
             while :; do grep -h '{words}' '{stdout}' 2>/dev/null | tail -n 1\n\
             grep -h '{words}' '{stderr}' 2>/dev/null | tail -n 1 >&2; sleep 0.05; done"
        );
        place.program(name, &script);
        let manifest = fs::read_to_string(data.join(format!("data/{name}.toml"))).unwrap();
        let manifest = ["60s", "150s", "180s"].iter().fold(manifest, |text, time| {
            text.replace(&format!("while_running = \"{time}\""), "while_running = \"1s\"")
        });
        let told = place.run(&manifest, place.input("", "task")).await;
        let AdapterEnd::Failed(failure) = told.end else {
            panic!("{case}: {:?}", told.end);
        };
        assert_eq!(failure.kind, expected, "{case}: {failure:?}");
        assert!(failure.message.starts_with("the program got no further"), "{failure:?}");
    }))
    .await;
}

/// What a program prints in between, and a stop by the attempt, are not taken for that.
#[tokio::test]
async fn a_program_that_gets_on_is_not_ended() {
    let place = Place::new();
    let rule = "[[failure]]\npattern = 'slow'\nwhile_running = '1s'\nkind = 'network'\n";
    let manifest = format!("name = 'x'\ncommand = 'tool'\n{rule}");
    // Longer in all than the rule allows, and never as long without a line of its work.
    place.program(
        "tool",
        "for i in 1 2 3 4 5; do echo slow >&2; sleep 0.4; echo step $i; done",
    );
    let told = place.run(&manifest, place.input("", "task")).await;
    assert_eq!(told.end, done("step 5"));

    place.program("tool", "echo slow; while :; do sleep 0.05; done");
    let adapter = Arc::new(place.adapter(&manifest).await);
    let stop = CancellationToken::new();
    stop.cancel();
    let told = run(adapter, place.input("", "task"), stop).await;
    assert_eq!(told.end, AdapterEnd::Stopped);
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

/// Programs that give up at once do not say how long their provider asked to wait.
#[tokio::test]
async fn a_wait_that_only_the_gateway_heard_of_is_kept() {
    let place = Place::new();
    for (words, wait) in [
        ("429 Too Many Requests", Some(3600)),
        ("429 Too Many Requests, try again in 20s", Some(20)),
        ("Invalid API key", None),
    ] {
        let pass = GatewayPass {
            address: "http://127.0.0.1:9".to_owned(),
            key: "session-key".to_owned(),
            refusing: watch::channel(None).1,
            enough: CancellationToken::new(),
            own_count: OwnCount::default(),
            asked_wait: AskedWait::default(),
        };
        let now = crate::adapters::local_time().now;
        pass.asked_wait.refused(Some(Duration::from_secs(3600)), now);
        place.program("tool", &format!("echo '{words}' >&2; exit 1"));
        let mut input = place.input("", "task");
        input.gateway = Some(pass);
        let told = place.run("name = 'x'\ncommand = 'tool'", input).await;
        let AdapterEnd::Failed(failure) = told.end else {
            panic!("{:?}", told.end);
        };
        let left = failure.retry_after;
        let wait = wait.map(Duration::from_secs);
        assert!(left <= wait && left.is_some() == wait.is_some(), "{failure:?}");
        assert_eq!(failure.is_held(), wait > Some(Duration::from_secs(600)), "{failure:?}");
    }
}

/// A program hangs in the same way under another adapter's name.
#[test]
fn a_second_manifest_of_a_program_has_the_rules_of_the_first() {
    let place = Place::new();
    let words = "^\\{\"type\":\"error\",\"message\":\"Reconnecting\\.\\.\\. waiting for network";
    let rules = [
        ("one", "codex-json", String::new()),
        (
            "two",
            "codex-json",
            "[[failure]]\nexit_code = 9\nkind = 'auth'\n".to_owned(),
        ),
        (
            "three",
            "codex-json",
            format!("[[failure]]\npattern = '{words}'\nwhile_running = '1h'\nkind = 'timeout'\n"),
        ),
        ("four", "text", String::new()),
        ("five", "text", "family = 'gemini'\n".to_owned()),
    ];
    for (name, parser, rules) in &rules {
        let manifest = format!("name = '{name}'\ncommand = 'tool'\nparser = '{parser}'\n{rules}");
        fs::write(place.path("bin").join(format!("{name}.toml")), manifest).unwrap();
    }
    let mut config = AdapterConfig::new(AgentEnvironment::new(place.env.clone()), Runner::default());
    config.manifest_dirs = vec![place.path("bin")];
    let all = crate::adapters::manifests(&config).unwrap();
    let told = |name: &str| -> Vec<(Option<i32>, Option<u64>, FailureKind)> {
        let manifest = all.iter().find(|manifest| manifest.name.as_str() == name).unwrap();
        let rules = manifest.failures.iter();
        rules
            .map(|rule| (rule.exit_code, rule.while_running.map(|time| time.as_secs()), rule.kind))
            .collect()
    };
    let network = (None, Some(180), FailureKind::Network);
    assert_eq!(told("one"), [network]);
    assert_eq!(told("two"), [(Some(9), None, FailureKind::Auth), network]);
    assert_eq!(told("three"), [(None, Some(3600), FailureKind::Timeout)]);
    assert!(told("four").is_empty());
    let codes: Vec<_> = told("five").into_iter().map(|(code, ..)| code).collect();
    assert_eq!(codes, [Some(41), Some(55), Some(53)]);
    assert_eq!(told("codex"), [network]);
}

//! The built-in manifest, with scripts in place of `claude`.

use kage_core::usage::PicoUsd;

use super::*;

/// Prints a fixture and ends as told.
fn claude(place: &Place, fixture: &str, end: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures/claude")
        .join(fixture);
    place.program("claude", &format!("cat '{}' 2>/dev/null; {end}", path.display()));
    "name = 'claude-code'\ncommand = 'claude'\nparser = 'claude-stream-json'".to_owned()
}

#[tokio::test]
async fn claude_has_succeeded_only_when_everything_says_so() {
    let place = Place::new();
    let cases = [
        ("success.jsonl", "", None),
        ("success.jsonl", "exit 1", Some(FailureKind::AdapterCrash)),
        // Interrupted: exit code 0 and no result line.
        ("absent.jsonl", "", Some(FailureKind::AdapterCrash)),
        ("rate429.jsonl", "exit 1", Some(FailureKind::RateLimited)),
        ("rate429.jsonl", "", Some(FailureKind::RateLimited)),
        ("budget.jsonl", "exit 1", Some(FailureKind::BudgetExceeded)),
        (
            "absent.jsonl",
            "echo 'Invalid API key · Fix external API key' >&2; exit 1",
            Some(FailureKind::Auth),
        ),
    ];
    for (fixture, end, expected) in cases {
        let manifest = claude(&place, fixture, end);
        let told = place.run(&manifest, place.input("", "task")).await;
        assert_eq!(kind(&told.end), expected, "{fixture} {end}: {:?}", told.end);
        if expected.is_none() {
            assert_eq!(told.end, done("Done: wrote the file as asked."));
            assert!(told.transcript.lines().count() == 5 && told.stdout.starts_with("> Write "));
            let cost = told.events.iter().find_map(|event| match event {
                EventBody::UsageRecorded { reported, .. } => *reported,
                _ => None,
            });
            assert_eq!(cost, Some(PicoUsd(90_874_500_000)));
        }
    }
}

#[tokio::test]
async fn the_built_in_manifest_makes_the_command_line_that_claude_wants() {
    let mut place = Place::new();
    place.env.insert("ANTHROPIC_API_KEY".into(), "sk-ant-test".into());
    place.program(
        "claude",
        "if [ \"$1\" = --version ]; then echo '2.1.330 (Claude Code)'; exit; fi\n\
         for a in \"$@\"; do echo \"[$a]\"; done\n\
         echo \"$CLAUDE_CONFIG_DIR $ANTHROPIC_API_KEY $DISABLE_AUTOUPDATER $IS_SANDBOX\"",
    );
    let config = AdapterConfig::new(AgentEnvironment::new(place.env.clone()), Runner::default());
    let registry = crate::adapters::load(config).await.unwrap();
    let adapter = &registry[&"claude-code".parse::<kage_core::id::AdapterName>().unwrap()];
    assert_eq!(adapter.info().version, "2.1.330 (Claude Code)");
    assert_eq!(Secret::values(&adapter.secrets()), ["sk-ant-test"]);

    let told = run(
        Arc::clone(adapter),
        place.input("the base", "the task"),
        CancellationToken::new(),
    )
    .await;
    let base = place.path("scratch/base.md");
    assert_eq!(fs::read_to_string(&base).unwrap(), "the base");
    // Lines that are no events are shown; empty ones, as in the prompt, are not.
    let sandbox = if rustix::process::geteuid().is_root() {
        " 1"
    } else {
        " "
    };
    let expected = format!(
        "[-p]\n[--output-format]\n[stream-json]\n[--verbose]\n[--include-partial-messages]\n[--permission-mode]\n[bypassPermissions]\n\
         [--strict-mcp-config]\n[--tools]\n[Bash,Edit,Read,Write,Glob,Grep]\n[--session-id]\n[12345678-9abc-4def-8123-456789abcdef]\n[--model]\n[m-1]\n\
         [--append-system-prompt-file]\n[{}]\n[--]\n[This is the task to work on:\nthe task]\n{} sk-ant-test 1{sandbox}\n",
        base.display(),
        place.path("scratch/claude").display(),
    );
    assert_eq!(told.stdout, expected);

    // A long prompt is read from standard input, and nothing stands after the options.
    let long = "x".repeat(200 << 10);
    let told = run(Arc::clone(adapter), place.input("", &long), CancellationToken::new()).await;
    assert!(
        !told.stdout.contains("[--]") && told.stdout.len() < 2000,
        "{}",
        told.stdout
    );
}

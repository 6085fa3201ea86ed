//! Manifests with small scripts in the place of programs.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;

use kage_core::id::AttemptId;
use kage_core::prompt::Prompt;
use kage_core::usage::PicoUsd;

use super::*;
use crate::adapters::port::Beginning;

mod failures;

struct Place {
    folder: tempfile::TempDir,
    env: BTreeMap<OsString, OsString>,
}

struct Told {
    end: AdapterEnd,
    events: Vec<EventBody>,
    stdout: String,
    stderr: String,
    transcript: String,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["bin", "tree", "scratch"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        let path = format!("{}:/usr/local/bin:/usr/bin:/bin", folder.path().join("bin").display());
        let env = [("PATH", path.as_str()), ("MY_KEY", "key-123456"), ("UNLISTED", "x")]
            .map(|(name, value)| (name.into(), value.into()))
            .into();
        Self { folder, env }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn program(&self, name: &str, script: &str) {
        let path = self.path("bin").join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    async fn adapter(&self, manifest: &str) -> CliAdapter {
        let manifest = Manifest::parse(manifest, &self.path("x.toml")).unwrap();
        CliAdapter::new(manifest, &AdapterConfig::new(self.env.clone(), Runner::default())).await
    }

    fn input(&self, shared: &str, own: &str) -> SessionInput {
        SessionInput {
            attempt: AttemptId::from_random(0x1234_5678_9abc_4def_8123_4567_89ab_cdef),
            model: Some("m-1".to_owned()),
            prompt: Prompt {
                shared: shared.to_owned(),
                own: own.to_owned(),
            },
            base_context: (!shared.is_empty()).then(|| self.path("context.json")),
            worktree: Some(self.path("tree")),
            ..SessionInput::blank(self.path("scratch"))
        }
    }

    async fn run(&self, manifest: &str, input: SessionInput) -> Told {
        let adapter = self.adapter(manifest).await;
        assert_eq!(adapter.info().unavailable, None);
        run(Arc::new(adapter), input, CancellationToken::new()).await
    }
}

async fn run(adapter: Arc<dyn Adapter>, input: SessionInput, stop: CancellationToken) -> Told {
    let (reporter, mut reports) = Reporter::channel(8);
    let gather = async {
        let (mut events, mut output) = (Vec::new(), BTreeMap::<OutputStream, Vec<u8>>::new());
        while let Some(report) = reports.recv().await {
            match report {
                Report::Event(body) => events.push(body),
                Report::Output(stream, bytes) => output.entry(stream).or_default().extend_from_slice(&bytes),
                Report::Alive => {}
            }
        }
        (events, output)
    };
    let (end, (events, mut output)) = tokio::join!(adapter.run(input, reporter, stop), gather);
    let mut text = |stream| String::from_utf8(output.remove(&stream).unwrap_or_default()).unwrap();
    Told {
        end,
        events,
        stdout: text(OutputStream::Stdout),
        stderr: text(OutputStream::Stderr),
        transcript: text(OutputStream::Transcript),
    }
}

#[tokio::test]
async fn a_session_goes_on_from_its_file_under_other_names() {
    let place = Place::new();
    place.program("x", r#"printf '%s|' "$@"; cat "$STORE"/*/*.jsonl 2>/dev/null; exit 0"#);
    let manifest = r#"
name = "x"
command = "x"
resume = "position"
args = [["--new", "{new_session}"], ["--old", "{old_session}"], ["--", "{prompt}"]]
prompt = { pass = "arg", long = "stdin", opening = "Opening. " }
session = { folder = "STORE", file = "{worktree_slug}/{session_id}.jsonl" }
env.set.STORE = "{scratch}/store"
"#;
    let new = place.run(manifest, place.input("shared. ", "own")).await;
    let id = "12345678-9abc-4def-8123-456789abcdef";
    assert_eq!(new.stdout, format!("--new|{id}|--|shared. Opening. own|"));

    let adapter = place.adapter(manifest).await;
    assert_eq!(adapter.resumes(), Resumes::Position);
    let mut input = place.input("shared. ", "own");
    let file = adapter.session_file(&input).unwrap();
    let tree = place.path("tree").display().to_string();
    let slug = tree.replace(|c: char| !c.is_ascii_alphanumeric(), "-");
    assert_eq!(
        file.path,
        place.path("scratch/store").join(&slug).join(format!("{id}.jsonl"))
    );
    let kept = format!(
        r#"{{"cwd":"{tree}","id":"{id}","tmp":"{}"}}"#,
        place.path("scratch/tmp").display()
    );
    let elsewhere = file.portable(kept.clone().into());
    assert_eq!(
        elsewhere,
        br#"{"cwd":"{kage:worktree}","id":"{kage:session}","tmp":"{kage:scratch}/tmp"}"#
    );
    input.beginning = Beginning::GoOn {
        said: file.local(elsewhere).into(),
        note: "Verify failed.".to_owned(),
        instruction: String::new(),
    };
    let old = place.run(manifest, input).await;
    let (args, session) = old.stdout.rsplit_once('|').unwrap();
    assert!(
        args.starts_with(&format!("--old|{id}|--|Opening. The session was interrupted.")),
        "{args}"
    );
    assert!(args.ends_with("Verify failed.") && !args.contains("own"), "{args}");
    assert_eq!(session, kept);

    // One that has something to do was not interrupted.
    let mut input = place.input("shared. ", "own");
    input.beginning = Beginning::GoOn {
        said: file.local(kept.clone().into()).into(),
        note: String::new(),
        instruction: "# Verify failed".to_owned(),
    };
    let told = place.run(manifest, input).await;
    assert!(
        told.stdout
            .starts_with(&format!("--old|{id}|--|Opening. # Verify failed|")),
        "{}",
        told.stdout
    );
}

fn done(summary: &str) -> AdapterEnd {
    AdapterEnd::Done {
        summary: summary.to_owned(),
    }
}

fn kind(end: &AdapterEnd) -> Option<FailureKind> {
    match end {
        AdapterEnd::Failed(failure) => Some(failure.kind),
        AdapterEnd::Done { .. } | AdapterEnd::Stopped => None,
    }
}

#[tokio::test]
async fn a_script_works_in_the_worktree_with_exactly_its_environment() {
    let place = Place::new();
    place.program(
        "tool",
        "env | sort > env.txt; pwd; cat > prompt.txt; echo oops >&2; echo; echo all done",
    );
    let manifest = "name = 'x'\ncommand = 'tool'\n[env]\nsecret = ['MY_KEY']\nset = { A = '{session_name} {model}' }";
    let told = place.run(manifest, place.input("base\n", "do it")).await;

    assert_eq!(told.end, done("all done"));
    let tree = fs::canonicalize(place.path("tree")).unwrap();
    assert_eq!(told.stdout, format!("{}\n\nall done\n", tree.display()));
    assert_eq!(told.stderr, "oops\n");
    assert!(matches!(&told.events[..], [EventBody::Activity(_), ..]));
    let used = EventBody::UsageRecorded {
        model: String::new(),
        usage: Usage::UNKNOWN,
        reported: None,
        metered: false,
    };
    assert_eq!(
        told.events.last(),
        Some(&used),
        "a program that tells of no tokens used an unknown number"
    );
    assert_eq!(fs::read_to_string(tree.join("prompt.txt")).unwrap(), "base\ndo it");

    let env = fs::read_to_string(tree.join("env.txt")).unwrap();
    let names: Vec<&str> = env
        .lines()
        .filter_map(|line| line.split_once('=').map(|(name, _)| name))
        .filter(|name| !["PWD", "_", "SHLVL", "OLDPWD"].contains(name))
        .collect();
    let expected = [
        "A",
        "HOME",
        "KAGE_BASE_CONTEXT",
        "KAGE_SESSION",
        "KAGE_TASK",
        "MY_KEY",
        "PATH",
        "TERM",
        "TMPDIR",
    ];
    assert_eq!(names, expected);
    assert!(env.contains("A=s-1 m-1\n"));
    assert!(env.contains(&format!("HOME={}\n", place.path("scratch/home").display())));
    assert!(place.path("scratch/tmp").is_dir());
}

#[tokio::test]
async fn prompts_and_bases_go_where_the_manifest_says_and_long_ones_are_no_arguments() {
    let place = Place::new();
    place.program(
        "tool",
        "for a in \"$@\"; do echo \"<$(printf %s \"$a\" | wc -c)>\"; done; wc -c",
    );
    let long = "p".repeat(200 << 10);
    let arg = "name = 'x'\ncommand = 'tool'\nargs = [['-p', '{prompt}'], ['-b', '{base}']]\n\
               [prompt]\npass = 'arg'\nlong = 'stdin'\n[base]\npass = 'arg'";
    let file = "name = 'x'\ncommand = 'sh'\nargs = ['-c', 'wc -c < $0; wc -c < $1', '{prompt_file}', '{base_file}']\n\
                [prompt]\npass = 'file'\nopening = '12345'\n[base]\npass = 'file'";
    let cases = [
        (arg, "base", "task", "<2>\n<4>\n<2>\n<4>\n0\n"),
        (arg, "", "task", "<2>\n<4>\n0\n"),
        (arg, "base", &long, "<2>\n<4>\n204800\n"),
        (arg, &long, "task", "204804\n"),
        (file, "base", &long, "204805\n4\n"),
    ];
    for (manifest, shared, own, stdout) in cases {
        let told = place.run(manifest, place.input(shared, own)).await;
        assert_eq!(told.stdout, stdout, "{} {}", shared.len(), own.len());
    }
}

#[tokio::test]
async fn watchdogs_and_stop_end_the_program() {
    let place = Place::new();
    place.program("tool", "echo begun; sleep 60");
    let manifest = "name = 'x'\ncommand = 'tool'\n[watchdog]\nidle_seconds = 1\n";
    let told = place.run(manifest, place.input("", "")).await;
    assert_eq!(kind(&told.end), Some(FailureKind::Timeout));

    let adapter = Arc::new(place.adapter("name = 'x'\ncommand = 'tool'").await);
    let stop = CancellationToken::new();
    let (reporter, mut reports) = Reporter::channel(8);
    let adapter: Arc<dyn Adapter> = adapter;
    let stop_when_begun = async {
        let first = loop {
            match reports.recv().await {
                Some(Report::Alive) => {}
                first => break first,
            }
        };
        stop.cancel();
        while reports.recv().await.is_some() {}
        first
    };
    let (end, first) = tokio::join!(
        adapter.run(place.input("", ""), reporter, stop.clone()),
        stop_when_begun
    );
    assert!(matches!(first, Some(Report::Output(OutputStream::Stdout, bytes)) if bytes == "begun\n"));
    assert_eq!(end, AdapterEnd::Stopped);
}

#[tokio::test]
async fn bytes_of_any_kind_are_life() {
    let place = Place::new();
    let parts = r#"{"type":"stream_event","event":{"type":"content_block_delta"}}"#;
    for (parser, script) in [
        // Half a line of an event, an event that is not shown, and an empty line.
        ("claude-stream-json", "printf '{\"type\":'".to_owned()),
        ("claude-stream-json", format!("echo '{parts}'")),
        ("claude-stream-json", "echo".to_owned()),
        ("claude-stream-json", "printf . >&2".to_owned()),
        ("text", "printf .".to_owned()),
        ("text", "printf . >&2".to_owned()),
    ] {
        place.program("tool", &script);
        let adapter = place
            .adapter(&format!("name = 'x'\ncommand = 'tool'\nparser = '{parser}'"))
            .await;
        let (reporter, mut reports) = Reporter::channel(64);
        adapter
            .run(place.input("", ""), reporter, CancellationToken::new())
            .await;
        let mut alive = 0;
        while let Some(report) = reports.recv().await {
            alive += usize::from(matches!(report, Report::Alive));
        }
        assert_eq!(alive, 1, "{parser}: {script}");
    }
}

#[tokio::test]
async fn an_attempt_that_no_longer_listens_ends_the_program() {
    let place = Place::new();
    place.program("tool", "yes");
    let adapter = place.adapter("name = 'x'\ncommand = 'tool'").await;
    let (reporter, reports) = Reporter::channel(1);
    drop(reports);
    let end = adapter
        .run(place.input("", ""), reporter, CancellationToken::new())
        .await;
    assert_eq!(end, AdapterEnd::Stopped);
}

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
async fn a_program_that_cannot_be_used_says_why() {
    let place = Place::new();
    place.program("old", "echo 1.9.12 '(Old)'");
    place.program("broken", "exit 3");
    place.program("new", "echo v1.10.0");
    let version = "\n[version]\nargs = ['--version']\nmin = '1.10'";
    let cases = [
        ("command = 'nowhere'".to_owned(), Some("is not installed"), ""),
        (
            format!("command = 'old'{version}"),
            Some("1.10 is the oldest that works"),
            "",
        ),
        (
            format!("command = 'broken'{version}"),
            Some("it ended with exit code 3"),
            "",
        ),
        (format!("command = 'new'{version}"), None, "v1.10.0"),
        (
            "command = 'new'\n[env]\nrequire = ['A_KEY', 'B_KEY']".to_owned(),
            Some("set A_KEY or B_KEY"),
            "",
        ),
        (
            "command = 'new'\n[env]\nrequire = ['A_KEY', 'MY_KEY']".to_owned(),
            None,
            "",
        ),
        ("command = '{manifest_dir}/bin/new'".to_owned(), None, ""),
    ];
    for (text, problem, version) in cases {
        let info = place.adapter(&format!("name = 'x'\n{text}")).await.info();
        match (problem, info.unavailable) {
            (Some(problem), Some(said)) => assert!(said.contains(problem), "{text}: {said}"),
            (None, None) => assert_eq!(info.version, version),
            (expected, said) => panic!("{text}: expected {expected:?}, got {said:?}"),
        }
    }
    let adapter = place.adapter("name = 'x'\ncommand = 'nowhere'").await;
    let told = run(Arc::new(adapter), place.input("", ""), CancellationToken::new()).await;
    assert_eq!(kind(&told.end), Some(FailureKind::AdapterUnavailable));
}

#[tokio::test]
async fn secrets_are_named_for_masking() {
    let place = Place::new();
    let adapter = place
        .adapter("name = 'x'\ncommand = 'sh'\n[env]\nsecret = ['MY_KEY', 'ABSENT']")
        .await;
    assert_eq!(adapter.secrets(), ["key-123456"]);
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
    let config = AdapterConfig::new(place.env.clone(), Runner::default());
    let registry = crate::adapters::load(config).await.unwrap();
    let adapter = &registry[&"claude-code".parse::<kage_core::id::AdapterName>().unwrap()];
    assert_eq!(adapter.info().version, "2.1.330 (Claude Code)");
    assert_eq!(adapter.secrets(), ["sk-ant-test"]);

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

#[tokio::test]
async fn two_adapters_cannot_have_one_name() {
    let place = Place::new();
    let mut config = AdapterConfig::new(place.env.clone(), Runner::default());
    config.manifest_dirs = vec![place.path("tree")];
    fs::write(place.path("tree/a.toml"), "name = 'mine'\ncommand = 'sh'").unwrap();
    assert!(
        crate::adapters::load(config.clone())
            .await
            .unwrap()
            .contains_key(&"mine".parse().unwrap())
    );
    for name in ["mine", "claude-code", "claude-api"] {
        fs::write(place.path("tree/b.toml"), format!("name = '{name}'\ncommand = 'sh'")).unwrap();
        let error = crate::adapters::load(config.clone())
            .await
            .err()
            .map(|error| error.to_string());
        assert!(error.is_some_and(|error| error.contains(name)), "{name}");
    }
}

#[tokio::test]
async fn a_program_that_was_changed_since_is_not_run_and_one_in_the_way_is_not_either() {
    let place = Place::new();
    fs::create_dir(place.path("first")).unwrap();
    let mut env = place.env.clone();
    let path = format!(
        "{}:{}",
        place.path("first").display(),
        env[OsStr::new("PATH")].display()
    );
    env.insert("PATH".into(), path.into());
    place.program("x", "echo honest");
    let manifest = Manifest::parse("name = 'x'\ncommand = 'x'\n", &place.path("x.toml")).unwrap();
    let adapter = Arc::new(CliAdapter::new(manifest, &AdapterConfig::new(env, Runner::default())).await);

    // An earlier session puts one into a folder that comes first.
    fs::write(place.path("first/x"), "#!/bin/sh\necho forged\n").unwrap();
    fs::set_permissions(place.path("first/x"), fs::Permissions::from_mode(0o755)).unwrap();
    let told = run(adapter.clone(), place.input("", "own"), CancellationToken::new()).await;
    assert_eq!(told.stdout, "honest\n");

    // It replaces the program itself.
    fs::remove_file(place.path("bin/x")).unwrap();
    place.program("x", "echo forged");
    let told = run(adapter, place.input("", "own"), CancellationToken::new()).await;
    let AdapterEnd::Failed(failure) = told.end else {
        panic!("{:?}", told.end);
    };
    assert_eq!(failure.kind, FailureKind::AdapterUnavailable);
    let program = place.path("bin/x").display().to_string();
    assert!(
        failure.message.contains(&program) && failure.message.contains("restart the agent"),
        "{failure}"
    );
    assert_eq!(told.stdout, "");
}

#[tokio::test]
async fn a_program_where_sessions_write_is_not_taken() {
    let place = Place::new();
    place.program("x", "echo forged");
    let mut config = AdapterConfig::new(place.env.clone(), Runner::default());
    config.kept_out.push(place.path("bin"));
    let by_name = Manifest::parse("name = 'x'\ncommand = 'x'\n", &place.path("x.toml")).unwrap();
    let adapter = CliAdapter::new(by_name, &config).await;
    let unavailable = adapter.info().unavailable.unwrap();
    assert!(unavailable.contains("not installed"), "{unavailable}");
    let by_path = Manifest::parse("name = 'x'\ncommand = '{manifest_dir}/bin/x'\n", &place.path("x.toml")).unwrap();
    let adapter = CliAdapter::new(by_path, &config).await;
    let unavailable = adapter.info().unavailable.unwrap();
    assert!(unavailable.contains("where sessions write"), "{unavailable}");
}

//! Manifests, with small scripts in place of programs.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;

use kage_core::event::{EventBody, OutputStream};
use kage_core::id::AttemptId;
use kage_core::prompt::Prompt;
use kage_core::usage::Usage;

use super::*;
use crate::adapters::port::{Beginning, Report};
use crate::adapters::session_file::beneath::Beneath;

mod claude;
mod failures;
mod logins;
mod programs;

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
        let config = AdapterConfig::new(AgentEnvironment::new(self.env.clone()), Runner::default());
        CliAdapter::new(manifest, &config, &crate::adapters::logins().unwrap()).await
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
    let expected = Beneath::new(place.path("scratch"), format!("store/{slug}/{id}.jsonl"));
    assert!(matches!(&file.place, FilePlace::At(at) if *at == expected), "{file:?}");
    let kept = format!(
        r#"{{"cwd":"{tree}","id":"{id}","tmp":"{}"}}"#,
        place.path("scratch/tmp").display()
    );
    let elsewhere = file.portable(kept.clone().into());
    assert_eq!(
        elsewhere,
        br#"{"cwd":"{kage:worktree}","id":"{kage:session}","tmp":"{kage:tmp}"}"#
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

/// A program that names its conversation itself: its file is found by the name that it told, and on another
/// machine it gets the file and the name.
#[tokio::test]
async fn a_session_whose_id_the_program_chose_is_resumed() {
    let place = Place::new();
    place.program(
        "tool",
        "day=$STORE/2026/11/30; mkdir -p $day; printf '%s|' \"$@\" >&2\n\
         if [ -n \"$1\" ] && [ \"$1\" = resume ]; then cat $STORE/moved-$2.jsonl; exit; fi\n\
         echo '{\"type\":\"session_meta\",\"payload\":{\"id\":\"01a2-b\"}}' > $day/rollout-7-01a2-b.jsonl\n\
         echo '{\"type\":\"session_meta\"}' > $day/rollout-9-other.jsonl\n\
         echo '{\"type\":\"thread.started\",\"thread_id\":\"01a2-b\"}'; echo '{\"type\":\"turn.completed\"}'",
    );
    let manifest = r#"
name = "x"
command = "tool"
parser = "codex-json"
resume = "position"
args = [["resume", "{old_session}"], ["{prompt}"]]
folders = ["{scratch}/store"]
prompt = { pass = "arg", opening = "Opening. " }
session = { folder = "STORE", file = "moved-{conversation}.jsonl", find = "*/*/*/rollout-*-{conversation}.jsonl", id = "/payload/id" }
env.set.STORE = "{scratch}/store"
"#;
    let adapter = Arc::new(place.adapter(manifest).await);
    let input = place.input("", "own");
    let file = adapter.session_file(&input).unwrap();
    assert!(file.place.open().unwrap().is_none());
    let told = run(
        Arc::clone(&adapter) as Arc<dyn Adapter>,
        input.clone(),
        CancellationToken::new(),
    )
    .await;
    assert_eq!((told.end, told.stderr.as_str()), (done(""), "Opening. own|"));
    let found = file.place.open().unwrap().unwrap();
    let said = std::io::read_to_string(found).unwrap();
    assert!(said.contains("01a2-b"), "{said}");

    let elsewhere = Place::new();
    fs::copy(place.path("bin/tool"), elsewhere.path("bin/tool")).unwrap();
    let mut input = elsewhere.input("", "own");
    input.beginning = Beginning::GoOn {
        said: said.into(),
        note: String::new(),
        instruction: "Next.".to_owned(),
    };
    let told = elsewhere.run(manifest, input.clone()).await;
    assert_eq!(told.stderr, "resume|01a2-b|Opening. Next.|");
    assert!(told.transcript.contains("session_meta"), "{}", told.transcript);
    assert_eq!(input.conversation.id(), Some("01a2-b"));

    input.beginning = Beginning::GoOn {
        said: "{\"payload\":{}}\n".into(),
        note: String::new(),
        instruction: String::new(),
    };
    let AdapterEnd::Failed(failure) = elsewhere.run(manifest, input).await.end else {
        panic!("it was resumed without an id");
    };
    assert!(failure.message.contains("no id at /payload/id"), "{failure}");
}

/// The person's own sessions are in the folder of a login that one session at a time has.
#[tokio::test]
async fn a_session_in_the_folder_of_a_persons_login_is_not_moved() {
    let mut place = Place::new();
    fs::create_dir_all(place.path("home/.codex")).unwrap();
    fs::write(
        place.path("home/.codex/auth.json"),
        "{\"tokens\":{\"access_token\":\"access-123456\",\"refresh_token\":\"refresh-123456\"}}",
    )
    .unwrap();
    place.env.insert("HOME".into(), place.path("home").into());
    place.program(
        "codex",
        "if [ \"$1\" = --version ]; then echo 9.9.9; exit; fi\nprintf '[%s]\\n' \"$@\" \"$CODEX_HOME\"",
    );
    // With a login there is no provider to which an address could belong.
    place
        .env
        .insert("OPENAI_BASE_URL".into(), "http://127.0.0.1:9/v1".into());
    let manifest = include_str!("../../../data/codex.toml");
    let adapter = place.adapter(manifest).await;
    assert_eq!((adapter.info().unavailable, adapter.resumes()), (None, Resumes::None));
    assert!(adapter.session_file(&place.input("", "own")).is_none());
    let told = place.run(manifest, place.input("a \"base\"\n", "own")).await;
    assert!(
        told.stdout
            .contains(&format!("[{}]", place.path("home/.codex").display())),
        "{}",
        told.stdout
    );
    assert!(!told.stdout.contains("model_provider"), "{}", told.stdout);
    assert!(
        told.stdout.contains("[developer_instructions=\"a \\\"base\\\"\\n\"]"),
        "{}",
        told.stdout
    );

    place.env.insert("OPENAI_API_KEY".into(), "sk-123456".into());
    assert_eq!(place.adapter(manifest).await.resumes(), Resumes::Position);
    let told = place.run(manifest, place.input("", "own")).await;
    for expected in [
        "[model_providers.kage.env_key=\"OPENAI_API_KEY\"]",
        "[model_providers.kage.base_url=\"http://127.0.0.1:9/v1\"]",
        &format!("[{}]", place.path("scratch/home/.codex").display()),
    ] {
        assert!(told.stdout.contains(expected), "{expected}: {}", told.stdout);
    }
    assert!(place.path("scratch/home/.codex").is_dir());
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
        tools: None,
        call: None,
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
async fn stop_ends_the_program() {
    let place = Place::new();
    place.program("tool", "echo begun; sleep 60");
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

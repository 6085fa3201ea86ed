//! The real programs through the gateways of their sessions: what they use is what the provider has in its books, also
//! of calls that were refused or broke off, and the real key is with nobody but the provider.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kage_proto::convert::time::{span, time};
use kage_proto::v1;
use kage_scripted::{Answer, ApiError, Fault, Matcher, Script, ScriptedServer, Turn};
use kage_tests::cluster::{AgentOptions, Cluster};
use kage_tests::command::{Person, said};
use kage_tests::programs;
use kage_tests::repo::{Repo, VERIFY};
use kage_tests::tasks::{Describe, read_all, session, task, verdict};
use serde_json::json;

use super::real_clis::CLIS;

/// Part of every real key.
const CANARY: &str = "gateway-canary-5d1e";
/// It mends the sample, unless the key can be seen.
const FIX: &str = "env | grep -q gateway-canary || sed -i 's/ - / + /' add.sh";

/// The programs besides `claude` whose manifests say how they are sent to a gateway.
const BEHIND: [&str; 3] = ["codex", "gemini", "opencode"];

/// A program, its model in a task and at its provider, and a call of its shell.
struct Program {
    adapter: &'static str,
    model: (&'static str, &'static str),
    shell: fn(&str) -> Turn,
}

fn programs_of_all() -> Vec<Program> {
    let claude = Program {
        adapter: "claude-code",
        model: ("claude-sonnet-5-5", "claude-sonnet-5-5"),
        shell: |command| Turn::call("Bash", json!({"command": command, "description": "fix the sign"})),
    };
    let behind = CLIS.iter().filter(|cli| BEHIND.contains(&cli.adapter));
    let others = behind.map(|cli| Program {
        adapter: cli.adapter,
        model: cli.model,
        shell: cli.shell,
    });
    std::iter::once(claude).chain(others).collect()
}

/// Where the programs are, or the first that is missing.
fn installed() -> Result<PathBuf, &'static str> {
    let missing = BEHIND.iter().find(|adapter| programs::real(adapter).is_none());
    match (programs::claude(), missing) {
        (Some(claude), None) => Ok(claude),
        (None, _) => Err("claude"),
        (Some(_), Some(missing)) => Err(missing),
    }
}

/// A cluster in which every program works on the sample, as its script says.
async fn raced(server: &ScriptedServer, path: &Path, timeout: Duration) -> (Cluster, v1::Task) {
    let all = programs_of_all();
    let mut cluster = Cluster::start().await;
    let url = server.url();
    let key = |name: &str| format!("sk-{name}-{CANARY}");
    let options = AgentOptions::named("agent")
        .every_provider(&url)
        .env("ANTHROPIC_API_KEY", key("ant"))
        .env("OPENAI_API_KEY", key("proj"))
        .env("GEMINI_API_KEY", key("goog"))
        .with_path_of(path)
        .slots(u32::try_from(all.len()).unwrap());
    cluster.add_agent(options).await;
    let repo = cluster.sample();
    let mut spec = task("make the test pass").on(&repo).verified_by(VERIFY);
    for program in &all {
        spec = spec.session(program.adapter, program.adapter, program.model.0);
    }
    let limit = span(timeout);
    let id = cluster.create(spec.policy(|policy| policy.timeout = Some(limit))).await;
    let ended = cluster.ended(&id).await;
    (cluster, ended)
}

/// Tokens of input and output: of answers that came whole, and of those that broke off.
fn books(server: &ScriptedServer, script: &str) -> [(u64, u64); 2] {
    let mut sums = [(0, 0); 2];
    for request in server.requests_of(script) {
        let (sum, usage) = match request.answer {
            Answer::Reply(usage) => (&mut sums[0], usage),
            Answer::Broken(usage) => (&mut sums[1], usage),
            Answer::Count(_) | Answer::Error(_) | Answer::Hang => continue,
        };
        sum.0 += usage.input + usage.cache_read + usage.cache_write_5m + usage.cache_write_1h;
        sum.1 += usage.output;
    }
    sums
}

fn metered(session: &v1::Session) -> (u64, u64) {
    assert!(session.models.iter().all(|entry| entry.metered), "{session:#?}");
    let usage = session.usage.unwrap_or_default();
    let input = usage.input + usage.cache_read + usage.cache_write_5m + usage.cache_write_1h;
    (input, usage.output)
}

fn files_with(folder: &Path, bytes: &[u8], found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok) {
        let path = entry.path();
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => files_with(&path, bytes, found),
            Ok(kind) if kind.is_file() => {
                let content = fs::read(&path).unwrap_or_default();
                if content.windows(bytes.len()).any(|part| part == bytes) {
                    found.push(path);
                }
            }
            Ok(_) | Err(_) => {}
        }
    }
}

#[tokio::test]
async fn real_programs_are_billed_to_the_token_and_never_have_the_key() {
    let path = match installed() {
        Ok(path) => path,
        Err(missing) => {
            return programs::skip(
                "gateway",
                &format!("{missing} is not installed; ./scripts/test installs it"),
            );
        }
    };
    let scripts = programs_of_all().into_iter().map(|program| {
        let first = (program.shell)(FIX).after(Fault::rate_limited(Duration::from_secs(1)));
        Script::new(
            program.adapter,
            Matcher::model(program.model.1),
            [first, Turn::say("I fixed the sign.")],
        )
    });
    let server = ScriptedServer::start(scripts.collect()).await.unwrap();
    let (cluster, ended) = raced(&server, &path, Duration::from_secs(300)).await;
    for program in programs_of_all() {
        let session = session(&ended, program.adapter);
        let requests = server.requests_of(program.adapter);
        let answers: Vec<_> = requests.iter().map(|it| it.answer.clone()).collect();
        assert_eq!(verdict(session), v1::VerdictKind::Passed, "{session:#?}\n{answers:#?}");
        assert!(
            answers.iter().any(|answer| matches!(answer, Answer::Error(_))),
            "{answers:#?}"
        );
        let [whole, broken] = books(&server, program.adapter);
        assert_eq!(
            (metered(session), broken),
            (whole, (0, 0)),
            "{}: {session:#?}",
            program.adapter
        );
        for request in requests {
            let keys = ["authorization", "x-api-key", "x-goog-api-key"];
            let sent: Vec<_> = keys.iter().filter_map(|name| request.headers.get(*name)).collect();
            for key in &sent {
                assert!(format!("{key:?}").contains(CANARY), "{}: {key:?}", program.adapter);
            }
            assert!(!sent.is_empty(), "{}", program.adapter);
        }
    }
    keys_are_nowhere(&cluster, &ended).await;
}

/// There is no key but with the gateways: in no file of coordinator and agent, in no event, and in no output and
/// conversation of a program. Its environment is what the programs look at themselves ([`FIX`]).
async fn keys_are_nowhere(cluster: &Cluster, ended: &v1::Task) {
    let mut found = Vec::new();
    files_with(cluster.root(), CANARY.as_bytes(), &mut found);
    assert_eq!(found, Vec::<PathBuf>::new());
    assert!(!format!("{ended:?}").contains(CANARY));
    let streams = [
        v1::OutputStream::Stdout,
        v1::OutputStream::Stderr,
        v1::OutputStream::Transcript,
    ];
    let seen = read_all(cluster.watch(&ended.id, &streams).await).await;
    assert!(!format!("{:?}", seen.events).contains(CANARY));
    for (session, _job, stream, bytes) in &seen.output {
        let text = String::from_utf8_lossy(bytes);
        assert!(!text.contains(CANARY), "{session}, stream {stream}: {text}");
    }
}

#[tokio::test]
async fn answers_that_break_off_are_billed_as_far_as_they_were_told() {
    let path = match installed() {
        Ok(path) => path,
        Err(missing) => {
            return programs::skip(
                "gateway",
                &format!("{missing} is not installed; ./scripts/test installs it"),
            );
        }
    };
    let scripts = programs_of_all().into_iter().map(|program| {
        let failed = Fault::ErrorEvent {
            after_events: 2,
            error: ApiError::new(529, "overloaded_error", "Overloaded"),
        };
        let first = (program.shell)(FIX).after(Fault::Cut { after_events: 2 });
        let last = Turn::say("I fixed the sign.").after(failed);
        Script::new(program.adapter, Matcher::model(program.model.1), [first, last])
    });
    let server = ScriptedServer::start(scripts.collect()).await.unwrap();
    let (cluster, ended) = raced(&server, &path, Duration::from_secs(100)).await;
    for program in programs_of_all() {
        let session = session(&ended, program.adapter);
        let [whole, broken] = books(&server, program.adapter);
        let (input, output) = metered(session);
        let told = format!("{}: {session:#?} {:?} {:?}", program.adapter, whole, broken);
        assert!(broken.0 > 0, "{told}");
        // Responses tell their counts at the end; the others what was read when they begin.
        let expected = if program.adapter == "codex" {
            whole.0
        } else {
            whole.0 + broken.0
        };
        assert_eq!(input, expected, "{told}");
        assert!(output >= whole.1 && output <= whole.1 + broken.1, "{told}");
        for request in server.requests_of(program.adapter) {
            assert!(format!("{:?}", request.headers).contains(CANARY), "{}", program.adapter);
        }
    }
    keys_are_nowhere(&cluster, &ended).await;
}

/// `claude` gives up at once, and says of the wait nothing: its gateway has heard it.
#[tokio::test]
async fn claude_is_held_for_the_hour_that_its_provider_asks_for() {
    let Some(claude) = programs::claude() else {
        return programs::skip("gateway", "claude is not installed; ./scripts/test installs it");
    };
    let mut turn = Turn::say("It is never said.");
    turn.faults = vec![Fault::rate_limited(Duration::from_secs(3600)); 40];
    let server = ScriptedServer::start(vec![Script::new("claude", Matcher::any(), [turn])])
        .await
        .unwrap();
    let mut cluster = Cluster::start().await;
    let options = AgentOptions::named("agent")
        .anthropic(&server.url())
        .with_path_of(&claude);
    cluster.add_agent(options).await;
    let repo = cluster.sample();
    let spec = task("make the test pass")
        .on(&repo)
        .session("claude", "claude-code", "claude-sonnet-5-5");
    let id = cluster.create(spec.policy(|policy| policy.max_attempts = 1)).await;
    let held = |task: &v1::Task| !session(task, "claude").incidents.is_empty();
    let task = cluster.until(&id, "the session is held", held).await;
    let incident = &session(&task, "claude").incidents[0];
    assert_eq!(incident.action(), v1::RecoveryAction::HoldUntil, "{incident:#?}");
    let [at, next] = [incident.at, incident.next_attempt_at].map(|at| time(at.unwrap()));
    // Less what passed since the answer, and more by what keeps sessions apart.
    let minutes = next.since(at).as_secs() / 60;
    assert!((59..=61).contains(&minutes), "{incident:#?}");
}

/// A program of a person's own: it looks for the key, tries the provider itself, and asks the gateway.
const ASKS: &str = r#"cat >/dev/null
if env | grep -q gateway-canary; then exit 3; fi
if bash -c "exec 3<>/dev/tcp/127.0.0.1/PROVIDER" 2>/dev/null; then exit 4; fi
port=${OPENAI_BASE_URL#http://127.0.0.1:}; port=${port%%/*}
body='{"model":"m","messages":[{"role":"user","content":"hello"}]}'
export port body
bash -c 'exec 3<>/dev/tcp/127.0.0.1/$port
printf "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer %s\r\ncontent-length: %d\r\n" "$OPENAI_API_KEY" ${#body} >&3
printf "content-type: application/json\r\nconnection: close\r\n\r\n%s" "$body" >&3
cat <&3 > answer.txt' || exit 5
grep -q prompt_tokens answer.txt
"#;

const MANIFEST: &str = r#"
[env]
require = ["OPENAI_API_KEY"]
secret = ["OPENAI_API_KEY"]
inherit = ["OPENAI_BASE_URL"]

[[gateway]]
wire = "chat"
base_url = "OPENAI_BASE_URL"
key = "OPENAI_API_KEY"
provider = "https://api.openai.com/v1"
"#;

#[tokio::test]
async fn a_program_in_a_box_without_a_network_reaches_its_gateway_and_not_its_provider() {
    let script = Script::new("asks", Matcher::any(), [Turn::say("I am here.")]);
    let server = ScriptedServer::start(vec![script]).await.unwrap();
    let person = Person::new();
    fs::write(person.path("config/kage/config.toml"), "[agent.contain]\ntier = 'T2'\n").unwrap();
    let url = server.url();
    let (_, port) = url.rsplit_once(':').unwrap();
    let manifest = format!(
        "name = 'asks'\ncommand = 'sh'\nargs = ['-c', '''{}''']\n{MANIFEST}",
        ASKS.replace("PROVIDER", port)
    );
    fs::write(person.path("config/kage/adapters/asks.toml"), manifest).unwrap();
    let repo = Repo::sample(&person.path("repo"));
    let key = format!("sk-proj-{CANARY}");
    let run = ["run", "ask it", "--with", "asks", "--format", "json"];
    let mut run = person.command(repo.path(), &run);
    run.env("OPENAI_API_KEY", &key)
        .env("OPENAI_BASE_URL", format!("{url}/v1"));
    let run = said(run.output().await.unwrap());
    let shown = person.kage(repo.path(), &["show", "--format", "json"]).await;
    let log = fs::read_to_string(person.path("state/daemon.log")).unwrap_or_default();
    let [whole, _broken] = books(&server, "asks");
    assert!(whole.1 > 0, "{run:#?}\n{shown:#?}\n{log}");
    let session = &shown.json()["sessions"][0];
    let count = |field: &str| session["usage"][field].as_u64().unwrap_or_default();
    assert_eq!(
        (count("input") + count("cacheRead"), count("output")),
        whole,
        "{session:#}"
    );
    assert_eq!(session["state"], "SESSION_STATE_UNVERIFIED", "{session:#}\n{log}");
    assert_eq!(server.requests()[0].headers["authorization"], format!("Bearer {key}"));
    for told in [&run, &shown] {
        assert!(!told.out.contains(CANARY) && !told.err.contains(CANARY), "{told:#?}");
    }
}

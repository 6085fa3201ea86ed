//! Agents that are shell scripts: started, talked to and ended like real ones.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::Path;

use kage_core::event::EventBody;
use kage_core::prompt::Prompt;
use kage_core::session::Answer;
use tokio::sync::mpsc::Receiver;

use super::*;
use crate::adapters::AdapterConfig;
use crate::adapters::cli::manifest::Manifest;
use crate::adapters::hearing::Said;
use crate::adapters::port::Report;
use crate::process::{AgentEnvironment, Runner};

/// The beginning of every script: answers until the prompt is there, whose line is in `$line`.
const BEGIN: &str = r#"
next() { read -r line || exit 0; id=$(printf '%s' "$line" | sed 's/.*"id":\([0-9]*\).*/\1/'); }
result() { printf '{"jsonrpc":"2.0","id":%s,"result":%s}\n' "$id" "$1"; }
update() { printf '{"jsonrpc":"2.0","method":"session/update","params":{"sessionId":"s-1","update":%s}}\n' "$1"; }
say() { update "{\"sessionUpdate\":\"agent_message_chunk\",\"content\":{\"type\":\"text\",\"text\":\"$1\"}}"; }
echo "a banner"
next; result '{"protocolVersion":1,"agentCapabilities":{"loadSession":true}}'
next; result '{"sessionId":"s-1"}'
next
"#;

struct Place(tempfile::TempDir);

struct Told {
    end: AdapterEnd,
    events: Vec<EventBody>,
    output: String,
}

impl Place {
    fn new() -> Self {
        let place = tempfile::tempdir().unwrap();
        for name in ["tree", "scratch"] {
            fs::create_dir(place.path().join(name)).unwrap();
        }
        Self(place)
    }

    fn tree(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join("tree").join(name)
    }

    async fn adapter(&self, script: &str, rule: &str) -> AcpAdapter {
        fs::write(self.0.path().join("agent.sh"), format!("{BEGIN}\n{script}\n")).unwrap();
        let text = format!("name = 'x'\ncommand = 'sh'\nargs = ['{{manifest_dir}}/agent.sh']\n[acp]\n{rule}\n");
        let manifest = Manifest::parse(&text, &self.0.path().join("x.toml")).unwrap();
        let env: BTreeMap<OsString, OsString> = [("PATH".into(), "/usr/local/bin:/usr/bin:/bin".into())].into();
        let config = AdapterConfig::new(AgentEnvironment::new(env), Runner::default());
        let rule = manifest.acp.clone().unwrap();
        let program = CliAdapter::new(manifest, &config, &crate::adapters::logins().unwrap()).await;
        assert_eq!(program.info().unavailable, None);
        AcpAdapter::new(program, rule)
    }

    fn input(&self) -> SessionInput {
        SessionInput {
            prompt: Prompt {
                shared: "Shared. ".to_owned(),
                own: "Own.".to_owned(),
            },
            worktree: Some(self.0.path().join("tree")),
            ..SessionInput::blank(self.0.path().join("scratch"))
        }
    }

    async fn run(&self, script: &str, rule: &str) -> Told {
        let adapter = self.adapter(script, rule).await;
        let (reporter, reports) = Reporter::channel(8);
        let running = adapter.run(self.input(), reporter, CancellationToken::new());
        told(running, reports).await
    }
}

async fn told(running: impl Future<Output = AdapterEnd>, mut reports: Receiver<Report>) -> Told {
    let gather = async {
        let (mut events, mut output) = (Vec::new(), String::new());
        while let Some(report) = reports.recv().await {
            match report {
                Report::Event(body) => events.push(body),
                Report::Output(_, bytes) => output += &String::from_utf8_lossy(&bytes),
                Report::Alive => {}
            }
        }
        (events, output)
    };
    let (end, (events, output)) = tokio::join!(running, gather);
    Told { end, events, output }
}

fn failed(told: &Told) -> &Failure {
    match &told.end {
        AdapterEnd::Failed(failure) => failure,
        other => panic!("{other:?}: {}", told.output),
    }
}

fn empty(folder: &Path) -> bool {
    let pipes = fs::read_dir(folder).unwrap().filter_map(Result::ok);
    pipes
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("stdin"))
        .count()
        == 0
}

#[tokio::test]
async fn an_agent_is_prompted_and_its_work_is_told() {
    let place = Place::new();
    let script = r#"
printf '%s\n' "$line" > prompt.json
update '{"sessionUpdate":"tool_call","toolCallId":"t","title":"write a","kind":"edit","status":"in_progress"}'
echo done > made
update '{"sessionUpdate":"tool_call_update","toolCallId":"t","status":"completed"}'
say 'Made it.'
echo 'a word of its own' >&2
result '{"stopReason":"end_turn","usage":{"inputTokens":5,"outputTokens":6}}'
next
echo never > survived
"#;
    let told = place.run(script, "").await;
    let done = AdapterEnd::Done {
        summary: "Made it.".to_owned(),
    };
    assert_eq!(told.end, done, "{}", told.output);
    for part in ["a banner\n", "> write a\n", "Made it.\n", "a word of its own\n"] {
        assert!(told.output.contains(part), "{}", told.output);
    }
    assert!(!told.output.contains("jsonrpc"), "{}", told.output);
    let prompt = fs::read_to_string(place.tree("prompt.json")).unwrap();
    assert!(prompt.contains("Shared. Own."), "{prompt}");
    assert!(place.tree("made").exists() && !place.tree("survived").exists());
    let used = told
        .events
        .iter()
        .filter(|event| matches!(event, EventBody::UsageRecorded { .. }));
    assert_eq!(used.count(), 1);
    assert!(empty(&place.0.path().join("scratch")));
}

#[tokio::test]
async fn agents_end_in_every_way_and_none_of_them_is_a_success() {
    let place = Place::new();
    for (script, kind, words) in [
        (
            "result '{\"stopReason\":\"end_turn\"}'",
            FailureKind::AdapterCrash,
            "without a word",
        ),
        (
            "echo 'HTTP 401 unauthorized: invalid api key' >&2; result '{\"stopReason\":\"end_turn\"}'",
            FailureKind::Auth,
            "401",
        ),
        ("say half; exit 3", FailureKind::AdapterCrash, "exit code 3"),
        ("say half; exit 0", FailureKind::AdapterCrash, "in the middle"),
        ("kill -9 $$", FailureKind::AdapterCrash, "signal 9"),
        (
            "echo 'Error: 429 Too Many Requests' >&2; exit 1",
            FailureKind::RateLimited,
            "429",
        ),
        (
            "printf '{\"id\":%s,\"error\":{\"code\":-32000,\"message\":\"Authentication required\"}}\\n' $id",
            FailureKind::Auth,
            "Authentication",
        ),
        (
            "say no; result '{\"stopReason\":\"refusal\"}'",
            FailureKind::ModelRefused,
            "refused",
        ),
    ] {
        let told = place.run(script, "").await;
        let failure = failed(&told);
        assert_eq!(failure.kind, kind, "{script}: {failure:?} {}", told.output);
        assert!(failure.message.contains(words), "{script}: {failure:?}");
        let unknown = told
            .events
            .iter()
            .any(|event| matches!(event, EventBody::UsageRecorded { .. }));
        assert!(unknown, "{script}: what it used is unknown, not nothing");
    }
}

#[tokio::test]
async fn a_question_is_answered_by_the_rule() {
    let place = Place::new();
    let script = r#"
prompt=$id
printf '{"id":"q-1","method":"session/request_permission","params":{"toolCall":{"toolCallId":"t","title":"write a"},"options":[{"optionId":"always","kind":"allow_always"},{"optionId":"yes","kind":"allow_once"},{"optionId":"no","kind":"reject_once"}]}}\n'
next; printf '%s\n' "$line" > answer.json
say 'Asked.'
id=$prompt; result '{"stopReason":"end_turn"}'
"#;
    for (rule, option) in [("", "\"yes\""), ("permissions = 'deny'", "\"no\"")] {
        let told = place.run(script, rule).await;
        assert!(matches!(told.end, AdapterEnd::Done { .. }), "{}", told.output);
        let answer = fs::read_to_string(place.tree("answer.json")).unwrap();
        assert!(answer.contains(option) && answer.contains("\"q-1\""), "{answer}");
    }
}

#[tokio::test]
async fn a_person_decides_in_time_or_it_is_denied() {
    let script = r#"
prompt=$id
printf '{"id":"q-1","method":"session/request_permission","params":{"toolCall":{"toolCallId":"t","title":"write a"},"options":[{"optionId":"yes","kind":"allow_once"},{"optionId":"no","kind":"reject_once"}]}}\n'
next; printf '%s\n' "$line" > answer.json
say 'Asked.'
id=$prompt; result '{"stopReason":"end_turn"}'
next; printf '%s\n' "$line" > second.json
say 'Told.'; result '{"stopReason":"end_turn"}'
"#;
    for (answer, option, by) in [
        (Some(true), "\"yes\"", "by ann"),
        (Some(false), "\"no\"", "by ann"),
        (None, "\"no\"", "because nobody answered within 1 s"),
    ] {
        let place = Place::new();
        let adapter = place.adapter(script, "permissions = 'allow'").await;
        let input = SessionInput {
            permissions: Some(Permissions {
                policy: PermissionPolicy::Ask,
                wait: Duration::from_secs(if answer.is_some() { 3600 } else { 1 }),
            }),
            ..place.input()
        };
        if let Some(allow) = answer {
            let by = "ann".to_owned();
            input.hearing.answer(1, Answer { allow, by });
        }
        let said = Said {
            number: 4,
            text: "and the notes".to_owned(),
        };
        input.hearing.say(said);
        let (reporter, mut reports) = Reporter::channel(8);
        let hearing = input.hearing.clone();
        let running = adapter.run(input, reporter, CancellationToken::new());
        let gather = async {
            let mut events = Vec::new();
            while let Some(report) = reports.recv().await {
                let Report::Event(body) = report else { continue };
                // An answer that came before its question was none.
                if let (EventBody::PermissionAsked { number, .. }, Some(allow)) = (&body, answer) {
                    let by = "ann".to_owned();
                    hearing.answer(*number, Answer { allow, by });
                }
                events.push(body);
            }
            events
        };
        let (end, events) = tokio::join!(running, gather);
        assert!(matches!(end, AdapterEnd::Done { .. }), "{end:?}");
        let written = fs::read_to_string(place.tree("answer.json")).unwrap();
        assert!(written.contains(option), "{written}");
        let decided = EventBody::PermissionDecided {
            number: 1,
            allowed: answer == Some(true),
            by: by.to_owned(),
        };
        assert!(events.contains(&decided), "{events:?}");
        assert!(events.contains(&EventBody::MessageTold(4)), "{events:?}");
        let second = fs::read_to_string(place.tree("second.json")).unwrap();
        assert!(second.contains("and the notes"), "{second}");
    }
}

#[tokio::test]
async fn an_agent_is_served_with_files_and_commands_of_the_worktree() {
    let place = Place::new();
    let script = r#"
prompt=$id; top=$(pwd)
ask() { printf '{"id":"c","method":"%s","params":%s}\n' "$1" "$2"; next; printf '%s\n' "$line" >> answers; }
ask fs/write_text_file "{\"path\":\"$top/new/file\",\"content\":\"hello\"}"
ask fs/read_text_file "{\"path\":\"$top/new/file\"}"
ask fs/read_text_file "{\"path\":\"/etc/passwd\"}"
ask terminal/create "{\"command\":\"echo\",\"args\":[\"it runs in\"],\"cwd\":\"$top/new\"}"
ask terminal/wait_for_exit '{"terminalId":"terminal-1"}'
ask terminal/output '{"terminalId":"terminal-1"}'
ask terminal/create '{"command":"pwd; echo $WORD; exit 4","env":[{"name":"WORD","value":"my word"}]}'
ask terminal/wait_for_exit '{"terminalId":"terminal-2"}'
ask terminal/output '{"terminalId":"terminal-2"}'
ask terminal/create '{"command":"yes","outputByteLimit":10}'
ask terminal/kill '{"terminalId":"terminal-3"}'
ask terminal/wait_for_exit '{"terminalId":"terminal-3"}'
ask terminal/release '{"terminalId":"terminal-3"}'
ask terminal/output '{"terminalId":"terminal-3"}'
ask terminal/create '{"command":"ls","cwd":"/etc"}'
ask terminal/create '{"command":"sh","args":["-c","sleep 300"]}'
say 'Served.'
id=$prompt; result '{"stopReason":"end_turn"}'
"#;
    let told = place.run(script, "serve = ['files', 'terminal']").await;
    assert!(
        matches!(told.end, AdapterEnd::Done { .. }),
        "{:?} {}",
        told.end,
        told.output
    );
    let answers = fs::read_to_string(place.tree("answers")).unwrap();
    let answers: Vec<serde_json::Value> = answers
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let result = |at: usize| &answers[at]["result"];
    assert_eq!(fs::read_to_string(place.tree("new/file")).unwrap(), "hello");
    assert_eq!(result(1)["content"], "hello");
    assert_eq!(answers[2]["error"]["code"], -32602, "{}", answers[2]);
    assert_eq!(
        (&result(4)["exitCode"], &result(5)["output"]),
        (&0.into(), &"it runs in\n".into())
    );
    assert_eq!(result(5)["exitStatus"]["exitCode"], 0);
    let output = result(8)["output"].as_str().unwrap();
    assert!(
        output.ends_with("/tree\nmy word\n") && result(7)["exitCode"] == 4,
        "{output}"
    );
    assert!(
        result(11)["signal"].is_string() || result(11)["exitCode"].is_number(),
        "{}",
        answers[11]
    );
    assert!(
        answers[13]["error"].is_object() && answers[14]["error"].is_object(),
        "{answers:?}"
    );
    assert!(result(15)["terminalId"].is_string());
}

#[tokio::test]
async fn a_stopped_agent_is_asked_to_cancel_and_ended_when_it_does_not() {
    let place = Place::new();
    for script in [
        // One that does as it is told, and one that hears nothing.
        "say working; next; printf '%s' \"$line\" > told; id=3; result '{\"stopReason\":\"cancelled\"}'; next",
        "trap '' TERM; say working; while :; do sleep 1; done",
    ] {
        let adapter = place.adapter(script, "").await;
        let (reporter, mut reports) = Reporter::channel(8);
        let stop = CancellationToken::new();
        let running = adapter.run(place.input(), reporter, stop.clone());
        let stopping = async {
            while let Some(report) = reports.recv().await {
                if matches!(&report, Report::Output(_, bytes) if bytes.starts_with(b"working"))
                    || matches!(&report, Report::Alive)
                {
                    stop.cancel();
                }
            }
        };
        let (end, ()) = tokio::join!(running, stopping);
        assert_eq!(end, AdapterEnd::Stopped, "{script}");
    }
}

#[tokio::test]
async fn an_agent_that_only_says_that_it_tries_again_is_ended_by_its_rule() {
    let place = Place::new();
    let script = "while :; do echo 'provider gone, retrying' >&2; sleep 0.1; done";
    let rule = "[[failure]]\npattern = 'provider gone'\nwhile_running = '1s'\nkind = 'network'";
    let told = place.run(script, rule).await;
    assert_eq!(failed(&told).kind, FailureKind::Network);
}

#[test]
fn an_agent_has_no_gateway() {
    let agent = "name = 'x'\ncommand = 'x'\n[acp]\n[env]\ninherit = ['BASE']\nsecret = ['KEY']\n";
    let parse = |text: &str| Manifest::parse(text, Path::new("x.toml"));
    assert!(parse(agent).is_ok());
    let gateway = "[[gateway]]\nwire = 'chat'\nbase_url = 'BASE'\nkey = 'KEY'\nprovider = 'https://api.example/v1'\n";
    let refused = parse(&format!("{agent}{gateway}")).unwrap_err().to_string();
    assert!(
        refused.contains("[acp] and [[gateway]] do not go together"),
        "{refused}"
    );
    assert!(parse(&format!("{agent}{gateway}").replace("[acp]\n", "")).is_ok());
}

#[tokio::test]
async fn many_requests_at_once_are_all_answered() {
    let place = Place::new();
    fs::write(place.tree("file"), "text").unwrap();
    let script = r#"
prompt=$id; top=$(pwd); asked=0; answered=0
while [ $asked -lt 60 ]; do
    asked=$((asked + 1))
    printf '{"id":"c-%s","method":"fs/read_text_file","params":{"path":"%s/file"}}\n' $asked "$top"
done
while [ $answered -lt $asked ]; do
    answered=$((answered + 1))
    next; printf '%s\n' "$line" >> answers
done
say 'Read.'
id=$prompt; result '{"stopReason":"end_turn"}'
"#;
    let told = place.run(script, "serve = ['files']").await;
    assert!(
        matches!(told.end, AdapterEnd::Done { .. }),
        "{:?} {}",
        told.end,
        told.output
    );
    let answers = fs::read_to_string(place.tree("answers")).unwrap();
    for number in 1..=60 {
        let own = answers.lines().filter(|line| line.contains(&format!("\"c-{number}\"")));
        assert_eq!(
            own.filter(|line| line.contains("text")).count(),
            1,
            "{number}: {answers}"
        );
    }
}

#[tokio::test]
async fn two_lines_of_settings_make_an_adapter() {
    let place = Place::new();
    let script = "say done; result '{\"stopReason\":\"end_turn\"}'";
    place.adapter(script, "").await;
    let path = place.0.path().join("agent.sh");
    let env: BTreeMap<OsString, OsString> = [
        ("PATH".into(), "/usr/bin:/bin".into()),
        ("ITS_KEY".into(), "key-123456".into()),
    ]
    .into();
    let mut config = AdapterConfig::new(AgentEnvironment::new(env), Runner::default());
    let section = |more: &str| format!("[mine]\nkind = 'acp'\ncommand = ['sh', '{}']\n{more}", path.display());
    config.settings = toml::from_str(&section("key_variable = 'ITS_KEY'")).unwrap();
    let registry = crate::adapters::load(config.clone()).await.unwrap();
    let mine = &registry[&"mine".parse::<kage_core::id::AdapterName>().unwrap()];
    assert_eq!(
        (mine.info().unavailable, Secret::values(&mine.secrets())),
        (None, vec!["key-123456".to_owned()])
    );
    let (reporter, reports) = Reporter::channel(8);
    let told = told(mine.run(place.input(), reporter, CancellationToken::new()), reports).await;
    assert!(
        matches!(told.end, AdapterEnd::Done { .. }),
        "{:?} {}",
        told.end,
        told.output
    );
    config.settings = toml::from_str(&section("key_variable = 'ABSENT'")).unwrap();
    let registry = crate::adapters::load(config).await.unwrap();
    let info = registry[&"mine".parse::<kage_core::id::AdapterName>().unwrap()].info();
    assert!(info.unavailable.is_some_and(|why| why.contains("ABSENT")));
}

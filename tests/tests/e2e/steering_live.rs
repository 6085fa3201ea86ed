//! A person steers sessions that work: says something to a running attempt, which hears it after its present
//! turn, and answers what its program asks.

use kage_proto::v1;
use kage_scripted::{Matcher, Script, ScriptedServer, Turn};
use kage_tests::cluster::{AgentOptions, Cluster};
use kage_tests::command::{Person, Said};
use kage_tests::repo::{Repo, VERIFY};
use kage_tests::tasks::{Describe, session, task};
use kage_tests::wait::wait_for;
use serde_json::{Value, json};

/// An agent that speaks ACP: its first turn lasts until a file is there, and it asks before it works. The
/// prompts of its turns are in its worktree.
const TALKED_TO: &str = r#"
name = "talked-to"
command = "sh"
args = ["-c", '''
next() { read -r line || exit 0; id=$(printf '%s' "$line" | sed 's/.*"id":\([0-9]*\).*/\1/'); }
result() { printf '{"jsonrpc":"2.0","id":%s,"result":%s}\n' "$id" "$1"; }
say() { printf '{"method":"session/update","params":{"sessionId":"s-1","update":{"sessionUpdate":"agent_message_chunk","content":{"type":"text","text":"%s"}}}}\n' "$1"; }
next; result '{"protocolVersion":1}'
next; result '{"sessionId":"s-1"}'
next; prompt=$id
printf '{"id":"q","method":"session/request_permission","params":{"toolCall":{"toolCallId":"t","title":"mend add.sh"},"options":[{"optionId":"yes","kind":"allow_once"},{"optionId":"no","kind":"reject_once"}]}}\n'
next; case "$line" in *yes*) echo 'add() { echo $(($1 + $2)); }' > add.sh;; esac
say 'Working.'
while [ ! -e "$GO" ]; do sleep 0.05; done
id=$prompt; result '{"stopReason":"end_turn"}'
while read -r line; do
    id=$(printf '%s' "$line" | sed 's/.*"id":\([0-9]*\).*/\1/')
    printf '%s\n' "$line" >> turns.json
    say 'Heard.'; result '{"stopReason":"end_turn"}'
done
''']
acp = {}
env.set.GO = "@GO@"
"#;

fn done(said: &Said) -> Value {
    assert_eq!(said.code, 0, "{said:#?}");
    said.json()
}

fn named<'a>(task: &'a Value, name: &str) -> &'a Value {
    let sessions = task["sessions"].as_array().unwrap();
    sessions.iter().find(|session| session["name"] == name).unwrap()
}

async fn shown(person: &Person, repo: &Repo) -> Value {
    done(&person.kage(repo.path(), &["show", "--format", "json"]).await)
}

/// Waits until the newest task's session is so.
async fn becomes(person: &Person, repo: &Repo, is_so: fn(&Value) -> bool) -> Value {
    wait_for("the session is so", async || {
        let task = shown(person, repo).await;
        let session = named(&task, "talked-to").clone();
        is_so(&session).then_some(session)
    })
    .await
}

#[tokio::test]
async fn a_running_session_hears_a_message_once_and_asks_a_person_first() {
    let person = Person::new();
    let go = person.outside("go");
    let manifest = TALKED_TO.replace("@GO@", go.to_str().unwrap());
    std::fs::write(person.path("config/kage/adapters/talked-to.toml"), manifest).unwrap();
    let repo = Repo::sample(&person.path("repo"));
    let kage = async |arguments: &[&str]| person.kage(repo.path(), arguments).await;
    let run = [
        "run",
        "mend the sum",
        "--with",
        "talked-to",
        "--verify",
        VERIFY,
        "--permissions",
        "ask",
        "--detach",
    ];
    let run = kage(&run).await;
    assert_eq!(run.code, 0, "{run:#?}");

    let asking = becomes(&person, &repo, |session| !session["questions"][0].is_null()).await;
    assert_eq!(asking["questions"][0]["about"], "mend add.sh", "{asking:#}");
    let listed = kage(&["permit", "ls"]).await;
    assert!(listed.out.contains("mend add.sh"), "{listed:#?}");
    let described = kage(&["show"]).await;
    assert!(
        described.out.contains("kage permit allow|deny talked-to 1"),
        "{described:#?}"
    );
    let unknown = kage(&["permit", "allow", "talked-to", "7"]).await;
    assert!(
        unknown.code != 0 && unknown.err.contains("no open question 7"),
        "{unknown:#?}"
    );
    let allowed = kage(&["permit", "allow", "talked-to"]).await;
    assert_eq!(allowed.code, 0, "{allowed:#?}");
    becomes(&person, &repo, |session| session["questions"][0].is_null()).await;
    let late = kage(&["permit", "deny", "talked-to"]).await;
    assert!(
        late.code != 0 && late.err.contains("nothing waits for an answer"),
        "{late:#?}"
    );

    let sent = kage(&["send", "talked-to", "and the notes", "--detach"]).await;
    assert!(sent.err.contains("is handed to its running attempt"), "{sent:#?}");
    std::fs::write(&go, "").unwrap();
    let waited = kage(&["wait"]).await;
    assert_eq!(waited.code, 0, "{waited:#?}");
    let task = shown(&person, &repo).await;
    let session = named(&task, "talked-to");
    assert_eq!(session["attempts"], 1, "in the attempt that ran: {session:#}");
    let message = &session["messages"][0];
    assert_eq!(message["state"], "MESSAGE_STATE_FOLLOWED", "{message:#}");
    let patch = kage(&["diff"]).await;
    let told: Vec<_> = patch
        .out
        .lines()
        .filter(|line| line.contains("and the notes"))
        .collect();
    assert_eq!(told.len(), 1, "{patch:#?}");
    assert!(patch.out.contains("+add() { echo $(($1 + $2)); }"), "{patch:#?}");
    let logs = kage(&["logs"]).await;
    for part in ["question 1, for a person: mend add.sh", "a person says", "Heard."] {
        assert!(logs.out.contains(part), "{part}: {logs:#?}");
    }
}

#[tokio::test]
async fn nobody_answers_and_the_session_goes_on_without_it() {
    let person = Person::new();
    let go = person.outside("go");
    std::fs::write(&go, "").unwrap();
    let manifest = TALKED_TO.replace("@GO@", go.to_str().unwrap());
    std::fs::write(person.path("config/kage/adapters/talked-to.toml"), manifest).unwrap();
    let repo = Repo::sample(&person.path("repo"));
    let run = [
        "run",
        "mend the sum",
        "--with",
        "talked-to",
        "--permissions",
        "ask",
        "--permission-wait",
        "1s",
        "--format",
        "json",
    ];
    let run = person.kage(repo.path(), &run).await;
    // It was not let mend it, so nothing changed.
    assert_ne!(run.code, 0, "{run:#?}");
    let logs = person.kage(repo.path(), &["logs"]).await;
    assert!(logs.out.contains("question 1, for a person"), "{logs:#?}");
    let explained = person.kage(repo.path(), &["explain"]).await;
    assert!(explained.out.contains("nothing had changed"), "{explained:#?}");
}

/// What the model of the API loop is told while it works survives a restart of the coordinator.
#[tokio::test]
async fn a_message_reaches_the_model_of_a_running_loop_although_the_coordinator_restarts() {
    let mut cluster = Cluster::start().await;
    let go = cluster.outside().join("go");
    let wait = format!(
        "while [ ! -e {} ]; do sleep 0.05; done; sed -i 's/ - / + /' add.sh",
        go.display()
    );
    let turns = [
        Turn::call("bash", json!({"command": wait})),
        Turn::say("I fixed the sign."),
        Turn::say("And I heard it."),
    ];
    let server = ScriptedServer::start(vec![Script::new("one", Matcher::any(), turns)])
        .await
        .unwrap();
    cluster
        .add_agent(AgentOptions::named("agent").anthropic(&server.url()))
        .await;
    let repo = cluster.sample();
    let spec = task("make the test pass")
        .on(&repo)
        .verified_by(VERIFY)
        .session("one", "claude-api", "");
    let id = cluster.create(spec).await;
    wait_for("the tool runs", async || (!server.requests().is_empty()).then_some(())).await;

    cluster.crash_coordinator().await;
    let send = |text: &str| v1::SendMessageRequest {
        task_id: id.clone(),
        session: "one".to_owned(),
        text: text.to_owned(),
        ..v1::SendMessageRequest::default()
    };
    let first = cluster
        .client()
        .tasks()
        .send_message(send("and the notes"))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(first.number, 1);
    // What the agent may have got already is handed over once more, and is told once.
    cluster.crash_coordinator().await;
    cluster.connected("agent").await;
    std::fs::write(&go, "").unwrap();
    let ended = cluster.ended(&id).await;
    let one = session(&ended, "one");
    assert_eq!(one.attempts, 1, "{one:#?}");
    assert_eq!(one.messages[0].state(), v1::MessageState::Followed, "{one:#?}");
    let requests = server.requests();
    let last = requests.last().unwrap().body.to_string();
    assert_eq!(last.matches("and the notes").count(), 1, "{last}");
}

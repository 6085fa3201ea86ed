//! `kage mcp` as AI tools use it: driven by the official client, and by hand where that client does not speak the
//! extension for long calls.

use std::path::Path;
use std::process::Stdio;

use kage_tests::command::Person;
use kage_tests::programs;
use kage_tests::repo::{Repo, VERIFY};
use kage_tests::wait::{DEADLINE, wait_for};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

const MEND: &str = "cat >/dev/null; echo 'add() { echo $(($1 + $2)); }' > add.sh";
const SPOIL: &str = "cat >/dev/null; echo 'add() { echo 7; }' > add.sh";

/// A program that is told and answers in lines of JSON.
struct Talk {
    _child: Child,
    to: ChildStdin,
    from: Lines<BufReader<ChildStdout>>,
}

impl Talk {
    fn with(mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Self {
            to: child.stdin.take().unwrap(),
            from: BufReader::new(child.stdout.take().unwrap()).lines(),
            _child: child,
        }
    }

    async fn say(&mut self, line: &Value) {
        self.to.write_all(format!("{line}\n").as_bytes()).await.unwrap();
    }

    async fn hear(&mut self) -> Value {
        let line = tokio::time::timeout(DEADLINE, self.from.next_line()).await;
        let line = line.expect("an answer in time").unwrap().expect("the program goes on");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
    }

    /// The official client: calls a tool.
    async fn call(&mut self, name: &str, arguments: Value) -> Value {
        self.say(&json!({ "name": name, "arguments": arguments })).await;
        self.hear().await
    }

    /// The same for a call that succeeds.
    async fn done(&mut self, name: &str, arguments: Value) -> Value {
        let answer = self.call(name, arguments).await;
        let result = &answer["result"];
        assert_eq!(result["isError"], false, "{name}: {answer:#}");
        let text = result["content"][0]["text"].as_str().unwrap();
        let structured = &result["structuredContent"];
        assert_eq!(&serde_json::from_str::<Value>(text).unwrap(), structured, "{name}");
        structured.clone()
    }

    /// By hand: a request of the protocol. Notifications that come before its answer are passed over.
    async fn request(&mut self, id: u32, method: &str, params: Value) -> Value {
        self.say(&json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params }))
            .await;
        loop {
            let heard = self.hear().await;
            if heard["id"] == id {
                return heard;
            }
        }
    }
}

/// Where the official client is installed; `None`, told loudly, when it is not.
fn modules(test: &str) -> Option<std::path::PathBuf> {
    let modules = programs::directory().parent()?.join("npm/node_modules");
    if modules.join("@modelcontextprotocol/client").is_dir() {
        return Some(modules);
    }
    programs::skip(test, "scripts/test installs @modelcontextprotocol/client");
    None
}

/// The official client with a server of this person in a folder.
fn official(person: &Person, folder: &Path, modules: &Path) -> Talk {
    let usual = person.command(folder, &[]);
    let mut node = Command::new("node");
    node.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/mcp/client.cjs"))
        .arg(modules)
        .arg(programs::kage())
        .arg("mcp")
        .current_dir(folder)
        .env_clear();
    for (name, value) in usual.as_std().get_envs() {
        node.env(name, value.unwrap_or_default());
    }
    Talk::with(node)
}

#[tokio::test]
async fn a_client_runs_a_race_and_looks_at_its_results() {
    let Some(modules) = modules("a_client_runs_a_race_and_looks_at_its_results") else {
        return;
    };
    let person = Person::new();
    person.adapter("mends", MEND);
    person.adapter("spoils", SPOIL);
    let repo = Repo::sample(&person.path("repo"));
    let mut client = official(&person, repo.path(), &modules);

    let server = client.hear().await;
    assert_eq!(server["server"]["name"], "kage");
    assert!(server["instructions"].as_str().unwrap().contains("kage apply"));
    let tools: Vec<_> = server["tools"].as_array().unwrap().iter().collect();
    let names: Vec<_> = tools.iter().map(|tool| tool["name"].as_str().unwrap()).collect();
    let expected = [
        "run", "wait", "list", "show", "report", "diff", "dry_run", "explain", "cancel",
    ];
    assert_eq!(names, expected);

    let stored = client
        .done(
            "run",
            json!({ "prompt": "--mend the sum", "with": ["mends", "spoils"], "verify": VERIFY }),
        )
        .await;
    let id = stored["id"].as_str().unwrap().to_owned();
    let waited = client.call("wait", json!({ "task": id, "seconds": 120 })).await;
    let ended = &waited["result"]["structuredContent"];
    assert_eq!(ended["state"], "TASK_STATE_SUCCEEDED", "{waited:#}");
    assert_eq!(ended["report"]["best"]["session"], "mends");
    let verified: Vec<_> = ended["verifications"].as_array().unwrap().iter().collect();
    assert_eq!(verified.len(), 2, "{ended:#}");
    let of = |name: &str| verified.iter().find(|it| it["session"] == name).unwrap();
    assert_eq!(
        (&of("mends")["exit_code"], &of("mends")["folder"]),
        (&json!(0), &json!("."))
    );
    assert_eq!(of("spoils")["verdict"], "failed");
    let progress = waited["progress"].as_array().unwrap();
    assert!(
        progress.last().unwrap()["message"]
            .as_str()
            .unwrap()
            .contains("2 of 2 sessions ended"),
        "{progress:#?}"
    );

    // The same JSON as from the command line.
    let typed = person.kage(repo.path(), &["compare", &id, "--format", "json"]).await;
    assert_eq!(client.done("report", json!({ "task": id })).await, typed.json());
    let listed = client
        .done("list", json!({ "state": ["succeeded"], "search": "mend" }))
        .await;
    assert_eq!(listed["tasks"][0]["id"], id.as_str());
    let shown = client.done("show", json!({})).await;
    assert_eq!(shown["spec"]["prompt"], "--mend the sum");
    let diff = client.done("diff", json!({ "task": id })).await;
    assert!(
        diff["patch"]
            .as_str()
            .unwrap()
            .contains("+add() { echo $(($1 + $2)); }"),
        "{diff:#}"
    );
    let between = json!({ "task": id, "from_session": "spoils", "session": "mends", "stat": true });
    let between = client.done("diff", between).await;
    assert_eq!(between["files"][0]["display_path"], "add.sh");
    let before = std::fs::read_to_string(repo.path().join("add.sh")).unwrap();
    for way in ["apply", "merge"] {
        let plan = client.done("dry_run", json!({ "task": id, "way": way })).await;
        assert_eq!(
            (&plan["done"], &plan["paths"][0]["display_path"]),
            (&json!(false), &json!("add.sh"))
        );
    }
    assert_eq!(std::fs::read_to_string(repo.path().join("add.sh")).unwrap(), before);
    let explained = client
        .done("explain", json!({ "error": "429 Too Many Requests" }))
        .await;
    assert_eq!(explained["known"], true);

    // Errors say what can be done, and are no breaks of the protocol.
    for (name, arguments, says) in [
        ("show", json!({ "task": "ffffffff" }), "kage ls"),
        ("run", json!({ "prompt": "-" }), "must say something"),
        ("run", json!({ "prompt": "x", "with": ["nobody"] }), "nobody"),
        ("run", json!({ "prompt": "x", "repeat": 1000 }), "repeat"),
        ("list", json!({ "state": ["asleep"] }), "asleep"),
        ("wait", json!({ "task": id, "minutes": 1 }), "minutes"),
    ] {
        let answer = client.call(name, arguments).await;
        assert_eq!(answer["result"]["isError"], true, "{name}: {answer:#}");
        let content = &answer["result"]["content"];
        assert!(
            content[0]["text"].as_str().unwrap().contains(says),
            "{name}: {answer:#}"
        );
        let error: Value = serde_json::from_str(content[1]["text"].as_str().unwrap()).unwrap();
        assert!(error["kind"].is_string() && error["code"].is_u64(), "{error:#}");
    }
}

#[tokio::test]
async fn a_client_is_answered_before_it_gives_up_and_cancels_what_it_began() {
    let Some(modules) = modules("a_client_is_answered_before_it_gives_up_and_cancels_what_it_began") else {
        return;
    };
    let person = Person::new();
    person.adapter("sleeps", "sleep 600");
    let repo = Repo::sample(&person.path("repo"));
    let mut client = official(&person, repo.path(), &modules);
    client.hear().await;
    let stored = client
        .done("run", json!({ "prompt": "sleep", "with": ["sleeps"] }))
        .await;
    let still = client.done("wait", json!({ "seconds": 0 })).await;
    assert_eq!(
        (&still["id"], &still["state"]),
        (&stored["id"], &json!("TASK_STATE_RUNNING"))
    );
    assert!(still["report"].is_null(), "{still:#}");
    client.done("cancel", json!({ "task": stored["id"] })).await;
    let ended = client.done("wait", json!({ "seconds": 120 })).await;
    assert_eq!(ended["state"], "TASK_STATE_CANCELLED");
}

#[tokio::test]
async fn a_client_with_tasks_of_the_protocol_gets_them_for_what_takes_long() {
    let person = Person::new();
    let gate = person.outside("gate");
    let script = format!("until [ -e '{}' ]; do sleep 0.05; done; {MEND}", gate.display());
    person.adapter("waits", &script);
    person.adapter("sleeps", "sleep 600");
    let repo = Repo::sample(&person.path("repo"));
    let mut server = Talk::with(person.command(repo.path(), &["mcp"]));
    let begin = json!({
        "protocolVersion": "2025-11-25",
        "capabilities": { "extensions": { "io.modelcontextprotocol/tasks": {} } },
        "clientInfo": { "name": "kage-tests", "version": "1.0.0" },
    });
    let begun = server.request(1, "initialize", begin).await;
    assert!(
        begun["result"]["capabilities"]["extensions"]["io.modelcontextprotocol/tasks"].is_object(),
        "{begun:#}"
    );
    server
        .say(&json!({ "jsonrpc": "2.0", "method": "notifications/initialized" }))
        .await;

    let run = json!({ "name": "run", "arguments": { "prompt": "mend", "with": ["waits"], "verify": VERIFY } });
    let made = server.request(2, "tools/call", run).await;
    assert_eq!(
        (&made["result"]["resultType"], &made["result"]["status"]),
        (&json!("task"), &json!("working"))
    );
    let task = json!({ "taskId": made["result"]["taskId"] });
    let working = server.request(3, "tasks/get", task.clone()).await;
    assert_eq!(working["result"]["status"], "working", "{working:#}");
    std::fs::write(&gate, "").unwrap();
    let mut id = 3;
    let ended = wait_for("the task of the protocol ends", async || {
        id += 1;
        let now = server.request(id, "tasks/get", task.clone()).await;
        (now["result"]["status"] != "working").then_some(now)
    })
    .await;
    let result = &ended["result"]["result"]["structuredContent"];
    assert_eq!(ended["result"]["status"], "completed", "{ended:#}");
    assert_eq!(result["report"]["best"]["session"], "waits", "{ended:#}");

    // Cancelling what `run` began stops it.
    let run = json!({ "name": "run", "arguments": { "prompt": "sleep", "with": ["sleeps"] } });
    let made = server.request(id + 1, "tools/call", run).await;
    let task = json!({ "taskId": made["result"]["taskId"] });
    server.request(id + 2, "tasks/cancel", task).await;
    let stopped = async || {
        let listed = person
            .kage(repo.path(), &["ls", "--state", "cancelled", "--format", "json"])
            .await;
        listed.json().as_array().filter(|tasks| !tasks.is_empty()).map(|_| ())
    };
    wait_for("the task is stopped", stopped).await;
}

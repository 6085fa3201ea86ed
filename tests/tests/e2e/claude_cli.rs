//! The real `claude` program against the scripted server, without Kage Bunshin in between: the
//! server imitates the provider well enough, and facts that the adapter relies on hold.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use kage_scripted::{Answer, CallUsage, Fault, Matcher, Script, ScriptedServer, Turn};
use kage_tests::programs;
use serde_json::{Value, json};

const MODEL: &str = "claude-sonnet-5-5";

/// Runs `claude` in a directory and returns its output and its terminal event.
async fn run(claude: &Path, server: &ScriptedServer, directory: &Path) -> (Output, Value) {
    let home = directory.join("home");
    std::fs::create_dir_all(&home).unwrap();
    let mut command = Command::new(claude);
    command
        .args(["-p", "--output-format", "stream-json", "--verbose"])
        .args(["--permission-mode", "bypassPermissions", "--model", MODEL])
        .args(["--", "please solve it"])
        .current_dir(directory)
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .env("HOME", &home)
        .env("TMPDIR", &home)
        .env("IS_SANDBOX", "1")
        .env("ANTHROPIC_BASE_URL", server.url())
        .env("ANTHROPIC_API_KEY", "sk-ant-scripted")
        .env("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1")
        .env("DISABLE_AUTOUPDATER", "1")
        .env("DISABLE_TELEMETRY", "1")
        .stdin(Stdio::null());
    let output = tokio::task::spawn_blocking(move || command.output())
        .await
        .unwrap()
        .unwrap();
    let result = String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .find(|event| event["type"] == "result")
        .unwrap_or(Value::Null);
    (output, result)
}

fn write_turn() -> Turn {
    Turn::call(
        "Bash",
        json!({"command": "printf 'made by a tool call' > made.txt", "description": "write a file"}),
    )
}

#[tokio::test]
async fn it_works_through_a_tool_call_a_429_and_a_cut_stream() {
    let Some(claude) = programs::claude() else {
        return programs::skip("claude_cli", "claude is not installed; ./scripts/test installs it");
    };
    let directory = tempfile::tempdir().unwrap();
    let server = ScriptedServer::start(vec![Script::new(
        "cli",
        Matcher::model(MODEL),
        [
            write_turn().after(Fault::rate_limited(Duration::from_secs(1))),
            Turn::say("It is solved.").after(Fault::Cut { after_events: 3 }),
        ],
    )])
    .await
    .unwrap();
    let (output, result) = run(&claude, &server, directory.path()).await;
    let told = format!("{output:?}\n{:#?}", answers(&server));
    assert!(output.status.success(), "{told}");
    assert_eq!(result["is_error"], false, "{told}");
    assert_eq!(result["result"], "It is solved.", "{told}");
    let made = std::fs::read_to_string(directory.path().join("made.txt")).unwrap();
    assert_eq!(made, "made by a tool call");

    // Its totals equal the server's accounts. It also counts the broken call if it has read enough
    // of it before the cut.
    let (mut whole, mut broken) = (CallUsage::default(), CallUsage::default());
    for answer in answers(&server) {
        let (sum, usage) = match answer {
            Answer::Reply(usage) => (&mut whole, usage),
            Answer::Broken(usage) => (&mut broken, usage),
            Answer::Count(_) | Answer::Error(_) | Answer::Hang => continue,
        };
        sum.cache_read += usage.cache_read;
        sum.cache_write_5m += usage.cache_write_5m;
    }
    assert!(whole.cache_read > 0, "a call reads what an earlier one wrote: {told}");
    let sums = ["cache_read_input_tokens", "cache_creation_input_tokens"].map(|class| result["usage"][class].as_u64());
    let possible = [
        [whole.cache_read, whole.cache_write_5m],
        [
            whole.cache_read + broken.cache_read,
            whole.cache_write_5m + broken.cache_write_5m,
        ],
    ];
    assert!(possible.iter().any(|sum| sum.map(Some) == sums), "{sums:?} {told}");
}

fn answers(server: &ScriptedServer) -> Vec<Answer> {
    server.requests().into_iter().map(|request| request.answer).collect()
}

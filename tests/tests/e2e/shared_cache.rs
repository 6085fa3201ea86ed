//! Sessions of one task and one account start together. One of them writes what they share to the provider's cache,
//! and the others read it.

use std::time::Duration;

use kage_scripted::{Answer, CallUsage, Fault, Matcher, Script, ScriptedServer, Turn};
use kage_tests::command::{Person, Said, said};
use kage_tests::repo::{Repo, SOLUTION, VERIFY};
use serde_json::json;

const MODEL: &str = "claude-sonnet-5-5";
const SESSIONS: usize = 6;
/// Tokens of the shared context, at four bytes each.
const SHARED: u64 = 20_000;

fn solver() -> Script {
    let solve = Turn::call("write_file", json!({"path": "add.sh", "content": SOLUTION}));
    let turns = [solve, Turn::say("done")].map(|turn| turn.delayed(Duration::from_millis(300)));
    Script::new("solver", Matcher::model(MODEL), turns)
}

/// Runs sessions that share a large context, and returns what each session's first call was counted as.
async fn first_calls(server: &ScriptedServer) -> (Said, Vec<CallUsage>) {
    let person = Person::new();
    let repo = Repo::sample(&person.path("repo"));
    let context = person.path("context.json");
    let rules = "know this ".repeat(usize::try_from(SHARED).unwrap() * 4 / 10);
    std::fs::write(&context, json!({ "rules": rules }).to_string()).unwrap();
    let (with, sessions) = (format!("claude-api:{MODEL}"), SESSIONS.to_string());
    let arguments = [
        "run",
        "mend the sum",
        "--with",
        &with,
        "--repeat",
        &sessions,
        "--context",
        context.to_str().unwrap(),
        "--verify",
        VERIFY,
    ];
    let mut command = person.command(repo.path(), &arguments);
    command.env("ANTHROPIC_BASE_URL", server.url());
    command.env("ANTHROPIC_API_KEY", "sk-test");
    let done = said(command.output().await.unwrap());
    let calls = server.requests_of("solver").into_iter().filter_map(|request| {
        let is_first = request.body["messages"].as_array().is_some_and(|said| said.len() == 1);
        match request.answer {
            Answer::Reply(usage) if is_first => Some(usage),
            _ => None,
        }
    });
    (done, calls.collect())
}

#[tokio::test]
async fn one_session_writes_what_all_of_them_read() {
    let server = ScriptedServer::start(vec![solver()]).await.unwrap();
    let (done, calls) = first_calls(&server).await;
    assert_eq!(done.code, 0, "{done:#?}");
    assert_eq!(calls.len(), SESSIONS, "{calls:?}");
    let writes = calls.iter().filter(|call| call.cache_write_5m >= SHARED).count();
    assert_eq!(writes, 1, "{calls:?}");
    let reads = calls.iter().filter(|call| call.cache_read >= SHARED).count();
    assert_eq!(reads, SESSIONS - 1, "{calls:?}");
}

#[tokio::test]
async fn another_session_writes_when_the_first_one_is_refused() {
    let mut script = solver();
    script.turns[0].faults = vec![Fault::overloaded()];
    let server = ScriptedServer::start(vec![script]).await.unwrap();
    let (done, calls) = first_calls(&server).await;
    assert_eq!(done.code, 0, "{done:#?}");
    assert_eq!(calls.len(), SESSIONS, "{calls:?}");
    let writes = calls.iter().filter(|call| call.cache_write_5m >= SHARED).count();
    assert_eq!(writes, 1, "{calls:?}");
}

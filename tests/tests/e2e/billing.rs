//! What sessions that share a base are billed for, by a provider that keeps its documented rules: the base is written
//! to its cache once, and read by everybody else. Each bound stands beside a run without it that misses it.

use std::ffi::OsString;
use std::time::Duration;

use kage_scripted::ScriptedServer;
use kage_tests::billing::{Bills, MODEL, NEW, READS, TURNS, script, text};
use kage_tests::command::{Person, said};
use kage_tests::programs;
use kage_tests::repo::Repo;
use kage_tests::tier::Tier;
use serde_json::json;

/// Tokens of what all sessions share, tools and instructions of the adapter included.
const BASE: u64 = 20_000;
/// Tokens of those that are the adapter's.
const OF_ADAPTER: usize = 1_000;
/// Tokens of each session's own part.
const TAIL: usize = 300;

/// Where a base comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Base {
    /// `--context`, with a tail for each session.
    Contexts,
    /// A file of the repository for coding agents.
    Instructions,
    /// Nothing but what the adapter says.
    None,
}

/// Runs so many sessions of an adapter to their end, and returns what they were billed for.
async fn billed(adapter: &str, tool: &str, sessions: usize, base: Base, path: Option<OsString>) -> Bills {
    let mut script = script("shared", tool);
    // Whatever a program needs to start, first calls that nobody holds back are on their way together.
    script.turns[0].reply.delay = match adapter {
        "claude-api" => Duration::from_millis(300),
        _ => Duration::from_secs(3),
    };
    let server = ScriptedServer::start(vec![script]).await.unwrap();
    let person = Person::new();
    let repo = Repo::sample(&person.path("repo"));
    let with = format!("{adapter}:{MODEL}");
    let count = sessions.to_string();
    let mut arguments: Vec<String> = ["run", "look at it", "--with", &with, "--repeat", &count]
        .map(str::to_owned)
        .into();
    match base {
        Base::Contexts => {
            let rules = text(BASE as usize - OF_ADAPTER);
            for session in 1..=sessions {
                let name = match sessions {
                    1 => adapter.to_owned(),
                    _ => format!("{adapter}-{session}"),
                };
                let own = format!("{session:04} {}", &text(TAIL)[..TAIL * 4 - 400]);
                let file = person.path(&format!("context-{session}.json"));
                std::fs::write(&file, json!({"rules": rules, "own": own}).to_string()).unwrap();
                arguments.extend(["--context".to_owned(), format!("{name}={}", file.display())]);
            }
        }
        Base::Instructions => {
            repo.write("CLAUDE.md", &text(5_000));
            repo.commit("what agents are told");
        }
        Base::None => {}
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut run = person.command(repo.path(), &arguments);
    run.env("ANTHROPIC_BASE_URL", server.url())
        .env("ANTHROPIC_API_KEY", "sk-ant-scripted");
    if let Some(path) = path {
        run.env("PATH", path);
    }
    let run = said(run.output().await.unwrap());
    let requests = server.requests();
    let log = std::fs::read_to_string(person.path("state/daemon.log")).unwrap_or_default();
    assert_eq!(requests.len(), sessions * TURNS, "{run:#?}\n{log}");
    Bills::of(&requests).await.unwrap()
}

/// The lengths that the bounds are stated for.
fn assert_lengths(bills: &Bills) {
    let first: Vec<_> = bills.uncached.iter().map(|call| call.input).collect();
    let (shortest, longest) = (first.iter().min().unwrap(), first.iter().max().unwrap());
    let base = shortest - TAIL as u64;
    assert!((BASE - 500..=BASE + 500).contains(&base), "a base of {base} tokens");
    let new = (longest - shortest) / (TURNS as u64 - 1);
    assert!((NEW - 40..=NEW + 40).contains(&new), "{new} new tokens a turn");
}

#[tokio::test]
async fn ten_sessions_pay_for_one_base() {
    let bills = billed("claude-api", "bash", 10, Base::Contexts, None).await;
    assert_lengths(&bills);
    assert_eq!((bills.sessions, bills.writes_of(BASE / 2)), (10, 1), "{bills:#?}");
    let (of_uncached, of_apart) = (bills.of_uncached(0.05), bills.of_apart(0.05));
    assert!(of_uncached <= 0.11, "{of_uncached}");
    assert!(of_apart <= 0.35, "{of_apart}");
    // Sessions that each write the base miss it: the bound does not hold by itself.
    let apart = Bills {
        run: bills.apart.clone(),
        ..bills
    };
    assert_eq!(apart.writes_of(BASE / 2), 10);
    assert!(apart.of_uncached(0.05) > 0.11 && apart.of_apart(0.05) > 0.35);
}

#[tokio::test]
async fn three_sessions_pay_less_and_one_alone_no_more() {
    let three = billed("claude-api", "bash", 3, Base::Contexts, None).await;
    assert_lengths(&three);
    assert_eq!((three.sessions, three.writes_of(BASE / 2)), (3, 1), "{three:#?}");
    assert!(three.of_apart(0.05) <= 0.60, "{}", three.of_apart(0.05));
    let one = billed("claude-api", "bash", 1, Base::Contexts, None).await;
    for read in READS {
        assert!(one.of_apart(read) <= 1.01, "{read}: {}", one.of_apart(read));
    }
}

#[tokio::test]
async fn what_a_repository_tells_agents_is_paid_for_once_too() {
    let told = billed("claude-api", "bash", 3, Base::Instructions, None).await;
    assert_eq!((told.sessions, told.writes_of(5_000)), (3, 1), "{told:#?}");
    assert!(told.of_apart(0.05) <= 0.65, "{}", told.of_apart(0.05));
    // Without either, what an adapter says itself is shared.
    let bare = billed("claude-api", "bash", 3, Base::None, None).await;
    assert_eq!(bare.sessions, 3);
    assert!(bare.of_apart(0.05) < 0.95, "{}", bare.of_apart(0.05));
}

#[tokio::test]
async fn the_real_claude_program_writes_a_base_once_by_its_gateway() {
    let Some(claude) = programs::claude() else {
        return programs::skip("billing", "claude is not installed; ./scripts/test installs it");
    };
    let path = programs::path_with(&claude);
    let sessions = Tier::now().pick(2, 3, 10);
    let bills = billed("claude-code", "Bash", sessions, Base::Contexts, Some(path)).await;
    assert_eq!((bills.sessions, bills.writes_of(BASE / 2)), (sessions, 1), "{bills:#?}");
    let bound = Tier::now().pick(0.75, 0.60, 0.40);
    assert!(bills.of_apart(0.05) <= bound, "{}: {bills:#?}", bills.of_apart(0.05));
}

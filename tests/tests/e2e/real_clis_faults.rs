//! What the real programs do when their provider fails, in the long tier: each fault meets all of them side by
//! side, and each has the class of its failure, in the words that the program has for it. A refused key and
//! the success are in every tier (`real_clis`).

use std::path::PathBuf;
use std::time::Duration;

use kage_proto::convert::time::span;
use kage_proto::v1;
use kage_scripted::{ApiError, Fault, ScriptedServer, Turn};
use kage_tests::cluster::{AgentOptions, Cluster};
use kage_tests::programs;
use kage_tests::repo::VERIFY;
use kage_tests::tasks::{Describe, session, task};
use kage_tests::tier::Tier;
use kage_tests::wait::{poll, wait_for};

use crate::real_clis::{CLIS, Cli};

/// How often the tests' usual deadline passes until the slowest program gives up.
const DEADLINES: usize = 6;
/// Longer than every program repeats a call.
const TIME: Duration = Duration::from_secs(900);

/// The programs, in the tier in which their faults are met.
fn programs() -> Option<PathBuf> {
    if Tier::now() != Tier::Long {
        return None;
    }
    let missing = CLIS.iter().find(|cli| programs::real(cli.adapter).is_none());
    if let Some(cli) = missing {
        programs::skip("real_clis_faults", &format!("{} is not installed", cli.adapter));
        return None;
    }
    programs::real(CLIS[0].adapter)
}

/// An agent whose programs find their provider at this address, and a task for all of them.
async fn start(url: &str, program: &std::path::Path, idle: Duration) -> (Cluster, String) {
    let mut cluster = Cluster::start().await;
    let slots = u32::try_from(CLIS.len()).unwrap();
    let options = AgentOptions::named("agent")
        .every_provider(url)
        .with_path_of(program)
        .slots(slots);
    cluster.add_agent(options).await;
    let repo = cluster.sample();
    let mut spec = task("make the test pass")
        .on(&repo)
        .verified_by(VERIFY)
        .policy(|policy| {
            policy.timeout = Some(span(TIME));
            policy.idle_timeout = Some(span(idle));
        });
    for cli in CLIS {
        spec = spec.session(cli.adapter, cli.adapter, cli.model.0);
    }
    let id = cluster.create(spec).await;
    (cluster, id)
}

/// The class of the first failure of each session, when all have one.
async fn failures(cluster: &Cluster, id: &str) -> Vec<(&'static str, v1::FailureKind, String)> {
    let mut last = None;
    for _ in 0..DEADLINES {
        let all = poll(async || {
            let request = v1::GetTaskRequest {
                task_id: id.to_owned(),
                view: v1::TaskView::Full.into(),
            };
            let task = cluster
                .client()
                .tasks()
                .get_task(request)
                .await
                .ok()?
                .into_inner()
                .task?;
            let failed = |cli: &Cli| {
                let session = session(&task, cli.adapter);
                let first = session.incidents.first().and_then(|incident| incident.failure.clone());
                let failure = first.or_else(|| session.failure.clone())?;
                Some((cli.adapter, failure.kind(), failure.message))
            };
            let found: Option<Vec<_>> = CLIS.iter().map(failed).collect();
            last = Some(task.clone());
            found
        });
        if let Some(all) = all.await {
            return all;
        }
    }
    panic!("not every session failed: {last:#?}");
}

/// Meets a fault with every program, and checks the class of its failure.
async fn meets(fault: fn(&Cli) -> Fault, expected: &[v1::FailureKind]) {
    let Some(program) = programs() else { return };
    let scripts = CLIS.iter().map(|cli| {
        let mut turn = Turn::say("It is never said.");
        turn.faults = vec![fault(cli); 200];
        cli.script(cli.model.1, [turn])
    });
    let server = ScriptedServer::start(scripts.collect()).await.unwrap();
    let (cluster, id) = start(&server.url(), &program, TIME).await;
    let failures = failures(&cluster, &id).await;
    let wrong: Vec<_> = failures
        .iter()
        .filter(|(_, kind, _)| !expected.contains(kind))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[tokio::test]
async fn a_rate_limit_that_stays_is_one() {
    let limited = |_: &Cli| {
        let words = "Rate limit reached for requests. Please try again in 1s.";
        Fault::Error(ApiError::new(429, "rate_limit_error", words))
    };
    meets(limited, &[v1::FailureKind::RateLimited]).await;
}

#[tokio::test]
async fn a_provider_that_breaks_is_at_fault() {
    let broken = |_: &Cli| {
        Fault::Error(ApiError::new(
            500,
            "api_error",
            "The server had an error. Sorry about that!",
        ))
    };
    meets(broken, &[v1::FailureKind::Network, v1::FailureKind::Overloaded]).await;
}

#[tokio::test]
async fn a_prompt_that_is_too_long_is_one() {
    let too_long = |cli: &Cli| {
        let (kind, words) = match cli.adapter {
            "gemini" => (
                "INVALID_ARGUMENT",
                "The input token count (1215000) exceeds the maximum number of tokens allowed (1048576).",
            ),
            "opencode" => (
                "invalid_request_error",
                "prompt is too long: 215000 tokens > 200000 maximum",
            ),
            _ => (
                "invalid_request_error",
                "This model's maximum context length is 128000 tokens. However, your messages resulted in 215000 \
                 tokens. Please reduce the length of the messages.",
            ),
        };
        let error = ApiError::new(400, kind, words);
        Fault::Error(match cli.adapter {
            "gemini" | "opencode" => error,
            _ => error.with_code("context_length_exceeded"),
        })
    };
    meets(too_long, &[v1::FailureKind::ContextOverflow]).await;
}

#[tokio::test]
async fn a_provider_that_is_not_there_is_a_network_failure() {
    let Some(program) = programs() else { return };
    // Nobody listens there any more.
    let url = ScriptedServer::start(Vec::new()).await.unwrap().url();
    let (cluster, id) = start(&url, &program, TIME).await;
    let failures = failures(&cluster, &id).await;
    let wrong: Vec<_> = failures
        .iter()
        .filter(|(_, kind, _)| *kind != v1::FailureKind::Network)
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// A server at which every call hangs.
async fn hanging() -> ScriptedServer {
    let scripts = CLIS.iter().map(|cli| {
        let mut turn = Turn::say("It is never said.");
        turn.faults = vec![Fault::Hang; 200];
        cli.script(cli.model.1, [turn])
    });
    ScriptedServer::start(scripts.collect()).await.unwrap()
}

#[tokio::test]
async fn a_call_that_hangs_ends_with_the_idle_time() {
    let Some(program) = programs() else { return };
    let server = hanging().await;
    let (cluster, id) = start(&server.url(), &program, Duration::from_secs(45)).await;
    let failures = failures(&cluster, &id).await;
    let wrong: Vec<_> = failures
        .iter()
        .filter(|(_, kind, _)| *kind != v1::FailureKind::Timeout)
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Processes that know of this folder.
fn processes_of(folder: &std::path::Path) -> Vec<String> {
    let folder = folder.display().to_string();
    let processes = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let known = processes.filter_map(|process| {
        let read = |name: &str| std::fs::read(process.path().join(name)).ok();
        let environment = String::from_utf8_lossy(&read("environ")?).into_owned();
        let line = String::from_utf8_lossy(&read("cmdline")?).replace('\0', " ");
        environment
            .contains(&folder)
            .then_some(line)
            .filter(|line| !line.is_empty())
    });
    known.collect()
}

#[tokio::test]
async fn a_session_that_is_cancelled_leaves_no_program_behind() {
    let Some(program) = programs() else { return };
    let server = hanging().await;
    let (cluster, id) = start(&server.url(), &program, TIME).await;
    wait_for("every program waits for its model", async || {
        CLIS.iter()
            .all(|cli| !server.requests_of(cli.adapter).is_empty())
            .then_some(())
    })
    .await;
    let home = cluster.agent_dir("agent");
    assert!(processes_of(&home).len() >= CLIS.len(), "{:?}", processes_of(&home));
    let request = v1::CancelTaskRequest {
        request_id: "00000000000000000000000000000001".to_owned(),
        task_id: id.clone(),
    };
    cluster.client().tasks().cancel_task(request).await.unwrap();
    let ended = cluster.ended(&id).await;
    for cli in CLIS {
        let session = session(&ended, cli.adapter);
        assert_eq!(session.state(), v1::SessionState::Cancelled, "{session:#?}");
    }
    wait_for("every program is gone", async || {
        processes_of(&home).is_empty().then_some(())
    })
    .await;
}

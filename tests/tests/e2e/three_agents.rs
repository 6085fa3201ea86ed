//! The main use: one task, three sessions on three agents; one solves it, one breaks the test, one
//! is rate limited and recovers. Verdicts, order, usage and money are right.

use std::collections::BTreeSet;
use std::time::Duration;

use kage_proto::v1;
use kage_scripted::{Answer, CallUsage, Fault, Matcher, Script, ScriptedServer, Turn};
use kage_tests::cluster::{AgentOptions, Cluster, SHELL};
use kage_tests::repo::{SOLUTION, VERIFY};
use kage_tests::tasks::{Describe, read_all, session, task, verdict};
use serde_json::json;

const SOLVER: &str = "claude-sonnet-5-5";
const LIMITED: &str = "claude-haiku-5-5";

fn scripts() -> Vec<Script> {
    let longer = format!("# Adds two numbers.\n# It takes them as arguments.\n{SOLUTION}");
    vec![
        Script::new(
            "solver",
            Matcher::model(SOLVER),
            [
                Turn::call("read_file", json!({"path": "add.sh"})),
                Turn::call("write_file", json!({"path": "add.sh", "content": SOLUTION})),
                Turn::say("I fixed the sign."),
            ],
        ),
        Script::new(
            "limited",
            Matcher::model(LIMITED),
            [
                Turn::call("write_file", json!({"path": "add.sh", "content": longer}))
                    .after(Fault::rate_limited(Duration::from_secs(1))),
                Turn::say("I fixed it."),
            ],
        ),
    ]
}

#[tokio::test]
async fn the_best_of_three_sessions_on_three_agents_is_found() {
    let server = ScriptedServer::start(scripts()).await.unwrap();
    let mut cluster = Cluster::start().await;
    let mut pids = BTreeSet::new();
    for seat in ["1", "2", "3"] {
        let options = AgentOptions::named(&format!("agent-{seat}"))
            .label("seat", seat)
            .anthropic(&server.url())
            .script(
                "break",
                "cat >/dev/null; echo 'add() { echo broken; }' > add.sh; echo I am sure",
            );
        pids.insert(cluster.add_agent(options).await);
    }
    assert_eq!(pids.len(), 3);
    let listed: BTreeSet<u32> = cluster.agents().await.iter().map(|agent| agent.pid).collect();
    assert_eq!(listed, pids, "ListAgents shows the three processes");

    let repo = cluster.sample();
    let mut spec = task("make the test pass")
        .on(&repo)
        .verified_by(VERIFY)
        .session("solver", "claude-api", SOLVER)
        .session("breaker", SHELL, "break")
        .session("limited", "claude-api", LIMITED);
    for (assignment, seat) in spec.assignments.iter_mut().zip(["1", "2", "3"]) {
        assignment.requirements.insert("seat".to_owned(), seat.to_owned());
    }
    let id = cluster.create(spec).await;
    let streams = [v1::OutputStream::Stdout, v1::OutputStream::Stderr];
    let seen = read_all(cluster.watch(&id, &streams).await).await;
    let ended = seen.task.clone().unwrap();
    assert_eq!(ended.state(), v1::TaskState::Succeeded, "{ended:#?}");

    let solver = session(&ended, "solver");
    let breaker = session(&ended, "breaker");
    let limited = session(&ended, "limited");
    assert_eq!(verdict(solver), v1::VerdictKind::Passed, "{solver:#?}");
    assert_eq!(verdict(breaker), v1::VerdictKind::Failed, "{breaker:#?}");
    assert_eq!(verdict(limited), v1::VerdictKind::Passed, "{limited:#?}");
    assert_eq!(breaker.verdict.as_ref().unwrap().exit_code, Some(1));
    let complaint = seen.output_of("breaker", v1::JobKind::Verify, v1::OutputStream::Stdout);
    assert_eq!(String::from_utf8_lossy(complaint), "add 2 3 is broken\n");
    assert_eq!(seen.stdout("breaker"), b"I am sure\n");
    assert_eq!((solver.call_retries, limited.call_retries), (0, 1));
    let agents: BTreeSet<&str> = ended.sessions.iter().map(|session| session.agent.as_str()).collect();
    assert_eq!(agents.len(), 3, "{agents:?}");

    let report = cluster.report(&id).await;
    let order: Vec<&str> = report
        .rows
        .iter()
        .map(|row| row.session.as_ref().unwrap().name.as_str())
        .collect();
    assert_eq!(order, ["solver", "limited", "breaker"], "{report:#?}");
    assert_eq!(report.best.as_ref().unwrap().session, "solver");

    assert_eq!(
        solver.usage.unwrap(),
        billed(&server, "solver"),
        "exactly what the provider counted"
    );
    assert_eq!(limited.usage.unwrap(), billed(&server, "limited"));
    for session in [solver, limited] {
        let provenances: Vec<v1::Provenance> = session.money.iter().map(v1::Money::provenance).collect();
        assert_eq!(provenances, [v1::Provenance::Billed], "{session:#?}");
        assert!(session.money[0].pico.unwrap() > 0);
    }

    let commit = cluster.fetch_result(&repo, solver);
    assert_eq!(commit, solver.result.as_ref().unwrap().commit);
    assert_eq!(repo.git(&["show", &format!("{commit}:add.sh")]), SOLUTION);
    assert_eq!(
        repo.git(&["rev-parse", &format!("{commit}^")]).trim(),
        repo.head(),
        "a result's parent is the base"
    );
}

/// The provider's bill for a script's calls.
fn billed(server: &ScriptedServer, script: &str) -> v1::Usage {
    let mut sum = v1::Usage::default();
    for request in server.requests_of(script) {
        if let Answer::Reply(CallUsage {
            input,
            cache_write_5m,
            cache_write_1h,
            cache_read,
            output,
            reasoning,
        }) = request.answer
        {
            sum.input += input;
            sum.cache_write_5m += cache_write_5m;
            sum.cache_write_1h += cache_write_1h;
            sum.cache_read += cache_read;
            sum.output += output;
            sum.reasoning += reasoning;
        }
    }
    sum
}

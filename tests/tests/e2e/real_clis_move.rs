//! Sessions of real programs outlive their machines: the program on another machine continues the
//! conversation, also where the program chose its id. In the long tier, beside the same story of `claude`.

use kage_proto::v1;
use kage_scripted::{Fault, Script, ScriptedServer, Turn};
use kage_tests::cluster::{AgentOptions, Cluster};
use kage_tests::programs;
use kage_tests::repo::{SOLUTION, VERIFY};
use kage_tests::tasks::{Describe, task};
use kage_tests::tier::Tier;
use kage_tests::wait::wait_for;

use crate::checkpoints::taken_over;
use crate::real_clis::{CLIS, Cli};

#[tokio::test]
async fn a_killed_agents_codex_session_goes_on_elsewhere() {
    goes_on("codex").await;
}

#[tokio::test]
async fn a_killed_agents_kimi_session_goes_on_elsewhere() {
    goes_on("kimi").await;
}

#[tokio::test]
async fn a_killed_agents_qwen_session_goes_on_elsewhere() {
    goes_on("qwen").await;
}

fn script(cli: &Cli) -> Script {
    let mut last = Turn::say("I fixed the sign.");
    // The machine dies while the model thinks.
    last.faults.push(Fault::Hang);
    let turns = [
        // Done twice it would be seen.
        (cli.shell)("pwd && echo 'the sign is wrong' >> notes.txt"),
        (cli.shell)(&format!("cat > add.sh <<'END'\n{SOLUTION}END\n")),
        last,
        // The program may add its own message at the interruption.
        Turn::say("I fixed the sign."),
    ];
    cli.script(cli.model.1, turns)
}

async fn goes_on(name: &str) {
    if Tier::now() != Tier::Long {
        return;
    }
    let cli = CLIS.iter().find(|cli| cli.adapter == name).unwrap();
    let Some(program) = programs::real(name) else {
        return programs::skip("real_clis_move", &format!("{name} is not installed"));
    };
    let server = ScriptedServer::start(vec![script(cli)]).await.unwrap();
    let mut cluster = Cluster::start().await;
    let agent = |agent: &str| {
        AgentOptions::named(agent)
            .every_provider(&server.url())
            .with_path_of(&program)
    };
    cluster.add_agent(agent("first")).await;
    let repo = cluster.sample();
    let spec = task("make the test pass")
        .on(&repo)
        .verified_by(VERIFY)
        .session(name, name, cli.model.0);
    let id = cluster.create(spec).await;
    wait_for("the last call is made", async || {
        (server.requests_of(name).len() >= 3).then_some(())
    })
    .await;
    let client = cluster.client();
    wait_for("both edits are kept", async || {
        let request = v1::ListCheckpointsRequest {
            task_id: id.clone(),
            ..v1::ListCheckpointsRequest::default()
        };
        let listed = client.checkpoints().list_checkpoints(request).await.ok()?.into_inner();
        let edits: u64 = listed.checkpoints.iter().map(|taken| taken.files_changed).sum();
        (edits >= 2).then_some(())
    })
    .await;
    let before = server.requests_of(name).len();

    let (solver, resumption) = taken_over(&mut cluster, agent("second"), &id, name).await;
    assert!(resumption.position > 0, "{resumption:?}");
    let after = server.requests_of(name)[before..].to_vec();
    let first = after
        .first()
        .expect("the second machine called the model")
        .body
        .to_string();
    assert!(first.contains("the sign is wrong"), "it knows what it did: {first}");
    let home = cluster.agent_dir("first").display().to_string();
    assert!(!first.contains(&home), "and where it works now: {first}");

    let commit = cluster.fetch_result(&repo, &solver);
    let notes = repo.git(&["show", &format!("{commit}:notes.txt")]);
    assert_eq!(notes.trim(), "the sign is wrong", "written once");
}

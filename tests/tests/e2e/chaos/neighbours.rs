//! A session that takes all processes, memory or disk of its machine fails alone: its neighbours on the same
//! agent go on, or begin again at no cost, and nothing of it is left.

use std::path::Path;
use std::time::Duration;

use kage_proto::convert::time::span;
use kage_proto::v1;
use kage_tests::cluster::{AgentOptions, Cluster, Programs, SHELL};
use kage_tests::faults::crowd::Crowd;
use kage_tests::faults::disk::SmallDisk;
use kage_tests::faults::may_mount;
use kage_tests::process::processes_of;
use kage_tests::programs;
use kage_tests::tasks::{Describe, task};
use kage_tests::wait::wait_for;

/// How long the bad session may work.
const LIMIT: Duration = Duration::from_secs(4);
const PROCESSES: u32 = 200;
const MEBIBYTES: u64 = 300;

/// Needs no process of its own besides the shell.
const HONEST: &str = "while read -r line; do :; done; echo right";

/// The same, which first waits until somebody opens a pipe.
fn waiting(pipe: &Path) -> String {
    rustix::fs::mkfifoat(rustix::fs::CWD, pipe, rustix::fs::Mode::from_raw_mode(0o600)).expect("a pipe can be made");
    format!(
        "while read -r line; do :; done; read -r line < '{}'; echo right",
        pipe.display()
    )
}

fn bad() -> v1::TaskSpec {
    task("bad")
        .session("only", SHELL, "bad")
        .policy(|policy| policy.timeout = Some(span(LIMIT)))
}

fn honest() -> v1::TaskSpec {
    task("honest").session("only", SHELL, "honest")
}

/// Asserts that the honest session succeeded, with no failure of its own.
fn is_right(task: &v1::Task) -> &v1::Session {
    assert_eq!(task.state(), v1::TaskState::Succeeded, "{task:#?}");
    let session = &task.sessions[0];
    let own = session.incidents.iter().filter(|incident| {
        let kind = incident.failure.as_ref().map(v1::Failure::kind);
        kind != Some(v1::FailureKind::MachineBusy)
    });
    assert_eq!(own.count(), 0, "{session:#?}");
    session
}

/// Waits until of all that the agent ran nothing is left.
async fn nothing_is_left(cluster: &Cluster, agent: u32) {
    let dir = cluster.agent_dir("crowded");
    wait_for("nothing is left of the sessions", async || {
        processes_of(&dir).iter().all(|pid| *pid == agent).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fork_bomb_fails_alone_and_a_neighbour_begins_again_at_no_cost() {
    let Some(crowd) = Crowd::new(PROCESSES, 1024) else {
        programs::skip("a_fork_bomb_fails_alone", "no control group can be made");
        return;
    };
    let mut cluster = Cluster::start_with(crowd.agents(&Programs::own())).await;
    let full = cluster.outside().join("full");
    let bomb = format!(
        "exec perl -e 'while (1) {{ my $p = fork; if (!defined $p) {{ open my $f, \">\", \"{}\"; select undef, undef, \
         undef, 0.02; }} elsif ($p == 0) {{ sleep 600; exit; }} }}'",
        full.display()
    );
    let options = AgentOptions::named("crowded").slots(2);
    let agent = cluster
        .add_agent(options.script("bad", bomb).script("honest", HONEST))
        .await;
    let bad = cluster.create(bad()).await;
    wait_for("no further process can be started", async || {
        full.exists().then_some(())
    })
    .await;
    let honest = cluster.create(honest()).await;
    let honest = cluster.ended(&honest).await;
    let session = is_right(&honest);
    assert!(!session.incidents.is_empty(), "it found room at once: {session:#?}");
    assert_eq!(cluster.ended(&bad).await.state(), v1::TaskState::Failed);
    nothing_is_left(&cluster, agent).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_memory_bomb_fails_alone_and_a_neighbour_goes_on() {
    let Some(crowd) = Crowd::new(PROCESSES, MEBIBYTES) else {
        programs::skip("a_memory_bomb_fails_alone", "no control group can be made");
        return;
    };
    let mut cluster = Cluster::start_with(crowd.agents(&Programs::own())).await;
    let pipe = cluster.root().join("pipe");
    let bomb = "exec perl -e '$x .= \"x\" x (1 << 20) while 1'";
    let options = AgentOptions::named("crowded").slots(2);
    let agent = cluster
        .add_agent(options.script("bad", bomb).script("honest", waiting(&pipe)))
        .await;
    let honest = cluster.create(honest()).await;
    let running = |task: &v1::Task| task.sessions[0].state() == v1::SessionState::Running;
    cluster.until(&honest, "runs", running).await;
    let bad = cluster.create(bad()).await;
    assert_eq!(cluster.ended(&bad).await.state(), v1::TaskState::Failed);
    tokio::fs::write(&pipe, "go on\n").await.unwrap();
    let honest = cluster.ended(&honest).await;
    assert_eq!(is_right(&honest).attempts, 1);
    nothing_is_left(&cluster, agent).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_fills_the_disk_fails_alone_and_a_neighbour_goes_on() {
    if !may_mount() {
        programs::skip("a_session_that_fills_the_disk_fails_alone", "only root may mount");
        return;
    }
    let mut cluster = Cluster::start().await;
    let _disk = SmallDisk::at(&cluster.agent_dir("crowded"), 48);
    let (pipe, full) = (cluster.root().join("pipe"), cluster.outside().join("full"));
    let bomb = format!("yes > big; : > '{}'; exec sleep 600", full.display());
    let options = AgentOptions::named("crowded").slots(2);
    let agent = cluster
        .add_agent(options.script("bad", bomb).script("honest", waiting(&pipe)))
        .await;
    let honest = cluster.create(honest()).await;
    let running = |task: &v1::Task| task.sessions[0].state() == v1::SessionState::Running;
    cluster.until(&honest, "runs", running).await;
    let bad = cluster.create(bad()).await;
    wait_for("the disk is full", async || full.exists().then_some(())).await;
    tokio::fs::write(&pipe, "go on\n").await.unwrap();
    let honest = cluster.ended(&honest).await;
    assert_eq!(is_right(&honest).attempts, 1);
    assert_eq!(cluster.ended(&bad).await.state(), v1::TaskState::Failed);
    nothing_is_left(&cluster, agent).await;
}

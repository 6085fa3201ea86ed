//! Cancelling leaves no process behind, however a program tried to hide its children.

use std::path::Path;

use kage_proto::v1;
use kage_tests::cluster::{AgentOptions, Cluster, SHELL};
use kage_tests::tasks::{Describe, session, task};
use kage_tests::wait::wait_for;

fn read_pid(path: &Path) -> Option<u32> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Whether a process exists and is not a zombie.
fn alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or_default().starts_with(" Z"))
}

#[tokio::test]
async fn cancelling_a_task_leaves_no_process_behind() {
    let mut cluster = Cluster::start().await;
    let pids = cluster.outside().join("pids");
    std::fs::create_dir(&pids).unwrap();
    // One child in its own session, one orphan, and one that ignores SIGTERM.
    let script = format!(
        "cat >/dev/null\n\
         cd '{}'\n\
         setsid sh -c 'echo $$ > detached.part; mv detached.part detached; exec sleep 1000' &\n\
         (setsid sh -c 'echo $$ > orphan.part; mv orphan.part orphan; exec sleep 1000' &) \n\
         sh -c 'trap \"\" TERM; echo $$ > stubborn.part; mv stubborn.part stubborn; while :; do sleep 1; done' &\n\
         echo $$ > main.part; mv main.part main\n\
         wait\n",
        pids.display()
    );
    cluster
        .add_agent(AgentOptions::named("agent").script("spread", script))
        .await;
    let id = cluster.create(task("spread").session("only", SHELL, "spread")).await;
    let names = ["main", "detached", "orphan", "stubborn"];
    let mut running = Vec::new();
    for name in names {
        let path = pids.join(name);
        running.push(wait_for(&format!("{name} runs"), async || read_pid(&path)).await);
    }
    assert!(running.iter().all(|pid| alive(*pid)), "{running:?}");

    let request = v1::CancelTaskRequest {
        request_id: "00000000000000000000000000000001".to_owned(),
        task_id: id.clone(),
    };
    cluster.client().tasks().cancel_task(request).await.unwrap();
    let ended = cluster.ended(&id).await;
    assert_eq!(ended.state(), v1::TaskState::Cancelled, "{ended:#?}");
    assert_eq!(session(&ended, "only").state(), v1::SessionState::Cancelled);
    wait_for("every process is gone", async || {
        (!running.iter().any(|pid| alive(*pid))).then_some(())
    })
    .await;
}

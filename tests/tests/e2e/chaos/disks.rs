//! Full disks: acknowledged data is not lost, affected commands say so, and everything continues
//! when there is space again.

use kage_proto::status::ApiError;
use kage_proto::v1;
use kage_tests::chaos::clients::Person;
use kage_tests::chaos::record::Record;
use kage_tests::cluster::{AgentOptions, Cluster, SHELL};
use kage_tests::faults::disk::SmallDisk;
use kage_tests::faults::may_mount;
use kage_tests::programs;
use kage_tests::tasks::{Describe, task};
use kage_tests::tier::Tier;
use kage_tests::wait::wait_for;

use super::{PATIENT, ends_right};

const LINES: usize = 40_000;

/// Prints a little, waits for the gate, and prints a megabyte.
fn script(gate: &std::path::Path) -> String {
    let gate = gate.display();
    format!(
        "cat >/dev/null; echo ready; until [ -e {gate} ]; do sleep 0.02; done; seq -f 'line %.0f of much output' {LINES}"
    )
}

fn printed() -> Vec<u8> {
    let lines = (1..=LINES).flat_map(|n| format!("line {n} of much output\n").into_bytes());
    b"ready\n".iter().copied().chain(lines).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_whose_disk_is_full_waits_and_loses_nothing() {
    if !may_mount() {
        programs::skip("an_agent_whose_disk_is_full_waits", "only root may mount");
        return;
    }
    let mut cluster = Cluster::start_with(PATIENT.programs()).await;
    let disk = SmallDisk::at(&cluster.agent_dir("small"), 16);
    let gate = cluster.root().join("gate");
    cluster
        .add_agent(AgentOptions::named("small").script("much", script(&gate)))
        .await;
    let record = Record::default();
    let person = Person::new("ann", cluster.client(), record.clone());
    let rounds = Tier::now().pick(1, 3, 30);
    for _ in 0..rounds {
        let _closed = std::fs::remove_file(&gate);
        let id = person
            .create(task("much").session("only", SHELL, "much"))
            .await
            .unwrap();
        let said = |task: &v1::Task| task.sessions[0].state() == v1::SessionState::Running;
        cluster.until(&id, "runs", said).await;
        let log = cluster.log("small").len();
        disk.fill();
        std::fs::write(&gate, "").unwrap();
        wait_for("the agent says that its disk is full", async || {
            cluster.log("small")[log..]
                .contains("No space left on device")
                .then_some(())
        })
        .await;
        let why = cluster
            .until(&id, "says why it waits", |task| !task.sessions[0].waiting.is_empty())
            .await;
        let why = &why.sessions[0].waiting;
        assert!(why.starts_with("small cannot go on: "), "{why}");
        disk.empty();
        person.watch(&id).await;
    }
    let broken = [("output cannot be written", true), ("outbox cannot be written", false)];
    let end = ends_right(&cluster, &record, &broken).await;
    for task in &end.tasks {
        assert_eq!(task.task.state(), v1::TaskState::Succeeded, "{:#?}", task.task);
        assert_eq!(task.task.sessions[0].attempts, 1);
        let bytes = task.output.values().next().unwrap();
        assert!(*bytes == printed(), "{} bytes", bytes.len());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_whose_disk_is_full_says_so_and_goes_on_when_it_is_not() {
    if !may_mount() {
        programs::skip("a_coordinator_whose_disk_is_full_says_so", "only root may mount");
        return;
    }
    let mut cluster = Cluster::prepare(PATIENT.programs());
    let disk = SmallDisk::at(&cluster.data_dir(), 48);
    cluster.up().await;
    let gate = cluster.root().join("gate");
    cluster
        .add_agent(AgentOptions::named("agent").script("much", script(&gate)))
        .await;
    let record = Record::default();
    let person = Person::new("ann", cluster.client(), record.clone());
    let rounds = Tier::now().pick(1, 3, 20);
    for round in 0..rounds {
        let _closed = std::fs::remove_file(&gate);
        let id = person
            .create(task("much").session("only", SHELL, "much"))
            .await
            .unwrap();
        let running = |task: &v1::Task| task.sessions[0].state() == v1::SessionState::Running;
        cluster.until(&id, "runs", running).await;
        disk.fill();
        // The program prints into a coordinator that can keep nothing.
        std::fs::write(&gate, "").unwrap();
        // Data that fits into the database's log may still be accepted.
        let mut refused = 0;
        let spec = |n: usize| v1::TaskSpec {
            prompt: format!("{} {round} {n}", "much ".repeat(12_000)),
            ..task("").session("only", SHELL, "much")
        };
        let request = |n: usize| format!("full-{round}-{n}");
        let told = wait_for("a new task is refused", async || {
            match person.try_create(&request(refused), spec(refused)).await {
                Err(ApiError::ResourceExhausted { message, .. }) => Some(message),
                // The commit found no room: its outcome is not known, its reason is.
                Err(ApiError::Unavailable { message, .. }) if message.contains("disk is full") => Some(message),
                // Nothing is known: the same again.
                Err(_) => None,
                Ok(_) => {
                    refused += 1;
                    None
                }
            }
        })
        .await;
        assert!(told.contains("disk is full"), "{told}");
        let read = cluster
            .client()
            .tasks()
            .get_task(v1::GetTaskRequest {
                task_id: id.clone(),
                view: v1::TaskView::Full.into(),
            })
            .await;
        assert!(read.is_ok(), "what is there can be read: {read:?}");
        disk.empty();
        person.watch(&id).await;
        // The same request, when there is room.
        wait_for("the refused task is created", async || {
            person.try_create(&request(refused), spec(refused)).await.ok()
        })
        .await;
        // They need the gate, and the slots that the next round needs.
        cluster.settled().await;
    }
    let broken = [
        ("No space left on device", false),
        ("disk is full", true),
        ("database error", false),
        ("the store failed", false),
        ("the disk failed", false),
        ("cannot end attempts", false),
        ("commit failed", false),
    ];
    let end = ends_right(&cluster, &record, &broken).await;
    for task in &end.tasks {
        assert_eq!(task.task.state(), v1::TaskState::Succeeded, "{:#?}", task.task);
        let last = task.task.sessions[0].attempts;
        let bytes = task
            .output
            .iter()
            .find(|(key, _)| key.attempt == last)
            .map(|(_, bytes)| bytes);
        assert!(
            bytes.is_some_and(|bytes| *bytes == printed()),
            "{:?} bytes",
            bytes.map(Vec::len)
        );
    }
}

//! Links that are cut for so long that agents stop their programs: before the lease has ended, and
//! after the work was given to another agent.

use std::path::{Path, PathBuf};
use std::time::Duration;

use kage_proto::v1;
use kage_tests::chaos::Waits;
use kage_tests::chaos::clients::Person;
use kage_tests::chaos::record::Record;
use kage_tests::cluster::{AgentOptions, Cluster, SHELL};
use kage_tests::faults::link::{Link, Weather};
use kage_tests::history::FinalTask;
use kage_tests::process::processes_of;
use kage_tests::tasks::{Describe, task};
use kage_tests::wait::wait_for;
use tokio::task::JoinHandle;

use super::ends_right;

/// Silence and disconnects lose no agent: only leases end.
const LEASES_ONLY: Waits = Waits {
    heartbeat: Duration::from_millis(250),
    lease_ttl: Duration::from_secs(5),
    lost_after: Duration::from_secs(120),
    grace: Duration::from_secs(120),
};

/// Prints lines until the gate exists, then a last one; also writes all of it to `copy`.
fn until_gate(gate: &Path, copy: &Path) -> String {
    format!(
        "cat >/dev/null\ni=0\nuntil [ -e '{0}' ]; do i=$((i+1)); echo \"line $i\" | tee -a '{1}'; sleep 0.02; done\n\
         echo 'the end' | tee -a '{1}'\n",
        gate.display(),
        copy.display()
    )
}

/// The states of the processes that run the script below a folder, from the system.
fn states(home: &Path) -> Vec<char> {
    let script = b"lines.sh";
    let runs = |pid: &u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.windows(script.len()).any(|part| part == script)
    };
    let state = |pid| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name before it may hold anything but ends with the last bracket.
        stat.rsplit_once(')')?.1.trim_start().chars().next()
    };
    processes_of(home).into_iter().filter(runs).filter_map(state).collect()
}

async fn frozen(home: &Path) {
    wait_for("the script is stopped", async || {
        let states = states(home);
        (!states.is_empty() && states.iter().all(|state| *state == 'T')).then_some(())
    })
    .await;
}

/// The only session of the only task, which prints until the gate exists, on an agent whose link
/// can be broken.
struct Printing {
    link: Link,
    gate: PathBuf,
    /// A copy of the output of the agent's program.
    copy: PathBuf,
    task: String,
    record: Record,
    watching: JoinHandle<v1::Task>,
}

impl Printing {
    /// Begins it on the agent `far` and waits until something was printed.
    async fn far(cluster: &mut Cluster) -> Self {
        let link = Link::to(cluster.url()).await;
        let (gate, copy) = (cluster.root().join("gate"), cluster.outside().join("copy-far"));
        let mut far = AgentOptions::named("far").script("lines", until_gate(&gate, &copy));
        far.coordinator_url = Some(link.url());
        cluster.add_agent(far).await;
        let record = Record::default();
        let person = Person::new("ann", cluster.client(), record.clone());
        let spec = task("print").session("only", SHELL, "lines");
        let task = person.create(spec).await.unwrap();
        let watching = tokio::spawn({
            let task = task.clone();
            async move { person.watch(&task).await }
        });
        wait_for("it prints", async || (size(&copy) > 0).then_some(())).await;
        Self {
            link,
            gate,
            copy,
            task,
            record,
            watching,
        }
    }

    /// Opens the gate, and checks the end: success, after so many attempts.
    async fn end(self, cluster: &Cluster, attempts: u32) -> FinalTask {
        std::fs::write(&self.gate, "").unwrap();
        self.watching.await.unwrap();
        let mut end = ends_right(cluster, &self.record, &[]).await;
        let only = end.tasks.pop().expect("one task");
        assert_eq!(end.tasks.len(), 0, "and no other: {:#?}", end.tasks);
        assert_eq!(only.task.state(), v1::TaskState::Succeeded, "{:#?}", only.task);
        assert_eq!(only.task.sessions[0].attempts, attempts, "{:#?}", only.task);
        only
    }
}

fn size(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |meta| meta.len())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_was_frozen_goes_on_when_its_lease_is_granted_again() {
    let waits = Waits {
        // A fifth of it is left when the script is stopped.
        lease_ttl: Duration::from_secs(20),
        ..LEASES_ONLY
    };
    let mut cluster = Cluster::start_with(waits.programs()).await;
    let printing = Printing::far(&mut cluster).await;
    let copy = printing.copy.clone();

    printing.link.set(Weather::Silent);
    frozen(&cluster.agent_dir("far")).await;
    let then = size(&copy);
    printing.link.set(Weather::Fair);
    wait_for("it goes on", async || (size(&copy) > then).then_some(())).await;

    let only = printing.end(&cluster, 1).await;
    let printed = std::fs::read(&copy).unwrap();
    assert_eq!(only.output.values().next(), Some(&printed), "all of it, once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_whose_lease_was_given_away_is_stopped_and_not_believed() {
    let mut cluster = Cluster::start_with(LEASES_ONLY.programs()).await;
    let printing = Printing::far(&mut cluster).await;
    let (far_copy, near_copy) = (printing.copy.clone(), cluster.outside().join("copy-near"));
    let near = AgentOptions::named("near").script("lines", until_gate(&printing.gate, &near_copy));
    cluster.add_agent(near).await;

    printing.link.set(Weather::Cut);
    let home = cluster.agent_dir("far");
    frozen(&home).await;
    let frozen_at = size(&far_copy);
    let elsewhere = |task: &v1::Task| {
        let session = &task.sessions[0];
        session.state() == v1::SessionState::Running && session.agent == "near"
    };
    cluster
        .until(&printing.task, "runs on the other agent", elsewhere)
        .await;
    printing.link.set(Weather::Fair);
    wait_for(
        "what the first one ran is ended, and its output forgotten",
        async || {
            let kept = std::fs::read_dir(home.join("output")).ok()?.count();
            (states(&home).is_empty() && kept == 0).then_some(())
        },
    )
    .await;
    assert_eq!(size(&far_copy), frozen_at, "it did not go on for a moment");

    let only = printing.end(&cluster, 2).await;
    let of = |attempt| only.output.iter().find(|(key, _)| key.attempt == attempt);
    let (_, accepted) = of(2).expect("the second attempt has output");
    assert_eq!(*accepted, std::fs::read(&near_copy).unwrap());
    // It printed for seconds after the link was cut, and nothing of that was accepted.
    let printed = std::fs::read(&far_copy).unwrap();
    let taken = of(1).map_or(&[][..], |(_, bytes)| bytes.as_slice());
    assert!(printed.starts_with(taken) && taken.len() < printed.len());
}

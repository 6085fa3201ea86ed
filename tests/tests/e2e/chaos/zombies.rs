//! Agents that are stopped until other agents got their work, and then continue: their reports are
//! refused, and their programs are ended.

use std::collections::BTreeSet;
use std::time::Duration;

use kage_proto::v1;
use kage_tests::chaos::clients::Person;
use kage_tests::chaos::record::Record;
use kage_tests::chaos::scripted_agent::{SCRIPTED_AGENT, ScriptedAgent};
use kage_tests::cluster::{AgentOptions, Cluster, SHELL};
use kage_tests::history::What;
use kage_tests::process::processes_of;
use kage_tests::tasks::{Describe, session, task};
use kage_tests::tier::Tier;
use kage_tests::wait::wait_for;
use rustix::process::Signal;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{IMPATIENT, ends_right, progress};

/// Agents in all; half of them are stopped in each round.
const AGENTS: usize = 10;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_wakes_after_its_lease_was_given_away_changes_nothing() {
    let zombies = Tier::now().pick(5, 50, 500);
    let mut cluster = Cluster::start_with(IMPATIENT.programs()).await;
    let gates = cluster.root().join("gates");
    std::fs::create_dir(&gates).unwrap();
    // The gate of a program has the name that its prompt ends with.
    let script = format!(
        "gate={}/$(grep -o 'wait for [0-9a-f]*' | tail -n 1 | cut -c 10-)\necho before\n\
         until [ -e $gate ]; do sleep 0.02; done\necho after\n",
        gates.display()
    );
    for n in 0..AGENTS {
        let options = AgentOptions::named(&format!("agent-{n}")).slots(AGENTS as u32 / 2);
        cluster.add_agent(options.script("wait", script.as_str())).await;
    }
    let record = Record::default();
    let mut woken = 0;
    let mut round = 0;
    while woken < zombies {
        round += 1;
        woken += zombie_round(&cluster, &record, round).await;
    }
    let end = ends_right(&cluster, &record, &[]).await;
    for task in &end.tasks {
        let only = session(&task.task, "only");
        assert_eq!(task.task.state(), v1::TaskState::Succeeded, "{:#?}", task.task);
        let last = task.output.iter().find(|(key, _)| key.attempt == only.attempts);
        assert_eq!(last.map(|(_, bytes)| bytes.as_slice()), Some(&b"before\nafter\n"[..]));
    }
    eprintln!("{woken} zombies in {round} rounds");
}

/// Stops half of the working agents, waits until others have their work, and wakes them.
async fn zombie_round(cluster: &Cluster, record: &Record, round: usize) -> usize {
    let person = Person::new("ann", cluster.client(), record.clone());
    let mut watching = JoinSet::new();
    let mut tasks = Vec::new();
    for _ in 0..AGENTS {
        let id = person
            .create(task("wait for").session("only", SHELL, "wait"))
            .await
            .unwrap();
        tasks.push(id.clone());
        let person = person.clone();
        watching.spawn(async move { person.watch(&id).await });
    }
    let mut holders = BTreeSet::new();
    for id in &tasks {
        let running = |task: &v1::Task| task.sessions[0].state() == v1::SessionState::Running;
        let task = cluster.until(id, "runs", running).await;
        holders.insert(task.sessions[0].agent.clone());
    }
    let stopped: Vec<String> = holders.into_iter().take(AGENTS / 2).collect();
    for name in &stopped {
        cluster.signal_agent(name, Signal::STOP);
    }
    for id in &tasks {
        let elsewhere = |task: &v1::Task| {
            let session = &task.sessions[0];
            session.state() == v1::SessionState::Running && !stopped.contains(&session.agent)
        };
        cluster.until(id, "runs on an agent that is awake", elsewhere).await;
    }
    let open = || {
        for entry in record.history().entries {
            if let What::Called(_, kage_tests::history::Call::Create { prompt, .. }) = entry.what {
                let gate = prompt.rsplit(' ').next().unwrap_or_default();
                std::fs::write(cluster.root().join("gates").join(gate), "").unwrap();
            }
        }
    };
    // In every other round the stopped agent's program ends before it wakes, so it has a result to
    // report; in the others the program still runs then, and must not continue.
    if round.is_multiple_of(2) {
        open();
    }
    for name in &stopped {
        cluster.signal_agent(name, Signal::CONT);
    }
    for name in &stopped {
        let home = cluster.agent_dir(name);
        wait_for(
            &format!("what {name} ran is ended, and its output forgotten"),
            async || {
                let kept = std::fs::read_dir(home.join("output")).ok()?.count();
                let script = b"wait.sh";
                let working = processes_of(&home).into_iter().any(|pid| {
                    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                    line.windows(script.len()).any(|part| part == script)
                });
                (!working && kept == 0).then_some(())
            },
        )
        .await;
    }
    open();
    for task in watching.join_all().await {
        assert_eq!(task.state(), v1::TaskState::Succeeded, "{task:#?}");
    }
    stopped.len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_of_a_writer_that_slept_are_refused() {
    let naps = Tier::now().pick(5, 40, 1000);
    let cluster = Cluster::start_with(IMPATIENT.programs()).await;
    let record = Record::default();
    let (enough, home) = (CancellationToken::new(), CancellationToken::new());
    let mut people = JoinSet::new();
    for name in ["ann", "bob", "cem", "dan"] {
        let person = Person::new(name, cluster.client(), record.clone());
        let enough = enough.clone();
        let spec = |_| {
            task("invent")
                .session("only", SCRIPTED_AGENT, "")
                .session("too", SCRIPTED_AGENT, "")
        };
        people.spawn(async move { person.work(spec, enough).await });
    }
    let mut scripted_agents = JoinSet::new();
    let mut beds = Vec::new();
    for n in 0..4 {
        let (bed, asleep) = watch::channel(false);
        let agent = ScriptedAgent::new(&format!("scripted-{n}"), cluster.client(), record.clone());
        scripted_agents.spawn(agent.run(asleep, home.clone()));
        beds.push(bed);
    }
    for nap in 0..naps {
        progress(&record, 30, Duration::from_secs(2)).await;
        let bed = &beds[nap % beds.len()];
        bed.send_replace(true);
        // Longer than its silence is borne, most of the time.
        tokio::time::sleep(Duration::from_millis(700 + rand::random::<u64>() % 800)).await;
        bed.send_replace(false);
    }
    enough.cancel();
    let tasks = people.join_all().await.concat();
    home.cancel();
    scripted_agents.join_all().await;
    let end = ends_right(&cluster, &record, &[]).await;
    for task in &end.tasks {
        assert_eq!(task.task.state(), v1::TaskState::Succeeded, "{:#?}", task.task);
    }
    let refused = record
        .history()
        .entries
        .iter()
        .filter(|entry| matches!(entry.what, What::Rejected(_)))
        .count();
    assert!(refused > 0, "somebody woke too late");
    eprintln!("{naps} naps, {refused} attempts refused, {} tasks", tasks.len());
}

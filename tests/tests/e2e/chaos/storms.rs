//! Rounds of many faults: in each, some of coordinator and agents are killed (SIGKILL) or stopped
//! (SIGSTOP), at random and under load, and started or continued. At the end no byte of output, no
//! event and no result is lost or repeated, and no program is left. A seed decides the faults;
//! `KAGE_SEED=N` repeats them, but not their timing.

use std::time::Duration;

use kage_proto::v1;
use kage_tests::chaos::record::Record;
use kage_tests::cluster::{AgentOptions, Cluster, SHELL};
use kage_tests::tasks::{Describe, task};
use kage_tests::tier::Tier;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use rustix::process::Signal;

use super::kills::{Load, printed, printed_whole};
use super::{PATIENT, ends_right, progress};

const AGENTS: [&str; 3] = ["one", "two", "three"];

/// Prints as `printed` describes, and leaves a program in its own process group.
fn agent(name: &str) -> AgentOptions {
    let lines = printed().iter().filter(|byte| **byte == b'\n').count();
    AgentOptions::named(name)
        .slots(4)
        .script("print", format!("cat >/dev/null; setsid sleep 3600 & seq {lines}"))
}

/// The victims of a round.
#[derive(Debug, Clone, Copy)]
enum Victims {
    Coordinator,
    OneAgent,
    AllAgents,
    Everything,
}

/// Kills the victims, and starts them again.
async fn kill(cluster: &mut Cluster, victims: Victims, some: &str) {
    let agents: &[&str] = match victims {
        Victims::Coordinator => &[],
        Victims::OneAgent => &[some],
        Victims::AllAgents | Victims::Everything => &AGENTS,
    };
    let coordinator = matches!(victims, Victims::Coordinator | Victims::Everything);
    if coordinator {
        cluster.kill_coordinator();
    }
    let killed: Vec<_> = agents.iter().map(|name| cluster.kill_agent(name)).collect();
    if coordinator {
        cluster.up().await;
    }
    for launch in killed {
        cluster.revive_agent(&launch).await;
    }
}

/// Stops the victims until the others have made some progress, and continues them.
async fn freeze(cluster: &Cluster, record: &Record, victims: Victims, some: &str) {
    let signal = |signal: Signal| {
        if matches!(victims, Victims::Coordinator | Victims::Everything) {
            cluster.signal_coordinator(signal);
        }
        match victims {
            Victims::Coordinator => {}
            Victims::OneAgent => cluster.signal_agent(some, signal),
            Victims::AllAgents | Victims::Everything => {
                AGENTS.iter().for_each(|name| cluster.signal_agent(name, signal));
            }
        }
    };
    signal(Signal::STOP);
    progress(record, 30, Duration::from_millis(400)).await;
    signal(Signal::CONT);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rounds_of_kills_and_stops_of_all_at_random_lose_nothing() {
    let rounds = Tier::now().pick(5, 30, 230);
    let seed = match std::env::var("KAGE_SEED") {
        Ok(seed) => seed.parse().expect("KAGE_SEED is a number"),
        Err(_) => rand::random::<u32>().into(),
    };
    eprintln!("KAGE_SEED={seed}");
    let mut dice = StdRng::seed_from_u64(seed);
    let mut cluster = Cluster::start_with(PATIENT.programs()).await;
    for name in AGENTS {
        cluster.add_agent(agent(name)).await;
    }
    let record = Record::default();
    let load = Load::start_with(&cluster, &record, &["ann", "bob", "cem"], |_| {
        task("print").session("real", SHELL, "print").session(
            "made",
            kage_tests::chaos::scripted_agent::SCRIPTED_AGENT,
            "",
        )
    });
    let all = [
        Victims::Coordinator,
        Victims::OneAgent,
        Victims::AllAgents,
        Victims::Everything,
    ];
    for round in 0..rounds {
        progress(&record, dice.random_range(20..150), Duration::from_secs(3)).await;
        let victims = *all.choose(&mut dice).expect("there are some");
        let some = *AGENTS.choose(&mut dice).expect("there are some");
        let stop = dice.random_ratio(1, 4);
        eprintln!(
            "round {round}: {} {victims:?} ({some})",
            if stop { "stop" } else { "kill" }
        );
        if stop {
            freeze(&cluster, &record, victims, some).await;
        } else {
            kill(&mut cluster, victims, some).await;
        }
    }
    let tasks = load.finish().await;
    let end = ends_right(&cluster, &record, &[]).await;
    printed_whole(&end);
    assert!(tasks.len() > rounds / 2, "there was load: {} tasks", tasks.len());
    let attempts: u32 = end
        .tasks
        .iter()
        .flat_map(|task| &task.task.sessions)
        .map(|it| it.attempts)
        .sum();
    // A session whose agents are killed again and again is given up, because it may be the cause.
    let mut given_up = 0;
    for task in &end.tasks {
        for session in &task.task.sessions {
            if let Some(failure) = &session.failure {
                assert_eq!(failure.kind(), v1::FailureKind::AgentLost, "{session:#?}");
                given_up += 1;
            }
        }
    }
    assert!(
        given_up * 10 <= end.tasks.len(),
        "{given_up} of {} tasks",
        end.tasks.len()
    );
    eprintln!(
        "{rounds} rounds, {} tasks, {attempts} attempts, {given_up} given up, {} lines of history",
        end.tasks.len(),
        record.len()
    );
}

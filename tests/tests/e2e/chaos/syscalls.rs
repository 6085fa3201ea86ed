//! Failing system calls of the coordinator: no acknowledgement without durability, and a restarted
//! coordinator has all acknowledged data.

use std::time::Duration;

use kage_tests::chaos::record::Record;
use kage_tests::cluster::Cluster;
use kage_tests::faults::syscalls::{Failing, injected, may_inject};
use kage_tests::programs;
use kage_tests::tier::Tier;
use kage_tests::wait::wait_for;

use super::kills::{Load, printing};
use super::{PATIENT, ends_right, progress};

/// The calls that make data durable, and those that write it. (Not `write`, with which threads wake
/// each other, too.)
const CALLS: [(&str, &str); 3] = [("fdatasync", "EIO"), ("pwrite64", "EIO"), ("pwrite64", "ENOSPC")];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failing_calls_lose_nothing_that_was_acknowledged() {
    if !may_inject() {
        programs::skip("failing_calls_lose_nothing_that_was_acknowledged", "strace is missing");
        return;
    }
    let rounds = Tier::now().pick(1, CALLS.len(), 60);
    for round in 0..rounds {
        let (call, error) = CALLS[round % CALLS.len()];
        let failing = Failing {
            call,
            error,
            // After the start, which would fail otherwise.
            first: 60 + rand::random::<u32>() % 20,
            every: 5 + rand::random::<u32>() % 20,
        };
        // The first start creates the database, with many writes.
        let mut cluster = Cluster::start_with(PATIENT.programs()).await;
        cluster.kill_coordinator();
        let log = cluster.root().join("strace");
        cluster.set_programs(failing.coordinator(&PATIENT.programs(), &log));
        cluster.up().await;
        cluster.add_agent(printing("agent")).await;
        let record = Record::default();
        let load = Load::start(&cluster, &record, &["ann", "bob"]);
        wait_for("a call fails", async || {
            injected(&log).ok().filter(|failed| *failed > 0)
        })
        .await;
        progress(&record, 600, Duration::from_secs(4)).await;
        let ended = cluster.coordinator_ended();
        assert!(ended.is_none(), "{failing:?} ends nobody: {ended:?}");
        cluster.kill_coordinator();
        cluster.set_programs(PATIENT.programs());
        cluster.up().await;
        let failed = injected(&log).unwrap();
        let tasks = load.finish().await;
        // The failing call decides who reports it.
        let broken = [
            ("error=", false),
            ("os error 5", false),
            ("os error 28", false),
            ("commit", false),
            ("disk", false),
        ];
        ends_right(&cluster, &record, &broken).await;
        eprintln!(
            "{failing:?}: {failed} failed, {} tasks, {} lines of history",
            tasks.len(),
            record.len()
        );
    }
}

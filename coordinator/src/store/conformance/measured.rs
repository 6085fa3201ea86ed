//! What the cache of recent tasks saves, measured: the same short sessions with it and without it,
//! with what a dispatcher and a watcher ask about them. In an optimised build:
//! `cargo test --release -p kage-coordinator --lib recent_tasks -- --ignored --nocapture`.

use std::time::Instant;

use futures_util::future::join_all;

use super::fixture::{activity, append, at, attempt_id, claimed, create, spec, start, task_id, two_agents};
use super::followed::Followed as _;
use super::{Opened, forgetful, run, sqlite};
use crate::store::{Appended, Start, Store, Watched};

const TASKS: u32 = 1000;
/// Tasks at the same time.
const TOGETHER: u32 = 50;

/// A task's life, and everything that is asked about it meanwhile.
async fn live(store: &Store, n: u128) {
    let queued = store.followed(create(n, spec(1, None), at(1))).await.queued;
    let job = queued.into_iter().find(|job| job.task == task_id(n)).unwrap();
    store.work(job.task, job.job).await.unwrap().unwrap();
    let begun = store.apply(start(&job, n, 1, 1, at(2))).await.unwrap();
    assert_eq!(begun, Start::Started);
    let mut after = 0;
    for events in [vec![activity(1)], vec![activity(2), activity(3)], vec![claimed(4)]] {
        store.attempt(attempt_id(n)).await.unwrap().unwrap();
        let appended = store.apply(append(n, 1, events)).await.unwrap();
        assert!(matches!(appended, Appended::Acked { .. }));
        let watched = Watched {
            task: task_id(n),
            after,
            limit: 100,
            attempts: true,
        };
        after = store.news(watched).await.unwrap().unwrap().view.last_event;
    }
}

/// Clock ticks of processor time that this process has used, of which a second has 100.
fn ticks() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[test]
#[ignore = "a measurement, for people: it asserts nothing"]
fn recent_tasks_in_memory_and_without() {
    for (name, open) in [
        ("with", sqlite as fn() -> Opened),
        ("without", forgetful),
        ("with", sqlite),
        ("without", forgetful),
    ] {
        let opened = open();
        let (begun, before) = (Instant::now(), ticks());
        run(async {
            two_agents(&opened.store).await;
            for first in (0..TASKS).step_by(TOGETHER as usize) {
                let tasks = (first..first + TOGETHER).map(|n| live(&opened.store, u128::from(n) + 1));
                join_all(tasks).await;
            }
        });
        let cpu = (ticks() - before) * 10_000 / u64::from(TASKS);
        println!(
            "{name} recent tasks: {cpu} us of processor time a session, {:?} in all",
            begun.elapsed()
        );
    }
}

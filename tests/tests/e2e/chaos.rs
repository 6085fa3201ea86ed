//! Systems that are killed, stopped, cut off and filled up under load, again and again. Each
//! records what all outside observers saw, and the checker of histories finds violations. Counts
//! scale with the tier of `scripts/test`.

use std::time::Duration;

use kage_tests::chaos::Waits;
use kage_tests::chaos::record::Record;
use kage_tests::cluster::Cluster;
use kage_tests::history::{Final, check};

mod disks;
mod kills;
mod leases;
mod links;
mod neighbours;
mod power;
mod storms;
mod syscalls;
mod zombies;

/// Patient enough that a restart is only a long disconnect.
const PATIENT: Waits = Waits {
    heartbeat: Duration::from_millis(500),
    lease_ttl: Duration::from_secs(60),
    lost_after: Duration::from_secs(30),
    grace: Duration::from_secs(30),
};

/// So impatient that an agent loses its attempts after a moment of silence.
const IMPATIENT: Waits = Waits {
    heartbeat: Duration::from_millis(150),
    lease_ttl: Duration::from_secs(30),
    lost_after: Duration::from_millis(900),
    grace: Duration::from_millis(900),
};

/// Asserts that the history and the final state have no violations.
fn right(record: &Record, end: &Final) {
    let history = record.history();
    let found = check(&history, end);
    if found.is_empty() {
        return;
    }
    let path = std::env::temp_dir().join(format!("kage-history-{:08x}", rand::random::<u32>()));
    // For later inspection; the violations count with or without the file.
    std::fs::write(&path, format!("{found:#?}\n{history:#?}\n{end:#?}\n")).ok();
    let (count, few) = (found.len(), &found[..found.len().min(20)]);
    panic!(
        "{count} violations, all of them in {}, the first: {few:#?}",
        path.display()
    );
}

/// Waits until so many more observations were made, or for so long, whichever comes first.
async fn progress(record: &Record, lines: usize, most: Duration) {
    let before = record.len();
    let grown = async {
        while record.len() < before + lines {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    // A system that is being broken may see nothing for a while.
    tokio::time::timeout(most, grown).await.ok();
}

/// Reads the end, after everything has ended, and asserts that all is right.
async fn ends_right(cluster: &Cluster, record: &Record, broken: &[(&str, bool)]) -> Final {
    cluster.settled().await;
    let end = cluster.end(broken).await;
    right(record, &end);
    end
}

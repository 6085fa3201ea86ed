//! Power cuts: the disk of the coordinator is copied as a power cut would leave it, under load, and
//! a coordinator on the copy has all acknowledged data.

use std::path::Path;
use std::time::Duration;

use kage_core::id::Digest;
use kage_tests::blobs;
use kage_tests::chaos::end;
use kage_tests::chaos::record::Record;
use kage_tests::cluster::Cluster;
use kage_tests::faults::image::{DiskImage, is_whole};
use kage_tests::faults::may_mount;
use kage_tests::history::{Answer, Call, Final, Listed};
use kage_tests::programs;
use kage_tests::repo::Repo;
use kage_tests::tier::Tier;
use rustix::process::Signal;

use super::kills::{Load, printing};
use super::{PATIENT, progress, right};

/// Size of the disk, in megabytes.
const DISK: u64 = 96;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_a_power_cut() {
    if !may_mount() {
        programs::skip("what_was_acknowledged_survives_a_power_cut", "only root may mount");
        return;
    }
    let cuts = Tier::now().pick(2, 20, 200);
    let mut cluster = Cluster::prepare(PATIENT.programs());
    let image = DiskImage::format(&cluster.root().join("disk"), DISK, &cluster.data_dir());
    cluster.up().await;
    cluster.add_agent(printing("agent")).await;
    let record = Record::default();
    let load = Load::start(&cluster, &record, &["ann"]);
    let repo = Repo::sample(&cluster.repository_dir("sample"));
    let mut keeper = Keeper {
        record: record.clone(),
        stored: Vec::new(),
    };
    for cut in 0..cuts {
        let lines = 20 + rand::random::<u8>() as usize;
        progress(&record, lines, Duration::from_secs(2)).await;
        keeper.store(&cluster, &repo, cut).await;
        cluster.signal_coordinator(Signal::STOP);
        // Everything acknowledged so far must be in a copy made from now on.
        let told = record.history();
        let copy = cluster.root().join("copy");
        image.cut(&copy);
        let end = after(&copy, &keeper.stored).await;
        right(&Record::from(told), &end);
        // It was stopped all the time, or each look at a copy would find more to look at.
        cluster.signal_coordinator(Signal::CONT);
    }
    load.finish().await;
    let after = cluster.end(&[]).await;
    eprintln!(
        "{cuts} power cuts, {} tasks, {} lines of history",
        after.tasks.len(),
        record.len()
    );
}

/// A client that stores blobs and commits.
struct Keeper {
    record: Record,
    stored: Vec<Stored>,
}

enum Stored {
    Blob(Digest),
    Commit(String),
}

impl Stored {
    fn name(&self) -> String {
        match self {
            Self::Blob(digest) => digest.to_string(),
            Self::Commit(commit) => commit.clone(),
        }
    }

    fn commit(&self) -> Option<&str> {
        match self {
            Self::Blob(_) => None,
            Self::Commit(commit) => Some(commit),
        }
    }
}

impl Keeper {
    async fn store(&mut self, cluster: &Cluster, repo: &Repo, n: usize) {
        let bytes = format!("blob {n} {}", rand::random::<u128>()).into_bytes();
        let digest = Digest::of(&bytes);
        self.acknowledged(
            Stored::Blob(digest.clone()),
            blobs::put(cluster, &digest, bytes.into()).await.is_ok(),
        );
        repo.write("add.sh", &format!("# change {n}\n"));
        let commit = repo.commit("a change");
        cluster.push_base(repo);
        self.acknowledged(Stored::Commit(commit), true);
    }

    fn acknowledged(&mut self, stored: Stored, done: bool) {
        let op = self.record.called("keeper", Call::Store { name: stored.name() });
        assert!(done, "there is room for {}", stored.name());
        self.record.answered("keeper", op, Answer::Done(String::new()));
        self.stored.push(stored);
    }
}

/// A coordinator's data after the power returned.
async fn after(copy: &Path, stored: &[Stored]) -> Final {
    let mut cluster = Cluster::prepare(PATIENT.programs());
    let end = {
        let _disk = DiskImage::mount(copy, &cluster.data_dir());
        integrity(&cluster.data_dir().join("kage.db"));
        cluster.up().await;
        let commits: Vec<&str> = stored.iter().filter_map(Stored::commit).collect();
        let lost = fetch(&cluster, &commits).err();
        let mut listed = Vec::new();
        for one in stored {
            let missing = match one {
                Stored::Blob(digest) => blobs::get(&cluster, digest).await.err().map(|error| error.to_string()),
                Stored::Commit(_) => lost.clone(),
            };
            listed.push(Listed {
                name: one.name(),
                missing,
            });
        }
        let end = Final {
            tasks: end::tasks(&cluster.client()).await,
            listed,
            ..Final::default()
        };
        cluster.kill_coordinator();
        end
    };
    assert!(is_whole(copy), "the file system is whole");
    end
}

/// Fetches commits together, with everything that they reach.
fn fetch(cluster: &Cluster, commits: &[&str]) -> Result<String, String> {
    let scratch = Repo::empty(&cluster.repository_dir("scratch"));
    let configuration = cluster.git_configuration();
    let configuration: Vec<(&str, &str)> = configuration.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let url = cluster.git_url();
    let names: Vec<String> = commits
        .iter()
        .map(|commit| format!("refs/kage/bases/{commit}"))
        .collect();
    let fetch: Vec<&str> = ["fetch", "--quiet", &url]
        .into_iter()
        .chain(names.iter().map(String::as_str))
        .collect();
    scratch.try_git(&fetch, &configuration)?;
    let walk: Vec<&str> = ["rev-list", "--objects", "--quiet"]
        .into_iter()
        .chain(commits.iter().copied())
        .collect();
    scratch.try_git(&walk, &[])
}

fn integrity(database: &Path) {
    let connection = rusqlite::Connection::open(database).unwrap();
    let said: String = connection
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .unwrap();
    assert_eq!(said, "ok");
}

//! `checkpoint`: from edited files to a commit that survives a power cut, beside
//! `git add -A && git commit` (which does not wait for the disk) on the same files; and to the
//! reply that a coordinator has stored it, beside the same with `git push` to a folder.

use std::time::Instant;

use crate::bench::figure::Figure;
use crate::bench::fleet;
use crate::bench::held::Held;
use crate::bench::tree::{Twins, median_ms};
use crate::cluster::Cluster;

/// How many files are edited, how often, and the case's name.
struct Case {
    files: usize,
    rounds: usize,
    name: &'static str,
    acknowledged: &'static str,
}

const CASES: &[Case] = &[
    Case {
        files: 1,
        rounds: 21,
        name: "1 file",
        acknowledged: "1 file, until acknowledged",
    },
    Case {
        files: 10,
        rounds: 21,
        name: "10 files",
        acknowledged: "10 files, until acknowledged",
    },
    Case {
        files: 1000,
        rounds: 7,
        name: "1000 files",
        acknowledged: "1000 files, until acknowledged",
    },
];

#[derive(Debug, Clone, Copy)]
pub struct Size {
    pub files: usize,
    /// The most rounds of any case.
    pub rounds: usize,
}

impl Default for Size {
    fn default() -> Self {
        Self {
            files: 25_000,
            rounds: 21,
        }
    }
}

/// Measures; fails when the compared ways see different files.
pub async fn run(size: Size) -> anyhow::Result<Vec<Figure>> {
    run_on(size, fleet::coordinator().await?).await
}

async fn run_on(size: Size, cluster: Cluster) -> anyhow::Result<Vec<Figure>> {
    let mut twins = Twins::generate(size.files, 1).await?;
    let mut last = twins.worktree.checkpoint(&twins.base, "baseline").await?.commit;
    let mut held = Held::start(cluster, &twins.plain).await?;
    let remote = twins.plain.path().with_file_name("remote.git");
    let remote = remote.to_string_lossy();
    twins.plain.git(&["init", "--quiet", "--bare", &remote]);
    twins.plain.git(&["push", "--quiet", &remote, "HEAD:refs/heads/main"]);
    let mut figures = Vec::new();
    for case in CASES {
        let (mut ours, mut plain) = (Vec::new(), Vec::new());
        let (mut acknowledged, mut pushed) = (Vec::new(), Vec::new());
        let mut stored = String::new();
        // One extra round: the first of a kind fills caches and does not count. The order
        // alternates.
        for round in 0..=size.rounds.min(case.rounds) {
            let edit = twins.edit(case.files);
            for turn in 0..3 {
                match (round + turn) % 3 {
                    0 => {
                        twins.write(twins.worktree.path(), &edit)?;
                        let start = Instant::now();
                        last = twins.worktree.checkpoint(&last, "bench").await?.commit;
                        ours.push(start.elapsed());
                    }
                    1 => {
                        twins.write(held.worktree(), &edit)?;
                        let start = Instant::now();
                        stored = held.checkpoint().await?.tree;
                        acknowledged.push(start.elapsed());
                    }
                    _ => {
                        twins.write(twins.plain.path(), &edit)?;
                        let start = Instant::now();
                        twins.plain.git(&["add", "-A"]);
                        twins.plain.git(&["commit", "--quiet", "-m", "bench"]);
                        plain.push(start.elapsed());
                        twins.plain.git(&["push", "--quiet", &remote, "HEAD:refs/heads/main"]);
                        pushed.push(start.elapsed());
                    }
                }
            }
        }
        let tree = twins.plain.git(&["rev-parse", "HEAD^{tree}"]);
        let taken = twins.worktree.checkpoint(&last, "compared").await?;
        anyhow::ensure!(taken.tree.as_str() == tree.trim(), "not the same files");
        anyhow::ensure!(stored == tree.trim(), "not the same files are stored");
        figures.push(Figure::new(
            "checkpoint",
            case.name,
            (median_ms(ours.split_off(1)), "ms"),
            ("git add -A && git commit", median_ms(plain.split_off(1))),
        ));
        figures.push(Figure::new(
            "checkpoint",
            case.acknowledged,
            (median_ms(acknowledged.split_off(1)), "ms"),
            ("git add -A && git commit && git push", median_ms(pushed.split_off(1))),
        ));
    }
    Ok(figures)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_case_is_measured_on_the_same_files() {
        let cluster = Cluster::start().await;
        let figures = run_on(Size { files: 1200, rounds: 2 }, cluster).await.unwrap();
        assert_eq!(figures.len(), 2 * CASES.len());
        assert!(figures.iter().all(|figure| figure.value > 0.0 && figure.ratio > 0.0));
    }
}

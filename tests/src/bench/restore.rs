//! `restore`: from edited files back to the last checkpoint, compared with `git reset --hard && git
//! clean -fdx`. Kage first scans the whole worktree and puts the edits into a safety checkpoint
//! that survives a power cut; plain git discards them.

use std::time::Instant;

use kage_git::restore::{Foreign, RestoreOptions};

use crate::bench::figure::Figure;
use crate::bench::tree::{Twins, median_ms};

pub use crate::bench::checkpoint::Size;

/// Edited files, rounds, and the case's name.
const CASES: &[(usize, usize, &str)] = &[(1, 21, "1 file"), (10, 21, "10 files"), (1000, 7, "1000 files")];

/// Measures; fails when not every byte comes back.
pub async fn run(size: Size) -> anyhow::Result<Vec<Figure>> {
    let mut twins = Twins::generate(size.files, 2).await?;
    let target = twins.worktree.checkpoint(&twins.base, "baseline").await?.commit;
    let options = RestoreOptions {
        foreign: Foreign::Save,
        ..RestoreOptions::default()
    };
    let mut figures = Vec::new();
    for (files, rounds, case) in CASES {
        let (mut ours, mut plain) = (Vec::new(), Vec::new());
        // One extra round: the first of a kind fills caches and does not count. The order
        // alternates.
        for round in 0..=size.rounds.min(*rounds) {
            let edit = twins.edit(*files);
            for turn in 0..2 {
                if (round + turn) % 2 == 0 {
                    twins.write(twins.worktree.path(), &edit)?;
                    let start = Instant::now();
                    let restored = twins.worktree.restore(&target, &options).await?;
                    ours.push(start.elapsed());
                    anyhow::ensure!(restored.paths.len() == *files, "every edit is undone");
                } else {
                    twins.write(twins.plain.path(), &edit)?;
                    let start = Instant::now();
                    twins.plain.git(&["reset", "--quiet", "--hard"]);
                    twins.plain.git(&["clean", "--quiet", "-fdx"]);
                    plain.push(start.elapsed());
                }
            }
        }
        twins.compare()?;
        figures.push(Figure::new(
            "restore",
            case,
            (median_ms(ours.split_off(1)), "ms"),
            ("git reset --hard && git clean -fdx", median_ms(plain.split_off(1))),
        ));
    }
    Ok(figures)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_case_is_measured_and_gives_every_byte_back() {
        let figures = run(Size { files: 1200, rounds: 2 }).await.unwrap();
        assert_eq!(figures.len(), CASES.len());
        assert!(figures.iter().all(|figure| figure.value > 0.0 && figure.ratio > 0.0));
    }
}

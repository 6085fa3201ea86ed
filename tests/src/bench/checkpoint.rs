//! `checkpoint`: from edited files to a commit that survives a power cut, beside
//! `git add -A && git commit` (which does not wait for the disk) on the same files.

use std::time::Instant;

use crate::bench::figure::Figure;
use crate::bench::tree::{Twins, median_ms};

/// Edited files, how often, and what the case is called.
const CASES: &[(usize, usize, &str)] = &[(1, 21, "1 file"), (10, 21, "10 files"), (1000, 7, "1000 files")];

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Files in the repository.
    pub files: usize,
    /// No case is measured more often than this.
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

/// Measures.
///
/// # Errors
/// When anything fails, or the two ways see different files.
pub async fn run(size: Size) -> anyhow::Result<Vec<Figure>> {
    let mut twins = Twins::generate(size.files, 1).await?;
    let mut last = twins.worktree.checkpoint(&twins.base, "baseline").await?.commit;
    let mut figures = Vec::new();
    for (files, rounds, case) in CASES {
        let (mut ours, mut plain) = (Vec::new(), Vec::new());
        // One more than counts: the first of a kind fills caches. Who is first alternates.
        for round in 0..=size.rounds.min(*rounds) {
            let edit = twins.edit(*files);
            for turn in 0..2 {
                if (round + turn) % 2 == 0 {
                    twins.write(twins.worktree.path(), &edit)?;
                    let start = Instant::now();
                    last = twins.worktree.checkpoint(&last, "bench").await?.commit;
                    ours.push(start.elapsed());
                } else {
                    twins.write(twins.plain.path(), &edit)?;
                    let start = Instant::now();
                    twins.plain.git(&["add", "-A"]);
                    twins.plain.git(&["commit", "--quiet", "-m", "bench"]);
                    plain.push(start.elapsed());
                }
            }
        }
        let tree = twins.plain.git(&["rev-parse", "HEAD^{tree}"]);
        let taken = twins.worktree.checkpoint(&last, "compared").await?;
        anyhow::ensure!(taken.tree.as_str() == tree.trim(), "not the same files");
        figures.push(Figure::new(
            "checkpoint",
            case,
            (median_ms(ours.split_off(1)), "ms"),
            ("git add -A && git commit", median_ms(plain.split_off(1))),
        ));
    }
    Ok(figures)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_case_is_measured_on_the_same_files() {
        let figures = run(Size { files: 1200, rounds: 2 }).await.unwrap();
        assert_eq!(figures.len(), CASES.len());
        assert!(figures.iter().all(|figure| figure.value > 0.0 && figure.ratio > 0.0));
    }
}

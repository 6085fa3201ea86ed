//! `checkout-neighbour`: how long a checkout of another program takes beside a busy agent on the
//! same disk, against the same on a quiet disk.

use std::time::Instant;

use crate::bench::figure::Figure;
use crate::bench::task::Bench;
use crate::bench::tree::{Tree, median_ms};
use crate::repo::Repo;
use crate::root::Root;

/// The amount to measure.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    pub files: usize,
    /// Checkouts of each kind, of which the median counts.
    pub checkouts: usize,
    /// Tasks before the checkouts that count: what an agent in use has done to the disk.
    pub tasks: usize,
}

impl Default for Size {
    fn default() -> Self {
        Self {
            files: 25_000,
            checkouts: 5,
            tasks: 3,
        }
    }
}

/// Measures on the file system of temporary files.
///
/// # Errors
/// When a task does not end verified.
pub async fn run(size: Size) -> anyhow::Result<Vec<Figure>> {
    let mut neighbour = Neighbour::new(size.files)?;
    let mut bench = Bench::new(size.files)?;
    let quiet = (0..size.checkouts).map(|_| neighbour.checkout()).collect();
    for _ in 0..size.tasks {
        bench.move_base(1)?;
        bench.task(1).await?;
    }
    let mut beside = Vec::new();
    while beside.len() < size.checkouts {
        bench.move_base(1)?;
        // One checkout while the task works.
        let checkout = tokio::task::spawn_blocking(move || (neighbour.checkout(), neighbour));
        bench.task(1).await?;
        let (took, same) = checkout.await?;
        neighbour = same;
        beside.push(took);
    }
    Ok(vec![Figure::new(
        "checkout-neighbour",
        "beside",
        (median_ms(beside), "ms"),
        ("git worktree add on the quiet disk", median_ms(quiet)),
    )])
}

/// Another program's repository, and its checkouts, which it keeps.
#[derive(Debug)]
struct Neighbour {
    root: Root,
    repo: Repo,
    checkouts: u32,
}

impl Neighbour {
    fn new(files: usize) -> anyhow::Result<Self> {
        let root = Root::new("kage-neighbour-");
        let repo = Repo::empty(&root.path().join("repository"));
        Tree::generate(repo.path(), files, 2)?;
        repo.commit("generated");
        Ok(Self {
            root,
            repo,
            checkouts: 0,
        })
    }

    fn checkout(&mut self) -> std::time::Duration {
        self.checkouts += 1;
        let place = self.root.path().join(format!("checkout-{}", self.checkouts));
        let start = Instant::now();
        let place = place.to_string_lossy();
        self.repo
            .git(&["worktree", "add", "--quiet", "--detach", &place, "HEAD"]);
        start.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn checkouts_beside_tasks_are_compared_with_quiet_ones() {
        let size = Size {
            files: 60,
            checkouts: 1,
            tasks: 0,
        };
        let figures = run(size).await.unwrap();
        assert!(figures[0].value > 0.0 && figures[0].baseline_value > 0.0);
    }
}

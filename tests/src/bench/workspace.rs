//! `workspace`: a worktree for a session from a checkout that was set aside, on a base that moved
//! by one file, beside `git worktree add`; one at a time, and many side by side. Worktrees of git
//! stay, so that neither way pays for the inodes that the other freed.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use kage_core::id::Oid;
use kage_git::{Auth, SetAside, Worktree};
use tokio::task::JoinSet;

use crate::bench::figure::Figure;
use crate::bench::tree::{Twins, median_ms};

const BASELINE: &str = "git worktree add";

/// The amount to measure.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    pub files: usize,
    pub rounds: usize,
    /// Worktrees that are made at once.
    pub beside: usize,
}

impl Default for Size {
    fn default() -> Self {
        Self {
            files: 25_000,
            rounds: 9,
            beside: 16,
        }
    }
}

/// Measures on the file system of temporary files.
///
/// # Errors
/// When git fails.
pub async fn run(size: Size) -> anyhow::Result<Vec<Figure>> {
    let mut bench = Bench::new(size.files).await?;
    let (mut ours, mut plain) = (Vec::new(), Vec::new());
    for _ in 0..size.rounds {
        let base = bench.move_base().await?;
        ours.extend(bench.reuse(1, &base).await?);
        plain.extend(bench.plain(1).await?);
    }
    let one = Figure::new(
        "workspace",
        "create",
        (median_ms(ours), "ms"),
        (BASELINE, median_ms(plain)),
    );
    bench.fill(size.beside).await?;
    let base = bench.move_base().await?;
    let ours = bench.reuse(size.beside, &base).await?;
    let plain = bench.plain(size.beside).await?;
    let many = Figure::new(
        "workspace",
        "create, 16 side by side",
        (median_ms(ours), "ms"),
        (format!("{BASELINE}, as many"), median_ms(plain)),
    );
    Ok(vec![one, many])
}

struct Bench {
    twins: Twins,
    aside: Vec<SetAside>,
    made: u32,
}

impl Bench {
    async fn new(files: usize) -> anyhow::Result<Self> {
        let twins = Twins::generate(files, 1).await?;
        let (path, folder) = (twins.worktree.path().to_owned(), twins.path("pool"));
        let aside = Worktree::set_aside(&twins.mirror, &path, &twins.base, &folder).await?;
        Ok(Self {
            twins,
            aside: vec![aside],
            made: 0,
        })
    }

    fn next_path(&mut self, what: &str) -> PathBuf {
        self.made += 1;
        self.twins.path(&format!("{what}-{}", self.made))
    }

    /// A commit that differs from the one before in a file, on both sides.
    async fn move_base(&mut self) -> anyhow::Result<Oid> {
        let edit = self.twins.edit(1);
        let top = self.twins.plain.path().to_owned();
        self.twins.write(&top, &edit)?;
        let base: Oid = self.twins.plain.commit("moved").parse()?;
        let url = format!("file://{}", top.display());
        let spec = format!("HEAD:refs/kage/bases/{base}");
        self.twins.mirror.fetch(&url, &Auth::None, &[&spec]).await?;
        Ok(base)
    }

    /// Makes checkouts until this many wait.
    async fn fill(&mut self, wanted: usize) -> anyhow::Result<()> {
        while self.aside.len() < wanted {
            let (path, folder) = (self.next_path("filled"), self.next_path("pool"));
            let base = self.twins.base.clone();
            Worktree::create(&self.twins.mirror, &path, &base).await?;
            self.aside
                .push(Worktree::set_aside(&self.twins.mirror, &path, &base, &folder).await?);
        }
        Ok(())
    }

    /// Makes worktrees of the checkouts that wait, all at once, and sets them aside again.
    async fn reuse(&mut self, count: usize, base: &Oid) -> anyhow::Result<Vec<Duration>> {
        let mut making = JoinSet::new();
        for aside in self.aside.split_off(self.aside.len().saturating_sub(count)) {
            let (mirror, path, base) = (self.twins.mirror.clone(), self.next_path("worktree"), base.clone());
            making.spawn(async move {
                let start = Instant::now();
                let made = Worktree::reuse(&mirror, &aside, &path, &base).await;
                made.map(|made| (start.elapsed(), made))
            });
        }
        let mut times = Vec::new();
        for made in making.join_all().await {
            let (took, worktree) = made?;
            let worktree = worktree.context("no attributes differ")?;
            times.push(took);
            let (path, folder) = (worktree.path().to_owned(), self.next_path("pool"));
            drop(worktree);
            self.aside
                .push(Worktree::set_aside(&self.twins.mirror, &path, base, &folder).await?);
        }
        Ok(times)
    }

    /// The same with git alone.
    async fn plain(&mut self, count: usize) -> anyhow::Result<Vec<Duration>> {
        let mut making = JoinSet::new();
        for _ in 0..count {
            let (path, repository) = (self.next_path("plain"), self.twins.plain.path().to_owned());
            making.spawn_blocking(move || {
                let start = Instant::now();
                worktree_add(&repository, &path).map(|()| start.elapsed())
            });
        }
        making.join_all().await.into_iter().collect()
    }
}

fn worktree_add(repository: &Path, path: &Path) -> anyhow::Result<()> {
    let mut command = std::process::Command::new("git");
    command.args(["worktree", "add", "--quiet", "--detach"]).arg(path);
    let status = command.current_dir(repository).status()?;
    anyhow::ensure!(status.success(), "git worktree add: {status}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn worktrees_are_made_one_by_one_and_side_by_side() {
        let size = Size {
            files: 60,
            rounds: 1,
            beside: 2,
        };
        let figures = run(size).await.unwrap();
        assert_eq!(figures.len(), 2);
        assert!(figures.iter().all(|figure| figure.value > 0.0 && figure.ratio > 0.0));
    }
}

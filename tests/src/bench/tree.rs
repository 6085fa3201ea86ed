//! A large generated repository, twice: as a worktree of Kage, and as a repository for plain git.
//! It owns the files and their edits; both get the same edits.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use kage_core::id::Oid;
use kage_git::{Auth, Mirror, Worktree};
use rand::rngs::SmallRng;
use rand::{Rng, RngExt as _, SeedableRng};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::repo::Repo;

/// Files in one folder, and subfolders in one folder.
const WIDTH: usize = 25;

/// Generated files, and what is drawn from the same seed after them.
#[derive(Debug)]
pub struct Tree {
    paths: Vec<PathBuf>,
    random: SmallRng,
}

/// The new content of each edited path.
pub type Edit = Vec<(PathBuf, Vec<u8>)>;

impl Tree {
    /// Writes `files` files below `top`. The same seed makes the same files.
    pub fn generate(top: &Path, files: usize, seed: u64) -> anyhow::Result<Self> {
        Self::generate_as(top, files, seed, content)
    }

    /// The same with files of another content.
    pub fn generate_as(
        top: &Path,
        files: usize,
        seed: u64,
        content: fn(&mut SmallRng) -> Vec<u8>,
    ) -> anyhow::Result<Self> {
        let mut random = SmallRng::seed_from_u64(seed);
        let mut paths = Vec::with_capacity(files);
        for number in 0..files {
            let (inner, outer) = (number / WIDTH % WIDTH, number / WIDTH / WIDTH);
            let path = PathBuf::from(format!("part{outer}/module{inner}/file{}.txt", number % WIDTH));
            let full = top.join(&path);
            fs::create_dir_all(full.parent().context("every path has a folder")?)?;
            fs::write(&full, content(&mut random))?;
            paths.push(path);
        }
        Ok(Self { paths, random })
    }

    /// New content for this many different files.
    pub fn edit(&mut self, files: usize) -> Edit {
        let mut chosen = BTreeSet::new();
        while chosen.len() < files.min(self.paths.len()) {
            chosen.insert(self.random.random_range(0..self.paths.len()));
        }
        chosen
            .into_iter()
            .map(|index| (self.paths[index].clone(), content(&mut self.random)))
            .collect()
    }

    /// A random one of the paths.
    pub fn any(&mut self) -> &Path {
        &self.paths[self.random.random_range(0..self.paths.len())]
    }
}

/// Both repositories, with the same files.
#[derive(Debug)]
pub struct Twins {
    folder: TempDir,
    pub mirror: Mirror,
    pub worktree: Worktree,
    pub plain: Repo,
    /// The commit that both began with.
    pub base: Oid,
    tree: Tree,
}

impl Twins {
    /// Generates `files` files from a seed. The same seed makes the same commit content.
    pub async fn generate(files: usize, seed: u64) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let plain = Repo::empty(&folder.path().join("plain"));
        let tree = Tree::generate(plain.path(), files, seed)?;
        let base: Oid = plain.commit("generated").parse()?;
        let mirror = Mirror::open_or_init(folder.path().join("mirror.git")).await?;
        let url = format!("file://{}", plain.path().display());
        let spec = format!("HEAD:refs/kage/bases/{base}");
        mirror.fetch(&url, &Auth::None, &[&spec]).await?;
        let worktree = Worktree::create(&mirror, folder.path().join("worktree"), &base).await?;
        Ok(Self {
            folder,
            mirror,
            worktree,
            plain,
            base,
            tree,
        })
    }

    /// A path beside both.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// New content for this many different files.
    pub fn edit(&mut self, files: usize) -> Edit {
        self.tree.edit(files)
    }

    /// Writes an edit below a folder, and waits for the disk, so that the following measurement
    /// pays for its own writes only.
    pub fn write(&self, top: &Path, edit: &Edit) -> anyhow::Result<()> {
        for (path, bytes) in edit {
            fs::write(top.join(path), bytes)?;
        }
        rustix::fs::syncfs(File::open(self.folder.path())?)?;
        Ok(())
    }

    /// Checks that both have the same bytes in every file.
    pub fn compare(&self) -> anyhow::Result<()> {
        let digest = |top: &Path| -> anyhow::Result<Vec<u8>> {
            let mut digest = Sha256::new();
            for path in &self.tree.paths {
                let bytes = fs::read(top.join(path)).with_context(|| path.display().to_string())?;
                digest.update(bytes.len().to_le_bytes());
                digest.update(&bytes);
            }
            Ok(digest.finalize().to_vec())
        };
        let same = digest(self.worktree.path())? == digest(self.plain.path())?;
        ensure!(same, "the worktree and plain git's differ");
        Ok(())
    }
}

/// 200 to 4,000 bytes of hardly compressible lines.
fn content(random: &mut SmallRng) -> Vec<u8> {
    let mut bytes = vec![0; random.random_range(200..4000)];
    random.fill_bytes(&mut bytes);
    for line in bytes.chunks_mut(60) {
        if let Some(last) = line.last_mut() {
            *last = b'\n';
        }
    }
    bytes
}

/// The median of the times, in milliseconds.
#[must_use]
pub fn median_ms(mut times: Vec<std::time::Duration>) -> f64 {
    times.sort();
    times
        .get(times.len() / 2)
        .map_or(0.0, |time| time.as_secs_f64() * 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn twins_are_the_same_until_one_is_edited() {
        let mut twins = Twins::generate(60, 1).await.unwrap();
        twins.compare().unwrap();
        let edit = twins.edit(3);
        assert_eq!(edit.len(), 3);
        twins.write(twins.plain.path(), &edit).unwrap();
        assert!(twins.compare().is_err());
        twins.write(twins.worktree.path(), &edit).unwrap();
        twins.compare().unwrap();
        let again = Twins::generate(60, 1).await.unwrap();
        assert_eq!(
            again.plain.git(&["rev-parse", "HEAD^{tree}"]),
            twins.plain.git(&["rev-parse", "HEAD^{tree}"])
        );
    }
}

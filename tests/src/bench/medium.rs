//! The file systems that figures are measured on: where temporary files are, or an image that is
//! made, mounted on a loop device and removed again. A bench runs on a medium because its TMPDIR is
//! there; its own code does not depend on the medium.

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use clap::ValueEnum;
use tempfile::TempDir;

/// Bytes of an image. Sparse: what is not written takes no space.
const IMAGE_BYTES: u64 = 32 << 30;

/// A kind of file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Medium {
    /// Where temporary files are.
    Here,
    /// ext4 as `mkfs.ext4` makes it: with a journal.
    Ext4,
    /// ext4 without a journal, as small virtual machines have it.
    Ext4NoJournal,
    Xfs,
    Btrfs,
}

impl Medium {
    /// The command that makes such a file system in an image; `None` where nothing is made.
    fn mkfs(self) -> Option<&'static [&'static str]> {
        match self {
            Self::Here => None,
            Self::Ext4 => Some(&["mkfs.ext4", "-q", "-F"]),
            Self::Ext4NoJournal => Some(&["mkfs.ext4", "-q", "-F", "-O", "^has_journal"]),
            Self::Xfs => Some(&["mkfs.xfs", "-q", "-f"]),
            Self::Btrfs => Some(&["mkfs.btrfs", "-q", "-f"]),
        }
    }

    /// [`Medium::Here`], and for root every kind whose `mkfs` this machine has.
    #[must_use]
    pub fn available() -> Vec<Self> {
        let is_root = rustix::process::geteuid().is_root();
        let mut media = Self::value_variants().to_vec();
        media.retain(|medium| {
            medium
                .mkfs()
                .is_none_or(|mkfs| is_root && Command::new(mkfs[0]).arg("-V").output().is_ok())
        });
        media
    }

    /// Makes and mounts it. Needs root for everything but [`Medium::Here`], and its `mkfs`.
    ///
    /// # Errors
    /// When it cannot be made or mounted here.
    pub fn mount(self) -> anyhow::Result<Mounted> {
        let Some(mkfs) = self.mkfs() else {
            return Ok(Mounted {
                point: std::env::temp_dir(),
                medium: self,
                image: None,
            });
        };
        let folder = tempfile::Builder::new().prefix("kage-medium-").tempdir()?;
        let image = folder.path().join("image");
        File::create(&image)?.set_len(IMAGE_BYTES)?;
        run(mkfs, &image)?;
        let point = folder.path().join("mount");
        std::fs::create_dir(&point)?;
        let mut mount = Command::new("mount");
        mount.args(["-o", "loop"]).arg(&image).arg(&point);
        succeed(mount).context("root can mount an image on a loop device")?;
        Ok(Mounted {
            point,
            medium: self,
            image: Some(folder),
        })
    }
}

impl fmt::Display for Medium {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Here => "temporary folder",
            Self::Ext4 => "ext4 with a journal (loop)",
            Self::Ext4NoJournal => "ext4 without a journal (loop)",
            Self::Xfs => "XFS (loop)",
            Self::Btrfs => "btrfs (loop)",
        })
    }
}

/// A medium that can be used. Dropping it unmounts it and removes its image.
#[derive(Debug)]
pub struct Mounted {
    point: PathBuf,
    medium: Medium,
    image: Option<TempDir>,
}

impl Mounted {
    /// The folder at its top.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.point
    }

    /// Runs this program on it with other arguments and returns what it prints.
    ///
    /// # Errors
    /// When it fails.
    pub fn run_this_program(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(arguments).env("TMPDIR", &self.point);
        command.stderr(std::process::Stdio::inherit());
        let output = command.output()?;
        ensure!(
            output.status.success(),
            "{} on {}: {}",
            arguments.join(" "),
            self.medium,
            output.status
        );
        Ok(String::from_utf8(output.stdout)?)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.image.is_some() {
            let mut umount = Command::new("umount");
            umount.arg("--lazy").arg(&self.point);
            if let Err(error) = succeed(umount) {
                eprintln!("{} stays mounted: {error:#}", self.point.display());
            }
        }
    }
}

fn run(command: &[&str], image: &Path) -> anyhow::Result<()> {
    let (program, arguments) = command.split_first().context("a command has a program")?;
    let mut mkfs = Command::new(program);
    mkfs.args(arguments).arg(image);
    succeed(mkfs).with_context(|| format!("{program} makes a file system"))
}

fn succeed(mut command: Command) -> anyhow::Result<()> {
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {}", output.status, said.trim());
    Ok(())
}

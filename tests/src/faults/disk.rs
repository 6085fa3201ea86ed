//! A small separate disk: a file system in memory of a given size, which can be filled to the last
//! byte and emptied again.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use super::system;

const FILLER: &str = "filler";
/// Pieces in which a disk is filled; the last page is filled byte by byte.
const PIECE: usize = 4096;

/// A disk. It is unmounted when it is dropped.
#[derive(Debug)]
pub struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// Creates a folder and mounts a disk of this many megabytes over it; see [`super::may_mount`].
    #[must_use]
    pub fn at(path: &Path, megabytes: u32) -> Self {
        std::fs::create_dir_all(path).expect("a folder can be made");
        let target = path.to_str().expect("a path of the tests is text");
        system(
            "mount",
            &[
                "-t",
                "tmpfs",
                "-o",
                &format!("size={megabytes}m,mode=0700"),
                "tmpfs",
                target,
            ],
        );
        Self { path: path.to_owned() }
    }

    /// Takes all free space.
    pub fn fill(&self) {
        let mut file = File::options()
            .create(true)
            .append(true)
            .open(self.path.join(FILLER))
            .expect("a file can be made");
        loop {
            match file.write_all(&[0; PIECE]) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::StorageFull => return,
                Err(error) => panic!("the disk is not full, but: {error}"),
            }
        }
    }

    /// Frees all space that [`Self::fill`] took.
    pub fn empty(&self) {
        std::fs::remove_file(self.path.join(FILLER)).expect("the disk was filled");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a daemon that is being killed may still have files open.
        std::process::Command::new("umount")
            .arg("-l")
            .arg(&self.path)
            .status()
            .ok();
    }
}

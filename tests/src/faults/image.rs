//! Power cuts. A file system lives in a file; a copy of that file, made between two writes of the
//! kernel, is the disk as a power cut at that moment leaves it: data that was written and not
//! synced is missing. (Killing a process proves nothing of that kind, because the kernel keeps the
//! data that it was given.)

use std::path::{Path, PathBuf};

use super::system;

/// A disk in a file. It is unmounted when it is dropped.
#[derive(Debug)]
pub struct DiskImage {
    file: PathBuf,
    mount: PathBuf,
    device: String,
}

impl DiskImage {
    /// Formats `file` as a new ext4 of this many megabytes and mounts it over a folder, which is
    /// created; see [`super::may_mount`].
    #[must_use]
    pub fn format(file: &Path, megabytes: u64, mount: &Path) -> Self {
        let image = std::fs::File::create(file).expect("a file can be made");
        image.set_len(megabytes << 20).expect("a file can have holes");
        system(
            "mkfs.ext4",
            &["-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", text(file)],
        );
        Self::mount(file, mount)
    }

    /// Mounts the existing disk in `file` over a folder. Mounting replays its journal.
    #[must_use]
    pub fn mount(file: &Path, mount: &Path) -> Self {
        std::fs::create_dir_all(mount).expect("a folder can be made");
        let device = system("losetup", &["--find", "--show", text(file)]);
        system("mount", &["-t", "ext4", &device, text(mount)]);
        Self {
            file: file.to_owned(),
            mount: mount.to_owned(),
            device,
        }
    }

    /// Copies the disk as a power cut now would leave it. Its writers should be stopped meanwhile,
    /// or there may be no moment between two writes for long.
    pub fn cut(&self, copy: &Path) {
        for _ in 0..100 {
            let before = self.writes();
            system("cp", &["--sparse=always", text(&self.file), text(copy)]);
            if self.writes() == before {
                return;
            }
        }
        panic!("the disk is written all the time");
    }

    /// Counts the started and completed writes to the disk.
    fn writes(&self) -> String {
        let name = self.device.trim_start_matches("/dev/");
        let stat = std::fs::read_to_string(format!("/sys/block/{name}/stat")).expect("a disk has figures");
        let fields: Vec<&str> = stat.split_whitespace().collect();
        // Writes, sectors written, requests in flight.
        format!("{} {} {}", fields[4], fields[6], fields[8])
    }
}

impl Drop for DiskImage {
    fn drop(&mut self) {
        for (program, argument) in [("umount", text(&self.mount)), ("losetup", &self.device)] {
            let option = if program == "umount" { "-l" } else { "-d" };
            std::process::Command::new(program)
                .args([option, argument])
                .status()
                .ok();
        }
    }
}

/// Whether an unmounted file system is intact, once its journal was replayed.
#[must_use]
pub fn is_whole(file: &Path) -> bool {
    let status = std::process::Command::new("e2fsck")
        .args(["-fn", text(file)])
        .output()
        .expect("e2fsck can be started")
        .status;
    status.success()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of the tests is text")
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_cut_keeps_what_was_synced_and_nothing_else() {
        if !super::super::may_mount() {
            crate::programs::skip("a_cut_keeps_what_was_synced", "only root may mount");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let image = DiskImage::format(&path("disk"), 32, &path("mount"));
        let mut synced = File::create(path("mount/synced")).unwrap();
        synced.write_all(b"kept").unwrap();
        synced.sync_all().unwrap();
        File::open(path("mount")).unwrap().sync_all().unwrap();
        std::fs::write(path("mount/written"), "lost").unwrap();
        image.cut(&path("copy"));
        let found = DiskImage::mount(&path("copy"), &path("found"));
        assert_eq!(std::fs::read(path("found/synced")).unwrap(), b"kept");
        let lost = std::fs::read(path("found/written")).unwrap_or_default();
        assert!(lost.is_empty(), "the positive control: what was not synced is lost");
        drop(found);
        assert!(is_whole(&path("copy")));
    }
}

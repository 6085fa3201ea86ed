//! Reads and writes single files in a folder, and undoes an incomplete set of writes. It knows
//! nothing of git.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use kage_core::id::Digest;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::beneath::{Beneath, Parent, new_mode};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Seen {
    Absent,
    File {
        content: Digest,
        executable: bool,
    },
    Link(Vec<u8>),
    Folder,
    /// A device, a pipe, a socket.
    Special,
    /// Something that is not a folder is where a parent should be: this.
    Beyond(PathBuf),
}

/// The target content of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    Absent,
    File { bytes: Vec<u8>, executable: bool },
    Link(Vec<u8>),
}

/// One write; it happens only if the path is unchanged since it was seen.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) path: PathBuf,
    pub(super) seen: Seen,
    pub(super) target: Target,
}

/// Why a set of writes did not happen. Completed steps were undone.
#[derive(Debug)]
pub(super) enum Undone {
    Changed(PathBuf),
    Failed { path: PathBuf, source: io::Error },
}

/// The data to undo a completed set of writes.
#[derive(Debug, Default)]
pub(super) struct Undo(Vec<(PathBuf, Former)>);

/// The whole former content of a path.
#[derive(Debug)]
struct Former {
    target: Target,
    /// Only for files.
    mode: Option<u32>,
}

impl Beneath {
    pub(super) fn look(&self, path: &Path) -> io::Result<Seen> {
        Ok(self.find(path)?.0)
    }

    /// The same, with the data to restore it.
    fn find(&self, path: &Path) -> io::Result<(Seen, Former)> {
        // An empty folder too: the undo deletes whatever takes its place.
        let nothing = |seen| {
            let target = Target::Absent;
            Ok((seen, Former { target, mode: None }))
        };
        let (parent, name) = match self.parent(path, false)? {
            Parent::Open(parent, name) => (parent, name),
            Parent::Absent => return nothing(Seen::Absent),
            Parent::Blocked(by) => return nothing(Seen::Beyond(by)),
        };
        let stat = match rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return nothing(Seen::Absent),
            other => other?,
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {
                let bytes = read(&parent, name)?;
                let executable = stat.st_mode & 0o100 != 0;
                let content = Digest::of(&bytes);
                let former = Former {
                    target: Target::File { bytes, executable },
                    mode: Some(stat.st_mode & 0o7777),
                };
                Ok((Seen::File { content, executable }, former))
            }
            FileType::Symlink => {
                let to = rustix::fs::readlinkat(&parent, name, Vec::new())?.into_bytes();
                let target = Target::Link(to.clone());
                Ok((Seen::Link(to), Former { target, mode: None }))
            }
            FileType::Directory => nothing(Seen::Folder),
            _ => nothing(Seen::Special),
        }
    }

    /// Does all steps or none. Deletions come first, so that a file can replace a folder.
    pub(super) fn carry_out(&self, steps: &[Step]) -> Result<Undo, Undone> {
        for step in steps {
            if self.look(&step.path).map_err(|error| failed(step, error))? != step.seen {
                return Err(Undone::Changed(step.path.clone()));
            }
        }
        self.write_all(steps)
    }

    /// Writes the files. Many writes take a while, in which a person may save one of the files.
    fn write_all(&self, steps: &[Step]) -> Result<Undo, Undone> {
        let mut undo = Undo::default();
        let (deletions, writes): (Vec<&Step>, Vec<&Step>) =
            steps.iter().partition(|step| step.target == Target::Absent);
        for step in deletions.into_iter().chain(writes) {
            if let Err(undone) = self.write_one(step, &mut undo) {
                self.undo(undo);
                return Err(undone);
            }
        }
        Ok(undo)
    }

    fn write_one(&self, step: &Step, undo: &mut Undo) -> Result<(), Undone> {
        let (now, former) = self.find(&step.path).map_err(|error| failed(step, error))?;
        let holds_bytes = |seen: &Seen| matches!(seen, Seen::File { .. } | Seen::Link(_));
        // Earlier steps may have made room; content can only come from somebody else.
        if now != step.seen && (holds_bytes(&now) || holds_bytes(&step.seen)) {
            return Err(Undone::Changed(step.path.clone()));
        }
        let mode = former.mode;
        undo.0.push((step.path.clone(), former));
        self.put(&step.path, &step.target, mode)
            .map_err(|error| failed(step, error))
    }

    /// Restores the former content, as far as possible.
    pub(super) fn undo(&self, undo: Undo) {
        let (deletions, writes): (Vec<_>, Vec<_>) = undo
            .0
            .into_iter()
            .partition(|(_, former)| former.target == Target::Absent);
        for (path, former) in deletions.into_iter().chain(writes) {
            if let Err(error) = self.put(&path, &former.target, former.mode) {
                tracing::error!(path = %path.display(), %error, "a file could not be put back");
            }
        }
    }

    fn put(&self, path: &Path, target: &Target, mode: Option<u32>) -> io::Result<()> {
        if *target == Target::Absent {
            return self.delete(path);
        }
        let (parent, name) = match self.parent(path, true)? {
            Parent::Open(parent, name) => (parent, name),
            Parent::Absent | Parent::Blocked(_) => return Err(Errno::NOTDIR.into()),
        };
        match rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR) {
            Err(Errno::NOENT | Errno::NOTDIR) | Ok(()) => {}
            Err(error) => return Err(error.into()),
        }
        let temporary = format!(".kage-{}-{}", std::process::id(), Digest::of(name.as_bytes()));
        let temporary: String = temporary.chars().take(40).collect();
        let written = match target {
            Target::File { bytes, executable } => {
                write(&parent, &temporary, bytes, new_mode(mode, *executable), mode.is_some())
            }
            Target::Link(to) => rustix::fs::symlinkat(to.as_slice(), &parent, temporary.as_str()).map_err(Into::into),
            Target::Absent => Ok(()),
        };
        let placed = written.and_then(|()| Ok(rustix::fs::renameat(&parent, temporary.as_str(), &parent, name)?));
        if placed.is_err()
            && let Err(error) = rustix::fs::unlinkat(&parent, temporary.as_str(), AtFlags::empty())
        {
            tracing::debug!(%error, "the temporary file was never made");
        }
        placed
    }

    /// Deletes a file and the folders that this leaves empty, as git does.
    fn delete(&self, path: &Path) -> io::Result<()> {
        if let Parent::Open(parent, name) = self.parent(path, false)? {
            match rustix::fs::unlinkat(&parent, name, AtFlags::empty()) {
                Err(Errno::NOENT) | Ok(()) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let mut folder = path.parent();
        while let Some(empty) = folder.filter(|folder| !folder.as_os_str().is_empty()) {
            let Parent::Open(parent, name) = self.parent(empty, false)? else {
                break;
            };
            if rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR).is_err() {
                break;
            }
            folder = empty.parent();
        }
        Ok(())
    }
}

fn failed(step: &Step, source: io::Error) -> Undone {
    let path = step.path.clone();
    Undone::Failed { path, source }
}

fn read(parent: &OwnedFd, name: &std::ffi::OsStr) -> io::Result<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    let mut bytes = Vec::new();
    File::from(file).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// `exact` = the mode is a former file's and the umask does not apply.
fn write(parent: &OwnedFd, name: &str, bytes: &[u8], mode: u32, exact: bool) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mode = Mode::from_raw_mode(mode);
    let file = rustix::fs::openat(parent, name, flags, mode)?;
    if exact {
        rustix::fs::fchmod(&file, mode)?;
    }
    let mut file = File::from(file);
    file.write_all(bytes)?;
    file.sync_all()
}

/// Reads a file of a folder of this crate's own.
pub(super) fn read_own(path: &Path) -> io::Result<Target> {
    let parent = rustix::fs::openat(
        CWD,
        path.parent().unwrap_or(Path::new("/")),
        OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY,
        Mode::empty(),
    )?;
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let stat = rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
        let target = rustix::fs::readlinkat(&parent, name, Vec::new())?;
        return Ok(Target::Link(target.into_bytes()));
    }
    Ok(Target::File {
        bytes: read(&parent, name)?,
        executable: stat.st_mode & 0o100 != 0,
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_saved_while_others_are_written_keeps_what_was_saved() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let beneath = Beneath::open(folder.path()).unwrap();
        let step = |name: &str| Step {
            path: name.into(),
            seen: beneath.look(Path::new(name)).unwrap(),
            target: Target::File {
                bytes: b"the result's\n".to_vec(),
                executable: false,
            },
        };
        fs::write(at("first"), "one\n").unwrap();
        fs::write(at("saved"), "two\n").unwrap();
        for (changed, edit) in [("saved", "an edit\n"), ("new", "a new file\n")] {
            let steps = [step("first"), step(changed)];
            fs::write(at(changed), edit).unwrap();
            let refused = beneath.write_all(&steps).unwrap_err();
            assert!(
                matches!(&refused, Undone::Changed(path) if path == Path::new(changed)),
                "{refused:?}"
            );
            assert_eq!(fs::read_to_string(at("first")).unwrap(), "one\n", "it is undone");
            assert_eq!(fs::read_to_string(at(changed)).unwrap(), edit);
        }
    }
}
